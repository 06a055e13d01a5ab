"""What a bundle must not do to whoever opens it: nothing outside of its folder is written, nothing half is used."""

from __future__ import annotations

import io
import json
import os
import socket
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from edge.artifacts.store import FileEntry, sha256_bytes
from edge.deploy.bundle import archive
from edge.deploy.bundle.manifest import (
    MANIFEST,
    BundleManifest,
    check_names,
    decode_manifest,
    encode_manifest,
    name_problem,
)
from edge.deploy.bundle.reader import Bundle, open_bundle, verify_bundle
from edge.deploy.bundle.unpacking import pack_bundle, unpack_bundle
from edge.errors import ArtifactError, EdgeError
from tests.support.bundles import FILES, folder_of, manifest_of, tar_of, tree

BAD_NAMES = [
    "../evil", "a/../../evil", "..", "a/..", "/etc/evil", "//evil", "/", "", ".", "./a", "a/./b", "a//b", "a/", "a\\b",
    "..\\evil", "C:\\evil", "a\0b", "a\nb", "a\tb", "a\x1b[31mb", "a\x7fb",
    "a\u202eb", "a\u200bb", "a\u2028b", "\ufeffa",
    "-rf", "a/-rf", " a", "a ", "a/ b", "a.", "a/b.", "a\u00a0", "bundle.json", "Bundle.JSON", "bundle.json.sig",
    "BUNDLE.JSON.SIG/x", "bundle.json/x", "x" * 101, "y/" * 79 + "x" * 100, "é" * 51, "a/" + "b" * 101,
]  # fmt: skip
GOOD_NAMES = [
    "a", "model/m.onnx", "x" * 100, "y" * 155 + "/" + "x" * 100, "golden/Zürich 1.jpg", "日本/語.jpg", "a..b", "...a",
    ".a",
    "a'b", 'a"b', "$(id)", "a;b", "a&b", "~a", "a b", "c:d", "a=b", "#a", "%41", "bundle.json.bak", "é" * 50,
]  # fmt: skip


def entries(names: list[str]) -> dict[str, FileEntry]:
    return dict.fromkeys(names, FileEntry(sha256_bytes(b""), 0))


# names


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_names_that_are_refused(name: str, tmp_path: Path) -> None:
    assert name_problem(name)
    manifest = encode_manifest(manifest_of({name: b""}))
    with pytest.raises(ArtifactError, match="file name"):
        decode_manifest(manifest, where="here")
    # As a folder, too: the manifest alone is enough.
    (tmp_path / MANIFEST).write_bytes(manifest)
    with pytest.raises(ArtifactError, match="file name"):
        open_bundle(tmp_path)


