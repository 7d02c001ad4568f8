#!/bin/sh
# rustc for scripts/coverage.sh: cargo calls it for the crate alone.
exec "$@" -C instrument-coverage
