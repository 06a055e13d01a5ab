"""Calibration with a recipe: what it leaves next to the table, that builds take it, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

from edge.backends.onnxruntime import OnnxRuntime
from edge.calibration import cache_keys, collection, preparation, workflow
from edge.calibration.histograms import collect
from edge.calibration.preparation import PreparationSettings, prepare
from edge.calibration.scoring import Scorer
from edge.config.profiles import Profile, read_profile
from edge.engines import building, engine_report
from edge.errors import ArtifactError, ModelError, ProfileError, QualityError
from edge.media.picture_sources import open_pictures
from edge.model import onnx_model
from edge.model.folding import fold
from edge.model.graph import weighted_layers
from edge.quantization.prepare import apply
from edge.quantization.qdq import insert
from edge.quantization.recipe import FloatLayer, Recipe, decode_recipe, encode_recipe
from tests.support.networks import network

Make = Callable[..., Path]
Calibrate = Callable[..., tuple[Profile, workflow.CalibrationOutcome]]


@pytest.fixture
def calibrated(tmp_path: Path, tiny_profile: Make, pictures: Callable[..., list[Path]]) -> Calibrate:
    pictures(tmp_path / "p", 8)

    def run(**quantization: Any) -> tuple[Profile, workflow.CalibrationOutcome]:
        path = tiny_profile(
            tmp_path, calibration={"algorithm": "auto"}, quantization={"recipe": "auto", **quantization}
        )
        profile = read_profile(path)
        outcome = workflow.calibrate(profile, open_pictures(tmp_path / "p"), cache=tmp_path / "cache")
        assert outcome is not None
        return profile, outcome

    return run


def built(profile: Profile, tmp_path: Path) -> building.BuildOutcome:
    return building.build(profile, OnnxRuntime(), cache=tmp_path / "cache", engines=tmp_path / "engines")


def recipe_of(outcome: workflow.CalibrationOutcome) -> Recipe:
    path = outcome.table.with_suffix(".recipe.json")
    return decode_recipe(path.read_bytes(), where=path)


# what is kept, and who takes it


def test_a_calibration_keeps_recipe_and_prepared_model_next_to_the_table(calibrated: Calibrate, tmp_path: Path) -> None:
    profile, outcome = calibrated()
    assert outcome.table.name == "auto-all.table"
    recipe = recipe_of(outcome)
    measured = {step.name: step for step in recipe.steps}
    assert {name for name in measured if name.startswith("algorithm ") and measured[name].is_applied} == {
        f"algorithm {recipe.algorithm}"
    }
    assert all(step.reason for step in recipe.steps if not step.is_applied)
    found = cache_keys.find_table(profile, tmp_path / "cache")
    prepared = cache_keys.quantized_profile(profile, found)
    assert prepared.model == str(outcome.table.with_suffix(".prepared.onnx"))
    onnx.checker.check_model(prepared.model, full_check=True)
    assert set(onnx_model.load(Path(prepared.model)).activations) <= set(cache_keys.read_table(found).bits)


def test_a_build_takes_the_prepared_model_and_eval_the_users_own(calibrated: Calibrate, tmp_path: Path) -> None:
    profile, _ = calibrated()
    done = built(profile, tmp_path)
    assert done.layers is not None
    assert done.layers.int8_share == 1.0
    assert built(profile, tmp_path).work == "unchanged"
    workflow_again = calibrated()[1]
    assert workflow_again.work == "unchanged"


def test_a_prepared_model_that_is_missing_is_made_again_to_the_bit(calibrated: Calibrate, tmp_path: Path) -> None:
    profile, outcome = calibrated()
    path = outcome.table.with_suffix(".prepared.onnx")
    before = path.read_bytes()
    path.unlink()
    path.with_suffix(".json").unlink()
    built(profile, tmp_path)
    assert path.read_bytes() == before


def test_a_prepared_model_that_was_changed_is_not_used(calibrated: Calibrate, tmp_path: Path) -> None:
    profile, outcome = calibrated()
    path = outcome.table.with_suffix(".prepared.onnx")
    before = path.read_bytes()
    path.write_bytes(before[:-1] + b"\0")
    built(profile, tmp_path)
    assert path.read_bytes() == before


def test_a_recipe_that_was_changed_is_refused(calibrated: Calibrate, tmp_path: Path) -> None:
    profile, outcome = calibrated()
    path = outcome.table.with_suffix(".recipe.json")
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ArtifactError):
        built(profile, tmp_path)


def test_a_table_from_before_there_were_recipes_is_still_taken(
    calibrated: Calibrate, tmp_path: Path, tiny_profile: Make, pictures: Callable[..., list[Path]]
) -> None:
    pictures(tmp_path / "p", 8)
    older = read_profile(tiny_profile(tmp_path))
    workflow.calibrate(older, open_pictures(tmp_path / "p"), cache=tmp_path / "cache")
    newer = read_profile(tiny_profile(tmp_path, quantization={"recipe": "auto"}))
    found = cache_keys.find_table(newer, tmp_path / "cache")
    assert found.path.name == "entropy2.table"
    assert cache_keys.quantized_profile(newer, found) == newer
    assert built(newer, tmp_path).work == "built"


def test_without_a_recipe_the_best_algorithm_is_found_all_the_same(calibrated: Calibrate, tmp_path: Path) -> None:
    profile, outcome = calibrated(recipe="none")
    assert outcome.table.name == "auto.table"
    assert not outcome.table.with_suffix(".recipe.json").exists()
    found = cache_keys.find_table(profile, tmp_path / "cache")
    assert found.manifest.info["algorithm"] in {"minmax", "percentile", "legacy", "mse", "entropy", "entropy2"}
    assert set(cache_keys.read_table(found).bits) == set(onnx_model.load(Path(profile.model)).activations)


# layers in float


def test_excluded_layers_stay_in_float(calibrated: Calibrate, tmp_path: Path) -> None:
    profile, outcome = calibrated(exclude=["Gemm"])
    assert [item.layer for item in recipe_of(outcome).float_layers] == ["gemm_9"]
    done = built(profile, tmp_path)  # the others are all of those that INT8 is wanted for
    assert done.layers is not None
    assert (done.layers.weighted, done.layers.weighted_int8, done.layers.weighted_float) == (4, 3, 1)
    card = engine_report.load(done.manifest)
    assert [(item.node, item.asked, item.runs_in) for item in card.in_float] == [("gemm_9", "fp32", "fp32")]
    assert card.short == []


def test_included_layers_are_quantized_although_a_pattern_excludes_them(calibrated: Calibrate) -> None:
    _, outcome = calibrated(exclude=["conv*"], include=["conv_2"])
    names = [layer.name for layer in weighted_layers(onnx_model.folded(Path(outcome.table.parents[2] / "model.onnx")))]
    kept = [item.layer for item in recipe_of(outcome).float_layers]
    assert kept == [name for name in names if name.startswith("conv") and name != "conv_2"]


@pytest.mark.parametrize("key", ["exclude", "include"])
def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_name(calibrated: Calibrate, key: str) -> None:
    with pytest.raises(ProfileError, match=rf"quantization\.{key}: 'convv_2' matches no layer.*did you mean 'conv_2'"):
        calibrated(**{key: ["convv_2"]})


def test_every_layer_excluded_leaves_the_network_in_float(calibrated: Calibrate, tmp_path: Path) -> None:
    profile, outcome = calibrated(exclude=["*"])
    assert len(recipe_of(outcome).float_layers) == 4
    with pytest.raises(ProfileError, match="keeps all 4 weighted layers in float: INT8 changes nothing"):
        built(profile, tmp_path)


# recipe files


def test_a_recipe_file_is_applied_without_measuring(calibrated: Calibrate, tmp_path: Path) -> None:
    _, outcome = calibrated()
    kept = msgspec.structs.replace(recipe_of(outcome), float_layers=(FloatLayer("conv_0", "by hand"),))
    (tmp_path / "mine.recipe.json").write_bytes(encode_recipe(kept))
    _, other = calibrated(recipe="mine.recipe.json")
    assert other.table.name == "auto-all-mine.table"
    assert other.work == "from statistics"
    assert recipe_of(other) == kept


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"model": "0" * 64}, ArtifactError, "another model"),
        ({"float_layers": (FloatLayer("gone", "x"),)}, ProfileError, "'gone' matches no layer"),
    ],
    ids=["another model", "a layer that is gone"],
)
def test_a_recipe_for_something_else_is_refused(
    calibrated: Calibrate, tmp_path: Path, change: dict[str, Any], error: type[Exception], words: str
) -> None:
    _, outcome = calibrated()
    other = msgspec.structs.replace(recipe_of(outcome), **change)
    (tmp_path / "other.recipe.json").write_bytes(encode_recipe(other))
    with pytest.raises(error, match=words):
        calibrated(recipe="other.recipe.json")


def test_a_recipe_file_that_is_missing_is_named(calibrated: Calibrate) -> None:
    with pytest.raises(ArtifactError, match="cannot read the recipe"):
        calibrated(recipe="nowhere.recipe.json")


# the stack itself


def prepared(kind: str, **settings: Any) -> tuple[Scorer, preparation.Prepared, Any]:
    model = network(kind)
    folded = fold(model)
    rng = np.random.default_rng(4)
    arrays = [(rng.normal(size=(3, 16, 16)) * 1.5).astype(np.float32) for _ in range(24)]
    from edge.backends.onnxruntime import OrtSession

    plan = collection.plan(folded.graph, onnx_model.activations_of(folded, "input", Path("x")))
    session = OrtSession(collection.with_outputs(folded, plan.watched), precision="fp32", threads=1)
    statistics = collect(
        [str(i) for i in range(24)], lambda i: arrays[i], lambda b: [b, *session.outputs(b)], plan.watched,
        with_histogram=True,
    )  # fmt: skip
    assert statistics is not None
    scorer = Scorer(model, arrays, threads=1)
    made = prepare(folded, plan.complete(statistics), scorer, PreparationSettings(**settings))
    return scorer, made, folded


@pytest.mark.parametrize("kind", ["mobile", "windows", "excite", "residual"])
def test_the_stack_never_ends_below_the_algorithm_alone(kind: str) -> None:
    scorer, made, folded = prepared(kind)
    alone = max(step.sqnr_db or 0.0 for step in made.recipe.steps if step.name.startswith("algorithm"))
    assert scorer.score(made.form()).db >= alone - 0.5
    exact = apply(folded, made.recipe, rounding=False)
    assert scorer.deviation(exact) < preparation.TOLERANCE


def test_auto_is_the_best_of_all_algorithms() -> None:
    scorer, made, _ = prepared("mobile", rewrites=False)
    singles = {}
    for name in ("minmax", "percentile", "legacy", "mse", "entropy", "entropy2"):
        scorer, one, _ = prepared("mobile", algorithm=name, rewrites=False)
        singles[name] = scorer.score(one.form()).db
    assert scorer.score(made.form()).db >= max(singles.values()) - 0.5


def test_folding_that_changes_the_answer_is_an_error() -> None:
    model = network("mobile")
    other = network("mobile", seed=1)
    scorer = Scorer(model, [np.ones((3, 16, 16), np.float32)], threads=1)
    from edge.quantization.statistics import Statistics

    with pytest.raises(ModelError, match="folding changed the FP32 logits"):
        prepare(fold(other), Statistics({}, 0), scorer, PreparationSettings())


def test_a_layer_without_an_int8_kernel_here_is_named(calibrated: Calibrate, tmp_path: Path) -> None:
    profile, _ = calibrated()
    own = Path(profile.model)
    model = onnx.load(own)
    logits = model.graph.output[0].name
    last = next(node for node in model.graph.node if logits in node.output)
    last.output[0] = "row"
    classes = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    square = np.eye(classes, dtype=np.float32).reshape(classes, classes, 1, 1)
    model.graph.initializer.append(onnx.numpy_helper.from_array(square, "square"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 3], np.int64), "axes"))
    model.graph.node.extend(
        [
            onnx.helper.make_node("Unsqueeze", ["row", "axes"], ["map"], name="map"),
            # ONNX Runtime has no INT8 kernel for it.
            onnx.helper.make_node("ConvTranspose", ["map", "square"], ["larger"], name="upsampling"),
            onnx.helper.make_node("Flatten", ["larger"], [logits], name="flatten_again"),
        ]
    )
    onnx.save(model, own)
    strict = msgspec.structs.replace(profile.build, strict=True, min_int8_share=0.9)
    profile = msgspec.structs.replace(profile, build=strict)
    assert workflow.calibrate(profile, open_pictures(tmp_path / "p"), cache=tmp_path / "cache") is not None
    with pytest.raises(QualityError, match=r"only 4 of 5 .*no INT8 kernel for upsampling \(ConvTranspose\)") as caught:
        built(profile, tmp_path)
    assert "build.strict: false" in (caught.value.hint or "")


# models that are quantized already


def test_a_model_with_q_dq_nodes_is_built_without_a_table(calibrated: Calibrate, tmp_path: Path) -> None:
    profile, outcome = calibrated()
    found = cache_keys.find_table(profile, tmp_path / "cache")
    own = cache_keys.quantized_profile(profile, found)
    form = insert(onnx_model.read(Path(own.model)), cache_keys.read_table(found), target="tensorrt")
    onnx.save(form.model, tmp_path / "quantized.onnx")
    quantized = msgspec.structs.replace(profile, model=str(tmp_path / "quantized.onnx"))
    done = built(quantized, tmp_path)
    assert (done.work, done.table, done.route) == ("built", None, "explicit")
    assert done.layers is not None
    assert done.layers.weighted == 4
    assert outcome.table.is_file()


def test_a_model_with_q_dq_nodes_is_built_with_a_table_all_the_same(calibrated: Calibrate, tmp_path: Path) -> None:
    profile, _ = calibrated()
    found = cache_keys.find_table(profile, tmp_path / "cache")
    own = cache_keys.quantized_profile(profile, found)
    form = insert(onnx_model.read(Path(own.model)), cache_keys.read_table(found), target="tensorrt")
    onnx.save(form.model, tmp_path / "quantized.onnx")
    quantized = msgspec.structs.replace(profile, model=str(tmp_path / "quantized.onnx"))
    assert workflow.calibrate(quantized, open_pictures(tmp_path / "p"), cache=tmp_path / "cache") is not None
    done = built(quantized, tmp_path)
    assert done.table is not None
    assert done.layers is not None
    assert (done.layers.weighted, done.layers.weighted_int8) == (4, 4)
