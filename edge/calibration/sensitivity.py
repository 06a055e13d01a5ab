"""Sensitivity of layers: each weighted layer is quantized alone, and the noise of the logits measured.

Quantization noise of different layers is nearly uncorrelated, so the noise powers add: the sum over the layers that
stay in INT8 predicts the SQNR of any choice of layers in float.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edge.calibration.scoring import Scorer, inputs_of
from edge.config import Profile
from edge.events import Listener, Progress, ignore_events
from edge.media import Picture
from edge.model import WeightedLayer, onnx_model, weighted_layers
from edge.quantization import Table, qdq

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Pictures and layers of :func:`worst_layers`.
_PICTURES, _NAMED = 8, 3


class LayerNoise(msgspec.Struct, frozen=True, kw_only=True):
    """Noise power in the logits when only ``layer`` is quantized, as a share of the power of the logits."""

    layer: str
    op_type: str
    noise: float


def rank_layers(
    layers: Sequence[WeightedLayer],
    form_of: Callable[[str], Any],
    scorer: Scorer,
    *,
    reference: NDArray[np.float32] | None = None,
    most: int | None = None,
    known: Mapping[str, float] | None = None,
    on_layer: Callable[[LayerNoise], None] = lambda _: None,
    listen: Listener = ignore_events,
) -> list[LayerNoise]:
    """Noise of every layer quantized alone, the largest first.

    Args:
        layers: Which layers.
        form_of: The Q/DQ model (an onnx.ModelProto) in which only the layer of that name is quantized.
        scorer: The pictures to measure on.
        reference: Logits without noise, n × classes; those of the scorer's reference where None.
        most: Use only the first pictures of the scorer.
        known: Noise of layers that was measured before, by name: they are not measured again.
        on_layer: Gets each layer as soon as it is measured.
        listen: Gets the progress.
    """
    exact = (scorer.reference if reference is None else reference)[:most]
    power = float(np.square(exact, dtype=np.float64).sum())
    found = []
    for done, layer in enumerate(layers, start=1):
        noise = (known or {}).get(layer.name)
        if noise is None:
            logits = scorer.logits(form_of(layer.name), most=most)
            noise = float(np.square(logits.astype(np.float64) - exact).sum()) / power
        item = LayerNoise(layer=layer.name, op_type=layer.op_type, noise=noise)
        on_layer(item)
        found.append(item)
        listen(Progress("rank", done, len(layers), unit="layers"))
    return sorted(found, key=lambda item: (-item.noise, item.layer))


def predicted_sqnr(
    noises: Sequence[LayerNoise], float_layers: int, *, measured_db: float, ranked_db: float | None = None
) -> float:
    """Predicted logit SQNR in dB with the ``float_layers`` noisiest layers in float.

    Args:
        noises: Of all quantized layers, the largest first.
        float_layers: How many of them are in float.
        measured_db: SQNR with none of them in float.
        ranked_db: The same on the pictures that ranked the layers, where those are others. What the sum of the noises
            lacks of it belongs to no weighted layer (sums, pools) and stays; what it has too much is correlation, and
            scales all of them.
    """
    total, rest = (sum(item.noise for item in noises[start:]) for start in (0, float_layers))
    if total <= 0.0:
        return measured_db
    ranked = 10.0 ** (-(measured_db if ranked_db is None else ranked_db) / 10.0)
    share = (rest * min(ranked / total, 1.0) + max(ranked - total, 0.0)) / ranked
    return measured_db - 10.0 * math.log10(max(share, 1e-20))


def worst_layers(
    profile: Profile,
    table: Table,
    pictures: Sequence[Picture],
    *,
    threads: int | None = None,
    listen: Listener = ignore_events,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[str]:
    """Names of the three weighted layers whose quantization costs the most, measured on a few of ``pictures``.

    Raises:
        DataError, ModelError, DeviceError: As in :func:`edge.calibration.scoring.measure_accuracy`.
        CancelledError: ``should_stop`` was true.
    """
    model = onnx_model.load(Path(profile.model), profile.outputs)
    network = onnx_model.folded(model.path, profile.outputs)
    inputs = inputs_of(profile, pictures, _PICTURES, threads=threads, should_stop=should_stop)
    scorer = Scorer(network, inputs, fixed_batch=model.fixed_batch, threads=threads, should_stop=should_stop)
    ranked = rank_layers(
        weighted_layers(network),
        lambda name: qdq.insert(network, table, target="tensorrt", only=[name]).model,
        scorer,
        listen=listen,
    )
    return [item.layer for item in ranked[:_NAMED] if item.noise > 0.0]
