"""Score INT8 accuracy: logit SQNR and agreement with FP32 on images, with faithful arithmetic.

A Q/DQ network is run operator by operator in float32 (no graph optimization, no integer kernels): every tensor is
rounded exactly where the network has Q/DQ nodes, and everything else is exact. TensorRT's INT8 kernels compute the same
up to the order of float additions. ONNX Runtime's own integer kernels also round in other places, so their outputs may
differ; :mod:`edge.runtime` reports both if that matters.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edge.backends import OrtSession
from edge.calibration.quality import MeasuredAccuracy
from edge.config import Profile
from edge.errors import DataError, DeviceError
from edge.events import Listener, Progress, ignore_events
from edge.media import Picture, decode
from edge.model import Preprocessor, WeightedLayer, onnx_model, weighted_layers
from edge.quantization import QdqResult, Table, qdq, table_check
from edge.stats import sqnr_db, wilson

if TYPE_CHECKING:
    from numpy.typing import NDArray


# The noise of a whole network over the sum of its layers' (a power ratio, 1 dB) that is correlation between them.
_CORRELATED = 1.25
# Numbers of images and layers for :func:`worst_layers`.
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
    """Measure the noise of every layer when only that layer is quantized; the largest first.

    Args:
        layers: the layers.
        form_of: The Q/DQ model (an onnx.ModelProto) in which only the named layer is quantized.
        scorer: The images to measure on.
        reference: Logits without noise, n × classes; those of the scorer's reference where None.
        most: Use only the first images of the scorer.
        known: known noise of layers by name; these are not measured again.
        on_layer: called with each layer as soon as it is measured.
        listen: called with the progress.
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
    noises: Sequence[LayerNoise],
    float_layers: int,
    *,
    measured_db: float,
    ranked_db: float | None = None,
    measured_layers: int = 0,
) -> float:
    """Predict the logit SQNR in dB with the ``float_layers`` noisiest layers in float.

    Args:
        noises: Of all quantized layers, the largest first.
        float_layers: number of them in float.
        measured_db: SQNR with the ``measured_layers`` noisiest in float.
        ranked_db: The same on the images that ranked the layers, where those are others. The sum of the noises is
            scaled to it; what it lacks by more than 1 dB belongs to no weighted layer (sums, pools) and stays.
        measured_layers: Number of float layers that ``measured_db`` was measured with, at most ``float_layers``.
    """
    total, rest = (sum(item.noise for item in noises[start:]) for start in (measured_layers, float_layers))
    if total <= 0.0:
        return measured_db
    ranked = 10.0 ** (-(measured_db if ranked_db is None else ranked_db) / 10.0)
    scale = min(ranked / total, _CORRELATED)
    share = (rest * scale + max(ranked - _CORRELATED * total, 0.0)) / ranked
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
    """Return the names of the three weighted layers with the largest quantization loss on a few of ``pictures``.

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


# Inputs up to this many bytes are stored in memory.
KEEP_BYTES = 1 << 30
# Number of images for :func:`measure_accuracy`: enough for the limits of agreement, which need 50.
MEASURED_PICTURES = 64
# SQNR values for "equal" and for "contains NaN or infinity", where a number is needed for sorting.
_EQUAL_DB, _BROKEN_DB = 200.0, -100.0


class Score(msgspec.Struct, frozen=True):
    """Distance of a network's logits from those of FP32 over ``n`` images.

    ``sqnr_db`` is 10·log10(Σ reference² / Σ difference²) over all logits of all images, None when they are equal;
    ``agreement`` is the share of images (0 to 1) with the same top-1 class.
    """

    sqnr_db: float | None
    agreement: float
    n: int

    @property
    def db(self) -> float:
        """SQNR as a number for sorting, also if the logits are equal."""
        return _EQUAL_DB if self.sqnr_db is None else self.sqnr_db


def compare(own: NDArray[np.float32], reference: NDArray[np.float32]) -> Score:
    """Score ``own`` logits against ``reference``, both n × classes; the lowest score if ``own`` is not finite."""
    if not np.isfinite(own).all():
        return Score(_BROKEN_DB, 0.0, len(own))
    same = own.argmax(axis=1) == reference.argmax(axis=1)
    return Score(sqnr_db(own, reference), float(same.mean()), len(own))


class Scorer:
    """Scores networks against one FP32 network on fixed images; all threads work on one network at a time.

    Args:
        reference: The user's own ONNX: an onnx.ModelProto, serialized, or a path.
        pictures: Preprocessed images, float32 3×H×W each; they are loaded when needed.
        fixed_batch: the network's fixed batch size; None if it accepts one image.
        threads: number of concurrent calls; None means all cores.
        should_stop: checked before every call; if true, scoring raises :class:`concurrent.futures.CancelledError`.

    Raises:
        DataError: No images.
    """

    def __init__(
        self,
        reference: Any,  # noqa: ANN401 - an onnx.ModelProto, bytes or a path
        pictures: Sequence[NDArray[np.float32]],
        *,
        fixed_batch: int | None = None,
        threads: int | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        if not pictures:
            raise DataError("no images to score with")
        self.pictures = pictures
        self._size = fixed_batch or 1
        self._threads = threads or os.cpu_count() or 1
        self._should_stop = should_stop
        self._model = reference
        self._reference: NDArray[np.float32] | None = None

    @property
    def reference(self) -> NDArray[np.float32]:
        """Return the logits of the FP32 network, n × classes; they are computed once.

        Raises:
            DataError: All logits are zero.
            DeviceError: NaN or infinity.
            ModelError: The network cannot be loaded.
            CancelledError: ``should_stop`` was true.
        """
        if self._reference is None:
            found = self.logits(self._model, optimize=True)
            if not np.isfinite(found).all():
                raise DeviceError("the output of the FP32 network contains NaN or infinity")
            if not found.any():
                raise DataError("all logits of the FP32 network are zero: there is nothing to compare with")
            self._reference = found
        return self._reference

    def first(self, count: int) -> Scorer:
        """Return a scorer on the first ``count`` images only."""
        if count >= len(self.pictures):
            return self
        pictures = [self.pictures[index] for index in range(count)]
        made = Scorer(
            self._model, pictures,
            fixed_batch=None if self._size == 1 else self._size, threads=self._threads, should_stop=self._should_stop,
        )  # fmt: skip
        made._reference = self.reference[:count]
        return made

    @property
    def batches(self) -> Iterator[NDArray[np.float32]]:
        """Yield the images in batches, float32 N×3×H×W; the last batch is padded with its last image."""
        return (self._batch(start) for start in range(0, len(self.pictures), self._size))

    def logits(
        self,
        model: Any,  # noqa: ANN401 - an onnx.ModelProto, bytes or a path
        *,
        optimize: bool = False,
        most: int | None = None,
        stage: str = "score",
        listen: Listener = ignore_events,
    ) -> NDArray[np.float32]:
        """Return the logits of a network, n × classes.

        Args:
            model: An onnx.ModelProto, serialized, or a path.
            optimize: Let onnxruntime optimize the graph; right for float networks only.
            most: Use only the first ``most`` images.
            stage: Name of the progress events.
            listen: called with a progress event for each image.

        Raises:
            ModelError, DeviceError: The network cannot be loaded, or fails.
            CancelledError: ``should_stop`` was true.
        """
        data = model.read_bytes() if isinstance(model, Path) else model
        data = data if isinstance(data, bytes) else bytes(data.SerializeToString())
        # One thread per picture scales better than many threads in one.
        session = OrtSession(data, precision="float arithmetic", threads=1, optimize=optimize)
        del data
        count = min(most or len(self.pictures), len(self.pictures))

        def run(start: int) -> NDArray[np.float32]:
            if self._should_stop():
                raise CancelledError
            rows = min(self._size, count - start)
            return np.asarray(session.outputs(self._batch(start))[0])[:rows].reshape(rows, -1)

        with ThreadPoolExecutor(self._threads, thread_name_prefix="score") as pool:
            try:
                found = []
                for rows in pool.map(run, range(0, count, self._size)):
                    found.append(rows)
                    listen(Progress(stage, min(len(found) * self._size, count), count))
                return np.concatenate(found)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            finally:
                session.close()

    def score(self, model: Any, *, most: int | None = None) -> Score:  # noqa: ANN401
        """Score a network (an onnx.ModelProto, serialized, or a path) on all or the first ``most`` images."""
        return compare(self.logits(model, most=most), self.reference[:most])

    def deviation(self, model: Any) -> float:  # noqa: ANN401
        """Return the largest difference of a float network's logits from the reference, as a share of the largest."""
        return float(np.abs(self.logits(model, optimize=True) - self.reference).max() / np.abs(self.reference).max())

    def _batch(self, start: int) -> NDArray[np.float32]:
        last = len(self.pictures) - 1
        return np.stack([self.pictures[min(index, last)] for index in range(start, start + self._size)])


