"""The recipe as data: changes of a network before its quantization, and the layers that stay in float.

A recipe has everything that :func:`edge.quantization.prepare.apply` needs, so the prepared model follows from the
user's model and the recipe alone.
"""

from __future__ import annotations

import base64
import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from edge.config import did_you_mean
from edge.errors import ArtifactError, ProfileError
from edge.model import WEIGHTED, GraphIndex, weighted_layers

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from onnx import ModelProto, NodeProto
if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto


Residual = Literal["conv", "all", "none"]
Attention = Literal["float", "int8"]

# Operators that TensorRT folds into a convolution before an add.
_IN_PATH = frozenset({"BatchNormalization", "Identity", "Cast"})
_BIAS = frozenset({"Add", "Mul"})


def residual_inputs(model: ModelProto, *, rule: Residual) -> list[tuple[NodeProto, int]]:
    """Return the inputs of adds to quantize, as node and input number.

    ``rule`` conv: where a Conv or ConvTranspose path ends in the add. ``all``: in every add of two activations.
    Where both branches are convolutions (a downsampling block), the one computed first is quantized; the other stays
    float, so that TensorRT can fuse its convolution with the add.
    """
    if rule == "none":
        return []
    graph = GraphIndex(model)
    order = {name: index for index, node in enumerate(model.graph.node) for name in node.output}
    found = []
    for node in model.graph.node:
        if node.op_type != "Add" or any(name in graph.constants or name not in order for name in node.input):
            continue
        if rule == "conv":
            ends = [_ends_in_convolution(graph, node, name) for name in node.input]
        else:
            ends = [graph.producer[name].op_type in WEIGHTED for name in node.input]
        if rule == "conv" and not any(ends):
            continue
        if all(ends) or not any(ends):
            skip = min((0, 1), key=lambda index: order[node.input[index]])
        else:
            skip = ends.index(False)
        found.append((node, skip))
    return found


def _ends_in_convolution(graph: GraphIndex, reader: NodeProto, name: str) -> bool:
    """Return True if ``name``, read by ``reader``, is the output of a convolution, perhaps with a constant applied."""
    while graph.is_sole_consumer(reader, name):
        node = graph.producer.get(name)
        if node is None:
            return False
        if node.op_type in {"Conv", "ConvTranspose"}:
            return True
        live = [item for item in node.input if item and item not in graph.constants]
        if len(live) != 1 or not (node.op_type in _IN_PATH or node.op_type in _BIAS):
            return False
        reader, name = node, live[0]
    return False


def attention_inputs(model: ModelProto) -> Iterator[tuple[NodeProto, int]]:
    """Return both inputs of every MatMul of two activations."""
    graph = GraphIndex(model)
    for node in model.graph.node:
        if node.op_type == "MatMul" and all(_is_live(graph, name) for name in node.input):
            yield node, 0
            yield node, 1


def _is_live(graph: GraphIndex, name: str) -> bool:
    return name not in graph.constants


def float_only_tensors(model: ModelProto, float_layers: Collection[str]) -> set[str]:
    """Return the tensors around float layers that no quantized layer computes or reads.

    TensorRT does not run the producer and the readers of a tensor without a scale in INT8. So only tensors between
    float layers may lose their scale: a tensor that a quantized layer computes or reads keeps it, also past Relu, Add
    and pools.

    Args:
        model: a folded or prepared network.
        float_layers: names of the weighted layers that are not quantized.
    """
    graph = GraphIndex(model)
    layers = {layer.output: layer for layer in weighted_layers(model)}
    if not any(layer.name in float_layers for layer in layers.values()):
        return set()
    quantized = {layer.output for layer in layers.values() if layer.name not in float_layers}
    # Forward: tensors that a quantized layer computes, up to the next layer with weights.
    kept = {value.name for value in model.graph.input}
    for node in model.graph.node:
        output = node.output[0]
        is_quantized = output in quantized
        if is_quantized or (output not in layers and kept.intersection(node.input) - set(graph.constants)):
            kept.update(node.output)
    # Backward: tensors that a quantized layer reads, down to the layer with weights in front.
    needed = {layers[output].activation for output in quantized}
    for node in reversed(model.graph.node):
        if needed.intersection(node.output) and node.output[0] not in layers:
            needed.update(name for name in node.input if name and name not in graph.constants)
    return set(graph.producer) - kept - needed


def match_layers(model: ModelProto, patterns: Sequence[str], *, key: str) -> list[str]:
    """Return the names of the weighted layers that match ``patterns``, in graph order.

    Args:
        model: the network.
        patterns: names of layers, patterns with ``*`` and ``?``, or operator types.
        key: the key of ``quantization:`` in the profile with the patterns.

    Raises:
        ProfileError: a pattern matches no layer with weights; the nearest name is suggested.
    """
    layers = weighted_layers(model)
    found: set[str] = set()
    for pattern in patterns:
        matching = {
            layer.name for layer in layers if pattern == layer.op_type or fnmatch.fnmatchcase(layer.name, pattern)
        }
        # Names of exporters are full of brackets, which are no sets of characters here.
        matching |= {layer.name for layer in layers if layer.name == pattern}
        if not matching:
            known = [layer.name for layer in layers] + sorted({layer.op_type for layer in layers})
            raise ProfileError(
                f"quantization.{key}: {pattern!r} matches no layer with weights{did_you_mean(pattern, known)}",
                hint="use names of the ONNX file, patterns such as '/blocks.0/*', or operator types such as Gemm",
            )
        found |= matching
    return [layer.name for layer in layers if layer.name in found]


