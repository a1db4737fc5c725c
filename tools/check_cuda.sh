#!/bin/sh
# Everything that a machine with an NVIDIA GPU has to prove: accuracy, speed, where nodes run, the tests that need one.
#
#     tools/check_cuda.sh [--python PYTHON] [--out DIR] [--quick] [--recipes NAME ...] [--checkpoints DIR] [--budget S]
#
# Installs nothing and needs no network. Ends with 0 if every limit held, 1 if one did not, 2 if it cannot run here;
# tools/check_cuda.py --help says the rest. PYTHON is .venv/bin/python where that is, else python3.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=$root/.venv/bin/python
[ -x "$python" ] || python=python3
count=$#
while [ "$count" -gt 0 ]; do
    if [ "$1" = --python ] && [ "$count" -gt 1 ]; then
        python=$2
        shift 2
        count=$((count - 2))
    else
        set -- "$@" "$1"
        shift
        count=$((count - 1))
    fi
done
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "check_cuda: $python is no Python 3.11 or newer; give one with --python" >&2
    exit 2
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
exec "$python" "$root/tools/check_cuda.py" "$@"
