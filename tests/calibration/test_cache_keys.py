"""Which table and engine belong to a profile: every field that differs is refused, and named."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.artifacts import store
from edge.artifacts.store import canonical_digest
from edge.backends import interface
from edge.backends.onnxruntime import OnnxRuntime
from edge.calibration import cache_keys, workflow
from edge.config import profiles
from edge.config.profiles import Profile
from edge.engines import building
from edge.errors import ArtifactError, MissingDependencyError, ModelError
from edge.media.picture_sources import open_pictures
from tests.support.calibrated import calibrated as table_of

BACKEND = interface.get("onnxruntime")


@pytest.fixture
def tiny(tiny_profile: Callable[..., Path], tmp_path: Path) -> Profile:
    return profiles.read_profile(tiny_profile(tmp_path))


@pytest.fixture
def calibrated(tiny: Profile, tmp_path: Path, pictures: Callable[..., list[Path]]) -> Path:
    """The table of the tiny profile, in ``tmp_path / "cache"``."""
    pictures(tmp_path / "p", 4)
    return table_of(tiny, tmp_path / "p", cache=tmp_path / "cache")


@pytest.fixture
def engine(tiny: Profile, tmp_path: Path, calibrated: Path) -> Path:
    """The INT8 engine of the tiny profile, in ``tmp_path / "engines"``."""
    outcome = building.build(tiny, BACKEND, cache=tmp_path / "cache", engines=tmp_path / "engines")
    assert outcome.engine is not None
    return outcome.engine


def find_engine(chosen: Profile, tmp_path: Path, *, precision: Any = "int8") -> cache_keys.FoundArtifact:
    return cache_keys.find_engine(
        chosen, BACKEND, precision=precision, cache=tmp_path / "cache", engines=tmp_path / "engines"
    )


def rewrite(manifest_path: Path, *, kind: str, changes: dict[str, Any]) -> None:
    """The same artifact with a manifest that says it was made under other circumstances; it is sealed and whole."""
    manifest = store.load(manifest_path, kind=kind)
    files = {name: (manifest_path.parent / name).read_bytes() for name in manifest.files}
    key = {**manifest.key, **changes}
    store.save(manifest_path, kind=kind, files=files, key=key, info=manifest.info)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


DAMAGE = [
    pytest.param(cut, id="truncated"),
    pytest.param(flip, id="one bit changed"),
    pytest.param(lambda path: path.write_bytes(b""), id="empty"),
    pytest.param(Path.unlink, id="gone"),
]


def test_the_table_is_found_and_its_digest_is_that_of_the_file(tiny: Profile, tmp_path: Path, calibrated: Path) -> None:
    found = cache_keys.find_table(tiny, tmp_path / "cache")
    assert found.path == calibrated
    assert found.sha256 == hashlib.sha256(calibrated.read_bytes()).hexdigest()
    assert len(cache_keys.read_table(found).bits) == 11


def test_no_table_says_how_to_make_one(tiny: Profile, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no calibration table for tiny") as caught:
        cache_keys.find_table(tiny, tmp_path / "cache")
    assert caught.value.hint == "edge calibrate --profile tiny --images DIR"
    assert caught.value.where == str(tmp_path / "cache" / "model" / "entropy2.table")


def test_a_table_alone_is_not_enough(tiny: Profile, tmp_path: Path, calibrated: Path) -> None:
    cache_keys.manifest_path(calibrated).unlink()
    with pytest.raises(ArtifactError, match="has no manifest"):
        cache_keys.find_table(tiny, tmp_path / "cache")


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("suffix", [".table", ".json"])
def test_a_damaged_table_is_refused(
    suffix: str, damage: Callable[[Path], object], tiny: Profile, tmp_path: Path, calibrated: Path
) -> None:
    damage(calibrated.with_suffix(suffix))
    with pytest.raises(ArtifactError) as caught:
        cache_keys.find_table(tiny, tmp_path / "cache")
    assert Path(caught.value.where or "").stem == "entropy2"
    assert caught.value.hint == "edge calibrate --profile tiny --images DIR"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("algorithm", "minmax"),
        ("algorithm.strength", 0.5),
        ("statistics_format", 999),
    ],
)
def test_a_table_for_something_else_is_refused_by_field(
    field: str, value: Any, tiny: Profile, tmp_path: Path, calibrated: Path
) -> None:
    rewrite(cache_keys.manifest_path(calibrated), kind=cache_keys.TABLE, changes={field: value})
    with pytest.raises(ArtifactError, match=rf"made with other inputs \({field}: ") as caught:
        cache_keys.find_table(tiny, tmp_path / "cache")
    assert caught.value.hint is not None
    assert "edge calibrate --profile tiny" in caught.value.hint


def test_a_table_of_the_first_preprocessing_is_refused_by_name(tiny: Profile, tmp_path: Path, calibrated: Path) -> None:
    """Version 0.1 took whole pixels and OpenCV's filters; its key had no EXIF setting either."""
    content = msgspec.to_builtins(tiny.preprocess)
    del content["exif"], content["roi"], content["max_megapixels"]
    size = {"height": tiny.input.height, "width": tiny.input.width}
    digest = canonical_digest({"definition": 1, **size, **content})
    rewrite(cache_keys.manifest_path(calibrated), kind=cache_keys.TABLE, changes={"preprocess": digest})
    with pytest.raises(
        ArtifactError, match=r"preprocessing definition 1 \(whole-pixel crop, OpenCV's filters\)"
    ) as caught:
        cache_keys.find_table(tiny, tmp_path / "cache")
    assert "edge calibrate" in str(caught.value.hint)


