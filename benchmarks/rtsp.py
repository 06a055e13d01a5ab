"""Two RTSP cameras through one run for ten minutes, with everything that goes wrong: is it recovered, is memory flat?

    python benchmarks/rtsp.py [--minutes 10]

A GStreamer server on loopback (tests/support/rtsp_server.py, in the system's Python) gives H.264 and H.265. In each
minute it freezes for ten seconds, changes its size, and is killed and started again. The run must have a gap for each,
all of them ended, and as much memory in the end as after the first two minutes.
"""

from __future__ import annotations

import argparse
import gc
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from edge.artifacts.run_record import RunRecord, Subject
from edge.backends.fake import Fake, FakeSession
from edge.config.profiles import InputConfig, PreprocessConfig
from edge.config.run_sections import CameraConfig, ReconnectConfig
from edge.media.camera_group import CameraGroup
from edge.media.camera_stream import LiveStream
from edge.media.cameras import camera_source
from edge.model.preprocessing import Preprocessor
from edge.runtime import pipeline, run_loop
from edge.telemetry.sampler import Telemetry
from edge.telemetry.sources import NoSource

ROOT = Path(__file__).resolve().parents[1]
CAMERA = CameraConfig(timeout_s=3.0, freeze_s=3.0, reconnect=ReconnectConfig(first_s=0.5, max_s=8.0))
SUBJECT = Subject(
    profile="benchmark", profile_digest="", model="", model_sha256="", engine_sha256="", table_sha256=None,
    preprocess_digest="", backend={}, precision="int8", layers={}, device={}, source="benchmark",
)  # fmt: skip
# Within a minute: what is done, and when.
FAULTS = ((15, "freeze"), (25, "move"), (35, "size 480 240"), (50, "kill"))


class Server:
    """The server, on one port whatever happens to it."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.start()

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        script = ROOT / "tests/support/rtsp_server.py"
        self.process = subprocess.Popen(
            ["/usr/bin/python3", str(script), str(self.port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if self.process.stdout is None or self.process.stdout.readline() != "ready\n":
            sys.exit("there is no RTSP server here: see .ci/run for its packages")

    def fault(self, words: str) -> None:
        """Do one of the faults."""
        if words == "kill":
            self.process.kill()
            self.process.communicate()
            time.sleep(4.0)
            self.start()
        elif self.process.stdin is not None:
            self.process.stdin.write(words + "\n")
            self.process.stdin.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=10)
    minutes = parser.parse_args().minutes
    server = Server()
    over = threading.Event()
    faults: list[str] = []
    marks: list[tuple[float, float]] = []

    def work() -> None:
        start_s = time.monotonic()
        for minute in range(minutes):
            for second, words in FAULTS:
                if over.wait(max(start_s + 60 * minute + second - time.monotonic(), 0.0)):
                    return
                server.fault(words)
                faults.extend([words] * (words != "move"))
            over.wait(max(start_s + 60 * (minute + 1) - 2 - time.monotonic(), 0.0))
            gc.collect()
            marks.append((time.monotonic() - start_s, resident_mib()))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        record = run(server, 60.0 * minutes)
    finally:
        over.set()
        server.process.kill()
    report(record, faults, marks)


def run(server: Server, duration_s: float) -> RunRecord:
    """One run over both cameras."""
    opens = {
        name: lambda url=f"rtsp://127.0.0.1:{server.port}/{name}": LiveStream(camera_source(url, CAMERA), CAMERA)
        for name in ("h264", "h265")
    }
    stream = CameraGroup(opens)
    size = InputConfig(height=64, width=64)
    return run_loop.run(
        stream, sessions=[FakeSession(Fake(classes=10))],
        preprocessor=Preprocessor(PreprocessConfig(resize=72), size), names=[str(index) for index in range(10)],
        subject=SUBJECT, telemetry=Telemetry(sampler=None, no_power=NoSource(())),
        settings=run_loop.RunSettings(
            warmup=1, duration_s=duration_s, width=pipeline.Width(batch=2, batch_wait_s=0.005)
        ),
    )  # fmt: skip


def report(record: RunRecord, faults: list[str], marks: list[tuple[float, float]]) -> None:
    """Print the figures, and end with exit code 1 where something was not recovered."""
    still = [gap for gap in record.gaps if gap.end_s is None]
    lengths = sorted(gap.end_s - gap.start_s for gap in record.gaps if gap.end_s is not None)
    print(f"{record.pictures} frames in {record.measured_s:.0f} s; {len(faults)} faults for each of two cameras")
    for camera in record.cameras:
        print(f"  {camera.name}: {camera.pictures} frames, {camera.gaps_count} gaps, {camera.reconnects} reconnects")
    for reason in sorted({gap.reason for gap in record.gaps}):
        print(f"  {sum(gap.reason == reason for gap in record.gaps)} × {reason}")
    if lengths:
        print(f"gaps of {lengths[0]:.1f} to {lengths[-1]:.1f} s, {len(still)} not ended")
    if len(marks) > 2:
        first, last = marks[1][1], marks[-1][1]
        print(f"memory after 2 minutes {first:.1f} MiB, at the end {last:.1f} MiB ({last - first:+.1f})")
    sys.exit(1 if still else 0)


def resident_mib() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
