#!/bin/sh
# The rustc wrapper of scripts/coverage.sh. Cargo calls it only for the crate itself.
exec "$@" -C instrument-coverage
