"""Random launches of the preprocessing kernel for compute-sanitizer, which watches every access.

    compute-sanitizer --tool memcheck --error-exitcode 9 python tests/backends/cuda/memcheck.py 40
    compute-sanitizer --tool racecheck --error-exitcode 9 python tests/backends/cuda/memcheck.py 20

Frames are in allocations of exactly their size. Results are compared too, where cv2 is installed.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from edge.backends.cuda import kernels
from edge.backends.cuda.driver import open_device
from tests.support.cuda.parity import cases, check, run_on


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    device = open_device()
    compare = importlib.util.find_spec("cv2") is not None
    seen = set()
    with device.active():
        module = device.kernels(kernels.source())
        for item in cases(99, count, largest=200):
            result = run_on(device, module, item)
            seen.add(item.kernel)
            if compare:
                check(item, result)
    device.close()
    print(f"{count} launches of {len(seen)} kernels on {device.name}{', compared with the CPU' if compare else ''}")


if __name__ == "__main__":
    main()
