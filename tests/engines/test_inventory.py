from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.artifacts import store
from edge.backends.onnxruntime import OnnxRuntime
from edge.calibration import cache_keys
from edge.config.profiles import Profile
from edge.engines import inventory
from edge.engines.inventory import InventoryEntry, InventoryScan
from edge.errors import MissingDependencyError

Make = Callable[..., Path]
Looks = Callable[..., InventoryScan]


class Other(OnnxRuntime):
    """ONNX Runtime with another identity."""

    def __init__(self, **changes: store.Scalar) -> None:
        self._changes = changes

    def identity(self) -> Mapping[str, store.Scalar]:
        return {**super().identity(), **self._changes}


class Missing(OnnxRuntime):
    def identity(self) -> Mapping[str, store.Scalar]:
        raise MissingDependencyError("onnxruntime is not installed")


def scan(tmp_path: Path, look: InventoryScan) -> dict[str, InventoryEntry]:
    return {entry.manifest.stem: entry for entry in inventory.scan(tmp_path / "engines", look)}


def test_no_folder_no_engines(tmp_path: Path, look: Looks) -> None:
    assert inventory.scan(tmp_path / "nowhere", look()) == []


def test_current_engines(make: Make, look: Looks, tmp_path: Path) -> None:
    make("fp32")
    path = make("int8")
    found = scan(tmp_path, look())
    assert {name: (entry.state, entry.why) for name, entry in found.items()} == {
        "model-fp32": ("current", []), "model-int8": ("current", []),
    }  # fmt: skip
    entry = found["model-int8"]
    assert (entry.profile, entry.precision) == ("tiny", "int8")
    assert (entry.runtime or "").startswith("onnxruntime 1.")
    assert [file.name for file in entry.files] == ["model-int8.json", "model-int8.onnx", "model-int8.layers.json"]
    assert entry.size_bytes == sum(
        file.stat().st_size for file in path.parent.glob("model-int8.*") if file.suffix != ".lock"
    )


def test_another_version_makes_it_stale(make: Make, look: Looks, tmp_path: Path) -> None:
    make("fp32")
    entry = scan(tmp_path, look(backend=lambda _profile: Other(onnxruntime="9.9")))["model-fp32"]
    assert entry.state == "stale"
    assert entry.why[0].endswith("-> 9.9")


def test_another_machine_is_elsewhere(make: Make, look: Looks, tmp_path: Path) -> None:
    make("fp32")
    entry = scan(tmp_path, look(backend=lambda _profile: Other(onnxruntime="9.9", machine="riscv64")))["model-fp32"]
    assert entry.state == "elsewhere"
    assert f"machine: {platform.machine()} -> riscv64" in entry.why


@pytest.mark.parametrize("setting", [{"power_mode": "15W"}, {"clocks_locked": True}, {"multiprocessors": 4}])
def test_another_setting_of_the_device_is_elsewhere(
    setting: dict[str, Any], make: Make, look: Looks, tmp_path: Path
) -> None:
    """The engine of the other power mode is kept: it is current again after the switch back."""
    make("fp32")
    assert scan(tmp_path, look(backend=lambda _profile: Other(**setting)))["model-fp32"].state == "elsewhere"


def test_a_backend_that_is_not_installed_here(make: Make, look: Looks, tmp_path: Path) -> None:
    make("fp32")
    entry = scan(tmp_path, look(backend=lambda _profile: Missing()))["model-fp32"]
    assert (entry.state, entry.why) == ("elsewhere", ["onnxruntime is not installed"])


def test_a_changed_profile_makes_it_stale(make: Make, look: Looks, tmp_path: Path, tiny_profile: Any) -> None:
    make("fp32")
    tiny_profile(tmp_path / "profiles", input={"batch": {"max": 2}})
    entry = scan(tmp_path, look())["model-fp32"]
    assert entry.state == "stale"
    assert "batch: 1-1-8 -> 1-1-2" in entry.why


def test_a_profile_that_is_gone_or_names_another_model(
    make: Make, look: Looks, tmp_path: Path, tiny_profile: Any, tiny_model: Any
) -> None:
    make("fp32")
    tiny_model("profiles/newer.onnx")
    tiny_profile(tmp_path / "profiles", model="newer.onnx")
    assert scan(tmp_path, look())["model-fp32"].state == "orphan"
    (tmp_path / "profiles/tiny.yaml").unlink()
    entry = scan(tmp_path, look())["model-fp32"]
    assert (entry.state, entry.why) == ("orphan", ["there is no profile 'tiny'"])


def test_a_table_that_cannot_be_found_makes_it_unknown_not_stale(make: Make, look: Looks, tmp_path: Path) -> None:
    make("int8")
    entry = scan(tmp_path, look(cache=tmp_path / "another cache"))["model-int8"]
    assert entry.state == "unknown"
    assert "no calibration table" in entry.why[0]
    assert inventory.useless([entry], elsewhere=True) == []


