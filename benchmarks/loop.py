"""What the loop costs: ratios, each next to its baseline from the same process, in turns.

    python benchmarks/loop.py [engine] [outputs] [hanging] [host] [cameras] [memory] [watching]     all without a name

* ``engine``: an engine that takes exactly 1 ms (a double that sleeps and yields) and frames in memory: how near to
  1,000 per second the loop comes, and how much it adds to a frame.
* ``outputs``: the same engine with smoothing, notifications to a server and a CSV on, in turns with none of them.
* ``hanging``: the same engine with ten notifications per second and a server that never answers, in turns with one
  that does, and with none.
* ``host``: the pictures of ImageNet with the INT8 engine of the profile ``host``, against the plain sequential loop of
  OpenCV decode, preprocess and ``session.run``, and against what the stages' CPU time allows on these cores.
* ``cameras``: four recordings of 30 frames per second each through one engine that takes 4 ms for one picture and 6 ms
  for four, in one run; and one of them alone.
* ``memory``: growth of resident memory over 200,000 frames with smoothing, notifications and a CSV on.
* ``watching``: what the live view and the power sampler together take from the throughput of ``host``.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import os
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.artifacts import Secret
from edge.artifacts.run_record import RunRecord, Subject
from edge.backends.fake import Fake, FakeSession
from edge.backends.interface import Inference, get
from edge.cli.options import choose
from edge.config import DecisionSettings, NotifyRule, profiles
from edge.engines import building
from edge.media import labels
from edge.media.camera_group import CameraGroup
from edge.media.picture_sources import open_pictures
from edge.media.pictures import Pictures, decode
from edge.media.recorder import RecordingHeader, Saved, SavedFrame
from edge.media.replay import ReplayStream
from edge.media.streams import Frame, OpenedSource, PictureStream
from edge.model.preprocessing import Preprocessor
from edge.runtime import pipeline, run_loop
from edge.runtime.notify import Notifications
from edge.runtime.result_files import CsvFile
from edge.runtime.run_statistics import RunStatistics
from edge.telemetry.sampler import Telemetry
from edge.telemetry.sources import NoSource

ROOT = Path(__file__).resolve().parents[1]
UNMEASURED = Telemetry(sampler=None, no_power=NoSource(()))
NAMES = [f"class {index}" for index in range(1000)]
PR_SET_TIMERSLACK = 29


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help="engine, outputs, hanging, host, cameras, memory, watching"
    )
    parser.add_argument("--eval", type=Path, default=ROOT.parent / "shared/data/eval")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    wanted = options.parts or ["engine", "outputs", "hanging", "host", "cameras", "memory", "watching"]
    say("cores", str(len(os.sched_getaffinity(0))))
    if "engine" in wanted:
        engine(options.rounds)
    if "outputs" in wanted:
        outputs(options.rounds)
    if "hanging" in wanted:
        hanging(options.rounds)
    if {"host", "watching"} & set(wanted):
        with tempfile.TemporaryDirectory(prefix="edge-benchmark-") as folder:
            bench = Host(options.eval, Path(folder))
            if "host" in wanted:
                bench.throughput(options.rounds)
            if "watching" in wanted:
                bench.watching(2 * options.rounds)
    if "cameras" in wanted:
        cameras()
    if "memory" in wanted:
        memory()


# an engine of exactly 1 ms


class Memory:
    """``count`` frames that are in memory already."""

    def __init__(self, count: int, size: tuple[int, int] = (224, 224)) -> None:
        self.opened = OpenedSource(kind="memory", opened_as="memory", live=False, height=size[0], width=size[1])
        self.dropped = None
        self.notes: list[str] = []
        self._left = iter(range(count))
        self._pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)

    def next(self) -> Frame | None:
        """The next one."""
        number = next(self._left, None)
        return None if number is None else Frame(number, "frame", "frame", time.monotonic(), lambda: self._pixels)

    def close(self) -> None:
        """No more."""
        self._left = iter(())


_LIBC = ctypes.CDLL(None)
_local = threading.local()


def exactly(seconds: float) -> None:
    """Wait as an engine does: to the microsecond, without the interpreter's lock. Sleeping alone is 50 µs late."""
    end = time.perf_counter() + seconds
    if not hasattr(_local, "is_exact"):
        _LIBC.prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
        _local.is_exact = True
    time.sleep(max(seconds - 0.00015, 0.0))
    while time.perf_counter() < end:
        _LIBC.sched_yield()


