"""Apply a recipe to a folded model: the result is the prepared float network that is quantized.

Migration and shift keep the function. Rounded weights and corrected biases change it to compensate errors of INT8.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np

from edge.errors import require
from edge.model import GraphIndex, remove_unused, weighted_layers
from edge.quantization.migration import migrate, migrated_name
from edge.quantization.recipe import Recipe, write_placement
from edge.quantization.rounding import add_to_output, on_levels
from edge.quantization.shift import constant_response, shift_range, shift_tensors, shifted_name

if TYPE_CHECKING:
    from onnx import ModelProto


def apply(folded: ModelProto, recipe: Recipe, *, rounding: bool = True) -> ModelProto:
    """Return the prepared model; ``folded`` (see :func:`edge.quantization.fold`) is not changed.

    Args:
        folded: the network with its weights as initializers.
        recipe: the changes to apply.
        rounding: False leaves out rounded weights and corrected biases, which change the function.

    Raises:
        ModelError: the recipe names a tensor or layer that the network does not have.
    """
    copy = type(folded)()
    copy.CopyFrom(folded)
    for migration in recipe.migrations:
        migrate(copy, migration)
    floats = {item.layer for item in recipe.float_layers}
    if recipe.is_balanced and rounding:
        round_weights(copy, floats)
    if recipe.shifts:
        shift_tensors(copy, recipe.shifts, mode=recipe.shift)
    if rounding:
        graph = GraphIndex(copy)
        layers = {layer.name: layer for layer in weighted_layers(copy)}
        for correction in recipe.corrections:
            if correction.layer in layers and correction.layer not in floats:
                add_to_output(graph, layers[correction.layer], correction.delta.values)
    remove_unused(copy)
    write_placement(copy, recipe)
    return copy


def round_weights(model: ModelProto, excluded: Collection[str]) -> None:
    """Round the weights of all quantized layers to their INT8 levels, keeping the sum of each filter.

    Weights that several layers read in different ways, or that contain NaN or infinity, stay unchanged.
    """
    onnx = require("onnx")
    axes: dict[str, set[int | None]] = {}
    for layer in weighted_layers(model):
        axes.setdefault(layer.weight, set()).add(None if layer.name in excluded else layer.axis)
    for item in model.graph.initializer:
        found = axes.get(item.name, set())
        if len(found) == 1 and item.data_type == onnx.TensorProto.FLOAT and (axis := next(iter(found))) is not None:
            values = onnx.numpy_helper.to_array(item)
            if values.ndim > 1 and np.isfinite(values).all():
                item.CopyFrom(onnx.numpy_helper.from_array(on_levels(values, axis, balance=True), item.name))


def table_ranges(folded: Mapping[str, float], recipe: Recipe, prepared: ModelProto) -> dict[str, float]:
    """Compute the ranges of the prepared model's tensors from those of the folded model and the recipe."""
    made = {migrated_name(item.tensor): item.bound for item in recipe.migrations}
    made |= {shifted_name(item.tensor): shift_range(item) for item in recipe.shifts}
    centres = {shifted_name(item.tensor): abs(item.centre) for item in recipe.shifts}
    moved: dict[str, float] = {}
    for node in prepared.graph.node:
        if node.op_type == "Pad" and node.input[0] in made:
            made[node.output[0]] = made[node.input[0]]
        if node.op_type == "Clip" and node.output[0] in centres:
            # The bias in front lost the centre.
            moved[node.input[0]] = centres[node.output[0]]
        if node.op_type == "Add" and node.output[0] in folded and node.input[0] not in folded:
            made.setdefault(node.input[0], folded[node.output[0]])
    graph = GraphIndex(prepared)
    signed = {shifted_name(item.tensor): item.centre for item in recipe.shifts}
    for layer in weighted_layers(prepared):
        if layer.op_type == "MatMul" and layer.activation in signed and layer.weight in graph.constants:
            # The Add behind it has what the product lost.
            lost = constant_response(graph, layer, signed[layer.activation])
            moved[layer.output] = float(np.abs(lost).max(initial=0.0))
    names = [value.name for value in prepared.graph.input]
    names += [name for node in prepared.graph.node for name in node.output]
    ranges = {}
    for name in names:
        if name in made:
            ranges[name] = made[name] + moved.get(name, 0.0)
        elif name in folded:
            ranges[name] = folded[name] + moved.get(name, 0.0)
    return ranges
