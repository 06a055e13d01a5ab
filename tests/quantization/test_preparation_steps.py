"""Each step of the stack on a constructed case: what keeps the function keeps it, and the rest does what it is for."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edge.backends.onnxruntime import OrtSession
from edge.errors import ArtifactError, ModelError
from edge.model.folding import fold
from edge.model.graph import GraphIndex, weighted_layers
from edge.quantization import calibration_table
from edge.quantization.calibration_table import Table, TrtVersion
from edge.quantization.migration import migration_candidates, migration_of
from edge.quantization.prepare import apply, table_ranges
from edge.quantization.qdq import insert
from edge.quantization.recipe import (
    BiasCorrection,
    FloatLayer,
    Migration,
    Recipe,
    Shift,
    Vector,
    decode_recipe,
    encode_recipe,
)
from edge.quantization.rounding import bias_correction, on_levels
from edge.quantization.shift import shift_candidates, shift_of  # fmt: skip
from tests.support.networks import KINDS, Builder, network

RNG = np.random.default_rng(7)
PICTURES = (RNG.normal(size=(6, 3, 16, 16)) * 1.5).astype(np.float32)


def logits(model: Any, pictures: np.ndarray = PICTURES) -> np.ndarray:
    session = OrtSession(model.SerializeToString(), precision="any", threads=1, optimize=False)
    return np.asarray(session.outputs(pictures)[0])


def values(model: Any, *names: str) -> dict[str, np.ndarray]:
    """What tensors of a network hold for PICTURES."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = OrtSession(copy.SerializeToString(), precision="any", threads=1, optimize=False)
    return dict(zip(names, session.outputs(PICTURES), strict=True))


def same(model: Any, other: Any) -> None:
    onnx.checker.check_model(other, full_check=True)
    expected = logits(model)
    np.testing.assert_allclose(logits(other), expected, atol=1e-4 * np.abs(expected).max())


def table_of(model: Any) -> Table:
    """Ranges of everything that the network computes, from PICTURES."""
    names = [name for node in model.graph.node for name in node.output]
    ranges = {name: float(np.abs(array).max()) for name, array in values(model, *names).items()}
    ranges["input"] = float(np.abs(PICTURES).max())
    return calibration_table.from_ranges(ranges, algorithm="minmax", trt_version=TrtVersion(10, 3, 0))


def shifts_of(model: Any) -> tuple[Shift, ...]:
    names = shift_candidates(model, "all")
    held = values(model, *names) if names else {}
    found = [shift_of(name, float(a.min()), float(a.max()), float(np.abs(a).max())) for name, a in held.items()]
    return tuple(shift for shift in found if shift is not None)


# shift


@pytest.mark.parametrize("kind", KINDS)
def test_shift_keeps_the_function_borders_included(kind: str) -> None:
    model = fold(network(kind))
    shifts = shifts_of(model)
    shifted = apply(model, Recipe(shifts=shifts, shift="all"))
    assert len(shifts) >= 1 or kind == "merge"
    same(model, shifted)


