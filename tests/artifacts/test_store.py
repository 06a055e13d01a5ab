"""The store under a hostile disk: every way in which a file can be wrong, full, locked, cut off or somebody else's."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.artifacts import store
from edge.artifacts.store import FileEntry, Manifest, atomic_write, lock, write_bytes
from edge.errors import ArtifactError, StoreError

KIND = "calibration table"
CONTENT = {"a.table": b"TRT-100300-EntropyCalibration2\nx: 3c010204\n", "a.extra": bytes(range(256)) * 20}


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """Manifest of an artifact of two files."""
    path = tmp_path / "cache" / "a.json"
    store.save(path, kind=KIND, files=CONTENT, key={"model": "ab" * 32, "n": 3}, info={"pictures": 400})
    return path


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder that everybody may write; while the test runs we are not root, so that permissions hold."""
    folder = Path(tempfile.mkdtemp(prefix="edge-test-"))
    folder.chmod(0o777)
    root = os.geteuid() == 0
    if root:
        try:
            os.chown(folder, 65534, -1)
            os.seteuid(65534)
        except OSError as exc:
            pytest.skip(f"root, and cannot become nobody: {exc}")
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o777)
        shutil.rmtree(folder)


def refused(manifest: Path, *words: str) -> ArtifactError:
    with pytest.raises(ArtifactError) as caught:
        store.load(manifest, kind=KIND)
    text = str(caught.value)
    for word in words:
        assert word in text
    return caught.value


def left_overs(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.endswith(".tmp"))


def python(code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *(str(item) for item in arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


# what was saved comes back


def test_an_artifact_comes_back(artifact: Path) -> None:
    manifest = store.load(artifact, kind=KIND)
    assert manifest.key == {"model": "ab" * 32, "n": 3}
    assert manifest.info == {"pictures": 400}
    assert list(manifest.files) == ["a.table", "a.extra"]
    for name, data in CONTENT.items():
        assert (artifact.parent / name).read_bytes() == data
        assert manifest.files[name] == FileEntry(hashlib.sha256(data).hexdigest(), len(data))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", manifest.created_utc)
    assert left_overs(artifact.parent) == []


def test_a_file_can_be_written_by_a_function(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    store.save(path, kind=KIND, files={"b": lambda file: [file.write(b"12"), file.write(b"3")]}, key={}, info={})
    assert store.load(path, kind=KIND).files["b"].size == 3
    assert (tmp_path / "b").read_bytes() == b"123"


scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    key=st.dictionaries(texts, scalars | texts),
    info=st.dictionaries(
        texts, st.recursive(scalars | texts, lambda inner: st.lists(inner) | st.dictionaries(texts, inner))
    ),
)
def test_any_key_and_info_come_back(key: dict[str, Any], info: dict[str, Any]) -> None:
    """The seal is computed before writing and after reading: no value may change on the way."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.json"
        store.save(path, kind=KIND, files={"f": b"x"}, key=key, info=info)
        manifest = store.load(path, kind=KIND)
    assert json.dumps(manifest.key) == json.dumps(key)
    assert json.dumps(manifest.info) == json.dumps(info)


def test_saving_again_replaces_everything(artifact: Path) -> None:
    store.save(artifact, kind=KIND, files={"a.table": b"new"}, key={"n": 4}, info={})
    assert store.load(artifact, kind=KIND).key == {"n": 4}
    assert (artifact.parent / "a.table").read_bytes() == b"new"


def test_threads_that_write_leave_the_umask_alone() -> None:
    """A fleet's devices are pulled from at once."""
    before, interval = os.umask(0o027), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            seen = set(pool.map(lambda _: store._umask(), range(4000)))
        assert (seen, os.umask(0o027)) == ({0o027}, 0o027)
    finally:
        sys.setswitchinterval(interval)
        os.umask(before)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o007], ids=oct)
def test_files_get_the_permissions_that_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    """mkstemp makes files that only their owner may read; an artifact is meant to be shared."""
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "x", b"x")
        assert (tmp_path / "x").stat().st_mode & 0o777 == 0o666 & ~umask
        assert os.umask(umask) == umask
    finally:
        os.umask(before)


