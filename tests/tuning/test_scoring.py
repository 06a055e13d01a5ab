from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import onnx
import pytest

from edge.backends.onnxruntime import OrtSession
from edge.calibration import collection
from edge.calibration.scoring import PictureInputs, Scorer, TableForms, compare, spread
from edge.config.profiles import Profile
from edge.errors import DataError, DeviceError
from edge.events import Progress
from edge.model import onnx_model
from edge.model.preprocessing import Preprocessor
from edge.quantization import algorithms, calibration_table, qdq
from edge.quantization.calibration_table import Table, TrtVersion
from edge.runtime import evaluation

Bench = Callable[..., object]


def table_of(chosen: Profile, pictures: object, name: str = "minmax", **parameters: float) -> Table:
    model = onnx_model.load(Path(chosen.model))
    graph = onnx_model.read(model.path).graph
    plan = collection.plan(graph, model.activations)
    task = collection.StatisticsJob(
        str(model.path), model.sha256, chosen.preprocess, chosen.input, tuple(plan.watched), "histogram", 1
    )  # fmt: skip
    counted = collection.count(task, list(pictures))
    assert counted is not None
    rule, complete = algorithms.find(name, parameters)
    ranges = collection.shared_ranges(graph, algorithms.ranges(plan.complete(counted), rule, complete))
    return calibration_table.from_ranges(ranges, algorithm=rule.table_name, trt_version=TrtVersion(10, 3, 0))


def inputs_of(chosen: Profile, labelled: list, **more: int) -> PictureInputs:
    return PictureInputs(labelled, Preprocessor(chosen.preprocess, chosen.input), **more)


def test_scores_are_those_of_edge_eval(bench: Bench) -> None:
    chosen, pictures, labelled, _cache = bench(8, 30)
    plain = onnx_model.read(Path(chosen.model))
    form = qdq.insert(plain, table_of(chosen, pictures), target="tensorrt").model
    scorer = Scorer(Path(chosen.model), inputs_of(chosen, labelled), threads=2)
    found = scorer.score(form)
    preprocessor = Preprocessor(chosen.preprocess, chosen.input)
    own, full = (
        evaluation.logits(labelled, OrtSession(data, precision="x", threads=1, optimize=False), preprocessor)
        for data in (form.SerializeToString(), plain.SerializeToString())
    )
    assert own is not None
    assert full is not None
    scores = evaluation.score(own, [0] * 30, precision="int8", reference=full, against="fp32")
    assert found.sqnr_db == pytest.approx(scores.logit_sqnr_db)
    assert 100 * found.agreement == pytest.approx(scores.agreement)
    assert found.n == 30


@pytest.mark.parametrize(("threads", "keep_bytes"), [(1, 1 << 30), (5, 1 << 30), (2, 0)])
def test_threads_and_memory_do_not_change_a_score(bench: Bench, threads: int, keep_bytes: int) -> None:
    chosen, pictures, labelled, _cache = bench(4, 11)
    form = qdq.insert(onnx_model.read(Path(chosen.model)), table_of(chosen, pictures), target="tensorrt").model
    expected = Scorer(Path(chosen.model), inputs_of(chosen, labelled), threads=2).logits(form)
    scorer = Scorer(Path(chosen.model), inputs_of(chosen, labelled, keep_bytes=keep_bytes), threads=threads)
    assert np.array_equal(scorer.logits(form), expected)


def test_a_fixed_batch_is_filled_with_its_picture(bench: Bench, tiny_model: Callable) -> None:
    tiny_model("profiles/model.onnx", batch=4)
    chosen, _pictures, labelled, _cache = bench(2, 7, input={"batch": {"min": 4, "opt": 4, "max": 4}})
    tiny_model("one.onnx")
    of_four = Scorer(Path(chosen.model), inputs_of(chosen, labelled), fixed_batch=4).reference
    alone = Scorer(Path("one.onnx"), inputs_of(chosen, labelled)).reference
    assert of_four.shape == alone.shape
    assert np.allclose(of_four, alone, rtol=1e-5)


