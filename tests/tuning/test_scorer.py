from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edge.backends.interface import BuildRequest
from edge.backends.onnxruntime import OnnxRuntime, OrtSession
from edge.calibration import collection, watch_plan
from edge.config.profiles import Profile
from edge.errors import DataError
from edge.events import Progress, ignore_events
from edge.model import onnx_model
from edge.model.preprocessing import Preprocessor
from edge.quantization import algorithms, calibration_table
from edge.quantization.calibration_table import Table, TrtVersion
from edge.runtime import evaluation
from edge.tuning.scorer import Answers, Inputs, Scorer

Bench = Callable[..., object]


def table_of(chosen: Profile, pictures: object, name: str = "minmax", **parameters: float) -> Table:
    model = onnx_model.load(Path(chosen.model))
    graph = onnx_model.read(model.path).graph
    plan = watch_plan.plan(graph, model.activations)
    task = collection.StatisticsJob(
        str(model.path), model.sha256, chosen.preprocess, chosen.input, tuple(plan.watched), "histogram", 1
    )  # fmt: skip
    counted = collection.count(task, list(pictures))
    assert counted is not None
    rule, complete = algorithms.find(name, parameters)
    ranges = watch_plan.shared_ranges(graph, algorithms.ranges(plan.complete(counted), rule, complete))
    return calibration_table.from_ranges(ranges, algorithm=rule.table_name, trt_version=TrtVersion(10, 3, 0))


def examine(
    chosen: Profile,
    labelled: list,
    made: dict[str, Table],
    *,
    threads: int = 2,
    keep_bytes: int = 1 << 30,
    **more: object,
) -> tuple[Answers, dict[str, Answers]]:
    inputs = Inputs(labelled, Preprocessor(chosen.preprocess, chosen.input), keep_bytes=keep_bytes)
    truth = [picture.label for picture in labelled]
    examiner = Scorer(
        onnx_model.read(Path(chosen.model)), inputs, truth, batch=chosen.input.batch.min, threads=threads, **more
    )
    try:
        exact = examiner.reference()
        assert exact is not None
        return exact, dict(examiner.examine(made))
    finally:
        examiner.close()


def test_the_answers_are_those_of_edge_eval(bench: Bench) -> None:
    chosen, pictures, labelled, _cache = bench(8, 30)
    table = table_of(chosen, pictures)
    exact, found = examine(chosen, labelled, {"a": table})
    built = OnnxRuntime().build(BuildRequest(profile=chosen, model=Path(chosen.model), precision="int8", table=table))
    preprocessor = Preprocessor(chosen.preprocess, chosen.input)
    truth = [picture.label for picture in labelled]
    quantized = evaluation.logits(labelled, OrtSession(built.data, precision="int8", threads=1), preprocessor)
    plain = onnx_model.read(Path(chosen.model)).SerializeToString()
    full = evaluation.logits(labelled, OrtSession(plain, precision="fp32", threads=1), preprocessor)
    assert quantized is not None
    assert full is not None
    scores = evaluation.score(quantized, truth, precision="int8", reference=full, against="fp32")
    answers = found["a"]
    predicted = np.array(answers.predicted)
    assert 100.0 * (predicted == truth).mean() == pytest.approx(scores.top1)
    assert 100.0 * answers.top5.count("1") / 30 == pytest.approx(scores.top5)
    assert 100.0 * (predicted == exact.predicted).mean() == pytest.approx(scores.agreement)
    sqnr = 10.0 * np.log10(sum(exact.energy) / sum(answers.energy))
    assert sqnr == pytest.approx(scores.logit_sqnr_db, abs=1e-5)
    assert (answers.quantized, answers.weighted) == (4, 4)
    assert (exact.quantized, exact.weighted) == (0, 0)


@pytest.mark.parametrize(("threads", "keep_bytes"), [(1, 1 << 30), (5, 1 << 30), (2, 0)])
def test_threads_and_memory_do_not_change_an_answer(bench: Bench, threads: int, keep_bytes: int) -> None:
    chosen, pictures, labelled, _cache = bench(4, 11)
    made = {"a": table_of(chosen, pictures), "b": table_of(chosen, pictures, "percentile", percentile=80.0)}
    expected = examine(chosen, labelled, made)
    assert examine(chosen, labelled, made, threads=threads, keep_bytes=keep_bytes) == expected
    assert expected[1]["a"] != expected[1]["b"]


