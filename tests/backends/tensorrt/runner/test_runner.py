"""The TensorRT session: batches, buffers, times, graphs, errors, closing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.backends.tensorrt.engine_compatibility import check_gpu
from edge.config.profiles import InputConfig, PreprocessConfig
from edge.errors import ArtifactError, DeviceError, StoreError
from tests.support.cuda.host_device import DOWNLOAD_MS, RUN_MS, UPLOAD_MS, HostDevice
from tests.support.tensorrt.engine_double import CLASSES, expected

Open = Callable[..., Any]

FIXED = {"inputs": {"images": ["FLOAT", [4, 3, 8, 8]]}, "outputs": {"logits": ["FLOAT", [4, CLASSES]]}}
HALF = {"inputs": {"images": ["HALF", [-1, 3, 8, 8]]}, "outputs": {"logits": ["HALF", [-1, CLASSES]]}}


def batch_of(count: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, 8, 8)).astype(np.float32)


# results and times


def test_every_binding_runs_a_batch(open_session: Open, version: str) -> None:
    session = open_session(version=version)
    for count in (1, 3, 4, 2):
        given = batch_of(count, seed=count)
        result = session.infer(given)
        assert result.logits.dtype == np.float32
        np.testing.assert_allclose(result.logits, expected(given), rtol=1e-5, atol=1e-6)


def test_each_stage_is_timed_by_itself(open_session: Open) -> None:
    result = open_session().infer(batch_of(2))
    assert result.host_to_device_ms == UPLOAD_MS
    assert result.infer_ms == RUN_MS
    assert result.device_to_host_ms == DOWNLOAD_MS


def test_results_are_the_callers_own(open_session: Open) -> None:
    session = open_session()
    first = session.infer(batch_of(1, seed=1)).logits
    kept = first.copy()
    session.infer(batch_of(1, seed=2))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    "layout",
    [
        np.asfortranarray,
        lambda array: np.repeat(array, 2, axis=3)[..., ::2],
        lambda array: array.astype(np.float64),
    ],
    ids=["other order", "strided", "float64"],
)
def test_a_batch_may_lie_in_memory_as_it_likes(open_session: Open, layout: Callable[..., Any]) -> None:
    given = batch_of(3)
    np.testing.assert_allclose(open_session().infer(layout(given)).logits, expected(given), rtol=1e-5, atol=1e-6)


def test_a_float16_engine(open_session: Open) -> None:
    given = batch_of(3)
    session = open_session(**HALF)
    result = session.infer(given)
    assert result.logits.dtype == np.float32
    np.testing.assert_allclose(result.logits, expected(given.astype(np.float16)), rtol=2e-3, atol=2e-3)


def test_logits_are_the_first_float_output_flattened(open_session: Open) -> None:
    outputs = {"best": ["INT32", [-1]], "scores": ["FLOAT", [-1, CLASSES, 1, 1]], "copy": ["FLOAT", [-1, CLASSES]]}
    given = batch_of(2)
    result = open_session(outputs=outputs).infer(given)
    assert result.logits.shape == (2, CLASSES)
    np.testing.assert_allclose(result.logits, expected(given), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("smallest", [1, 4])
def test_height_and_width_that_the_profile_settles(open_session: Open, smallest: int) -> None:
    batch = -1 if smallest == 1 else 4
    shapes = [[size, 3, 8, 8] for size in (smallest, 4, 4)]
    session = open_session(inputs={"images": ["FLOAT", [batch, 3, -1, -1]]}, profile=shapes)
    for count in (1, 4, 2):
        given = batch_of(count, seed=count)
        np.testing.assert_allclose(session.infer(given).logits, expected(given), rtol=1e-5, atol=1e-6)
    assert set(session.world.executed) == ({1, 2, 4} if smallest == 1 else {4})


# batches


def test_a_fixed_batch_is_filled_up(open_session: Open) -> None:
    session = open_session(**FIXED)
    for count in (1, 3, 4):
        given = batch_of(count, seed=count)
        result = session.infer(given)
        assert result.logits.shape == (count, CLASSES)
        np.testing.assert_allclose(result.logits, expected(given), rtol=1e-5, atol=1e-6)
    assert set(session.world.executed) == {4}


def test_a_small_batch_is_filled_up_to_the_engines_smallest(open_session: Open) -> None:
    session = open_session(profile=[2, 2, 4], graphs=False)
    given = batch_of(1)
    np.testing.assert_allclose(session.infer(given).logits, expected(given), rtol=1e-5, atol=1e-6)
    session.infer(batch_of(3))
    assert session.world.executed == [2, 3]


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((5, 3, 8, 8), "a batch of 5 is not supported: the engine accepts 1 to 4"),
        ((0, 3, 8, 8), "a batch of 0 is not supported: the engine accepts 1 to 4"),
        ((1, 3, 9, 8), r"needs N×3×8×8, not 1×3×9×8"),
        ((3, 8, 8), r"needs N×3×8×8, not 3×8×8"),
    ],
    ids=["too many", "none", "another size", "no batch axis"],
)
def test_a_batch_that_does_not_fit(open_session: Open, shape: tuple[int, ...], words: str) -> None:
    session = open_session()
    with pytest.raises(DeviceError, match=words):
        session.infer(np.zeros(shape, np.float32))
    given = batch_of(1)
    np.testing.assert_allclose(session.infer(given).logits, expected(given), rtol=1e-5, atol=1e-6)


# memory


@pytest.mark.parametrize("integrated", [False, True], ids=["discrete", "integrated"])
@pytest.mark.parametrize("engine", [{}, FIXED], ids=["dynamic", "fixed"])
def test_nothing_is_allocated_after_opening(open_session: Open, integrated: bool, engine: dict[str, Any]) -> None:
    device = HostDevice(integrated=integrated)
    session = open_session(device, **engine)
    before = (device.done("pinned"), device.done("memory"), len(device.live))
    for number in range(2000):
        session.infer(batch_of(number % 4 + 1))
    assert (device.done("pinned"), device.done("memory")) == before[:2]
    # A graph per batch size, and all of them kept.
    graphs = device.done("capture")
    assert graphs == (1 if engine else 4)
    assert device.done("free graph") == 0
    assert len(device.live) == before[2] + graphs


def test_where_memory_is_shared_nothing_is_uploaded(open_session: Open) -> None:
    device = HostDevice(integrated=True)
    session = open_session(device)
    given = batch_of(3)
    result = session.infer(given)
    np.testing.assert_allclose(result.logits, expected(given), rtol=1e-5, atol=1e-6)
    assert result.host_to_device_ms is None
    assert device.done("upload") == 0
    assert device.done("memory") == 1  # the output's


# graphs


def test_a_graph_is_captured_at_the_second_run_of_a_size(open_session: Open) -> None:
    session = open_session()
    device = session.on
    for number in range(5):
        given = batch_of(2, seed=number)
        np.testing.assert_allclose(session.infer(given).logits, expected(given), rtol=1e-5, atol=1e-6)
    assert (device.done("capture"), device.done("graph")) == (1, 4)
    assert session.world.executed == [2, 2]  # once to settle, once into the graph
    # Another size has a context and a graph of its own; the first ones are kept.
    for size in (3, 3, 2, 3, 2):
        given = batch_of(size, seed=size)
        np.testing.assert_allclose(session.infer(given).logits, expected(given), rtol=1e-5, atol=1e-6)
    assert (device.done("capture"), device.done("free graph")) == (2, 0)
    assert session.world.executed == [2, 2, 3, 3]
    assert session.graph_note is None


def test_of_many_sizes_the_oldest_context_makes_room(open_session: Open) -> None:
    session = open_session(profile=[1, 4, 8])
    for size in (1, 2, 3, 4, 5, 6, 7, 8, 1, 8):
        for seed in range(2):
            given = batch_of(size, seed=seed)
            np.testing.assert_allclose(session.infer(given).logits, expected(given), rtol=1e-5, atol=1e-6)
    # Four contexts are kept, and each has the graph of one address.
    assert session.on.done("capture") - session.on.done("free graph") == 4


def test_no_memory_for_another_context(open_session: Open) -> None:
    session = open_session()
    session.infer(batch_of(2))
    session.world.fails = "context"
    for size in (3, 3, 2, 1):
        given = batch_of(size, seed=size)
        np.testing.assert_allclose(session.infer(given).logits, expected(given), rtol=1e-5, atol=1e-6)


# two batches in flight


def test_the_next_batch_is_submitted_before_the_first_is_waited_for(open_session: Open) -> None:
    session = open_session()
    given = [batch_of(2, seed=1), batch_of(3, seed=2)]
    first, second = (session.submit(batch) for batch in given)
    with pytest.raises(DeviceError, match="2 batches are in flight"):
        session.submit(batch_of(1))
    # Waited for in either order, and in another thread.
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(second.wait()))
    thread.start()
    thread.join()
    np.testing.assert_allclose(found[0].logits, expected(given[1]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(first.wait().logits, expected(given[0]), rtol=1e-5, atol=1e-6)
    assert session.submit(batch_of(1)).wait().infer_ms == RUN_MS


def test_two_batches_of_one_size_in_flight_do_not_mix(open_session: Open) -> None:
    """One context serves both, and each has an input of its own."""
    session = open_session()
    for seed in range(0, 8, 2):
        given = [batch_of(2, seed=seed + index) for index in range(2)]
        flying = [session.submit(batch) for batch in given]
        for submitted, batch in zip(flying, given, strict=True):
            np.testing.assert_allclose(submitted.wait().logits, expected(batch), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("at", ["upload", "run", "download", "synchronize"])
def test_a_batch_that_fails_gives_its_slot_back(open_session: Open, at: str) -> None:
    session = open_session()
    for _ in range(4):
        session.on.fails_at = at
        with pytest.raises(DeviceError, match=f"told to fail at {at}"):
            session.submit(batch_of(1)).wait()
    session.on.fails_at = None
    given = batch_of(2)
    np.testing.assert_allclose(session.infer(given).logits, expected(given), rtol=1e-5, atol=1e-6)


def test_a_fixed_batch_keeps_its_graph(open_session: Open) -> None:
    session = open_session(**FIXED)
    for count in (4, 1, 3, 2, 4):
        given = batch_of(count, seed=count)
        np.testing.assert_allclose(session.infer(given).logits, expected(given), rtol=1e-5, atol=1e-6)
    assert (session.on.done("capture"), session.on.done("graph")) == (1, 4)


def test_an_engine_that_cannot_be_captured_runs_without(open_session: Open) -> None:
    session = open_session(HostDevice(captures=False))
    for number in range(4):
        given = batch_of(2, seed=number)
        np.testing.assert_allclose(session.infer(given).logits, expected(given), rtol=1e-5, atol=1e-6)
    assert session.on.done("capture") == 1
    assert session.graph_note == "no CUDA graph: the stream cannot be captured"


def test_graphs_can_be_left_out(open_session: Open) -> None:
    session = open_session(graphs=False)
    for _ in range(3):
        session.infer(batch_of(2))
    assert session.on.done("capture") == 0
    assert session.graph_note == "CUDA graphs were not requested"


# closing


def test_closing_gives_everything_back_in_order_and_once(open_session: Open) -> None:
    session = open_session()
    session.infer(batch_of(2))
    session.infer(batch_of(2))
    device = session.on
    start = len(device.diary)
    session.close()
    session.close()
    # TensorRT's objects use the memory, and each other, until they are gone.
    order = ["free graph", "no context", "no engine", "no runtime", "free"]
    seen = list(dict.fromkeys(word for word in device.diary[start:] if word in order))
    assert seen[:4] == order[:4]
    assert set(seen[4:]) == {"free"}
    assert session.world.alive == set()
    assert device.live == []
    assert device.closed == 1


@pytest.mark.parametrize(
    "use",
    [
        lambda s: s.infer(batch_of(1)),
        lambda s: s.infer_frames([np.zeros((9, 9, 3), np.uint8)]),
        lambda s: s.preprocess_on_gpu(PreprocessConfig(), InputConfig()),
    ],
    ids=["infer", "infer_frames", "preprocess_on_gpu"],
)
def test_a_closed_session_says_so(open_session: Open, use: Callable[[Any], Any]) -> None:
    session = open_session()
    session.close()
    with pytest.raises(DeviceError, match="the session is closed"):
        use(session)


# failures


@pytest.mark.parametrize(
    ("fails", "says", "words", "hint"),
    [
        (
            "deserialize",
            ["The engine plan file is not compatible with this version of TensorRT, expecting library version 10.3"],
            "cannot load the engine: The engine plan file is not compatible",
            "edge build",
        ),
        (
            "deserialize",
            ["Cuda Runtime (out of memory)"],
            "cannot load the engine: out of GPU memory",
            "input.batch.max",
        ),
        ("deserialize", [], "TensorRT cannot load the engine", "edge doctor"),
        (
            "deserialize",
            ["Error Code 1: Serialization (Serialization assertion plan.header.size == blobSize failed. In parsePlan)"],
            "cannot load the engine: the file is truncated or was changed",
            "edge build",
        ),
        (
            "deserialize",
            ["Error Code 3: API Usage Error (Cannot deserialize with an empty memory buffer. In deserialize)"],
            "cannot load the engine: the file is truncated or was changed",
            "edge build",
        ),
        ("runtime", ["CUDA initialization failure with error: 35"], "CUDA initialization failure with error: 35", ""),
        (
            # libnvinfer_lean 11.4.0: the word "version" says nothing of the engine's.
            "runtime",
            ["Cuda Runtime (In f at /_src/c.cpp:250 (cudaError 35: CUDA driver version is insufficient for CUDA))"],
            "the NVIDIA driver is missing, or older than this TensorRT needs",
            "edge doctor",
        ),
        ("context", ["OutOfMemory (no further information)"], "no execution context: out of GPU memory", "batch.max"),
        ("context", [], "TensorRT returned no execution context", "edge doctor"),
        ("shape", [], "rejected a batch of 4", "edge doctor"),
        ("address", [], "rejected the buffer of 'images'", "edge doctor"),
    ],
    ids=[
        "foreign",
        "load memory",
        "load",
        "truncated",
        "empty",
        "null runtime",
        "old driver",
        "context memory",
        "context",
        "shape",
        "address",
    ],
)
def test_an_engine_that_does_not_open(open_session: Open, fails: str, says: list[str], words: str, hint: str) -> None:
    device = HostDevice()

    def prepare(world: Any) -> None:
        world.fails, world.says = fails, says

    with pytest.raises(DeviceError, match=words) as caught:
        open_session(device, prepare=prepare)
    assert hint in (caught.value.hint or "")
    assert (caught.value.where or "").endswith("an.engine")
    assert caught.value.exit_code == 8
    assert device.live == []
    assert device.closed == 1


def test_not_enough_memory_for_the_buffers(open_session: Open) -> None:
    device = HostDevice(limit=1000)
    with pytest.raises(DeviceError, match="out of GPU memory"):
        open_session(device)
    assert device.live == []
    assert device.closed == 1


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "plain"])
def test_a_run_that_fails_says_what_tensorrt_said(open_session: Open, graphs: bool) -> None:
    session = open_session(graphs=graphs)
    session.world.fails, session.world.says = (
        "execute",
        ["IExecutionContext::enqueueV3: Error Code 1: Myelin (no luck)"],
    )
    for _ in range(2):
        with pytest.raises(DeviceError, match=r"Myelin \(no luck\)"):
            session.infer(batch_of(1))
    # An earlier failure is not quoted for a later one.
    session.world.says = ["Error Code 2: OutOfMemory"]
    with pytest.raises(DeviceError, match="out of GPU memory"):
        session.infer(batch_of(1))
    session.world.fails = None
    given = batch_of(2)
    np.testing.assert_allclose(session.infer(given).logits, expected(given), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("at", ["upload", "run", "download", "synchronize"])
def test_a_device_that_fails_in_a_run(open_session: Open, at: str) -> None:
    session = open_session()
    session.on.fails_at = at
    with pytest.raises(DeviceError, match=f"told to fail at {at}"):
        session.infer(batch_of(1))
    session.close()
    assert session.on.live == []


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ({"inputs": {"a": ["FLOAT", [-1, 3, 8, 8]], "b": ["FLOAT", [-1, 3, 8, 8]]}}, r"2 inputs \(a, b\)"),
        ({"inputs": {"images": ["INT32", [-1, 3, 8, 8]]}}, "'images' is INT32 1-4×3×8×8"),
        (
            {"inputs": {"images": ["FLOAT", [-1, 3, -1, -1]]}, "profile": [[1, 3, 8, 8], [1, 3, 8, 8], [4, 3, 8, 16]]},
            "'images' is FLOAT 1-4×3×8×8-16; edge requires a float input N×3×H×W of one size",
        ),
        ({"inputs": {"images": ["FLOAT", [3, 8, 8]]}}, "'images' is FLOAT 3×8×8"),
        ({"outputs": {"best": ["INT32", [-1]]}}, "no float output"),
        ({"outputs": {"logits": ["FLOAT", [-1, -1]]}}, "'logits' .FLOAT. depends on the data"),
        ({"outputs": {"logits": ["FLOAT", [CLASSES]]}}, "'logits' has no batch axis: 5"),
    ],
    ids=["two inputs", "integers", "any size", "no batch", "no logits", "data-dependent", "output without batch"],
)
def test_an_engine_that_is_no_classifier(open_session: Open, engine: dict[str, Any], words: str) -> None:
    device = HostDevice()
    with pytest.raises(DeviceError, match=words):
        open_session(device, **engine)
    assert device.live == []


@pytest.mark.parametrize("kind", ["10.3.0", "rtx"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is truncated or was changed"),
        (b"4byt", "the file is truncated or was changed"),
        (b"not an engine, by far", "the file is not a TensorRT engine"),
        (b"double of an engine\n{", "the file is truncated or was changed"),
    ],
    ids=["empty", "short", "other", "cut"],
)
def test_a_file_that_is_no_engine(open_session: Open, tmp_path: Path, content: bytes, words: str, kind: str) -> None:
    path = tmp_path / "broken.engine"
    path.write_bytes(content)
    with pytest.raises(DeviceError, match=f"cannot load the engine.*({words})") as caught:
        open_session(path=path, version=kind)
    assert "another" not in str(caught.value)
    assert "edge build makes it again" in (caught.value.hint or "")


def test_a_missing_file(open_session: Open, tmp_path: Path) -> None:
    device = HostDevice()
    with pytest.raises(StoreError, match="cannot read"):
        open_session(device, path=tmp_path / "none.engine")
    assert device.live == []


class Interrupting(str):
    """A log line during which Ctrl-C is pressed."""

    __slots__ = ()

    def strip(self, *_: Any) -> str:
        raise KeyboardInterrupt


@pytest.mark.parametrize("fails", ["execute", "shape"])
def test_a_signal_inside_of_tensorrts_log_comes_out(open_session: Open, fails: str) -> None:
    """Python runs signal handlers in the callback, and TensorRT would swallow what they raise."""
    session = open_session()
    session.world.fails, session.world.says = fails, [Interrupting("something")]
    with pytest.raises(KeyboardInterrupt):
        session.infer(batch_of(1))


# an engine that does not fit is refused before it is loaded


def test_rtx_is_asked_by_the_first_bytes(open_session: Open) -> None:
    def prepare(world: Any) -> None:
        world.fails = "validity"

    with pytest.raises(DeviceError, match=r"built with TensorRT-RTX 1\.6\.0, but 1\.7\.1 is installed"):
        open_session(version="rtx", prepare=prepare)


@pytest.mark.parametrize(
    ("gpus", "fits"),
    [(None, True), ("all that it knows", True), ("SM86+SM89", False), ("SM70+SM00", True), ("AMPERE_PLUS", False)],
)
def test_the_gpus_that_an_engine_is_for(gpus: str | None, fits: bool, tmp_path: Path) -> None:
    device = HostDevice()
    if fits:
        check_gpu(gpus, sm=device.sm, name=device.name, engine=tmp_path / "an.engine")
        return
    with pytest.raises(ArtifactError, match="built for other GPUs") as caught:
        check_gpu(gpus, sm=device.sm, name=device.name, engine=tmp_path / "an.engine")
    assert (caught.value.exit_code, f"gpus: {gpus} -> SM00, host memory" in caught.value.what) == (7, True)
    assert caught.value.hint


@pytest.mark.parametrize(("sm", "fits"), [("7.5", False), ("8.0", True), ("8.7", True), ("10.1", True)])
def test_ampere_and_later(sm: str, fits: bool, tmp_path: Path) -> None:
    if fits:
        check_gpu("AMPERE_PLUS", sm=sm, name="a GPU", engine=tmp_path / "an.engine")
        return
    with pytest.raises(ArtifactError, match="gpus: AMPERE_PLUS -> SM75"):
        check_gpu("AMPERE_PLUS", sm=sm, name="a GPU", engine=tmp_path / "an.engine")


def test_a_version_compatible_engine_may_bring_its_runtime(open_session: Open) -> None:
    session = open_session(host_code=True)
    assert session._runtime.engine_host_code_allowed is True
    assert open_session()._runtime.engine_host_code_allowed is None


# warnings


def test_warnings_of_opening_and_running_are_kept_and_counted(open_session: Open) -> None:
    def prepare(world: Any) -> None:
        world.warns = {"deserialize": "Using an engine plan file across different models of devices is not recommended"}

    session = open_session(prepare=prepare, graphs=False)
    session.world.warns["execute"] = "The current device only supports 4 multiprocessors but the engine file requires 8"
    received: list[Any] = []
    session.on_message(received.append)
    for _ in range(5):
        session.infer(batch_of(1))
    opened, ran = session.messages()
    assert (opened.count, ran.count) == (1, 5)
    assert opened.hint is not None
    assert ran.hint is not None
    assert received == [opened, session.messages()[1].__class__(severity="warning", text=ran.text, hint=ran.hint)]


def test_a_log_that_throws_is_raised_and_not_lost(open_session: Open) -> None:
    session = open_session(graphs=False)
    session.world.warns = {"execute": "a warning"}

    def broken(_message: Any) -> None:
        raise OSError("the terminal is gone")

    session.on_message(broken)
    with pytest.raises(OSError, match="the terminal is gone"):
        session.infer(batch_of(1))


def test_two_sessions_in_two_threads_keep_their_own_warnings(open_session: Open) -> None:
    """TensorRT has one logger per process: a line belongs to the session whose thread it comes in."""
    device = HostDevice()
    first = open_session(device, graphs=False)
    inside, go = threading.Event(), threading.Event()
    first.world.warns = {"execute": "from the first"}
    first.on_message(lambda _message: (inside.set(), go.wait(5)))
    thread = threading.Thread(target=first.infer, args=(batch_of(1),))
    thread.start()
    assert inside.wait(5)
    from edge.backends.tensorrt import log_watch

    watch = log_watch.BuildWatch()
    with log_watch.watching(first.world.module, watch) as logger:
        logger.log(first.world.module.ILogger.WARNING, "from the second")
    go.set()
    thread.join()
    assert [line.text for line in watch.warnings] == ["from the second"]
    assert [item.text for item in first.messages()] == ["TensorRT: from the first"]


# layer times


def test_the_profiler_times_each_layer_of_each_run(open_session: Open, version: str) -> None:
    session = open_session(version=version)
    found = session.time_layers(batch_of(2), runs=3, warmup=1)
    assert found.layers == {"/conv": [0.75] * 3, "reformat": [0.125] * 3}
    assert len(found.whole_ms) == 3
    assert found.profiler.startswith("IProfiler of TensorRT")


def test_a_profiler_that_reports_nothing(open_session: Open) -> None:
    session = open_session()
    session.world.layers = []
    with pytest.raises(DeviceError, match="reported no layer"):
        session.time_layers(batch_of(1), runs=2, warmup=0)


# several sessions on one engine


@pytest.mark.parametrize("first_ends", [True, False], ids=["first ends first", "last ends first"])
def test_another_session_runs_the_same_engine(open_session: Open, first_ends: bool) -> None:
    session = open_session()
    device = session.on
    other = session.another(device=device)
    for seed in range(3):
        for one, count in ((session, 2), (other, 3)):
            given = batch_of(count, seed=seed)
            np.testing.assert_allclose(one.infer(given).logits, expected(given), rtol=1e-5, atol=1e-6)
    assert session.world.loaded == 1
    ended, left = (session, other) if first_ends else (other, session)
    ended.close()
    assert "engine" in session.world.alive
    given = batch_of(1)
    np.testing.assert_allclose(left.infer(given).logits, expected(given), rtol=1e-5, atol=1e-6)
    left.close()
    assert session.world.alive == set()
    assert device.live == []


def test_no_memory_for_another_session(open_session: Open) -> None:
    session = open_session()
    with pytest.raises(DeviceError, match="out of GPU memory"):
        session.another(device=HostDevice(limit=100))
    given = batch_of(2)
    np.testing.assert_allclose(session.infer(given).logits, expected(given), rtol=1e-5, atol=1e-6)
    session.close()
    with pytest.raises(DeviceError, match="the session is closed"):
        session.another()
