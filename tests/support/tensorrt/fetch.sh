#!/usr/bin/env bash
# Fetches what the tests of TensorRT need besides the development tools. Usage: tests/support/tensorrt/fetch.sh PYTHON
# TensorRT for RTX goes into PYTHON's environment (about 95 MB to download): its parser and its builder run on a CPU.
# NVIDIA's five bindings (7 MB), and the lean and dispatch runtimes of two versions (95 MB), go to .cache/trt-wheels. What cannot be had is said; its tests are skipped with a reason.
set -uo pipefail

here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)"
python="${1:?which Python? Usage: tests/support/tensorrt/fetch.sh PYTHON}"
say() { printf 'fetch.sh: %s\n' "$*" >&2; }

if [ "$(uname -s) $(uname -m)" != "Linux x86_64" ]; then
  say "TensorRT for RTX and the bindings are wheels for x86-64 Linux: their tests are skipped here"
  exit 0
fi
if "$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("tensorrt_rtx_bindings") is None)'; then
  say "TensorRT for RTX is installed"
else
  say "installing TensorRT for RTX"
  "$python" -m pip install --quiet --disable-pip-version-check --no-input --retries 2 \
    "tensorrt-rtx-cu13-libs>=1.7" "tensorrt-rtx-cu13-bindings>=1.7" ||
    say "TensorRT for RTX cannot be installed: the tests that build with it are skipped"
fi
bash "$here/fetch_wheels.sh" "$python" || say "the bindings cannot be fetched: the tests that load them are skipped"
exit 0
