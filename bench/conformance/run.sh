#!/bin/sh
# TRL's own code beside ours: makes TRL's environment from a pinned file, compares, writes docs/conformance.md. About five minutes.
#   bench/conformance/run.sh            PYTHON=python3.12 CONFORMANCE_ENV=/somewhere bench/conformance/run.sh
set -eu
here=$(cd "$(dirname "$0")" && pwd)
env=${CONFORMANCE_ENV:-$here/.venv}
if [ ! -e "$env/.ready" ] || [ "$here/requirements.txt" -nt "$env/.ready" ]; then
    "${PYTHON:-python3}" -m venv "$env"
    "$env/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"
    "$env/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e "$here/../.."
    touch "$env/.ready"
fi
exec "$env/bin/python" "$here/main.py"
