"""TensorRT from the command line, with each of the eight doubles: calibrate, build, run, and what goes wrong.

Builds and calibrations run in processes of their own, as they do on a device, so the doubles are on the search path as
packages (``tests/support/tensorrt/site_double.py``). What they compute, ONNX Runtime computes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.artifacts import store
from edge.backends.tensorrt import timing_cache
from edge.calibration import cache_keys
from edge.quantization import calibration_table
from edge.quantization.calibration_table import TrtVersion
from tests.support.tensorrt import site_double
from tests.support.tensorrt.double import VERSIONS
from tests.support.tensorrt.timing_double import content

Edge = Callable[..., Any]
Place = Callable[..., Path]
IMPLICIT = [version for version in VERSIONS if version not in {"11.4.0.106", "rtx"}]
TINY = ("--profile", "tiny")
PICTURES = ("--images", "pictures")


def forget_doubles() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in site_double.NAMES]:
        del sys.modules[name]


@pytest.fixture
def device(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """``device("10.3.0", profile={...}, **settings)``: a working directory on a device with that TensorRT.

    Called again, the device has another TensorRT, or fails in another way.
    """
    folder = tmp_path / "site"
    monkeypatch.syspath_prepend(folder)

    def make(version: str, *, profile: dict[str, Any] | None = None, cuda: Any = None, **settings: Any) -> Path:
        forget_doubles()
        site_double.write(folder, version, cuda=cuda, **settings)
        family = "rtx" if version == "rtx" else "agx-orin"
        return place(8, **{"backend": "tensorrt", "family": family, **(profile or {})})

    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] in site_double.NAMES}
    yield make
    # What the commands imported must be nobody else's GPU.
    forget_doubles()
    sys.modules.update(before)


@pytest.fixture
def calibrated(device: Callable[..., Path], edge: Edge) -> Callable[..., Path]:
    """The same, with edge's own table."""

    def make(version: str, **settings: Any) -> Path:
        folder = device(version, **settings)
        assert edge("calibrate", *TINY, *PICTURES).code == 0
        return folder

    return make


def manifest(folder: Path, precision: str = "int8") -> store.Manifest:
    return store.load(folder / "engines/tiny" / f"model-{precision}.json", kind=cache_keys.ENGINE)


@pytest.mark.parametrize("version", VERSIONS)
def test_calibrate_build_and_run(version: str, calibrated: Callable[..., Path], edge: Edge) -> None:
    folder = calibrated(version)
    answers = {}
    for precision in ("fp32", "fp16", "int8"):
        ended = edge("build", *TINY, "--precision", precision)
        assert (ended.code, ended.out.count("built in")) == (0, 1), ended.err
        assert "build engine" in ended.err or version == "8.6.1"
        ran = edge("run", *TINY, *PICTURES, "--precision", precision, "--json")
        assert ran.code == 0, ran.err
        *results, last = [json.loads(line) for line in ran.out.splitlines()]
        answers[precision] = [result["guesses"][0]["index"] for result in results]
        assert (len(results), last["summary"]["pictures"]) == (8, 8)
        assert last["summary"]["latency"]["infer"]["n"] == 8
    # The double computes in float whatever it is asked for; a Q/DQ graph rounds.
    assert answers["fp32"] == answers["fp16"]
    info = manifest(folder).info
    implicit = version in IMPLICIT
    assert info["int8_route"] == ("implicit" if implicit else "explicit")
    assert ("calibration table itself" if implicit else "no calibrators") in info["why"]
    assert ("PREFER_PRECISION_CONSTRAINTS" in info["flags"]) == implicit
    assert "TF32" in info["flags"]
    assert "TF32" not in manifest(folder, "fp32").info["flags"]
    assert info["peak_memory_mib"] > 10
    assert info["build_seconds"] > 0
    assert edge("build", *TINY).out.endswith("unchanged, nothing to do\n")
    scored = edge("eval", *TINY, *PICTURES, "--labels", "pictures/labels.csv", "--json")
    assert scored.code == 0, scored.err
    assert 0 <= json.loads(scored.out)["top1"] <= 100