@pytest.mark.parametrize("name", GOOD_NAMES, ids=ascii)
def test_names_that_are_taken(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.edge"
    path.write_bytes(tar_of({name: b"content"}))
    unpacked = unpack_bundle(open_bundle(path), tmp_path / "out")
    assert tree(tmp_path / "out") == {name: b"content", MANIFEST: unpacked.manifest}
    with tarfile.open(path) as tar:
        assert tar.getnames() == [MANIFEST, name]


@pytest.mark.parametrize(
    "names",
    [
        ["a", "A"], ["model/a", "Model/b"], ["straße", "STRASSE"], ["\u00e9", "e\u0301"], ["a", "a/b"],
        ["a/b", "a/b/c"],
        ["K", "\u212a"], ["ſ", "s"], ["x/y", "X"],
    ],
)  # fmt: skip
def test_twins(names: list[str]) -> None:
    """Two names that are one file, or file and folder, somewhere."""
    with pytest.raises(ArtifactError, match=r"same name|has a file as"):
        check_names(names, where="here")


def test_too_many(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="at most 10000"):
        decode_manifest(encode_manifest(_with(files=entries([f"n{index}" for index in range(10_001)]))), where="here")
    (tmp_path / MANIFEST).write_bytes(encode_manifest(manifest_of({})))
    for index in range(100):
        (tmp_path / str(index)).touch()
    with pytest.raises(ArtifactError, match="and 97 more"):
        open_bundle(tmp_path)


# the manifest


def _with(**fields: object) -> BundleManifest:
    content = {name: getattr(manifest_of({}), name) for name in BundleManifest.__struct_fields__}
    return BundleManifest(**{**content, **fields})


@pytest.mark.parametrize("size", [-1, 8**11, 1 << 63, 1 << 70])
def test_sizes_that_cannot_be(size: int) -> None:
    with pytest.raises(ArtifactError):
        decode_manifest(encode_manifest(_with(files={"a": FileEntry(sha256_bytes(b""), size)})), where="here")


@pytest.mark.parametrize(
    "digest", ["", "0" * 63, "0" * 65, "A" * 64, "sha256:" + "0" * 64, "0" * 63 + "\n", "../" + "0" * 61]
)
def test_digests_that_are_none(digest: str) -> None:
    with pytest.raises(ArtifactError, match="not a sha256"):
        decode_manifest(encode_manifest(_with(files={"a": FileEntry(digest, 0)})), where="here")


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[]", b"null", b"7", b"\xff", b"[" * 100_000, b'{"files": {}}', b'{"files": [], "format": 1}',
        b'{"format": NaN, "files": {}}', b'{"format": 1' + b"0" * 5000 + b', "files": {}}',
        b'{"a": "\\ud800", "files": {}}',
        b'{"format": true, "files": {}}', b'{"format": "1", "files": {}}', b'{"format": 2, "files": {}}',
    ],
    ids=range(15),
)  # fmt: skip
def test_what_is_no_manifest(data: bytes) -> None:
    with pytest.raises(ArtifactError):
        decode_manifest(data, where="here")


def test_a_manifest_says_everything_once() -> None:
    """A second entry of one name, which half of the parsers would take and half would not."""
    good = encode_manifest(manifest_of(FILES)).decode()
    line = next(text for text in good.splitlines() if '"name"' in text)
    for bad in (good.replace(line, f'{line}\n  "name": "other",'), good.replace("\n", "\n\n"), good + " ", good[:-1]):
        with pytest.raises(ArtifactError, match=r"not in the form|not the manifest"):
            decode_manifest(bad.encode(), where="here")


