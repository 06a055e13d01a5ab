"""Interrupt ships at random moments, and look at the device from outside after each.

Used by a short test and, with 200 interruptions, by benchmarks/ship.py.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from edge.deploy.bundle.reader import Bundle
from edge.deploy.push import ShipOutcome, ship
from edge.deploy.transport.address import DeviceAddress
from edge.errors import EdgeError
from tests.support import loopback
from tests.support.devices import QUICK, current

KINDS = ("client killed", "session killed", "line cut", "disk full")
FOUND = ("old", "new", "none")


class Tally(msgspec.Struct):
    """What was seen for one way to interrupt."""

    interrupted: int = 0
    ended_before: int = 0
    found: Counter[str] = msgspec.field(default_factory=Counter)
    recovered: int = 0
    resumed: int = 0
    longest_recovery_s: float = 0.0


class Device:
    """A device behind an sshd and a line, on a disk of its own where that can be had."""

    def __init__(self, folder: Path, *, keys: Path | None = None, disk_mib: int = 192) -> None:
        self.folder = folder
        self.disk = folder / "disk"
        self.disk.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={disk_mib}m", "edge-test", str(self.disk)]
        self.has_disk = (
            os.geteuid() == 0 and subprocess.run(mount, check=False, capture_output=True, timeout=30).returncode == 0
        )
        self.server = loopback.Server(folder / "server", keys=keys).start()
        self.line = loopback.Wire(self.server.port)
        config = self.server.client_config("dev", self.line.port)
        self.place = DeviceAddress(name="dev", host="dev", path=str(self.disk / "it's edge"), ssh_config=config)

    def fill(self) -> None:
        """Take all the room that there is."""
        with contextlib.suppress(OSError), (self.disk / "filler").open("wb") as file:
            while True:
                file.write(b"\0" * 65536)
                file.flush()

    def free(self) -> None:
        (self.disk / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        self.line.close()
        self.server.stop()
        if self.has_disk:
            subprocess.run(["umount", "-l", str(self.disk)], check=False, timeout=30)


@contextlib.contextmanager
def device(folder: Path, **options: object) -> Iterator[Device]:
    made = Device(folder, **options)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        made.close()


class Storm:
    """Ships ``bundles`` in turns to one device, and interrupts each."""

    def __init__(self, device: Device, bundles: Sequence[Bundle], *, seed: int) -> None:
        self._device = device
        self._bundles = bundles
        self._random = random.Random(seed)
        self.tallies = {kind: Tally() for kind in KINDS if kind != "disk full" or device.has_disk}
        self.problems: list[str] = []
        # Every ship has to send what is its own: what it takes is measured once, and moments are drawn from that.
        start = time.monotonic()
        ship(bundles[0], device.place, settings=QUICK)
        self.length_s = time.monotonic() - start

    def run(self, count: int) -> None:
        kinds = list(self.tallies)
        for index in range(count):
            self._one(kinds[index % len(kinds)], self._bundles[(index + 1) % len(self._bundles)])

    def _one(self, kind: str, bundle: Bundle) -> None:
        tally, place = self.tallies[kind], self._device.place
        settings = msgspec.structs.replace(QUICK, rsync=self._random.random() < 0.25)
        before = current(place)
        self._forget(bundle)
        moment_s = self._random.uniform(0, self.length_s)
        with self._watching():
            ended = self._interrupted(kind, moment_s, lambda: ship(bundle, place, settings=settings))
        tally.interrupted += 1
        tally.ended_before += ended
        self._device.free()
        found = self._whole(f"{kind} after {moment_s:.3f} s")
        tally.found["new" if found == bundle.digest else "old" if found == before else "none"] += 1
        start = time.monotonic()
        try:
            outcome: ShipOutcome = ship(bundle, place, settings=settings)
        except EdgeError as exc:
            self.problems.append(f"{kind} after {moment_s:.3f} s: the next ship failed: {exc}")
            return
        tally.longest_recovery_s = max(tally.longest_recovery_s, time.monotonic() - start)
        tally.resumed += outcome.resumed_bytes > 0
        if self._whole(f"{kind}, and shipped again") == bundle.digest:
            tally.recovered += 1

    def _interrupted(self, kind: str, moment_s: float, work: Callable[[], ShipOutcome]) -> bool:
        """Begin ``work``, interrupt it after ``moment_s``; whether it had ended by then."""
        if kind == "client killed":
            return self._killed(moment_s, work)
        done = threading.Event()

        def run() -> None:
            with contextlib.suppress(EdgeError):
                work()
            done.set()

        thread = threading.Thread(target=run)
        thread.start()
        ended = done.wait(moment_s)
        if kind == "session killed":
            self._device.server.kill_sessions()
        elif kind == "line cut":
            self._device.line.cut()
        else:
            self._device.fill()
        thread.join(timeout=120)
        if thread.is_alive():
            self.problems.append(f"{kind} after {moment_s:.3f} s: the client did not notice")
        return ended

    @staticmethod
    def _killed(moment_s: float, work: Callable[[], ShipOutcome]) -> bool:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work()
                code = 0
            finally:
                os._exit(code)
        time.sleep(moment_s)
        ended = os.waitpid(child, os.WNOHANG)[0] == child
        if not ended:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        return ended

    def _forget(self, bundle: Bundle) -> None:
        """Make the device forget a bundle that it had, so that it travels again."""
        root = Path(self._device.place.path)
        now = {str((root / name).readlink()) for name in ("current", "previous") if (root / name).is_symlink()}
        if f"bundles/{bundle.digest}" in now:
            return
        shutil.rmtree(root / "bundles" / bundle.digest, ignore_errors=True)
        for path in (root / "bundles" / f"{bundle.digest}.sha256", root / "blobs" / "sha256" / bundle.digest):
            path.unlink(missing_ok=True)
        own = {entry.sha256 for name, entry in bundle.files.items() if name.startswith("own/")}
        for digest in own:
            (root / "blobs" / "sha256" / digest).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        """Look all the time whether ``current`` leads to a folder that has its list: it must never be gone."""
        root, stop = Path(self._device.place.path), threading.Event()

        def look() -> None:
            while not stop.wait(0.002):
                if not (root / "current" / "bundle.json").is_file():
                    self.problems.append("current led nowhere for a moment")
                    return

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _whole(self, when: str) -> str | None:
        try:
            return current(self._device.place)
        except (EdgeError, AssertionError, OSError) as exc:
            self.problems.append(f"{when}: current is not a whole bundle: {exc}")
            return None