@pytest.mark.parametrize(
    ("version", "algorithm"),
    [*((version, "entropy2") for version in IMPLICIT), *(("10.3.0", name) for name in ("minmax", "legacy", "entropy"))],
)
def test_the_devices_own_calibrators(version: str, algorithm: str, device: Callable[..., Path], edge: Edge) -> None:
    folder = device(version, profile={"calibration": {"engine": "tensorrt", "algorithm": algorithm, "batch": 4}})
    ended = edge("calibrate", *TINY, *PICTURES)
    assert ended.code == 0, ended.err
    path = folder / f"calib_cache/model/{algorithm}-tensorrt.table"
    assert ended.out.startswith(f"{path}: ")
    assert "from 8 images" in ended.out
    found = store.load(path.with_suffix(".json"), kind=cache_keys.TABLE)
    assert (found.key["engine"], found.key["tensorrt"], found.key["batch"]) == ("tensorrt", version, 4)
    assert found.info["made_by"] == f"TensorRT {version}"
    table = calibration_table.parse(path.read_bytes())
    assert table.header.algorithm == algorithm
    assert {"input", "c1", "logits"} < set(table.bits)
    again = edge("calibrate", *TINY, *PICTURES)
    assert again.out.endswith("unchanged, nothing to do (8 images)\n")
    # What was measured on the way is in the timing cache, and the engine is built from the table that was made.
    assert "timing cache: used" in (built := edge("build", *TINY)).err, built.err
    assert built.out.endswith("4 of 4 weighted layers in INT8\n")
    assert manifest(folder).key["table"] == found.files[path.name].sha256
    # edge's own table would be another file.
    assert edge("calibrate", *TINY, *PICTURES, "--engine", "edge").code in {0, 3}


def test_the_same_preprocessing_and_every_picture(device: Callable[..., Path], edge: Edge) -> None:
    """MinMax of the double is the largest magnitude; so is edge's."""
    folder = device("10.3.0", profile={"calibration": {"algorithm": "minmax", "batch": 2}})
    for engine in ("edge", "tensorrt"):
        assert edge("calibrate", *TINY, *PICTURES, "--engine", engine).code == 0
    own, theirs = (
        calibration_table.parse((folder / f"calib_cache/model/{name}.table").read_bytes()).scales
        for name in ("minmax", "minmax-tensorrt")
    )
    assert own.keys() <= theirs.keys()
    assert all(abs(theirs[name] / scale - 1) < 1e-5 for name, scale in own.items())


@pytest.mark.parametrize("version", ["11.4.0.106", "rtx"])
def test_a_tensorrt_without_calibrators(version: str, device: Callable[..., Path], edge: Edge) -> None:
    device(version)
    ended = edge("calibrate", *TINY, *PICTURES, "--engine", "tensorrt")
    assert (ended.code, ended.out) == (8, "")
    assert "has no entropy2 calibrator (it has none at all)" in ended.err
    assert "try: without --engine, edge's own algorithms make the table on any host" in ended.err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--algorithm", "percentile"), 8, "has no percentile calibrator (it has entropy2, minmax, entropy, legacy)"),
        (("--batch", "3"), 6, "8 images are not a multiple of the calibration batch 3"),
        (("--batch", "9"), 6, "try: --batch 1"),
        (("--workers", "2"), 2, "calibrates on this device only"),
        (("--engine", "somebody"), 2, "somebody"),
    ],
)
def test_calibrating_with_wrong_options(
    options: tuple[str, ...], code: int, words: str, device: Callable[..., Path], edge: Edge
) -> None:
    folder = device("10.3.0")
    ended = edge("calibrate", *TINY, *PICTURES, *(() if "--engine" in options else ("--engine", "tensorrt")), *options)
    assert (ended.code, ended.out) == (code, "")
    assert words in ended.err
    assert not list(folder.glob("calib_cache/**/*.table"))


def test_the_engine_of_another_backend_cannot_calibrate(place: Place, edge: Edge) -> None:
    place(2)
    ended = edge("calibrate", *TINY, *PICTURES, "--engine", "tensorrt")
    assert ended.code == 2
    assert "with backend: onnxruntime" in ended.err