def test_folders_are_made(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a" / "b" / "c", b"x")
    assert (tmp_path / "a" / "b" / "c").read_bytes() == b"x"


# a damaged file


@pytest.mark.parametrize("name", CONTENT)
@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda data: data[:-1], "bytes, but its manifest says"),
        (lambda data: b"", "bytes, but its manifest says"),
        (lambda data: data + b"\n", "bytes, but its manifest says"),
        (lambda data: bytes([data[0] ^ 1]) + data[1:], "does not match the sha256"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 0x80]), "does not match the sha256"),
        (lambda data: data[: len(data) // 2] + b"?" + data[len(data) // 2 + 1 :], "does not match the sha256"),
        (lambda data: b"\0" * len(data), "does not match the sha256"),
        (lambda data: data.replace(b"\n", b"\r\n"), "its manifest"),
    ],
    ids=["cut", "empty", "longer", "first-bit", "last-bit", "middle-byte", "zeros", "crlf"],
)
def test_a_damaged_file_is_refused(artifact: Path, name: str, damage: Callable[[bytes], bytes], word: str) -> None:
    path = artifact.parent / name
    path.write_bytes(damage(path.read_bytes()))
    assert refused(artifact, word, name).hint == "make the artifact again with --force"


def test_every_single_flipped_bit_is_noticed(artifact: Path) -> None:
    path = artifact.parent / "a.table"
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        refused(artifact)
    path.write_bytes(data)
    store.load(artifact, kind=KIND)


@pytest.mark.parametrize(
    "act",
    [
        lambda path: path.unlink(),
        lambda path: path.rename(path.with_suffix(".old")),
        lambda path: path.rename(path.with_name(path.name.upper())),
        lambda path: [path.unlink(), path.symlink_to("nowhere")],
    ],
    ids=["removed", "renamed", "other-case", "dangling-link"],
)
def test_a_file_that_is_gone_is_refused(artifact: Path, act: Callable[[Path], Any]) -> None:
    act(artifact.parent / "a.table")
    refused(artifact, "the manifest lists this file, but it is missing", "a.table")


def test_a_folder_in_the_place_of_a_file_is_refused(artifact: Path) -> None:
    path = artifact.parent / "a.table"
    path.unlink()
    path.mkdir()
    refused(artifact, "a.table")


def test_two_files_that_changed_places_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    store.save(path, kind=KIND, files={"a": b"one", "b": b"two"}, key={}, info={})
    (tmp_path / "a").rename(tmp_path / "c")
    (tmp_path / "b").rename(tmp_path / "a")
    (tmp_path / "c").rename(tmp_path / "b")
    refused(path, "does not match the sha256")


def test_files_are_left_alone_where_that_is_asked_for(artifact: Path) -> None:
    (artifact.parent / "a.table").unlink()
    assert store.load(artifact, kind=KIND, check_files=False).info == {"pictures": 400}


# a damaged or foreign manifest


def leaves(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from leaves(item, (*at, name))
    else:
        yield at


def changed(content: dict[str, Any], at: tuple[Any, ...], value: Any) -> bytes:
    copied = json.loads(json.dumps(content))
    inner = copied
    for name in at[:-1]:
        inner = inner[name]
    inner[at[-1]] = value
    return json.dumps(copied).encode()


def test_every_edit_of_every_value_is_noticed(artifact: Path) -> None:
    content = json.loads(artifact.read_bytes())
    places = list(leaves(content))
    assert len(places) >= 11
    for at in places:
        inner = content
        for name in at:
            inner = inner[name]
        for value in (inner + 1 if isinstance(inner, int) else inner[:-1] + "#", None, "", 0):
            artifact.write_bytes(changed(content, at, value))
            refused(artifact)
    artifact.write_text(json.dumps(content))
    store.load(artifact, kind=KIND)  # other blanks and line ends are no change


@pytest.mark.parametrize(
    "at", [(), ("files",), ("files", "a.table"), ("key",), ("info",)], ids=lambda at: ".".join(at) or "top"
)
def test_something_added_is_noticed(artifact: Path, at: tuple[str, ...]) -> None:
    content = json.loads(artifact.read_bytes())
    artifact.write_bytes(changed(content, (*at, "added"), "x"))
    refused(artifact)


@pytest.mark.parametrize(
    "field", ["format", "kind", "edge_version", "created_utc", "files", "key", "info", "self_sha256"]
)
def test_something_taken_away_is_noticed(artifact: Path, field: str) -> None:
    content = json.loads(artifact.read_bytes())
    del content[field]
    artifact.write_text(json.dumps(content))
    refused(artifact)


def test_a_manifest_cut_off_anywhere_is_refused(artifact: Path) -> None:
    data = artifact.read_bytes().rstrip()
    for size in {*range(0, len(data), 5), len(data) - 1}:
        artifact.write_bytes(data[:size])
        refused(artifact, "not a manifest")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 100,
        b"\xff\xfe{\0}\0",
        b"[]",
        b"null",
        b"42",
        b'"text"',
        b"{}",
        b"\xef\xbb\xbf{}",
        b'{"info":' + b'{"a":' * 100_000,
    ],
    ids=["empty", "zeros", "utf-16", "list", "null", "number", "text", "no-fields", "bom", "deep"],
)
def test_what_is_no_manifest_is_refused(artifact: Path, data: bytes) -> None:
    artifact.write_bytes(data)
    refused(artifact, "not a manifest", str(artifact))


