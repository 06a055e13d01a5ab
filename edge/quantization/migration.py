"""Migration: move outlier channels after LayerNorm and GELU from the activations into the weights that read them.

X·W = (X/s)·(s·W) for one factor s per channel. The float network computes the same; in INT8 the channels of X/s have
similar sizes, so that one scale suits them all. Source: Xiao et al., "SmoothQuant" (ICML 2023), with
s = max|X|^alpha / max|W|^(1 - alpha).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge.errors import ModelError, require
from edge.model import GraphIndex, WeightedLayer, weighted_layers
from edge.quantization.recipe import Migration, Vector
from edge.quantization.rounding import insert_behind

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto, NodeProto

# A channel that is zero in calibration gets this share of the tensor's largest value: it may be used later.
_FLOOR = 0.1
_NORMS = frozenset({"LayerNormalization", "RMSNormalization"})


def migrated_name(tensor: str) -> str:
    """Return the name of a tensor after migration."""
    return f"{tensor}_migrated"


def migration_candidates(model: ModelProto) -> dict[str, list[WeightedLayer]]:
    """Find outputs of LayerNorm and GELU that weighted matrix products read; return them with those layers."""
    graph = GraphIndex(model)
    readers: dict[str, list[WeightedLayer]] = {}
    for layer in weighted_layers(model):
        is_product = layer.op_type in {"MatMul", "Gemm"} and not layer.is_left and layer.channel_axis in {-1, 1}
        if is_product and layer.weight in graph.constants and len(graph.constants[layer.weight].dims) == 2:
            readers.setdefault(layer.activation, []).append(layer)
    return {name: layers for name, layers in readers.items() if _is_behind_norm_or_gelu(graph, name)}


def _is_behind_norm_or_gelu(graph: GraphIndex, name: str) -> bool:
    """Return True if a tensor is the output of a LayerNorm or GELU, whole or decomposed, at most reshaped."""
    node = graph.producer.get(name)
    for _ in range(3):
        if node is None or node.op_type not in {"Reshape", "Flatten", "Squeeze", "Identity", "Dropout"}:
            break
        node = graph.producer.get(node.input[0])
    if node is None:
        return False
    if node.op_type in _NORMS or node.op_type == "Gelu":
        return True
    # Decomposed: gamma and beta behind a division by the standard deviation, or a product with an Erf or Tanh.
    seen, left = 0, [node]
    while left and seen < 8:
        node = left.pop(0)
        seen += 1
        if node.op_type in {"Erf", "Sqrt"}:
            return True
        if node.op_type in {"Add", "Mul", "Div", "Reciprocal"}:
            left += [graph.producer[item] for item in node.input if item in graph.producer]
    return False


def migration_of(
    graph: GraphIndex, tensor: str, layers: list[WeightedLayer], channels: NDArray[np.floating], *, alpha: float
) -> Migration:
    """Compute the migration of one tensor.

    Args:
        graph: the network.
        tensor: the input of ``layers``.
        layers: matrix products whose rows belong to the tensor's channels.
        channels: largest magnitude of each channel over the calibration images.
        alpha: 0 leaves everything in the activations, 1 moves all of it into the weights.
    """
    rows = [np.abs(graph.array(layer.weight)).max(axis=_output_axis(layer)) for layer in layers]
    weights = np.maximum.reduce([row.astype(np.float64) for row in rows])
    largest = float(np.max(channels, initial=0.0))
    activations = np.maximum(np.asarray(channels, np.float64), _FLOOR * largest)
    weights = np.maximum(weights, 1e-5 * float(weights.max(initial=0.0)))
    if largest <= 0.0 or not (weights > 0).all():
        factors = np.ones_like(activations)
    else:
        factors = activations**alpha / weights ** (1.0 - alpha)
        # The overall size is of no use in either: the geometric mean stays 1.
        factors /= np.exp(np.log(factors).mean())
    return Migration(tensor, alpha, Vector.of(factors))


def _output_axis(layer: WeightedLayer) -> int:
    """Return the axis of the weights with the output channels, to compute the maximum over it."""
    return 1 if layer.axis in {1, None} else 0


def migrate(model: ModelProto, migration: Migration) -> None:
    """Divide a tensor by its factors, and multiply the weights that read it.

    The division becomes part of a LayerNormalization's scale and bias where only the weighted layers read its output,
    else one Mul. Other readers of the tensor get it unchanged.

    Raises:
        ModelError: the network has no such tensor, or one with another number of channels.
    """
    graph = GraphIndex(model)
    layers = migration_candidates(model).get(migration.tensor)
    factors = migration.factors.values.astype(np.float64)
    if layers is None:
        raise ModelError(
            f"the recipe migrates {migration.tensor!r}, which is not the input of a matrix product in this model",
            hint="edge calibrate makes the recipe again",
        )
    for layer in layers:
        weights = graph.array(layer.weight).astype(np.float64)
        rows = factors[:, None] if layer.axis == 1 else factors[None, :]
        if weights.shape[1 - layer.axis if layer.axis is not None else 0] != factors.size:
            raise ModelError(
                f"the recipe has {factors.size} channels for {migration.tensor!r}, but the model has another number"
            )
        node = graph.producer[layer.output]
        node.input[1] = graph.add_constant(f"{layer.weight}_migrated", (weights * rows).astype(np.float32))
    name = graph.unique(migrated_name(migration.tensor))
    producer = graph.producer.get(migration.tensor)
    alone = migration.tensor not in graph.outputs and len(graph.consumers[migration.tensor]) == len(layers)
    if alone and producer is not None and _divide_norm(graph, producer, factors):
        producer.output[0] = name
    else:
        constant = graph.add_constant(f"{name}_factor", (1.0 / factors).astype(np.float32))
        extra = require("onnx").helper.make_node(
            "Mul", [migration.tensor, constant], [name], name=graph.unique(f"{name}_Mul")
        )
        if producer is None:
            model.graph.node.insert(0, extra)
        else:
            insert_behind(graph, producer, extra)
    for layer in layers:
        graph.producer[layer.output].input[0] = name


def _divide_norm(graph: GraphIndex, node: NodeProto, factors: NDArray[np.float64]) -> bool:
    """Divide the scale and bias of a LayerNormalization by ``factors``; return False for any other node."""
    if node.op_type not in _NORMS:
        return False
    names = [name for name in node.input[1:3] if name]
    if any(name not in graph.constants or graph.array(name).size != factors.size for name in names):
        return False
    for index, name in enumerate(node.input[1:3], start=1):
        if name:
            values = graph.array(name).astype(np.float64) / factors
            node.input[index] = graph.add_constant(f"{name}_migrated", values.astype(np.float32))
    return True