class PictureInputs(Sequence["NDArray[np.float32]"]):
    """Preprocessed images, float32 3×H×W each.

    They are stored in memory up to ``keep_bytes``; beyond that, each image is decoded again on every access.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        preprocessor: Preprocessor,
        *,
        keep_bytes: int = KEEP_BYTES,
    ) -> None:
        target = preprocessor.target
        self._pictures, self._preprocessor = pictures, preprocessor
        self._keeps = len(pictures) * 3 * target.height * target.width * 4 <= keep_bytes
        self._kept: list[NDArray[np.float32] | None] = [None] * len(pictures)

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401 - as Sequence has it
        kept = self._kept[index]
        return self._load(index) if kept is None else kept

    def prepare(
        self,
        *,
        threads: int | None = None,
        listen: Listener = ignore_events,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Decode the images to store, with a progress event for each.

        Raises:
            DataError: an image cannot be read or decoded.
            CancelledError: ``should_stop`` returned True.
        """

        def load(index: int) -> None:
            if should_stop():
                raise CancelledError
            self._load(index)

        if not self._keeps:
            return
        with ThreadPoolExecutor(threads or os.cpu_count() or 1, thread_name_prefix="prepare") as pool:
            try:
                for done, _ in enumerate(pool.map(load, range(len(self))), start=1):
                    listen(Progress("prepare", done, len(self)))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _load(self, index: int) -> NDArray[np.float32]:
        picture = self._pictures[index]
        exif = self._preprocessor.spec.exif
        most = self._preprocessor.spec.max_megapixels
        loaded = self._preprocessor(decode(picture.read_checked(), name=picture.where, exif=exif, max_megapixels=most))
        if self._keeps:
            self._kept[index] = loaded
        return loaded


