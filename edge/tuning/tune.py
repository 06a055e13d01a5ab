"""Tune the quantization: choose by measurement the weighted layers that stay in float.

The steps of :mod:`edge.calibration.preparation` prepare the network. Then each layer is quantized alone
(:mod:`edge.calibration.scoring`), the noisiest layers are moved to float one after the other, and SQNR and agreement
are predicted and measured as a curve over their number. All measurements are saved after each step, and the same
command continues from there. A float layer runs in FP16 on a device and is scored in FP32 here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edge import __version__
from edge.artifacts import store
from edge.calibration import (
    LayerNoise,
    MeasuredAccuracy,
    PictureInputs,
    Prepared,
    Scorer,
    cache_keys,
    collection,
    compare,
    finish,
    predicted_sqnr,
    preparation_settings,
    prepare,
    rank_layers,
    save_quantization,
    spread,
)
from edge.config import Profile
from edge.errors import ArtifactError, ModelError, ProfileError
from edge.events import Listener, Note, Progress, ignore_events
from edge.media import Picture, Pictures
from edge.model import GraphIndex, Preprocessor, WeightedLayer, onnx_model, weighted_layers
from edge.quantization import FloatLayer, Recipe, Statistics
from edge.stats import Interval, wilson
from edge.tuning.tune_page import layer_macs, reason_for

if TYPE_CHECKING:
    from numpy.typing import NDArray

    # True classes of the images for scoring; None without labels.
    Truth = NDArray[np.int64] | None

FORMAT = 1
# Images that score the curve, and the number of them that rank the layers.
JUDGING_PICTURES, RANKING_PICTURES = 64, 16
# Images that decide about the preparation steps.
PREPARING_PICTURES = 32
# Default maximum share of weighted layers in float.
DEFAULT_MAX_FLOAT = 0.10
# Shares of float layers at which the curve is measured, in addition to none, one, two and the limit.
_MEASURED_SHARES = (0.05, 0.10, 0.15, 0.20, 0.30, 0.50)
# If the SQNR of two numbers of float layers differs by less, in dB, the smaller number is chosen.
_SAME_DB = 0.1
_EQUAL_DB = 200.0


class TuneSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The targets, and the maximum share ``max_float`` (0 to 1) of the weighted layers in float.

    With ``target_sqnr`` (dB) or ``target_agreement`` (percent) the fewest float layers that reach both are taken;
    without them the number with the highest SQNR. ``times_ms`` is the time of each layer, from an engine report.
    """

    max_float: float = DEFAULT_MAX_FLOAT
    target_sqnr: float | None = None
    target_agreement: float | None = None
    threads: int | None = None
    times_ms: dict[str, float] | None = None

    @property
    def target(self) -> str | None:
        """The targets as text."""
        sqnr = None if self.target_sqnr is None else f"{self.target_sqnr:g} dB"
        share = None if self.target_agreement is None else f"{self.target_agreement:g} % agreement"
        return " and ".join(filter(None, (sqnr, share))) or None


class CurvePoint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Accuracy with the ``float_layers`` noisiest layers in float; unmeasured values are absent.

    ``macs`` is the share (0 to 1) of the multiply-accumulate operations in float; ``agreement`` and ``top1`` are shares
    in percent. ``float_ms`` is the time of the layers in float, by the engine report that was given.
    """

    float_layers: int
    macs: float
    float_ms: float | None = None
    predicted_db: float
    sqnr_db: float | None = None
    agreement: Interval | None = None
    top1: Interval | None = None


class RankedLayer(msgspec.Struct, frozen=True, kw_only=True):
    """A weighted layer: its share (0 to 1) of the total noise and of the operations, and the cause of its noise."""

    layer: str
    op_type: str
    noise_share: float
    macs: float
    is_float: bool
    reason: str


class TuningRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a tuning; ``chosen`` is the number of float layers in the recipe, ``steps`` the preparation steps.

    ``reached`` is false if the targets were missed even with the maximum number of float layers.
    """

    format: int = FORMAT
    edge_version: str = __version__
    profile: str
    model: str
    pictures: int
    ranking_pictures: int
    weighted_layers: int
    max_float: float
    target: str | None
    reached: bool
    chosen: int
    fp32_top1: Interval | None
    curve: list[CurvePoint]
    layers: list[RankedLayer]
    steps: list[dict[str, Any]]
    table: str
    seconds: float

    @property
    def result(self) -> CurvePoint:
        """The point of the curve for the chosen recipe."""
        return next(point for point in self.curve if point.float_layers == self.chosen)

    @property
    def accuracy(self) -> MeasuredAccuracy:
        """The chosen point as accuracy for the table of limits."""
        return accuracy_of(self.result, self.pictures)