def test_a_manifest_with_something_behind_it_is_refused(artifact: Path) -> None:
    artifact.write_bytes(artifact.read_bytes() * 2)
    refused(artifact, "not a manifest")


def test_no_manifest(tmp_path: Path) -> None:
    assert refused(tmp_path / "a.json", "the manifest is missing").hint == "make the artifact again with --force"


def test_a_folder_in_the_place_of_the_manifest(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot read"):
        store.load(tmp_path, kind=KIND)


def test_another_kind_is_refused(artifact: Path) -> None:
    with pytest.raises(ArtifactError, match="this is the manifest of calibration table, not of engine"):
        store.load(artifact, kind="engine")


def forged(path: Path, **fields: Any) -> None:
    """Write a manifest that is consistent in itself: its own digest fits."""
    manifest = Manifest(
        format=store.FORMAT, kind=KIND, edge_version="0", created_utc="", files={}, key={}, info={}
    )  # fmt: skip
    write_bytes(path, msgspec.json.encode(msgspec.structs.replace(manifest, **fields).sealed()))


@pytest.mark.parametrize("number", [0, 2, 99, -1])
def test_another_format_is_refused_with_what_this_edge_reads(tmp_path: Path, number: int) -> None:
    forged(tmp_path / "a.json", format=number)
    refused(tmp_path / "a.json", f"manifest format {number}; this edge reads format 1")


NAMES = ["../a", "..", ".", "", "a/b", "/etc/passwd", "a\\b", "..\\a", "a\0b", "a/../b"]


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "a").write_bytes(b"x")
    forged(inside / "m.json", files={name: FileEntry(hashlib.sha256(b"x").hexdigest(), 1)})
    refused(inside / "m.json", "leaves the artifact's folder")


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_such_a_name_is_not_written_either(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "inside"
    with pytest.raises(ArtifactError, match="leaves the artifact's folder"):
        store.save(inside / "m.json", kind=KIND, files={name: b"x"}, key={}, info={})
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# keys


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": 2}, ["a: 1 -> 2"]),
        ({}, {"a": "x"}, ["a: (none) -> x"]),
        ({"a": "x"}, {}, ["a: x -> (none)"]),
        ({"b": 1, "a": 1}, {"a": 2, "c": 0}, ["a: 1 -> 2", "c: (none) -> 0", "b: 1 -> (none)"]),
        ({"m": "ab" * 32}, {"m": "cd" * 32}, ["m: abababababab… -> cdcdcdcdcdcd…"]),
        ({"m": "zz" * 32}, {"m": "AB" * 32}, [f"m: {'zz' * 32} -> {'AB' * 32}"]),
        ({"a": None}, {}, []),
    ],
    ids=["same", "value", "new", "gone", "order", "digest", "no-digest", "none-is-absent"],
)
def test_differences_say_field_old_and_new(old: store.Key, new: store.Key, said: list[str]) -> None:
    assert [str(item) for item in store.differences(old, new)] == said


def test_the_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert store.canonical_digest({"a": 1, "b": [1, 2]}) == store.canonical_digest({"b": [1, 2], "a": 1})
    assert store.canonical_digest({"b": [2, 1]}) != store.canonical_digest({"b": [1, 2]})
    assert store.canonical_digest({"a": "é"}) == hashlib.sha256('{"a":"é"}'.encode()).hexdigest()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_digest_of_what_json_cannot_hold_is_a_mistake(value: float) -> None:
    with pytest.raises(ValueError):
        store.canonical_digest({"a": value})


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    (tmp_path / "x").write_bytes(data)
    assert store.sha256_file(tmp_path / "x") == store.sha256_bytes(data) == hashlib.sha256(data).hexdigest()


def test_the_digest_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot read: No such file") as caught:
        store.sha256_file(tmp_path / "x")
    assert caught.value.where == str(tmp_path / "x")


# writing that does not come to its end


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit, MemoryError, ValueError, GeneratorExit])
@pytest.mark.parametrize("existed", [True, False], ids=["over-old", "new"])
def test_an_interruption_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, exception: type[BaseException], existed: bool
) -> None:
    path = tmp_path / "x"
    if existed:
        path.write_bytes(b"old")
    with pytest.raises(exception):
        _write_half(path, exception)
    assert [item.name for item in tmp_path.iterdir()] == (["x"] if existed else [])
    assert not existed or path.read_bytes() == b"old"


