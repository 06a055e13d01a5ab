"""The function ``build``: when it builds, when it does nothing, and INT8 that was requested and not delivered."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import onnx
import pytest

from edge.artifacts import store
from edge.backends import interface
from edge.backends.fake import Fake
from edge.backends.interface import BuildRequest, BuiltEngine, Layers
from edge.calibration import cache_keys, preparation, workflow
from edge.config import profiles
from edge.config.profiles import Profile
from edge.engines import building
from edge.errors import (
    ArtifactError,
    DeviceError,
    EdgeError,
    MissingDependencyError,
    ModelError,
    ProfileError,
    QualityError,
    StoreError,
)
from edge.events import Event, Listener, Note, ignore_events
from edge.media.picture_sources import open_pictures
from edge.quantization import calibration_table
from tests.support.calibrated import calibrated as table_of

ORT = interface.get("onnxruntime")


class Watched(Fake):
    """The public double; it counts what it is asked, and quantizes as many of four layers as it is told."""

    def __init__(self, *, quantized: int = 4, error: EdgeError | None = None) -> None:
        super().__init__()
        self.requests: list[BuildRequest] = []
        self.version = 1
        self._quantized = quantized
        self._error = error

    def identity(self) -> Mapping[str, store.Scalar]:
        return {**super().identity(), "version": self.version}

    def build(self, request: BuildRequest, *, listen: Listener = ignore_events) -> BuiltEngine:
        self.requests.append(request)
        if self._error is not None:
            raise self._error
        built = super().build(request)
        int8 = self._quantized if request.precision == "int8" else 0
        return msgspec.structs.replace(built, layers=Layers(weighted=4, weighted_int8=int8, by_type={"Conv": 4}))


@pytest.fixture
def tiny(tiny_profile: Callable[..., Path], tmp_path: Path) -> Profile:
    return profiles.read_profile(tiny_profile(tmp_path))


@pytest.fixture
def calibrated(tiny: Profile, tmp_path: Path, pictures: Callable[..., list[Path]]) -> Path:
    pictures(tmp_path / "p", 4)
    return table_of(tiny, tmp_path / "p", cache=tmp_path / "cache")


@pytest.fixture
def with_pictures(tiny: Profile, tmp_path: Path, pictures: Callable[..., list[Path]]) -> None:
    """Calibrate here, so that the table's own pictures are still where they were."""
    pictures(tmp_path / "p", 4)
    assert workflow.calibrate(tiny, open_pictures(tmp_path / "p"), cache=tmp_path / "cache", threads=1)


@pytest.fixture
def run(tmp_path: Path, tiny: Profile, calibrated: Path) -> Callable[..., building.BuildOutcome]:
    """Build the tiny profile, or a changed one, with the table that is there."""

    def call(
        chosen: Profile = tiny, backend: Any = ORT, *, engines: str = "engines", **options: Any
    ) -> building.BuildOutcome:
        return building.build(chosen, backend, cache=tmp_path / "cache", engines=tmp_path / engines, **options)

    return call


def with_build(chosen: Profile, **changes: Any) -> Profile:
    return msgspec.structs.replace(chosen, build=msgspec.structs.replace(chosen.build, **changes))


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Modification time and content of every file below ``folder``, lock files aside."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def test_int8_is_built_from_the_table_and_says_so(run: Callable[..., building.BuildOutcome], calibrated: Path) -> None:
    outcome = run()
    assert (outcome.work, outcome.precision, outcome.table) == ("built", "int8", calibrated)
    assert outcome.why == ["there is no engine yet"]
    assert outcome.layers is not None
    # Three convolutions and the matrix product.
    assert (outcome.layers.weighted, outcome.layers.weighted_int8, outcome.layers.int8_share) == (4, 4, 1.0)
    assert outcome.engine is not None
    kinds = [node.op_type for node in onnx.load(outcome.engine).graph.node]
    assert {"QuantizeLinear", "DequantizeLinear"} <= set(kinds)


def test_the_manifest_says_what_the_engine_was_made_of(
    run: Callable[..., building.BuildOutcome], tiny: Profile, calibrated: Path, tmp_path: Path
) -> None:
    outcome = run()
    assert outcome.engine is not None
    manifest = store.load(outcome.manifest, kind=cache_keys.ENGINE)
    assert manifest.files[outcome.engine.name].sha256 == hashlib.sha256(outcome.engine.read_bytes()).hexdigest()
    assert manifest.key["model"] == store.sha256_file(tmp_path / "model.onnx")
    assert manifest.key["table"] == store.sha256_file(calibrated)
    assert (manifest.key["profile"], manifest.key["batch"]) == (tiny.digest, "1-1-8")
    assert manifest.info["layers"]["weighted_int8"] == 4
    assert manifest.info["int8_route"] == "explicit"
    assert manifest.info["input"] == "input float32 [n, 3, 32, 32]"
    assert manifest.info["device"]["machine"]


