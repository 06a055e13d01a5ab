"""``--profile current``: the device runs what was shipped to it, and never writes to it."""

from __future__ import annotations

import grp
import hashlib
import json
import os
import pwd
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge.cli import paths
from edge.config import profiles
from tests.support import calibrated

Edge = Callable[..., Any]


@pytest.fixture
def shipped(
    edge: Edge, place: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The state folder of a device that the tiny profile was shipped to; ``pictures/`` lies where we stand."""
    home = tmp_path_factory.mktemp("home of ada")
    monkeypatch.setenv("HOME", str(home))
    place(n=6)
    state = home / ".local" / "share" / "edge"
    tiny = profiles.read_profile(Path("profiles/tiny.yaml"))
    calibrated.calibrated(tiny, Path("pictures"), cache=Path("calib_cache"))
    for arguments in (
        ("bundle", "--profile", "tiny", "--golden", "pictures", "-o", "a.edge"),
        ("ship", state, "--bundle", "a.edge", "--no-canary"),
    ):
        ended = edge(*arguments)
        assert ended.code == 0, ended.err
    for left in ("profiles", "calib_cache"):
        Path(left).rename(f"not {left}")
    return state


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_build_and_run_what_was_shipped(edge: Edge, shipped: Path) -> None:
    before = digests(shipped / "bundles")
    early = edge("bench", "--profile", "current", "--images", "pictures")
    assert (early.code, "try: edge build --profile current" in early.err) == (7, True)
    built = edge("build", "--profile", "current")
    assert built.code == 0, built.err
    digest = (shipped / "current").readlink().name
    assert str(shipped / "engines" / digest) in built.out.replace("\n", "")
    ran = edge("run", "--profile", "current", "--images", "pictures", "--json", "--record", "r.json")
    assert (ran.code, len(json.loads(Path("r.json").read_bytes())["results"])) == (0, 6)
    assert edge("engine", "show", "--profile", "current").code == 0
    assert edge("eval", "--profile", "current", "--images", "pictures", "--labels", "pictures/labels.csv").code == 0
    assert edge("build", "--profile", "current").out.count("unchanged") == 1
    assert digests(shipped / "bundles") == before
    # By its file it is the same.
    again = edge("build", "--profile", shipped / "current" / "profile.yaml")
    assert again.out.count("unchanged") == 1


def test_a_run_builds_what_is_missing_first_and_says_so(edge: Edge, shipped: Path) -> None:
    """A service must not end for good because a bundle was switched without a trial, or TensorRT is a newer one."""
    first = edge("run", "--profile", "current", "--images", "pictures")
    assert (first.code, "building the engine of the bundle in use first: no int8 engine" in first.err) == (0, True)
    again = edge("run", "--profile", "current", "--images", "pictures")
    assert (again.code, "building" in again.err) == (0, False)
    digest = (shipped / "current").readlink().name
    manifest = next((shipped / "engines" / digest).rglob("*-int8.json"))
    manifest.write_bytes(b"{}")
    assert (
        "building the engine of the bundle in use first"
        in edge("run", "--profile", "current", "--images", "pictures").err
    )


@pytest.mark.parametrize("name", ["labels/labels.txt", "model/model.onnx", "profile.yaml", "golden/expected.json"])
def test_what_was_changed_on_the_device_is_not_run(edge: Edge, shipped: Path, name: str) -> None:
    assert edge("run", "--profile", "current", "--images", "pictures").code == 0
    path = shipped / "current" / name
    path.chmod(0o644)
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    for command in ("run", "build", "bench"):
        ended = edge(command, "--profile", "current", *(["--images", "pictures"] if command != "build" else []))
        assert (ended.code, "does not match the sha256 in the manifest" in ended.err) == (7, True)


def test_a_bundle_that_nobody_allowed_signed_is_not_run(edge: Edge, shipped: Path) -> None:
    (shipped / "allowed_signers").write_text("")
    ended = edge("run", "--profile", "current", "--images", "pictures")
    assert (ended.code, "the bundle is not signed" in ended.err) == (7, True)


def test_a_folder_that_is_no_whole_bundle_any_more_is_not_run(edge: Edge, shipped: Path) -> None:
    """Without its manifest a folder is no bundle, and on a device nothing else is run from there."""
    folder = shipped / (shipped / "current").readlink()
    (folder / "bundle.json").unlink()
    ended = edge("run", "--profile", "current", "--images", "pictures")
    assert (ended.code, "bundle.json is missing" in ended.err) == (7, True)
    (folder / "other.yaml").write_bytes((folder / "profile.yaml").read_bytes())
    ended = edge("run", "--profile", folder / "other.yaml", "--images", "pictures")
    assert (ended.code, "profile.yaml as the profile of a shipped bundle" in ended.err) == (7, True)


def test_neither_is_one_that_a_link_leads_to(edge: Edge, shipped: Path, tmp_path: Path) -> None:
    """Nor one that was unpacked beside it, where the device asks for signatures."""
    folder = shipped / (shipped / "current").readlink()
    shutil.copytree(folder, tmp_path / "elsewhere")
    shutil.rmtree(folder)
    folder.symlink_to(tmp_path / "elsewhere")
    (shipped / "allowed_signers").write_text("")
    for profile in ("current", tmp_path / "elsewhere" / "profile.yaml"):
        ended = edge("build", "--profile", profile)
        assert (ended.code, "not signed" in ended.err) == (7, True), ended.err


def test_without_any_folder_of_profiles_it_is_the_one(
    edge: Edge, shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "_PACKAGE", Path("nowhere/edge"))
    listed = json.loads(edge("profile", "list", "--json").out)
    assert [(row["name"], row["default"], row["family"]) for row in listed] == [("current", True, "host")]
    assert edge("build").code == 0
    found = json.loads(edge("doctor", "--json").out)["findings"]
    assert [row["name"] for row in found if row["group"] == "profiles"] == ["current"]


def test_with_profiles_here_it_is_not_the_default(edge: Edge, shipped: Path) -> None:
    Path("profiles").mkdir()
    ended = edge("profile", "show")
    assert "current" not in ended.err


def test_the_list_marks_what_a_missing_name_takes(edge: Edge, shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a folder of profiles that is empty: it is a place for profiles, so nothing shipped is taken unasked."""
    monkeypatch.setattr(paths, "_PACKAGE", Path("nowhere/edge"))
    Path("profiles").mkdir()
    listed = json.loads(edge("profile", "list", "--json").out)
    assert [(row["name"], row["default"]) for row in listed] == [("current", False)]
    assert edge("profile", "show").code == 3


def test_the_way_out_is_the_same_by_its_file(edge: Edge, shipped: Path) -> None:
    ended = edge("bench", "--profile", shipped / "current" / "profile.yaml", "--images", "pictures")
    assert (ended.code, "try: edge build --profile current" in ended.err) == (7, True)


def test_a_profile_of_that_name_gives_way_to_what_was_shipped(edge: Edge, shipped: Path) -> None:
    """One word has one meaning on a device; the file is still reached by its path."""
    Path("not profiles").rename("profiles")
    Path("profiles/tiny.yaml").rename("profiles/current.yaml")
    assert str(shipped) in edge("profile", "show", "current").err.replace("\n", "")
    assert "profiles/current.yaml" in edge("profile", "show", "profiles/current.yaml").err


def test_it_is_never_calibrated_into(edge: Edge, shipped: Path) -> None:
    before = digests(shipped)
    ended = edge("calibrate", "--profile", "current", "--images", "pictures", "--algorithm", "minmax")
    assert (ended.code, "read-only" in ended.err) == (2, True)
    swept = edge("sweep", "--profile", "current", "--images", "pictures", "--eval", "pictures", "--labels",
                 "pictures/labels.csv")  # fmt: skip
    assert (swept.code, "read-only" in swept.err) == (2, True)
    assert digests(shipped) == before
    elsewhere = edge("calibrate", "--profile", "current", "--images", "pictures", "--cache-dir", "mine")
    assert elsewhere.code == 0
    assert digests(shipped) == before


@pytest.mark.parametrize("damage", ["nothing", "dangling", "a folder", "strange"])
def test_where_nothing_was_shipped(
    damage: str, edge: Edge, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    state = home / ".local" / "share" / "edge"
    (state / "bundles").mkdir(parents=True)
    if damage == "a folder":
        (state / "current").mkdir()
    elif damage == "dangling":
        (state / "current").symlink_to("bundles/" + "0" * 64)
    elif damage == "strange":
        (state / "bundles" / "mine").mkdir()
        (state / "current").symlink_to("bundles/mine")
    ended = edge("run", "--profile", "current", "--images", ".")
    assert (ended.code, "no bundle is in use on this device" in ended.err) == (3, True)
    assert "edge ship USER@HOST" in ended.err


def test_no_profile_anywhere_is_said_with_a_way_out(
    edge: Edge, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setattr(paths, "_PACKAGE", Path("nowhere/edge"))
    ended = edge("run", "--images", ".")
    assert (ended.code, "run edge inside a checkout or in a folder with profiles/" in ended.err) == (3, True)
    listed = edge("profile", "list")
    assert (listed.code, listed.out, "no profiles" in listed.err) == (0, "", True)


def test_a_service_follows_what_is_shipped(edge: Edge, shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = edge("service", "print", "--user", "--profile", "current", "--", "--camera", "0")
    command = next(line for line in printed.out.splitlines() if line.startswith("ExecStart="))
    assert "--profile current --camera 0" in command
    # Unit files escape blanks.
    assert any(line.startswith("WorkingDirectory=") and "edge" in line for line in printed.out.splitlines())
    by_file = edge(
        "service", "print", "--user", "--profile", shipped / "current" / "profile.yaml", "--", "--camera", "0"
    )
    assert "--profile current" in by_file.out


def test_a_service_for_somebody_looks_into_that_home(
    edge: Edge, shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under sudo, HOME is root's: what was shipped is in the home of who called it."""
    monkeypatch.setenv("SUDO_USER", "nobody-of-that-name")
    ended = edge("service", "print", "--profile", "current", "--", "--camera", "0")
    assert (ended.code, "there is no user nobody-of-that-name" in ended.err) == (2, True)
    home = pwd.struct_passwd(("ada", "x", 1000, 1000, "", str(shipped.parents[2]), "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwnam", lambda _name: home)
    monkeypatch.setenv("SUDO_USER", "ada")
    monkeypatch.setenv("HOME", "/nonexistent")
    printed = edge("service", "print", "--profile", "current", "--", "--camera", "0")
    assert printed.code == 0, printed.err
    assert "--profile current --camera 0" in printed.out
    assert "User=ada" in printed.out.splitlines()


def test_a_unit_printed_by_a_user_is_for_that_user_and_the_groups_that_are_here(
    edge: Edge, shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(pwd, "getpwuid", lambda _number: SimpleNamespace(pw_name="ada"))
    monkeypatch.setattr(grp, "getgrnam", lambda _name: None)
    printed = edge("service", "print", "--profile", "current", "--", "--camera", "0").out.splitlines()
    assert "User=ada" in printed
    assert "SupplementaryGroups=video render" in printed