@pytest.mark.parametrize(
    ("settings", "damage", "code", "words"),
    [
        pytest.param({"takes": 1}, None, 8, "read 1 of 2 calibration batches", id="fewer batches than planned"),
        pytest.param({}, "picture", 6, "003.jpg: not a JPEG", id="a broken image"),
        pytest.param({"cuda": {"memory": 1000}}, None, 8, "out of GPU memory", id="no memory for a batch"),
        pytest.param({"cuda": {"no_gpu": True}}, None, 8, "no CUDA-capable device", id="no GPU"),
        pytest.param({"fails": ["out of memory"]}, None, 8, "ran out of GPU memory", id="no memory"),
    ],
)
def test_a_calibration_that_fails_leaves_nothing(
    settings: dict[str, Any], damage: str | None, code: int, words: str, device: Callable[..., Path], edge: Edge
) -> None:
    folder = device("10.3.0", **settings)
    if damage:
        (folder / "pictures/003.jpg").write_bytes(b"\xff\xd8 not an image")
    ended = edge("calibrate", *TINY, *PICTURES, "--engine", "tensorrt", "--batch", "4")
    assert (ended.code, ended.out) == (code, ""), ended.err
    assert words in ended.err
    assert "Traceback" not in ended.err
    assert not list(folder.glob("calib_cache/**/*.table"))


# the route


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "10.7.0"])
def test_auto_with_a_dla_is_implicit(version: str, calibrated: Callable[..., Path], edge: Edge) -> None:
    folder = calibrated(version, profile={"build": {"dla_core": 0}, "input": {"batch": {"max": 1}}}, dla_cores=2)
    ended = edge("build", *TINY)
    assert ended.code == 0, ended.err
    assert "implicit route: on TensorRT" in ended.err
    assert (manifest(folder).info["int8_route"], manifest(folder).key["dla_core"]) == ("implicit", 0)


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "11.4.0.106"])
def test_an_engine_runs_on_the_dla_core_that_it_was_built_for(
    version: str, calibrated: Callable[..., Path], edge: Edge
) -> None:
    """Two engines on two cores must not share the first one; the double asserts which core it is loaded for."""
    calibrated(version, profile={"build": {"dla_core": 1}, "input": {"batch": {"max": 1}}}, dla_cores=2)
    ended = edge("build", *TINY)
    assert ended.code == 0, ended.err
    ran = edge("run", *TINY, *PICTURES)
    assert ran.code == 0, ran.err


def test_a_dla_where_there_is_none(calibrated: Callable[..., Path], edge: Edge) -> None:
    folder = calibrated("10.3.0", profile={"build": {"dla_core": 0}, "input": {"batch": {"max": 1}}})
    ended = edge("build", *TINY)
    assert (ended.code, ended.out) == (8, "")
    assert "build.dla_core: 0, but this machine has no DLA that TensorRT can use" in ended.err
    assert not (folder / "engines").exists()


def test_a_route_that_is_not_there(calibrated: Callable[..., Path], edge: Edge) -> None:
    calibrated("11.4.0.106", profile={"int8_route": "implicit"})
    ended = edge("build", *TINY)
    assert (ended.code, ended.out) == (3, "")
    assert "int8_route: implicit, but TensorRT 11.4.0.106 has no calibrators" in ended.err


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0"])
def test_edges_own_table_fits_every_tensorrt(version: str, calibrated: Callable[..., Path], edge: Edge) -> None:
    """Its header says 10.3.0, which 8.6 would refuse: it is served under the running version's."""
    folder = calibrated(version)
    assert edge("build", *TINY).code == 0
    info = manifest(folder).info
    assert info["table_header"] == "TRT-100300-EntropyCalibration2"
    assert info["served_header"] == {"8.6.1": "TRT-8601", "10.3.0": "TRT-100300"}[version] + "-EntropyCalibration2"


def test_a_table_of_another_major_version(device: Callable[..., Path], edge: Edge) -> None:
    own = {"calibration": {"engine": "tensorrt", "batch": 4}}
    folder = device("8.6.1", profile=own)
    assert edge("calibrate", *TINY, *PICTURES).code == 0
    device("10.3.0", profile=own)
    ended = edge("build", *TINY)
    assert (ended.code, ended.out) == (7, "")
    assert "made for TensorRT 8.6.1; 10.3.0 refuses it" in ended.err
    assert "try: edge build --retarget" in ended.err
    assert not (folder / "engines").exists()
    assert edge("build", *TINY, "--retarget").code == 0
    assert manifest(folder).info["served_header"] == "TRT-100300-EntropyCalibration2"
    # The same major version is accepted, and said.
    device("10.16.1.11", profile=own)
    table = folder / "calib_cache/model/entropy2-tensorrt.table"
    kept = store.load(table.with_suffix(".json"), kind=cache_keys.TABLE)
    new = calibration_table.write(
        calibration_table.retarget(calibration_table.parse(table.read_bytes()), TrtVersion(10, 3, 0))
    )
    store.save(table.with_suffix(".json"), kind=cache_keys.TABLE, files={table.name: new}, key=kept.key, info=kept.info)
    ended = edge("build", *TINY)
    assert ended.code == 0
    assert "made for TensorRT 10.3.0, accepted by 10.16.1" in ended.err


