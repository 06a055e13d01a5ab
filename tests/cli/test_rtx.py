"""``edge build`` with the real TensorRT for RTX, on a CPU; and models that its parser, or edge before it, refuses."""

from __future__ import annotations

import importlib.util
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

Edge = Callable[..., Any]
Place = Callable[..., Path]
TINY = ("--profile", "tiny")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason="TensorRT for RTX is not installed: pip install 'jetson-edge[rtx]'",
)


@pytest.fixture
def desktop(place: Place) -> Place:
    """A working directory with a profile for TensorRT for RTX."""

    def make(**overrides: Any) -> Path:
        return place(2, **{"backend": "tensorrt", "family": "rtx", **overrides})

    return make


@pytest.mark.parametrize(
    ("gpus", "precisions"),
    [((), ("fp32",)), (("SM86",), ("fp32", "fp16", "int8")), (("SM86", "SM120"), ("int8",))],
    ids=["all", "one", "two"],
)
def test_engines_are_really_built(
    gpus: tuple[str, ...], precisions: tuple[str, ...], edge: Edge, desktop: Place
) -> None:
    folder = desktop(build={"compute_capabilities": list(gpus)})
    assert edge("calibrate", *TINY, "--images", "pictures").code == 0
    for precision in precisions:
        ended = edge("build", *TINY, "--precision", precision)
        assert (ended.code, "built in" in ended.out) == (0, True), ended.err
        plan = folder / f"engines/tiny/model-{precision}.plan"
        assert plan.stat().st_size > 1000
        kept = json.loads(plan.with_suffix(".json").read_text())
        assert kept["key"]["gpus"] == ("+".join(gpus) or "all that it knows")
        assert kept["info"]["timing_cache"] is None
    if precision != "int8":
        return
    assert kept["info"]["int8_route"] == "explicit"
    assert "INT8 is in the graph as Q/DQ" in ended.err


def test_a_gpu_that_this_version_does_not_know(edge: Edge, desktop: Place) -> None:
    desktop(build={"compute_capabilities": ["SM53"]})
    ended = edge("build", *TINY, "--precision", "fp32")
    assert (ended.code, ended.out) == (3, "")
    assert "cannot build for SM53" in ended.err
    assert "SM86" in ended.err


def unsupported(path: Path) -> None:
    model = onnx.load(path)
    pool = next(node for node in model.graph.node if node.op_type == "GlobalAveragePool")
    pool.op_type, pool.domain = "Whirl", "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    onnx.save(model, path)


def too_new(path: Path) -> None:
    model = onnx.load(path)
    model.opset_import[0].version = 99
    onnx.save(model, path)


def lost_weights(path: Path) -> None:
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="gone.weights", size_threshold=0)
    (path.parent / "gone.weights").unlink()


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:700])


@pytest.mark.parametrize("spoil", [unsupported, too_new, lost_weights, cut_off])
def test_a_model_that_cannot_be_built(spoil: Callable[[Path], None], edge: Edge, desktop: Place) -> None:
    folder = desktop()
    spoil(folder / "profiles/model.onnx")
    ended = edge("build", *TINY, "--precision", "fp32")
    assert (ended.code, ended.out) == (5, ""), ended.err
    assert f"error: {folder}/profiles/model.onnx: " in ended.err
    assert "  try: " in ended.err
    assert "Traceback" not in ended.err
    assert not (folder / "engines").exists()


def test_ctrl_c_ends_a_build(start: Callable[..., Any], desktop: Place, repository: Path) -> None:
    """The builder has a network that takes it a second; the child is gone when the command is."""
    folder = desktop(model=str(repository / "models/efficientnet_lite0.onnx"), input={"height": 224, "width": 224},
                     preprocess={"resize": 256})  # fmt: skip
    process = start("build", *TINY, "--precision", "fp32")
    until = time.monotonic() + 60
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not (child := children.read_text().split()) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, ""), err
    assert "stopped by SIGINT" in err
    assert "Traceback" not in err
    assert not (folder / "engines").exists()
    # Stopped before it had a job, the child ends by itself a moment later.
    until = time.monotonic() + 60
    while is_alive(child[0]) and time.monotonic() < until:
        time.sleep(0.01)
    assert not is_alive(child[0])


def is_alive(number: str) -> bool:
    """Whether the process runs; one that ended and that nobody waits for (PID 1 of a container may not) does not."""
    try:
        stat = Path(f"/proc/{number}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}