def _write_half(path: Path, exception: type[BaseException]) -> None:
    with atomic_write(path) as file:
        file.write(b"half of the n")
        file.flush()
        raise exception


def test_an_interrupted_save_keeps_the_artifact_or_refuses_it(artifact: Path) -> None:
    """The first file is new, the second is not written, the manifest is the old one: that fits nothing."""
    before = artifact.read_bytes()

    def stopped(_file: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.save(artifact, kind=KIND, files={"a.table": b"new", "a.extra": stopped}, key={}, info={})
    assert artifact.read_bytes() == before
    refused(artifact, "a.table")
    assert left_overs(artifact.parent) == []


def test_an_interrupted_first_file_keeps_the_artifact(artifact: Path) -> None:
    def stopped(file: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.save(artifact, kind=KIND, files={"a.table": stopped}, key={}, info={})
    store.load(artifact, kind=KIND)


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new, and longer")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new, and longer"


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "x" / "y").mkdir(parents=True)
    with pytest.raises(StoreError, match="cannot write") as caught:
        write_bytes(tmp_path / "x", b"new")
    assert caught.value.where == str(tmp_path / "x")
    assert left_overs(tmp_path) == []


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot write"):
        write_bytes(tmp_path / "x" / "y", b"new")


LIMITED = """
import resource, sys
sys.dont_write_bytecode = True
from pathlib import Path
from edge.artifacts import store
from edge.errors import StoreError
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
path = Path(sys.argv[1])
try:
    if sys.argv[2] == "save":
        store.save(path, kind="calibration table", files={"a.table": b"x" * 100_000}, key={}, info={})
    else:
        store.write_bytes(path, b"x" * 100_000)
except StoreError as exc:
    print(exc)
else:
    sys.exit("no error")
"""


@pytest.mark.parametrize("how", ["save", "write"])
def test_a_disk_that_ends_in_the_middle_of_a_file(artifact: Path, how: str) -> None:
    """The limit on the size of files stands for a full disk: write() stops half-way and then fails."""
    before = {path.name: path.read_bytes() for path in artifact.parent.iterdir()}
    out, err = python(LIMITED, artifact, how).communicate(timeout=60)
    assert "cannot write: File too large" in out, err
    assert {path.name: path.read_bytes() for path in artifact.parent.iterdir()} == before
    store.load(artifact, kind=KIND)


FULL = """
import sys
from pathlib import Path
from edge.artifacts import store
from edge.errors import StoreError
path = Path(sys.argv[1]) / "a.json"
store.save(path, kind="k", files={"a": b"old"}, key={}, info={})
try:
    store.save(path, kind="k", files={"a": b"x" * 1_000_000}, key={}, info={})
except StoreError as exc:
    print(exc)
store.load(path, kind="k")
print(sorted(item.name for item in path.parent.iterdir()), (path.parent / "a").read_bytes())
"""


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """A file system of 64 KiB in a name space of its own; needs the right to mount one."""
    mount = f"mount -t tmpfs -o size=64k none {tmp_path} && "
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "sh", "-c", mount + "true"], check=False,
                                                     capture_output=True).returncode:  # fmt: skip
        pytest.skip("no right to mount a small file system here")
    command = ["unshare", "-rm", "sh", "-c", mount + '"$0" -c "$1" ' + str(tmp_path), sys.executable, FULL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cannot write: No space left on device\n  try: free some disk space" in done.stdout
    assert done.stdout.splitlines()[-1] == "['a', 'a.json'] b'old'"


def test_a_folder_that_may_not_be_written(as_nobody: Path) -> None:
    write_bytes(as_nobody / "x", b"old")
    as_nobody.chmod(0o555)
    with pytest.raises(StoreError, match="cannot write: Permission denied") as caught:
        write_bytes(as_nobody / "x", b"new")
    assert caught.value.hint == "no permission: choose another folder or change its owner"
    assert (as_nobody / "x").read_bytes() == b"old"
    with pytest.raises(StoreError, match="Permission denied"):
        write_bytes(as_nobody / "made" / "x", b"new")
    with pytest.raises(StoreError, match="Permission denied"), lock(as_nobody / "x", timeout_s=0.1):
        pass


def test_a_file_that_may_not_be_read(as_nobody: Path) -> None:
    path = as_nobody / "m.json"
    store.save(path, kind=KIND, files={"x": b"x"}, key={}, info={})
    (as_nobody / "x").chmod(0)
    with pytest.raises(StoreError, match="cannot read: Permission denied"):
        store.load(path, kind=KIND)
    path.chmod(0)
    with pytest.raises(StoreError, match="cannot read: Permission denied"):
        store.load(path, kind=KIND)


# two at once


COUNTING = """
import sys
from pathlib import Path
from edge.artifacts import store
path = Path(sys.argv[1])
for _ in range(int(sys.argv[2])):
    with store.lock(path):
        store.write_bytes(path, str(int(path.read_bytes()) + 1).encode())
"""


def test_two_processes_never_hold_the_lock_together(tmp_path: Path) -> None:
    """Each reads a number and writes the next one: without the lock, some additions would be lost."""
    path = tmp_path / "number"
    path.write_bytes(b"0")
    writers = [python(COUNTING, path, 40) for _ in range(2)]
    for writer in writers:
        _, err = writer.communicate(timeout=120)
        assert writer.returncode == 0, err
    assert path.read_bytes() == b"80"


def test_two_threads_never_hold_the_lock_together(tmp_path: Path) -> None:
    inside, most = [0], [0]

    def work() -> None:
        for _ in range(20):
            with lock(tmp_path / "x"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.0005)
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


HOLDING = """
import sys, time
from pathlib import Path
from edge.artifacts import store
with store.lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def held(path: Path) -> Iterator[subprocess.Popen[str]]:
    holder = python(HOLDING, path)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield holder
    finally:
        holder.kill()
        holder.communicate()


def test_a_lock_that_is_held_too_long_is_an_error_that_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.table"
    with held(path):
        start = time.monotonic()
        with pytest.raises(StoreError) as caught, lock(path, timeout_s=0.2):
            pass
        assert 0.15 < time.monotonic() - start < 30
    assert str(caught.value) == (
        f"{path}: another process has been writing this for 0.2 s\n  try: wait for that process or end it"
    )


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path: Path) -> None:
    path = tmp_path / "a.table"
    with held(path) as holder:
        holder.kill()
        holder.wait()
        with lock(path, timeout_s=5):
            pass


def test_the_lock_file_stays(tmp_path: Path) -> None:
    """Removing it would let a second writer in while a third waits on the removed one."""
    path = tmp_path / "new" / "a.table"
    with lock(path):
        number = Path(f"{path}.lock").stat().st_ino
    with lock(path):
        pass
    assert Path(f"{path}.lock").stat().st_ino == number


def test_the_lock_is_free_after_an_error_in_the_block(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock(tmp_path / "x"):
        _ = 1 / 0
    with lock(tmp_path / "x", timeout_s=0.1):
        pass


def test_an_error_of_the_block_is_not_taken_for_one_of_the_lock(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), lock(tmp_path / "x"):
        (tmp_path / "an image").read_bytes()
    with pytest.raises(TimeoutError), lock(tmp_path / "x"):
        raise TimeoutError(errno.ETIMEDOUT, "the camera")


# a process that is killed


WRITING = """
import itertools, sys
from pathlib import Path
from edge.artifacts import store
path = Path(sys.argv[1])
print("started", flush=True)
for i in itertools.count():
    data = bytes([i % 251]) * (1000 + 997 * (i % 41))
    store.save(path, kind="calibration table", files={"x": data}, key={"byte": i % 251, "size": len(data)}, info={})
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_whole_versions_only(tmp_path: Path) -> None:
    """Eight times SIGKILL at a random moment, with a reader all the while.

    Every file that is seen is one version from its first to its last byte. Together, file and manifest are either one
    version, or refused: the moment between the two renames.
    """
    path = tmp_path / "m.json"
    moments = random.Random(4)
    seen = refusals = 0
    for _ in range(8):
        writer = python(WRITING, path)
        assert writer.stdout is not None
        writer.stdout.readline()
        end = time.monotonic() + moments.uniform(0.0, 0.15)
        while time.monotonic() < end:
            with contextlib.suppress(FileNotFoundError):
                _check_whole((tmp_path / "x").read_bytes())
                seen += 1
        writer.kill()
        writer.communicate()
        if not path.exists():
            continue
        try:
            manifest = store.load(path, kind=KIND)
        except ArtifactError:
            refusals += 1
            continue
        data = (tmp_path / "x").read_bytes()
        _check_whole(data)
        assert manifest.key == {"byte": data[0], "size": len(data)}
    assert seen > 20
    assert refusals < 8
    # What a killed writer leaves behind is hidden, and never taken for an artifact.
    assert {item.name for item in tmp_path.iterdir() if not item.name.startswith(".")} <= {"x", "m.json"}


def _check_whole(data: bytes) -> None:
    assert data == data[:1] * len(data)
    assert len(data) % 997 == 1000 % 997
