"""On a GPU: the CUDA room, the kernel, and a session whose engine is one small kernel in TensorRT's place."""

from __future__ import annotations

import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.backends.cuda import kernels
from edge.backends.tensorrt import environment
from edge.backends.tensorrt.runner import TrtSession
from edge.config.profiles import InputConfig, PreprocessConfig
from edge.errors import DeviceError
from edge.model.preprocessing import Preprocessor
from tests.support.cuda.parity import case, cases, check, run_on
from tests.support.tensorrt.engine_double import addresses, shape, tensorrt, write_engine

pytestmark = pytest.mark.gpu

SIDE, CLASSES = 64, 10
MIB = 1 << 20
# Takes the place of an engine: logit k of a picture is its k-th value of plane k % 3.
ENGINE = """
struct Job { const float* input; float* output; int plane; int classes; int count; };
extern "C" __global__ void edge_test_engine(const Job job) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= job.count * job.classes) return;
  const int n = i / job.classes, k = i % job.classes;
  job.output[i] = job.input[(n * 3 + k % 3) * static_cast<long long>(job.plane) + k];
}
"""


def expected(batch: np.ndarray) -> np.ndarray:
    planes = batch.reshape(batch.shape[0], 3, -1)
    return np.stack([planes[:, k % 3, k] for k in range(CLASSES)], axis=1)


class OnGpu:
    """What the double's ``execute_async_v3`` does: launch the kernel above on the session's stream."""

    def __init__(self, device: Any) -> None:
        with device.active():
            self._kernels = device.kernels(ENGINE)

    def __call__(self, context: Any) -> None:
        count, _channels, height, width = shape(context)
        at = addresses(context)
        job = struct.pack("=QQiiii", at["images"], at["logits"], height * width, CLASSES, count, 0)
        blocks = -(-count * CLASSES // 64)
        self._kernels.launch("edge_test_engine", job, grid=(blocks, 1, 1), threads=64, shared=0)


@pytest.fixture
def open_on_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: Any) -> Iterator[Callable[..., TrtSession]]:
    """``open_on_gpu(fixed=False)``: a session for batches of 1 to 4, on a device of its own."""
    from edge.backends.cuda.driver import open_device

    opened: weakref.WeakSet[TrtSession] = weakref.WeakSet()
    engines: weakref.WeakValueDictionary[int, OnGpu] = weakref.WeakValueDictionary()
    module = tensorrt("10.3.0", None)
    module.world.launch = lambda context, stream: engines[stream](context)
    monkeypatch.setitem(sys.modules, "tensorrt", module)

    def make(*, fixed: bool = False) -> TrtSession:
        device = open_device()
        engines[device.stream] = engine = OnGpu(device)
        size = 4 if fixed else -1
        path = write_engine(
            tmp_path / "an.engine",
            inputs={"images": ["FLOAT", [size, 3, SIDE, SIDE]]},
            outputs={"logits": ["FLOAT", [size, CLASSES]]},
        )
        session = TrtSession(path, environment.load(), precision="int8", device=device)
        session.engine = engine  # type: ignore[attr-defined]
        opened.add(session)
        return session

    yield make
    for session in list(opened):
        session.close()


def batch_of(count: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, SIDE, SIDE)).astype(np.float32)


# the room


def test_copies_there_and_back(gpu: Any) -> None:
    with gpu.active():
        host, back, memory = gpu.pinned(4000), gpu.pinned(4000), gpu.memory(4000)
        assert not host.array.any()
        host.array[:] = np.arange(4000) % 251
        gpu.upload(memory.address, host.array)
        gpu.download(back.array, memory.address)
        gpu.synchronize()
        np.testing.assert_array_equal(back.array, host.array)
        for item in (host, back, memory, memory):
            item.free()