FORMAT = 1
# Key of the prepared model's metadata with its quantization settings.
METADATA_KEY = "edge.quantization"


class Vector(msgspec.Struct, frozen=True):
    """Float32 numbers, little-endian, in base64: exact, and a third of the size of decimal text."""

    data: str

    @classmethod
    def of(cls, values: NDArray[np.floating]) -> Vector:
        """Pack ``values``."""
        return cls(base64.b64encode(np.asarray(values, "<f4").tobytes()).decode())

    @property
    def values(self) -> NDArray[np.float32]:
        """The numbers."""
        return np.frombuffer(base64.b64decode(self.data), "<f4").astype(np.float32)


class Migration(msgspec.Struct, frozen=True):
    """Per channel, ``tensor`` is divided by a factor and the weights that read it are multiplied by it.

    ``bound`` is the range of the migrated tensor in INT8.
    """

    tensor: str
    alpha: float
    factors: Vector
    bound: float = 0.0


class Shift(msgspec.Struct, frozen=True):
    """Moves the range [low, high] of ``tensor`` by ``centre`` so that it is symmetric around zero."""

    tensor: str
    low: float
    high: float
    centre: float


class BiasCorrection(msgspec.Struct, frozen=True):
    """``delta`` is added to the bias of ``layer``, one number per output channel."""

    layer: str
    delta: Vector


class FloatLayer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A weighted layer that stays in float, the reason, and its measured gain in dB of logit SQNR."""

    layer: str
    reason: str
    gain_db: float | None = None


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """One preparation step: its SQNR, and the reason if it was left out."""

    name: str
    is_applied: bool
    sqnr_db: float | None = None
    reason: str | None = None


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """The recipe of one network.

    ``model`` is the sha256 of the user's model, ``statistics`` the digest of the statistics behind the ranges,
    ``pictures`` the number of calibration images that scored the steps. ``is_balanced``: the weights of quantized
    layers are rounded to their levels with the sum of each filter kept.
    """

    format: int = FORMAT
    model: str = ""
    statistics: str = ""
    algorithm: str = "entropy2"
    parameters: dict[str, float] = {}
    attention: Attention = "float"
    residual: Residual = "conv"
    shift: Literal["off", "unpadded", "all"] = "off"
    migrations: tuple[Migration, ...] = ()
    shifts: tuple[Shift, ...] = ()
    is_balanced: bool = False
    corrections: tuple[BiasCorrection, ...] = ()
    float_layers: tuple[FloatLayer, ...] = ()
    steps: tuple[Step, ...] = ()
    pictures: int = 0

    @property
    def rewrites(self) -> bool:
        """True if the prepared model differs from the folded one."""
        return bool(self.migrations or self.shifts or self.is_balanced or self.corrections)


class Placement(msgspec.Struct, frozen=True):
    """The part of a recipe that the insertion of Q/DQ nodes needs."""

    attention: Attention = "float"
    residual: Residual = "conv"
    float_layers: tuple[str, ...] = ()


def encode_recipe(recipe: Recipe) -> bytes:
    """Encode the recipe as the content of a ``.recipe.json`` file."""
    return msgspec.json.format(msgspec.json.encode(recipe), indent=1)


def decode_recipe(data: bytes, *, where: Path | str) -> Recipe:
    """Decode the content of a ``.recipe.json`` file.

    Raises:
        ArtifactError: the data is not a recipe, or has a newer format.
    """
    try:
        recipe = msgspec.json.decode(data, type=Recipe)
    except (msgspec.ValidationError, msgspec.DecodeError) as exc:
        raise ArtifactError(f"not a quantization recipe: {exc}", where=where, hint="edge calibrate") from exc
    if recipe.format != FORMAT:
        raise ArtifactError(f"recipe format {recipe.format}; this edge reads format {FORMAT}", where=where)
    return recipe


def write_placement(model: ModelProto, recipe: Recipe) -> None:
    """Store the quantization settings in the model's metadata."""
    placement = Placement(recipe.attention, recipe.residual, tuple(item.layer for item in recipe.float_layers))
    kept = [item for item in model.metadata_props if item.key != METADATA_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    model.metadata_props.add(key=METADATA_KEY, value=msgspec.json.encode(placement).decode())


def float_layers_of(model: ModelProto) -> frozenset[str]:
    """Return the weighted layers that a prepared model's recipe keeps in float; empty for any other model."""
    return frozenset(read_placement(model).float_layers)


def read_placement(model: ModelProto) -> Placement:
    """Read the placement from the model's metadata; return the defaults if there is none."""
    for item in model.metadata_props:
        if item.key == METADATA_KEY:
            try:
                return msgspec.json.decode(item.value, type=Placement)
            except (msgspec.ValidationError, msgspec.DecodeError) as exc:
                raise ArtifactError(f"the metadata {METADATA_KEY} cannot be read: {exc}", where="model") from exc
    return Placement()
