#!/usr/bin/env bash
# Fetches what `make test-real` tests with: real weights, and the chat templates in llama.cpp's sources.
# `make` calls it with the folder that gets them, once for each list of packages.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$1
pip=".venv/bin/python -m pip --disable-pip-version-check --quiet"

fail() {
    printf 'test-real: %s\n' "$*" >&2
    printf 'test-real: it needs a package index (pip config), about 320 MB of it, and 1 GB of disk.\n' >&2
    exit 1
}

rm -rf "$folder"
mkdir -p "$folder"
$pip install --no-deps --no-compile --only-binary :all: --require-hashes --target "$folder/weights" \
    -r tests/real/requirements.txt >&2 || fail "The real weights of tests/real/requirements.txt could not be had."

awk '/^[a-z0-9]/ { inside = index($0, "llama-cpp-python==") == 1 } /^[a-z0-9]|^ +--hash/ { if (inside) print }' \
    requirements-dev.lock >"$folder/llama.lock"
PATH="$PWD/.venv/bin:$PATH" $pip download --no-deps --no-build-isolation --no-binary :all: --require-hashes \
    --dest "$folder" -r "$folder/llama.lock" >&2 || fail "The sources of llama.cpp could not be had."
tar -xzf "$folder"/llama_cpp_python-*.tar.gz -C "$folder" --strip-components=4 --wildcards '*/models/templates/*'
rm "$folder"/llama_cpp_python-*.tar.gz "$folder/llama.lock"
touch "$folder/fetched"
