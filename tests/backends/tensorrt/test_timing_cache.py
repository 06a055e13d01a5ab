"""Timing caches between builds: kept, used, merged, and never mistaken for another's."""

from __future__ import annotations

import os
import struct
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.artifacts import store
from edge.backends.interface import BuildRequest, TimingUse
from edge.backends.tensorrt import timing_cache
from edge.backends.tensorrt.backend import TensorRT
from edge.backends.tensorrt.environment import Caps
from edge.backends.tensorrt.timing_cache import TimingStore
from edge.errors import ArtifactError, DeviceError, StoreError
from edge.events import Event, Note
from edge.system.device import Device
from tests.support.tensorrt.installed import world
from tests.support.tensorrt.timing_double import content

Bind = Callable[..., Caps]
Ask = Callable[..., BuildRequest]
ORIN = Device(
    is_jetson=True, family="agx-orin", module="p3701-0005", sm="8.7", machine="aarch64", power_mode="MAXN",
    clocks_locked=True,
)  # fmt: skip
KEY = {"tensorrt": "10.3.0", "module": "p3701-0005", "sm": "8.7", "power_mode": "MAXN", "cuda": "12.6"}
A, B = content("10.3.0", ["a"]), content("10.3.0", ["b"])


def real_header(entries: int, *, format_: int = 236, payload: bytes = b"\0" * 40) -> bytes:
    """A timing cache laid out as TensorRT 8.6.1 does, with made-up content."""

    def sequence(data: bytes) -> bytes:
        return struct.pack("<IQHIQ", 0x18018, len(data), 0x8001, 0x1800C, len(data)) + data

    rest = sequence(uuid.UUID(int=7).bytes) + sequence(b"0123456789abcdef") + struct.pack("<IQ", 0x18008, entries)
    rest += payload
    return b"ptrt\0\0\0\0" + struct.pack("<QQ", format_, len(rest)) + rest


# the header


def test_a_header_is_read() -> None:
    found = timing_cache.header(real_header(987))
    assert found == timing_cache.TimingCacheHeader(
        format=236, whole=True, gpu_uuid="GPU-00000000-0000-0000-0000-000000000007", commit="0123456789abcdef",
        entries=987,
    )  # fmt: skip


def test_a_header_that_is_cut_off_says_what_it_can() -> None:
    for length in (*range(100), 120):
        found = timing_cache.header(real_header(987)[:length])
        assert found.whole in {None, False}, length
        assert found.entries in {None, 987}, length


def test_another_layout_says_nothing() -> None:
    assert timing_cache.header(b"ptrt" + b"\x2b\0\0\0" + bytes(range(200))) == timing_cache.TimingCacheHeader()
    assert timing_cache.header(A) == timing_cache.TimingCacheHeader()


def test_the_header_of_a_real_timing_cache(repository: Path) -> None:
    real = repository.parent / "shared/reference/trt_artifacts/trt8.6.1-rtx3080.timing.cache"
    if not real.is_file():
        pytest.skip("the timing cache of TensorRT 8.6.1 is not on this machine (../shared/reference)")
    found = timing_cache.header(real.read_bytes())
    assert (found.format, found.whole, found.entries, found.commit) == (236, True, 987, "558ddbb60946c7d0")
    assert found.gpu_uuid == "GPU-40bbbf34-1187-4916-f5ef-df49ff518015"


# the store


