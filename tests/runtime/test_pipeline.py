"""Stages that overlap: order, bounds, batches, sessions that preprocess themselves, and stages that fail or hang."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from edge.artifacts.run_record import FrameResult, Gap, RunRecord, Skip, Subject
from edge.backends.interface import Inference
from edge.config.profiles import InputConfig, PreprocessConfig
from edge.errors import DataError, DeviceError
from edge.media.streams import Frame, OpenedSource, Outage
from edge.model.preprocessing import Preprocessor
from edge.runtime import pipeline, run_loop
from edge.telemetry.sampler import Telemetry
from edge.telemetry.sources import NoSource

SUBJECT = Subject(
    profile="t", profile_digest="", model="m.onnx", model_sha256="", engine_sha256="", table_sha256=None,
    preprocess_digest="", backend={}, precision="fp32", layers={}, device={}, source="t",
)  # fmt: skip


class Source:
    """Frames whose every pixel is their number; ``load`` may be told to do something first."""

    def __init__(
        self, items: Sequence[int | Outage], *, load: Callable[[int], None] = lambda _n: None, live: bool = False
    ) -> None:
        self.opened = OpenedSource(kind="test", opened_as="test", live=live, width=32, height=32)
        self.dropped = 0 if live else None
        self.notes: list[str] = []
        self.taken = 0
        self._items = iter(items)
        self._load = load
        self._closed = False

    def next(self) -> Frame | Outage | None:
        item = None if self._closed else next(self._items, None)
        if item is None or isinstance(item, Outage):
            return item
        self.taken += 1
        return Frame(item, f"f{item}", f"test: f{item}", time.monotonic(), lambda: self._pixels(item))

    def close(self) -> None:
        self._closed = True

    def _pixels(self, number: int) -> Any:
        self._load(number)
        return np.full((32, 32, 3), number, np.uint8)


class Reads:
    """Says which number each picture of the batch holds, by its logits."""

    precision = "fp32"

    def __init__(self, *, before: Callable[[list[int]], None] = lambda _numbers: None) -> None:
        self.batches: list[list[int]] = []
        self._before = before

    def infer(self, batch: Any) -> Inference:
        return self.answer([round(float(one[0, 0, 0])) for one in batch])

    def answer(self, numbers: list[int], **more: float) -> Inference:
        self._before(numbers)
        self.batches.append(numbers)
        logits = np.zeros((len(numbers), 256), np.float32)
        logits[np.arange(len(numbers)), numbers] = 9.0
        return Inference(logits=logits, infer_ms=1.0, **more)

    def close(self) -> None:
        pass


class ReadsFrames(Reads):
    """The same from frames, as an engine does that preprocesses on its device."""

    def infer_frames(self, frames: Sequence[Any]) -> Inference:
        assert all(frame.dtype == np.uint8 and frame.shape == (32, 32, 3) for frame in frames)
        return self.answer([int(frame[0, 0, 0]) for frame in frames], preprocess_ms=0.25, host_to_device_ms=0.5)


def go(
    source: Source, *sessions: Any, on_device: bool = False, width: dict[str, int] | None = None, **more: Any
) -> RunRecord:
    identity = PreprocessConfig(fit="squash", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return run_loop.run(
        source,
        sessions=sessions,
        preprocessor=None if on_device else Preprocessor(identity, InputConfig(height=32, width=32)),
        names=[str(number) for number in range(256)],
        subject=SUBJECT,
        settings=run_loop.RunSettings(
            topk=1, warmup=0, width=pipeline.Width(**(width or {})), **more.pop("settings", {})
        ),
        telemetry=Telemetry(sampler=None, no_power=NoSource(())),
        **more,
    )


def seen(heard: Sequence[Any]) -> list[tuple[int, int]]:
    return [(one.seq, one.guesses[0].index) for one in heard if isinstance(one, FrameResult)]


@pytest.mark.parametrize("width", [{}, {"prepare": 4}, {"batch": 3}, {"prepare": 3, "batch": 4, "min_batch": 4}])
@pytest.mark.parametrize("sessions", [1, 3])
@pytest.mark.parametrize("on_device", [False, True])
def test_order_is_kept_whatever_overtakes(width: dict[str, int], sessions: int, on_device: bool) -> None:
    lottery = random.Random(0)
    source = Source(range(80), load=lambda _n: time.sleep(lottery.random() / 500))
    kind = ReadsFrames if on_device else Reads
    some = [kind(before=lambda _n: time.sleep(lottery.random() / 300)) for _ in range(sessions)]
    heard: list[Any] = []
    finished = go(source, *some, on_device=on_device, width=width, observers=run_loop.Observers(on_event=heard.append))
    assert seen(heard) == [(number, number) for number in range(80)]
    assert finished.pictures == 80
    sizes = {len(batch) for one in some for batch in one.batches}
    assert max(sizes) == width.get("batch", 1)


def test_a_session_that_preprocesses_gives_the_time_of_it() -> None:
    stages = go(Source(range(3)), ReadsFrames(), on_device=True).results[0].stages
    assert (stages.preprocess_ms, stages.host_to_device_ms) == (0.25, 0.5)


def test_what_cannot_be_decoded_leaves_its_place_in_the_batch() -> None:
    def load(number: int) -> None:
        if number % 3 == 0:
            raise DataError("damaged")

    session = Reads()
    heard: list[Any] = []
    finished = go(
        Source(range(10), load=load), session, width={"batch": 4}, observers=run_loop.Observers(on_event=heard.append)
    )
    assert session.batches == [[1, 2], [4, 5, 7], [8]]
    assert [one.seq for one in heard] == list(range(10))
    assert [one.seq for one in heard if isinstance(one, Skip)] == [0, 3, 6, 9]
    assert all(seq == label for seq, label in seen(heard))
    assert (finished.pictures, finished.skipped_count) == (6, 4)


def test_the_smallest_batch_is_filled_up() -> None:
    session = Reads()
    assert go(Source(range(5)), session, width={"batch": 3, "min_batch": 3}).pictures == 5
    assert session.batches == [[0, 1, 2], [3, 4, 3]]


def test_files_wait_for_a_slow_listener() -> None:
    source = Source(range(200))
    ahead = 0

    def hear(result: Any) -> None:
        nonlocal ahead
        if result.seq == 20:
            time.sleep(0.3)
        ahead = max(ahead, source.taken - result.seq)

    assert go(source, Reads(), observers=run_loop.Observers(on_event=hear)).pictures == 200
    assert ahead <= 4


def test_a_live_source_has_one_frame_waiting_per_session_at_most() -> None:
    source = Source(range(50), live=True)
    ahead = 0

    def hear(result: Any) -> None:
        nonlocal ahead
        time.sleep(0.005)
        ahead = max(ahead, source.taken - result.seq)

    go(source, Reads(), observers=run_loop.Observers(on_event=hear))
    assert ahead <= 2


def test_outages_come_in_their_turn_and_as_one_gap() -> None:
    now = time.monotonic()
    gap = Outage(now + 1, None, "unplugged", "plug it in")
    closed = Outage(now + 1, now + 2, "unplugged", "plug it in", "/dev/video1", 3)
    heard: list[Any] = []
    finished = go(
        Source([0, 1, gap, closed, 2], live=True), Reads(), observers=run_loop.Observers(on_event=heard.append)
    )
    assert [type(one).__name__ for one in heard] == ["FrameResult", "FrameResult", "Gap", "Gap", "FrameResult"]
    assert (len(finished.gaps), finished.gaps[0].attempts, finished.gaps[0].reopened_as) == (1, 3, "/dev/video1")
    open_gap = heard[2]
    assert isinstance(open_gap, Gap)
    assert open_gap.end_s is None
    assert finished.gaps[0].end_s == pytest.approx(open_gap.start_s + 1.0)


@pytest.mark.parametrize("stage", ["load", "infer", "on_event", "on_frame"])
@pytest.mark.parametrize("error", [DeviceError("told to fail"), ZeroDivisionError("a bug")])
def test_a_stage_that_raises_ends_the_run_with_its_error_and_a_failed_record(stage: str, error: Exception) -> None:
    def at_seven(number: Any, *_: object) -> None:
        if (number if isinstance(number, int) else number[0] if isinstance(number, list) else number.seq) == 7:
            raise error

    kept: list[RunRecord] = []
    threads = threading.active_count()
    source = Source(range(40), load=at_seven if stage == "load" else lambda _n: None)
    session = Reads(before=at_seven) if stage == "infer" else Reads()
    observers: dict[str, Any] = {"on_record": kept.append}
    if stage == "on_event":
        observers["on_event"] = at_seven
    if stage == "on_frame":
        observers["on_frame"] = lambda _pixels, result: at_seven(result)
    with pytest.raises(type(error)):
        go(source, session, width={"prepare": 2}, observers=run_loop.Observers(**observers))
    assert [record.status for record in kept] == ["failed"]
    assert kept[0].failure in {"told to fail", "ZeroDivisionError: a bug"}
    # Everything before it was delivered.
    assert [result.seq for result in kept[0].results][:7] == list(range(7))
    assert threading.active_count() <= threads


def test_a_source_that_raises_comes_after_what_it_gave_before() -> None:
    class Ends(Source):
        def next(self) -> Frame | Outage | None:
            following = super().next()
            if following is None:
                raise DeviceError("the camera is gone for good")
            return following

    kept: list[RunRecord] = []
    with pytest.raises(DeviceError, match="gone for good"):
        go(Ends(range(5)), Reads(), width={"batch": 2}, observers=run_loop.Observers(on_record=kept.append))
    assert (kept[0].status, kept[0].pictures) == ("failed", 5)


def test_warming_up_that_fails_has_a_record_too() -> None:
    def refuse(_numbers: list[int]) -> None:
        raise DeviceError("no memory")

    kept: list[RunRecord] = []
    with pytest.raises(DeviceError, match="no memory"):
        run_loop.run(
            Source(range(5)), sessions=[Reads(before=refuse)],
            preprocessor=Preprocessor(PreprocessConfig(fit="squash"), InputConfig(height=32, width=32)),
            names=[], subject=SUBJECT,
            settings=run_loop.RunSettings(warmup=1), telemetry=Telemetry(sampler=None, no_power=None),
            observers=run_loop.Observers(on_record=kept.append),
        )  # fmt: skip
    assert (kept[0].status, kept[0].pictures) == ("failed", 0)


def test_a_duration_ends_a_source_that_has_no_end() -> None:
    class Endless(Source):
        def next(self) -> Frame | Outage | None:
            time.sleep(0.005)
            return None if self._closed else Frame(0, "f", "f", time.monotonic(), lambda: self._pixels(1))

    finished = go(Endless([], live=True), Reads(), settings={"duration_s": 0.3})
    assert finished.status == "complete"
    assert 0.3 <= finished.measured_s < 60.0
    assert finished.pictures > 0


def test_age_holds_the_time_in_queues_and_total_does_not() -> None:
    finished = go(Source(range(30)), Reads(before=lambda _n: time.sleep(0.005)))
    ages, totals = (
        sorted(getattr(result.stages, f"{name}_ms") for result in finished.results) for name in ("age", "total")
    )
    # Three others are before it, each of them 5 ms.
    assert ages[15] > 10.0
    assert totals[15] < ages[15]
    assert set(finished.latency) >= {"age", "total"}


def test_many_frames_leave_a_record_of_bounded_size() -> None:
    finished = go(Source([number % 256 for number in range(3000)]), Reads(), width={"batch": 8})
    assert (finished.pictures, len(finished.results), finished.results_kept) == (3000, 1000, "newest")
    assert len(finished.top_labels) == 20
    assert all(len(bins) <= 100 for bins in finished.histogram.values())
    assert sum(one.count for one in finished.histogram["total"]) == 3000


def test_pixels_are_shown_with_their_own_result() -> None:
    shown: list[tuple[int, int]] = []
    go(
        Source(range(20)),
        Reads(),
        Reads(),
        observers=run_loop.Observers(
            on_frame=lambda pixels, result: shown.append((int(pixels[0, 0, 0]), result.seq)),
        ),
    )
    assert shown == [(number, number) for number in range(20)]


# sessions that take the next batch before the one before it is done


class Submits(Reads):
    """Two batches at most are on its device; each is done when it is waited for."""

    in_flight = 2

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.flying = self.most = 0
        self.wait_for: Callable[[list[int]], None] = lambda _numbers: None
        self._lock = threading.Lock()

    def submit(self, batch: Any) -> Any:
        numbers = [round(float(one[0, 0, 0])) for one in batch]
        with self._lock:
            self.flying += 1
            self.most = max(self.most, self.flying)
            assert self.flying <= self.in_flight
        return Ticket(self, numbers)

    def infer(self, batch: Any) -> Inference:
        return self.submit(batch).wait()  # type: ignore[no-any-return]


class SubmitsFrames(Submits):
    """The same from frames."""

    def submit_frames(self, frames: Sequence[Any]) -> Any:
        return self.submit([frame[None, ..., 0] for frame in frames])

    def infer_frames(self, frames: Sequence[Any]) -> Inference:
        return self.submit_frames(frames).wait()  # type: ignore[no-any-return]


class Ticket:
    def __init__(self, session: Submits, numbers: list[int]) -> None:
        self._session, self._numbers = session, numbers

    def wait(self) -> Inference:
        try:
            self._session.wait_for(self._numbers)
            return self._session.answer(self._numbers)
        finally:
            with self._session._lock:
                self._session.flying -= 1


@pytest.mark.parametrize("on_device", [False, True], ids=["batches", "frames"])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_next_batch_is_submitted_while_the_one_before_is_waited_for(on_device: bool, batch: int) -> None:
    session = SubmitsFrames() if on_device else Submits()
    both = threading.Event()

    def until_two_are_there(_numbers: list[int]) -> None:
        for _ in range(1000):
            if session.most == 2 or both.is_set():
                both.set()
                return
            time.sleep(0.001)

    session.wait_for = until_two_are_there
    heard: list[Any] = []
    observers = run_loop.Observers(on_event=heard.append)
    go(Source(range(30)), session, on_device=on_device, width={"batch": batch, "prepare": 2}, observers=observers)
    assert seen(heard) == [(number, number) for number in range(30)]
    assert session.most == 2


def test_a_submitted_batch_that_fails_ends_the_run_in_its_turn() -> None:
    session = Submits()

    def fail(numbers: list[int]) -> None:
        if 7 in numbers:
            raise DeviceError("told to fail at 7")

    session.wait_for = fail
    with pytest.raises(DeviceError, match="told to fail at 7"):
        go(Source(range(30)), session)
    assert session.batches[:7] == [[number] for number in range(7)]


def test_a_batch_that_cannot_be_submitted_ends_the_run() -> None:
    class Refuses(Submits):
        def submit(self, batch: Any) -> Any:
            if round(float(batch[0][0, 0, 0])) == 3:
                raise DeviceError("no such batch")
            return super().submit(batch)

    with pytest.raises(DeviceError, match="no such batch"):
        go(Source(range(10)), Refuses())
