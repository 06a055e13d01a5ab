"""Prepare a network for INT8 by measurement: choose the recipe, and make the prepared model and its ranges.

Each step is tried on the calibration images and kept only if it brings the logits of the quantized network closer to
those of the user's network; the recipe records the measurements and the steps left out. The order: migration,
algorithm, bias correction, shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import numpy as np

from edge.backends import OrtSession
from edge.calibration import collection
from edge.calibration.histograms import Counter
from edge.calibration.scoring import Scorer
from edge.errors import ModelError
from edge.events import Listener, Progress, ignore_events
from edge.model import GraphIndex, weighted_layers
from edge.quantization import (
    Attention,
    BiasCorrection,
    FloatLayer,
    Recipe,
    Residual,
    ShiftMode,
    Statistics,
    Step,
    Table,
    TensorStatistics,
    TrtVersion,
    Vector,
    algorithms,
    apply,
    bias_correction,
    calibration_table,
    insert,
    migrated_name,
    migration_candidates,
    migration_of,
    on_levels,
    shift_candidates,
    shift_of,
    table_ranges,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

# An onnx.ModelProto, which only its adapters import.
OnnxModel: TypeAlias = Any

# JetPack 6.1 and 6.2 have TensorRT 10.3; every 10.x reads its tables, and other versions need a retargeted one.
HEADER_VERSION = TrtVersion(10, 3, 0)
# Maximum change of the float logits by the rewriting, as a share of the largest logit.
TOLERANCE = 1e-4
# Number of images on which all algorithms are compared; the best ones are compared again on all.
_RACE = 16
# Number of images that score a step; the channel means come from all images of the scorer.
_JUDGES = 32
_FINALISTS = 2
# The logits of few classes are a weak criterion: a shift, whose gain is known, may lose a little on these images.
_FEW_CLASSES, _FEW_CLASSES_MARGIN_DB = 32, 0.5
_ALPHAS = (0.5, 0.65)


class PreparationSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the preparation, from the profile.

    With the algorithm auto the best one is chosen; without ``rewrites`` the network is not changed.
    """

    algorithm: str = "auto"
    parameters: dict[str, float] = {}
    attention: Attention = "float"
    residual: Residual = "conv"
    shift: ShiftMode = "all"
    rewrites: bool = True
    float_layers: tuple[FloatLayer, ...] = ()


class Prepared(msgspec.Struct, frozen=True):
    """A recipe, the network prepared with it (an onnx.ModelProto), and the ranges of its tensors."""

    recipe: Recipe
    model: Any
    ranges: dict[str, float]

    def table(self) -> Table:
        """Return the calibration table of the prepared network."""
        # A DLA reads no other header; the scales of a rewritten network are not those of any calibrator anyway.
        known = algorithms.REGISTRY[self.recipe.algorithm].table_name
        name = "entropy2" if self.recipe.rewrites else known
        return calibration_table.from_ranges(self.ranges, algorithm=name, trt_version=HEADER_VERSION)

    def form(self, *, only: Sequence[str] | None = None) -> OnnxModel:
        """Return the Q/DQ form for TensorRT; with ``only``, just these layers are quantized."""
        made: OnnxModel = insert(self.model, self.table(), target="tensorrt", only=only).model
        return made


def prepare(
    folded: OnnxModel,
    statistics: Statistics,
    scorer: Scorer,
    settings: PreparationSettings,
    *,
    recipe: Recipe = Recipe(),  # noqa: B008 - frozen
    on_event: Listener = ignore_events,
) -> Prepared:
    """Run all preparation steps.

    Args:
        folded: the network of ``statistics`` (:func:`edge.quantization.fold`).
        statistics: of every activation tensor.
        scorer: the reference and the images for scoring.
        settings: the profile's settings.
        recipe: an empty recipe with the model and the statistics.
        on_event: called with a Progress per measurement.

    Raises:
        ModelError: folding changed the network's outputs.
    """
    return _Stack(folded, statistics, scorer, settings, on_event).run(recipe)