def spread(pictures: Sequence[Picture], count: int) -> list[Picture]:
    """Choose ``count`` of the images at even distances, because a folder is often sorted by class.

    In the resulting order, the first few images are spread over the set as well.
    """
    kept = min(count, len(pictures))
    # Multiples of the golden ratio, modulo 1, fill the unit interval evenly.
    order = sorted(range(kept), key=lambda index: (index * 0.6180339887498949) % 1.0)
    places = {place: index for index, place in enumerate(order)}
    return [pictures[places[index] * len(pictures) // kept] for index in range(kept)]


def inputs_of(
    profile: Profile,
    pictures: Sequence[Picture],
    count: int,
    *,
    threads: int | None = None,
    listen: Listener = ignore_events,
    should_stop: Callable[[], bool] = lambda: False,
) -> PictureInputs:
    """Decode and preprocess ``count`` of the images, spread over the set, with the profile's settings.

    Raises:
        DataError: An image cannot be read or decoded.
        CancelledError: ``should_stop`` was true.
    """
    inputs = PictureInputs(spread(pictures, count), Preprocessor(profile.preprocess, profile.input))
    inputs.prepare(threads=threads, listen=listen, should_stop=should_stop)
    return inputs


def tensorrt_form(profile: Profile, table: Table) -> QdqResult:
    """Return the Q/DQ network that TensorRT gets for ``profile`` with ``table``.

    Raises:
        ModelError: The model cannot be read or quantized.
    """
    return qdq.insert(onnx_model.read(Path(profile.model), profile.outputs), table, target="tensorrt")


def measure_accuracy(
    profile: Profile,
    table: Table,
    pictures: Sequence[Picture],
    *,
    quantized: Profile | None = None,
    threads: int | None = None,
    listen: Listener = ignore_events,
    should_stop: Callable[[], bool] = lambda: False,
) -> MeasuredAccuracy:
    """Measure the accuracy of the TensorRT form of ``table`` on at most :data:`MEASURED_PICTURES` of ``pictures``.

    ``quantized`` is the profile with the prepared model of the table, if that is not the user's own.

    Raises:
        DataError: An image cannot be read or decoded.
        ModelError, DeviceError: A network cannot be loaded, or fails.
        CancelledError: ``should_stop`` was true.
    """
    model = onnx_model.load(Path(profile.model), profile.outputs)
    inputs = inputs_of(profile, pictures, MEASURED_PICTURES, threads=threads, listen=listen, should_stop=should_stop)
    scorer = Scorer(
        onnx_model.read(model.path, profile.outputs), inputs,
        fixed_batch=model.fixed_batch, threads=threads, should_stop=should_stop,
    )  # fmt: skip
    form = tensorrt_form(quantized or profile, table)
    return measured_accuracy(compare(scorer.logits(form.model, stage="score int8", listen=listen), scorer.reference))


def measured_accuracy(score: Score) -> MeasuredAccuracy:
    """Convert a score for the table of limits: agreement in percent, with its 95 % interval."""
    share = wilson(round(score.agreement * score.n), score.n)
    return MeasuredAccuracy(
        n=score.n,
        sqnr_db=score.sqnr_db,
        agreement=100.0 * share.value,
        agreement_interval=(100.0 * share.low, 100.0 * share.high),
    )


class TableForms:
    """TensorRT Q/DQ forms of one model for many tables: the quantizer runs once, later only scales are replaced.

    A table with scales for other tensors than the previous one has other Q/DQ nodes, and the quantizer runs again.
    """

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - an onnx.ModelProto
        self._model = model
        self._form: QdqResult | None = None
        self._scaled: frozenset[str] = frozenset()

    def insert(self, table: Table) -> QdqResult:
        """Work like :func:`edge.quantization.qdq.insert`; the next call overwrites the returned model.

        Raises:
            ModelError: the quantizer cannot handle the model.
        """
        usable = frozenset(name for name, bits in table.bits.items() if table_check.value_code(bits) is None)
        if self._form is None or usable != self._scaled:
            self._form, self._scaled = qdq.insert(self._model, table, target="tensorrt"), usable
            return self._form
        graph = self._form.model.graph
        constants = {item.name: item for item in graph.initializer}
        for node in graph.node:
            if node.op_type == "QuantizeLinear" and node.input[0] in usable:
                item, scale = constants[node.input[1]], np.float32(table.scale(node.input[0]))
                # In the encoding that the quantizer gave it.
                if item.float_data:
                    item.float_data[:] = [float(scale)]
                else:
                    item.raw_data = scale.tobytes()
        return self._form