def test_too_much_memory_is_said_and_survived(gpu: Any) -> None:
    with gpu.active():
        for allocate in (gpu.memory, gpu.pinned):
            with pytest.raises(DeviceError, match=r"out of GPU memory \(1073741824 MiB requested\)") as caught:
                allocate(1 << 50)
            assert "close other programs" in (caught.value.hint or "")
        memory = gpu.memory(100)
        gpu.synchronize()
        memory.free()


def test_what_the_device_is(gpu: Any) -> None:
    assert gpu.name
    assert float(gpu.sm) >= 5.3
    assert isinstance(gpu.integrated, bool)
    with gpu.active():
        assert gpu.free_bytes() > 0


def test_a_graph_repeats_what_was_captured(gpu: Any) -> None:
    with gpu.active():
        host, back, memory = gpu.pinned(100), gpu.pinned(100), gpu.memory(100)

        def there_and_back() -> None:
            gpu.upload(memory.address, host.array)
            gpu.download(back.array, memory.address)

        graph = gpu.capture(there_and_back)
        gpu.synchronize()
        assert not back.array.any(), "capturing is not running"
        for value in (3, 5):
            host.array[:] = value
            graph.launch()
            gpu.synchronize()
            assert (back.array == value).all()
        graph.free()
        graph.free()
        with pytest.raises(DeviceError, match="was freed"):
            graph.launch()
        for item in (host, back, memory):
            item.free()


def test_what_cannot_be_captured_leaves_the_stream_as_it_was(gpu: Any) -> None:
    with gpu.active():
        host, memory = gpu.pinned(100), gpu.memory(100)
        with pytest.raises(DeviceError):
            gpu.capture(gpu.synchronize)
        with pytest.raises(KeyboardInterrupt):
            gpu.capture(_interrupt)
        gpu.upload(memory.address, host.array)
        gpu.synchronize()
        graph = gpu.capture(lambda: gpu.upload(memory.address, host.array))
        graph.launch()
        gpu.synchronize()
        for item in (graph, host, memory):
            item.free()


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_another_thread_may_allocate_during_a_capture(gpu: Any) -> None:
    found: list[Any] = []

    def allocate() -> None:
        try:
            with gpu.active():
                gpu.memory(1000).free()
        except DeviceError as exc:
            found.append(exc)

    with gpu.active():
        host, memory = gpu.pinned(100), gpu.memory(100)

        def work() -> None:
            gpu.upload(memory.address, host.array)
            thread = threading.Thread(target=allocate)
            thread.start()
            thread.join()

        graph = gpu.capture(work)
        assert found == []
        graph.launch()
        gpu.synchronize()
        for item in (graph, host, memory):
            item.free()


# Takes half a second, on the stream that everybody uses who names none.
SPIN = """
extern "C" __global__ void edge_test_spin(const long long cycles) {
  const long long start = clock64();
  while (clock64() - start < cycles) {}
}
"""


def test_work_of_another_library_does_not_hold_ours_up(gpu: Any) -> None:
    import pycuda.compiler
    import pycuda.driver

    with gpu.active():
        module = pycuda.driver.module_from_buffer(pycuda.compiler.compile(SPIN, no_extern_c=True))
        spin, done = module.get_function("edge_test_spin"), pycuda.driver.Event()
        host, back, memory = gpu.pinned(100), gpu.pinned(100), gpu.memory(100)
        host.array[:] = 7
        spin(np.int64(1_000_000_000), block=(1, 1, 1), grid=(1, 1))
        done.record()
        gpu.upload(memory.address, host.array)
        gpu.download(back.array, memory.address)
        gpu.synchronize()
        assert not done.query(), "our copies waited for the default stream"
        assert (back.array == 7).all()
        done.synchronize()
        for item in (host, back, memory):
            item.free()


