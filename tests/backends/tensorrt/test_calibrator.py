"""Calibrators: tables served whole, batches fed exactly, exceptions kept."""

from __future__ import annotations

import ctypes
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edge.backends.tensorrt import batch_pipe, calibrator
from edge.backends.tensorrt.calibrator import Feed, Feeding, Serving
from edge.backends.tensorrt.environment import Caps, binding_module
from edge.config.profiles import Profile
from edge.errors import ArtifactError, DataError, DeviceError
from edge.quantization import calibration_table
from edge.quantization.calibration_table import AlgorithmName, Table, TableHeader, TrtVersion
from tests.support.tensorrt import site_double

Bind = Callable[..., Caps]
WITH = ["8.6.1", "10.0.1", "10.3.0", "10.7.0", "10.13.3.9", "10.16.1.11"]


class Memory:
    """A device whose memory is a list; ``fails_at`` is the upload that breaks."""

    def __init__(self, *, fails_at: int | None = None) -> None:
        self.held: list[Any] = []
        self._fails_at = fails_at

    def upload(self, batch: Any) -> int:
        if len(self.held) == self._fails_at:
            raise DeviceError("the copy failed")
        self.held.append(batch.copy())
        return 1000 + len(self.held)


def batches(count: int, *, size: int = 2, dtype: Any = np.float32) -> Iterator[Any]:
    for index in range(count):
        yield np.full((size, 3, 4, 4), index, dtype)


def feed(memory: Any, source: Iterator[Any], *, planned: int = 3, algorithm: AlgorithmName = "entropy2") -> Feed:
    return Feed(algorithm=algorithm, batches=source, planned=planned, batch=2, memory=memory)


def some_table(algorithm: AlgorithmName = "entropy2", version: tuple[int, int, int] = (8, 6, 1)) -> Table:
    return calibration_table.from_ranges(
        {"input": 1.0, "a: b": 2.0}, algorithm=algorithm, trt_version=TrtVersion(*version)
    )


@pytest.mark.parametrize("version", WITH)
def test_a_table_is_served_whole_and_never_replaced(version: str, binding: Bind) -> None:
    caps = binding(version)
    table = calibrator.served(some_table(), caps, dla=False)
    source = Serving(table, caps, batch=4)
    made = calibrator.make(source, table.header.algorithm, caps)
    assert isinstance(made, binding_module(caps).IInt8EntropyCalibrator2)
    before = made.read_calibration_cache()
    made.write_calibration_cache(memoryview(b"TRT-shorter"))
    assert made.read_calibration_cache() is before
    assert before == calibration_table.write(table)
    assert made.get_batch_size() == 4
    source.raise_kept()


@pytest.mark.parametrize(
    ("version", "header"),
    [("8.6.1", "TRT-8601-"), ("10.3.0", "TRT-100300-"), ("10.16.1.11", "TRT-101601-")],
)
def test_the_header_is_that_of_the_running_version(version: str, header: str, binding: Bind) -> None:
    caps = binding(version)
    for given in (some_table(version=(7, 2, 3)), some_table(version=(10, 12, 0))):
        found = calibrator.served(given, caps, dla=False)
        assert found.header.text.startswith(header)
        assert found.bits == given.bits


@pytest.mark.parametrize(
    ("algorithm", "dla", "served"),
    [
        ("entropy2", False, "EntropyCalibration2"),
        ("minmax", False, "MinMaxCalibration"),
        ("minmax", True, "EntropyCalibration2"),
        ("entropy", False, "EntropyCalibration2"),
    ],
)
def test_the_class_that_serves(algorithm: AlgorithmName, dla: bool, served: str, binding: Bind) -> None:
    found = calibrator.served(some_table(algorithm), binding("10.3.0"), dla=dla)
    assert found.header.text == f"TRT-100300-{served}"


def test_a_legacy_table_is_served_as_entropy2(binding: Bind) -> None:
    given = Table(TableHeader.parse("0 3ff0000000000000 3fefffeb074a771d"), some_table().bits)
    assert calibrator.served(given, binding("8.6.1"), dla=False).header.text == "TRT-8601-EntropyCalibration2"


def test_a_refused_table_is_an_error_and_no_calibration_without_pictures(binding: Bind) -> None:
    caps = binding("10.3.0")
    table = calibrator.served(some_table(), caps, dla=False)
    source = Serving(table, caps, batch=1)
    made = calibrator.make(source, "entropy2", caps)
    assert made.get_batch(["input"]) is None
    with pytest.raises(ArtifactError, match=r"TensorRT 10\.3\.0 refused the calibration table \(TRT-100300-"):
        source.raise_kept()


@pytest.mark.parametrize("algorithm", ["entropy2", "minmax", "entropy", "legacy"])
@pytest.mark.parametrize("version", WITH)
def test_batches_are_fed_one_by_one(version: str, algorithm: AlgorithmName, binding: Bind) -> None:
    caps = binding(version)
    memory = Memory()
    source = Feeding(feed(memory, batches(3), algorithm=algorithm), caps)
    made = calibrator.make(source, algorithm, caps)
    assert made.read_calibration_cache() is None
    assert [made.get_batch(["input"]) for _ in range(5)] == [[1001], [1002], [1003], None, None]
    assert [float(held.flat[0]) for held in memory.held] == [0.0, 1.0, 2.0]
    content = bytearray(b"TRT-8601-EntropyCalibration2\ninput: 3f800000\n")
    made.write_calibration_cache(memoryview(content))
    content[:] = b"x" * len(content)  # TensorRT's buffer is gone after the call
    source.raise_kept()
    assert source.table().scales == {"input": 1.0}
    assert (made.get_quantile(), made.get_regression_cutoff()) == (0.99999, 1.0)
    assert made.read_histogram_cache(10) is made.write_histogram_cache(b"", 0) is None


