#!/usr/bin/env bash
# Fetches NVIDIA's bindings (7 MB in all) for tests/backends/tensorrt/test_bindings.py from PyPI. Usage: fetch_wheels.sh [PYTHON [DIR]]
# What is there already is not fetched again. A version without a wheel for this Python is left out, with a word.
set -euo pipefail

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../../.." && pwd -P)"
python="${1:-python3}"
folder="${2:-$root/.cache/trt-wheels}"

mkdir -p "$folder"
[ "$folder" != "$root/.cache/trt-wheels" ] || printf '*\n' > "$root/.cache/.gitignore"
tag="$("$python" -c 'import sys; print(f"cp{sys.version_info[0]}{sys.version_info[1]}")')"

for wanted in tensorrt-bindings==8.6.1 tensorrt-cu12-bindings==10.3.0 tensorrt-cu12-bindings==10.13.3.9 \
  tensorrt-cu12-bindings==10.16.1.11 tensorrt-cu12-bindings==11.4.0.106; do
  version="${wanted#*==}"
  if compgen -G "$folder/tensorrt*_bindings-$version-$tag-*.whl" > /dev/null; then
    continue
  fi
  "$python" -m pip download --quiet --no-deps --only-binary :all: --dest "$folder" "$wanted" ||
    echo "fetch_wheels.sh: no wheel of $wanted for $tag; its tests will be skipped" >&2
done
