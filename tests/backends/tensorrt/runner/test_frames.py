"""Frames through the session: the GPU's preprocessing in front of the engine, with the kernel as plain C++."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.config.profiles import InputConfig, PreprocessConfig
from edge.errors import DataError, DeviceError
from edge.model.preprocessing import Preprocessor
from tests.support.cuda.host_device import DOWNLOAD_MS, KERNEL_MS, RUN_MS, UPLOAD_MS, HostDevice
from tests.support.tensorrt.engine_double import CLASSES, expected

SPEC = PreprocessConfig(resize=9, mean=(120.0, 110.0, 100.0), std=(60.0, 55.0, 50.0))
TARGET = InputConfig(height=8, width=8)
HALF = {"inputs": {"images": ["HALF", [-1, 3, 8, 8]]}, "outputs": {"logits": ["HALF", [-1, CLASSES]]}}
# One step of 8 bits, normalized, through the matrix.
STEP = 0.1

Ready = Callable[..., Any]


@pytest.fixture
def ready(open_session: Callable[..., Any], cpu_library: Path) -> Ready:
    """A session that takes frames; ``integrated`` as on a Jetson."""

    def make(*, integrated: bool = False, spec: PreprocessConfig = SPEC, **more: Any) -> Any:
        session = open_session(HostDevice(library=cpu_library, integrated=integrated), **more)
        session.preprocess_on_gpu(spec, TARGET)
        return session

    return make


def frames(*sizes: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


def on_cpu(pictures: list[np.ndarray], spec: PreprocessConfig = SPEC) -> np.ndarray:
    preprocess = Preprocessor(spec, TARGET)
    return expected(np.stack([preprocess(picture) for picture in pictures]))


@pytest.mark.parametrize("integrated", [False, True], ids=["discrete", "integrated"])
@pytest.mark.parametrize(
    "sizes",
    [[(40, 50)], [(40, 50)] * 4, [(40, 50), (40, 50), (9, 100)], [(9, 100), (40, 50), (9, 100)], [(1, 1), (31, 200)]],
    ids=["one", "four", "two sizes", "there and back", "tiny and wide"],
)
def test_frames_give_what_the_cpu_path_gives(ready: Ready, integrated: bool, sizes: list[tuple[int, int]]) -> None:
    session = ready(integrated=integrated)
    for _ in range(3):
        pictures = frames(*sizes)
        result = session.infer_frames(pictures)
        np.testing.assert_allclose(result.logits, on_cpu(pictures), atol=STEP)


def test_each_stage_is_timed_by_itself(ready: Ready) -> None:
    result = ready().infer_frames(frames((40, 50), (40, 50), (30, 30)))
    assert result.host_to_device_ms == 3 * UPLOAD_MS
    assert result.preprocess_ms == 2 * KERNEL_MS  # one launch for each run of equal sizes
    assert result.infer_ms == RUN_MS
    assert result.device_to_host_ms == DOWNLOAD_MS


def test_where_memory_is_shared_frames_are_read_in_place(ready: Ready) -> None:
    session = ready(integrated=True)
    result = session.infer_frames(frames((40, 50)))
    assert session.on.done("upload") == 0
    assert result.host_to_device_ms is None
    # The kernel writes the network's input, which lies in device memory for each of two batches; one is the output's.
    assert session.on.done("memory") == 3


@pytest.mark.parametrize("integrated", [False, True], ids=["discrete", "integrated"])
def test_two_batches_of_frames_in_flight_do_not_mix(ready: Ready, integrated: bool) -> None:
    session = ready(integrated=integrated)
    rng = np.random.default_rng(9)
    for count in (1, 2, 2):
        given = [[rng.integers(0, 256, (40, 50, 3), np.uint8) for _ in range(count)] for _ in range(2)]
        flying = [session.submit_frames(pictures) for pictures in given]
        for submitted, pictures in zip(flying, given, strict=True):
            np.testing.assert_allclose(submitted.wait().logits, on_cpu(pictures), atol=STEP)


@pytest.mark.parametrize("fit", ["crop", "letterbox", "squash"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_every_spec(ready: Ready, fit: Any, interpolation: Any) -> None:
    spec = PreprocessConfig(fit=fit, interpolation=interpolation, resize=10, color="bgr", pad=3)
    session = ready(spec=spec)
    pictures = frames((61, 47), (61, 47))
    np.testing.assert_allclose(session.infer_frames(pictures).logits, on_cpu(pictures, spec), atol=STEP)


def test_a_float16_engine_takes_float16_frames(ready: Ready) -> None:
    session = ready(**HALF)
    pictures = frames((40, 50), (40, 50))
    np.testing.assert_allclose(session.infer_frames(pictures).logits, on_cpu(pictures), atol=STEP)


def test_frames_may_lie_in_memory_as_they_like(ready: Ready) -> None:
    (picture,) = frames((60, 80))
    for view in (picture[::-1], picture[:, ::-1], picture[5:40, 7:60], np.asfortranarray(picture)):
        result = ready().infer_frames([view])
        np.testing.assert_allclose(result.logits, on_cpu([np.ascontiguousarray(view)]), atol=STEP)


def test_memory_grows_with_the_largest_frame_and_is_kept(ready: Ready) -> None:
    session = ready()
    device = session.on

    def allocated() -> int:
        return device.done("memory") + device.done("pinned") - device.done("free")

    session.infer_frames(frames((40, 50)))
    steady = allocated()
    session.infer_frames(frames((80, 100)))
    assert allocated() == steady + 1, "a table for the new size, and other memory in place of the smaller"
    session.infer_frames(frames((10, 10)))
    assert allocated() == steady + 2
    before = device.done("memory"), device.done("pinned")
    for sizes in ([(80, 100)] * 4, [(10, 10)], [(40, 50), (80, 100)]) * 20:
        pictures = frames(*sizes)
        np.testing.assert_allclose(session.infer_frames(pictures).logits, on_cpu(pictures), atol=STEP)
    assert (device.done("memory"), device.done("pinned")) == before
    assert device.done("compile") == 1


def test_any_number_of_sizes(ready: Ready) -> None:
    session = ready()
    sizes = [(height, 7 + height % 5) for height in range(2, 202)]
    for size in sizes + sizes[::-1]:
        pictures = frames(size, size)
        np.testing.assert_allclose(session.infer_frames(pictures).logits, on_cpu(pictures), atol=STEP)


def test_frames_and_batches_take_turns(ready: Ready) -> None:
    session = ready(integrated=True)
    pictures = frames((40, 50), (20, 20))
    batch = np.stack([Preprocessor(SPEC, TARGET)(picture) for picture in pictures])
    for _ in range(3):
        np.testing.assert_allclose(session.infer(batch).logits, expected(batch), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(session.infer_frames(pictures).logits, on_cpu(pictures), atol=STEP)


def test_a_second_spec_takes_the_place_of_the_first(ready: Ready) -> None:
    session = ready()
    pictures = frames((40, 50))
    session.infer_frames(pictures)
    spec = PreprocessConfig(fit="squash", resize=8)
    session.preprocess_on_gpu(spec, TARGET)
    np.testing.assert_allclose(session.infer_frames(pictures).logits, on_cpu(pictures, spec), atol=STEP)


# bad input


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), "uint8 H×W×3, not float32 4×4×3"),
        (np.zeros((4, 4), np.uint8), "not uint8 4×4"),
        (np.zeros((4, 4, 4), np.uint8), "not uint8 4×4×4"),
        (np.zeros((0, 4, 3), np.uint8), "not uint8 0×4×3"),
    ],
    ids=["float", "grey", "alpha", "empty"],
)
def test_what_is_no_frame(ready: Ready, frame: np.ndarray, words: str) -> None:
    session = ready()
    with pytest.raises(DataError, match=words):
        session.infer_frames([*frames((9, 9)), frame])
    pictures = frames((9, 9))
    np.testing.assert_allclose(session.infer_frames(pictures).logits, on_cpu(pictures), atol=STEP)


@pytest.mark.parametrize("count", [0, 5])
def test_too_many_frames_or_none(ready: Ready, count: int) -> None:
    with pytest.raises(DeviceError, match=f"a batch of {count} is not supported: the engine accepts 1 to 4"):
        ready().infer_frames(frames(*[(9, 9)] * count))


def test_frames_need_a_spec_first(open_session: Callable[..., Any]) -> None:
    session = open_session()
    with pytest.raises(DeviceError, match="call preprocess_on_gpu before"):
        session.infer_frames(frames((9, 9)))


def test_a_profile_of_another_size(open_session: Callable[..., Any]) -> None:
    session = open_session()
    with pytest.raises(DeviceError, match="the engine needs 3×8×8, but the profile says 3×8×9"):
        session.preprocess_on_gpu(SPEC, InputConfig(height=8, width=9))


def test_not_enough_memory_for_a_large_frame(ready: Ready) -> None:
    session = ready()
    session.on.limit = 200_000
    with pytest.raises(DeviceError, match="out of GPU memory"):
        session.infer_frames(frames((600, 600)))
    pictures = frames((20, 20))
    np.testing.assert_allclose(session.infer_frames(pictures).logits, on_cpu(pictures), atol=STEP)