def broken(after: int) -> Iterator[Any]:
    yield from batches(after)
    raise DataError("image 7 is not a JPEG", where="7.jpg")


@pytest.mark.parametrize(
    ("memory", "source", "planned", "kind", "words"),
    [
        pytest.param(Memory(), broken(1), 3, DataError, "image 7 is not a JPEG", id="an image is broken"),
        pytest.param(Memory(fails_at=1), batches(3), 3, DeviceError, "the copy failed", id="the upload fails"),
        pytest.param(Memory(), batches(3, size=1), 3, DataError, "a batch of 1 float32", id="a short batch"),
        pytest.param(Memory(), batches(3, dtype=np.float64), 3, DataError, "2 float64 images", id="not float32"),
        pytest.param(Memory(), batches(2), 3, DeviceError, "read 2 of 3", id="fewer batches than planned"),
    ],
)
def test_what_goes_wrong_is_raised_afterwards(
    memory: Memory, source: Iterator[Any], planned: int, kind: type[Exception], words: str, binding: Bind
) -> None:
    caps = binding("10.3.0")
    state = Feeding(feed(memory, source, planned=planned), caps)
    made = calibrator.make(state, "entropy2", caps)
    while made.get_batch(["input"]) is not None:
        pass
    assert made.get_batch(["input"]) is None, "once ended, it stays so"
    with pytest.raises(kind, match=words):
        state.raise_kept()


def test_nothing_is_read_after_an_error(binding: Bind) -> None:
    caps, source = binding("10.3.0"), batches(3, size=1)
    made = calibrator.make(Feeding(feed(Memory(), source), caps), "entropy2", caps)
    assert [made.get_batch(["input"]) for _ in range(3)] == [None] * 3
    assert len(list(source)) == 2


def test_fewer_batches_than_planned_were_asked_for(binding: Bind) -> None:
    caps = binding("10.3.0")
    source = Feeding(feed(Memory(), batches(3)), caps)
    calibrator.make(source, "entropy2", caps).get_batch(["input"])
    with pytest.raises(DeviceError, match="read 1 of 3 calibration batches"):
        source.raise_kept()


def test_ctrl_c_in_a_batch_is_kept(binding: Bind) -> None:
    def interrupted() -> Iterator[Any]:
        raise KeyboardInterrupt
        yield

    caps = binding("8.6.1")
    source = Feeding(feed(Memory(), interrupted()), caps)
    assert calibrator.make(source, "entropy2", caps).get_batch(["input"]) is None
    with pytest.raises(KeyboardInterrupt):
        source.raise_kept()


def test_two_inputs(binding: Bind) -> None:
    caps = binding("8.6.1")
    source = Feeding(feed(Memory(), batches(3)), caps)
    assert calibrator.make(source, "entropy2", caps).get_batch(["a", "b"]) is None
    with pytest.raises(DeviceError, match="requests 2 inputs at once: a, b"):
        source.raise_kept()


def test_no_table_was_written(binding: Bind) -> None:
    source = Feeding(feed(Memory(), batches(0), planned=0), binding("8.6.1"))
    with pytest.raises(DeviceError, match="read 0 batches but wrote no calibration table"):
        source.table()


@pytest.mark.parametrize("version", ["11.4.0.106", "rtx"])
def test_no_calibrators(version: str, binding: Bind) -> None:
    caps = binding(version)
    with pytest.raises(DeviceError, match="reads no calibration table"):
        calibrator.served(some_table(), caps, dla=False)
    with pytest.raises(DeviceError, match="has no minmax calibrator"):
        calibrator.make(Feeding(feed(Memory(), batches(1)), caps), "minmax", caps)


# batches from the process that has the images


@pytest.fixture
def cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The double of PyCUDA's driver."""
    modules = site_double.pycuda(tmp_path / "site")
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return modules["pycuda.driver"]


def piped(spec: batch_pipe.FeedSpec, content: bytes) -> list[np.ndarray]:
    """The batches that the receiving process finds on its device."""
    found = []
    with batch_pipe.served(spec, io.BytesIO(content), lambda: None) as received:
        for batch in received.batches:
            address = received.memory.upload(batch)
            content_there = (ctypes.c_uint8 * batch.nbytes).from_address(address)
            found.append(np.frombuffer(content_there, np.float32).reshape(spec.shape).copy())
    return found


def test_batches_come_through_a_pipe_as_they_were(tiny: Callable[..., Profile], cuda: ModuleType) -> None:
    profile = tiny(input={"height": 4, "width": 6})
    given = [np.random.default_rng(seed).normal(size=(2, 3, 4, 6)).astype(np.float32) for seed in range(2)]
    spec = batch_pipe.feed_spec(feed(None, iter(given)), profile)
    pipe = io.BytesIO()
    for batch in (*given, None):
        batch_pipe.send(pipe, batch)
    assert spec.shape == (2, 3, 4, 6)
    np.testing.assert_array_equal(piped(spec, pipe.getvalue()), given)
    assert cuda.LIVE == {}


@pytest.mark.parametrize("kept", [0, 5, 8, 9, 100])
def test_a_pipe_that_ends_inside_a_batch(kept: int, tiny: Callable[..., Profile], cuda: ModuleType) -> None:
    profile = tiny(input={"height": 4, "width": 6})
    spec = batch_pipe.feed_spec(feed(None, iter([])), profile)
    pipe = io.BytesIO()
    batch_pipe.send(pipe, np.zeros((2, 3, 4, 6), np.float32))
    with pytest.raises(DeviceError, match="the process with the images has ended"):
        piped(spec, pipe.getvalue()[:kept])
    assert cuda.LIVE == {}