@pytest.mark.parametrize("how", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize(("stride", "is_shifted"), [(1, True), (2, False)])
def test_shift_in_front_of_automatic_pads(how: str, stride: int, is_shifted: bool) -> None:
    b = Builder(5)
    x = b.node("Relu", b.conv("input", 3, 8, 3))
    model = fold(b.model(b.conv(x, 8, 8, 4, auto_pad=how, strides=[stride, stride]), 8))
    shifts = [shift for shift in shifts_of(model) if shift.tensor == x]
    assert bool(shifts) == is_shifted, "with a larger stride the pads depend on the size of the input"
    same(model, apply(model, Recipe(shifts=tuple(shifts), shift="all")))


def test_shift_behind_an_activation_adds_no_operator() -> None:
    b = Builder(3)
    x = b.relu6(b.conv("input", 3, 8, 3))
    model = fold(b.model(b.node("Relu", b.conv(x, 8, 8, 1)), 8))
    shifted = apply(model, Recipe(shifts=shifts_of(model), shift="all"))
    kinds = Counter(node.op_type for node in shifted.graph.node)
    # The Relu is read by a pool; the Gemm's input comes from that pool, so its shift needs the one Sub.
    assert kinds == Counter(
        {"Conv": 2, "Clip": 1, "Relu": 1, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1, "Sub": 1}
    )
    same(model, shifted)


def test_shift_centres_relu_on_half_the_scale_with_a_code_for_the_border() -> None:
    shift = shift_of("t", 0.0, 6.0, 6.0)
    assert shift is not None
    assert shift.centre == 3.0
    hard_swish = shift_of("t", -0.375, 5.0, 5.0)
    assert hard_swish is not None
    step = (5.0 + 0.375) / 2 / 127
    assert abs(hard_swish.centre / step - round(hard_swish.centre / step)) < 1e-4


@pytest.mark.parametrize(("low", "high"), [(-5.0, 5.0), (-4.6, 5.0), (0.0, 0.0), (5.0, 5.0)])
def test_no_shift_where_it_gains_less_than_one_db(low: float, high: float) -> None:
    assert shift_of("t", low, high, 5.0) is None


def test_unpadded_leaves_tensors_of_padded_layers_alone() -> None:
    model = fold(network("residual"))
    every, unpadded = shift_candidates(model, "all"), shift_candidates(model, "unpadded")
    assert set(unpadded) < set(every)
    assert shift_candidates(model, "off") == []
    producer = GraphIndex(model).producer
    padded = {
        layer.activation
        for layer in weighted_layers(model)
        if any(any(item.ints) for item in producer[layer.output].attribute if item.name == "pads")
    }
    assert not padded & set(unpadded)


def test_a_shift_of_another_model_is_refused() -> None:
    with pytest.raises(ModelError, match="'nowhere'"):
        apply(fold(network("mobile")), Recipe(shifts=(Shift("nowhere", 0.0, 6.0, 3.0),), shift="all"))


# migration


def test_migration_keeps_the_function_and_evens_the_channels() -> None:
    model = fold(network("windows"))
    candidates = migration_candidates(model)
    assert len(candidates) == 3  # two LayerNorms and a GELU
    graph = GraphIndex(model)
    held = values(model, *candidates)
    migrations = []
    for tensor, layers in candidates.items():
        channels = np.abs(held[tensor]).reshape(-1, held[tensor].shape[-1]).max(axis=0)
        migrations.append(migration_of(graph, tensor, layers, channels, alpha=0.6))
    migrated = apply(model, Recipe(migrations=tuple(migrations)))
    same(model, migrated)
    for tensor, array in values(migrated, *(f"{name}_migrated" for name in candidates)).items():
        before = np.abs(held[tensor.removesuffix("_migrated")]).reshape(-1, array.shape[-1]).max(axis=0)
        after = np.abs(array).reshape(-1, array.shape[-1]).max(axis=0)
        assert after.max() / np.median(after) < before.max() / np.median(before)
    # LayerNorm takes the factors into its own scale: only the GELU needs a Mul.
    kinds = Counter(node.op_type for node in migrated.graph.node)
    assert kinds["Mul"] == Counter(node.op_type for node in model.graph.node)["Mul"] + 1


def test_a_channel_that_was_silent_in_calibration_is_not_blown_up() -> None:
    model = fold(network("windows"))
    tensor, layers = next(iter(migration_candidates(model).items()))
    channels = np.ones(8)
    channels[3] = 0.0
    factors = migration_of(GraphIndex(model), tensor, layers, channels, alpha=1.0).factors.values
    assert factors.min() / factors.max() == pytest.approx(0.1)


def test_a_migration_of_another_model_is_refused() -> None:
    migration = Migration("nowhere", 0.5, Vector.of(np.ones(4)))
    with pytest.raises(ModelError, match="'nowhere'"):
        apply(fold(network("windows")), Recipe(migrations=(migration,)))


# rounded weights and biases


@pytest.mark.parametrize("kind", KINDS)
def test_bias_correction_takes_the_mean_error_of_rounded_weights_off(kind: str) -> None:
    model = fold(network(kind))
    graph = GraphIndex(model)
    layers = weighted_layers(model)
    inputs = [layer.activation for layer in layers if layer.activation != "input"]
    held = values(model, *dict.fromkeys([*inputs, *(layer.output for layer in layers)])) | {"input": PICTURES}
    checked = 0
    for layer in layers:
        array = held[layer.activation]
        axis = layer.channel_axis % array.ndim
        means = array.mean(axis=tuple(i for i in range(array.ndim) if i != axis), dtype=np.float64)
        weights = graph.array(layer.weight)
        delta = bias_correction(graph, layer, on_levels(weights, layer.axis, balance=False), means)
        if delta is None or (layer.op_type == "Conv" and weights.shape[-1] > 1):
            continue  # a border or a stride: the closed form is an approximation
        corrected = apply(model, Recipe(corrections=(BiasCorrection(layer.name, Vector.of(delta)),)))
        moved = values(corrected, layer.output)[layer.output]
        axis = 1 if layer.op_type == "Conv" else moved.ndim - 1
        rest = tuple(i for i in range(moved.ndim) if i != axis)
        # A MatMul's bias is in the Add behind it.
        if layer.op_type != "MatMul":
            shift = (moved - held[layer.output]).mean(axis=rest)
            np.testing.assert_allclose(shift, delta, atol=1e-5)
        checked += 1
    assert checked


def test_bias_correction_makes_a_constant_input_exact() -> None:
    b = Builder(5)
    model = fold(b.model(b.conv("input", 3, 8, 1), 8))
    layer = weighted_layers(model)[0]
    means = np.array([0.7, -0.2, 1.3])
    picture = np.broadcast_to(means.reshape(1, 3, 1, 1), (1, 3, 16, 16)).astype(np.float32)
    graph = GraphIndex(model)
    rounded = on_levels(graph.array(layer.weight), layer.axis, balance=False)
    delta = bias_correction(graph, layer, rounded, means)
    assert delta is not None
    crude = apply(model, Recipe())
    node = GraphIndex(crude).producer[layer.output]
    GraphIndex(crude).constants[node.input[1]].CopyFrom(numpy_helper.from_array(rounded, node.input[1]))
    fixed = apply(crude, Recipe(corrections=(BiasCorrection(layer.name, Vector.of(delta)),)))
    exact = logits(model, picture)
    assert np.abs(logits(crude, picture) - exact).max() > 1e-4
    np.testing.assert_allclose(logits(fixed, picture), exact, atol=1e-5)


def test_balanced_weights_are_on_their_levels_and_rounding_again_moves_nothing() -> None:
    model = fold(network("mobile"))
    prepared = apply(model, Recipe(is_balanced=True))
    again = apply(prepared, Recipe(is_balanced=True))
    for layer in weighted_layers(prepared):
        np.testing.assert_array_equal(GraphIndex(prepared).array(layer.weight), GraphIndex(again).array(layer.weight))
    assert weighted_layers(prepared)[0].axis == 0
    left_out = apply(
        model, Recipe(is_balanced=True, float_layers=(FloatLayer(weighted_layers(model)[0].name, "test"),))
    )
    first = weighted_layers(left_out)[0]
    np.testing.assert_array_equal(GraphIndex(left_out).array(first.weight), GraphIndex(model).array(first.weight))


# the prepared model and its table


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_of_a_prepared_model_has_a_range_that_holds_its_values(kind: str) -> None:
    model = fold(network(kind))
    names = [name for node in model.graph.node for name in node.output]
    ranges = {name: float(np.abs(array).max()) for name, array in values(model, *names).items()} | {"input": 9.0}
    recipe = Recipe(shifts=shifts_of(model), shift="all")
    prepared = apply(model, recipe)
    found = table_ranges(ranges, recipe, prepared)
    made = [name for node in prepared.graph.node for name in node.output]
    assert set(made) <= set(found)
    for name, array in values(prepared, *made).items():
        assert np.abs(array).max() <= found[name] * 1.005 + 1e-6, name


@pytest.mark.parametrize("bias", [True, False])
def test_a_large_shift_before_a_product_costs_nothing_on_the_host(bias: bool) -> None:
    b = Builder(8)
    x = b.node("Relu", b.conv("input", 3, 8, 3, strides=[2, 2], pads=[1, 1, 1, 1]))
    x = b.node("Flatten", b.node("GlobalAveragePool", b.node("Add", x, b.constant(np.float32(4)))))
    w = b.constant((b.rng.normal(size=(8, 8)) + 0.5).astype(np.float32))
    x = b.node("MatMul", x, w)
    if bias:
        x = b.node("Add", x, b.weights(8))
    model = fold(b.model(b.reshape(x, (-1, 8, 1, 1)), 8))
    names = [name for node in model.graph.node for name in node.output]
    ranges = {name: float(np.abs(array).max()) for name, array in values(model, *names).items()} | {"input": 9.0}
    recipe = Recipe(shifts=shifts_of(model), shift="all")
    assert any(item.centre > 2 for item in recipe.shifts)
    prepared = apply(model, recipe)
    table = calibration_table.from_ranges(
        table_ranges(ranges, recipe, prepared), algorithm="minmax", trt_version=TrtVersion(10, 3, 0)
    )
    exact = logits(model)
    for target in ("tensorrt", "onnxruntime"):
        noise = logits(insert(prepared, table, target=target).model) - exact
        assert 10 * np.log10((exact**2).mean() / (noise**2).mean()) > 30, target


def test_a_prepared_model_says_itself_how_it_is_quantized() -> None:
    model = fold(network("mobile"))
    first, second, *_ = weighted_layers(model)
    prepared = apply(model, Recipe(float_layers=(FloatLayer(second.name, "fragile", 3.0),)))
    result = insert(prepared, table_of(prepared), target="tensorrt")
    assert (result.quantized, result.weighted) == (4, 5)
    producers = {name: node for node in result.model.graph.node for name in node.output}
    assert producers[producers[first.output].input[1]].op_type == "DequantizeLinear"
    assert all(producers.get(name) is None or producers[name].op_type != "DequantizeLinear"
               for name in producers[second.output].input)  # fmt: skip


def test_recipes_survive_their_file() -> None:
    recipe = Recipe(
        model="m", statistics="s", algorithm="mse", shift="all", shifts=(Shift("a", 0.0, 6.0, 3.0),),
        migrations=(Migration("b", 0.5, Vector.of(np.array([0.1, 3.7])), 2.0),),
        corrections=(BiasCorrection("c", Vector.of(np.array([1e-7, -1.0]))),),
        float_layers=(FloatLayer("d", "outlier channel", 3.1),), is_balanced=True,
    )  # fmt: skip
    back = decode_recipe(encode_recipe(recipe), where="x")
    assert back == recipe
    np.testing.assert_array_equal(back.migrations[0].factors.values, np.array([0.1, 3.7], np.float32))


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"format": 99}', b'{"algorithm": 3}', b'{"shift": "most"}', b"\xff\xfe"]
)
def test_what_is_no_recipe_is_refused(data: bytes) -> None:
    with pytest.raises(ArtifactError, match="recipe"):
        decode_recipe(data, where="x.recipe.json")


