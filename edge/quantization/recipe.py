"""The recipe as data: changes of a network before it is quantized, and the layers that stay in float.

A recipe holds everything that :func:`edge.quantization.prepare.apply` needs, so the prepared model follows from the
user's model and the recipe alone.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from edge.errors import ArtifactError
from edge.quantization.placement import Attention, Residual

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto

FORMAT = 1
# Key of the prepared model's metadata that says how it is to be quantized.
METADATA_KEY = "edge.quantization"


class Vector(msgspec.Struct, frozen=True):
    """Float32 numbers, little-endian, in base64: exact and a third of the size of decimal text."""

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
    """``tensor`` has its range [low, high] moved by ``centre`` so that it lies around zero."""

    tensor: str
    low: float
    high: float
    centre: float


class BiasCorrection(msgspec.Struct, frozen=True):
    """``delta`` is added to the bias of ``layer``, one number per output channel."""

    layer: str
    delta: Vector


class FloatLayer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A weighted layer that is not quantized, why, and what was measured for it in dB of logit SQNR."""

    layer: str
    reason: str
    gain_db: float | None = None


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """One step of the stack: the SQNR measured with it, and whether and why it was left out."""

    name: str
    is_applied: bool
    sqnr_db: float | None = None
    reason: str | None = None


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """The recipe of one network.

    ``model`` is the sha256 of the user's model, ``statistics`` the digest of the statistics that the ranges come from,
    ``pictures`` how many calibration pictures judged the steps. ``is_balanced``: the weights of quantized layers are
    rounded to their levels with the sum of each filter kept.
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
    """The ``.recipe.json`` file."""
    return msgspec.json.format(msgspec.json.encode(recipe), indent=1)


def decode_recipe(data: bytes, *, where: Path | str) -> Recipe:
    """Read a ``.recipe.json``.

    Raises:
        ArtifactError: not a recipe, or one of a newer format.
    """
    try:
        recipe = msgspec.json.decode(data, type=Recipe)
    except (msgspec.ValidationError, msgspec.DecodeError) as exc:
        raise ArtifactError(f"not a quantization recipe: {exc}", where=where, hint="edge calibrate") from exc
    if recipe.format != FORMAT:
        raise ArtifactError(f"recipe format {recipe.format}, this edge reads {FORMAT}", where=where)
    return recipe


def write_placement(model: ModelProto, recipe: Recipe) -> None:
    """Note in the model's metadata how it is to be quantized."""
    placement = Placement(recipe.attention, recipe.residual, tuple(item.layer for item in recipe.float_layers))
    kept = [item for item in model.metadata_props if item.key != METADATA_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    model.metadata_props.add(key=METADATA_KEY, value=msgspec.json.encode(placement).decode())


def read_placement(model: ModelProto) -> Placement:
    """Read the placement from the model's metadata; the defaults where it has none."""
    for item in model.metadata_props:
        if item.key == METADATA_KEY:
            try:
                return msgspec.json.decode(item.value, type=Placement)
            except (msgspec.ValidationError, msgspec.DecodeError) as exc:
                raise ArtifactError(f"the metadata {METADATA_KEY} cannot be read: {exc}", where="model") from exc
    return Placement()