def accuracy_of(point: CurvePoint, pictures: int) -> MeasuredAccuracy:
    """Convert a measured point of the curve to an accuracy for the table of limits."""
    agreement = point.agreement or Interval(0.0, 0.0, 0.0)
    between = (agreement.low, agreement.high)
    return MeasuredAccuracy(
        n=pictures, sqnr_db=point.sqnr_db, agreement=agreement.value, agreement_interval=between
    )  # fmt: skip


class _MeasuredScores(msgspec.Struct, frozen=True):
    """Scores of one number of float layers; ``ranking_db`` is the SQNR on the images that rank the layers."""

    sqnr_db: float | None
    ranking_db: float
    same: int
    hits: int | None


class _TuningState(msgspec.Struct):
    """Saved state to continue a tuning from; ``key`` names everything that the measurements depend on."""

    key: dict[str, store.Scalar]
    format: int = FORMAT
    recipe: Recipe | None = None
    noises: dict[str, float] = {}
    scores: dict[int, _MeasuredScores] = {}


def tune(
    profile: Profile,
    pictures: Pictures,
    settings: TuneSettings,
    *,
    cache: Path,
    force: bool = False,
    listen: Listener = ignore_events,
    should_stop: Callable[[], bool] = lambda: False,
) -> TuningRecord | None:
    """Tune the quantization of a profile's model, and write its recipe, prepared model and calibration table.

    Args:
        profile: Model, preprocessing, and its ``quantization:`` section.
        pictures: Calibration images; if all have a label, top-1 is measured, too.
        settings: the targets.
        cache: Folder of tables and statistics.
        force: ignore saved measurements.
        listen: receives progress and notes.
        should_stop: checked between images.

    Returns:
        The result; None when stopped. The measurements so far are saved.

    Raises:
        ModelError: The model cannot be used, or has no layer to quantize.
        ProfileError: The profile's recipe is a file or none, or a pattern matches no layer.
        ArtifactError: The times are those of another network.
        DataError: An image cannot be used.
        DeviceError: A network failed.
        StoreError: The cache folder cannot be written.
    """
    try:
        return _Tuning(profile, pictures, settings, cache, listen=listen, should_stop=should_stop).run(force=force)
    except CancelledError:
        return None


