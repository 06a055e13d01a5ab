"""Bundles go to a real registry and come back; what is there already is not sent again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from edge.deploy.bundle import signature
from edge.deploy.bundle.reader import Bundle, open_bundle, verify_bundle
from edge.deploy.bundle.unpacking import pack_bundle, unpack_bundle
from edge.deploy.registry.artifact import pull, push
from edge.deploy.registry.client import parse_reference
from edge.errors import ArtifactError, DeviceError, UsageError
from tests.support.bundles import FILES, tar_of, tree
from tests.support.registries import Counting, Running, Start, reserved

BIG = os.urandom(8_000_000)


def bundle_of(path: Path, files: dict[str, bytes] = FILES, **fields: object) -> Bundle:
    path.write_bytes(tar_of(files, **fields))
    return open_bundle(path)


def at(host: str, rest: str = "team/tiny:1") -> str:
    return f"oci://{host}/{rest}"


def test_there_and_back(registry: Running, tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "first.edge")
    pushed = push(bundle, parse_reference(at(registry.host)))
    assert (pushed.sent_files, pushed.kept_files) == (len(FILES) + 1, 0)
    assert pushed.bundle == bundle.digest
    with pull(parse_reference(at(registry.host))) as remote:
        assert remote.oci_digest == pushed.digest
        assert pack_bundle(remote, tmp_path / "second.edge").digest == bundle.digest
        unpacked = unpack_bundle(remote, tmp_path / "folder")
    assert (tmp_path / "second.edge").read_bytes() == (tmp_path / "first.edge").read_bytes()
    verify_bundle(unpacked)
    assert unpacked.digest == bundle.digest


def test_by_digest(registry: Running, tmp_path: Path) -> None:
    first = push(bundle_of(tmp_path / "a.edge"), parse_reference(at(registry.host)))
    push(bundle_of(tmp_path / "b.edge", {**FILES, "new": b"1"}), parse_reference(at(registry.host)))
    with pull(parse_reference(first.reference)) as remote:  # the tag has moved on, the digest has not
        assert remote.files.keys() == FILES.keys()
    with pull(parse_reference(at(registry.host))) as remote:
        assert "new" in remote.files
    with (
        pytest.raises(ArtifactError, match="artifact does not exist"),
        pull(parse_reference(f"{at(registry.host)}@sha256:{'0' * 64}")),
    ):
        pass
    with pytest.raises(UsageError, match="not a digest"):
        push(bundle_of(tmp_path / "c.edge"), parse_reference(first.reference))


def test_the_digest_is_that_of_the_content(start: Start, tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "a.edge")
    places = (at(start(name="one").host), at(start(name="two").host, "x:y"))
    assert len({push(bundle, parse_reference(place)).digest for place in places}) == 1


def test_a_changed_table_does_not_send_the_model_again(counting: Counting, tmp_path: Path) -> None:
    files = {"model/m.onnx": BIG, "tables/m/entropy2.table": b"a" * 10_000}
    first = push(bundle_of(tmp_path / "a.edge", files), parse_reference(at(counting.host)))
    assert counting.up > first.sent_bytes > 8_000_000
    counting.reset()
    changed = bundle_of(tmp_path / "b.edge", {**files, "tables/m/entropy2.table": b"b" * 10_000})
    second = push(changed, parse_reference(at(counting.host, "team/tiny:2")))
    assert second.kept_bytes == len(BIG)
    assert 10_000 < counting.up < 30_000  # counted on the wire, with HTTP's own
    counting.reset()
    again = push(changed, parse_reference(at(counting.host, "team/tiny:3")))
    assert (again.sent_files, again.sent_bytes) == (0, 0)
    assert counting.up < 5_000


def test_what_an_older_bundle_has_is_not_fetched(counting: Counting, tmp_path: Path) -> None:
    files = {"model/m.onnx": BIG, "tables/m/entropy2.table": b"a" * 10_000}
    old = bundle_of(tmp_path / "old.edge", files)
    new = bundle_of(tmp_path / "new.edge", {**files, "tables/m/entropy2.table": b"b" * 10_000})
    push(new, parse_reference(at(counting.host)))
    counting.reset()
    with pull(parse_reference(at(counting.host)), reuse=old) as remote:
        assert pack_bundle(remote, tmp_path / "pulled.edge").digest == new.digest
        assert (remote.fetched_bytes, remote.reused_bytes) == (10_000, len(BIG))
    assert counting.down < 30_000
    # A folder that was begun: only what is missing comes.
    unpack_bundle(old, tmp_path / "folder")
    for name in ("bundle.json", "tables/m/entropy2.table"):
        (tmp_path / "folder" / name).unlink()
    counting.reset()
    with pull(parse_reference(at(counting.host))) as remote:
        verify_bundle(unpack_bundle(remote, tmp_path / "folder"))
    assert counting.down < 30_000


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not on this machine")
def test_the_signature_goes_along(registry: Running, tmp_path: Path) -> None:
    import subprocess

    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    listed = tmp_path / "signers"
    listed.write_text(f"me {key.with_suffix('.pub').read_text()}")
    bundle = bundle_of(tmp_path / "a.edge")
    push(bundle, parse_reference(at(registry.host, "t:unsigned")))
    signature.sign(bundle, key)
    push(bundle, parse_reference(at(registry.host, "t:signed")))
    with pull(parse_reference(at(registry.host, "t:signed"))) as remote:
        assert signature.check(remote, listed).name == "me"
        assert signature.check(pack_bundle(remote, tmp_path / "b.edge"), listed).name == "me"
        assert signature.check(unpack_bundle(remote, tmp_path / "c"), listed).name == "me"
    with (
        pull(parse_reference(at(registry.host, "t:unsigned"))) as remote,
        pytest.raises(ArtifactError, match="not signed"),
    ):
        signature.check(remote, listed)
    # A signature next to the file that the unsigned one replaces does not stay.
    with pull(parse_reference(at(registry.host, "t:unsigned"))) as remote:
        assert pack_bundle(remote, tmp_path / "b.edge").signature() is None


def test_a_broken_bundle_is_not_pushed(registry: Running, tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "a.edge")
    data = bytearray((tmp_path / "a.edge").read_bytes())
    at_content = data.index(b"weights weights")
    data[at_content] ^= 1
    (tmp_path / "a.edge").write_bytes(data)
    with pytest.raises(ArtifactError, match="does not match the sha256"):
        push(bundle, parse_reference(at(registry.host)))
    assert tree(registry.storage) == {}


def test_nobody_answers(tmp_path: Path) -> None:
    with reserved() as address:
        for host in (address, "registry.invalid"):
            with pytest.raises(DeviceError, match="cannot be reached") as failed, pull(parse_reference(at(host))):
                pass
            assert "object at" not in str(failed.value)


@pytest.mark.parametrize(
    ("text", "host", "name", "tag", "has_digest"),
    [
        ("oci://h/n", "h", "n", "latest", False),
        ("oci://h:5000/team/a-b_c.d:V1.2", "h:5000", "team/a-b_c.d", "V1.2", False),
        ("oci://[::1]:5000/n:t", "[::1]:5000", "n", "t", False),
        (f"oci://ghcr.io/o/n@sha256:{'a' * 64}", "ghcr.io", "o/n", None, True),
        (f"oci://ghcr.io/o/n:t@sha256:{'a' * 64}", "ghcr.io", "o/n", "t", True),
    ],
)
def test_references(text: str, host: str, name: str, tag: str | None, has_digest: bool) -> None:
    found = parse_reference(text)
    assert (found.host, found.name, found.tag, found.digest is not None) == (host, name, tag, has_digest)
    assert parse_reference(str(found)) == found


@pytest.mark.parametrize(
    "text",
    [
        "", "h/n:t", "https://h/n:t", "oci://", "oci://h", "oci://h/", "oci:///n", "oci://h/N", "oci://h/n:",
        "oci://h/n:-t", "oci://h/a//b", "oci://h/../b", "oci://h/n@sha256:abc", f"oci://h/n@sha512:{'a' * 64}",
        "oci://h/n:t@", "oci://h /n", "oci://h/n:t?x=1", "oci://h/n:t#x", "oci://-h/n", "oci://h:port/n", "oci://h/n\n",
        "oci://h\\x/n",
    ],
)  # fmt: skip
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(UsageError):
        parse_reference(text)


def test_a_password_in_a_reference_is_refused_and_not_shown() -> None:
    with pytest.raises(UsageError) as failed:
        parse_reference("oci://me:swordfish@registry.example/n:t")
    assert "swordfish" not in str(failed.value)
    with pytest.raises(UsageError) as failed:
        parse_reference("https://me:swordfish@registry.example/n:t")
    assert "swordfish" not in str(failed.value).replace("https://me:swordfish", "")


@pytest.mark.parametrize(
    ("host", "is_here"),
    [
        ("localhost", True), ("localhost:5000", True), ("127.0.0.1:5000", True), ("127.9.9.9", True),
        ("[::1]:5000", True), ("[::1]", True), ("192.168.0.1:5000", False), ("127.0.0.1.example.com", False),
        ("localhost.example.com:1", False),
    ],
)  # fmt: skip
def test_plain_http_is_for_this_machine(host: str, is_here: bool) -> None:
    assert parse_reference(f"oci://{host}/n").is_loopback is is_here
