"""``edge calibrate`` as it is typed: where the table goes, what is said, and with which exit code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.cli import paths

Edge = Callable[..., Any]
Place = Callable[..., Path]
COMMAND = ("calibrate", "--profile", "tiny", "--images", "pictures")


def tables_below(folder: Path) -> list[Path]:
    """Tables and their manifests; statistics and checkpoints are not for anybody's eyes."""
    found = [path for path in folder.rglob("*") if path.suffix in {".table", ".json"}]
    return [path for path in found if ".stats." not in path.name and ".partial." not in path.name]


def test_a_table_and_its_manifest(edge: Edge, place: Place) -> None:
    folder = place()
    ended = edge(*COMMAND)
    table = folder / "calib_cache" / "model" / "entropy2.table"
    assert ended.code == 0
    assert ended.out.startswith(f"{table}: 11 tensors from 8 images, in ")
    assert sorted(tables_below(folder / "calib_cache")) == [table.with_suffix(".json"), table]
    # Progress and everything else for the person is on stderr.
    assert "calibrate: 8/8 images" in ended.err
    assert "profile tiny (" in ended.err


def test_a_second_call_says_so_and_does_nothing(edge: Edge, place: Place) -> None:
    folder = place()
    edge(*COMMAND)
    table = folder / "calib_cache" / "model" / "entropy2.table"
    before = (table.stat().st_mtime_ns, table.read_bytes())
    ended = edge(*COMMAND)
    assert (ended.code, ended.out) == (0, f"{table}: unchanged, nothing to do (8 images)\n")
    assert "calibrate:" not in ended.err
    assert (table.stat().st_mtime_ns, table.read_bytes()) == before


@pytest.mark.parametrize(
    ("more", "field"),
    [
        (("--batch", "3"), "batch: 8 -> 3"),
        (("--limit", "5"), "images: "),
        (("--algorithm", "minmax"), "algorithm: entropy2 -> minmax"),
    ],
    ids=["batch", "pictures", "algorithm"],
)
def test_what_changed_is_named(more: tuple[str, ...], field: str, edge: Edge, place: Place) -> None:
    place()
    edge(*COMMAND)
    ended = edge(*COMMAND, *more)
    assert ended.code == 0
    assert f"the existing table differs in {field}" in ended.err
    assert "unchanged" not in ended.out


def test_an_algorithm_comes_with_its_parameter_as_a_sweep_writes_it(edge: Edge, place: Place) -> None:
    """The table is the one of a profile that says so, and that this profile's build takes another is said."""
    folder = place()
    ended = edge(*COMMAND, "--algorithm", "percentile:99.9")
    table = folder / "calib_cache" / "model" / "percentile-99.9.table"
    assert (ended.code, table.is_file()) == (0, True)
    said = "calibration: {algorithm: percentile, parameters: {percentile: 99.9}}"
    assert f"edge build uses entropy2.table, as in the profile tiny; to use this one, set there: {said}" in ended.err
    place(calibration={"algorithm": "percentile", "parameters": {"percentile": 99.9}})
    again = edge(*COMMAND)
    assert (again.code, again.out) == (0, f"{table}: unchanged, nothing to do (8 images)\n")
    assert "edge build uses" not in again.err


@pytest.mark.parametrize(
    ("word", "what"),
    [
        ("nope", "there is no algorithm 'nope'; there are auto, entropy, entropy2, legacy, minmax, mse, percentile"),
        ("percentile:x", "'x' is not a number"),
        ("percentile:nan", "must be 1 to 100"),
        ("percentile:101", "must be 1 to 100"),
        ("legacy:0.5", "'0.5' needs the name of its parameter"),
        ("minmax:1", "'1' needs the name of its parameter"),
        ("percentile:99.9:", "'' is not a number"),
    ],
)
def test_an_algorithm_that_does_not_exist_is_wrong_usage(word: str, what: str, edge: Edge, place: Place) -> None:
    folder = place()
    ended = edge(*COMMAND, "--algorithm", word)
    assert (ended.code, ended.out) == (2, "")
    assert what in ended.err.replace("\n", " ")
    assert not (folder / "calib_cache").exists()


def test_force_counts_again(edge: Edge, place: Place) -> None:
    place()
    edge(*COMMAND)
    ended = edge(*COMMAND, "--force")
    assert (ended.code, "8 images, in " in ended.out) == (0, True)
    assert "calibrate: 8/8 images" in ended.err


