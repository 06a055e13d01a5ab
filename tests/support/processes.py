"""Look at processes of a test from outside."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any


def wait_until_idle(process: subprocess.Popen[Any]) -> None:
    """Wait until the process has ended, or no signal is pending and its main thread has slept for 0.2 s."""
    until, naps = time.monotonic() + 60, 0
    while naps < 10 and process.poll() is None:
        assert time.monotonic() < until, "the process does not come to rest"
        lines = dict(line.split(":\t", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
        pending = int(lines["SigPnd"], 16) | int(lines["ShdPnd"], 16)
        naps = naps + 1 if lines["State"].startswith("S") and not pending else 0
        time.sleep(0.02)
