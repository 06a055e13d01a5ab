"""A bundle is written, read, unpacked; the same inputs give the same bytes."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edge.artifacts.store import sha256_bytes
from edge.calibration import cache_keys
from edge.config import profiles
from edge.deploy.bundle.manifest import MANIFEST
from edge.deploy.bundle.reader import Bundle, open_bundle, verify_bundle
from edge.deploy.bundle.unpacking import pack_bundle, unpack_bundle
from edge.errors import ArtifactError
from tests.support.bundles import FILES, folder_of, tar_of, tree

Made = Callable[..., Bundle]


def test_a_tar_holds_what_went_in(small: Path) -> None:
    bundle = open_bundle(small)
    verify_bundle(bundle)
    assert {name: bundle.read(name) for name in bundle.files} == FILES
    assert bundle.digest == sha256_bytes(bundle.manifest)
    with bundle.open("model/tiny.onnx") as file:
        assert file.read(7) == b"weights"
        assert file.read() == FILES["model/tiny.onnx"][7:]


@pytest.mark.parametrize("name", ["fifo.edge", "fifo"])
def test_a_bundle_is_written_through_a_fifo(small: Path, tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with ThreadPoolExecutor() as pool:
        read = pool.submit((tmp_path / name).read_bytes)
        assert pack_bundle(open_bundle(small), tmp_path / name).files.keys() == FILES.keys()
    assert read.result() == small.read_bytes()
    assert (tmp_path / name).is_fifo()


def test_the_target_of_a_link_becomes_the_bundle(small: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link.edge").symlink_to("there/real.edge")
    packed = pack_bundle(open_bundle(small), tmp_path / "link.edge")
    verify_bundle(packed)
    assert (tmp_path / "link.edge").is_symlink()
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["real.edge"]


def test_what_was_there_stays_when_the_new_one_is_bad(tmp_path: Path) -> None:
    """A bundle whose model has its weights outside: found out when it has been written, before it has the name."""
    onnx = pytest.importorskip("onnx")
    weights = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], [1.0])
    weights.ClearField("float_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="absent.bin")
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [weights])).SerializeToString()
    (tmp_path / "bad.edge").write_bytes(tar_of({**FILES, "model/tiny.onnx": model}))
    (tmp_path / "out.edge").write_bytes(b"old")
    (tmp_path / "out.edge.sig").write_bytes(b"old signature")
    with pytest.raises(ArtifactError, match="not in the bundle"):
        pack_bundle(open_bundle(tmp_path / "bad.edge"), tmp_path / "out.edge")
    assert (tmp_path / "out.edge").read_bytes() == b"old"
    assert (tmp_path / "out.edge.sig").read_bytes() == b"old signature"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.edge", "out.edge", "out.edge.sig"]


def test_other_tools_read_the_tar(small: Path) -> None:
    with tarfile.open(small) as tar:
        assert tar.getnames() == [MANIFEST, *sorted(FILES)]
        for item in tar:
            assert (item.mode, item.mtime, item.uid, item.gid, item.uname) == (0o644, 0, 0, 0, "")
            assert item.isreg()
        for name, data in FILES.items():
            file = tar.extractfile(name)
            assert file is not None
            assert file.read() == data
    with tarfile.open(fileobj=io.BytesIO(small.read_bytes()), mode="r|") as tar:
        assert len(tar.getmembers()) == len(FILES) + 1


def test_unpacked_it_is_the_same_bundle(small: Path, tmp_path: Path) -> None:
    bundle = open_bundle(small)
    unpacked = unpack_bundle(bundle, tmp_path / "out")
    assert tree(tmp_path / "out") == {**FILES, MANIFEST: bundle.manifest}
    assert (unpacked.digest, unpacked.is_folder) == (bundle.digest, True)
    verify_bundle(unpacked)
    again = unpack_bundle(unpacked, tmp_path / "again")
    assert again.manifest == bundle.manifest


def test_the_bundle_of_a_profile(made: Made, tmp_path: Path) -> None:
    bundle = made()
    assert sorted(bundle.files) == [
        "golden/000.jpg", "golden/001.jpg", "golden/expected.json", "labels/labels.txt", "model/model.onnx",
        "profile.yaml", "tables/model/entropy2.json", "tables/model/entropy2.table",
    ]  # fmt: skip
    unpacked = unpack_bundle(bundle, tmp_path / "device")
    chosen = profiles.read_profile(unpacked.path / "profile.yaml")
    source = profiles.read_profile(tmp_path / "profiles" / "tiny.yaml")
    assert (chosen.name, chosen.digest) == ("tiny", source.digest)
    assert Path(chosen.model) == unpacked.path / "model" / "model.onnx"
    assert cache_keys.find_table(chosen, unpacked.path / "tables").path.is_file()


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_the_same_inputs_give_the_same_bytes(made: Made, umask: int) -> None:
    first = made("first.edge").path.read_bytes()
    before = os.umask(umask)
    try:
        second = made("second.edge").path.read_bytes()
    finally:
        os.umask(before)
    assert first == second


def test_a_folder_with_more_or_less_in_it_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "bundle", FILES)
    (folder / "extra").write_bytes(b"")
    with pytest.raises(ArtifactError, match="not named in the manifest: extra"):
        open_bundle(folder)
    (folder / "extra").unlink()
    (folder / "profile.yaml").unlink()
    with pytest.raises(ArtifactError, match=r"are missing: profile\.yaml"):
        open_bundle(folder)


def test_a_changed_bit_is_found(tmp_path: Path) -> None:
    """Everywhere in the tar: in the manifest, in what stands around the files, in the files, in the padding."""
    good = tar_of(FILES)
    path = tmp_path / "bad.edge"
    for at in range(0, len(good), 23):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(ArtifactError):
            verify_bundle(open_bundle(path))