def test_a_rest_that_does_not_fill_the_batch_is_answered_all_the_same(bench: Bench, tiny_model: Callable) -> None:
    tiny_model("profiles/model.onnx", batch=4)
    chosen, _pictures, labelled, _cache = bench(2, 7, input={"batch": {"min": 4, "opt": 4, "max": 4}})
    exact, _ = examine(chosen, labelled, {})
    tiny_model("one.onnx")
    one = Scorer(
        onnx_model.read(Path("one.onnx")), Inputs(labelled, Preprocessor(chosen.preprocess, chosen.input)),
        [picture.label for picture in labelled], batch=1, threads=1,
    )  # fmt: skip
    alone = one.reference()
    one.close()
    assert alone is not None
    assert exact.predicted == alone.predicted
    assert exact.energy == pytest.approx(alone.energy, rel=1e-5)


def test_every_table_is_reported_when_it_is_through(bench: Bench) -> None:
    chosen, pictures, labelled, _cache = bench(4, 6)
    table = table_of(chosen, pictures)
    inputs = Inputs(labelled, Preprocessor(chosen.preprocess, chosen.input))
    examiner = Scorer(onnx_model.read(Path(chosen.model)), inputs, [0] * 6, batch=1, threads=2)
    heard: list[Progress] = []
    examiner.reference(listen=heard.append)
    assert {event.stage for event in heard} == {"prepare", "fp32"}
    heard.clear()
    names = [name for name, _ in examiner.examine({"a": table, "b": table, "c": table}, listen=heard.append)]
    examiner.close()
    assert names == ["a", "b", "c"]
    assert [(event.done, event.total) for event in heard] == [(0, 3), (1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("after", [0, 1])
def test_a_wish_to_stop_ends_it_between_pictures(bench: Bench, after: int) -> None:
    chosen, pictures, labelled, _cache = bench(4, 6)
    table = table_of(chosen, pictures)
    inputs = Inputs(labelled, Preprocessor(chosen.preprocess, chosen.input))
    through: list[str] = []
    asked = False
    examiner = Scorer(
        onnx_model.read(Path(chosen.model)), inputs, [0] * 6, batch=1, threads=2, should_stop=lambda: asked
    )
    examiner.reference()
    asked = after == 0
    for name, _ in examiner.examine({"a": table, "b": table, "c": table}):
        through.append(name)
        asked = len(through) >= after
    examiner.close()
    # The one in hand may be through by then.
    assert through in ([["a"], ["a", "b"]] if after else [[]])


def test_a_stopped_reference_is_none(bench: Bench) -> None:
    chosen, _pictures, labelled, _cache = bench(2, 3)
    inputs = Inputs(labelled, Preprocessor(chosen.preprocess, chosen.input))
    examiner = Scorer(
        onnx_model.read(Path(chosen.model)), inputs, [0] * 3, batch=1, threads=1, should_stop=lambda: True
    )
    assert examiner.reference() is None
    examiner.close()


@pytest.mark.parametrize("keep_bytes", [1 << 30, 0], ids=["kept", "streamed"])
def test_a_broken_picture_is_an_error(bench: Bench, keep_bytes: int) -> None:
    chosen, _pictures, labelled, _cache = bench(2, 5)
    with Path(labelled[4].where).open("r+b") as file:
        file.truncate(50)
    with pytest.raises(DataError, match=r"004\.jpg"):
        examine(chosen, labelled, {}, keep_bytes=keep_bytes)


def test_tables_need_the_reference_first(bench: Bench) -> None:
    chosen, pictures, labelled, _cache = bench(2, 3)
    inputs = Inputs(labelled, Preprocessor(chosen.preprocess, chosen.input))
    with ThreadPoolExecutor(1) as pool:
        assert inputs.prepare(pool, listen=ignore_events, should_stop=lambda: False)
    examiner = Scorer(onnx_model.read(Path(chosen.model)), inputs, [0] * 3, batch=1, threads=1)
    with pytest.raises(ValueError, match="reference"):
        list(examiner.examine({"a": table_of(chosen, pictures)}))
    examiner.close()