def test_json_is_alone_on_stdout(edge: Edge, place: Place) -> None:
    folder = place()
    first, second = (json.loads(edge(*COMMAND, "--json").out) for _ in range(2))
    assert (first["work"], second["work"]) == ("collected", "unchanged")
    assert first["sha256"] == second["sha256"]
    assert first["table"] == str(folder / "calib_cache" / "model" / "entropy2.table")
    assert (first["pictures"], first["tensors"]) == (8, 11)


def test_the_cache_folder_is_the_options_then_the_environments(
    edge: Edge, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = place()
    monkeypatch.setenv("EDGE_CACHE_DIR", str(folder / "from-environment"))
    assert edge(*COMMAND).code == 0
    assert edge(*COMMAND, "--cache-dir", "from-option").code == 0
    for name in ("from-environment", "from-option"):
        assert len(tables_below(folder / name)) == 2
    assert not (folder / "calib_cache").exists()


def test_without_profiles_here_the_cache_is_the_repositorys(repository: Path) -> None:
    assert paths.cache_folder(None) == repository / "calib_cache"


def test_a_list_with_blank_lines_comments_and_windows_line_ends(edge: Edge, place: Place) -> None:
    folder = place()
    (folder / "list.txt").write_bytes(
        b"\xef\xbb\xbf# three of them\r\n\r\npictures/000.jpg\r\n  \r\npictures\\001.jpg\r\n#pictures/003.jpg\r\n"
        b"pictures/002.jpg 7"
    )
    ended = edge("calibrate", "--profile", "tiny", "--images", "list.txt", "--json")
    assert (ended.code, json.loads(ended.out)["pictures"]) == (0, 3)


def test_a_list_with_missing_files_names_the_first(edge: Edge, place: Place) -> None:
    folder = place()
    (folder / "list.txt").write_text("pictures/000.jpg\n# comment\nnowhere/a.jpg\nnowhere/b.jpg\n")
    ended = edge("calibrate", "--profile", "tiny", "--images", "list.txt")
    assert ended.code == 6
    assert "list.txt:3: 2 of 3 files are missing; the first is nowhere/a.jpg" in ended.err
    assert "try: paths are relative to the folder of the list" in ended.err


def test_the_profile_may_name_the_pictures(edge: Edge, place: Place) -> None:
    place(calibration={"images": "../pictures"})
    ended = edge("calibrate", "--profile", "tiny", "--json")
    assert (ended.code, json.loads(ended.out)["pictures"]) == (0, 8)


def test_no_pictures_named_at_all(edge: Edge, place: Place) -> None:
    place()
    ended = edge("calibrate", "--profile", "tiny")
    assert (ended.code, ended.out) == (2, "")
    assert "give --images DIR, or set calibration.images in the profile" in ended.err


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("empty", "no images"),
        ("nowhere", "this file or folder does not exist"),
        ("profiles/labels.txt.gz", "this file or folder does not exist"),
    ],
)
def test_nothing_to_calibrate_with(source: str, words: str, edge: Edge, place: Place) -> None:
    folder = place()
    (folder / "empty").mkdir()
    ended = edge("calibrate", "--profile", "tiny", "--images", source)
    assert (ended.code, ended.out) == (6, "")
    assert words in ended.err
    assert source in ended.err


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "empty"), (b"hello\n", "not a JPEG"), (None, "truncated")],
    ids=["zero bytes", "not an image", "truncated"],
)
def test_a_picture_that_cannot_be_decoded_is_an_error(
    content: bytes | None, words: str, edge: Edge, place: Place
) -> None:
    folder = place()
    bad = folder / "pictures" / "005.jpg"
    bad.write_bytes(bad.read_bytes()[:300] if content is None else content)
    ended = edge(*COMMAND)
    assert (ended.code, ended.out) == (6, "")
    # A relative source gives relative names: they are what the user typed.
    assert "error: pictures/005.jpg: " in ended.err
    assert words in ended.err
    assert tables_below(folder / "calib_cache") == []


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--algorithm", "entrpy2"), 2, "did you mean 'entropy2'?"),
        (("--batch", "0"), 2, "--batch"),
        (("--limit", "0"), 2, "--limit"),
        (("--threads", "0"), 2, "--threads"),
        (("--imagse", "x"), 2, "--imagse"),
        (("--profile", "tinny"), 3, "did you mean 'tiny'?"),
        (("--profile", "profiles/none.yaml"), 3, "there is no such profile"),
    ],
)
def test_a_wrong_option(options: tuple[str, ...], code: int, words: str, edge: Edge, place: Place) -> None:
    place()
    ended = edge(*COMMAND, *options)
    assert (ended.code, ended.out) == (code, "")
    assert words in ended.err


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ({"inputs": 2}, "a classifier must have one input, but this model has 2 (input, other)"),
        ({"batch": 1}, "takes batches of exactly 1, but the profile requests 1 to 8"),
        ({"layout": "chw"}, "the input input 3×32×32 has no batch axis"),
    ],
    ids=["two inputs", "a fixed batch of 1", "no batch axis"],
)
def test_a_model_that_does_not_fit(
    variant: dict[str, Any], words: str, edge: Edge, place: Place, tiny_model: Callable[..., Path]
) -> None:
    folder = place()
    tiny_model("profiles/model.onnx", **variant)
    ended = edge(*COMMAND)
    assert (ended.code, ended.out) == (5, "")
    assert f"error: {folder}/profiles/model.onnx: {words}" in ended.err
    assert "  try: " in ended.err
    assert not (folder / "calib_cache").exists()


