#!/bin/sh
# Makes .venv from pyproject.toml and constraints.txt, unless it is there already.
# The stamp is written last and holds a hash of all that the environment depends on: an
# interrupted or outdated one has no fitting stamp, and is made anew from nothing.
set -eu
cd "$(dirname "$0")/.."

is_3_11() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1; }

if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; else set -- python3.11 python3 python; fi
python=""
for candidate in "$@"; do
    if is_3_11 "$candidate"; then python=$candidate; break; fi
done
if [ -z "$python" ]; then
    echo "set-up: no Python 3.11 found (tried: $*); install it, or name it: make PYTHON=/path/to/python3.11 ..." >&2
    exit 1
fi

key=$("$python" -c '
import hashlib, os, platform, sys
digest = hashlib.sha256()
for name in ("pyproject.toml", "constraints.txt"):
    with open(name, "rb") as file:
        digest.update(hashlib.sha256(file.read()).digest())
digest.update(repr((platform.python_version(), platform.machine(), os.getcwd())).encode())
print(digest.hexdigest())')
stamp=.venv/setup-stamp
if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$key" ]; then exit 0; fi

echo "set-up: installing into .venv, once (1 to 3 minutes, 2.2 GB)"
rm -rf .venv
if ! "$python" -m venv .venv; then
    echo "set-up: $python can't make a virtual environment; on Debian, install python3.11-venv" >&2
    exit 1
fi
.venv/bin/python -m pip install --disable-pip-version-check --quiet --quiet --constraint constraints.txt --editable '.[all]'
echo "$key" >"$stamp.partial"
mv "$stamp.partial" "$stamp"