def test_the_pictures_and_batch_of_a_table_are_its_own_business(
    tiny: Profile, tmp_path: Path, calibrated: Path
) -> None:
    """Whoever only has the table, a device, cannot know them: they are in the manifest and are not asked for."""
    rewrite(cache_keys.manifest_path(calibrated), kind=cache_keys.TABLE, changes={"images": "0" * 64, "batch": 4})
    assert cache_keys.find_table(tiny, tmp_path / "cache").manifest.key["batch"] == 4


def test_a_table_does_not_fit_a_changed_model(
    tiny: Profile, tmp_path: Path, calibrated: Path, tiny_model: Callable[..., Path]
) -> None:
    tiny_model("model.onnx", seed=3)
    with pytest.raises(ArtifactError, match=r"no calibration table for tiny: .*entropy2\.table was made with another"):
        cache_keys.find_table(tiny, tmp_path / "cache")


def test_a_table_does_not_fit_another_preprocessing_and_says_so_in_words(
    tiny: Profile, tmp_path: Path, calibrated: Path
) -> None:
    other = msgspec.structs.replace(
        tiny, preprocess=msgspec.structs.replace(tiny.preprocess, mean=(0.0, 0.0, 0.0), color="bgr")
    )
    with pytest.raises(ArtifactError) as caught:
        cache_keys.find_table(other, tmp_path / "cache")
    mean = ",".join(f"{value:g}" for value in tiny.preprocess.mean)
    assert f"other preprocessing: color rgb -> bgr, mean [{mean}] -> [0,0,0]" in caught.value.what


def test_two_preprocessings_of_one_model_are_side_by_side(tiny: Profile, tmp_path: Path, calibrated: Path) -> None:
    cache = tmp_path / "cache"
    other = msgspec.structs.replace(tiny, preprocess=msgspec.structs.replace(tiny.preprocess, mean=(1.0, 2.0, 3.0)))
    path = cache_keys.table_path(other, cache)
    assert path.parent != calibrated.parent
    assert path.parent.name.startswith("model-")
    path.parent.mkdir()
    path.write_bytes(calibrated.read_bytes())
    store.save(
        cache_keys.manifest_path(path),
        kind=cache_keys.TABLE,
        files={path.name: path.read_bytes()},
        key=cache_keys.table_key(other),
        info={},
    )
    assert cache_keys.find_table(other, cache).path == path
    assert cache_keys.find_table(tiny, cache).path == calibrated


def test_a_missing_model_is_a_model_error(tiny: Profile, tmp_path: Path, calibrated: Path) -> None:
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(ModelError, match="model file does not exist") as caught:
        cache_keys.find_table(tiny, tmp_path / "cache")
    assert "model:" in (caught.value.hint or "")


def test_a_table_of_other_parameters_lies_elsewhere(tiny: Profile, tmp_path: Path) -> None:
    calibration = msgspec.structs.replace(tiny.calibration, algorithm="percentile", parameters={"percentile": 99.5})
    other = msgspec.structs.replace(tiny, calibration=calibration)
    assert cache_keys.table_path(other, tmp_path).name == "percentile-99.5.table"
    assert cache_keys.table_key(other)["algorithm.percentile"] == 99.5


def test_the_engine_is_found_with_its_digest(tiny: Profile, tmp_path: Path, engine: Path) -> None:
    found = find_engine(tiny, tmp_path)
    assert found.path == engine
    assert found.sha256 == hashlib.sha256(engine.read_bytes()).hexdigest()
    assert found.manifest.key["table"] == cache_keys.find_table(tiny, tmp_path / "cache").sha256
    assert found.manifest.key["onnxruntime"] == BACKEND.identity()["onnxruntime"]


