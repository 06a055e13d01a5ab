"""Signatures by the real ssh-keygen; the check in Python and the one in sh say the same."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.deploy.bundle import reader, signature
from edge.deploy.bundle.manifest import MANIFEST, SIGNATURE
from edge.deploy.bundle.reader import open_bundle
from edge.deploy.bundle.unpacking import unpack_bundle
from edge.errors import ArtifactError, MissingDependencyError, UsageError
from tests.support.bundles import FILES, tar_of

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not on this machine")

Key = Callable[..., Path]


@pytest.fixture
def key(tmp_path: Path) -> Key:
    """``key("alice")``: a new private key; its public half is next to it."""

    def make(name: str = "alice", *options: str) -> Path:
        path = tmp_path / name
        kind = options or ("-t", "ed25519")
        subprocess.run(["ssh-keygen", "-q", "-N", "", "-C", name, "-f", path, *kind], check=True)
        return path

    return make


def allow(path: Path, *lines: tuple[str, Path], options: str = 'namespaces="edge-bundle"') -> Path:
    """A list of allowed signers: name and private key of each."""
    text = [f"{name} {options} {' '.join(key.with_suffix('.pub').read_text().split()[:2])}\n" for name, key in lines]
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(text))
    return path


def in_sh(folder: Path, home: Path, **environment: str) -> tuple[int, str]:
    """What CHECK_SCRIPT says on a device: exit code, output."""
    done = subprocess.run(
        ["sh", "-s", "--", str(folder), str(home)], input=signature.CHECK_SCRIPT, capture_output=True, text=True,
        check=False, env={"PATH": "/usr/bin:/bin", **environment},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_signed_by_somebody_on_the_list(small: Path, key: Key, tmp_path: Path) -> None:
    alice, bob = key("alice"), key("bob")
    bundle = open_bundle(small)
    assert bundle.signature() is None
    assert signature.sign(bundle, alice) == small.with_name("small.edge.sig")
    listed = allow(tmp_path / "signers", ("bob@lab", bob), ("alice@lab", alice))
    signer = signature.check(bundle, listed)
    assert signer.name == "alice@lab"
    assert signer.key.startswith("ED25519 SHA256:")
    # It travels: unpacked, and next to a copy.
    assert signature.check(unpack_bundle(bundle, tmp_path / "out"), listed).name == "alice@lab"


def test_signed_by_somebody_else(small: Path, key: Key, tmp_path: Path) -> None:
    bundle = open_bundle(small)
    signature.sign(bundle, key("mallory"))
    for listed in (allow(tmp_path / "signers", ("alice@lab", key("alice"))), allow(tmp_path / "nobody")):
        with pytest.raises(ArtifactError, match="its signer is not in"):
            signature.check(bundle, listed)


def test_an_unsigned_bundle_is_refused_where_a_list_is(small: Path, key: Key, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not signed"):
        signature.check(open_bundle(small), allow(tmp_path / "signers", ("alice", key())))
    with pytest.raises(UsageError, match="list of allowed signers does not exist"):
        signature.check(_signed(small, key("bob")), tmp_path / "absent")


def test_the_signature_of_another_bundle_does_not_count(small: Path, key: Key, tmp_path: Path) -> None:
    alice = key()
    listed = allow(tmp_path / "signers", ("alice", alice))
    _signed(small, alice)
    other = tmp_path / "other.edge"
    other.write_bytes(tar_of({**FILES, "profile.yaml": b"name: evil\n"}))
    shutil.copy(f"{small}.sig", f"{other}.sig")
    with pytest.raises(ArtifactError, match="is invalid for this bundle"):
        signature.check(open_bundle(other), listed)


@pytest.mark.parametrize("options", ['namespaces="git"', 'valid-before="20200101"', "cert-authority"])
def test_the_list_has_the_last_word(small: Path, key: Key, tmp_path: Path, options: str) -> None:
    alice = key()
    with pytest.raises(ArtifactError, match="its signer is not in"):
        signature.check(_signed(small, alice), allow(tmp_path / "signers", ("alice", alice), options=options))


def test_the_clock_is_named_where_keys_are_limited_in_time(small: Path, key: Key, tmp_path: Path) -> None:
    alice, home = key(), tmp_path / "home"
    bundle = _signed(small, alice)
    listed = allow(home / "allowed_signers", ("alice", alice), options='valid-after="20990101"')
    with pytest.raises(
        ArtifactError, match=r"have a validity period, and the clock of this machine says \d{4}-\d\d-\d\d"
    ):
        signature.check(bundle, listed)
    unpack_bundle(bundle, tmp_path / "out")
    assert "and the clock here says 20" in in_sh(tmp_path / "out", home)[1]


def test_a_signature_for_another_purpose_does_not_count(small: Path, key: Key, tmp_path: Path) -> None:
    alice = key()
    bundle = open_bundle(small)
    done = subprocess.run(
        ["ssh-keygen", "-Y", "sign", "-f", alice, "-n", "git"], input=bundle.manifest, capture_output=True, check=True
    )
    bundle.signature_path.write_bytes(done.stdout)
    with pytest.raises(ArtifactError, match="is invalid for"):
        signature.check(bundle, allow(tmp_path / "signers", ("alice", alice), options=""))


@pytest.mark.parametrize("content", [b"", b"\0" * 99, b"-----BEGIN SSH SIGNATURE-----\nAAAA\n", b"x" * (70 << 10)])
def test_what_is_no_signature(small: Path, key: Key, tmp_path: Path, content: bytes) -> None:
    bundle = open_bundle(small)
    bundle.signature_path.write_bytes(content)
    with pytest.raises(ArtifactError):
        signature.check(bundle, allow(tmp_path / "signers", ("alice", key())))


def test_keys_that_cannot_sign(small: Path, key: Key, tmp_path: Path) -> None:
    bundle = open_bundle(small)
    with pytest.raises(UsageError, match="key does not exist"):
        signature.sign(bundle, tmp_path / "absent")
    wide_open = key()
    wide_open.chmod(0o644)
    with pytest.raises(UsageError, match="did not sign"):
        signature.sign(bundle, wide_open)
    no_key = tmp_path / "text"
    no_key.write_text("hello\n")
    no_key.chmod(0o600)
    with pytest.raises(UsageError, match="did not sign"):
        signature.sign(bundle, no_key)
    assert bundle.signature() is None


def test_other_kinds_of_key_and_names(small: Path, key: Key, tmp_path: Path) -> None:
    for kind in (("-t", "ecdsa"), ("-t", "rsa", "-b", "2048")):
        owner = key(f"k{kind[1]}", *kind)
        listed = allow(tmp_path / "signers", ("first@lab,second@lab", owner))
        assert signature.check(_signed(small, owner), listed).name == "first@lab"
        pattern = allow(tmp_path / "signers", ("*@lab", owner))
        assert signature.check(open_bundle(small), pattern).name == "*@lab"


def test_a_device_asks_where_it_has_lists(small: Path, key: Key, tmp_path: Path) -> None:
    alice = key()
    home, system = tmp_path / "home", tmp_path / "etc" / "allowed_signers"
    bundle = open_bundle(small)
    assert signature.lists(home, system=system) == []
    assert signature.check_policy(bundle, []) == []
    listed = allow(home / "allowed_signers", ("alice", alice))
    assert signature.lists(home, system=system) == [listed]
    with pytest.raises(ArtifactError, match="not signed"):
        signature.check_policy(bundle, [listed])
    _signed(small, alice)
    assert [signer.name for signer in signature.check_policy(bundle, [listed])] == ["alice"]
    # Both must accept it; and a link that leads nowhere accepts nobody.
    allow(system, ("bob", key("bob")))
    with pytest.raises(ArtifactError, match="its signer is not in"):
        signature.check_policy(bundle, signature.lists(home, system=system))
    system.unlink()
    system.symlink_to("nowhere")
    with pytest.raises(ArtifactError, match="no signer is accepted"):
        signature.check_policy(bundle, signature.lists(home, system=system))


def test_the_script_for_devices_without_edge(small: Path, key: Key, tmp_path: Path) -> None:
    """With names that a careless script would trip over."""
    alice, mallory = key("alice"), key("mallory")
    folder, home = tmp_path / "a 'b' $(touch x); \"c\"", tmp_path / "home of `id`"
    unpack_bundle(open_bundle(small), folder)
    assert in_sh(folder, home) == (0, "")
    allow(home / "allowed_signers", ("bob@lab,alice@lab", alice))
    code, said = in_sh(folder, home)
    assert code == 65
    assert "not signed" in said
    signature.sign(open_bundle(folder), mallory)
    assert in_sh(folder, home)[0] == 65
    signature.sign(open_bundle(folder), alice)
    assert in_sh(folder, home) == (0, "signed by bob@lab\n")
    (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes() + b" ")
    assert in_sh(folder, home)[0] == 65
    (folder / SIGNATURE).unlink()
    (folder / SIGNATURE).symlink_to("/dev/zero")
    assert in_sh(folder, home)[0] == 65
    (home / "allowed_signers").unlink()
    (home / "allowed_signers").symlink_to("nowhere")
    assert in_sh(folder, home)[0] == 65
    assert not (tmp_path / "x").exists()


def test_the_script_without_ssh_keygen(small: Path, key: Key, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "tr"):
        (tools / name).symlink_to(shutil.which(name) or "")
    home = tmp_path / "home"
    allow(home / "allowed_signers", ("alice", key()))
    code, said = in_sh(unpack_bundle(open_bundle(small), tmp_path / "out").path, home, PATH=str(tools))
    assert code == 69
    assert "apt install openssh-client" in said


def test_without_ssh_keygen(small: Path, key: Key, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = key()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="ssh-keygen is not installed"):
        signature.sign(open_bundle(small), owner)


def _signed(path: Path, owner: Path) -> reader.Bundle:
    bundle = open_bundle(path)
    signature.sign(bundle, owner)
    return bundle