# engines that do not fit


def test_an_engine_of_another_tensorrt(
    calibrated: Callable[..., Path], edge: Edge, device: Callable[..., Path]
) -> None:
    calibrated("10.3.0")
    assert edge("build", *TINY).code == 0
    device("10.7.0")
    for command in ("run", "eval"):
        ended = edge(command, *TINY, *PICTURES)
        assert (ended.code, ended.out) == (7, "")
        assert "the engine was built with other inputs (tensorrt: 10.3.0 -> 10.7.0)" in ended.err
        assert "  try: edge build --profile tiny" in ended.err
    assert "because: tensorrt: 10.3.0 -> 10.7.0" in edge("build", *TINY).err
    assert edge("run", *TINY, *PICTURES).code == 0


@pytest.mark.parametrize("field", ["module", "sm", "gpu", "profile", "table", "model"])
def test_an_engine_of_another_device_or_profile(field: str, calibrated: Callable[..., Path], edge: Edge) -> None:
    folder = calibrated("10.3.0")
    assert edge("build", *TINY).code == 0
    path = folder / "engines/tiny/model-int8.json"
    kept = manifest(folder)
    files = {name: (path.parent / name).read_bytes() for name in kept.files}
    store.save(path, kind=cache_keys.ENGINE, files=files, key={**kept.key, field: "another"}, info=kept.info)
    ended = edge("run", *TINY, *PICTURES)
    assert (ended.code, ended.out) == (7, "")
    assert f"the engine was built with other inputs ({field}: another -> " in ended.err


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty", "another file"])
def test_a_damaged_engine(damage: str, calibrated: Callable[..., Path], edge: Edge) -> None:
    folder = calibrated("10.3.0")
    assert edge("build", *TINY).code == 0
    plan = folder / "engines/tiny/model-int8.plan"
    data = bytearray(plan.read_bytes())
    if damage == "one bit":
        data[len(data) // 2] ^= 1
    new = {"truncated": data[:-100], "one bit": data, "empty": b"", "another file": b"x" * len(data)}[damage]
    plan.write_bytes(new)
    ended = edge("run", *TINY, *PICTURES)
    assert (ended.code, ended.out) == (7, "")
    assert str(plan) in ended.err
    assert edge("build", *TINY).code == 0
    assert edge("run", *TINY, *PICTURES).code == 0


# no GPU, no driver, no memory


@pytest.mark.parametrize(
    ("cuda", "code", "words"),
    [
        ({"no_driver": "libcuda.so.1: cannot open shared object file: No such file"}, 8, "no NVIDIA driver"),
        ({"no_driver": "/x/_driver.so: undefined symbol: cuCtxCreate_v4"}, 8, "driver is older than the CUDA"),
        ({"no_driver": "libcurand.so.10: cannot open shared object file"}, 8, "CUDA's libcurand.so.10 was not found"),
        ({"no_gpu": True}, 8, "no CUDA-capable device"),
        ({"memory": 1000}, 8, "out of GPU memory"),
    ],
    ids=["no driver", "old driver", "no CUDA", "no GPU", "no memory"],
)
def test_running_where_cuda_does_not(
    cuda: dict[str, Any],
    code: int,
    words: str,
    calibrated: Callable[..., Path],
    edge: Edge,
    device: Callable[..., Path],
) -> None:
    calibrated("10.3.0")
    assert edge("build", *TINY).code == 0
    device("10.3.0", cuda=cuda)
    ended = edge("run", *TINY, *PICTURES)
    assert (ended.code, ended.out) == (code, ""), ended.err
    assert words in ended.err
    assert "  try: " in ended.err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"no_cuda": "CUDA initialization failure with error: 35"}, "driver is missing, or older than this TensorRT"),
        ({"no_cuda": "CUDA initialization failure with error: 100"}, "there is no NVIDIA GPU"),
        ({"fails": ["Cuda Runtime (out of memory)"]}, "the build ran out of GPU memory"),
        ({"fails": ["Target GPU SM 87 is not supported by this TensorRT release"]}, "no kernels for this GPU (SM 87)"),
        ({"refuses_table": True}, "refused the calibration table"),
    ],
    ids=["old driver", "no GPU", "no memory", "another SM", "table refused"],
)
def test_a_build_that_fails_keeps_what_is_there(
    settings: dict[str, Any], words: str, calibrated: Callable[..., Path], edge: Edge, device: Callable[..., Path]
) -> None:
    folder = calibrated("10.3.0")
    assert edge("build", *TINY).code == 0

    def kept() -> dict[str, bytes]:
        found = (path for folder_ in ("engines", "calib_cache") for path in (folder / folder_).rglob("*"))
        return {str(path): path.read_bytes() for path in found if path.is_file() and path.suffix != ".lock"}

    before = kept()
    device("10.3.0", **settings)
    ended = edge("build", *TINY, "--force")
    assert (ended.code, ended.out) == ({"refuses_table": 7}.get(next(iter(settings)), 8), ""), ended.err
    assert words in ended.err
    assert "  try: " in ended.err
    assert kept() == before