def test_fp32_is_the_model_itself_and_needs_no_table(
    tiny: Profile, tmp_path: Path, pictures: Callable[..., list[Path]]
) -> None:
    outcome = building.build(tiny, ORT, cache=tmp_path / "none", engines=tmp_path / "engines", precision="fp32")
    assert (outcome.precision, outcome.table) == ("fp32", None)
    assert outcome.layers is not None
    assert (outcome.layers.weighted, outcome.layers.weighted_int8) == (4, 0)
    assert outcome.engine is not None
    assert onnx.load(outcome.engine) == onnx.load(tmp_path / "model.onnx")


def test_a_second_build_does_no_work(run: Callable[..., building.BuildOutcome], tmp_path: Path) -> None:
    backend = Watched()
    first = run(backend=backend)
    before = files(tmp_path / "engines")
    again = run(backend=backend)
    assert (again.work, again.why) == ("unchanged", [])
    assert (again.engine, again.layers) == (first.engine, first.layers)
    assert len(backend.requests) == 1
    assert files(tmp_path / "engines") == before


def test_both_precisions_are_kept_side_by_side(run: Callable[..., building.BuildOutcome]) -> None:
    assert run().work == "built"
    assert run(precision="fp32").work == "built"
    assert [run().work, run(precision="fp32").work] == ["unchanged", "unchanged"]


def test_force_builds_again(run: Callable[..., building.BuildOutcome]) -> None:
    backend = Watched()
    run(backend=backend)
    assert run(backend=backend, force=True).why == ["--force"]
    assert len(backend.requests) == 2


def other_profile(tmp_path: Path, chosen: Profile, pictures: Callable[..., list[Path]]) -> Profile:
    return with_build(chosen, min_int8_share=0.5)


def other_batch(tmp_path: Path, chosen: Profile, pictures: Callable[..., list[Path]]) -> Profile:
    batch = profiles.BatchRange(min=1, opt=2, max=4)
    return msgspec.structs.replace(chosen, input=msgspec.structs.replace(chosen.input, batch=batch))


def other_table(tmp_path: Path, chosen: Profile, pictures: Callable[..., list[Path]]) -> Profile:
    pictures(tmp_path / "others", 5, seed=4)
    assert workflow.calibrate(chosen, open_pictures(tmp_path / "others"), cache=tmp_path / "cache", threads=1)
    return chosen


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        pytest.param(other_profile, ["profile"], id="a build setting"),
        pytest.param(other_batch, ["profile", "batch"], id="batch"),
        pytest.param(other_table, ["table"], id="table"),
    ],
)
def test_a_change_builds_again_and_is_named(
    change: Callable[..., Profile],
    fields: list[str],
    run: Callable[..., building.BuildOutcome],
    tiny: Profile,
    tmp_path: Path,
    pictures: Callable[..., list[Path]],
) -> None:
    run()
    changed = change(tmp_path, tiny, pictures)
    outcome = run(changed)
    assert outcome.work == "built"
    assert [reason.split(":")[0] for reason in outcome.why] == fields
    assert run(changed).work == "unchanged"


def test_another_model_with_its_table_builds_again(
    run: Callable[..., building.BuildOutcome],
    tiny: Profile,
    tmp_path: Path,
    pictures: Callable[..., list[Path]],
    tiny_model: Callable[..., Path],
) -> None:
    run()
    tiny_model("model.onnx", seed=8)
    with pytest.raises(ArtifactError, match=r"made with another model\.onnx"):
        run()
    outcome = run(other_table(tmp_path, tiny, pictures))
    assert [reason.split(":")[0] for reason in outcome.why] == ["model", "table"]


def test_another_version_of_the_backend_builds_again(run: Callable[..., building.BuildOutcome]) -> None:
    backend = Watched()
    run(backend=backend)
    backend.version = 2
    assert run(backend=backend).why == ["version: 1 -> 2"]


@pytest.mark.parametrize("suffix", [".onnx", ".json"])
def test_a_damaged_engine_is_built_again(suffix: str, run: Callable[..., building.BuildOutcome]) -> None:
    first = run()
    assert first.engine is not None
    path = first.engine.with_suffix(suffix)
    path.write_bytes(path.read_bytes()[:-5])
    again = run()
    assert again.work == "built"
    assert again.why[0].startswith("the existing engine is damaged: ")
    assert run().work == "unchanged"