def finish(folded: OnnxModel, statistics: Statistics, recipe: Recipe) -> Prepared:
    """Make the prepared model and its ranges for a complete recipe.

    Raises:
        ModelError: the recipe is for another network.
    """
    prepared = apply(folded, recipe)
    ranges = _folded_ranges(folded, statistics, recipe)
    return Prepared(recipe, prepared, table_ranges(ranges, recipe, prepared))


def _folded_ranges(folded: OnnxModel, statistics: Statistics, recipe: Recipe) -> dict[str, float]:
    chosen, parameters = algorithms.find(recipe.algorithm, recipe.parameters)
    return collection.shared_ranges(folded.graph, algorithms.ranges(statistics, chosen, parameters))


class _Channels(msgspec.Struct, frozen=True):
    """Mean and largest magnitude of each channel of a tensor."""

    mean: NDArray[np.float64]
    largest: NDArray[np.float32]


class _Stack:
    """One run of the preparation: its measurements so far."""

    def __init__(
        self,
        folded: OnnxModel,
        statistics: Statistics,
        scorer: Scorer,
        settings: PreparationSettings,
        on_event: Listener,
    ) -> None:
        self._folded, self._statistics, self._scorer, self._settings = folded, statistics, scorer, settings
        self._on_event = on_event
        self._migrated: dict[str, TensorStatistics] = {}
        self._steps: list[Step] = []
        self._measured = 0

    def run(self, recipe: Recipe) -> Prepared:
        if (changed := self._scorer.deviation(self._folded)) > TOLERANCE:
            raise ModelError(
                f"folding changed the FP32 logits by {changed:.2g} times the largest logit",
                hint="export the model with constant folding on (torch.onnx.export does it by default)",
            )
        settings = self._settings
        recipe = msgspec.structs.replace(
            recipe,
            attention=settings.attention,
            residual=settings.residual,
            float_layers=settings.float_layers,
            is_balanced=settings.rewrites,
            pictures=min(len(self._scorer.reference), _JUDGES),
        )
        recipe, best_db = self._with_algorithm(recipe)
        if not settings.rewrites:
            return self._finished(msgspec.structs.replace(recipe, steps=tuple(self._steps)))
        recipe, best_db = self._with_migration(recipe, best_db)
        recipe = self._with_bias_and_shift(recipe, best_db)
        return self._finished(msgspec.structs.replace(recipe, steps=tuple(self._steps)))

    def _with_algorithm(self, recipe: Recipe) -> tuple[Recipe, float]:
        """Return the recipe with the best algorithm, or with the profile's."""
        settings = self._settings
        if settings.algorithm != "auto":
            recipe = msgspec.structs.replace(recipe, algorithm=settings.algorithm, parameters=settings.parameters)
            measured = self._score(recipe)
            self._steps.append(Step(f"algorithm {settings.algorithm}", is_applied=True, sqnr_db=measured))
            return recipe, measured
        trials = {name: msgspec.structs.replace(recipe, algorithm=name) for name in algorithms.REGISTRY}
        distinct: dict[tuple[float, ...], str] = {}
        for name, trial in trials.items():
            ranges = _folded_ranges(self._folded, self._statistics, trial)
            distinct.setdefault(tuple(ranges.values()), name)
        race = {name: self._score(trials[name], most=_RACE) for name in distinct.values()}
        finalists = sorted(race, key=lambda name: -race[name])[:_FINALISTS]
        measured_db = {name: self._score(trials[name]) for name in finalists}
        best = max(finalists, key=lambda name: measured_db[name])
        for name in sorted(race, key=lambda name: -measured_db.get(name, race[name] - 1e3)):
            in_race = f"not among the {_FINALISTS} best on {_RACE} images"
            why = None if name == best else f"{best} is better" if name in measured_db else in_race
            self._steps.append(Step(f"algorithm {name}", name == best, measured_db.get(name, race[name]), why))
        return trials[best], measured_db[best]

    def _with_migration(self, recipe: Recipe, best_db: float) -> tuple[Recipe, float]:
        candidates = migration_candidates(self._folded)
        if not candidates:
            return recipe, best_db
        graph = GraphIndex(self._folded)
        channels = self._channels(self._folded)
        best = recipe
        for alpha in _ALPHAS:
            migrations = tuple(
                migration_of(graph, tensor, layers, channels[tensor].largest, alpha=alpha)
                for tensor, layers in candidates.items()
                if tensor in channels
            )
            trial = msgspec.structs.replace(recipe, migrations=migrations)
            migrated = apply(self._folded, trial, rounding=False)
            names = [migrated_name(item.tensor) for item in migrations]
            statistics = self._tensor_statistics(migrated, names)
            trial = self._with_bounds(trial, statistics)
            measured = self._score(trial)
            why = self._why_not(migrated, measured, best_db)
            self._steps.append(Step(f"migration alpha {alpha:g}", why is None, measured, why))
            if why is None:
                best, best_db, self._migrated = trial, measured, statistics
        return best, best_db

    def _with_bias_and_shift(self, recipe: Recipe, best_db: float) -> Recipe:
        base = apply(self._folded, msgspec.structs.replace(recipe, is_balanced=False), rounding=False)
        corrections = self._corrections(base)
        plain, corrected = recipe, msgspec.structs.replace(recipe, corrections=corrections)
        helps = self._try("bias correction", corrected, best_db)
        recipe, best_db = (corrected, helps) if helps is not None else (plain, best_db)
        if self._settings.shift == "off":
            return recipe
        shifts = self._shifts(base, recipe)
        if not shifts:
            self._steps.append(Step("shift", is_applied=False, reason="no tensor is one-sided"))
            return recipe
        # Shifted, the weights' rounding meets a larger mean: the correction may pay there even where it did not.
        best = recipe
        for name, trial in (("shift and bias correction", corrected), ("shift", plain)):
            shifted = msgspec.structs.replace(trial, shifts=shifts, shift=self._settings.shift)
            exact = apply(self._folded, shifted, rounding=False)
            gained = self._try(name, shifted, best_db, exact, margin_db=self._margin_db())
            if gained is not None:
                best, best_db = shifted, gained
            if helps is not None:
                break
        return best

    def _margin_db(self) -> float:
        """Return the SQNR that a shift may lose on the calibration images: 0, or the uncertainty of few logits."""
        return _FEW_CLASSES_MARGIN_DB if self._scorer.reference.shape[1] < _FEW_CLASSES else 0.0

    def _try(
        self, name: str, recipe: Recipe, best_db: float, exact: OnnxModel | None = None, *, margin_db: float = 0.0
    ) -> float | None:
        """Measure ``recipe`` and return its SQNR if it beats ``best_db``; the step is recorded in any case."""
        measured = self._score(recipe)
        why = self._why_not(exact, measured, best_db - margin_db)
        self._steps.append(Step(name, why is None, measured, why))
        return measured if why is None else None

    def _why_not(self, exact: OnnxModel | None, measured: float, best_db: float) -> str | None:
        """Return the reason for leaving a step out, or None. An ``exact`` step must not change the float results."""
        if measured <= best_db:
            return f"{best_db:.2f} dB without it"
        if exact is not None and (changed := self._scorer.deviation(exact)) > TOLERANCE:
            return f"it changes the FP32 logits by {changed:.2g} of the largest one"
        return None

    def _score(self, recipe: Recipe, *, most: int | None = None) -> float:
        self._measured += 1
        self._on_event(Progress("quantize", self._measured, max(self._measured, self._planned())))
        return self._scorer.score(self._finished(recipe).form(), most=most or _JUDGES).db

    def _planned(self) -> int:
        races = len(algorithms.REGISTRY) + _FINALISTS if self._settings.algorithm == "auto" else 1
        return races + (2 if self._settings.shift != "off" else 1)

    def _finished(self, recipe: Recipe) -> Prepared:
        return finish(self._folded, self._statistics, recipe)

    def _with_bounds(self, recipe: Recipe, statistics: dict[str, TensorStatistics]) -> Recipe:
        chosen, parameters = algorithms.find(recipe.algorithm, recipe.parameters)
        made = tuple(
            msgspec.structs.replace(item, bound=chosen.rule(statistics[migrated_name(item.tensor)], parameters))
            for item in recipe.migrations
        )
        return msgspec.structs.replace(recipe, migrations=made)

    def _corrections(self, base: OnnxModel) -> tuple[BiasCorrection, ...]:
        """Compute bias corrections: the change of each layer's mean output by rounding."""
        channels = self._channels(base)
        graph = GraphIndex(base)
        excluded = {item.layer for item in self._settings.float_layers}
        found = []
        for layer in weighted_layers(base):
            if layer.name in excluded or layer.activation not in channels or layer.weight not in graph.constants:
                continue
            rounded = on_levels(graph.array(layer.weight), layer.axis, balance=True)
            delta = bias_correction(graph, layer, rounded, channels[layer.activation].mean)
            if delta is not None and np.isfinite(delta).all():
                found.append(BiasCorrection(layer.name, Vector.of(delta)))
        return tuple(found)

    def _shifts(self, base: OnnxModel, recipe: Recipe) -> tuple[Any, ...]:
        ranges = table_ranges(_folded_ranges(self._folded, self._statistics, recipe), recipe, base)
        found = []
        for name in shift_candidates(base, self._settings.shift):
            tensor = self._migrated.get(name) or self._statistics.tensors.get(name)
            if tensor is not None and name in ranges:
                shift = shift_of(name, tensor.low, tensor.high, ranges[name])
                if shift is not None:
                    found.append(shift)
        return tuple(found)

    def _channels(self, model: OnnxModel) -> dict[str, _Channels]:
        """Return mean and largest magnitude per channel over the images, for each input tensor of a weighted layer."""
        axes: dict[str, int] = {}
        for layer in weighted_layers(model):
            axes.setdefault(layer.activation, layer.channel_axis)
        sums: dict[str, NDArray[np.float64]] = {}
        largest: dict[str, NDArray[np.float32]] = {}
        sizes: dict[str, int] = {}
        for values in self._values(model, list(axes)):
            for name, array in values.items():
                axis = axes[name] % array.ndim
                rest = tuple(index for index in range(array.ndim) if index != axis)
                total = array.sum(axis=rest, dtype=np.float64)
                sums[name] = sums[name] + total if name in sums else total
                top = np.abs(array).max(axis=rest)
                largest[name] = np.maximum(largest[name], top) if name in largest else top
                sizes[name] = sizes.get(name, 0) + array.size // total.size
        return {name: _Channels(sums[name] / sizes[name], largest[name]) for name in sums}

    def _tensor_statistics(self, model: OnnxModel, names: Sequence[str]) -> dict[str, TensorStatistics]:
        counter = Counter(names, with_histogram=True)
        for values in self._values(model, names):
            counter.add([values[name] for name in names], pictures=1, what="a calibration image")
        return counter.statistics.tensors

    def _values(self, model: OnnxModel, names: Sequence[str]) -> Any:  # noqa: ANN401 - an iterator of mappings
        given = {value.name for value in model.graph.input}
        watched = [name for name in names if name not in given]
        outputs = collection.with_outputs(model, watched)
        session = OrtSession(outputs, precision="fp32", lean=True) if watched else None
        for batch in self._scorer.batches:
            values = dict(zip(watched, session.outputs(batch), strict=True)) if session else {}
            yield values | {name: batch for name in names if name in given}
