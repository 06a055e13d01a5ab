#!/usr/bin/env bash
# Fetches NVIDIA's bindings (7 MB in all) for tests/backends/tensorrt/test_bindings.py from PyPI, and the lean and dispatch
# runtimes (95 MB) for test_real_runtime.py. Usage: fetch_wheels.sh [PYTHON [DIR]]
# What is there already is not fetched again. A version without a wheel for this Python is left out, with a word.
set -euo pipefail

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../../.." && pwd -P)"
python="${1:-python3}"
folder="${2:-$root/.cache/trt-wheels}"

mkdir -p "$folder"
[ "$folder" != "$root/.cache/trt-wheels" ] || printf '*\n' > "$root/.cache/.gitignore"
tag="$("$python" -c 'import sys; print(f"cp{sys.version_info[0]}{sys.version_info[1]}")')"

bindings=(tensorrt-bindings==8.6.1 tensorrt-cu12-bindings==10.3.0 tensorrt-cu12-bindings==10.13.3.9
  tensorrt-cu12-bindings==10.16.1.11 tensorrt-cu12-bindings==11.4.0.106)
runtimes=()
for kind in lean dispatch; do
  for release in cu12:10.16.1.11 cu13:11.4.0.106; do
    runtimes+=("tensorrt-$kind-${release%:*}-libs==${release#*:}" "tensorrt-$kind-${release%:*}-bindings==${release#*:}")
  done
done
for wanted in "${bindings[@]}" "${runtimes[@]}"; do
  name="${wanted%==*}" version="${wanted#*==}"
  python_tag="$tag"
  [[ $name != *-libs ]] || python_tag=py*
  if compgen -G "$folder/${name//-/_}-$version-$python_tag-*.whl" > /dev/null; then
    continue
  fi
  "$python" -m pip download --quiet --no-deps --only-binary :all: --dest "$folder" "$wanted" ||
    echo "fetch_wheels.sh: no wheel of $wanted for $tag; its tests will be skipped" >&2
done