def test_a_dry_run_says_why_and_writes_nothing(
    run: Callable[..., building.BuildOutcome], tiny: Profile, tmp_path: Path
) -> None:
    backend = Watched()
    before = files(tmp_path)
    outcome = run(backend=backend, dry_run=True)
    assert (outcome.work, outcome.why, outcome.engine) == ("would build", ["there is no engine yet"], None)
    assert files(tmp_path) == before
    assert not (tmp_path / "engines").exists()

    run(backend=backend)
    before = files(tmp_path)
    assert run(backend=backend, dry_run=True).work == "unchanged"
    changed = run(with_build(tiny, optimization_level=1), backend, dry_run=True)
    assert (changed.work, changed.why[0].split(":")[0]) == ("would build", "profile")
    assert run(backend=backend, dry_run=True, force=True).why == ["--force"]
    assert files(tmp_path) == before
    assert len(backend.requests) == 1


@pytest.mark.parametrize("dry_run", [False, True], ids=["build", "dry run"])
def test_int8_without_a_table(dry_run: bool, tiny: Profile, tmp_path: Path) -> None:
    backend = Watched()
    with pytest.raises(ArtifactError, match="no calibration table for tiny") as caught:
        building.build(tiny, backend, cache=tmp_path / "none", engines=tmp_path / "engines", dry_run=dry_run)
    assert caught.value.hint == "edge calibrate --profile tiny --images DIR"
    assert backend.requests == []


def test_a_corrupt_table_never_reaches_the_backend(run: Callable[..., building.BuildOutcome], calibrated: Path) -> None:
    backend = Watched()
    calibrated.write_bytes(calibrated.read_bytes().replace(b"c1: ", b"c1: 0", 1))
    with pytest.raises(ArtifactError) as caught:
        run(backend=backend)
    assert caught.value.where == str(calibrated)
    assert backend.requests == []


def test_a_table_that_lacks_tensors_never_reaches_the_backend(
    run: Callable[..., building.BuildOutcome], tiny: Profile, calibrated: Path, tmp_path: Path
) -> None:
    """Whole and sealed, and still not a table of this network."""
    found = cache_keys.find_table(tiny, tmp_path / "cache")
    content = cache_keys.read_table(found)
    left = {name: content.range(name) for name in content.bits if name not in {"c2", "sum"}}
    version = content.header.version
    assert version is not None
    short = calibration_table.write(calibration_table.from_ranges(left, algorithm="entropy2", trt_version=version))
    store.save(
        cache_keys.manifest_path(calibrated),
        kind=cache_keys.TABLE,
        files={calibrated.name: short},
        key=found.manifest.key,
        info=found.manifest.info,
    )
    backend = Watched()
    with pytest.raises(ArtifactError, match="c2") as caught:
        run(backend=backend)
    assert caught.value.where == str(calibrated)
    assert backend.requests == []


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not strict"])
def test_int8_and_nothing_quantized_is_an_error(
    strict: bool, run: Callable[..., building.BuildOutcome], tiny: Profile, tmp_path: Path
) -> None:
    with pytest.raises(QualityError, match="INT8 was requested, but only 0 of 4 weighted layers run in it"):
        run(with_build(tiny, strict=strict, min_int8_share=0.0), Watched(quantized=0))
    assert not (tmp_path / "engines").exists()


def test_too_little_int8_is_an_error_where_the_profile_is_strict(
    run: Callable[..., building.BuildOutcome], tiny: Profile, tmp_path: Path
) -> None:
    with pytest.raises(QualityError, match=r"2 of 4 .*min_int8_share: 0\.75") as caught:
        run(with_build(tiny, strict=True, min_int8_share=0.75), Watched(quantized=2))
    assert caught.value.exit_code == 1
    assert "build.strict: false" in (caught.value.hint or "")
    assert not (tmp_path / "engines").exists()


def test_too_little_int8_is_a_loud_warning_where_it_is_not(
    run: Callable[..., building.BuildOutcome], tiny: Profile
) -> None:
    heard: list[Event] = []
    lenient = with_build(tiny, strict=False, min_int8_share=0.75)
    outcome = run(lenient, Watched(quantized=2), listen=heard.append)
    assert outcome.work == "built"
    assert [warning for warning in outcome.warnings if "2 of 4 weighted layers" in warning]
    assert [event for event in heard if isinstance(event, Note) and event.level == "warning"]
    # It is kept: whoever finds the engine later sees it as well.
    assert store.load(outcome.manifest, kind=cache_keys.ENGINE).info["warnings"] == outcome.warnings
    assert run(lenient, Watched(quantized=2)).warnings == outcome.warnings


