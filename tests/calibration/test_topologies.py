"""Statistics of networks of every shape against brute force: what is kept is what all values of a tensor say.

Brute force runs each picture by itself (or a batch of copies of it, where the batch is fixed) and looks at the tensors
one by one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

from edge.backends.onnxruntime import OrtSession
from edge.calibration import collection
from edge.config.profiles import InputConfig, PreprocessConfig
from edge.media.picture_sources import open_pictures
from edge.media.pictures import Pictures
from edge.model import onnx_model
from edge.model.folding import fold
from edge.model.preprocessing import Preprocessor
from edge.quantization.statistics import BINS, Statistics
from tests.support.networks import KINDS, SIZE, network

PICTURES = 7
PREPROCESS = PreprocessConfig(fit="squash", mean=(127.0, 127.0, 127.0), std=(64.0, 64.0, 64.0))
INPUT = InputConfig(height=SIZE, width=SIZE)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(2)
    for index in range(PICTURES):
        cv2.imwrite(str(folder / f"{index}.png"), rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8))
    return open_pictures(folder)


def collected(path: Path, pictures: Pictures, *, threads: int) -> Statistics:
    model = onnx_model.load(path)
    plan = collection.plan(onnx_model.folded(path).graph, model.activations)
    job = collection.StatisticsJob(
        str(path), model.sha256, PREPROCESS, INPUT, tuple(plan.watched), "histogram", threads, model.outputs
    )
    found = collection.count(job, list(pictures))
    assert found is not None
    return plan.complete(found)


def brute_force(model: Any, pictures: Pictures, batch: int | None) -> dict[str, list[np.ndarray]]:
    """All values of each activation, a picture at a time."""
    folded = fold(model)
    names = onnx_model.activations_of(folded, "input", Path("x"))
    session = OrtSession(collection.with_outputs(folded, names[1:]), precision="fp32", threads=1)
    prepare = Preprocessor(PREPROCESS, INPUT)
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for picture in pictures:
        array = prepare(cv2.imread(str(picture.where)))
        given = np.stack([array] * (batch or 1))
        for name, values in zip(names, [given, *session.outputs(given)], strict=True):
            flat = np.asarray(values, np.float32).reshape(-1)
            # Rows of copies lie behind each other, along whichever axis: sorted, each value is there batch times.
            found[name].append(np.sort(flat)[:: batch or 1])
    return found


@pytest.mark.parametrize("batch", [None, 3], ids=["dynamic", "batches of 3"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_value_is_counted_whatever_the_axes_of_its_tensor(
    kind: str, batch: int | None, pictures: Pictures, tmp_path: Path
) -> None:
    model = network(kind, seed=KINDS.index(kind), batch="N" if batch is None else batch)
    onnx.save(model, tmp_path / "net.onnx")
    found = collected(tmp_path / "net.onnx", pictures, threads=2)
    for name, parts in brute_force(model, pictures, batch).items():
        values = np.concatenate(parts)
        tensor = found.tensors[name]
        assert tensor.count == values.size, name
        np.testing.assert_allclose([tensor.low, tensor.high], [values.min(), values.max()], rtol=1e-4, atol=1e-5)
        assert tensor.counts is not None
        step = np.floor(np.abs(values.astype(np.float64)) * BINS / 2.0**tensor.exponent).astype(np.int64)
        expected = np.bincount(np.where(np.signbit(values), BINS - 1 - step, BINS + step), minlength=2 * BINS)
        # Other batches, other orders of summation: a value near an edge may fall on its other side.
        assert np.abs(np.cumsum(tensor.counts) - np.cumsum(expected)).max() <= max(8, 0.005 * values.size), name


def test_the_first_axis_need_not_be_the_batch(pictures: Pictures, tmp_path: Path) -> None:
    """The fixed batch of one: its first picture is not the first row of every tensor."""
    model = network("windows", batch=1)
    onnx.save(model, tmp_path / "net.onnx")
    one = collected(tmp_path / "net.onnx", pictures, threads=1)
    onnx.save(network("windows"), tmp_path / "dynamic.onnx")
    assert one.to_bytes() == collected(tmp_path / "dynamic.onnx", pictures, threads=1).to_bytes()
