from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

from edge.artifacts import store
from edge.calibration import cache_keys
from edge.cli.table import app
from edge.config import profiles
from edge.errors import ArtifactError, EdgeError, ModelError, ProfileError, QualityError, StoreError, UsageError
from edge.quantization.calibration_table import TrtVersion, from_ranges, parse, write

TABLE = (
    b"TRT-8602-EntropyCalibration2\nx: 3c010204\nc1: 3d418306\n(Unnamed Layer* 3) [Constant]_output: 3c810204\n"
    b"a:0: 3f955011\n"
)
NETWORK = {"x": 2.5, "c1": 9.0, "r1": 8.5, "pool": 3.0, "flat": 3.0, "out": 11.0}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(item) for item in arguments])


def error_of(result: Result, kind: type[EdgeError]) -> EdgeError:
    assert isinstance(result.exception, kind), result.output
    return result.exception


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "a.table"
    path.write_bytes(TABLE)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small classifier whose activation tensors are those of NETWORK."""
    rng = np.random.default_rng(1)
    weights = {"w1": (4, 3, 3, 3), "b1": (4,), "w2": (4, 10), "b2": (10,)}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c1"], ["r1"]),
            helper.make_node("GlobalAveragePool", ["r1"], ["pool"]),
            helper.make_node("Flatten", ["pool"], ["flat"]),
            helper.make_node("Gemm", ["flat", "w2", "b2"], ["out"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name) for name, shape in weights.items()],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


@pytest.fixture
def profile(tmp_path: Path, model: Path) -> Path:
    path = tmp_path / "orin.yaml"
    path.write_text(
        f"family: agx-orin\nbackend: tensorrt\nmodel: {model.name}\nlabels: labels.txt\n"
        "input: {height: 8, width: 8}\npreprocess: {resize: 8}\n"
    )
    return path


def network_table(tmp_path: Path, *, version: str = "10.3.0", algorithm: str = "entropy2", drop: str = "") -> Path:
    ranges = {name: value for name, value in NETWORK.items() if name != drop}
    made = from_ranges(ranges, algorithm=algorithm, trt_version=TrtVersion.parse(version))  # type: ignore[arg-type]
    path = tmp_path / "n.table"
    path.write_bytes(write(made))
    return path


def codes(result: Result, level: str) -> set[str]:
    return {item["code"] for item in json.loads(result.stdout)["findings"] if item["level"] == level}


# show


def test_show_as_text(table: Path) -> None:
    result = run("show", table)
    assert result.exit_code == 0
    assert result.stdout.startswith("TRT-8602-EntropyCalibration2: entropy2, for TensorRT 8.6.2, 4 tensors\n")
    assert "(Unnamed Layer* 3) [Constant]_output" in result.stdout
    assert "3f955011" in result.stdout


def test_show_as_json(table: Path) -> None:
    shown = json.loads(run("show", table, "--json").stdout)
    assert (shown["header"], shown["algorithm"], shown["tensorrt"], shown["entries"]) == (
        "TRT-8602-EntropyCalibration2",
        "entropy2",
        "8.6.2",
        4,
    )
    assert [item["name"] for item in shown["tensors"]] == parse(TABLE).names
    assert shown["tensors"][1]["range"] == pytest.approx(6.0)


def test_show_a_legacy_table(tmp_path: Path) -> None:
    path = tmp_path / "legacy.table"
    path.write_bytes(b"0 3ff0000000000000 3feffbe76c8b4396\ninput: 3da42a11\n")
    assert "legacy, quantile 0.9995, cutoff 1.0, no TensorRT version" in run("show", path).stdout
    shown = json.loads(run("show", path, "--json").stdout)
    assert (shown["tensorrt"], shown["cutoff"], shown["quantile"]) == (None, 1.0, 0.9995)


def test_show_says_what_is_wrong_and_shows_it_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "bad.table"
    path.write_bytes(b"1\na: 7f800000\nb: 7fc0dead\nc: 3c010204\n")
    result = run("show", path, "--json")
    shown = json.loads(result.stdout)
    assert [(item["bits"], item["range"]) for item in shown["tensors"][:2]] == [("7f800000", None), ("7fc0dead", None)]
    assert "infinite" in result.stderr
    assert "nan" in result.stderr


@pytest.mark.parametrize("words", ["show", "check", "diff a.table"])
def test_a_missing_table(table: Path, words: str) -> None:
    command, *others = words.split()
    result = run(command, *(table.parent / name for name in others), table.parent / "nope")
    assert "does not exist" in error_of(result, UsageError).what


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    error_of(run("show", tmp_path), StoreError)


@pytest.mark.parametrize("command", ["show", "check"])
def test_a_bad_table_names_file_and_line(tmp_path: Path, command: str) -> None:
    path = tmp_path / "bad.table"
    path.write_bytes(TABLE + b"short: 3c01020\n")
    assert error_of(run(command, path), ArtifactError).where == f"{path}:6"
    lenient = run(command, path, "--lenient", "--json")
    assert lenient.exit_code == 0
    assert "line 6" in lenient.stderr


# check


@pytest.mark.parametrize(
    ("options", "extra", "errors", "warnings"),
    [
        ({}, [], set(), set()),
        ({}, ["--trt", "10.3.0"], set(), set()),
        ({"version": "10.14.1"}, ["--trt", "10.3.0"], set(), {"version"}),
        ({"version": "8.6.2"}, ["--trt", "10.3.0"], {"version"}, set()),
        ({"version": "8.6.2"}, ["--trt", "11.4.1"], set(), set()),
        ({"drop": "r1"}, [], {"missing"}, set()),
        ({"algorithm": "entropy"}, [], set(), {"algorithm"}),
    ],
    ids=["plain", "same-version", "same-major", "other-major", "explicit-route", "missing", "after-fusion"],
)
def test_check_against_a_profile(
    tmp_path: Path, profile: Path, options: dict[str, str], extra: list[str], errors: set[str], warnings: set[str]
) -> None:
    result = run("check", network_table(tmp_path, **options), "--profile", profile, "--json", *extra)
    assert codes(result, "error") == errors
    assert codes(result, "warning") == warnings
    if errors:
        assert error_of(result, QualityError).exit_code == 1
    else:
        assert result.exit_code == 0


def test_check_for_dla(tmp_path: Path, profile: Path) -> None:
    profile.write_text(profile.read_text() + "build: {dla_core: 0}\n")
    result = run("check", network_table(tmp_path, algorithm="minmax"), "--profile", profile, "--json")
    assert codes(result, "error") == {"algorithm"}
    assert "--as entropy2" in (error_of(result, QualityError).hint or "")
    assert run("check", network_table(tmp_path), "--profile", profile).exit_code == 0


def test_check_a_table_for_another_model(table: Path, profile: Path) -> None:
    result = run("check", table, "--profile", profile, "--json")
    assert {"foreign", "missing"} <= codes(result, "error")
    missing = next(item for item in json.loads(result.stdout)["findings"] if item["code"] == "missing")
    assert missing["tensors"] == ["r1", "pool", "flat", "out"]


def made_by_edge(table: Path, profile: Path, **other: str) -> None:
    """A manifest as ``edge calibrate`` writes it, for this profile but for ``other``."""
    loaded = profiles.read_profile(profile)
    store.save(
        cache_keys.manifest_path(table),
        kind=cache_keys.TABLE,
        files={table.name: table.read_bytes()},
        key={**cache_keys.table_key(loaded), "images": "0" * 64, **other},
        info={"zero_tensors": ["pool"]},
    )


@pytest.mark.parametrize("field", ["model", "preprocess"])
def test_check_a_table_that_was_made_for_another_model_or_preprocessing(
    field: str, tmp_path: Path, profile: Path
) -> None:
    path = network_table(tmp_path)
    made_by_edge(path, profile)
    assert run("check", path, "--profile", profile).exit_code == 0
    made_by_edge(path, profile, **{field: "0" * 64})
    result = run("check", path, "--profile", profile, "--json")
    assert codes(result, "error") == {"origin"}
    assert {"model": "made with another", "preprocess": "made with other preprocessing"}[field] in result.stdout


def test_check_a_table_that_changed_since_its_manifest(tmp_path: Path, profile: Path) -> None:
    path = network_table(tmp_path)
    made_by_edge(path, profile)
    path.write_bytes(path.read_bytes().replace(b"TRT-1003", b"TRT-1004"))
    assert codes(run("check", path, "--profile", profile, "--json"), "error") == {"changed"}


def test_a_manifest_of_something_else_says_nothing(tmp_path: Path, profile: Path) -> None:
    path = network_table(tmp_path)
    cache_keys.manifest_path(path).write_text('{"x": {"lowest": 1}}')
    assert "origin" not in codes(run("check", path, "--profile", profile, "--json"), "ok")


def test_a_tensor_that_was_always_zero_is_as_good_for_check_as_it_is_for_build(tmp_path: Path, profile: Path) -> None:
    path = network_table(tmp_path)
    path.write_bytes(re.sub(rb"pool: \w+", b"pool: 00000000", path.read_bytes()))
    assert codes(run("check", path, "--profile", profile, "--json"), "error") == {"zero"}
    made_by_edge(path, profile)
    assert run("check", path, "--profile", profile).exit_code == 0


def test_check_as_text(table: Path, profile: Path) -> None:
    result = run("check", table, "--profile", profile)
    assert result.exit_code == 1
    assert "missing" in result.stdout
    assert "harmless" in " ".join(result.stdout.split())


def test_check_without_a_profile(table: Path) -> None:
    result = run("check", table)
    assert result.exit_code == 0
    assert "without --profile" in result.stderr


@pytest.mark.parametrize("name", ["nope", "nope.yaml"])
def test_check_with_a_missing_profile(table: Path, name: str) -> None:
    error_of(run("check", table, "--profile", name), ProfileError)


def test_check_with_a_missing_model(table: Path, profile: Path, model: Path) -> None:
    model.unlink()
    error_of(run("check", table, "--profile", profile), ModelError)


@pytest.mark.parametrize("version", ["10", "ten", "8.10.0", ""])
def test_a_bad_version_is_a_usage_error(table: Path, version: str) -> None:
    assert "--trt" in error_of(run("check", table, "--trt", version), UsageError).what


# diff


def test_diff_of_the_same(table: Path, tmp_path: Path) -> None:
    head, *lines = TABLE.splitlines(keepends=True)
    other = tmp_path / "b.table"
    other.write_bytes(head + b"".join(reversed(lines)))
    result = run("diff", table, other)
    assert result.exit_code == 0
    assert "4 scales are the same, in another order, 0 differ" in result.stdout


def test_diff_of_others(table: Path, tmp_path: Path) -> None:
    other = tmp_path / "b.table"
    other.write_bytes(b"TRT-100300-EntropyCalibration2\nx: 3c810204\nc1: 3d418306\nnew: 3c810204\na:0: 3e955011\n")
    text = run("diff", table, other)
    assert error_of(text, QualityError).exit_code == 1
    assert "header: TRT-8602-EntropyCalibration2 -> TRT-100300-EntropyCalibration2" in text.stdout
    assert "only in A: (Unnamed Layer* 3) [Constant]_output" in text.stdout
    assert "only in B: new" in text.stdout
    shown = json.loads(run("diff", table, other, "--json").stdout)
    assert shown["same"] is False
    assert [(item["name"], item["ratio"]) for item in shown["difference"]["changes"]] == [("a:0", 0.25), ("x", 2.0)]


# convert


def test_convert_to_onnxruntime_and_back(table: Path, tmp_path: Path) -> None:
    there, back = tmp_path / "c.json", tmp_path / "back.table"
    assert run("convert", table, "-o", there).exit_code == 0
    result = run("convert", there, "-o", back, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["header"] == "TRT-8602-EntropyCalibration2"
    assert back.read_bytes() == TABLE


def test_flatbuffers_tables_are_refused_with_the_way_to_go(table: Path, tmp_path: Path) -> None:
    for line in ((table, "-o", tmp_path / "c.flatbuffers"), (tmp_path / "c.flatbuffers", "-o", tmp_path / "x.table")):
        refused = run("convert", *line)
        assert "trt_int8_use_native_calibration_table" in (error_of(refused, UsageError).hint or "")
    assert not (tmp_path / "c.flatbuffers").exists()


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_convert_to_qdq_and_back(tmp_path: Path, model: Path, target: str) -> None:
    pytest.importorskip("onnxruntime")
    source, there, back = network_table(tmp_path), tmp_path / "q.onnx", tmp_path / "back.table"
    made = run("convert", source, "-o", there, "--model", model, "--target", target)
    assert made.exit_code == 0, made.output
    assert "2 of 2 layers with weights" in made.stderr
    onnx.checker.check_model(str(there))
    assert run("convert", there, "-o", back).exit_code == 0
    assert back.read_bytes() == source.read_bytes()


def test_formats_can_be_said(table: Path, tmp_path: Path) -> None:
    there, back = tmp_path / "c", tmp_path / "back.json"
    run("convert", table, "-o", there, "--to", "ort-json")
    assert json.loads(there.read_bytes())["CLS"] == "TensorsData"
    run("convert", there, "--from", "ort-json", "-o", back, "--to", "trt")
    assert back.read_bytes() == TABLE


def test_convert_mends_a_table(table: Path, tmp_path: Path) -> None:
    table.write_bytes(TABLE.replace(b"\n", b"\r\n").replace(b"3f955011", b"3F955011"))
    out = tmp_path / "mended.table"
    error_of(run("convert", table, "-o", out), ArtifactError)
    assert not out.exists()
    result = run("convert", table, "-o", out, "--lenient")
    assert out.read_bytes() == TABLE
    assert "CRLF" in result.stderr
    assert "3F955011" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "qdq"], "--model"),
        (["--trt", "10.3.0"], "retarget"),
        (["--as", "minmax"], "retarget"),
    ],
    ids=["qdq-without-model", "version", "calibrator"],
)
def test_convert_that_makes_no_sense(table: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    out = tmp_path / "out"
    assert words in (error_of(run("convert", table, "-o", out, *arguments), UsageError).hint or "")
    assert not out.exists()


def test_convert_says_what_a_foreign_file_is_before_it_speaks_of_options(tmp_path: Path) -> None:
    path = tmp_path / "calibration.cache"
    path.write_bytes(b"input 2.64\n/conv/Conv_output_0 17.3\n")
    error = error_of(run("convert", path, "-o", tmp_path / "out", "--trt", "10.3.0", "--as", "minmax"), ArtifactError)
    assert "--from ort-json" in (error.hint or "")


@pytest.mark.parametrize("which", ["source", "model"])
def test_convert_with_a_model_that_is_not_there(which: str, table: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone.onnx"
    given = (gone, "-o", tmp_path / "t") if which == "source" else (table, "-o", tmp_path / "o.onnx", "--model", gone)
    error = error_of(run("convert", *given), UsageError)
    assert (error.where, error.hint) == (str(gone), None)


def test_convert_refuses_scales_that_are_no_ranges(tmp_path: Path) -> None:
    path, out = tmp_path / "inf.table", tmp_path / "out.json"
    path.write_bytes(b"1\nmask: 7f800000\n")
    assert error_of(run("convert", path, "-o", out), ArtifactError).where == str(path)
    assert not out.exists()


def test_convert_something_that_is_no_onnx(tmp_path: Path) -> None:
    path = tmp_path / "q.onnx"
    path.write_bytes(b"not onnx")
    error_of(run("convert", path, "-o", tmp_path / "out.table", "--trt", "10.3.0"), ModelError)


# retarget


def test_retarget(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "b.table"
    result = run("retarget", table, "--trt", "10.3.0", "-o", out)
    assert result.exit_code == 0
    assert out.read_bytes() == TABLE.replace(b"TRT-8602", b"TRT-100300")
    assert table.read_bytes() == TABLE
    assert "warning" not in result.stderr


def test_retarget_to_another_calibrator_is_warned_about(table: Path, tmp_path: Path) -> None:
    table.write_bytes(TABLE.replace(b"EntropyCalibration2", b"MinMaxCalibration"))
    result = run("retarget", table, "--trt", "8.6.2", "--as", "entropy2", "-o", tmp_path / "b", "--json")
    assert json.loads(result.stdout)["header"] == "TRT-8602-EntropyCalibration2"
    assert "still those of minmax" in result.stderr
    assert (tmp_path / "b").read_bytes() == TABLE


@pytest.mark.parametrize("version", ["11.4.1", "10", "x"])
def test_retarget_to_a_version_that_takes_no_table(table: Path, tmp_path: Path, version: str) -> None:
    error_of(run("retarget", table, "--trt", version, "-o", tmp_path / "b"), UsageError)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("command", [["retarget", "--trt", "10.3.0"], ["convert"]], ids=lambda words: words[0])
def test_nothing_is_overwritten_without_force(table: Path, tmp_path: Path, command: list[str]) -> None:
    out = tmp_path / "there.table"
    out.write_text("precious")
    assert error_of(run(*command, table, "-o", out), UsageError).hint == "--force overwrites it"
    assert out.read_text() == "precious"
    assert run(*command, table, "-o", out, "--force").exit_code == 0
    assert out.read_bytes().endswith(TABLE.partition(b"\n")[2])


@pytest.mark.parametrize("command", ["retarget", "convert"])
def test_an_output_file_is_required(table: Path, command: str) -> None:
    assert run(command, table, "--trt", "10.3.0").exit_code == 2


# the whole program


def edge(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "edge", "table", *(str(item) for item in arguments)]
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=root)


@pytest.mark.parametrize(
    ("data", "code"), [(TABLE, 0), (b"1\na: 00000000\n", 1), (b"1\na: 0\n", 7)], ids=["good", "unusable", "corrupt"]
)
def test_exit_codes(table: Path, data: bytes, code: int) -> None:
    table.write_bytes(data)
    result = edge("check", table)
    assert result.returncode == code
    assert "Traceback" not in result.stderr


def test_showing_a_table_imports_no_dependency(table: Path) -> None:
    script = (
        "import sys; from typer.testing import CliRunner; from edge.cli.table import app; "
        f"assert CliRunner().invoke(app, ['show', {str(table)!r}, '--json']).exit_code == 0; "
        "print(sorted({'numpy', 'onnx', 'onnxruntime', 'cv2', 'yaml'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