@pytest.mark.parametrize("quantized", [3, 4])
def test_enough_int8_is_enough(quantized: int, run: Callable[..., building.BuildOutcome], tiny: Profile) -> None:
    outcome = run(with_build(tiny, min_int8_share=0.75), Watched(quantized=quantized))
    assert (outcome.work, outcome.warnings) == ("built", [])


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not strict"])
def test_a_layer_whose_input_was_always_zero_stays_in_float_and_counts(
    strict: bool, tiny: Profile, tmp_path: Path
) -> None:
    """With onnxruntime for real: three of four weighted layers in INT8 are not nine of ten."""
    (tmp_path / "grey").mkdir()
    cv2.imwrite(str(tmp_path / "grey" / "a.png"), np.full((40, 40, 3), 127, np.uint8))
    assert workflow.calibrate(tiny, open_pictures(tmp_path / "grey"), cache=tmp_path / "cache", threads=1)

    def attempt() -> building.BuildOutcome:
        chosen = with_build(tiny, strict=strict)
        return building.build(chosen, ORT, cache=tmp_path / "cache", engines=tmp_path / "engines")

    if strict:
        with pytest.raises(QualityError, match="3 of 4 weighted layers"):
            attempt()
    else:
        outcome = attempt()
        assert outcome.layers is not None
        assert outcome.layers.int8_share == 0.75
        assert any("input" in warning for warning in outcome.warnings)


def test_fp16_on_a_cpu_is_refused(run: Callable[..., building.BuildOutcome]) -> None:
    with pytest.raises(ProfileError, match="fp32 or int8, not fp16"):
        run(precision="fp16")