class _Tuning:
    """One run of :func:`tune`."""

    def __init__(
        self,
        profile: Profile,
        pictures: Pictures,
        settings: TuneSettings,
        cache: Path,
        *,
        listen: Listener,
        should_stop: Callable[[], bool],
    ) -> None:
        self._profile, self._pictures, self._settings, self._cache = profile, pictures, settings, cache
        self._listen, self._should_stop = listen, should_stop
        self._threads = settings.threads or profile.run.threads or os.cpu_count() or 1
        self._model = onnx_model.load(Path(profile.model), profile.outputs)
        onnx_model.check_fits(self._model, profile)
        self.folded = onnx_model.folded(self._model.path, profile.outputs)
        self.layers = {layer.name: layer for layer in weighted_layers(self.folded)}
        if not self.layers:
            raise ModelError("no layer of this network has constant weights: INT8 changes nothing", where=profile.model)
        self.times_ms = settings.times_ms
        if self.times_ms is not None and not self.times_ms.keys() & self.layers.keys():
            raise ArtifactError(
                "the times belong to another network: no layer of this model has a name in them", where=profile.model,
                hint="run edge engine show ENGINE --times FILE --json > report.json with an engine of this model",
            )  # fmt: skip
        self._preparation = preparation_settings(profile, self._model)
        if profile.quantization.recipe != "auto":
            raise ProfileError(
                f"quantization.recipe is {profile.quantization.recipe}: edge tune writes the recipe of recipe: auto",
                where=profile.name,
                hint="quantization: {recipe: auto}",
            )
        self._path = cache_keys.table_path(profile, cache).with_suffix(".tune.json")
        self._statistics_file = ""
        self._kept = _TuningState({})

    def run(self, *, force: bool) -> TuningRecord:
        start = time.monotonic()
        for done, picture in enumerate(self._pictures, start=1):
            self._raise_if_stopped()
            _ = picture.sha256
            self._listen(Progress("hash", done, len(self._pictures)))
        self._resume(force=force)
        statistics = self._statistics()
        judging = spread(list(self._pictures), JUDGING_PICTURES)
        scorer = self._scorer(judging)
        recipe = self._recipe(statistics, scorer)
        noises = rank_layers(
            self._quantized(recipe), lambda name: self._alone(name, statistics, recipe), scorer,
            most=RANKING_PICTURES, known=self._kept.noises, on_layer=self._keep_noise, listen=self._listen,
        )  # fmt: skip
        labels = [picture.label for picture in judging]
        truth = None if None in labels else np.array(labels)
        curve = _Curve(self, noises, statistics, recipe, scorer=scorer, truth=truth)
        chosen, reached = curve.choose(self._settings)
        prepared = curve.prepared(chosen)
        self._save(prepared, curve.points[chosen], len(judging))
        return self._record(curve, recipe, chosen, reached=reached, seconds=time.monotonic() - start)

    def _quantized(self, recipe: Recipe) -> list[WeightedLayer]:
        excluded = {item.layer for item in recipe.float_layers}
        return [layer for layer in self.layers.values() if layer.name not in excluded]

    def _alone(self, name: str, statistics: Statistics, recipe: Recipe) -> Any:  # noqa: ANN401 - an onnx.ModelProto
        """Return the Q/DQ form in which only one layer is rounded and quantized."""
        others = tuple(FloatLayer(other, "another layer is measured") for other in self.layers if other != name)
        return finish(self.folded, statistics, msgspec.structs.replace(recipe, float_layers=others)).form(only=[name])

    def _raise_if_stopped(self) -> None:
        if self._should_stop():
            raise CancelledError

    def _statistics(self) -> Statistics:
        plan = collection.plan(self.folded.graph, self._model.activations)
        path = cache_keys.table_path(self._profile, self._cache)
        with store.lock(path):
            observed = collection.collect_statistics(
                self._profile, self._model, plan, self._pictures,
                needs="histogram", cache=path.parent, key=self._key(), threads=self._threads,
                listen=self._listen, should_stop=self._should_stop,
            )  # fmt: skip
        if observed is None:
            raise CancelledError
        self._statistics_file = observed.path.name
        return plan.complete(observed.statistics)

    def _scorer(self, judging: list[Picture]) -> Scorer:
        inputs = PictureInputs(judging, Preprocessor(self._profile.preprocess, self._profile.input))
        inputs.prepare(threads=self._threads, listen=self._listen, should_stop=self._should_stop)
        return Scorer(
            onnx_model.read(self._model.path, self._profile.outputs), inputs,
            fixed_batch=self._model.fixed_batch, threads=self._threads, should_stop=self._should_stop,
        )  # fmt: skip

    def _recipe(self, statistics: Statistics, scorer: Scorer) -> Recipe:
        """Return the recipe of the preparation, with the layers that the profile keeps in float."""
        if self._kept.recipe is None:
            start = Recipe(
                model=self._model.sha256,
                algorithm=self._preparation.algorithm,
                parameters=self._preparation.parameters,
            )
            prepared = prepare(
                self.folded, statistics, scorer.first(PREPARING_PICTURES), self._preparation,
                recipe=start, on_event=self._listen,
            )  # fmt: skip
            self._kept.recipe = prepared.recipe
            self._write()
        return self._kept.recipe

    def _key(self) -> dict[str, store.Scalar]:
        """Return the key of the table that `edge calibrate` makes, which this one replaces."""
        return {
            **cache_keys.table_key(self._profile),
            "images": self._pictures.digest(),
            "batch": self._profile.calibration.batch,
        }

    def _resume(self, *, force: bool) -> None:
        key = {**self._key(), "edge": __version__}
        self._kept = _TuningState(key)
        if force or not self._path.is_file():
            self._write()
            return
        try:
            found = msgspec.json.decode(self._path.read_bytes(), type=_TuningState)
        except msgspec.DecodeError:
            self._listen(Note("the measurements of an earlier tuning cannot be read and are made again", "warning"))
            return
        changed = store.differences(found.key, key)
        if found.format != FORMAT or changed:
            names = "; ".join(str(item) for item in changed) or f"format {found.format}"
            self._listen(Note(f"the earlier tuning was for something else ({names}): everything is measured again"))
            return
        self._kept = found
        if found.recipe is not None:
            self._listen(Note(f"continuing an earlier tuning: {len(found.noises)} layers are ranked"))

    def _write(self) -> None:
        store.write_bytes(self._path, msgspec.json.encode(self._kept))

    def _keep_noise(self, item: LayerNoise) -> None:
        if item.layer not in self._kept.noises:
            self._kept.noises[item.layer] = item.noise
            self._write()

    def measured(self, prepared: Prepared, float_layers: int, scorer: Scorer, truth: Truth) -> _MeasuredScores:
        """Return the scores with ``float_layers`` float layers, from an earlier run if they are saved."""
        found = self._kept.scores.get(float_layers)
        if found is None or (truth is not None and found.hits is None):
            logits = scorer.logits(prepared.form(), stage=f"score, {float_layers} float layers", listen=self._listen)
            score = compare(logits, scorer.reference)
            hits = None if truth is None else int((logits.argmax(axis=1) == truth).sum())
            ranking = compare(logits[:RANKING_PICTURES], scorer.reference[:RANKING_PICTURES])
            found = _MeasuredScores(score.sqnr_db, ranking.db, round(score.agreement * score.n), hits)
            self._kept.scores[float_layers] = found
            self._write()
        return found

    def _save(self, prepared: Prepared, point: CurvePoint, judging: int) -> None:
        path = cache_keys.table_path(self._profile, self._cache)
        with store.lock(path):
            save_quantization(
                path, prepared, profile=self._profile, key=self._key(), pictures=self._pictures,
                statistics_file=self._statistics_file, accuracy=accuracy_of(point, judging),
            )  # fmt: skip

    def _record(self, curve: _Curve, recipe: Recipe, chosen: int, *, reached: bool, seconds: float) -> TuningRecord:
        graph = GraphIndex(self.folded)
        total = sum(item.noise for item in curve.noises) or 1.0
        ranges = curve.prepared(0).ranges
        layers = [
            RankedLayer(
                layer=item.layer,
                op_type=item.op_type,
                noise_share=item.noise / total,
                macs=curve.macs[item.layer],
                is_float=index < chosen,
                reason=reason_for(graph, self.layers[item.layer], curve.statistics, ranges),
            )
            for index, item in enumerate(curve.noises)
        ]
        return TuningRecord(
            profile=self._profile.name,
            model=self._model.path.name,
            pictures=curve.n,
            ranking_pictures=min(RANKING_PICTURES, curve.n),
            weighted_layers=len(self.layers),
            max_float=self._settings.max_float,
            target=self._settings.target,
            reached=reached,
            chosen=chosen,
            fp32_top1=curve.fp32_top1,
            curve=[curve.points[count] for count in sorted(curve.points)],
            layers=layers,
            steps=[msgspec.to_builtins(step) for step in recipe.steps],
            table=str(cache_keys.table_path(self._profile, self._cache)),
            seconds=seconds,
        )


