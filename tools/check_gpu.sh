#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in one run: build for it, parity, sanitizers, figures.
#
#   tools/check_gpu.sh OUT            all steps; logs and figures go to the folder OUT
#   tools/check_gpu.sh OUT parity     chosen steps only, of: build parity python sanitize figures
#
# Takes cmake, ninja, nvcc, and a Python (PYTHON, default python3) with CUDA torch, transformers,
# pybind11 and pytest. PYTHON must be able to import what is built in place: nothing is installed.
# A step that fails does not stop the others; the exit status is the number of failed ones.
set -uo pipefail
cd "$(dirname "$0")/.."

out=${1:?"usage: tools/check_gpu.sh OUT [step ...]"}
shift
steps=("$@")
[ "${#steps[@]}" -gt 0 ] || steps=(build parity python sanitize figures)
python=${PYTHON:-python3}
build=build/gpu
mkdir -p "$out"
out=$(cd "$out" && pwd)
export PYTHONPATH=$PWD/python${PYTHONPATH:+:$PYTHONPATH}

run_build() {
  cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_CUDA_ARCHITECTURES=native \
    -DTREESPEC_CUDA=ON -DTREESPEC_PYTHON=ON -DTREESPEC_TESTS=ON \
    -DPython_EXECUTABLE="$("$python" -c 'import sys; print(sys.executable)')" \
    -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" &&
    cmake --build "$build" && cmake --build "$build" --target inplace
}

# The kernels against the core, bit for bit.
run_parity() { ctest --test-dir "$build" -R on_gpu --output-on-failure --no-tests=error; }

# The same from Python, captured rounds, and whole texts.
run_python() { "$python" -m pytest -q -m gpu tests; }

run_sanitize() {
  local failed=0 tool test
  for tool in memcheck racecheck synccheck; do
    while read -r test; do
      timeout 300 compute-sanitizer --tool "$tool" --error-exitcode 1 "$test" || failed=1
    done < <(find "$build" -type f -name 'device_*_on_gpu' -perm -u+x)
  done
  return "$failed"
}

run_figures() {
  "$python" benchmarks/bench_cuda.py --check --json "$out/cuda.json" &&
    "$python" benchmarks/bench_rounds.py --json "$out/rounds.json"
}

for step in "${steps[@]}"; do
  declare -F "run_$step" >/dev/null || {
    echo "check_gpu.sh: a step must be build, parity, python, sanitize or figures, got $step" >&2
    exit 2
  }
done
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv >"$out/gpu.csv" || {
  echo "check_gpu.sh: nvidia-smi finds no GPU" >&2
  exit 1
}
failed=0
for step in "${steps[@]}"; do
  started=$SECONDS
  if "run_$step" >"$out/$step.log" 2>&1; then
    verdict=passed
  else
    verdict=FAILED failed=$((failed + 1))
  fi
  printf '%-9s %s in %s s (%s)\n' "$step" "$verdict" "$((SECONDS - started))" "$out/$step.log"
done
exit "$failed"
