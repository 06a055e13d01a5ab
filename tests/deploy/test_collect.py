"""What comes home from devices, and what does not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.artifacts import store
from edge.deploy.collect import Collected, failed, fetch, folder_name
from edge.deploy.transport.address import DeviceAddress
from edge.errors import DeviceError
from tests.support import loopback
from tests.support.devices import root_of, tree

KEY = {"tensorrt": "10.3.0", "module": "p3701-0005", "power_mode": "MAXN"}


def timing(folder: Path, content: bytes = b"ptrt one", *, entries: int = 1, **key: Any) -> Path:
    path = folder / "trt10.3-p3701-0005-MAXN.json"
    store.save(
        path, kind="timing cache", files={path.with_suffix(".timing").name: content}, key={**KEY, **key},
        info={"entries": entries},
    )  # fmt: skip
    return path


@pytest.fixture
def pull(tmp_path: Path, folder: DeviceAddress) -> Callable[..., Collected]:
    def run(place: DeviceAddress = folder) -> Collected:
        return fetch(place, cache=tmp_path / "calib_cache", output=tmp_path / "devices")

    return run


def words(haul: Collected) -> dict[str, str]:
    return {piece.name: piece.what for piece in haul.pieces}


def test_everything_that_is_worth_having(tmp_path: Path, folder: DeviceAddress, pull: Callable[..., Collected]) -> None:
    root = root_of(folder)
    timing(root / "timing")
    store.save(root / "engines/abc/x.json", kind="engine", files={"x.plan": b"engine"}, key={}, info={})
    for name in ("records/a b.json", "selftest/s.json", "canary/d.json"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text('{"n": 1}')
    haul = pull()
    assert set(words(haul).values()) == {"new"}
    assert failed(haul) is None
    assert store.load(tmp_path / "calib_cache/timing/trt10.3-p3701-0005-MAXN.json", kind="timing cache").key == KEY
    home = tree(tmp_path / "devices" / "device")
    assert set(home) == {"engines/abc/x.json", "records/a b.json", "selftest/s.json", "canary/d.json"}
    before = tree(tmp_path)
    assert set(words(pull()).values()) == {"unchanged"}
    assert tree(tmp_path) == before


def test_a_device_with_nothing(folder: DeviceAddress, pull: Callable[..., Collected]) -> None:
    with pytest.raises(DeviceError, match="there is no such folder"):
        pull()
    root_of(folder).mkdir()
    assert pull().pieces == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a/b", "a_b"),
        ("./a", "a"),
        ("ssh://h:1/x", "ssh://h/1/x"),
        ("h:", "h"),
        ("é", "è"),
        (".", "_"),
        ("a" * 300, "a" * 301),
    ],
)
def test_two_devices_never_share_a_folder(one: str, other: str) -> None:
    names = folder_name(one), folder_name(other)
    assert len(set(names)) == 2
    assert all(Path(name).name == name and not name.startswith(".") and len(name) < 200 for name in names)
    assert folder_name("orin-1") == "orin-1"


@pytest.mark.parametrize(("theirs", "kept"), [(5, b"ptrt theirs"), (2, b"ptrt ours")])
def test_two_timing_caches_of_one_key(
    tmp_path: Path, folder: DeviceAddress, pull: Callable[..., Collected], theirs: int, kept: bytes
) -> None:
    """The larger one is used, the other is not lost, and both are said."""
    timing(root_of(folder) / "timing", b"ptrt theirs", entries=theirs)
    ours = timing(tmp_path / "calib_cache/timing", b"ptrt ours", entries=3)
    piece = pull().pieces[0]
    assert piece.what == "conflict"
    assert f"({max(theirs, 3)} against {min(theirs, 3)} entries)" in str(piece.why)
    store.load(ours, kind="timing cache")
    assert ours.with_suffix(".timing").read_bytes() == kept
    other = tmp_path / "devices/device/timing" / ours.name
    store.load(other, kind="timing cache")
    assert {other.with_suffix(".timing").read_bytes(), kept} == {b"ptrt theirs", b"ptrt ours"}


def test_a_timing_cache_of_another_key_never_takes_the_place_of_ours(
    tmp_path: Path, folder: DeviceAddress, pull: Callable[..., Collected]
) -> None:
    timing(root_of(folder) / "timing", b"ptrt theirs", entries=9, power_mode="15W")
    ours = timing(tmp_path / "calib_cache/timing", b"ptrt ours")
    piece = pull().pieces[0]
    assert (piece.what, "power_mode: MAXN -> 15W" in str(piece.why)) == ("conflict", True)
    assert ours.with_suffix(".timing").read_bytes() == b"ptrt ours"


def test_ours_that_is_damaged_is_replaced(
    tmp_path: Path, folder: DeviceAddress, pull: Callable[..., Collected]
) -> None:
    timing(root_of(folder) / "timing", b"ptrt theirs")
    ours = timing(tmp_path / "calib_cache/timing", b"ptrt ours")
    ours.with_suffix(".timing").write_bytes(b"rotten")
    assert words(pull()) == {f"timing/{ours.name}": "new"}
    store.load(ours, kind="timing cache")


def broken_content(root: Path) -> None:
    timing(root / "timing").with_suffix(".timing").write_bytes(b"rotten")


def changed_manifest(root: Path) -> None:
    path = timing(root / "timing")
    path.write_text(path.read_text().replace("MAXN", "30W"))


def foreign_kind(root: Path) -> None:
    store.save(root / "timing/x.json", kind="engine", files={"x.timing": b"ptrt"}, key={}, info={})


def lost_file(root: Path) -> None:
    timing(root / "timing").with_suffix(".timing").unlink()


def leaving_name(root: Path) -> None:
    path = timing(root / "timing")
    content = json.loads(path.read_text())
    content["files"] = {"../../" + name: entry for name, entry in content["files"].items()}
    del content["self_sha256"]
    content["self_sha256"] = store.canonical_digest(content)
    path.write_text(json.dumps(content))


def not_json(root: Path) -> None:
    (root / "records").mkdir(parents=True)
    (root / "records/r.json").write_text("[" * 100_000)


def no_engine_manifest(root: Path) -> None:
    (root / "engines/a").mkdir(parents=True)
    (root / "engines/a/e.json").write_text('{"kind": "engine"}')


@pytest.mark.parametrize(
    "spoil",
    [broken_content, changed_manifest, foreign_kind, lost_file, leaving_name, not_json, no_engine_manifest],
)
def test_what_is_not_whole_stays_there(
    tmp_path: Path, folder: DeviceAddress, pull: Callable[..., Collected], spoil: Callable[[Path], None]
) -> None:
    spoil(root_of(folder))
    haul = pull()
    assert set(words(haul).values()) == {"refused"}
    assert failed(haul) is not None
    assert not [name for name in tree(tmp_path) if not name.startswith("device/") and not name.endswith(".lock")]


def test_measurements_are_never_written_over(
    tmp_path: Path, folder: DeviceAddress, pull: Callable[..., Collected]
) -> None:
    record = root_of(folder) / "records/r.json"
    record.parent.mkdir(parents=True)
    record.write_text('{"n": 1}')
    pull()
    record.write_text('{"n": 2}')
    assert words(pull()) == {"records/r.json": "conflict"}
    assert words(pull()) == {"records/r.json": "unchanged"}
    home = tree(tmp_path / "devices/device/records")
    assert sorted(home.values()) == [b'{"n": 1}', b'{"n": 2}']


def test_links_and_hidden_files_are_left_alone(
    tmp_path: Path, folder: DeviceAddress, pull: Callable[..., Collected]
) -> None:
    records = root_of(folder) / "records"
    records.mkdir(parents=True)
    (tmp_path / "secret.json").write_text("{}")
    (records / "link.json").symlink_to(tmp_path / "secret.json")
    (records / ".hidden.json").write_text("{}")
    (records / "a\nb.json").write_text("{}")
    (records / "a\nb").mkdir()
    (records / "a\nb" / "c.json").write_text("{}")
    assert pull().pieces == []


def test_a_name_that_is_not_utf8_is_refused_and_the_others_come(
    folder: DeviceAddress, pull: Callable[..., Collected]
) -> None:
    records = root_of(folder) / "records"
    records.mkdir(parents=True)
    for name in (b"a.json", b"caf\xe9.json", b"z.json"):
        (records / os.fsdecode(name)).write_text("{}")
    assert sorted(words(pull()).values()) == ["new", "new", "refused"]


def test_over_ssh(
    tmp_path: Path,
    serve: Callable[..., loopback.Server],
    remote: Callable[..., DeviceAddress],
    pull: Callable[..., Collected],
) -> None:
    place = remote(serve(), path="it's a device")
    timing(root_of(place) / "timing", bytes(range(256)) * 1000)
    (root_of(place) / "records").mkdir()
    (root_of(place) / "records/it's $(x).json").write_text("{}")
    assert set(words(pull(place)).values()) == {"new"}
    store.load(tmp_path / "calib_cache/timing/trt10.3-p3701-0005-MAXN.json", kind="timing cache")
