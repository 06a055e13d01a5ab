"""What every test may use: a tiny network, a few pictures, a profile that fits both, and a clean environment.

Everything is made here from fixed seeds; nothing is downloaded, and nothing outside of ``tmp_path`` is written.
"""

from __future__ import annotations

import compileall
import functools
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import yaml

# A busy machine makes a test slow, not wrong; and the same tests pass or fail for everybody. Since the examples are the
# same in every run, more of them would find nothing new: --hypothesis-profile=search looks for new ones.
hypothesis.settings.register_profile("edge", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.register_profile("search", deadline=None, max_examples=2000)
hypothesis.settings.load_profile("edge")

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
DEPENDENCIES = ("numpy", "opencv-python-headless", "onnx", "onnxruntime", "msgspec", "hypothesis")
CLASSES = 10
SIDE = 32
# Ten times as fast, where PyYAML was built with libyaml.
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
# A file system in memory: on a disk, flushing a file takes 2 to 10 ms, and the tests write thousands of artifacts.
MEMORY = Path("/dev/shm")
MEMORY_FREE = 4 << 30


def pytest_configure(config: pytest.Config) -> None:
    """Choose where temporary files are, compile edge, and restore signals that a shell ignores behind "&"."""
    # Hundreds of tests start edge as a process of its own, which would compile its modules each time. They write none:
    # under a limit of file sizes, Python 3.11 puts truncated ones into place.
    if not hasattr(config, "workerinput"):
        compileall.compile_dir(REPOSITORY / "edge", quiet=2)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    # Doubles stand for TensorRT and CUDA, and their machines have no GPU: only `pytest -m gpu` uses this machine's.
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if "TMPDIR" not in os.environ and _is_roomy(MEMORY):
        os.environ["PYTEST_DEBUG_TEMPROOT"] = str(MEMORY)
        # Of programs that are killed, much stays behind: in a folder of its own, which goes with this run.
        folder = tempfile.mkdtemp(prefix="edge-tests-", dir=MEMORY)
        Path(folder).chmod(0o1777)
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    # Under nohup, commands that tests stop would inherit ignored signals.
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_report_header() -> str:
    """Versions of what the results depend on."""
    return "optional dependencies: " + ", ".join(f"{name} {_version(name)}" for name in DEPENDENCIES)


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No EDGE_* setting reaches a test, relative paths land in ``tmp_path``, and a subprocess finds edge."""
    for name in [name for name in os.environ if name.startswith("EDGE_")]:
        monkeypatch.delenv(name)
    inherited = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), *([inherited] if inherited else [])]))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


@pytest.fixture
def shared_data() -> Path:
    """Folder with ``calib/`` (400 pictures) and ``eval/`` (500 with labels.csv); skips where it is not there."""
    if not (SHARED_DATA / "eval").is_dir():
        pytest.skip("the calibration and evaluation images are not on this machine (../shared/data)")
    return SHARED_DATA


@pytest.fixture
def tiny_model(tmp_path: Path) -> Callable[..., Path]:
    """``tiny_model(path="model.onnx", **variants)`` writes a classifier, returns its path; see :func:`write_model`."""

    def make(path: str | Path = "model.onnx", **variants: Any) -> Path:
        return write_model(tmp_path / path, **variants)

    return make


@pytest.fixture
def pictures() -> Callable[..., list[Path]]:
    """``pictures(folder, n=4, size=(48, 64), seed=0, labels=False)``: small smooth colourful JPEGs, each different.

    Size is height, width. With ``labels`` a ``labels.csv`` next to them gives picture i the class i modulo 10.
    """

    def make(
        folder: str | Path, n: int = 4, size: tuple[int, int] = (48, 64), *, seed: int = 0, labels: bool = False
    ) -> list[Path]:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        made = []
        for index in range(n):
            path = folder / f"{index:03d}.jpg"
            path.write_bytes(_smooth_jpeg(size, seed * 1000 + index))
            made.append(path)
        if labels:
            rows = [f"{path.name},{index % CLASSES}" for index, path in enumerate(made)]
            (folder / "labels.csv").write_text("\n".join(["file,class_index", *rows, ""]))
        return made

    return make


@pytest.fixture
def picture() -> Callable[..., np.ndarray]:
    """``picture((height, width), seed=0)``: one smooth colourful picture, uint8 H×W×3 BGR."""
    return smooth_picture


@pytest.fixture
def tiny_profile() -> Callable[..., Path]:
    """``tiny_profile(folder, name="tiny", **overrides)`` writes ``<name>.yaml`` for the tiny model; returns its path.

    Overrides are merged into the sections (``input={"batch": {"max": 4}}``); ``...`` leaves a key out. The labels file
    is always written, the model where none of its name is there.
    """

    def make(folder: str | Path, name: str = "tiny", **overrides: Any) -> Path:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "labels.txt").write_text("".join(f"class {index}\n" for index in range(CLASSES)))
        content = _merged(
            {
                "family": "host",
                "backend": "onnxruntime",
                "model": "model.onnx",
                "labels": "labels.txt",
                "input": {"height": SIDE, "width": SIDE, "batch": {"min": 1, "opt": 1, "max": 8}},
                "preprocess": {"resize": 40, "mean": [127, 127, 127], "std": [64, 64, 64]},
                "calibration": {"algorithm": "entropy2"},
                # Most tests are about the user's own network; those of recipes say so.
                "quantization": {"recipe": "none"},
                "run": {"warmup": 2, "threads": 1},
            },
            overrides,
        )
        if content.get("model") == "model.onnx" and not (folder / "model.onnx").exists():
            write_model(folder / "model.onnx")
        path = folder / f"{name}.yaml"
        path.write_text(yaml.dump(content, Dumper=DUMPER, sort_keys=False))
        return path

    return make


def smooth_picture(size: tuple[int, int] = (48, 64), *, seed: int = 0) -> np.ndarray:
    """Coarse random colours enlarged: smooth as a photograph is, with a hard edge or two from a rectangle."""
    import cv2

    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3), np.uint8)
    height, width = size
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    smooth[height // 4 : height // 2, width // 3 : width // 2] = rng.integers(0, 256, 3, np.uint8)
    return smooth


@functools.cache
def _smooth_jpeg(size: tuple[int, int], seed: int) -> bytes:
    import cv2

    ok, data = cv2.imencode(".jpg", smooth_picture(size, seed=seed))
    assert ok
    return bytes(data)


def write_model(
    path: Path,
    *,
    seed: int = 0,
    opset: int = 17,
    batch: int | None = None,
    layout: str = "nchw",
    dtype: str = "float32",
    inputs: int = 1,
    nan: bool = False,
    concat: bool = False,
    downsample: bool = False,
    named: bool = True,
    external: bool = False,
) -> Path:
    """A classifier: ``input`` N×3×32×32 float32 -> ``logits`` N×10.

    Tensors in order: input, c1 (Conv), r1 (Clip 0..6), c2 (depthwise Conv), r2 (Relu), c3 (1×1 Conv), sum (c3 + r1),
    pool (MaxPool), gap (GlobalAveragePool), flat, logits (Gemm).

    Variants: ``batch`` fixes the batch axis; ``layout`` nchw, nhwc or chw (no batch axis); ``dtype`` of the input,
    float32 or float16; ``inputs`` 1 or 2; ``nan``: log of the input in front, so that every value not above zero gives
    NaN or infinity; ``concat``: cat = Concat(sum, r1) before pool; ``downsample``: the skip branch is a convolution,
    c4; ``named``: nodes have names; ``external``: weights in ``<path>.weights``.
    """
    content = _model(
        seed, opset, batch, layout, dtype, inputs, nan=nan, concat=concat, downsample=downsample, named=named
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    if external:
        import onnx

        model = onnx.load_from_string(content)
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.weights", size_threshold=0)
    else:
        path.write_bytes(content)
    return path


@functools.cache
def _model(
    seed: int,
    opset: int,
    batch: int | None,
    layout: str,
    dtype: str,
    inputs: int,
    *,
    nan: bool,
    concat: bool,
    downsample: bool,
    named: bool,
) -> bytes:
    from onnx import TensorProto, helper

    weights = _weights(seed, channels=16 if concat else 8)
    front = _front(layout, dtype, inputs, nan=nan)
    nodes = [*front, *_body(concat=concat, downsample=downsample)]
    if front:
        nodes[len(front)].input[0] = "front"
    used = {name for node in nodes for name in node.input}
    weights = [item for item in weights if item.name in used]
    if named:
        for index, node in enumerate(nodes):
            node.name = f"{node.op_type.lower()}_{index}"
    n = "n" if batch is None else batch
    shape = {"nchw": [n, 3, SIDE, SIDE], "nhwc": [n, SIDE, SIDE, 3], "chw": [3, SIDE, SIDE]}[layout]
    kind = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}[dtype]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, kind, shape) for name in ("input", "other")[:inputs]],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1 if layout == "chw" else n, CLASSES])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return bytes(model.SerializeToString())


def _front(layout: str, dtype: str, inputs: int, *, nan: bool) -> list[Any]:
    """Nodes that turn the variants' inputs into the tensor that the first convolution takes; none for the plain one."""
    from onnx import TensorProto, helper

    steps: list[tuple[str, Sequence[str], dict[str, Any]]] = []
    if inputs == 2:
        steps.append(("Add", ["other"], {}))
    if dtype == "float16":
        steps.append(("Cast", [], {"to": TensorProto.FLOAT}))
    if layout == "nhwc":
        steps.append(("Transpose", [], {"perm": [0, 3, 1, 2]}))
    if layout == "chw":
        steps.append(("Reshape", ["with_batch"], {}))
    if nan:
        steps.append(("Log", [], {}))
    nodes, at = [], "input"
    for index, (kind, more, attributes) in enumerate(steps):
        after = "front" if index == len(steps) - 1 else f"front{index}"
        nodes.append(helper.make_node(kind, [at, *more], [after], **attributes))
        at = after
    return nodes


def _body(*, concat: bool, downsample: bool) -> list[Any]:
    from onnx import helper

    skip = "c4" if downsample else "r1"
    nodes = [
        helper.make_node("Conv", ["input", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Clip", ["c1", "zero", "six"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], pads=[1, 1, 1, 1], group=8),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Conv", ["r2", "w3", "b3"], ["c3"]),
        helper.make_node("Add", ["c3", skip], ["sum"]),
        helper.make_node("MaxPool", ["sum"], ["pool"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["pool"], ["gap"]),
        helper.make_node("Flatten", ["gap"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w5", "b5"], ["logits"]),
    ]
    if downsample:
        nodes.insert(5, helper.make_node("Conv", ["r1", "w4", "b4"], ["c4"]))
    if concat:
        at = next(index for index, node in enumerate(nodes) if node.op_type == "MaxPool")
        nodes[at].input[0] = "cat"
        nodes.insert(at, helper.make_node("Concat", ["sum", "r1"], ["cat"], axis=1))
    return nodes


def _weights(seed: int, *, channels: int) -> list[Any]:
    from onnx import numpy_helper

    rng = np.random.default_rng(seed)
    shapes = {"1": (8, 3, 3, 3), "2": (8, 1, 3, 3), "3": (8, 8, 1, 1), "4": (8, 8, 1, 1), "5": (channels, CLASSES)}
    made = []
    for number, shape in shapes.items():
        fan_in = shape[0] if len(shape) == 2 else int(np.prod(shape[1:]))
        biases = shape[1] if len(shape) == 2 else shape[0]
        spread = np.sqrt(2.0 / fan_in)
        made.append(numpy_helper.from_array((rng.normal(size=shape) * spread).astype(np.float32), f"w{number}"))
        made.append(numpy_helper.from_array(rng.normal(size=biases).astype(np.float32) * np.float32(0.1), f"b{number}"))
    made.append(numpy_helper.from_array(np.float32(0.0), "zero"))
    made.append(numpy_helper.from_array(np.float32(6.0), "six"))
    made.append(numpy_helper.from_array(np.array([1, 3, SIDE, SIDE], np.int64), "with_batch"))
    return made


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(under)
    for name, value in over.items():
        if value is ...:
            result.pop(name, None)
        elif isinstance(value, dict) and isinstance(result.get(name), dict):
            result[name] = _merged(result[name], value)
        else:
            result[name] = value
    return result


def _is_roomy(folder: Path) -> bool:
    """True for a folder with space for the files of a test run, where programs may be executed."""
    if not os.access(folder, os.W_OK):
        return False
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize >= MEMORY_FREE and not found.f_flag & os.ST_NOEXEC


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(absent)"