def test_a_kernel_beside_runs_after_the_copy_before_it(gpu: Any) -> None:
    """The copy takes milliseconds, and the kernel reads its end."""
    size, count = 256 * MIB, 4 * CLASSES
    with gpu.active():
        kernel = gpu.kernels(ENGINE)
        host, back = gpu.pinned(size), gpu.pinned(count)
        memory, logits = gpu.memory(size), gpu.memory(count)
        gpu.upload(memory.address, host.array)
        gpu.synchronize()
        host.array.view(np.float32)[:] = 3.0
        job = struct.pack("=QQiiii", memory.address + size - 3 * 4 * CLASSES, logits.address, CLASSES, CLASSES, 1, 0)
        # The first launch loads the kernel, which takes longer than the copy.
        kernel.launch("edge_test_engine", job, grid=(1, 1, 1), threads=64, shared=0)
        gpu.synchronize()
        with gpu.beside():
            gpu.upload(memory.address, host.array)
            kernel.launch("edge_test_engine", job, grid=(1, 1, 1), threads=64, shared=0)
            gpu.download(back.array, logits.address)
        gpu.synchronize()
        np.testing.assert_array_equal(back.array.view(np.float32), np.full(CLASSES, 3.0, np.float32))
        for item in (host, back, memory, logits):
            item.free()


def test_a_kernel_that_does_not_compile(gpu: Any) -> None:
    with gpu.active():
        with pytest.raises(DeviceError, match=r"nvcc cannot compile the kernel: .*error"):
            gpu.kernels("this is not CUDA;")
        module = gpu.kernels(ENGINE)
        with pytest.raises(DeviceError):
            module.launch("no_such_kernel", b"", grid=(1, 1, 1), threads=1, shared=0)


PROCESS = """
import struct, sys
from edge.backends.cuda import kernels
from edge.backends.cuda.driver import open_device
from edge.errors import DeviceError
device = open_device()
with device.active():
    memory, pinned = device.memory(1000), device.pinned(1000, mapped=True)
    graph = device.capture(lambda: device.upload(memory.address, pinned.array))
    graph.launch()
    {work}
print("done")
"""