def test_a_manifest_is_sealed() -> None:
    content = json.loads(encode_manifest(manifest_of(FILES)))
    for name in content:
        changed = {**content, name: {"x": 1} if isinstance(content[name], dict) else "other"}
        data = (json.dumps(changed, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
        with pytest.raises(ArtifactError):
            decode_manifest(data, where="here")


# the tar


def evil_tar(*edits: tuple[int, bytes]) -> bytes:
    """A right tar, but for these bytes in the header of its second entry, whose checksum is right again."""
    good = tar_of(FILES)
    at = good.index(b"labels/empty.txt\0")
    head = bytearray(good[at : at + 512])
    for offset, value in (*edits, (148, b" " * 8)):
        head[offset : offset + len(value)] = value
    head[148:156] = b"%06o\0 " % sum(head)
    return good[:at] + bytes(head) + good[at + 512 :]


def test_the_header_is_right_before_it_is_changed() -> None:
    assert evil_tar() == tar_of(FILES)


# Offsets of ustar: name 0, mode 100, uid 108, size 124, mtime 136, type 156, link 157, magic 257, owner 265, device
# 329, prefix 345.
@pytest.mark.parametrize(
    "edits",
    [
        ((156, b"2"), (157, b"/etc/passwd")), ((156, b"1"), (157, b"bundle.json")), ((156, b"3"), (329, b"0000001")),
        ((156, b"4"),), ((156, b"5"),), ((156, b"6"),), ((156, b"7"),), ((156, b"\0"),), ((156, b"S"),), ((156, b"x"),),
        ((156, b"g"),), ((156, b"L"),), ((156, b"K"),), ((157, b"/etc/passwd"),), ((0, b"../../evil\0"),),
        ((0, b"/tmp/evil\0"),), ((0, b"profile.yaml\0"),), ((100, b"0004755"),), ((108, b"0000001"),),
        ((124, b"77777777777"),), ((124, b"00000001000"),), ((124, b"\x80" + bytes(10)),), ((136, b"00000000001"),),
        ((265, b"root"),), ((257, b"ustar  \0"),), ((345, b"up/"),), ((500, b"x"),),
    ],
    ids=range(27),
)  # fmt: skip
def test_entries_that_are_refused(edits: tuple[tuple[int, bytes], ...], tmp_path: Path) -> None:
    path = tmp_path / "evil.edge"
    path.write_bytes(evil_tar(*edits))
    with pytest.raises(ArtifactError, match=r"labels/empty\.txt: its tar header"):
        open_bundle(path)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_other_tools_are_refused(form: int, tmp_path: Path) -> None:
    """A tar that holds the right files, a link that leads out, and one through it."""
    path = tmp_path / "evil.edge"
    manifest = encode_manifest(manifest_of(FILES))
    with tarfile.open(path, mode="w", format=form) as tar:
        link = tarfile.TarInfo("model")
        link.type, link.linkname = tarfile.SYMTYPE, "/tmp"
        tar.addfile(link)
        for name, data in [(MANIFEST, manifest), *sorted(FILES.items())]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(ArtifactError, match="its first entry is not"):
        open_bundle(path)


@pytest.mark.parametrize("sizes", [[0], [1], [511], [512], [513], [0, 0, 0], [9 * 512], [10240]])
def test_sizes_around_a_block(sizes: list[int], tmp_path: Path) -> None:
    files = {f"n{index}": b"x" * size for index, size in enumerate(sizes)}
    path = tmp_path / "a.edge"
    path.write_bytes(tar_of(files))
    verify_bundle(open_bundle(path))
    with tarfile.open(path) as tar:
        assert [item.size for item in tar][1:] == sizes


def test_cut_short_or_followed_by_something(tmp_path: Path) -> None:
    good = tar_of(FILES)
    path = tmp_path / "a.edge"
    for data in (b"", good[:100], good[:512], good[:700], good[:-1], good[:-512], good[:-10240]):
        path.write_bytes(data)
        with pytest.raises(ArtifactError, match=r"truncated|not a bundle"):
            open_bundle(path)
    for tail in (b"x", bytes(512), bytes(10240), good):
        path.write_bytes(good + tail)
        with pytest.raises(ArtifactError, match="extra data"):
            open_bundle(path)


def test_swapped_contents_are_found(tmp_path: Path) -> None:
    files = {"a": b"1" * 600, "b": b"2" * 600}
    path = tmp_path / "a.edge"
    path.write_bytes(tar_of(files))
    plan = open_bundle(path)._layout
    assert plan is not None
    data = bytearray(path.read_bytes())
    for name, other in (("a", "b"), ("b", "a")):
        data[plan.offsets[name] : plan.offsets[name] + 600] = files[other]
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="does not match the sha256"):
        verify_bundle(open_bundle(path))
    folder = folder_of(tmp_path / "folder", files)
    (folder / "a").write_bytes(files["b"])
    with pytest.raises(ArtifactError, match="does not match the sha256"):
        verify_bundle(open_bundle(folder))


def test_a_claim_of_gigabytes_costs_nothing(tmp_path: Path) -> None:
    manifest = encode_manifest(_with(files={f"n{i}": FileEntry(sha256_bytes(b""), 8**11 - 1) for i in range(1000)}))
    path = tmp_path / "a.edge"
    path.write_bytes(archive.header(MANIFEST, len(manifest)) + manifest + bytes(20_000))
    with pytest.raises(ArtifactError, match="truncated"):
        open_bundle(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(
    at=st.integers(0, len(tar_of(FILES))), length=st.integers(0, 1500), to=st.integers(0, len(tar_of(FILES))),
    how=st.sampled_from(["delete", "insert", "overwrite", "repeat", "flip", "zero"]), noise=st.binary(max_size=700),
)  # fmt: skip
def test_any_damage_is_found_or_is_none(tmp_path: Path, at: int, length: int, to: int, how: str, noise: bytes) -> None:
    good = tar_of(FILES)
    end = min(at + length, len(good))
    piece = good[at:end]
    damaged = {
        "delete": good[:at] + good[end:],
        "insert": good[:at] + noise + good[at:],
        "overwrite": good[:at] + noise + good[at + len(noise) :],
        "repeat": good[:to] + piece + good[to:],
        "flip": good[:at] + bytes(byte ^ 1 for byte in piece) + good[end:],
        "zero": good[:at] + bytes(len(piece)) + good[end:],
    }[how]
    place = tmp_path / "place"
    place.mkdir(exist_ok=True)
    path = place / "a.edge"
    path.write_bytes(damaged)
    try:
        bundle = open_bundle(path)
        unpack_bundle(bundle, place / "out")
    except ArtifactError:
        assert damaged != good
        # What was written before the damage was met is right, and it is no bundle.
        assert all(FILES.get(name) == data for name, data in tree(place / "out").items())
    else:
        assert damaged == good
    left = {name.split("/")[0] for name in tree(place)} | {item.name for item in place.iterdir()}
    assert left <= {"a.edge", "out"}
    assert [item.name for item in tmp_path.iterdir()] == ["place"]
    _remove(place / "out")


@given(st.binary(max_size=3000))
def test_noise_is_no_bundle(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.edge"
    for data in (noise, archive.header(MANIFEST, len(noise)) + noise + bytes(20_000) if noise else b""):
        path.write_bytes(data)
        with pytest.raises(ArtifactError):
            open_bundle(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)


@given(field=st.sampled_from(BundleManifest.__struct_fields__), value=JSON, sealed=st.booleans())
def test_any_manifest_is_refused_in_words(field: str, value: object, sealed: bool) -> None:
    from edge.deploy.bundle.manifest import _seal, _write

    content = {**json.loads(encode_manifest(manifest_of(FILES))), field: value}
    try:
        if sealed:
            content["self_sha256"] = _seal(content)
        data = _write(content)
    except (ValueError, TypeError):  # NaN
        assume(False)
    try:
        about = decode_manifest(data, where="here")
    except ArtifactError:
        return
    assert encode_manifest(about) == data


@given(st.lists(st.text(max_size=30) | st.sampled_from(BAD_NAMES + GOOD_NAMES), max_size=5))
def test_names_that_pass_stay_inside(names: list[str]) -> None:
    try:
        check_names(names, where="here")
    except ArtifactError:
        return
    root = Path("/root of/it")
    paths = [Path(os.path.normpath(root / name)) for name in names]
    assert all(root in path.parents for path in paths)
    assert len({str(path).casefold() for path in paths}) == len(set(names))


# folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "bundle", FILES)


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # the name of a socket may be 108 bytes long
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)
    os.chdir(before)


def _device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("devices are for root to make")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.symlink_to("profile.yaml"), "a symbolic link"), (_pipe, "a pipe"), (_socket, "a socket"),
        (_device, "a device"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["extra", "model/tiny.onnx", MANIFEST, "bundle.json.sig"])
def test_what_is_no_file(folder: Path, make: Callable[[Path], None], words: str, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    with pytest.raises(EdgeError, match=f"{words}|cannot read"):
        open_bundle(folder).signature()


def test_a_folder_that_is_a_link_elsewhere(folder: Path, tmp_path: Path) -> None:
    (folder / "model").rename(tmp_path / "elsewhere")
    (folder / "model").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="a symbolic link"):
        open_bundle(folder)


def test_a_file_that_changes_after_it_was_opened(folder: Path) -> None:
    bundle = open_bundle(folder)
    target = folder / "model" / "tiny.onnx"
    good = target.read_bytes()
    for data in (good[:-1], good + b"x", b"X" + good[1:], b""):
        target.write_bytes(data)
        with pytest.raises(ArtifactError):
            bundle.read("model/tiny.onnx")
        assert sum(map(len, _until_error(bundle.pieces("model/tiny.onnx")))) <= len(good)
    target.unlink()
    target.symlink_to("/etc/passwd")
    with pytest.raises(ArtifactError, match="a symbolic link"):
        bundle.read("model/tiny.onnx")
    with pytest.raises(ArtifactError, match="there is no nowhere"):
        bundle.open("nowhere")


def _until_error(pieces: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield from pieces
    except ArtifactError:
        return


def test_a_link_to_a_bundle_is_a_bundle(folder: Path, tmp_path: Path) -> None:
    """On a device, ``current`` is one."""
    (tmp_path / "current").symlink_to("bundle")
    assert open_bundle(tmp_path / "current").digest == open_bundle(folder).digest


# unpacking


@pytest.mark.parametrize("name", ["model", "profile.yaml", "bundle.json", "bundle.json.sig", "labels"])
def test_links_in_the_way_are_not_followed(small: Path, tmp_path: Path, name: str) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (elsewhere / "file").write_bytes(b"precious")
    (out / name).symlink_to(elsewhere if name in {"model", "labels"} else elsewhere / "file")
    with pytest.raises(ArtifactError, match="does not belong to this bundle"):
        unpack_bundle(open_bundle(small), out)
    assert tree(elsewhere) == {"file": b"precious"}
    assert os.listdir(out) == [name]  # noqa: PTH208


def test_other_things_in_the_folder_stay(small: Path, tmp_path: Path) -> None:
    bundle = open_bundle(small)
    for index, name in enumerate(["mine.txt", "model/mine.onnx", "empty/"]):
        out = tmp_path / f"out{index}"
        path = out / name
        path.parent.mkdir(parents=True)
        path.mkdir() if name.endswith("/") else path.write_bytes(b"mine")
        before = tree(out)
        with pytest.raises(ArtifactError, match="does not belong to this bundle"):
            unpack_bundle(bundle, out)
        assert tree(out) == before
    other = folder_of(tmp_path / "other", {**FILES, "profile.yaml": b"other"})
    with pytest.raises(ArtifactError, match="another bundle"):
        unpack_bundle(bundle, other)
    assert (other / "profile.yaml").read_bytes() == b"other"


class Failing:
    """A bundle whose source breaks off at the third file."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self.left = 2

    def __getattr__(self, name: str) -> object:
        return getattr(self._bundle, name)

    def pieces(self, name: str) -> Iterator[bytes]:
        if self.left == 0:
            raise ArtifactError("the network went away")
        self.left -= 1
        return self._bundle.pieces(name)


def test_interrupted_it_goes_on_where_it_was(small: Path, tmp_path: Path) -> None:
    bundle, out = open_bundle(small), tmp_path / "out"
    with pytest.raises(ArtifactError, match="went away"):
        unpack_bundle(Failing(bundle), out)  # type: ignore[arg-type]
    assert len(tree(out)) == 2
    with pytest.raises(ArtifactError, match=r"bundle\.json is missing"):
        open_bundle(out)
    # What a killed process leaves behind, and a file that something less careful was writing.
    (out / "model").mkdir(exist_ok=True)
    (out / "model" / ".tiny.onnx.abc123.tmp").write_bytes(b"half")
    (out / "profile.yaml").write_bytes(b"half")
    unpacked = unpack_bundle(bundle, out)
    verify_bundle(unpacked)
    assert tree(out) == {**FILES, MANIFEST: bundle.manifest}
    with pytest.raises(ArtifactError, match="went away"):
        pack_bundle(Failing(bundle), tmp_path / "new.edge")  # type: ignore[arg-type]
    assert not list(tmp_path.glob("*new.edge*"))


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