def engine(rounds: int, *, count: int = 3000) -> None:
    """The loop around an engine of 1 ms, against the engine called in a row."""
    spec = profiles.read_profile(ROOT / "profiles/host.yaml")
    rates, adds, works, bare = [], [], [], []
    for _ in range(rounds):
        session = FakeSession(Fake(infer_ms=1.0, classes=1000), wait=exactly)
        batch = np.zeros((1, 3, 224, 224), np.float32)
        start = time.perf_counter()
        for _ in range(500):
            session.infer(batch)
        bare.append(500 / (time.perf_counter() - start))
        record = run_loop.run(
            Memory(count), sessions=[session], preprocessor=Preprocessor(spec.preprocess, spec.input), names=NAMES,
            subject=SUBJECT, settings=run_loop.RunSettings(width=pipeline.Width(prepare=1)), telemetry=UNMEASURED,
        )  # fmt: skip
        latency = record.latency
        rates.append(record.rate_per_s or 0.0)
        # What is in the total besides decode, preprocess and the engine itself.
        adds.append(
            [
                1e3 * (r.stages.total_ms - r.stages.infer_ms - r.stages.preprocess_ms - r.stages.decode_ms)
                for r in record.results
            ]
        )
        works.append(1e3 * (1e3 / rates[-1] - latency["infer"].p50_ms))
    added = statistics.median(value for each in adds for value in each)
    say("engine of 1 ms, in a row", f"{statistics.median(bare):.1f} per second")
    say("engine of 1 ms, in the loop", f"{spread(rates)} per second (target: at least 950)")
    say("share of 1,000 per second", f"{statistics.median(rates) / 10:.1f} %")
    say("added per frame, own work, p50", f"{added:.0f} µs (target: under 100)")
    say("added per frame, between inferences", f"{statistics.median(works):.0f} µs")


# the same with everything that a run can put out


