#!/bin/bash
# prepare_instance.sh v1 CATEGORY ONNX VNNLIB: reads what the run will read, so that it need not wait for the disk.
# It always exits with 0: the harness would skip the rest of the benchmark otherwise. No process of an instance
# outlives its run (the worker leaves with its supervisor), so there is nothing to end here.
trap 'exit 0' TERM INT HUP
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${VERIFIER_PYTHON:-$root/.venv/bin/python}
{
    timeout 60 cat -- "${3:-}" "${4:-}" "${3:-}.gz" "${4:-}.gz"
    cd "$root" && timeout 120 "$python" -c 'import verifier.api'  # torch, and what it loads
} >/dev/null 2>&1 </dev/null
exit 0
