"""What goes into a bundle is checked, and the same inputs give the same bytes, whoever puts them together."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge.artifacts import store
from edge.calibration import cache_keys
from edge.config import profiles
from edge.deploy.bundle import creation, deployed, golden
from edge.deploy.bundle.reader import Bundle, open_bundle, verify_bundle
from edge.deploy.bundle.unpacking import unpack_bundle
from edge.errors import ArtifactError, DataError, DeviceError, EdgeError, ModelError, ProfileError, UsageError
from edge.media.picture_sources import open_pictures
from edge.system import device

Made = Callable[..., Bundle]


# the same bytes

MAKE = """
import os, sys
from pathlib import Path
from edge.config.profiles import read_profile
from edge.deploy.bundle import creation
from edge.media.picture_sources import open_pictures
root, umask = Path(sys.argv[1]), int(sys.argv[2], 8)
os.umask(umask)
chosen = read_profile(root / "profiles" / "tiny.yaml")
golden = list(open_pictures(root / "pictures"))
creation.create(chosen, cache=root / "calib_cache", out=root / "new.edge", golden=golden)
"""


def test_the_same_inputs_give_the_same_bytes_elsewhere(made: Made, tmp_path: Path) -> None:
    """Another folder, order of writing, mode and time of the files; another umask, time zone, language, hash seed."""
    made()
    places = []
    for number, (umask, zone) in enumerate([("000", "UTC"), ("077", "Pacific/Kiritimati")]):
        root = tmp_path / f"somewhere {number}" / ("x" * number)
        for name in sorted(["profiles", "calib_cache", "pictures"], reverse=bool(number)):
            shutil.copytree(tmp_path / name, root / name)
        for path in root.rglob("*"):
            os.utime(path, (number * 1e9, number * 1e9))
            path.chmod(0o700 if number else 0o755)
        environment = {
            **os.environ, "TZ": zone, "PYTHONHASHSEED": str(number + 1), "LC_ALL": ["C", "C.UTF-8"][number],
            "HOME": str(root), "USER": f"user{number}", "OMP_NUM_THREADS": str(number + 1),
        }  # fmt: skip
        subprocess.run([sys.executable, "-c", MAKE, root, umask], check=True, env=environment, cwd=root)
        places.append(root / "new.edge")
    first, second = (path.read_bytes() for path in places)
    assert first == second


def test_a_folder_and_a_file_are_the_same_bundle(made: Made) -> None:
    tar, folder = made("tiny.edge"), made("tiny")
    assert (tar.is_folder, folder.is_folder) == (False, True)
    assert tar.digest == folder.digest
    verify_bundle(folder)


def test_answers_of_another_machine_are_taken_over(made: Made, tmp_path: Path) -> None:
    first = made("first.edge")
    assert made("second.edge", reference=first).path.read_bytes() == first.path.read_bytes()
    with pytest.raises(ArtifactError, match="made with another preprocess"):
        made("third.edge", reference=first, overrides={"preprocess": {"resize": 44}})
    pictures = list(open_pictures(tmp_path / "pictures").take(3))
    with pytest.raises(ArtifactError, match="for other images"):
        made("third.edge", reference=first, golden=pictures)
    for name, source in (("000", "000"), ("001", "003")):
        (tmp_path / "golden").mkdir(exist_ok=True)
        shutil.copy(tmp_path / "pictures" / f"{source}.jpg", tmp_path / "golden" / f"{name}.jpg")
    with pytest.raises(ArtifactError, match=r"golden/001\.jpg is another image"):
        made("third.edge", reference=first, golden=list(open_pictures(tmp_path / "golden")))
    with pytest.raises(ArtifactError, match=r"there is no golden/expected\.json"):
        made("third.edge", reference=made("bare.edge", golden=[]))


def test_it_depends_on_nothing_of_the_day(made: Made, tmp_path: Path) -> None:
    content = made().path.read_bytes()
    for word in (str(tmp_path), os.uname().nodename):
        assert word.encode() not in content


# what goes in


@pytest.mark.parametrize("name", ["host", "orin", "orin-nx", "orin-nano", "thor", "rtx"])
def test_every_profile_is_the_same_resolved(repository: Path, tmp_path: Path, name: str) -> None:
    """Whatever a profile may say, also what is added to profiles later, survives being resolved."""
    source = profiles.read_profile(repository / "profiles" / f"{name}.yaml")
    (tmp_path / "profile.yaml").write_bytes(creation.resolved(source))
    found = profiles.read_profile(tmp_path / "profile.yaml")
    assert found.digest == source.digest
    replaced = {"model": found.model, "labels": found.labels}
    assert found == msgspec.structs.replace(source, **replaced)
    assert Path(found.model).parent == tmp_path / "model"


def test_fp32_needs_no_table(made: Made) -> None:
    bundle = made(overrides={"precision": "fp32"})
    assert not [name for name in bundle.files if name.startswith("tables/")]
    expected = golden.decode_expected(bundle.read(golden.FILE), where="")
    assert expected.tolerance.keys() == {"fp32", "fp16"}


@pytest.mark.parametrize(
    ("quality", "least"), [({"min_sqnr": 90}, 90.0), ({}, 6.0), ({"collapse": "allow"}, -99.0)], ids=str
)
def test_the_trial_has_the_limits_of_int8_accuracy(quality: dict[str, Any], least: float, made: Made) -> None:
    bundle = made(overrides={"quality": quality})
    tolerance = golden.decode_expected(bundle.read(golden.FILE), where="").tolerance["int8"]
    assert tolerance.min_sqnr_db >= least
    assert tolerance.min_sqnr_db == 90.0 or least != 90.0


def test_weights_outside_of_the_model(made: Made, tmp_path: Path, tiny_model: Callable[..., Path]) -> None:
    tiny_model("profiles/model.onnx", external=True)
    bundle = made(golden=list(_pictures(tmp_path, made)))
    assert {"model/model.onnx", "model/model.onnx.weights"} <= bundle.files.keys()
    unpacked = unpack_bundle(bundle, tmp_path / "device").path
    chosen = profiles.read_profile(unpacked / "profile.yaml")
    assert cache_keys.find_table(chosen, unpacked / "tables")


def _pictures(tmp_path: Path, made: Made) -> Any:
    made("first.edge")
    return open_pictures(tmp_path / "pictures").take(1)


def test_weights_that_lie_above_the_model(made: Made, tmp_path: Path, tiny_model: Callable[..., Path]) -> None:
    import onnx

    made()
    model = onnx.load(tiny_model("plain.onnx"))
    (tmp_path / "profiles" / "weights").mkdir()
    onnx.save(model, tmp_path / "profiles" / "w.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    proto = onnx.load(tmp_path / "profiles" / "w.onnx", load_external_data=False)
    for item in proto.graph.initializer:
        for entry in item.external_data:
            if entry.key == "location":
                entry.value = "../w.bin"
    (tmp_path / "profiles" / "w.bin").rename(tmp_path / "w.bin")
    onnx.save(proto, tmp_path / "profiles" / "w.onnx")
    with pytest.raises(EdgeError):
        made(overrides={"model": "w.onnx", "precision": "fp32"}, out="x.edge")
    assert not (tmp_path / "x.edge").exists()


def test_a_fixed_batch(made: Made, tmp_path: Path, tiny_model: Callable[..., Path]) -> None:
    tiny_model("profiles/model.onnx", batch=2)
    bundle = made(overrides={"input": {"batch": {"min": 2, "opt": 2, "max": 2}}, "calibration": {"batch": 2}})
    assert golden.decode_expected(bundle.read(golden.FILE), where="").logits("int8").shape == (2, 10)


def test_a_table_that_does_not_fit_the_model(
    made: Made, tmp_path: Path, tiny_model: Callable[..., Path], tiny_profile: Callable[..., Path]
) -> None:
    made()
    chosen = profiles.read_profile(tiny_profile(tmp_path / "profiles"))
    cache = tmp_path / "calib_cache"

    def refused(match: str) -> None:
        with pytest.raises(ArtifactError, match=match):
            creation.create(chosen, cache=cache, out=tmp_path / "new.edge")
        assert not (tmp_path / "new.edge").exists()

    table = cache_keys.table_path(chosen, cache)
    good = table.read_bytes()
    table.write_bytes(good + b"x")
    refused("its manifest says")
    table.unlink()
    refused("the manifest lists this file, but it is missing")
    table.write_bytes(good)
    tiny_model("profiles/model.onnx", seed=1)
    refused("was made with another")
    shutil.rmtree(cache)
    refused("no calibration table")


@pytest.mark.parametrize(
    ("overrides", "kind", "match"),
    [
        ({"labels": "two.txt"}, ProfileError, "2 names for a model with 10 classes"),
        ({"labels": "none.txt"}, DataError, "none.txt"),
        ({"model": "none.onnx"}, ModelError, "model file does not exist"),
        ({"model": "two.txt"}, ModelError, "not a valid ONNX model"),
        ({"input": {"height": 64, "width": 64}, "preprocess": {"resize": 72}}, ModelError, "the profile says 64"),
    ],
)  # fmt: skip
def test_a_profile_that_fits_nothing(
    made: Made, tmp_path: Path, overrides: dict[str, Any], kind: type[EdgeError], match: str
) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "two.txt").write_text("a\nb\n")
    with pytest.raises(kind, match=match):
        made(overrides={**overrides, "precision": "fp32"})


def test_golden_pictures_that_will_not_do(made: Made, tmp_path: Path) -> None:
    made("first.edge")
    folder = tmp_path / "golden"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"no image")
    with pytest.raises(DataError):
        made("second.edge", golden=list(open_pictures(folder)))
    (picture,) = open_pictures(tmp_path / "pictures").take(1)
    with pytest.raises(UsageError, match="maximum is 256"):
        made("second.edge", golden=[picture] * 257)
    with pytest.raises(DataError, match="have the same name"):
        made("second.edge", golden=[picture] * 2)
    assert not (tmp_path / "second.edge").exists()


def test_timing_caches_of_the_family_go_along(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "calib_cache" / "timing"
    for name, module in (("nano", "p3767-0005"), ("agx", "p3701-0005"), ("thor", "p3834-0008")):
        store.save(
            folder / f"{name}.json", kind="timing cache", files={f"{name}.timing": name.encode()},
            key={"module": module, "sm": "8.7"}, info={},
        )  # fmt: skip
    (folder / "agx-damaged.json").write_text("{")
    found = creation.timing_caches("agx-orin", tmp_path / "calib_cache")
    assert sorted(found) == ["timing/agx.json", "timing/agx.timing"]
    assert creation.timing_caches("host", tmp_path / "calib_cache") == {}
    made("tiny.edge")
    assert not [name for name in open_bundle(tmp_path / "tiny.edge").files if name.startswith("timing/")]


def test_a_file_that_changes_meanwhile(made: Made, tmp_path: Path) -> None:
    made("first.edge")
    model = tmp_path / "profiles" / "model.onnx"

    def meddle(event: Any) -> None:
        if getattr(event, "stage", "") == "hash" and event.done == event.total:
            model.write_bytes(model.read_bytes()[:-1] + b"?")

    with pytest.raises(ArtifactError, match="changed while the bundle was made"):
        made("second.edge", listen=meddle)
    assert not list(tmp_path.glob("*second*"))


def test_what_is_there_is_not_overwritten(made: Made, tmp_path: Path) -> None:
    (tmp_path / "tiny.edge").write_bytes(b"precious")
    with pytest.raises(UsageError, match="the file already exists"):
        made()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UsageError, match="not empty"):
        made("full")
    (tmp_path / "dir.edge").mkdir()
    with pytest.raises(UsageError, match="a folder has the path"):
        made("dir.edge")
    assert (tmp_path / "tiny.edge").read_bytes() == b"precious"
    (tmp_path / "tiny.edge.sig").write_bytes(b"of what was there before")
    assert made(force=True).signature() is None


@pytest.mark.parametrize("release", ["", "six", "6.", "6.2.1.1", "6 ", "-6", "6.2\n"])
def test_what_is_no_jetpack(made: Made, tmp_path: Path, release: str) -> None:
    made("first.edge")
    jetson = msgspec.structs.replace(profiles.read_profile(tmp_path / "profiles" / "tiny.yaml"), family="agx-orin")
    with pytest.raises(UsageError, match="not a release of JetPack"):
        creation.create(jetson, cache=tmp_path / "calib_cache", out=tmp_path / "x.edge", jetpack=[release])
    with pytest.raises(UsageError, match="has no JetPack"):
        made("x.edge", jetpack=["6.2"])
    about = creation.create(
        jetson, cache=tmp_path / "calib_cache", out=tmp_path / "x", jetpack=["7.1", "6.2", "7.1"]
    ).about
    assert about.jetpack == ["6.2", "7.1"]


# the golden gate


@pytest.fixture
def expected(made: Made) -> golden.Expected:
    return golden.decode_expected(made().read(golden.FILE), where="")


def test_the_gate_lets_the_right_engine_through(expected: golden.Expected) -> None:
    for precision in ("fp32", "int8"):
        assert golden.judge(expected, precision, expected.logits(precision)).problems == []
    slightly = expected.logits("fp32") * np.float32(1.0005)
    assert golden.judge(expected, "fp16", slightly).problems == []


@pytest.mark.parametrize("wrong", ["noise", "shuffled", "other images", "nan", "zero"])
def test_the_gate_stops_a_wrong_engine(expected: golden.Expected, wrong: str) -> None:
    logits = expected.logits("int8")
    rng = np.random.default_rng(0)
    bad = {
        "noise": logits + rng.normal(size=logits.shape).astype(np.float32) * 3 * np.abs(logits).max(),
        "shuffled": logits[:, ::-1],
        "other images": logits[::-1] * np.float32(-1),
        "nan": np.where(logits == logits.max(), np.float32("nan"), logits),
        "zero": np.zeros_like(logits),
    }[wrong]
    verdict = golden.judge(expected, "int8", bad)
    assert verdict.problems
    assert msgspec.json.encode(verdict)


def test_the_gate_needs_what_it_compares(expected: golden.Expected) -> None:
    with pytest.raises(ArtifactError, match="no tolerance for"):
        golden.judge(expected, "bf16", expected.logits("fp32"))  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="logits for references"):
        golden.judge(expected, "fp32", expected.logits("fp32")[:1])


@pytest.mark.parametrize("data", [b"", b"{}", b"[", b'{"format": 2}', b"\xff"])
def test_references_that_are_none(data: bytes) -> None:
    with pytest.raises(ArtifactError):
        golden.decode_expected(data, where="here")


# for which machine

ORIN = device.Device(is_jetson=True, family="agx-orin", product="AGX Orin 64GB", jetpack="6.2.1")


@pytest.mark.parametrize(
    ("family", "jetpack", "machine", "why"),
    [
        ("agx-orin", None, ORIN, None),
        ("agx-orin", ["6.2"], ORIN, None),
        ("agx-orin", ["6"], ORIN, None),
        ("agx-orin", ["7.2", "6.2.1"], ORIN, None),
        ("agx-orin", ["6.20"], ORIN, "has 6.2.1"),
        ("agx-orin", ["6.2.1.1"], ORIN, "has 6.2.1"),
        ("agx-orin", ["7"], ORIN, "for JetPack 7"),
        ("orin-nano", None, ORIN, "for orin-nano, but AGX Orin 64GB is agx-orin"),
        ("host", None, ORIN, "for host"),
        ("agx-orin", ["6.2"], device.Device(is_jetson=True, family="agx-orin"), "is unknown"),
        ("agx-orin", None, device.Device(is_jetson=True, family=None, unsupported="too old"), "too old"),
        ("agx-orin", None, device.Device(is_jetson=False, family="host"), "for agx-orin"),
        ("rtx", None, device.Device(is_jetson=False, family="host"), None),
        ("host", ["6.2"], device.Device(is_jetson=False, family="host"), None),
    ],
)
def test_a_bundle_for_another_machine(
    made: Made, family: str, jetpack: list[str] | None, machine: device.Device, why: str | None
) -> None:
    about = msgspec.structs.replace(made(golden=[]).about, family=family, jetpack=jetpack)
    if why is None:
        deployed.check_target(about, machine)
    else:
        with pytest.raises(DeviceError, match=why):
            deployed.check_target(about, machine)
