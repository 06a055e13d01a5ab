"""Q/DQ networks: where the nodes stand, whether they hold the table's scales to the bit, and what the network does.

The placement rules of the ``tensorrt`` target are read off the graph; that TensorRT fuses it as hoped can be seen only
on a device. The ``onnxruntime`` target is run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edge.backends.interface import BuildRequest, Layers
from edge.backends.onnxruntime import OnnxRuntime, OrtSession
from edge.config import profiles
from edge.errors import DeviceError
from edge.model import onnx_model
from edge.model.graph import WEIGHTED
from edge.quantization import qdq
from edge.quantization.calibration_table import Table, TrtVersion, from_ranges

Make = Callable[..., Path]
Edit = Callable[[Any], object]
TARGETS: list[Literal["tensorrt", "onnxruntime"]] = ["tensorrt", "onnxruntime"]

# Near what the tiny network's tensors hold for inputs from a normal distribution. A pool shares the range of its input,
# as calibration makes it; the odd digits use all bits of a float32.
RANGES = {
    "input": 4.1234567, "c1": 7.7, "r1": 6.0, "c2": 9.87654, "r2": 9.1, "c3": 13.3, "sum": 14.2, "cat": 14.2,
    "pool": 14.2, "gap": 5.4321, "flat": 5.4321, "logits": 7.0, "c4": 11.1,
}  # fmt: skip


def table(**changes: float | None) -> Table:
    """The table for RANGES; a change of None leaves a tensor out."""
    ranges = {name: value for name, value in {**RANGES, **changes}.items() if value is not None}
    return from_ranges(ranges, algorithm="entropy2", trt_version=TrtVersion(10, 3, 0))


def with_bits(**patterns: int) -> Table:
    known = table()
    return Table(known.header, {**known.bits, **patterns})


class Network:
    """A Q/DQ model with its nodes by what they make."""

    def __init__(self, result: qdq.QdqResult) -> None:
        self.model = result.model
        self.constants = {item.name: numpy_helper.to_array(item) for item in self.model.graph.initializer}
        self.producer = {name: node for node in self.model.graph.node for name in node.output}

    def of(self, *kinds: str) -> list[Any]:
        return [node for node in self.model.graph.node if node.op_type in kinds]

    def quantized_from(self, name: str) -> str | None:
        """The float tensor behind ``name`` when it comes out of a Q/DQ pair, else None."""
        back = self.producer.get(name)
        if back is None or back.op_type != "DequantizeLinear" or back.input[0] not in self.producer:
            return None
        return str(self.producer[back.input[0]].input[0])

    def weights_of(self, node: Any) -> Any:
        """The DequantizeLinear that gives the node its weights, or None."""
        back = self.producer.get(node.input[1])
        return back if back is not None and back.op_type == "DequantizeLinear" else None

    def activation_pairs(self) -> Iterator[tuple[str, Any]]:
        """Float tensor and QuantizeLinear of each quantized activation."""
        for node in self.of("QuantizeLinear"):
            yield str(node.input[0]), node


def inserted(path: Path, target: Any, content: Table | None = None) -> tuple[qdq.QdqResult, Network]:
    result = qdq.insert(onnx_model.read(path), content or table(), target=target)
    onnx.checker.check_model(result.model, full_check=True)
    return result, Network(result)


def edited(path: Path, change: Edit) -> Path:
    proto = onnx.load(path)
    change(proto)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)
    return path


def batch(n: int = 4) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, 3, 32, 32)).astype(np.float32)


def outputs(model: Any) -> np.ndarray:
    model = onnx_model.read(model) if isinstance(model, Path) else model
    kinds = {item.data_type for item in model.graph.initializer}
    # onnxruntime's integer kernels are for its own form; that of TensorRT is run node by node.
    optimize = onnx.TensorProto.INT8 not in kinds or onnx.TensorProto.UINT8 in kinds
    data = model.SerializeToString()
    return np.asarray(OrtSession(data, precision="any", threads=1, optimize=optimize).outputs(batch())[0])


@pytest.fixture
def layers(tmp_path: Path, tiny_profile: Make) -> Callable[..., Layers]:
    """What onnxruntime makes of a model and a table: counted by the backend, on the optimized graph."""

    def count(path: Path, content: Table) -> Layers:
        settings = profiles.read_profile(tiny_profile(tmp_path / "profile"))
        request = BuildRequest(profile=settings, model=path, precision="int8", table=content)
        return OnnxRuntime().build(request).layers

    return count


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {}, "downsample": {"downsample": True}, "concat": {"concat": True}, "unnamed": {"named": False},
    "fixed-batch": {"batch": 4}, "external": {"external": True}, "all": {"downsample": True, "concat": True},
}  # fmt: skip


# both targets


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_weighted_layer_is_quantized(tiny_model: Make, variant: str, target: Any) -> None:
    result, network = inserted(tiny_model(**VARIANTS[variant]), target)
    weighted = 5 if VARIANTS[variant].get("downsample") else 4
    assert (result.quantized, result.weighted, result.unscaled) == (weighted, weighted, [])
    for node in network.of(*WEIGHTED):
        assert network.quantized_from(node.input[0]) is not None
        assert network.weights_of(node) is not None


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_scales_are_those_of_the_table_to_the_bit(tiny_model: Make, variant: str, target: Any) -> None:
    content = table()
    _, network = inserted(tiny_model(**VARIANTS[variant]), target, content)
    moved = {"c1": "r1", "c2": "r2"} if target == "onnxruntime" else {}
    seen = set()
    for name, node in network.activation_pairs():
        scale = network.constants[node.input[1]]
        assert scale.dtype == np.float32
        # In front of a Relu or Clip the scale is the one behind it.
        expected = content.bits[moved.get(name, name)]
        assert int.from_bytes(scale.astype(">f4").tobytes(), "big") == expected, name
        seen.add(name)
        back = next(n for n in network.of("DequantizeLinear") if n.input[0] == node.output[0])
        assert list(back.input[1:]) == list(node.input[1:])
    assert {"input", "r1", "r2", "flat"} <= seen
    assert seen <= set(content.bits)


@pytest.mark.parametrize("target", TARGETS)
def test_weights_are_int8_symmetric_and_per_channel(tiny_model: Make, target: Any) -> None:
    path = tiny_model()
    original = {item.name: numpy_helper.to_array(item) for item in onnx_model.read(path).graph.initializer}
    _, network = inserted(path, target)
    plain = Network(qdq.insert(onnx_model.read(path), table(), target=target, balance=False))
    for node in network.of(*WEIGHTED):
        back = network.weights_of(node)
        values, scale, zero = (network.constants[name] for name in back.input)
        axis = {item.name: item.i for item in back.attribute}["axis"]
        assert values.dtype == zero.dtype == np.int8
        assert not zero.any()
        assert values.min() >= -127
        assert axis == (1 if node.op_type == "Gemm" else 0)
        weights = original[back.output[0].removesuffix("_DequantizeLinear_Output")]
        assert scale.shape == (weights.shape[axis],)
        shape = [1] * weights.ndim
        shape[axis] = -1
        errors = (values.astype(np.float64) * scale.reshape(shape) - weights) / scale.reshape(shape)
        others = tuple(i for i in range(weights.ndim) if i != axis)
        # Balanced: no weight goes further than to the other neighbour, and sums are kept.
        assert np.abs(errors).max() <= 1.0
        assert np.abs(errors.sum(axis=others)).max() <= 0.501
        nearest = plain.constants[back.input[0]]
        assert np.abs(nearest * scale.reshape(shape) - weights).max() <= scale.max() * 0.501
        assert np.array_equal(plain.constants[back.input[1]], scale)
        assert (np.abs(values).max(axis=others) == 127).all()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_stay_float(tiny_model: Make, variant: str, target: Any) -> None:
    _, network = inserted(tiny_model(**VARIANTS[variant]), target)
    assert [value.name for value in network.model.graph.output] == ["logits"]
    assert network.producer["logits"].op_type == "Gemm"
    assert "logits_scale" not in network.constants


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_results_are_near_those_of_fp32(tiny_model: Make, variant: str, target: Any) -> None:
    """onnxruntime can run the tensorrt form too; there the arithmetic is float on rounded values."""
    path = tiny_model(**{**VARIANTS[variant], "external": False})
    expected = outputs(path)
    found = outputs(inserted(path, target)[0].model)
    noise = np.square(found - expected).mean() / np.square(expected).mean()
    assert 0 < noise < 1e-3
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()


@pytest.mark.parametrize("variant", ["plain", "downsample", "concat", "all"])
def test_both_targets_agree_with_each_other(tiny_model: Make, variant: str) -> None:
    path = tiny_model(**VARIANTS[variant])
    one, two = (outputs(inserted(path, target)[0].model) for target in TARGETS)
    assert np.square(one - two).mean() < 1e-3 * np.square(one).mean()


@pytest.mark.parametrize("target", TARGETS)
def test_the_model_is_left_as_it_is(tiny_model: Make, target: Any) -> None:
    proto = onnx_model.read(tiny_model(named=False))
    before = proto.SerializeToString()
    qdq.insert(proto, table(), target=target)
    assert proto.SerializeToString() == before


@pytest.mark.parametrize("target", TARGETS)
def test_the_same_input_gives_the_same_bytes(tiny_model: Make, target: Any) -> None:
    """The engine of ``host`` is this file: two builds of one thing must be one thing."""
    path = tiny_model()
    one, two = (qdq.insert(onnx_model.read(path), table(), target=target).model.SerializeToString() for _ in range(2))
    assert one == two


@pytest.mark.parametrize("target", TARGETS)
def test_entries_for_unknown_tensors_and_for_weights_do_no_harm(tiny_model: Make, target: Any) -> None:
    path = tiny_model()
    plain = qdq.insert(onnx_model.read(path), table(), target=target).model
    more = qdq.insert(onnx_model.read(path), table(nobody=3.0, w1=1.0, b1=1.0, six=6.0), target=target).model
    assert np.array_equal(outputs(plain), outputs(more))


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_said_on_the_root_logger(tiny_model: Make, target: Any, caplog: pytest.LogCaptureFixture) -> None:
    import logging

    level = logging.getLogger().level
    inserted(tiny_model(), target)
    assert caplog.records == []
    assert logging.getLogger().level == level


# tensorrt: where the nodes stand


@pytest.mark.parametrize("variant", VARIANTS)
def test_tensorrt_activations_are_int8_with_zero_point_0(tiny_model: Make, variant: str) -> None:
    _, network = inserted(tiny_model(**VARIANTS[variant]), "tensorrt")
    for node in network.of("QuantizeLinear", "DequantizeLinear"):
        zero = network.constants[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_tensorrt_has_no_nodes_behind_convolutions_and_products(tiny_model: Make, variant: str) -> None:
    """A Q/DQ pair there would keep TensorRT from fusing the layer with its activation or its residual add."""
    _, network = inserted(tiny_model(**VARIANTS[variant]), "tensorrt")
    behind = {name for node in network.of(*WEIGHTED) for name in node.output}
    skips = {"c4", "c3"} if VARIANTS[variant].get("downsample") else set()
    assert {name for name, _node in network.activation_pairs()} & behind <= skips


def test_tensorrt_biases_stay_float(tiny_model: Make) -> None:
    path = tiny_model()
    original = {item.name: numpy_helper.to_array(item) for item in onnx_model.read(path).graph.initializer}
    _, network = inserted(path, "tensorrt")
    for node in network.of(*WEIGHTED):
        assert np.array_equal(network.constants[node.input[2]], original[node.input[2]])
    assert all(values.dtype != np.int32 for values in network.constants.values())


def test_tensorrt_quantizes_the_skip_input_of_an_add_and_not_the_other(tiny_model: Make) -> None:
    _, network = inserted(tiny_model(), "tensorrt")
    (add,) = network.of("Add")
    assert [network.quantized_from(name) for name in add.input] == [None, "r1"]
    assert add.input[0] == "c3"


def test_tensorrt_quantizes_the_skip_input_wherever_it_stands(tiny_model: Make) -> None:
    def turn(proto: Any) -> None:
        (add,) = [node for node in proto.graph.node if node.op_type == "Add"]
        add.input[:] = [add.input[1], add.input[0]]

    _, network = inserted(edited(tiny_model(), turn), "tensorrt")
    (add,) = network.of("Add")
    assert [network.quantized_from(name) for name in add.input] == ["r1", None]


def test_tensorrt_quantizes_one_of_two_convolutions_into_an_add(tiny_model: Make) -> None:
    """The one that is computed first; the other is fused with the add."""
    path = tiny_model(downsample=True)
    order = [node.output[0] for node in onnx_model.read(path).graph.node]
    assert order.index("c3") < order.index("c4")
    _, network = inserted(path, "tensorrt")
    (add,) = network.of("Add")
    assert sorted(network.quantized_from(name) or "" for name in add.input) == ["", "c3"]


def test_tensorrt_leaves_an_add_without_scales_alone(tiny_model: Make) -> None:
    _, network = inserted(tiny_model(), "tensorrt", table(c3=None))
    assert len(network.of("Add")) == 1


# onnxruntime: integers all the way


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "external"])
def test_onnxruntime_runs_every_weighted_layer_in_integers(
    tiny_model: Make, variant: str, layers: Callable[..., Layers]
) -> None:
    found = layers(tiny_model(**VARIANTS[variant]), table())
    weighted = 5 if VARIANTS[variant].get("downsample") else 4
    assert (found.weighted, found.weighted_int8, found.int8_share) == (weighted, weighted, 1.0)
    assert not {"Conv", "FusedConv", "Gemm", "FusedGemm"} & set(found.by_type)


@pytest.mark.parametrize("variant", VARIANTS)
def test_onnxruntime_activations_are_uint8_with_zero_point_128(tiny_model: Make, variant: str) -> None:
    _, network = inserted(tiny_model(**VARIANTS[variant]), "onnxruntime")
    pairs = list(network.activation_pairs())
    assert pairs
    for _name, node in pairs:
        zero = network.constants[node.input[2]]
        assert (zero.dtype, zero.tolist()) == (np.uint8, 128)


def test_onnxruntime_gives_the_scale_behind_an_activation_to_what_stands_in_front(tiny_model: Make) -> None:
    """c1 reaches far beyond what the Clip lets through; quantized with its own scale, the levels would be wasted."""
    path = tiny_model()
    near, far = (outputs(inserted(path, "onnxruntime", table(c1=limit))[0].model) for limit in (6.0, 6000.0))
    assert np.array_equal(near, far)


def test_onnxruntime_keeps_the_scale_in_front_where_somebody_else_reads_it(tiny_model: Make) -> None:
    """c1 also goes around the Clip here: cutting it off at the Clip's bounds would change the network."""

    def bypass(proto: Any) -> None:
        (add,) = [node for node in proto.graph.node if node.op_type == "Add"]
        add.input[1] = "c1"

    content = table()
    _, network = inserted(edited(tiny_model(), bypass), "onnxruntime", content)
    scales = {name: float(network.constants[node.input[1]]) for name, node in network.activation_pairs()}
    assert scales["c1"] == content.scale("c1")


