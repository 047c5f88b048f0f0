#!/usr/bin/env bash
# Everything that needs a GPU, in at most 20 minutes, on a machine without network: the gpu lane of the tests and every
# row of gpu.py, each by itself, written to OUT as soon as it is measured (gpu.jsonl, rows.csv, gpu.log).
#
# Run: benchmarks/gpu.sh [OUT] [options of gpu.py]       OUT is $OUT or lightbox-out/gpu
#      benchmarks/gpu.sh --device cpu --tiny             every row on a tiny model, to try the script itself
#
# Python is $PYTHON or python3, with torch, transformers, peft and Triton of its own; wheels that carry_wheels.sh
# fetched are put beside them. In a folder on the path, since an environment made inside an environment does not see
# the packages of the outer one.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
out=${OUT:-$root/lightbox-out/gpu}
if [[ $# -gt 0 && $1 != -* ]]; then
  out=$1
  shift
fi
mkdir -p "$out"

site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if compgen -G "$root/benchmarks/wheels/*.whl" >/dev/null; then
  # not fatal: rows that need none of it still run
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" \
    "$root"/benchmarks/wheels/*.whl || echo "gpu.sh: wheels could not be installed" >&2
fi
export PYTHONPATH="$root/packages/core/src:$root/projects/medthink/src:$site"
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
unset PYTHONDONTWRITEBYTECODE  # each row is a process: without bytecode each would compile torch and transformers anew
"$python" "$root/benchmarks/gpu.py" --out "$out" "$@"
