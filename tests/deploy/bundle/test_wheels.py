"""Wheels for a bare device: the right ones, and all of them. tests/deploy/test_bootstrap.py installs from them."""

from __future__ import annotations

import os
import platform
import sys
import zipfile
from pathlib import Path

import pytest

from edge.deploy.bundle import wheels
from edge.errors import ArtifactError, MissingDependencyError, UsageError

pytest.importorskip("packaging")

ORIN = wheels.WheelTarget("3.10", "aarch64", 35)


def test_each_jetpack_has_its_python() -> None:
    assert wheels.targets("agx-orin", ["6.2"]) == [ORIN]
    assert wheels.targets("thor", ["7.1", "7.2.2"]) == [wheels.WheelTarget("3.12", "aarch64", 39)]
    assert [item.python for item in wheels.targets("orin-nx", ["7.2", "6.1"])] == ["3.10", "3.12"]
    (here,) = wheels.targets("host", [])
    assert (here.python, here.machine) == (f"3.{sys.version_info.minor}", platform.machine())


@pytest.mark.parametrize(("jetpack", "word"), [([], "must be given"), (["5.1"], "JetPack 5"), (["six"], "JetPack six")])
def test_a_jetpack_must_be_named(jetpack: list[str], word: str) -> None:
    with pytest.raises(UsageError, match=word.replace("?", r"\?")):
        wheels.targets("agx-orin", jetpack)


def test_tags_of_older_glibcs_fit_too() -> None:
    tags = ORIN.platforms()
    assert "manylinux_2_17_aarch64" in tags
    assert "manylinux_2_35_aarch64" in tags
    assert "manylinux_2_36_aarch64" not in tags
    assert "manylinux2014_aarch64" in tags


def wheel(folder: Path, name: str, version: str, tag: str = "py3-none-any", needs: tuple[str, ...] = ()) -> Path:
    path = folder / f"{name}-{version}-{tag}.whl"
    lines = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {n}" for n in needs)]
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join(lines))
    return path


def test_complete(tmp_path: Path) -> None:
    wheel(tmp_path, "a", "1.0", needs=("B_b>=2; python_version < '3.11'", "nowhere; python_version >= '3.11'"))
    wheel(tmp_path, "b_b", "2.1", "cp310-cp310-manylinux_2_28_aarch64", needs=("windows; sys_platform == 'win32'",))
    wheel(tmp_path, "jetson_edge", "0.1", needs=("a; extra == 'host'", "pytest; extra == 'dev'"))
    wheels.check_complete(tmp_path, ORIN)
    with pytest.raises(ArtifactError, match="a needs nowhere"):
        wheels.check_complete(tmp_path, wheels.WheelTarget("3.12", "aarch64", 39))


@pytest.mark.parametrize(
    ("tag", "version"),
    [
        ("cp311-cp311-manylinux_2_28_aarch64", "2.1"),
        ("cp310-cp310-manylinux_2_28_x86_64", "2.1"),
        ("cp310-cp310-manylinux_2_38_aarch64", "2.1"),
        ("cp310-cp310-manylinux_2_28_aarch64", "1.9"),
    ],
    ids=["other Python", "other processor", "newer glibc", "too old"],
)
def test_incomplete(tmp_path: Path, tag: str, version: str) -> None:
    wheel(tmp_path, "a", "1.0", needs=("b>=2",))
    wheel(tmp_path, "b", version, tag)
    with pytest.raises(ArtifactError, match=r"a needs b>=2"):
        wheels.check_complete(tmp_path, ORIN)


def test_names_that_are_too_long_for_a_bundle(tmp_path: Path) -> None:
    tags = "manylinux2014_aarch64.manylinux_2_17_aarch64.manylinux_2_28_aarch64"
    wheel(tmp_path, "charset_normalizer_and_more", "3.5.3", f"cp310-cp310-{tags}")
    wheel(tmp_path, "short", "1.0", f"cp310-cp310-{tags}")
    wheels._shorten(tmp_path, ORIN)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "charset_normalizer_and_more-3.5.3-cp310-cp310-manylinux2014_aarch64.whl", f"short-1.0-cp310-cp310-{tags}.whl",
    ]  # fmt: skip
    wheels.check_complete(tmp_path, ORIN)


def test_something_that_is_no_wheel(tmp_path: Path) -> None:
    (tmp_path / "a-1.0-py3-none-any.whl").write_bytes(b"<html>")
    with pytest.raises(ArtifactError, match="not a wheel"):
        wheels.check_complete(tmp_path, ORIN)


def test_no_index_can_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pip")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(MissingDependencyError, match="pip download failed"):
        wheels.gather(tmp_path, wheels.targets("host", []))