def test_onnxruntime_runs_hidden_layers_of_the_last_layers_kind_in_integers(
    tiny_model: Make, layers: Callable[..., Layers]
) -> None:
    """Two products in a row, as in VGG or MobileNetV3: only the last one's output is the logits."""

    def deepen(proto: Any) -> None:
        weights = np.random.default_rng(3).normal(size=(10, 10)).astype(np.float32)
        proto.graph.node[-1].output[0] = "hidden"
        proto.graph.node.append(helper.make_node("Relu", ["hidden"], ["active"], name="relu_more"))
        proto.graph.node.append(helper.make_node("Gemm", ["active", "w6"], ["logits"], name="gemm_more"))
        proto.graph.initializer.append(numpy_helper.from_array(weights, "w6"))

    path = edited(tiny_model(), deepen)
    content = table(hidden=7.0, active=7.0)
    found = layers(path, content)
    assert (found.weighted, found.weighted_int8) == (5, 5)
    _, network = inserted(path, "onnxruntime", content)
    assert network.producer["logits"].op_type == "Gemm"
    expected = outputs(path)
    assert np.abs(outputs(network.model) - expected).max() < 0.05 * np.abs(expected).max()


def test_onnxruntime_survives_a_dead_channel(tiny_model: Make) -> None:
    """All weights of a channel are zero, its bias is not: as pruning leaves it. The scale of its weights is then
    anything, and an int32 bias in units of that scale must not overflow."""

    def kill(proto: Any) -> None:
        for item in proto.graph.initializer:
            if item.name in {"w1", "b1"}:
                values = numpy_helper.to_array(item).copy()
                values[0] = 0.0 if item.name == "w1" else 3.0
                item.CopyFrom(numpy_helper.from_array(values, item.name))

    path = edited(tiny_model(), kill)
    expected = outputs(path)
    assert np.abs(outputs(inserted(path, "onnxruntime")[0].model) - expected).max() < 0.05 * np.abs(expected).max()


