#!/usr/bin/env bash
# Fetch what a machine without network lacks beside torch, transformers, peft and Triton, as wheels for gpu.sh.
#
# Run: benchmarks/carry_wheels.sh [PYTHON_VERSION] [CUDA...]    for example: benchmarks/carry_wheels.sh 3.12 130 132
#
# PYTHON_VERSION is that machine's (3.12), CUDA the versions of which bitsandbytes' kernels are kept (128 130 132);
# kernels for other cards are taken out of its wheel, which has 39 MiB with all of them. Versions are those of uv.lock.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

NAMES=(bitsandbytes hydra-core omegaconf pydantic pydantic-core annotated-types typing-inspection typing-extensions
  einops jaxtyping wadler-lindig beartype psutil filelock pyyaml
  nltk pytest pytest-xdist pytest-timeout pluggy iniconfig execnet)
LIMIT_MIB=40  # with the checkout less than the 64 MiB that travel
version=${1:-3.12}
shift || true
kept=("$@")
[[ ${#kept[@]} -gt 0 ]] || kept=(128 130 132)

locked() { awk -v name="name = \"$1\"" '$0 == name {getline; gsub(/[^0-9.a-z]/, "", $3); print $3; exit}' ../uv.lock; }

rm -rf wheels
mkdir wheels
platforms=()
for glibc in 39 35 34 31 28 27 24 17 12 5; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64)
pins=()
for name in "${NAMES[@]}"; do pins+=("${name}==$(locked "$name")"); done
python3 -m pip download --quiet --no-deps --only-binary=:all: --implementation cp --python-version "$version" \
  "${platforms[@]}" --dest wheels "${pins[@]}"
# published as source only, without compiled code: built here
for name in antlr4-python3-runtime rouge-score; do
  python3 -m pip wheel --quiet --no-deps --wheel-dir wheels "${name}==$(locked "$name")"
done
python3 - "${kept[@]}" <<'PY'
import glob, re, sys, zipfile
(path,) = glob.glob("wheels/bitsandbytes-*.whl")
with zipfile.ZipFile(path) as wheel:
    files = {entry: wheel.read(entry) for entry in wheel.infolist()}
with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
    for entry, content in files.items():
        kernels = re.search(r"libbitsandbytes_(cuda|rocm|xpu)(\d+)\.", entry.filename)
        if not kernels or (kernels[1] == "cuda" and kernels[2] in sys.argv[1:]):
            wheel.writestr(entry, content)
PY
# that machine may have no git
git rev-parse --short=12 HEAD >wheels/COMMIT
mib=$(du -sm wheels | cut -f1)
echo "benchmarks/wheels: $(ls wheels/*.whl | wc -l) wheels for Python ${version}, ${mib} MiB"
if [[ $mib -gt $LIMIT_MIB ]]; then
  echo "More than ${LIMIT_MIB} MiB: name fewer CUDA versions, that machine's alone is enough" >&2
  exit 1
fi