class _Curve:
    """Accuracy against the number of float layers, the noisiest first."""

    def __init__(
        self,
        work: _Tuning,
        noises: list[LayerNoise],
        statistics: Statistics,
        recipe: Recipe,
        *,
        scorer: Scorer,
        truth: Truth,
    ) -> None:
        self.noises, self.statistics, self.n = noises, statistics, len(scorer.reference)
        self._work, self._recipe, self._scorer, self._truth = work, recipe, scorer, truth
        graph = GraphIndex(work.folded)
        macs = {name: layer_macs(graph, layer, statistics) for name, layer in work.layers.items()}
        self._all_macs = sum(macs.values()) or 1.0
        self.macs = {name: value / self._all_macs for name, value in macs.items()}
        self._measured: dict[int, _MeasuredScores] = {}
        self.points: dict[int, CurvePoint] = {}
        self.fp32_top1 = None if truth is None else self._share(int((scorer.reference.argmax(axis=1) == truth).sum()))

    def prepared(self, count: int) -> Prepared:
        """Return the network with the ``count`` noisiest layers in float, besides those that the profile excludes."""
        added = tuple(
            FloatLayer(item.layer, "among the noisiest layers", gain_db=self._gain_db(index))
            for index, item in enumerate(self.noises[:count])
        )
        recipe = msgspec.structs.replace(self._recipe, float_layers=(*self._recipe.float_layers, *added))
        return finish(self._work.folded, self.statistics, recipe)

    def choose(self, settings: TuneSettings) -> tuple[int, bool]:
        """Measure the curve; return the number of float layers to use, and True if it reaches the targets."""
        already = len(self._recipe.float_layers)
        limit = max(min(int(settings.max_float * len(self._work.layers)) - already, len(self.noises)), 0)
        shares = [round(share * len(self._work.layers)) for share in _MEASURED_SHARES]
        counts = sorted({count for count in (0, 1, 2, *shares, limit) if count <= limit})
        for count in counts:
            self._measure(count)
            if settings.target is not None and self._reaches(count, settings):
                # A smaller number may do: between the last one that missed and this one.
                before = max((other for other in self._measured if other < count), default=-1)
                for fewer in range(before + 1, count):
                    self._measure(fewer)
                    if self._reaches(fewer, settings):
                        return self._finished(fewer), True
                return self._finished(count), True
        best = max(self._db(count) for count in counts)
        chosen = next(count for count in counts if self._db(count) >= best - _SAME_DB)
        return self._finished(chosen), settings.target is None

    def _reaches(self, count: int, settings: TuneSettings) -> bool:
        same = 100.0 * self._measured[count].same / self.n
        return (settings.target_sqnr is None or self._db(count) >= settings.target_sqnr) and (
            settings.target_agreement is None or same >= settings.target_agreement
        )

    def _measure(self, count: int) -> None:
        self._measured[count] = self._work.measured(self.prepared(count), count, self._scorer, self._truth)

    def _db(self, count: int) -> float:
        found = self._measured[count].sqnr_db
        return _EQUAL_DB if found is None else found

    def _gain_db(self, index: int) -> float | None:
        if 0 not in self._measured:
            return None
        base = self._db(0)
        return round(
            predicted_sqnr(self.noises, index + 1, measured_db=base)
            - predicted_sqnr(self.noises, index, measured_db=base),
            2,
        )

    def _predicted(self, count: int) -> float:
        # From the nearest point that was measured before: what correlation makes of the sum is in it already.
        base = max((other for other in self._measured if other < count), default=0)
        return predicted_sqnr(
            self.noises, count,
            measured_db=self._db(base), ranked_db=self._measured[base].ranking_db, measured_layers=base,
        )  # fmt: skip

    def _finished(self, chosen: int) -> int:
        """Fill ``points``: predicted for every number up to 50 %, and measured where available."""
        last = max(*self._measured, min(len(self.noises), round(0.5 * len(self._work.layers))))
        times = self._work.times_ms
        in_float, float_ms = 0.0, 0.0
        for count in range(last + 1):
            found = self._measured.get(count)
            self.points[count] = CurvePoint(
                float_layers=count,
                macs=in_float,
                float_ms=None if times is None else float_ms,
                predicted_db=self._predicted(count),
                sqnr_db=None if found is None else found.sqnr_db,
                agreement=None if found is None else self._share(found.same),
                top1=None if found is None or found.hits is None else self._share(found.hits),
            )
            if count < len(self.noises):
                in_float += self.macs[self.noises[count].layer]
                float_ms += (times or {}).get(self.noises[count].layer, 0.0)
        return chosen

    def _share(self, count: int) -> Interval:
        share = wilson(count, self.n)
        return Interval(100.0 * share.value, 100.0 * share.low, 100.0 * share.high)