# scales that are missing or mean nothing


NOTHING = {"zero": 0x00000000, "minus-zero": 0x80000000, "nan": 0x7FC00000, "infinity": 0x7F800000,
           "negative": 0xBC000000, "denormal": 0x00000001}  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("tensor", ["input", "r1", "flat"])
@pytest.mark.parametrize("kind", [*NOTHING, "missing"])
def test_a_layer_without_a_scale_stays_float_and_is_reported(
    tiny_model: Make, kind: str, tensor: str, target: Any
) -> None:
    content = table(**{tensor: None}) if kind == "missing" else with_bits(**{tensor: NOTHING[kind]})
    path = tiny_model()
    result, network = inserted(path, target, content)
    assert (result.quantized, result.weighted, result.unscaled) == (3, 4, [tensor])
    assert tensor not in [name for name, _node in network.activation_pairs()]
    for node in network.of("QuantizeLinear", "DequantizeLinear"):
        scale = network.constants[node.input[1]]
        assert (scale >= np.finfo(np.float32).tiny).all()
        assert np.isfinite(scale).all()
    expected = outputs(path)
    assert np.abs(outputs(result.model) - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("tensor", ["input", "r1", "flat", "c3"])
def test_onnxruntime_counts_the_layer_that_stays_float(
    tiny_model: Make, tensor: str, layers: Callable[..., Layers]
) -> None:
    found = layers(tiny_model(), table(**{tensor: None}))
    assert (found.weighted, found.weighted_int8) == (4, 3)


def test_onnxruntime_needs_the_scale_of_an_output_too(tiny_model: Make) -> None:
    assert inserted(tiny_model(), "onnxruntime", table(c3=None))[0].unscaled == ["c3"]
    assert inserted(tiny_model(), "tensorrt", table(c3=None))[0].unscaled == []


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("tensor", ["logits", "sum", "gap", "pool"])
def test_a_scale_that_no_weighted_layer_needs_may_be_missing(tiny_model: Make, tensor: str, target: Any) -> None:
    path = tiny_model()
    result, _ = inserted(path, target, table(**{tensor: None}))
    assert (result.quantized, result.unscaled) == (4, [])
    expected = outputs(path)
    assert np.abs(outputs(result.model) - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("target", TARGETS)
def test_a_table_of_another_network_quantizes_nothing(tiny_model: Make, target: Any) -> None:
    path = tiny_model()
    result, network = inserted(path, target, table(**dict.fromkeys(RANGES), other=1.0))
    assert (result.quantized, result.weighted) == (0, 4)
    assert set(result.unscaled) >= {"input", "r1", "r2", "flat"}
    assert network.of("QuantizeLinear", "DequantizeLinear") == []
    assert np.array_equal(outputs(result.model), outputs(path))


@pytest.mark.parametrize("kind", [*NOTHING, "missing"])
def test_the_backend_says_which_tensors_have_no_scale(
    tiny_model: Make, tiny_profile: Make, tmp_path: Path, kind: str
) -> None:
    content = table(r1=None) if kind == "missing" else with_bits(r1=NOTHING[kind])
    request = BuildRequest(
        profile=profiles.read_profile(tiny_profile(tmp_path / "p")), model=tiny_model(), precision="int8", table=content
    )
    built = OnnxRuntime().build(request)
    assert built.notes == ["1 tensors have no usable scale and keep their layers in float: r1"]
    assert (built.info["qdq_quantized"], built.info["qdq_weighted"], built.route) == (3, 4, "explicit")


def test_int8_without_a_table_is_an_error(tiny_model: Make, tiny_profile: Make, tmp_path: Path) -> None:
    request = BuildRequest(profile=profiles.read_profile(tiny_profile(tmp_path)), model=tiny_model(), precision="int8")
    with pytest.raises(DeviceError, match="INT8 needs a calibration table"):
        OnnxRuntime().build(request)


# networks of other forms


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("opset", [11, 12])
def test_an_old_opset_is_converted(tiny_model: Make, opset: int, target: Any) -> None:
    path = tiny_model(opset=opset)
    result, network = inserted(path, target)
    assert result.quantized == 4
    expected = outputs(path)
    assert np.abs(outputs(network.model) - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("opset", [13, 15, 18])
def test_newer_opsets_are_taken(tiny_model: Make, opset: int, target: Any) -> None:
    assert inserted(tiny_model(opset=opset), target)[0].quantized == 4


def name_of_a_later_node(proto: Any) -> None:
    """The name that an unnamed node would get is already another node's."""
    proto.graph.node[0].name = "Conv_4"
    proto.graph.node[4].name = ""


def weights_in_constant_nodes(proto: Any) -> None:
    """As some exporters write them."""
    weights = {item.name: item for item in proto.graph.initializer if item.name.startswith("w")}
    kept = [item for item in proto.graph.initializer if item.name not in weights]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    for name, item in weights.items():
        proto.graph.node.insert(0, helper.make_node("Constant", [], [name], value=item, name=f"constant_{name}"))


def weights_among_the_inputs(proto: Any) -> None:
    proto.graph.input.append(helper.make_tensor_value_info("w1", onnx.TensorProto.FLOAT, [8, 3, 3, 3]))


def no_bias(proto: Any) -> None:
    del proto.graph.node[0].input[2:]


def transposed_product(proto: Any) -> None:
    for item in proto.graph.initializer:
        if item.name == "w5":
            item.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(numpy_helper.to_array(item).T), "w5"))
    proto.graph.node[-1].attribute.append(helper.make_attribute("transB", 1))


def product_and_sum(proto: Any) -> None:
    last = proto.graph.node[-1]
    last.op_type, last.output[0] = "MatMul", "product"
    del last.input[2:]
    proto.graph.node.append(helper.make_node("Add", ["product", "b5"], ["logits"], name="add_bias"))


def probabilities(proto: Any) -> None:
    proto.graph.node[-1].output[0] = "product"
    proto.graph.node.append(helper.make_node("Softmax", ["product"], ["logits"], name="softmax"))


def one_weight_for_two(proto: Any) -> None:
    at = [node.output[0] for node in proto.graph.node].index("sum")
    proto.graph.node[at].input[0] = "c3b"
    proto.graph.node.insert(at, helper.make_node("Conv", ["c3", "w3", "b3"], ["c3b"], name="conv_again"))


FORMS: list[Edit] = [
    name_of_a_later_node, weights_in_constant_nodes, weights_among_the_inputs, no_bias, transposed_product,
    product_and_sum, probabilities, one_weight_for_two,
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_other_forms_of_a_network(tiny_model: Make, form: Edit, target: Any) -> None:
    path = edited(tiny_model(), form)
    result, network = inserted(path, target, table(product=7.0, c3b=25.0, sum=25.0, pool=25.0))
    weighted = 5 if form is one_weight_for_two else 4
    assert (result.quantized, result.weighted, result.unscaled) == (weighted, weighted, [])
    for node in network.of(*WEIGHTED):
        assert network.weights_of(node) is not None
    expected = outputs(path)
    assert np.abs(outputs(result.model) - expected).max() < 0.06 * np.abs(expected).max()


def test_a_product_its_bias_and_a_relu_run_in_integers(tiny_model: Make, layers: Callable[..., Layers]) -> None:
    def change(proto: Any) -> None:
        proto.graph.node[-1].output[0] = "hidden"
        extra = [
            ("v", np.eye(10, dtype=np.float32)),
            ("d", np.ones(10, np.float32)),
            ("u", np.eye(10, dtype=np.float32)),
        ]
        proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in extra)
        proto.graph.node.extend(
            [
                helper.make_node("MatMul", ["hidden", "v"], ["product"], name="product"),
                helper.make_node("Add", ["product", "d"], ["biased"], name="biased"),
                helper.make_node("Relu", ["biased"], ["positive"], name="positive"),
                helper.make_node("MatMul", ["positive", "u"], ["logits"], name="last"),
            ]
        )

    names = ("hidden", "product", "biased", "positive")
    found = layers(edited(tiny_model(), change), table(**dict.fromkeys(names, 7.0)))
    assert (found.weighted, found.weighted_int8) == (6, 6)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_other_forms_run_in_integers(tiny_model: Make, form: Edit, layers: Callable[..., Layers]) -> None:
    found = layers(edited(tiny_model(), form), table(product=7.0, c3b=13.0))
    assert found.weighted == found.weighted_int8 == (5 if form is one_weight_for_two else 4)


def test_a_product_of_two_activations_is_no_weighted_layer(tiny_model: Make) -> None:
    def multiply(proto: Any) -> None:
        proto.graph.node[-1].output[0] = "z"
        proto.graph.node.append(helper.make_node("Transpose", ["z"], ["t"], perm=[1, 0], name="transpose"))
        proto.graph.node.append(helper.make_node("MatMul", ["z", "t"], ["zz"], name="gram"))
        proto.graph.node.append(helper.make_node("MatMul", ["zz", "z"], ["logits"], name="again"))

    result, _ = inserted(edited(tiny_model(), multiply), "tensorrt", table(z=7.0, t=7.0, zz=50.0))
    assert (result.quantized, result.weighted) == (4, 4)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("taken", "tensor"), [("c1_scale", "c1"), ("input_zero_point", "input"), ("w1_quantized", "w1")], ids=lambda v: v
)
def test_a_name_that_q_dq_nodes_would_get_is_left_to_its_owner(
    tiny_model: Make, taken: str, tensor: str, target: Any
) -> None:
    """A second tensor of that name, and the network would read the wrong one."""

    def rename(proto: Any) -> None:
        for node in proto.graph.node:
            node.input[:] = [taken if name == "b2" else name for name in node.input]
        for item in proto.graph.initializer:
            item.name = taken if item.name == "b2" else item.name

    path = edited(tiny_model(), rename)
    result, network = inserted(path, target)
    assert result.quantized == 4
    expected = outputs(path)
    assert np.abs(outputs(network.model) - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("bits", [0x3C000011, 0x3C0002AB, 0x00800000, 0x3F7FFFFF])
def test_any_scale_survives_to_the_bit(tiny_model: Make, bits: int, target: Any) -> None:
    _, network = inserted(tiny_model(), target, with_bits(input=bits))
    found = {name: network.constants[node.input[1]] for name, node in network.activation_pairs()}["input"]
    assert int.from_bytes(found.astype(">f4").tobytes(), "big") == bits


def test_a_product_with_factors_keeps_its_bias(tiny_model: Make) -> None:
    """An int32 bias has no room for alpha and beta."""

    def scaled(proto: Any) -> None:
        last = proto.graph.node[-1]
        last.attribute.extend([helper.make_attribute("alpha", 0.5), helper.make_attribute("beta", 4.0)])

    path = edited(tiny_model(), scaled)
    result, _ = inserted(path, "onnxruntime")
    expected = outputs(path)
    assert np.abs(outputs(result.model) - expected).max() < 0.06 * np.abs(expected).max()


def test_a_sum_with_a_constant_does_not_depend_on_the_constants_entry(tiny_model: Make) -> None:
    """TensorRT's own tables have entries for constants."""

    def moved(proto: Any) -> None:
        last = proto.graph.node[-1]
        proto.graph.initializer.append(numpy_helper.from_array(np.array([0.37], np.float32), "shift"))
        proto.graph.node.insert(
            len(proto.graph.node) - 1, helper.make_node("Add", [last.input[0], "shift"], ["moved"], name="move")
        )
        proto.graph.node[-1].input[0] = "moved"

    path = edited(tiny_model(), moved)
    plain = inserted(path, "onnxruntime", table(moved=25.0))[0].model
    more = inserted(path, "onnxruntime", table(moved=25.0, shift=0.37))[0].model
    assert [node.op_type for node in plain.graph.node] == [node.op_type for node in more.graph.node]