@contextlib.contextmanager
def http_server(*, answers: bool) -> Iterator[str]:
    """The address of a server that takes notifications, in a process of its own; or one that never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/hook"
        if not answers:
            yield address
            return
        child = os.fork()
        if not child:
            while True:
                connection, _ = server.accept()
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                connection.close()
        try:
            yield address
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def one_run(count: int, *, notify: str | None, csv: Path | None, smoothing: bool) -> RunRecord:
    """The engine of 1 ms over ``count`` frames, with what is asked for."""
    spec = profiles.read_profile(ROOT / "profiles/host.yaml")
    with contextlib.ExitStack() as stack:
        listeners: list[Any] = []
        if notify is not None:
            rule = NotifyRule(on_change=False, every=0.1)
            found = Notifications([(rule, [Secret.url(notify)])], names=NAMES, about={})
            stack.callback(found.close)
            listeners.append(found.on_event)
        if csv is not None:
            file = CsvFile(csv, warn=print)
            stack.callback(file.close)
            listeners.append(file.on_event)

        def on_event(event: Any) -> None:  # noqa: ANN401
            for listen in listeners:
                listen(event)

        decision = DecisionSettings(smoothing="exponential", min_confidence=0.1) if smoothing else DecisionSettings()
        return run_loop.run(
            Memory(count), sessions=[FakeSession(Fake(infer_ms=1.0, classes=1000), wait=exactly)],
            preprocessor=Preprocessor(spec.preprocess, spec.input), names=NAMES, subject=SUBJECT, telemetry=UNMEASURED,
            settings=run_loop.RunSettings(width=pipeline.Width(prepare=1), decision=decision),
            observers=run_loop.Observers(on_event=on_event),
        )  # fmt: skip


def outputs(rounds: int, *, count: int = 3000) -> None:
    """Smoothing, notifications and CSV together, in turns with the bare loop."""
    rates: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder, http_server(answers=True) as address:
        for index in range(rounds):
            for everything in (True, False) if index % 2 else (False, True):
                record = one_run(
                    count, notify=address if everything else None, csv=Path(folder) / "r.csv" if everything else None,
                    smoothing=everything,
                )  # fmt: skip
                rates[everything].append(record.rate_per_s or 0.0)
    added = [1e6 / full - 1e6 / bare for bare, full in zip(rates[False], rates[True], strict=True)]
    say("engine of 1 ms, bare loop", f"{spread(rates[False])} per second")
    say("… with smoothing, notify and CSV", f"{spread(rates[True])} per second (target: at least 970)")
    say("… added to a frame", f"{spread(added)} µs (target: at most 60)")


def hanging(rounds: int, *, count: int = 3000) -> None:
    """A target that never answers, in turns with one that does and with none."""
    rates: dict[str, list[float]] = {"none": [], "answers": [], "hangs": []}
    with http_server(answers=True) as good, http_server(answers=False) as bad:
        for index in range(rounds):
            order = [("none", None), ("answers", good), ("hangs", bad)]
            for name, address in order[index % 3 :] + order[: index % 3]:
                record = one_run(count, notify=address, csv=None, smoothing=False)
                rates[name].append(record.rate_per_s or 0.0)
    for name, found in rates.items():
        ratios = [rate / none for rate, none in zip(found, rates["none"], strict=True)]
        say(f"engine of 1 ms, target: {name}", f"{spread(found)} per second, {spread(ratios)} of none")


# the sample model on this host


class Host:
    """The INT8 engine of the profile ``host`` and pictures of ImageNet."""

    def __init__(self, images: Path, folder: Path) -> None:
        self.profile = profiles.read_profile(ROOT / "profiles/host.yaml")
        self.backend = get("onnxruntime")
        building.build(self.profile, self.backend, cache=ROOT / "calib_cache", engines=folder, precision="int8")
        self.engine = next(folder.rglob("*.onnx"))
        self.pictures: Pictures = open_pictures(images).take(300)
        self.preprocessor = Preprocessor(self.profile.preprocess, self.profile.input)
        self.names = labels.load_names(Path(self.profile.labels))
        for picture in self.pictures:
            # Into the page cache.
            picture.read()

    def sequential(self, threads: int) -> float:
        """Pictures per second of the plain loop."""
        session = self.backend.open(self.engine, precision="int8", threads=threads)
        batch = np.empty((1, 3, self.profile.input.height, self.profile.input.width), np.float32)
        session.infer(batch)
        start = time.perf_counter()
        for picture in self.pictures:
            self.preprocessor(decode(picture.read(), name=picture.name), out=batch[0])
            logits = session.infer(batch).logits[0]
            np.argsort(-logits)[:5]
        return len(self.pictures) / (time.perf_counter() - start)

    def overlapped(
        self,
        workers: int,
        threads: int,
        prepare: int,
        **more: Any,  # noqa: ANN401
    ) -> tuple[RunRecord, float]:
        """A run of the loop, and the CPU seconds per picture that the process took."""
        sessions = [self.backend.open(self.engine, precision="int8", threads=threads) for _ in range(workers)]
        began = 0.0

        class Timed(PictureStream):
            def next(self) -> Frame | None:
                nonlocal began
                # The first picture: warming up is over.
                began = began or time.process_time()
                return super().next()

        record = run_loop.run(
            Timed(self.pictures), sessions=sessions, preprocessor=self.preprocessor, names=self.names,
            subject=SUBJECT, settings=run_loop.RunSettings(warmup=3, width=pipeline.Width(prepare=prepare)),
            **{"telemetry": UNMEASURED, **more},
        )  # fmt: skip
        return record, (time.process_time() - began) / record.pictures

    def throughput(self, rounds: int) -> None:
        """The default of the loop against the sequential loop at its best, in turns."""
        cores = len(os.sched_getaffinity(0))
        best = choose(self.profile, live=False, workers=None, threads=None, batch=1)
        plain: dict[int, list[float]] = {threads: [] for threads in sorted({1, cores})}
        settings = {
            "the default": (best.workers, best.threads or 1, best.width.prepare),
            "one session, all cores": (1, cores, 2),
            "a session more than cores": (cores + 1, 1, 2),
        }
        rates: dict[str, list[float]] = {name: [] for name in settings}
        use: list[float] = []
        ratios: list[float] = []
        for _ in range(rounds):
            for threads, found in plain.items():
                found.append(self.sequential(threads))
            for name, (workers, threads, prepare) in settings.items():
                record, cpu_s = self.overlapped(workers, threads, prepare)
                rates[name].append(record.rate_per_s or 0.0)
                if name == "the default":
                    use.append((record.rate_per_s or 0.0) * cpu_s / cores)
            ratios.append(rates["the default"][-1] / max(found[-1] for found in plain.values()))
        for threads, found in plain.items():
            say(f"sequential, {threads} thread(s)", f"{spread(found)} pictures/s")
        for name, (workers, threads, prepare) in settings.items():
            say(f"loop, {name}", f"{spread(rates[name])} pictures/s ({workers} × {threads} threads, {prepare} prepare)")
        say("loop / best sequential, paired", f"{spread(ratios)} (target: 1.25)")
        say(f"share of what {cores} cores can do", f"{spread([100 * value for value in use])} % (target: 90)")

    def watching(self, rounds: int) -> None:
        """The same run with the live view drawn and a power sampler running, in turns with a bare one."""
        shares = []
        for index in range(rounds):
            order = [False, True] if index % 2 else [True, False]
            rate = {}
            for watched in order:
                with watchers(is_watched=watched, total=len(self.pictures)) as more:
                    rate[watched] = self.overlapped(2, 1, 2, **more)[0].rate_per_s or 0.0
            shares.append(100 * (1 - rate[True] / rate[False]))
        say("live view and sampler take", f"{spread(shares)} % of the throughput (target: under 3)")


@contextlib.contextmanager
def watchers(*, is_watched: bool, total: int) -> Iterator[dict[str, Any]]:
    """The live view on a terminal of its own, and a sampler of a source that reads files as hwmon does."""
    if not is_watched:
        yield {}
        return
    from rich.console import Console

    from edge.telemetry.sampler import Sampler
    from edge.telemetry.sources import Reading
    from edge.ui.terminal.live_view import LiveView
    from edge.ui.terminal.terminal import Terminal

    class Source:
        name, scope = "files", "module_input"

        def read(self) -> Reading:
            for _ in range(12):
                Path("/proc/self/stat").read_bytes()
            return Reading(t_s=time.monotonic(), power_mw=5000.0, temps_c={"cpu": 50.0})

        def close(self) -> None:
            pass

    with Path(os.devnull).open("w") as sink, Sampler(Source()) as sampler:  # type: ignore[arg-type]
        terminal = Terminal()
        terminal.err = Console(file=sink, force_terminal=True, width=100, height=40)
        statistics = RunStatistics(total=total, reading=lambda: sampler.latest)
        view = LiveView(terminal, statistics, headline="benchmark", power="files")
        with view.showing():
            yield {
                "statistics": statistics, "observers": run_loop.Observers(on_event=view.on_event),
                "telemetry": Telemetry(sampler=sampler, no_power=None),
            }  # fmt: skip


# several cameras


class Batched:
    """An engine that takes 4 ms for one picture, and 2/3 ms more for each further one."""

    precision = "fp32"

    def infer(self, batch: NDArray[np.float32]) -> Inference:
        """Answers that mean nothing, after that time."""
        infer_ms = 4.0 + (len(batch) - 1) * 2 / 3
        exactly(infer_ms / 1e3)
        return Inference(logits=np.zeros((len(batch), 10), np.float32), infer_ms=infer_ms)

    def close(self) -> None:
        """Nothing is held."""


def cameras(*, seconds: int = 10, count: int = 4) -> None:
    """``count`` recordings of 30 frames per second through one engine, and one of them alone."""
    import msgspec

    spec = profiles.read_profile(ROOT / "profiles/host.yaml")
    with tempfile.TemporaryDirectory(prefix="edge-benchmark-") as name:
        sample = cv2.imread(str(next((ROOT / "samples").glob("*.jpg"))))
        picture = cv2.imencode(".jpg", cv2.resize(sample, (640, 480)))[1].tobytes()
        folders = []
        for camera in range(count):
            folder = Path(name) / str(camera)
            folder.mkdir()
            lines: list[Any] = [
                RecordingHeader(
                    edge_frames=1, source=OpenedSource(kind="v4l2", opened_as=f"camera {camera}", live=True)
                )
            ]
            for seq in range(30 * seconds):
                (folder / f"{seq:08d}.jpg").write_bytes(picture)
                # The cameras are not in step.
                t_s = (seq + camera / count) / 30
                lines.append(Saved(frame=SavedFrame(file=f"{seq:08d}.jpg", seq=seq, t_s=t_s)))
            (folder / "frames.jsonl").write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
            folders.append(folder)
        for several in (folders[:1], folders):
            opens = {path.name: (lambda path=path: ReplayStream(path)) for path in several}
            stream = CameraGroup(opens) if len(several) > 1 else ReplayStream(several[0])  # type: ignore[arg-type]
            record = run_loop.run(
                stream, sessions=[Batched()], preprocessor=Preprocessor(spec.preprocess, spec.input), names=NAMES,
                subject=SUBJECT, telemetry=UNMEASURED,
                settings=run_loop.RunSettings(width=pipeline.Width(batch=len(several), batch_wait_s=0.005)),
            )  # fmt: skip
            stream.close()
            what = f"{len(several)} camera{'s' if len(several) > 1 else ''} of 30 per second"
            age = record.latency["age"]
            say(what, f"{record.rate_per_s:.1f} per second, {record.dropped} of {30 * seconds * len(several)} dropped")
            say(f"{what}, age", f"p50 {age.p50_ms:.1f}, p99 {age.p99_ms or 0:.1f} ms (target for 4: at most 45)")
            for camera in record.cameras:
                found = camera.latency["age"]
                say(f"  camera {camera.name}", f"{camera.pictures} labelled, age p50 {found.p50_ms:.1f} ms")


# memory


def memory(*, first: int = 20_000, count: int = 200_000) -> None:
    """Resident memory after the first frames and after all of them, of one run."""
    small = profiles.InputConfig(height=32, width=32)
    marks: list[float] = []

    class Marked(Memory):
        def next(self) -> Frame | None:
            frame = super().next()
            if frame is not None and frame.seq in {first, first + count - 1}:
                gc.collect()
                marks.append(resident_mib())
            return frame

    with tempfile.TemporaryDirectory() as folder, http_server(answers=True) as address:
        notify = Notifications([(NotifyRule(on_change=False, every=0.1), [Secret.url(address)])], names=NAMES, about={})
        file = CsvFile(Path(folder) / "r.csv", warn=print)

        def on_event(event: Any) -> None:  # noqa: ANN401
            notify.on_event(event)
            file.on_event(event)

        record = run_loop.run(
            Marked(first + count, (48, 48)), sessions=[FakeSession(Fake(classes=1000))],
            preprocessor=Preprocessor(profiles.PreprocessConfig(resize=36), small), names=NAMES, subject=SUBJECT,
            settings=run_loop.RunSettings(warmup=1, decision=DecisionSettings(smoothing="majority")),
            observers=run_loop.Observers(on_event=on_event), telemetry=UNMEASURED,
        )  # fmt: skip
        notify.close()
        file.close()
    say("frames", f"{record.pictures}, {record.rate_per_s:.0f} per second")
    say(f"memory growth over {count} frames", f"{marks[1] - marks[0]:+.2f} MiB (target: under 2)")


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


SUBJECT = Subject(
    profile="benchmark", profile_digest="", model="", model_sha256="", engine_sha256="", table_sha256=None,
    preprocess_digest="", backend={}, precision="int8", layers={}, device={}, source="benchmark",
)  # fmt: skip


def spread(values: list[float]) -> str:
    """Median, least and largest."""
    digits = 1 if statistics.median(values) >= 10 else 2
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def say(name: str, value: str) -> None:
    print(f"{name:<40}{value}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
