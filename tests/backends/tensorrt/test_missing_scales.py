"""Every float tensor that TensorRT's parser makes has a scale: the table's, or one that follows from it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edge.backends.tensorrt import calibrator, log_watch
from edge.backends.tensorrt.calibrator import ParsedLayer, ParsedNetwork, ParsedTensor
from edge.backends.tensorrt.environment import binding_module, load
from edge.model import onnx_model
from edge.quantization import calibration_table
from edge.quantization.calibration_table import Table, TrtVersion
from tests.support.tensorrt import networks
from tests.support.tensorrt.installed import table_for

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason="TensorRT for RTX is not installed: pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings",
)


def network(*layers: ParsedLayer, constants: tuple[str, ...] = (), shapes: tuple[str, ...] = ()) -> ParsedNetwork:
    names = dict.fromkeys(name for layer in layers for name in (*layer.inputs, *layer.outputs))
    return ParsedNetwork(
        list(layers),
        {name: ParsedTensor(name, "FLOAT", name in shapes, constant=name in constants) for name in names},
    )


def layer(
    kind: str, inputs: str, output: str, operation: str | None = None, largest: float | None = None
) -> ParsedLayer:
    return ParsedLayer(output, kind, operation, inputs.split(), [output], largest)


def table(**ranges: float) -> Table:
    return calibration_table.from_ranges(ranges, algorithm="entropy2", trt_version=TrtVersion(10, 3, 0))


@pytest.mark.parametrize(
    ("given", "layers", "expected"),
    [
        pytest.param({"x": 3.0}, [layer("SHUFFLE", "x", "y")], {"y": 3.0}, id="reshaped"),
        pytest.param({"y": 3.0}, [layer("CAST", "x", "y")], {"x": 3.0}, id="known only afterwards"),
        pytest.param({"y": 3.0}, [layer("SLICE", "x", "y")], {}, id="a slice says nothing of the whole"),
        pytest.param({"y": 3.0}, [layer("GATHER", "x", "y")], {}, id="nor does a gather"),
        pytest.param({"x": 3.0}, [layer("SLICE", "x", "y")], {"y": 3.0}, id="the whole bounds its slice"),
        pytest.param({}, [layer("CONSTANT", "", "w", largest=0.5)], {"w": 0.5}, id="a constant"),
        pytest.param({}, [layer("CONSTANT", "", "w", largest=0.0)], {}, id="a constant of zeros"),
        pytest.param(
            {"s": 13.0}, [layer("CONSTANT", "", "b", largest=0.5), layer("ELEMENTWISE", "p b", "s", "SUM")],
            {"b": 0.5, "p": 13.5}, id="before its bias",
        ),
        pytest.param({"a": 1.0, "b": 2.0}, [layer("ELEMENTWISE", "a b", "s", "SUB")], {"s": 3.0}, id="a difference"),
        pytest.param({"a": 1.0, "b": 2.0}, [layer("ELEMENTWISE", "a b", "s", "PROD")], {}, id="a product"),
        pytest.param({"a": 1.0, "b": 2.0}, [layer("ELEMENTWISE", "a b", "m", "MAX")], {"m": 2.0}, id="the larger"),
        pytest.param({"a": 1.0, "b": 2.0}, [layer("CONCATENATION", "a b", "c")], {"c": 2.0}, id="side by side"),
        pytest.param({"a": 1.0}, [layer("CONCATENATION", "a b", "c")], {}, id="half of it is not known"),
        pytest.param({"y": 6.0}, [layer("ACTIVATION", "x", "y", "CLIP")], {"x": 6.0}, id="before a clip"),
        pytest.param({"x": 6.0}, [layer("ACTIVATION", "x", "y", "SIGMOID")], {}, id="a sigmoid"),
        pytest.param({"x": 6.0}, [layer("CONVOLUTION", "x", "y")], {}, id="a convolution"),
        pytest.param(
            {"x": 2.0}, [layer("SHUFFLE", "c", "d"), layer("IDENTITY", "b", "c"), layer("SHUFFLE", "x", "b")],
            {"b": 2.0, "c": 2.0, "d": 2.0}, id="in any order",
        ),
        pytest.param({}, [], {}, id="nothing"),
    ],
)  # fmt: skip
def test_what_follows(given: dict[str, float], layers: list[ParsedLayer], expected: dict[str, float]) -> None:
    found = calibrator.complete(table(**given), network(*layers))
    assert {name: found.table.range(name) for name in found.added} == pytest.approx(expected)
    assert list(found.table.bits)[: len(given)] == list(given)


def test_integers_and_shapes_need_no_scale() -> None:
    found = calibrator.complete(table(x=1.0), network(layer("SHAPE", "x", "s"), shapes=("s",)))
    assert found.unresolved == []
    net = ParsedNetwork([], {"i": ParsedTensor("i", "INT64", False, constant=True)})
    assert calibrator.complete(table(), net).unresolved == []


def test_an_unusable_scale_is_neither_used_nor_replaced() -> None:
    found = calibrator.complete(table(x=0.0), network(layer("SHUFFLE", "x", "y")))
    assert (found.added, found.unresolved) == ({}, ["y"])
    assert found.table.scale("x") == 0.0


@pytest.mark.parametrize(
    "weights", [np.array([], np.float32), np.array([3], np.int64), None], ids=["empty", "int", "none"]
)
def test_weights_without_a_magnitude(weights: Any) -> None:
    assert calibrator._largest(weights) is None


@pytest.mark.parametrize(
    ("weights", "largest"),
    [([0.5, -2.0, 1.0], 2.0), ([0.5, 3.0], 3.0), ([-0.25], 0.25), ([0.0], 0.0)],
)
def test_the_magnitude_of_weights(weights: list[float], largest: float) -> None:
    assert calibrator._largest(np.array(weights, np.float32)) == largest


# the real parser


def parsed(path: Path, run: Callable[[ParsedNetwork, Any], None]) -> None:
    """Parse with TensorRT for RTX and look at the network while it is there."""
    caps = load(rtx=True)
    binding = binding_module(caps)
    with log_watch.watching(binding, log_watch.BuildWatch()) as logger:
        builder = binding.Builder(logger)
        made = builder.create_network(0)
        parser = binding.OnnxParser(made, logger)
        assert parser.parse_from_file(str(path))
        run(calibrator.read(made, caps), made)


@pytest.fixture(scope="module")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("networks")
    networks.resnet50(folder / "resnet50.onnx")
    networks.mobilenet_v2(folder / "mobilenet_v2.onnx")
    return folder


@needs_rtx
@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet50", "mobilenet_v2"])
def test_every_activation_of_the_parsed_network_is_in_the_table(
    name: str, models_folder: Path, repository: Path
) -> None:
    sample = repository / "models" / f"{name}.onnx"
    path = sample if sample.is_file() else models_folder / f"{name}.onnx"
    known = onnx_model.load(path).activations

    def look(net: ParsedNetwork, _: Any) -> None:
        activations = net.activations()
        # All of the model's tensors are in TensorRT's network under the same names.
        assert set(known) <= set(activations)
        own = [tensor for tensor in activations if tensor not in known]
        assert own == [f"{gemm_name(path)}_output"], "the matrix product before its bias is added"
        found = calibrator.complete(table_for(path), net)
        assert found.unresolved == []
        assert set(activations) <= set(found.table.bits)
        floats = [tensor.name for tensor in net.tensors.values() if tensor.is_float]
        assert set(floats) == set(found.table.bits), "constants too"

    parsed(path, look)


def gemm_name(path: Path) -> str:
    return next(node.name for node in onnx_model.read(path).graph.node if node.op_type == "Gemm")


@needs_rtx
def test_the_range_before_the_bias_holds(repository: Path, tmp_path: Path) -> None:
    """The product is computed by ONNX Runtime, and is within the range that is made for it."""
    import onnxruntime as ort

    path = repository / "models/efficientnet_lite0.onnx"
    proto = onnx_model.read(path)
    gemm = next(node for node in proto.graph.node if node.op_type == "Gemm")
    split = onnx.ModelProto()
    split.CopyFrom(proto)
    node = next(node for node in split.graph.node if node.op_type == "Gemm")
    del node.input[2]
    session = ort.InferenceSession(split.SerializeToString(), providers=["CPUExecutionProvider"])
    whole = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    batch = np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype(np.float32)
    product = session.run(None, {"input": batch})[0]
    logits = whole.run(None, {"input": batch})[0]

    def look(net: ParsedNetwork, _: Any) -> None:
        content = table_for(path, logits=float(np.abs(logits).max()))
        found = calibrator.complete(content, net)
        assert found.table.range(f"{gemm.name}_output") >= float(np.abs(product).max())

    parsed(path, look)


@needs_rtx
def test_layers_stay_readable_after_they_were_read(repository: Path) -> None:
    def look(first: ParsedNetwork, made: Any) -> None:
        again = calibrator.read(made, load(rtx=True))
        assert [item.kind for item in again.layers] == [item.kind for item in first.layers]
        assert first.by_kind()["CONVOLUTION"] == 49

    parsed(repository / "models/efficientnet_lite0.onnx", look)


def test_against_a_table_that_tensorrt_made_itself(repository: Path) -> None:
    """ResNet-50 on TensorRT 8.6.1: what it calibrated for its own tensors, and what follows here from the others."""
    path = repository.parent / "shared/reference/calibration_tables/tensorrtstarter-resnet50-trt8601-entropy2.cache"
    if not path.is_file():
        pytest.skip("the table of a real TensorRT is not on this machine")
    real = calibration_table.parse(path.read_bytes())
    weight, product, bias, moved, flat, output = (
        "(Unnamed Layer* 121) [Constant]_output", "(Unnamed Layer* 122) [Matrix Multiply]_output",
        "(Unnamed Layer* 123) [Constant]_output", "(Unnamed Layer* 124) [Shuffle]_output",
        "/backbone/Flatten_output_0", "/backbone/fc/Gemm_output_0",
    )  # fmt: skip
    net = network(
        layer("CONSTANT", "", weight, largest=real.range(weight)),
        ParsedLayer("mm", "MATRIX_MULTIPLY", None, [flat, weight], [product]),
        layer("CONSTANT", "", bias, largest=real.range(bias)),
        ParsedLayer("move", "SHUFFLE", None, [bias], [moved]),
        ParsedLayer("add", "ELEMENTWISE", "SUM", [product, moved], [output]),
    )
    own = {weight, product, bias, moved}
    mine = Table(real.header, {name: bits for name, bits in real.bits.items() if name not in own})
    found = calibrator.complete(mine, net)
    assert set(found.added) == own
    assert found.table.bits[moved] == real.bits[moved]
    assert found.table.range(product) == pytest.approx(real.range(product), rel=0.02)