# timing caches


def test_only_the_batch_range_changes(calibrated: Callable[..., Path], edge: Edge, device: Callable[..., Path]) -> None:
    folder = calibrated("10.16.1.11")
    cold = edge("build", *TINY)
    assert "timing cache: started, 0 entries before, " in cold.err
    device("10.16.1.11", profile={"input": {"batch": {"max": 4}}})
    warm = edge("build", *TINY)
    assert "because: profile: " in warm.err
    timing_ = manifest(folder).info["timing"]
    assert timing_["hits"] == timing_["entries_before"] > 0
    said = (
        f"timing cache: used, {timing_['entries_before']} entries before, 0 added, {timing_['hits']} lookups answered"
    )
    assert said in warm.err
    assert set(manifest(folder).info["build_times"]) == {"with_cache_s", "without_cache_s"}
    listed = edge("cache", "list")
    assert listed.code == 0
    assert " ok " in f"{listed.out} "
    assert str(timing_["entries_after"]) in listed.out
    (entry,) = json.loads(edge("cache", "list", "--json").out)["caches"]
    assert (entry["state"], entry["entries"], entry["key"]["tensorrt"]) == (
        "ok",
        timing_["entries_after"],
        "10.16.1.11",
    )
    assert edge("cache", "verify").out.endswith(".timing: ok\n")


def test_without_the_timing_cache(calibrated: Callable[..., Path], edge: Edge) -> None:
    folder = calibrated("10.3.0")
    ended = edge("build", *TINY, "--no-timing-cache")
    assert (ended.code, "timing cache: off, every kernel was measured" in ended.err) == (0, True)
    assert not (folder / "calib_cache/timing").exists()
    # It is no part of what the engine is.
    assert edge("build", *TINY).out.endswith("unchanged, nothing to do\n")


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "rtx"])
def test_error_on_miss(version: str, calibrated: Callable[..., Path], edge: Edge) -> None:
    calibrated(version)
    ended = edge("build", *TINY, "--error-on-miss")
    assert (ended.code, ended.out) == (8, "")
    assert "--error-on-miss" in ended.err
    if version == "10.3.0":
        assert "there is no timing cache" in ended.err
        assert edge("build", *TINY).code == 0
        assert edge("build", *TINY, "--error-on-miss", "--force").code == 0
        ended = edge("build", *TINY, "--error-on-miss", "--precision", "fp32")
        assert (ended.code, "lacks a kernel of this build" in ended.err) == (8, True)


@pytest.mark.parametrize(
    ("options", "words"),
    [(("--no-timing-cache", "--error-on-miss"), "exclude each other"), (("--error-on-miss",), "has no timing caches")],
)
def test_options_that_make_no_sense(options: tuple[str, ...], words: str, place: Place, edge: Edge) -> None:
    place(1)
    ended = edge("build", *TINY, *options)
    assert (ended.code, words in ended.err) == (2, True)


