"""What comes with the repository fits together and is as good as it says: model, profiles, table, sample pictures."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge.artifacts.run_record import FrameResult, Subject
from edge.backends import interface
from edge.calibration import cache_keys
from edge.config import profiles
from edge.config.profiles import Precision, Profile
from edge.engines import building
from edge.media import labels
from edge.media.picture_sources import open_pictures
from edge.media.streams import PictureStream
from edge.model import onnx_model, preprocessing
from edge.quantization import table_check
from edge.runtime import run_loop
from edge.runtime.evaluation import logits, score
from edge.telemetry.sampler import Telemetry
from edge.telemetry.sources import NoSource

# Who looks at these pictures says one of these; the network is as unsure of the cat as a person is.
SAMPLES = {
    "bison.jpg": {"bison"},
    "clownfish.jpg": {"anemone_fish"},
    "espresso_coffee.jpg": {"espresso"},
    "frying_pan.jpg": {"frying_pan"},
    "giant_panda.jpg": {"giant_panda"},
    "hens.jpg": {"hen"},
    "koala.jpg": {"koala"},
    "neuschwanstein_castle.jpg": {"castle"},
    "pont_du_gard.jpg": {"viaduct"},
    "ring_tailed_lemurs.jpg": {"Madagascar_cat"},
    "scarlet_macaw.jpg": {"macaw"},
    "tabby_cat_chelsea.jpg": {"tabby", "tiger_cat", "Egyptian_cat"},
}


@pytest.fixture
def host(repository: Path) -> Profile:
    return profiles.read_profile(repository / "profiles" / "host.yaml")


@pytest.fixture
def cache(repository: Path, tmp_path: Path) -> Path:
    """A copy of the committed tables: the prepared model is made next to them."""
    return Path(
        shutil.copytree(repository / "calib_cache", tmp_path / "cache", ignore=shutil.ignore_patterns("*.onnx"))
    )


@pytest.fixture
def engine(cache: Path, host: Profile, tmp_path: Path) -> Callable[[Precision], Path]:
    """The engine in one precision, built from what is in the repository."""

    def make(precision: Precision) -> Path:
        outcome = building.build(host, interface.get("onnxruntime"), cache=cache, engines=tmp_path, precision=precision)
        assert outcome.engine is not None
        assert outcome.layers is not None
        assert outcome.layers.int8_share == (1.0 if precision == "int8" else 0.0)
        assert outcome.warnings == []
        return outcome.engine

    return make


@pytest.mark.parametrize(
    ("name", "shift"),
    [("host", "all"), ("orin", "off"), ("orin-nx", "off"), ("orin-nano", "off"), ("thor", "off"), ("rtx", "all")],
)
def test_every_profile_has_a_committed_table(name: str, shift: str, repository: Path) -> None:
    """All devices share model, preprocessing and algorithm; the default of the shift depends on the backend."""
    found = cache_keys.find_table(
        profiles.read_profile(repository / "profiles" / f"{name}.yaml"), repository / "calib_cache"
    )
    assert found.path == repository / "calib_cache" / "efficientnet_lite0" / f"auto-{shift}.table"
    assert found.manifest.info["pictures"] == 400
    assert found.manifest.info["accuracy"]["sqnr_db"] > (24.0 if shift == "all" else 21.5)
    assert "source" not in found.manifest.info


@pytest.mark.parametrize(
    ("route", "dla"),
    [("explicit", False), ("implicit", False), ("implicit", True)],
    ids=["Q/DQ", "calibrator", "calibrator on a DLA"],
)
def test_the_committed_table_has_no_errors(route: table_check.Route, dla: bool, cache: Path, host: Profile) -> None:
    found = cache_keys.find_table(host, cache)
    table = cache_keys.read_table(found)
    activations = onnx_model.load(Path(cache_keys.quantized_profile(host, found).model)).activations
    findings = table_check.check(table, activations, route=route, dla=dla, trt_version=table.header.version)
    assert [finding for finding in findings if finding.level != "ok"] == []
    assert list(table.bits) == activations


def test_the_names_are_those_of_the_models_classes(host: Profile) -> None:
    names = labels.load_names(Path(host.labels))
    # ImageNet has two cranes and two maillots.
    assert len(names) == onnx_model.load(Path(host.model)).classes == len(set(names)) + 2
    assert (names[0], names[207], names[999]) == ("tench", "golden_retriever", "toilet_tissue")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_sample_pictures_are_what_they_show(
    precision: Precision, repository: Path, host: Profile, engine: Callable[[Precision], Path]
) -> None:
    samples = open_pictures(repository / "samples")
    assert {picture.name for picture in samples} == SAMPLES.keys()
    subject = Subject(
        profile="host", profile_digest="", model=host.model, model_sha256="", engine_sha256="", table_sha256=None,
        preprocess_digest="", backend={}, precision=precision, layers={}, device={}, source="samples",
    )  # fmt: skip
    finished = run_loop.run(
        PictureStream(samples),
        sessions=[interface.get("onnxruntime").open(engine(precision), precision=precision)],
        preprocessor=preprocessing.Preprocessor(host.preprocess, host.input),
        names=labels.load_names(Path(host.labels)),
        subject=subject,
        settings=run_loop.RunSettings(topk=5, warmup=0),
        telemetry=Telemetry(None, NoSource(())),
    )
    assert finished.skipped == []
    seen: dict[str, FrameResult] = {result.name: result for result in finished.results}
    assert {name for name, wanted in SAMPLES.items() if seen[name].guesses[0].label not in wanted} == set()
    for name, result in seen.items():
        shares = [guess.confidence for guess in result.guesses]
        assert shares == sorted(shares, reverse=True)
        assert shares[0] > (0.3 if name == "tabby_cat_chelsea.jpg" else 0.6)
        assert sum(shares) <= 1.0 + 1e-6


def test_the_table_is_of_the_400_calibration_pictures(shared_data: Path, repository: Path, host: Profile) -> None:
    found = cache_keys.find_table(host, repository / "calib_cache")
    assert found.manifest.key["images"] == open_pictures(shared_data / "calib").digest()


def test_calibration_and_evaluation_share_no_picture(shared_data: Path) -> None:
    calibration, evaluation = (
        {picture.sha256 for picture in open_pictures(shared_data / name)} for name in ("calib", "eval")
    )
    assert calibration.isdisjoint(evaluation)


@pytest.mark.slow
def test_accuracy_and_agreement_on_evaluation_pictures(
    shared_data: Path, host: Profile, engine: Callable[[Precision], Path]
) -> None:
    """On every fifth of the 300, whose scores are those of all: README.md has the agreement of the whole set."""
    every = list(open_pictures(shared_data / "eval", labels=shared_data / "eval" / "labels.csv"))
    with (shared_data / "eval" / "labels.csv").open(newline="") as file:
        known = {row["file"]: int(row["class_index"]) for row in csv.DictReader(file)}
    assert len(every) == 300
    assert all(picture.label == known[picture.name] for picture in every)

    pictures = every[1::5]
    preprocessor = preprocessing.Preprocessor(host.preprocess, host.input)
    found: dict[Precision, np.ndarray] = {}
    for precision in ("fp32", "int8"):
        session = interface.get("onnxruntime").open(engine(precision), precision=precision)
        rows = logits(pictures, session, preprocessor, stage=precision)
        assert rows is not None
        found[precision] = rows
    truth = [picture.label for picture in pictures if picture.label is not None]
    exact = score(found["fp32"], truth, precision="fp32")
    scores = score(found["int8"], truth, precision="int8", reference=found["fp32"], against="fp32")

    # 52 and 59 of 60.
    assert exact.top1 >= 86.0
    assert exact.top5 >= 98.0
    assert exact.warning is None
    assert scores.agreement is not None
    assert scores.agreement >= 95.0, msgspec.to_builtins(scores)
    assert scores.top1 >= exact.top1 - 1.7
    assert scores.warning is None
