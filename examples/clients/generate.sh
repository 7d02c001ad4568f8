#!/usr/bin/env bash
# Makes the client in openapi/generated from openapi/petstore.json with OpenAPI Generator, which needs Java.
# TOOLS is where the generator is installed from PyPI if it is not there yet.
set -euo pipefail
cd "$(dirname "$0")/openapi"
version=7.26.0
tools=${TOOLS:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/openapi-generator-$version}
if [ ! -x "$tools/bin/openapi-generator-cli" ]; then
  python3 -m pip install --quiet --target "$tools" "openapi-generator-cli==$version"
fi
rm -rf generated
log=$(mktemp)
PYTHONPATH=$tools python3 "$tools/bin/openapi-generator-cli" generate --input-spec petstore.json --generator-name rust \
  --library reqwest --output generated --additional-properties=supportMiddleware=true,packageName=generated >"$log" 2>&1 \
  || { cat "$log"; rm -f "$log"; exit 1; }
rm -f "$log"
echo "made $PWD/generated"