@pytest.mark.parametrize(
    "work",
    [
        "device.synchronize()",
        "raise KeyboardInterrupt",
        "sys.exit(0)",
        "device.kernels(kernels.source())",
    ],
    ids=["not closed", "interrupted", "exited", "module"],
)
def test_a_process_ends_in_peace_with_everything_open(gpu: Any, work: str) -> None:
    """PyCUDA aborts a process that ends with a context on its stack."""
    command = [sys.executable, "-c", PROCESS.format(work=work)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert "PyCUDA ERROR" not in done.stderr
    assert done.returncode in ((0,) if "raise" not in work else (1, 130, -2)), done.stderr


NOWHERE = f"""
    module = device.kernels({ENGINE!r})
    job = struct.pack("=QQiiii", 64, 64, 1, 1, 1, 0)
    module.launch("edge_test_engine", job, grid=(1, 1, 1), threads=32, shared=0)
    try:
        device.synchronize()
    except DeviceError as exc:
        print("said:", exc)
"""


def test_a_kernel_that_reads_nowhere_is_an_error_and_no_abort(gpu: Any) -> None:
    command = [sys.executable, "-c", PROCESS.format(work=NOWHERE.strip())]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert "said:" in done.stdout, done.stdout + done.stderr
    assert "PyCUDA ERROR" not in done.stderr


# the kernel


@pytest.mark.parametrize("seed", range(10, 14))
def test_random_pictures(gpu: Any, seed: int) -> None:
    with gpu.active():
        module = gpu.kernels(kernels.source())
        for item in cases(seed, 150):
            check(item, run_on(gpu, module, item))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_camera_pictures(gpu: Any, interpolation: str) -> None:
    rng = np.random.default_rng(1)
    with gpu.active():
        module = gpu.kernels(kernels.source())
        for size in ((720, 1280), (1080, 1920), (480, 640), (2160, 3840)):
            for fit in ("crop", "letterbox", "squash"):
                item = case(rng, size=size, target=(224, 224), fit=fit, interpolation=interpolation, noise=False)
                check(item, run_on(gpu, module, item))


def test_frames_in_mapped_memory_are_read_in_place(gpu: Any) -> None:
    item = case(np.random.default_rng(2), size=(60, 80), target=(40, 40), fit="squash")
    with gpu.active():
        module = gpu.kernels(kernels.source())
        host, target, back = gpu.pinned(item.memory.size, mapped=True), gpu.memory(item.output_bytes), None
        table = gpu.pinned(item.plan.table.nbytes, mapped=True)
        host.array[:] = item.memory
        table.array[:] = item.plan.table
        job = item.job(address=host.address, table=table.address, target=target.address)
        grid = item.plan.grid(len(item.pictures))
        module.launch(item.kernel, job, grid=grid, threads=kernels.THREADS, shared=item.plan.tile.shared)
        back = gpu.pinned(item.output_bytes)
        gpu.download(back.array, target.address)
        gpu.synchronize()
        check(item, back.array.view(item.dtype).reshape(item.output_shape).copy())
        for each in (host, table, target, back):
            each.free()


# a session


@pytest.mark.parametrize("fixed", [False, True], ids=["dynamic", "fixed"])
def test_a_session_runs_batches(open_on_gpu: Callable[..., TrtSession], fixed: bool) -> None:
    session = open_on_gpu(fixed=fixed)
    for number, count in enumerate((1, 4, 4, 4, 2, 2, 2, 3)):
        given = batch_of(count, seed=number)
        result = session.infer(given)
        np.testing.assert_array_equal(result.logits, expected(given))
        assert result.infer_ms > 0
        assert result.device_to_host_ms > 0
        assert result.host_to_device_ms is None or result.host_to_device_ms > 0
    assert session.graph_note is None


@pytest.mark.parametrize("on_device", [False, True], ids=["batches", "frames"])
def test_two_batches_in_flight_do_not_mix(open_on_gpu: Callable[..., TrtSession], on_device: bool) -> None:
    session = open_on_gpu()
    spec, target = PreprocessConfig(resize=72), InputConfig(height=SIDE, width=SIDE)
    session.preprocess_on_gpu(spec, target)
    preprocess, rng = Preprocessor(spec, target), np.random.default_rng(11)
    flying: list[tuple[Any, Any]] = []
    for number in range(60):
        frames = [rng.integers(0, 256, (240, 320, 3), np.uint8) for _ in range(number // 7 % 4 + 1)]
        batch = np.stack([preprocess(frame) for frame in frames])
        flying.append((session.submit_frames(frames) if on_device else session.submit(batch), expected(batch)))
        if len(flying) == session.in_flight:
            submitted, wanted = flying.pop(0)
            np.testing.assert_allclose(submitted.wait().logits, wanted, atol=1e-4)
    for submitted, wanted in flying:
        np.testing.assert_allclose(submitted.wait().logits, wanted, atol=1e-4)


def test_a_session_runs_frames(open_on_gpu: Callable[..., TrtSession]) -> None:
    session = open_on_gpu()
    spec, target = PreprocessConfig(resize=72), InputConfig(height=SIDE, width=SIDE)
    session.preprocess_on_gpu(spec, target)
    preprocess = Preprocessor(spec, target)
    rng = np.random.default_rng(4)
    for sizes in ([(240, 320)], [(240, 320)] * 4, [(480, 640), (100, 90), (100, 90)]) * 3:
        frames = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
        result = session.infer_frames(frames)
        wanted = expected(np.stack([preprocess(frame) for frame in frames]))
        np.testing.assert_allclose(result.logits, wanted, atol=1e-4)
        assert result.preprocess_ms > 0


def test_the_loop_feeds_frames_to_a_session(open_on_gpu: Callable[..., TrtSession], tmp_path: Path) -> None:
    """Pictures from files, decoded in threads, preprocessed and run on the device, labelled in order."""
    import cv2

    from edge.artifacts.run_record import Subject
    from edge.media.picture_sources import open_pictures
    from edge.media.streams import PictureStream
    from edge.model import preprocessing
    from edge.runtime import pipeline, run_loop
    from edge.telemetry.sampler import Telemetry
    from edge.telemetry.sources import NoSource

    rng, spec, target = np.random.default_rng(8), PreprocessConfig(resize=72), InputConfig(height=SIDE, width=SIDE)
    preprocessor, wanted = Preprocessor(spec, target), []
    for number in range(12):
        picture = rng.integers(0, 256, (90 + number % 3, 120, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"{number:02}.png"), picture)
        wanted.append(int(expected(preprocessor(picture)[None])[0].argmax()))
    session = open_on_gpu()
    session.preprocess_on_gpu(spec, target)
    record = run_loop.run(
        PictureStream(open_pictures(tmp_path)),
        sessions=[session],
        preprocessor=None,
        names=[f"class {index}" for index in range(CLASSES)],
        subject=Subject(
            profile="p", profile_digest="0", model="m", model_sha256="0", engine_sha256="0", table_sha256=None,
            preprocess_digest=preprocessing.digest(spec, target), backend={}, precision="int8", layers={}, device={},
            source=str(tmp_path),
        ),
        settings=run_loop.RunSettings(topk=1, warmup=2, width=pipeline.Width(prepare=3, batch=2)),
        telemetry=Telemetry(None, NoSource(())),
    )  # fmt: skip
    assert [result.seq for result in record.results] == list(range(12))
    assert sum(result.guesses[0].index == best for result, best in zip(record.results, wanted, strict=True)) >= 10
    assert record.latency["preprocess"].n == record.latency["infer"].n == 12


def test_a_session_works_from_another_thread(open_on_gpu: Callable[..., TrtSession]) -> None:
    session = open_on_gpu()
    given = batch_of(2)
    session.infer(given)
    seen: list[Any] = []

    def work() -> None:
        seen.extend(session.infer(given).logits for _ in range(3))
        session.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(seen) == 3
    for logits in seen:
        np.testing.assert_array_equal(logits, expected(given))


def test_two_sessions_side_by_side(open_on_gpu: Callable[..., TrtSession]) -> None:
    first, second = open_on_gpu(), open_on_gpu(fixed=True)
    for number in range(4):
        given = batch_of(3, seed=number)
        np.testing.assert_array_equal(first.infer(given).logits, expected(given))
        np.testing.assert_array_equal(second.infer(given).logits, expected(given))
    first.close()
    np.testing.assert_array_equal(second.infer(given).logits, expected(given))


@pytest.mark.slow
def test_ten_thousand_inferences_leak_nothing(open_on_gpu: Callable[..., TrtSession], gpu: Any) -> None:
    session = open_on_gpu()
    session.preprocess_on_gpu(PreprocessConfig(resize=72), InputConfig(height=SIDE, width=SIDE))
    frame = np.random.default_rng(5).integers(0, 256, (120, 160, 3), np.uint8)
    batches = [batch_of(count) for count in (1, 2, 3, 4)]

    def work(rounds: int) -> None:
        # Sizes change now and then, so that graphs come and go.
        for number in range(rounds):
            session.infer(batches[number // 25 % 4])
            session.infer_frames([frame] * (number // 25 % 4 + 1))

    work(500)
    with gpu.active():
        free = gpu.free_bytes()
    resident = _resident()
    work(5000)
    with gpu.active():
        assert abs(gpu.free_bytes() - free) <= 2 * MIB
    assert _resident() - resident <= 8 * MIB


def _resident() -> int:
    """Resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.slow
def test_sessions_opened_and_closed_leak_nothing(open_on_gpu: Callable[..., TrtSession], gpu: Any) -> None:
    def work(rounds: int) -> None:
        for _ in range(rounds):
            session = open_on_gpu()
            for _ in range(3):
                session.infer(batch_of(2))
            session.close()

    work(20)
    with gpu.active():
        free = gpu.free_bytes()
    resident = _resident()
    work(200)
    with gpu.active():
        assert abs(gpu.free_bytes() - free) <= 2 * MIB
    assert _resident() - resident <= 16 * MIB