class Heard:
    """Listens, and keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Note) and event.level == "warning":
            self.warnings.append(event.text)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def kept(tmp_path: Path, heard: Heard) -> TimingStore:
    return TimingStore(tmp_path / "timing", KEY, listen=heard)


def refuse(_contents: list[bytes]) -> bytes:
    pytest.fail("nothing is to be merged")


def write(kept: TimingStore, data: bytes, *, before: bytes | None = None, merge: Any = refuse) -> store.Manifest:
    return kept.write(data, before=before, merge=merge, info={"entries": 1, "builds": {}})


def test_what_is_written_is_read(kept: TimingStore) -> None:
    assert kept.read() is None
    assert not kept.path.parent.exists(), "looking writes nothing"
    manifest = write(kept, A)
    assert (kept.read(), manifest.key) == (A, KEY)
    assert kept.path.name.startswith("trt10.3.0-sm8.7-p3701_0005-MAXN-")
    write(kept, B, before=A)
    assert kept.read() == B


def test_another_key_is_another_file(tmp_path: Path) -> None:
    paths = {TimingStore(tmp_path, {**KEY, name: "other"}).path for name in KEY}
    assert len(paths | {TimingStore(tmp_path, KEY).path}) == len(KEY) + 1


def test_what_another_build_has_written_meanwhile_is_merged(kept: TimingStore) -> None:
    write(kept, A)
    asked: list[list[bytes]] = []

    def merge(contents: list[bytes]) -> bytes:
        asked.append(contents)
        return content("10.3.0", ["a", "b"])

    write(kept, B, before=None, merge=merge)
    assert asked == [[A, B]]
    assert kept.read() == content("10.3.0", ["a", "b"])


def test_what_cannot_be_merged_is_set_aside(kept: TimingStore, heard: Heard) -> None:
    write(kept, A)

    def merge(_contents: list[bytes]) -> bytes:
        raise ArtifactError("TensorRT refuses the timing cache number 1 of 2")

    write(kept, B, merge=merge)
    assert kept.read() == B
    assert (kept.path.parent / f"{kept.path.name}.aside-1").read_bytes() == A
    assert "refuses the timing cache number 1 of 2" in heard.warnings[0]


def test_two_builds_at_once_lose_nothing(tmp_path: Path) -> None:
    """Each writes its own entry twenty times over, merging what it finds."""

    def merge(contents: list[bytes]) -> bytes:
        names = sorted({name for item in contents for name in msgspec.json.decode(item[4:])["known"]})
        return content("10.3.0", names)

    def work(name: str) -> None:
        for number in range(20):
            mine = TimingStore(tmp_path, KEY)
            mine.write(content("10.3.0", [f"{name}{number}"]), before=None, merge=merge, info={})

    threads = [threading.Thread(target=work, args=(name,)) for name in "xy"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = TimingStore(tmp_path, KEY).read()
    assert found is not None
    assert len(msgspec.json.decode(found[4:])["known"]) == 40


def cut_off(kept: TimingStore) -> None:
    kept.path.write_bytes(A[:10])


def bit_flipped(kept: TimingStore) -> None:
    kept.path.write_bytes(A[:9] + bytes([A[9] ^ 1]) + A[10:])


def no_manifest(kept: TimingStore) -> None:
    kept.manifest.unlink()


def no_cache(kept: TimingStore) -> None:
    kept.path.unlink()


def torn_manifest(kept: TimingStore) -> None:
    kept.manifest.write_text('{"format": 1')


def of_another_device(kept: TimingStore) -> None:
    other = TimingStore(kept.path.parent, {**KEY, "module": "p3767-0000"})
    write(other, A)
    for mine, theirs in ((kept.path, other.path), (kept.manifest, other.manifest)):
        mine.write_bytes(theirs.read_bytes().replace(other.path.name.encode(), kept.path.name.encode()))


def renamed_from_another_device(kept: TimingStore) -> None:
    manifest = store.load(kept.manifest, kind=timing_cache.KIND)
    store.save(
        kept.manifest,
        kind=timing_cache.KIND,
        files={kept.path.name: A},
        key={**manifest.key, "module": "p3767-0000"},
        info={},
    )


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut_off, "10 bytes, but its manifest says"),
        (bit_flipped, "does not match the sha256"),
        (no_manifest, "it has no manifest"),
        (no_cache, "is missing"),
        (torn_manifest, "not a manifest"),
        (of_another_device, "changed after it was written"),
        (renamed_from_another_device, "it has another key (module: p3767-0000 -> p3701-0005)"),
    ],
)
def test_a_damaged_or_foreign_cache_is_set_aside(
    damage: Callable[[TimingStore], None], words: str, kept: TimingStore, heard: Heard
) -> None:
    write(kept, A)
    damage(kept)
    there = {path.name for path in kept.path.parent.iterdir() if path.suffix in {".json", ".timing"}}
    mine = there & {kept.path.name, kept.manifest.name}
    assert kept.read() is None
    assert words in heard.warnings[0]
    assert "measures every kernel again" in heard.warnings[0]
    assert {path.name for path in kept.path.parent.glob("*.aside-1")} == {f"{name}.aside-1" for name in mine}
    write(kept, B)
    assert kept.read() == B
    # And once more: nothing that was set aside is overwritten.
    damage(kept)
    kept.read()
    assert list(kept.path.parent.glob("*.aside-2"))


def test_what_tensorrt_gives_is_kept_however_it_begins(kept: TimingStore) -> None:
    """Nobody has seen the first bytes of a cache of TensorRT 10 or 11."""
    write(kept, b"another magic")
    assert kept.read() == b"another magic"
    (entry,) = timing_cache.listing(kept.path.parent)
    assert (entry.state, entry.gpu_uuid) == ("ok", None)


def test_a_folder_that_can_only_be_read(kept: TimingStore, heard: Heard) -> None:
    write(kept, A)
    lock = kept.path.with_name(f"{kept.path.name}.lock")
    lock.unlink(missing_ok=True)
    lock.mkdir()
    assert kept.read() == A
    assert "can at best be read" in heard.warnings[0]
    bit_flipped(kept)
    assert kept.read() is None


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "timing").write_text("a file")
    with pytest.raises(StoreError, match="cannot write"):
        write(TimingStore(tmp_path / "timing", KEY), A)


def test_everything_is_listed_and_swept(kept: TimingStore, tmp_path: Path) -> None:
    folder = kept.path.parent
    assert timing_cache.listing(folder) == []
    real = TimingStore(folder, {**KEY, "tensorrt": "8.6.1"})
    write(kept, A)
    real.write(real_header(987), before=None, merge=refuse, info={"entries": None})
    (folder / "stray.timing").write_bytes(A)
    (folder / "lost.json").write_text("{}")
    damaged = TimingStore(folder, {**KEY, "cuda": "13.0"})
    write(damaged, A)
    cut_off(damaged)
    (folder / f"{kept.path.name}.aside-3").write_bytes(A)
    (folder / "README").write_text("not ours")
    found = {entry.path.name: entry for entry in timing_cache.listing(folder)}
    assert {name: entry.state for name, entry in found.items()} == {
        kept.path.name: "ok", real.path.name: "ok", "stray.timing": "no manifest", "lost.json": "corrupt",
        damaged.path.name: "corrupt", f"{kept.path.name}.aside-3": "set aside",
    }  # fmt: skip
    assert (found[kept.path.name].entries, found[real.path.name].entries) == (1, 987)
    assert found[real.path.name].gpu_uuid == "GPU-00000000-0000-0000-0000-000000000007"
    going = {path.name for path in timing_cache.removable(folder, older_than_days=None)}
    assert going == {
        "stray.timing", "lost.json", damaged.path.name, damaged.manifest.name, f"{kept.path.name}.aside-3"
    }  # fmt: skip
    old = kept.path.stat().st_mtime - 10 * 86400
    os.utime(kept.path, (old, old))
    older = {path.name for path in timing_cache.removable(folder, older_than_days=9)}
    assert older - going == {kept.path.name, kept.manifest.name}


# with a build


def backend(**options: Any) -> TensorRT:
    return TensorRT(machine=ORIN, isolate=False, **options)


def with_cache(request: BuildRequest, folder: Path, **use: Any) -> BuildRequest:
    return msgspec.structs.replace(request, timing=TimingUse(folder=folder, **use))


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "10.16.1.11", "11.4.0.106"])
def test_the_second_build_measures_nothing(version: str, binding: Bind, asked: Ask, tmp_path: Path) -> None:
    binding(version)
    cold = backend().build(with_cache(asked("int8"), tmp_path)).info
    warm = backend().build(with_cache(asked("int8", input={"batch": {"max": 4}}), tmp_path)).info
    assert (cold["timing_cache"], warm["timing_cache"]) == ("started", "used")
    assert warm["timing"]["hits"] == cold["timing"]["misses"] > 0
    assert warm["timing"]["misses"] == 0
    assert set(cold["build_times"]) == {"without_cache_s"}
    assert set(warm["build_times"]) == {"without_cache_s", "with_cache_s"}
    assert warm["build_times"]["without_cache_s"] == cold["build_times"]["without_cache_s"]
    (entry,) = timing_cache.listing(timing_cache.folder_of(tmp_path))
    # The toolkit is that of the machine that runs the tests.
    assert {**entry.key, "cuda": None} == {
        "tensorrt": version, "package": None, "module": "p3701-0005", "gpu": None, "sm": "8.7", "multiprocessors": None,
        "power_mode": "MAXN", "clocks_locked": True, "cuda": None,
    }  # fmt: skip
    assert entry.entries == warm["timing"]["entries_after"]


@pytest.mark.parametrize(
    ("change", "where"),
    [({"power_mode": "15W"}, "machine"), ({"clocks_locked": False}, "machine"), ({"module": "p3701-0004"}, "machine")],
)
def test_another_power_mode_or_module_starts_its_own(
    change: dict[str, Any], where: str, binding: Bind, asked: Ask, tmp_path: Path
) -> None:
    binding("10.3.0")
    backend().build(with_cache(asked("fp16"), tmp_path))
    other = TensorRT(machine=msgspec.structs.replace(ORIN, **change), isolate=False)
    assert other.build(with_cache(asked("fp16"), tmp_path)).info["timing_cache"] == "started"
    assert len(timing_cache.listing(timing_cache.folder_of(tmp_path))) == 2


def test_a_cache_that_tensorrt_refuses_is_set_aside(binding: Bind, asked: Ask, tmp_path: Path, heard: Heard) -> None:
    caps = binding("10.3.0")
    backend().build(with_cache(asked("fp16"), tmp_path))
    # The driver or the GPU behind the same name has changed.
    world(caps).owner = "another"
    info = backend().build(with_cache(asked("fp16"), tmp_path), listen=heard).info
    assert info["timing_cache"] == "refused"
    assert any(
        "set aside: TensorRT refuses it (Timing cache header mismatch: Incoming ITimingCache: UUID = GPU-1" in text
        for text in heard.warnings
    )
    assert backend().build(with_cache(asked("fp16"), tmp_path)).info["timing_cache"] == "used"


def test_a_corrupt_cache_means_a_cold_build(binding: Bind, asked: Ask, tmp_path: Path, heard: Heard) -> None:
    binding("10.3.0")
    backend().build(with_cache(asked("fp16"), tmp_path))
    (path,) = timing_cache.folder_of(tmp_path).glob("*.timing")
    path.write_bytes(b"ptrt?")
    info = backend().build(with_cache(asked("fp16"), tmp_path), listen=heard).info
    assert info["timing_cache"] == "started"
    assert "set aside" in heard.warnings[0]


@pytest.mark.parametrize("version", ["rtx", "10.3.0"])
def test_no_timing_cache_leaves_the_kept_one_alone(version: str, binding: Bind, asked: Ask, tmp_path: Path) -> None:
    binding(version)
    request = with_cache(asked("fp32"), tmp_path, ask=version == "rtx")
    info = backend().build(request).info
    assert info["timing_cache"] is None
    assert info["timing"]["use"] == ("no effect" if version == "rtx" else "off")
    assert not timing_cache.folder_of(tmp_path).exists()


def test_a_failed_build_leaves_the_timing_cache_alone(binding: Bind, asked: Ask, tmp_path: Path) -> None:
    caps = binding("10.3.0")
    backend().build(with_cache(asked("fp32"), tmp_path))
    (path,) = timing_cache.folder_of(tmp_path).glob("*.timing")
    before = path.read_bytes()
    world(caps).fails = ["out of memory"]
    with pytest.raises(DeviceError, match="ran out of GPU memory"):
        backend().build(with_cache(asked("fp16"), tmp_path))
    assert path.read_bytes() == before


def test_error_on_miss_needs_a_cache(binding: Bind, asked: Ask, tmp_path: Path) -> None:
    binding("10.3.0")
    with pytest.raises(DeviceError, match=r"there is no timing cache of TensorRT 10\.3\.0") as caught:
        backend().build(with_cache(asked("fp32"), tmp_path, only=True))
    assert caught.value.hint == "build once without --error-on-miss"
    backend().build(with_cache(asked("fp32"), tmp_path))
    assert backend().build(with_cache(asked("fp32"), tmp_path, only=True)).info["timing"]["misses"] == 0