def test_tables_after_the_first_only_replace_scales(bench: Bench) -> None:
    chosen, pictures, _labelled, _cache = bench(6, 2)
    model = onnx_model.read(Path(chosen.model))
    forms = TableForms(model)
    for name, parameters in (("minmax", {}), ("percentile", {"percentile": 80.0}), ("minmax", {})):
        table = table_of(chosen, pictures, name, **parameters)
        expected = qdq.insert(model, table, target="tensorrt")
        made = forms.insert(table)
        assert made.model.SerializeToString(deterministic=True) == expected.model.SerializeToString(deterministic=True)
        assert (made.quantized, made.weighted) == (expected.quantized, expected.weighted) == (4, 4)


def test_every_picture_is_a_progress_event(bench: Bench) -> None:
    chosen, _pictures, labelled, _cache = bench(2, 3)
    inputs = inputs_of(chosen, labelled)
    heard: list[Progress] = []
    inputs.prepare(threads=2, listen=heard.append)
    assert [(event.stage, event.done, event.total) for event in heard] == [("prepare", i, 3) for i in (1, 2, 3)]


def test_scoring_stops_when_asked(bench: Bench) -> None:
    chosen, _pictures, labelled, _cache = bench(2, 3)
    inputs = inputs_of(chosen, labelled)
    with pytest.raises(CancelledError):
        inputs.prepare(should_stop=lambda: True)
    scorer = Scorer(Path(chosen.model), inputs, should_stop=lambda: True)
    with pytest.raises(CancelledError):
        _ = scorer.reference


@pytest.mark.parametrize("keep_bytes", [1 << 30, 0], ids=["kept", "streamed"])
def test_a_broken_picture_is_an_error(bench: Bench, keep_bytes: int) -> None:
    chosen, _pictures, labelled, _cache = bench(2, 5)
    with Path(labelled[4].where).open("r+b") as file:
        file.truncate(50)
    with pytest.raises(DataError, match=r"004\.jpg"):
        _ = Scorer(Path(chosen.model), inputs_of(chosen, labelled, keep_bytes=keep_bytes)).reference


def test_no_pictures_are_an_error(bench: Bench) -> None:
    chosen, _pictures, _labelled, _cache = bench(2, 2)
    with pytest.raises(DataError, match="no images to score with"):
        Scorer(Path(chosen.model), [])


def test_logits_that_are_all_zero_or_not_finite_are_errors(bench: Bench) -> None:
    chosen, _pictures, labelled, _cache = bench(2, 2)
    model = onnx_model.read(Path(chosen.model))
    for value, kind, what in ((0.0, DataError, "all logits"), (np.nan, DeviceError, "NaN or infinity")):
        last = model.graph.node[-1]
        for item in model.graph.initializer:
            if item.name in last.input:
                shape = tuple(item.dims)
                item.CopyFrom(onnx.numpy_helper.from_array(np.full(shape, value, np.float32), item.name))
        with pytest.raises(kind, match=what):
            _ = Scorer(model.SerializeToString(), inputs_of(chosen, labelled)).reference


def test_sqnr_and_agreement_by_hand() -> None:
    reference = np.array([[3.0, 0.0], [0.0, 4.0]], np.float32)
    found = compare(np.array([[3.0, 0.5], [4.0, 3.9]], np.float32), reference)
    assert found.sqnr_db == pytest.approx(10 * np.log10(25 / (0.25 + 16 + 0.01)))
    assert (found.agreement, found.n) == (0.5, 2)
    assert compare(reference, reference) == type(found)(None, 1.0, 2)


def test_pictures_are_spread_over_the_set() -> None:
    assert sorted(spread(list(range(10)), 3)) == [0, 3, 6]
    first = spread(list(range(400)), 64)[:8]
    assert max(first) > 300
    assert len({index // 100 for index in first}) == 4
    assert sorted(spread([1, 2], 5)) == [1, 2]
