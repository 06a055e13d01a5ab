"""What each calibration table does to the network's answers, picture by picture.

The labelled pictures are preprocessed once. A table becomes a Q/DQ network that ONNX Runtime runs in INT8; while all
cores work on one, the next is made ready. Tables with the same scales give the same network and are run once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edge.backends import OrtSession
from edge.errors import DataError, DeviceError
from edge.events import Listener, Progress, ignore_events
from edge.media import Picture, decode
from edge.model import Preprocessor
from edge.quantization import Table, Template

if TYPE_CHECKING:
    from numpy.typing import NDArray

    # The logits of some pictures; None when stopped.
    _Part = Future[NDArray[np.float32] | None]

# Inputs up to this many bytes are kept; of more, each is decoded again for every table.
KEEP_BYTES = 1 << 30


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """What one network said to the labelled pictures, in their order.

    ``predicted`` is the top-1 class; ``top5`` has ``1`` where the true class is among the first five, else ``0``.
    ``energy`` is the sum of squares of a picture's logits; for INT8 it is that of their difference from FP32's, to
    seven digits. ``quantized`` of ``weighted`` layers with weights are in INT8 form (FP32: 0 of 0).
    """

    predicted: list[int]
    top5: str
    energy: list[float]
    quantized: int = 0
    weighted: int = 0


class _ScoredNetwork(msgspec.Struct, frozen=True):
    """A serialized INT8 network, and how many of its layers with weights are quantized."""

    data: bytes
    quantized: int
    weighted: int

    @classmethod
    def of(cls, template: Template, table: Table) -> _ScoredNetwork:
        made = template.insert(table)
        return cls(bytes(made.model.SerializeToString()), made.quantized, made.weighted)


class Inputs:
    """The pictures as the network takes them: kept in memory where they fit, else made again on every look."""

    def __init__(
        self, pictures: Sequence[Picture], preprocessor: Preprocessor, *, keep_bytes: int = KEEP_BYTES
    ) -> None:
        target = preprocessor.target
        self._pictures = pictures
        self._preprocessor = preprocessor
        fits = len(pictures) * 3 * target.height * target.width * 4 <= keep_bytes
        shape = (len(pictures), 3, target.height, target.width)
        self._kept: NDArray[np.float32] | None = np.empty(shape, np.float32) if fits else None

    def __len__(self) -> int:
        return len(self._pictures)

    def prepare(self, pool: ThreadPoolExecutor, *, listen: Listener, should_stop: Callable[[], bool]) -> bool:
        """Decode and preprocess what is kept; False when ``should_stop`` ended it early.

        Raises:
            DataError: a picture cannot be read or decoded.
        """
        kept = self._kept
        if kept is None:
            return True

        def fill(index: int) -> None:
            if not should_stop():
                self._load(index, kept[index])

        for done, _ in enumerate(pool.map(fill, range(len(self))), start=1):
            listen(Progress("prepare", done, len(self)))
        return not should_stop()

    def batch(self, start: int, stop: int) -> NDArray[np.float32]:
        """Pictures ``start`` to ``stop``, float32 N×3×H×W."""
        if self._kept is not None:
            return self._kept[start:stop]
        return np.stack([self._load(index, None) for index in range(start, stop)])

    def _load(self, index: int, out: NDArray[np.float32] | None) -> NDArray[np.float32]:
        picture = self._pictures[index]
        return self._preprocessor(decode(picture.read_checked(), name=picture.where), out)


class Scorer:
    """Runs networks over the labelled pictures, with all threads on one network at a time."""

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - an onnx.ModelProto
        inputs: Inputs,
        truth: Sequence[int],
        *,
        batch: int,
        threads: int,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._model = model
        self._template = Template(model, target="onnxruntime")
        self._inputs = inputs
        self._truth = np.asarray(truth)
        self._batch = batch
        self._should_stop = should_stop
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="score")
        self._exact: NDArray[np.float32] | None = None

    def close(self) -> None:
        """Let the threads go."""
        self._pool.shutdown(cancel_futures=True)

    def reference(self, *, listen: Listener = ignore_events) -> Answers | None:
        """Answers of the FP32 network; None when stopped. To be asked first.

        Raises:
            DataError: a picture cannot be read, or all logits are zero.
            DeviceError: NaN or infinity.
        """
        if not self._inputs.prepare(self._pool, listen=listen, should_stop=self._should_stop):
            return None
        logits = self._finish(self._start(self._model.SerializeToString(), "fp32"), listen=listen, stage="fp32")
        if logits is None:
            return None
        self._exact = logits
        found = self._answers(logits, np.square(logits, dtype=np.float64).sum(axis=1))
        if not any(found.energy):
            raise DataError("all logits of the FP32 network are zero: there is nothing to compare with")
        return found

    def examine(
        self, tables: Mapping[str, Table], *, listen: Listener = ignore_events
    ) -> Iterator[tuple[str, Answers]]:
        """Answers of each table's INT8 network, by the names in ``tables``; ends early when stopped.

        Raises:
            ModelError: a table does not fit the model.
            DeviceError: NaN or infinity.
        """
        listen(Progress("score", 0, len(tables), unit="tables"))
        running: tuple[str, _ScoredNetwork, list[_Part]] | None = None
        for done, (name, table) in enumerate((*tables.items(), ("", None))):
            # The pool works on the one before while this thread makes the next ready.
            following = None if table is None or self._should_stop() else _ScoredNetwork.of(self._template, table)
            if running is not None:
                before, network, parts = running
                logits = self._finish(parts)
                if logits is None:
                    return
                yield before, self._against_exact(logits, network)
                listen(Progress("score", done, len(tables), unit="tables"))
            if following is None:
                return
            running = (name, following, self._start(following.data, "int8"))

    def _start(self, model: bytes, precision: str) -> list[_Part]:
        # One thread per picture scales better than many threads in one, and all may use the same session.
        session = OrtSession(model, precision=precision, threads=1)
        return [
            self._pool.submit(self._run, session, start, min(start + self._batch, len(self._inputs)))
            for start in range(0, len(self._inputs), self._batch)
        ]

    def _run(self, session: OrtSession, start: int, stop: int) -> NDArray[np.float32] | None:
        if self._should_stop():
            return None
        values = self._inputs.batch(start, stop)
        if len(values) < self._batch:
            values = np.concatenate([values, np.repeat(values[-1:], self._batch - len(values), axis=0)])
        logits = session.outputs(values)[0][: stop - start]
        if not np.isfinite(logits).all():
            raise DeviceError(
                f"the {session.precision} network's answer holds NaN or infinity (picture {start + 1} on)"
            )
        return logits

    def _finish(
        self, running: list[_Part], *, listen: Listener = ignore_events, stage: str = ""
    ) -> NDArray[np.float32] | None:
        parts: list[NDArray[np.float32]] = []
        done = 0
        for future in running:
            part = future.result()
            if part is None:
                return None
            parts.append(part)
            done += len(part)
            if stage:
                listen(Progress(stage, done, len(self._inputs)))
        return np.concatenate(parts)

    def _against_exact(self, logits: NDArray[np.float32], network: _ScoredNetwork) -> Answers:
        if self._exact is None:
            raise ValueError("ask for the reference first")
        noise = np.square(logits.astype(np.float64) - self._exact).sum(axis=1)
        answers = self._answers(logits, noise)
        return msgspec.structs.replace(answers, quantized=network.quantized, weighted=network.weighted)

    def _answers(self, logits: NDArray[np.float32], energy: NDArray[np.float64]) -> Answers:
        # Ties go to the lower class, as in edge eval.
        top = np.argsort(-logits, axis=1, kind="stable")[:, :5]
        among = (top == self._truth[:, None]).any(axis=1)
        return Answers(
            predicted=top[:, 0].tolist(),
            top5="".join("1" if hit else "0" for hit in among),
            energy=[float(f"{value:.6e}") for value in energy],
        )
