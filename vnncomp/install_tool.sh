#!/bin/bash
# install_tool.sh v1: makes .venv in the checkout and installs the verifier into it. May be run again.
#
#   PYTHON=python3.12   another interpreter, at least 3.11
#   TORCH_INDEX=URL     where to look for torch as well, for example https://download.pytorch.org/whl/cpu
set -eu
if [ "${1:-}" != v1 ]; then
    echo "expected the version string v1, got '${1:-}'" >&2
    exit 1
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usable() { command -v "$1" >/dev/null && "$1" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

python=""
for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
    if usable "$candidate"; then python=$candidate && break; fi
done
if [ -z "$python" ] && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    DEBIAN_FRONTEND=noninteractive apt-get update -qq || true
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3 python3-venv || true
    if usable python3; then python=python3; fi
fi
if [ -z "$python" ]; then
    echo "no Python of at least 3.11 with venv was found; name one with PYTHON=..." >&2
    exit 1
fi

[ -x "$root/.venv/bin/python" ] || "$python" -m venv "$root/.venv"
index=()
if [ -n "${TORCH_INDEX:-}" ]; then index=(--extra-index-url "$TORCH_INDEX"); fi
"$root/.venv/bin/python" -m pip install --quiet ${index[@]+"${index[@]}"} \
    --constraint "$root/constraints.txt" --editable "$root"
"$root/.venv/bin/python" -m compileall -q "$root/verifier" || true
"$root/.venv/bin/verifier" doctor