def test_a_file_that_is_no_model(edge: Edge, place: Place) -> None:
    folder = place()
    (folder / "profiles" / "model.onnx").write_text("no model\n")
    ended = edge(*COMMAND)
    assert (ended.code, ended.out) == (5, "")
    assert "model.onnx: not a valid ONNX model" in ended.err


def test_a_model_that_is_not_there(edge: Edge, place: Place) -> None:
    folder = place()
    (folder / "profiles" / "model.onnx").unlink()
    ended = edge(*COMMAND)
    assert (ended.code, ended.out) == (5, "")
    assert "model.onnx: the model file does not exist" in ended.err
    assert "try: check `model:` in the profile" in ended.err


def test_a_network_that_overflows_names_the_picture(edge: Edge, place: Place, tiny_model: Callable[..., Path]) -> None:
    place()
    tiny_model("profiles/model.onnx", nan=True)
    ended = edge(*COMMAND)
    assert ended.code == 5
    assert "contains NaN or infinity for pictures/" in ended.err


@pytest.mark.parametrize("damage", ["truncated", "changed", "manifest"])
def test_a_damaged_table_is_said_and_made_again(damage: str, edge: Edge, place: Place) -> None:
    folder = place()
    edge(*COMMAND)
    table = folder / "calib_cache" / "model" / "entropy2.table"
    whole = table.read_bytes()
    if damage == "truncated":
        table.write_bytes(whole[:-30])
    elif damage == "changed":
        table.write_bytes(whole.replace(b"c1: ", b"c1:0", 1))
    else:
        table.with_suffix(".json").write_text("{}")
    ended = edge(*COMMAND)
    assert ended.code == 0
    assert "warning: the existing table cannot be used and is made again" in ended.err
    assert table.read_bytes() == whole


def test_a_read_only_cache(edge_process: Edge, place: Place, read_only: str) -> None:
    folder = place()
    (folder / "calib_cache").mkdir(mode=0o555)
    ended = edge_process(*COMMAND, limit=read_only)
    assert (ended.code, ended.out) == (9, "")
    assert "cannot write: Permission denied" in ended.err
    assert "try: no permission: choose another folder or change its owner" in ended.err
    assert list((folder / "calib_cache").iterdir()) == []


def test_a_cache_folder_below_a_file(edge: Edge, place: Place) -> None:
    place()
    ended = edge(*COMMAND, "--cache-dir", "profiles/tiny.yaml/cache")
    assert (ended.code, ended.out) == (9, "")
    assert "cannot write: Not a directory" in ended.err


def test_a_full_disk_leaves_the_table_that_was_there(
    edge: Edge, edge_process: Edge, place: Place, full_disk: str
) -> None:
    folder = place()
    edge(*COMMAND)
    before = {path: path.read_bytes() for path in tables_below(folder / "calib_cache")}
    ended = edge_process(*COMMAND, "--limit", "6", limit=full_disk)
    assert (ended.code, ended.out) == (9, "")
    assert "cannot write: File too large" in ended.err
    assert {path: path.read_bytes() for path in tables_below(folder / "calib_cache")} == before
    # Nothing half-written stays behind either.
    assert [path.name for path in (folder / "calib_cache" / "model").iterdir() if path.suffix == ".tmp"] == []
    assert edge(*COMMAND).out.endswith("unchanged, nothing to do (8 images)\n")


def test_the_cache_travels(edge: Edge, place: Place) -> None:
    """Copied elsewhere, with pictures under other names: still nothing to do."""
    folder = place()
    edge(*COMMAND)
    shutil.copytree(folder / "calib_cache", folder / "copy")
    shutil.copytree(folder / "pictures", folder / "others")
    (folder / "others" / "000.jpg").rename(folder / "others" / "z.jpg")
    ended = edge("calibrate", "--profile", "tiny", "--images", "others", "--cache-dir", "copy")
    assert (ended.code, "unchanged" in ended.out) == (0, True)
