#!/usr/bin/env bash
# Fetches what `make test-clients` tests with: libraries of others that ask a server, for Python and for Node.
# `make` calls it with the folder that gets them, once for each list of packages.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$1
lists=tests/clients/libraries

fail() {
    printf 'test-clients: %s\n' "$*" >&2
    printf 'test-clients: it needs a package index (pip config), about 150 MB of it, and 700 MB of disk.\n' >&2
    exit 1
}

# They pin packages otherwise than requirements-dev.lock does, so they have an environment of their own. What it
# has not (pytest, and what the tests start a server with) is found in that of the project.
rm -rf "$folder"
.venv/bin/python -m venv "$folder"
"$folder/bin/python" -m pip --disable-pip-version-check --quiet install --no-deps --no-compile --only-binary :all: \
    --require-hashes -r "$lists/requirements.txt" >&2 ||
    fail "The libraries of $lists/requirements.txt could not be had."
project=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
own=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "import site; site.addsitedir('$project')" >"$own/project.pth"

if command -v npm >/dev/null; then
    cp "$lists"/vercel/package*.json "$folder"
    npm ci --prefix "$folder" --ignore-scripts --no-audit --no-fund --silent >&2 ||
        fail "The packages of $lists/vercel/package-lock.json could not be had."
else
    printf 'test-clients: there is no npm, so the Vercel AI SDK is left out (apt install npm).\n' >&2
fi
touch "$folder/fetched"
