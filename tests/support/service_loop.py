"""Kill ships with trials at random moments, while a service on the device starts `edge run --profile current`."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import yaml

from edge.config import profiles
from edge.deploy import rollback
from edge.deploy.bundle import creation, golden
from edge.deploy.bundle.reader import Bundle, open_bundle
from edge.deploy.push import ShipOutcome, ShipSettings, ship
from edge.deploy.transport.address import DeviceAddress
from edge.errors import EdgeError
from edge.media.picture_sources import open_pictures
from tests.conftest import CLASSES, SIDE, smooth_picture, write_model
from tests.support.devices import current, tar_of

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("client killed", "device killed", "both killed")
# The machine is busy: what is measured is not the speed of these bundles.
SETTINGS = ShipSettings(rsync=False, gates={"latency": 1000.0, "energy": 1000.0})


# One line for every start: its exit code, and the end of its messages where it failed.
_SERVICE = r"""
while [ ! -e "$1" ]; do
  "$2" run --profile current --images "$3" --limit 1 --json >"$4/service.out" 2>"$4/service.err"
  code=$?
  [ $code -eq 0 ] || code="$code $(tail -c 300 "$4/service.err" | tr '\n' ' ')"
  echo "$code" >>"$5"
done
"""


class KilledShips:
    """Three bundles, of which the third fails its trial, and a device that is a home folder with this edge."""

    def __init__(self, folder: Path, *, seed: int) -> None:
        self._folder = folder
        self._home = folder / "home"
        self._root = self._home / ".local" / "share" / "edge"
        self._root.mkdir(parents=True)
        self._environment = {**os.environ, "HOME": str(self._home), "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
        program = folder / "edge"
        program.write_text(
            f"#!/bin/sh\nHOME='{self._home}' PYTHONPATH='{ROOT}' exec '{sys.executable}' -m edge \"$@\"\n"
        )
        program.chmod(0o755)
        self._place = DeviceAddress(name="device", folder=self._root, edge=str(program))
        self._random = random.Random(seed)
        self._bundles = self._made()
        self._log, self._stop = folder / "starts", folder / "stop"
        self._service: subprocess.Popen[bytes] | None = None
        self.kills = self.starts = self.statements = 0
        self.kinds: Counter[str] = Counter()
        self.found: Counter[str] = Counter()
        self.failed_starts: list[str] = []
        self.untrue: list[str] = []
        ship(self._bundles[0], self._place, settings=SETTINGS)
        start = time.monotonic()
        ship(self._bundles[1], self._place, settings=SETTINGS)
        self.length_s = time.monotonic() - start

    def __enter__(self) -> KilledShips:  # noqa: PYI034 - Self is Python 3.11
        # A process of its own: `_kill` forks, which a process with threads must not.
        words = [self._stop, self._place.edge, self._folder / "pictures", self._folder, self._log]
        self._service = subprocess.Popen(["sh", "-c", _SERVICE, "service", *map(str, words)], cwd=self._home)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.touch()
        assert self._service is not None
        self._service.wait(timeout=300)
        self._read_starts()

    def run(self, count: int, *, progress: Callable[[KilledShips], None] | None = None) -> None:
        """Kill so many ships, and ship again after each; ``progress`` is called after each."""
        for index in range(count):
            kind, sent = KINDS[index % len(KINDS)], self._random.choice(self._bundles)
            before = current(self._place)
            self._kill(kind, sent, self._random.uniform(0, 1.2 * self.length_s))
            self.kills += 1
            self.kinds[kind] += 1
            self._settled()
            now = current(self._place)
            status = rollback.status(self._place)
            verdict = next((info.trial for info in status.bundles if info.digest == now), "none")
            self.found[f"{'old' if now == before else 'new'}, {verdict}"] += 1
            if verdict != "passed":
                self.untrue.append(f"after {kind}: {now} is in use and its verdict is {verdict}")
            self._state(sent)
            if progress is not None:
                self._read_starts()
                progress(self)

    def verdict_at_the_end(self) -> str:
        status = rollback.status(self._place)
        return next((info.trial for info in status.bundles if info.digest == status.current), "no bundle")

    def _state(self, sent: Bundle) -> None:
        """Ship again, without an interruption: what is said must be what the device shows."""
        before = current(self._place)
        try:
            outcome: ShipOutcome = ship(sent, self._place, settings=SETTINGS)
        except EdgeError as exc:
            self.untrue.append(f"the next ship failed: {exc}")
            return
        self.statements += 1
        now = current(self._place)
        is_bad = sent is self._bundles[2]
        wanted = before if is_bad else sent.digest
        cut_off = outcome.work == "trial failed" and "cut off twice" in str(outcome.reason)
        if cut_off:
            rollback.clear(self._place)
            wanted = before
        if outcome.current != now or now != wanted or (outcome.work == "trial failed") != (is_bad or cut_off):
            self.untrue.append(f"{outcome.work} ({outcome.reason}): says {outcome.current}, in use is {now}")

    def _kill(self, kind: str, sent: Bundle, moment_s: float) -> None:
        client = os.fork()
        if client == 0:
            try:
                ship(sent, self._place, settings=SETTINGS)
            finally:
                os._exit(0)
        time.sleep(moment_s)
        # The device's script is a child of the client; both are killed by what they are now, never by an old number.
        scripts = self._children(client)
        trials = [number for script in scripts for number in self._children(script)]
        wanted = {"client killed": [client], "device killed": [*scripts, *trials]}
        for number in wanted.get(kind, [client, *scripts, *trials]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        os.waitpid(client, 0)

    @staticmethod
    def _children(parent: int) -> list[int]:
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(parent)], check=False, capture_output=True, text=True
        )
        return [int(number) for number in listed.stdout.split()]

    def _settled(self) -> None:
        """Wait for a script that goes on without its client."""
        subprocess.run(["flock", str(self._root / "lock"), "true"], check=True, timeout=300)

    def _read_starts(self) -> None:
        """Read what the service wrote so far."""
        codes = self._log.read_text().splitlines() if self._log.exists() else []
        self.starts = len(codes)
        self.failed_starts = [f"edge run ended with {line}" for line in codes if line != "0"]

    def _made(self) -> list[Bundle]:
        import cv2

        pictures = self._folder / "pictures"
        pictures.mkdir()
        for index in range(4):
            cv2.imwrite(str(pictures / f"{index}.jpg"), smooth_picture(seed=index))
        (self._folder / "labels.txt").write_text("".join(f"class {index}\n" for index in range(CLASSES)))
        write_model(self._folder / "model.onnx")
        content: dict[str, Any] = {
            "family": "host", "backend": "onnxruntime", "model": "model.onnx", "labels": "labels.txt",
            "precision": "fp32", "input": {"height": SIDE, "width": SIDE, "batch": {"min": 1, "opt": 1, "max": 1}},
            "preprocess": {"resize": 36, "mean": [127, 127, 127], "std": [64, 64, 64]},
            "run": {"warmup": 1, "threads": 1},
        }  # fmt: skip
        (self._folder / "tiny.yaml").write_text(yaml.safe_dump(content))
        chosen = profiles.read_profile(self._folder / "tiny.yaml")
        first = creation.create(
            chosen, cache=self._folder, out=self._folder / "0.edge", golden=list(open_pictures(pictures))
        )
        return [first, self._variant(first, 1, spoil=False), self._variant(first, 2, spoil=True)]

    def _variant(self, of: Bundle, number: int, *, spoil: bool) -> Bundle:
        contents = {path: of.read(path) for path in of.files} | {"own": b"%d" % number}
        if spoil:
            expected = json.loads(contents[golden.FILE])
            for answers in expected["pictures"].values():
                for answer in answers.values():
                    answer["logits"] = answer["logits"][::-1]
            contents[golden.FILE] = json.dumps(expected).encode()
        about = msgspec.to_builtins(of.about)
        path = self._folder / f"{number}.edge"
        path.write_bytes(tar_of(contents, **{name: about[name] for name in ("family", "profile", "info")}))
        return open_bundle(path)
