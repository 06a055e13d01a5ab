#!/usr/bin/env bash
# Everything of edge that needs an NVIDIA GPU, in one go: tests, benchmarks, and the kernel under compute-sanitizer.
#
#   tests/backends/cuda/gpu_check.sh [tests] [bench] [sanitize] [leaks]     (all of them without an argument)
#
# Needs python3 with numpy, opencv, msgspec, PyYAML, filelock, pytest, hypothesis and pycuda; nvcc and g++. PYTHON names
# another interpreter. Ends with 0 when every step did.
set -uo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../../.."

python=${PYTHON:-python3}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export PATH="$PATH:/usr/local/cuda/bin"
# PyCUDA is linked to libcurand, which may have come as a wheel (nvidia-curand) that no linker knows.
wheels=$("$python" - <<'PYTHON'
import glob, os, sysconfig
folders = {os.path.dirname(path) for base in set(sysconfig.get_paths().values())
           for path in glob.glob(os.path.join(base, "nvidia", "**", "libcurand.so.10"), recursive=True)}
print(":".join(sorted(folders)))
PYTHON
)
[ -z "$wheels" ] || export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$wheels"

failed=0
step() {
  printf '\n== %s\n' "$*"
  "$@"
  local code=$?
  if [ $code -ne 0 ]; then
    printf '!! ended with %s: %s\n' "$code" "$*"
    failed=1
  fi
}
pytest=("$python" -m pytest -q -p no:cacheprovider -W ignore::DeprecationWarning tests/backends/cuda/test_gpu.py)

for part in "${@:-tests bench sanitize leaks}"; do
  for name in $part; do
    case $name in
      tests) step "${pytest[@]}" -m "gpu and not slow" --durations=5 ;;
      bench)
        step "$python" benchmarks/cuda_preprocess.py
        step "$python" benchmarks/runner_overhead.py
        ;;
      sanitize)
        sanitizer=$(PATH="$PATH:/usr/local/cuda/compute-sanitizer" command -v compute-sanitizer)
        if [ -z "$sanitizer" ]; then
          printf '\n!! there is no compute-sanitizer here\n'
          failed=1
          continue
        fi
        step "$sanitizer" --tool memcheck --error-exitcode 9 "$python" tests/backends/cuda/memcheck.py 120
        step "$sanitizer" --tool racecheck --error-exitcode 9 "$python" tests/backends/cuda/memcheck.py 30
        step "$sanitizer" --tool synccheck --error-exitcode 9 "$python" tests/backends/cuda/memcheck.py 30
        ;;
      leaks) step "${pytest[@]}" -m "gpu and slow" ;;
      *)
        echo "usage: $0 [tests] [bench] [sanitize] [leaks]" >&2
        exit 2
        ;;
    esac
  done
done
exit $failed