def test_a_new_table_makes_it_stale(make: Make, look: Looks, tmp_path: Path, tiny: Profile) -> None:
    make("int8")
    path = cache_keys.table_path(tiny, tmp_path / "cache")
    manifest = store.load(cache_keys.manifest_path(path), kind=cache_keys.TABLE)
    changed = path.read_bytes().replace(b"TRT-", b"TRT-1", 1)
    store.save(
        cache_keys.manifest_path(path), kind=cache_keys.TABLE, files={path.name: changed}, key=manifest.key,
        info=manifest.info,
    )  # fmt: skip
    entry = scan(tmp_path, look())["model-int8"]
    assert entry.state == "stale"
    assert entry.why[0].startswith("table: ")


@pytest.mark.parametrize("name", ["model-int8.onnx", "model-int8.layers.json", "model-int8.json"])
def test_damaged_ones(name: str, make: Make, look: Looks, tmp_path: Path) -> None:
    path = make("int8").parent / name
    path.write_bytes(path.read_bytes()[:-9])
    entry = scan(tmp_path, look())["model-int8"]
    assert entry.state == "damaged"
    assert len(entry.files) == 3
    if name != "model-int8.json":
        assert scan(tmp_path, look(verify=False))["model-int8"].state == "current"


def test_files_of_others_in_the_folder_are_no_engines(make: Make, look: Looks, tmp_path: Path) -> None:
    path = make("fp32")
    (path.parent / "my notes.json").write_text('{"mine": true}')
    (path.parent / "broken.json").write_text('{"mine": ')
    (path.parent / "broken.onnx").write_text("and my model")
    (path.parent / "notes-int8.json").write_text("[]")
    table = tmp_path / "cache/model/entropy2.json"
    (path.parent / "table-int8.json").write_bytes(table.read_bytes())
    (path.parent / "notes.txt").write_text("mine")
    (tmp_path / "engines/loose.json").write_text("{}")
    (path.parent / "folder.json").mkdir()
    assert list(scan(tmp_path, look())) == ["model-fp32"]


def test_an_engine_of_a_later_edge_is_not_damaged(make: Make, look: Looks, tmp_path: Path) -> None:
    path = make("fp32")
    content = json.loads(path.read_bytes())
    path.write_text(json.dumps({**content, "format": 2}))
    entry = scan(tmp_path, look())["model-fp32"]
    assert (entry.state, entry.why) == ("unknown", ["manifest format 2; this edge reads format 1"])


def test_a_link_to_nowhere_is_no_engine(make: Make, look: Looks, tmp_path: Path) -> None:
    path = make("fp32")
    path.unlink()
    path.symlink_to(path)
    assert scan(tmp_path, look()) == {}


def test_what_goes(make: Make, look: Looks, tmp_path: Path) -> None:
    make("fp32")
    entry = scan(tmp_path, look())["model-fp32"]
    states = ("current", "stale", "elsewhere", "orphan", "damaged", "unknown")
    entries = [msgspec.structs.replace(entry, state=state) for state in states]
    assert [item.state for item in inventory.useless(entries)] == ["stale", "damaged"]
    assert [item.state for item in inventory.useless(entries, elsewhere=True)] == [
        "stale", "elsewhere", "orphan", "damaged",
    ]  # fmt: skip


def test_removing(make: Make, look: Looks, tmp_path: Path) -> None:
    path = make("fp32")
    make("int8")
    old = look(backend=lambda _profile: Other(onnxruntime="9.9"))
    entry = scan(tmp_path, old)["model-fp32"]
    assert inventory.remove(entry, old)
    assert sorted(item.name for item in path.parent.iterdir() if item.suffix != ".lock") == [
        "model-int8.json", "model-int8.layers.json", "model-int8.onnx",
    ]  # fmt: skip
    # It is gone: nothing to remove any more.
    assert not inventory.remove(entry, old)


def test_one_that_was_built_anew_meanwhile_stays(make: Make, look: Looks, tmp_path: Path) -> None:
    path = make("fp32")
    entry = msgspec.structs.replace(scan(tmp_path, look())["model-fp32"], state="stale")
    assert not inventory.remove(entry, look())
    assert path.is_file()
    # In the same state, but not the one that was looked at.
    old = look(backend=lambda _profile: Other(onnxruntime="9.9"))
    entry = msgspec.structs.replace(scan(tmp_path, old)["model-fp32"], created_utc="2020-01-01T00:00:00+00:00")
    assert not inventory.remove(entry, old)
    assert path.is_file()


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ({"backend": "tensorrt", "tensorrt": "10.3.0", "rtx": False}, "TensorRT 10.3.0"),
        ({"backend": "tensorrt", "tensorrt": "1.7", "rtx": True}, "TensorRT for RTX 1.7"),
        ({"backend": "onnxruntime", "onnxruntime": "1.32.0"}, "onnxruntime 1.32.0"),
        ({"backend": "fake"}, "fake"),
        ({}, "?"),
    ],
)
def test_runtime_in_words(key: dict[str, store.Scalar], words: str) -> None:
    assert inventory.runtime(key) == words