# placement


def residual_sides(model: Any, **given: Any) -> int:
    """How many inputs of adds are quantized."""
    form = insert(model, table_of(fold(model)), target="tensorrt", **given).model
    producers = {name: node.op_type for node in form.graph.node for name in node.output}
    adds = [node for node in form.graph.node if node.op_type == "Add"]
    return sum(producers.get(name) == "DequantizeLinear" for node in adds for name in node.input)


def test_sums_are_quantized_only_where_a_convolution_ends_in_them() -> None:
    assert residual_sides(network("residual")) == 2
    assert residual_sides(network("mobile")) == 1
    assert residual_sides(network("windows")) == 0
    assert residual_sides(network("windows"), residual="all") == 2
    assert residual_sides(network("residual"), residual="none") == 0


def test_products_of_activations_are_quantized_on_request_only() -> None:
    model = network("windows")
    for attention, expected in (("float", 0), ("int8", 4)):
        form = insert(model, table_of(fold(model)), target="tensorrt", attention=attention).model  # type: ignore[arg-type]
        producers = {name: node for node in form.graph.node for name in node.output}
        constant = {item.name for item in form.graph.initializer}

        def is_weight(name: str) -> bool:
            node = producers.get(name)  # noqa: B023
            return node is not None and node.op_type == "DequantizeLinear" and node.input[0] in constant  # noqa: B023

        live = [node for node in form.graph.node if node.op_type == "MatMul" and not is_weight(node.input[1])]
        assert len(live) == 2
        quantized = [name for node in live for name in node.input if producers[name].op_type == "DequantizeLinear"]
        assert len(quantized) == expected


def test_only_the_layers_asked_for_are_quantized() -> None:
    model = network("residual")
    layers = weighted_layers(fold(model))
    result = insert(model, table_of(fold(model)), target="tensorrt", only=[layers[2].name])
    assert (result.quantized, result.weighted) == (1, 6)
    kinds = Counter(node.op_type for node in result.model.graph.node)
    assert (kinds["QuantizeLinear"], kinds["DequantizeLinear"]) == (1, 2)