@pytest.mark.parametrize(
    "error",
    [DeviceError("told to fail"), MissingDependencyError("not there"), ModelError("refused")],
    ids=["device", "optional dependency", "model"],
)
def test_a_build_that_fails_leaves_the_old_engine(
    error: EdgeError, run: Callable[..., building.BuildOutcome], tiny: Profile, tmp_path: Path
) -> None:
    run(backend=Watched())
    before = files(tmp_path / "engines")
    with pytest.raises(type(error)):
        run(backend=Watched(error=error), force=True)
    assert files(tmp_path / "engines") == before


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        pytest.param({"inputs": 2}, r"has 2 \(input, other\)", id="two inputs"),
        pytest.param({"batch": 1}, "exactly 1, but the profile requests 1 to 8", id="a fixed batch of 1"),
        pytest.param({"layout": "chw"}, "batch axis", id="no batch axis"),
    ],
)
def test_a_model_that_does_not_fit_never_reaches_the_backend(
    variant: dict[str, Any], words: str, tiny: Profile, tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    tiny_model("model.onnx", **variant)
    backend = Watched()
    with pytest.raises(ModelError, match=words) as caught:
        building.build(tiny, backend, cache=tmp_path / "c", engines=tmp_path / "engines", precision="fp32")
    assert caught.value.hint
    assert backend.requests == []


def test_int8_of_a_network_without_a_layer_to_quantize(
    tiny: Profile, tmp_path: Path, pictures: Callable[..., list[Path]]
) -> None:
    """Pools alone: a table can be made, but no engine runs in INT8 because of it."""
    before = onnx.load(tiny.model)
    (given,), (logits,) = before.graph.input, before.graph.output
    classes = logits.type.tensor_type.shape.dim[1].dim_value
    chosen = onnx.numpy_helper.from_array(np.arange(classes) % 12, "chosen")
    nodes = [
        onnx.helper.make_node("Relu", [given.name], ["r"], name="relu"),
        onnx.helper.make_node("AveragePool", ["r"], ["a"], name="pool", kernel_shape=[16, 16], strides=[16, 16]),
        onnx.helper.make_node("Flatten", ["a"], ["f"], name="flat"),
        onnx.helper.make_node("Gather", ["f", "chosen"], [logits.name], name="gather", axis=1),
    ]
    graph = onnx.helper.make_graph(nodes, "pools", [given], [logits], [chosen])
    model = onnx.helper.make_model(graph, opset_imports=before.opset_import, ir_version=before.ir_version)
    onnx.save(model, tiny.model)
    pictures(tmp_path / "p", 1)
    table_of(tiny, tmp_path / "p", cache=tmp_path / "cache")
    backend = Watched()
    folders = {"cache": tmp_path / "cache", "engines": tmp_path / "engines"}
    with pytest.raises(ModelError, match="nothing can run in INT8") as caught:
        building.build(tiny, backend, precision="int8", **folders)
    assert "--precision fp32" in (caught.value.hint or "")
    assert backend.requests == []
    assert building.build(tiny, backend, precision="fp32", **folders).work == "built"


def test_a_fixed_batch_of_1_works_where_the_profile_says_so(
    tmp_path: Path,
    tiny_profile: Callable[..., Path],
    tiny_model: Callable[..., Path],
    pictures: Callable[..., list[Path]],
) -> None:
    tiny_model("model.onnx", batch=1)
    chosen = profiles.read_profile(tiny_profile(tmp_path, input={"batch": {"min": 1, "opt": 1, "max": 1}}))
    pictures(tmp_path / "p", 3)
    assert workflow.calibrate(chosen, open_pictures(tmp_path / "p"), cache=tmp_path / "cache", threads=1)
    outcome = building.build(chosen, ORT, cache=tmp_path / "cache", engines=tmp_path / "engines")
    assert outcome.layers is not None
    assert outcome.layers.int8_share == 1.0
    assert outcome.engine is not None
    session = ORT.open(outcome.engine, precision="int8", threads=1)
    assert session.infer(np.zeros((1, 3, 32, 32), np.float32)).logits.shape == (1, 10)


def test_an_engine_folder_that_cannot_be_made(run: Callable[..., building.BuildOutcome], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write") as caught:
        run(engines="file/engines")
    assert str(tmp_path / "file") in (caught.value.where or "")


def scaled(table: Path, factor: float) -> None:
    """Write the table again with every range times ``factor``, and no accuracy that was measured before."""
    found = calibration_table.parse(table.read_bytes())
    ranges = {name: factor * found.range(name) for name in found.names}
    changed = calibration_table.from_ranges(ranges, algorithm="entropy2", trt_version=preparation.HEADER_VERSION)
    where = cache_keys.manifest_path(table)
    manifest = store.load(where, kind=cache_keys.TABLE)
    info = {name: value for name, value in manifest.info.items() if name != "accuracy"}
    store.save(
        where, kind=cache_keys.TABLE, files={table.name: calibration_table.write(changed)}, key=manifest.key, info=info
    )


@pytest.mark.usefixtures("with_pictures")
def test_the_manifest_holds_the_accuracy_on_the_calibration_pictures(run: Callable[..., building.BuildOutcome]) -> None:
    outcome = run()
    assert outcome.accuracy is not None
    assert outcome.accuracy.n == 4
    assert outcome.accuracy.sqnr_db is not None
    assert outcome.accuracy.sqnr_db > 10
    kept = store.load(outcome.manifest, kind=cache_keys.ENGINE).info["accuracy"]
    assert kept["sqnr_db"] == outcome.accuracy.sqnr_db
    assert run().accuracy == outcome.accuracy


@pytest.mark.usefixtures("with_pictures")
def test_accuracy_that_was_not_measured_is_absent_with_its_reason(
    run: Callable[..., building.BuildOutcome], tmp_path: Path
) -> None:
    (tmp_path / "p").rename(tmp_path / "elsewhere")
    outcome = run()
    info = store.load(outcome.manifest, kind=cache_keys.ENGINE).info
    if "accuracy" not in info:
        assert outcome.accuracy is None
        assert info["accuracy_unmeasured"] == "the calibration images are not on this machine"


@pytest.mark.usefixtures("with_pictures")
def test_collapsed_accuracy_is_an_error_before_the_build_unless_it_is_allowed(
    run: Callable[..., building.BuildOutcome], tiny: Profile, calibrated: Path
) -> None:
    scaled(calibrated, 0.01)
    backend = Watched()
    with pytest.raises(QualityError, match="INT8 accuracy has collapsed: logit SQNR is") as caught:
        run(backend=backend)
    assert backend.requests == []
    assert "edge tune --profile tiny" in str(caught.value.hint)
    allowed = msgspec.structs.replace(tiny, quality=profiles.QualityConfig(collapse="allow"))
    outcome = run(allowed, backend)
    assert outcome.work == "built"
    assert any("collapsed" in warning for warning in outcome.warnings)
    with pytest.raises(QualityError, match="collapsed"):
        run(backend=backend)


@pytest.mark.usefixtures("with_pictures")
def test_a_limit_of_the_profile_is_kept_by_build(run: Callable[..., building.BuildOutcome], tiny: Profile) -> None:
    strict = msgspec.structs.replace(tiny, quality=profiles.QualityConfig(min_sqnr=90.0))
    with pytest.raises(QualityError, match="below the limit of 90 dB"):
        run(strict)