@pytest.mark.parametrize(
    ("precision", "hint"),
    [("int8", "edge build --profile tiny"), ("fp32", "edge build --profile tiny --precision fp32")],
)
def test_no_engine_says_how_to_build_it(
    precision: str, hint: str, tiny: Profile, tmp_path: Path, calibrated: Path
) -> None:
    with pytest.raises(ArtifactError, match=f"no {precision} engine for tiny has been built") as caught:
        find_engine(tiny, tmp_path, precision=precision)
    assert caught.value.hint == hint


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("suffix", [".onnx", ".json"])
def test_a_damaged_engine_is_refused(
    suffix: str, damage: Callable[[Path], object], tiny: Profile, tmp_path: Path, engine: Path
) -> None:
    damage(engine.with_suffix(suffix))
    with pytest.raises(ArtifactError) as caught:
        find_engine(tiny, tmp_path)
    assert caught.value.hint == "edge build --profile tiny"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "0" * 64),
        ("profile", "0" * 64),
        ("precision", "fp32"),
        ("int8_route", "implicit"),
        ("table", "0" * 64),
        ("batch", "1-1-16"),
        ("dla_core", 1),
        ("backend", "tensorrt"),
        ("onnxruntime", "1.2.3"),
        ("machine", "riscv64"),
    ],
)
def test_an_engine_for_something_else_is_refused_by_field(
    field: str, value: Any, tiny: Profile, tmp_path: Path, engine: Path
) -> None:
    rewrite(engine.with_suffix(".json"), kind=cache_keys.ENGINE, changes={field: value})
    with pytest.raises(ArtifactError, match=rf"built with other inputs \({field}: ") as caught:
        find_engine(tiny, tmp_path)
    assert caught.value.hint == "edge build --profile tiny"


def test_a_field_that_nobody_knows_is_refused_too(tiny: Profile, tmp_path: Path, engine: Path) -> None:
    rewrite(engine.with_suffix(".json"), kind=cache_keys.ENGINE, changes={"gpu": "sm_87"})
    with pytest.raises(ArtifactError, match=r"gpu: sm_87 -> \(none\)"):
        find_engine(tiny, tmp_path)


def test_an_engine_of_another_profile_is_refused(
    tiny: Profile, tmp_path: Path, engine: Path, tiny_profile: Callable[..., Path]
) -> None:
    """Same model and same table; the other profile asks for another batch range."""
    other = profiles.read_profile(tiny_profile(tmp_path, "other", input={"batch": {"max": 2}}))
    shutil.copytree(tmp_path / "engines" / "tiny", tmp_path / "engines" / "other")
    with pytest.raises(ArtifactError, match=r"profile: .*; batch: 1-1-8 -> 1-1-2"):
        find_engine(other, tmp_path)


def test_an_engine_from_another_table_is_refused(
    tiny: Profile, tmp_path: Path, engine: Path, pictures: Callable[..., list[Path]]
) -> None:
    pictures(tmp_path / "others", 5, seed=7)
    assert workflow.calibrate(tiny, open_pictures(tmp_path / "others"), cache=tmp_path / "cache", threads=1)
    with pytest.raises(ArtifactError, match=r"with other inputs \(table: "):
        find_engine(tiny, tmp_path)


def test_an_engine_without_its_table_is_refused(tiny: Profile, tmp_path: Path, engine: Path, calibrated: Path) -> None:
    calibrated.unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        find_engine(tiny, tmp_path)


def test_an_fp32_engine_asks_for_no_table(tiny: Profile, tmp_path: Path) -> None:
    tiny32 = msgspec.structs.replace(tiny, precision="fp32")
    building.build(tiny32, BACKEND, cache=tmp_path / "cache", engines=tmp_path / "engines")
    assert find_engine(tiny32, tmp_path, precision="fp32").manifest.key["table"] is None


def test_another_kind_of_artifact_is_no_engine(tiny: Profile, tmp_path: Path, engine: Path, calibrated: Path) -> None:
    shutil.copy(cache_keys.manifest_path(calibrated), engine.with_suffix(".json"))
    with pytest.raises(ArtifactError, match="this is the manifest of calibration table, not of"):
        find_engine(tiny, tmp_path)


def test_names_and_run_settings_of_a_profile_make_no_new_engine(tiny: Profile, tmp_path: Path, engine: Path) -> None:
    run = msgspec.structs.replace(tiny.run, topk=3, warmup=0)
    assert find_engine(msgspec.structs.replace(tiny, run=run, power_mode="MAXN"), tmp_path).path == engine


def test_a_runtime_that_is_not_installed_is_a_dependency_error(
    tiny: Profile, tmp_path: Path, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty search path is a machine without onnxruntime, as far as its version can be asked for."""
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(MissingDependencyError, match="onnxruntime is not installed"):
        OnnxRuntime().identity()
