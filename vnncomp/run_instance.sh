#!/bin/bash
# run_instance.sh v1 CATEGORY ONNX VNNLIB RESULT TIMEOUT: the verdict, and after sat the assignment, in RESULT.
# RESULT is written aside and renamed, so it is complete or absent. ONNX is a path or [('f', 'a.onnx'), ...].
started=${EPOCHREALTIME/,/.}
if [ "${1:-}" != v1 ] || [ $# -ne 6 ]; then
    echo "usage: run_instance.sh v1 CATEGORY ONNX VNNLIB RESULT TIMEOUT" >&2
    exit 1
fi
onnx=$3 query=$4 result=$5 limit=$6
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${VERIFIER_PYTHON:-$root/.venv/bin/python}
for name in onnx query; do
    if [[ ${!name} == -* ]]; then printf -v "$name" './%s' "${!name}"; fi  # a file, not an option
done
if [ -d "$result" ]; then
    echo "the result file $result is a folder" >&2
    exit 1
fi
mkdir -p -- "$(dirname -- "$result")"
part=$result.part.$$
rm -f -- "$result"

# What the verifier promises it counts from its own start. Left over for what comes before and after, on a machine
# that does other things: a second and 2 % of the limit, or a fifth of a short one.
margin() {
    awk -v limit="$limit" -v started="$started" -v now="${EPOCHREALTIME/,/.}" 'BEGIN {
        spare = 1 + 0.02 * limit; if (spare > 0.2 * limit) spare = 0.2 * limit
        left = limit - (now - started) - spare; print (left > 0.1 ? left : 0.1) }'
}

words=()
if [[ $onnx == \[* && ! -e $onnx && ! -e $onnx.gz ]]; then
    text="('([^']*)'|\"([^\"]*)\")"
    pair="^[^'\"]*$text[[:space:]]*,[[:space:]]*$text(.*)$"
    while [[ $onnx =~ $pair ]]; do
        words+=("--network=${BASH_REMATCH[2]}${BASH_REMATCH[3]}=${BASH_REMATCH[5]}${BASH_REMATCH[6]}")
        onnx=${BASH_REMATCH[7]}
    done
    words=("$query" "${words[@]}")
else
    words=("$onnx" "$query")
fi

export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
trap 'kill -KILL $! 2>/dev/null; rm -f -- "$part"; exit 143' TERM INT HUP  # the worker leaves with it
"$python" -m verifier verify "${words[@]}" "--timeout=$(margin)" --no-progress >"$part" </dev/null &
wait $!
code=$?
trap - TERM INT HUP
IFS= read -r verdict <"$part"
case $code:$verdict in
    0:sat | 0:unsat | 0:unknown | 0:timeout | 0:timed-out) ;;
    *) echo error >"$part" || { rm -f -- "$part"; exit 1; } ;;  # no room for it: absent, not empty
esac
mv -f -- "$part" "$result"