def test_an_engine_is_not_lost_with_its_timing_cache(calibrated: Callable[..., Path], edge: Edge) -> None:
    folder = calibrated("10.3.0")
    (folder / "calib_cache/timing").write_text("a file where a folder is needed")
    ended = edge("build", *TINY)
    assert ended.code == 0, ended.err
    assert f"warning: the timing cache of this build is not kept: {folder}/calib_cache/timing/" in ended.err
    assert any("is not kept" in text for text in manifest(folder).info["warnings"])
    assert edge("build", *TINY).out.rstrip().endswith("unchanged, nothing to do")


def test_a_timing_cache_that_tensorrt_refuses_is_said_once(
    calibrated: Callable[..., Path], device: Callable[..., Path], edge: Edge
) -> None:
    folder = calibrated("10.3.0")
    assert edge("build", *TINY).code == 0
    device("10.3.0", refuses_cache=True)
    ended = edge("build", *TINY, "--force")
    assert ended.code == 0
    assert ended.err.count("this build measures every kernel again") == 1
    assert "timing cache: refused by TensorRT, started again" in ended.err
    assert len(list((folder / "calib_cache/timing").glob("*.timing.aside-1"))) == 1


@pytest.mark.parametrize("damage", ["truncated", "one bit", "no manifest"])
def test_a_corrupt_timing_cache(damage: str, calibrated: Callable[..., Path], edge: Edge) -> None:
    folder = calibrated("10.3.0")
    assert edge("build", *TINY).code == 0
    (path,) = (folder / "calib_cache/timing").glob("*.timing")
    data = bytearray(path.read_bytes())
    if damage == "no manifest":
        path.with_suffix(".json").unlink()
    else:
        data[8] ^= 1
        path.write_bytes(data[:20] if damage == "truncated" else data)
    bad = edge("cache", "verify")
    assert (bad.code, "1 of 1 files do not match their manifests" in bad.err) == (1, True)
    ended = edge("build", *TINY, "--force")
    assert ended.code == 0
    assert f"the timing cache {path.name} is set aside" in ended.err
    assert "timing cache: started" in ended.err
    assert (path.parent / f"{path.name}.aside-1").is_file()
    would = edge("cache", "gc", "--dry-run")
    assert "would remove" in would.out
    gone = json.loads(edge("cache", "gc", "--json").out)
    assert any(name.endswith(".aside-1") for name in gone["removed"])
    assert edge("cache", "verify").code == 0
    assert edge("build", *TINY, "--force").err.count("timing cache: used") == 1


def test_merging(calibrated: Callable[..., Path], edge: Edge) -> None:
    folder = calibrated("10.3.0")
    assert edge("build", *TINY).code == 0
    (folder / "other.cache").write_bytes(content("10.3.0", ["another kernel"]))
    ended = edge("cache", "merge", "other.cache", *TINY)
    assert ended.code == 0, ended.err
    (path,) = (folder / "calib_cache/timing").glob("*.timing")
    assert ended.out.startswith(f"{path}: 1 merged, ")
    assert b"another kernel" in path.read_bytes()
    before = path.read_bytes()
    (folder / "foreign.cache").write_bytes(content("another device", ["x"]))
    (folder / "nonsense.cache").write_bytes(b"nonsense")
    (folder / "empty.cache").write_bytes(b"")
    for name, code, words in (
        ("foreign.cache", 7, "refuses the timing cache number 2 of 2"),
        ("nonsense.cache", 7, "refuses the timing cache number 2 of 2"),
        ("empty.cache", 7, "the file is empty"),
        ("nowhere.cache", 2, "the file does not exist"),
    ):
        ended = edge("cache", "merge", name, *TINY)
        assert (ended.code, ended.out) == (code, ""), ended.err
        assert words in ended.err
        assert name in ended.err
    assert path.read_bytes() == before
    assert timing_cache.listing(path.parent)[0].state == "ok"


def test_caches_where_there_are_none(place: Place, edge: Edge) -> None:
    place(1)
    for command in ("list", "verify", "gc"):
        assert edge("cache", command).code == 0
    assert "no timing caches in" in edge("cache", "list").err
    ended = edge("cache", "merge", "profiles/model.onnx", *TINY)
    assert (ended.code, "has no timing caches" in ended.err) == (2, True)
