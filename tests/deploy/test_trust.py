"""Signatures that a device asks for, and installing edge from a bundle that was verified."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edge.deploy import rollback
from edge.deploy.bundle import signature
from edge.deploy.bundle.reader import Bundle
from edge.deploy.push import ship
from edge.deploy.transport.address import DeviceAddress
from edge.errors import ArtifactError, DeviceError
from tests.support import loopback
from tests.support.devices import QUICK, current, passed, root_of

Make = Callable[..., Bundle]

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return loopback.make_key(tmp_path / "release key")


def allow(place: DeviceAddress, key: Path) -> None:
    root_of(place).mkdir(parents=True, exist_ok=True)
    public = key.with_suffix(".pub").read_text()
    (root_of(place) / "allowed_signers").write_text(f'release@example namespaces="{signature.NAMESPACE}" {public}')


def test_a_signed_bundle_is_taken_and_its_signer_is_said(bundle: Make, folder: DeviceAddress, key: Path) -> None:
    allow(folder, key)
    sent = bundle()
    signature.sign(sent, key)
    outcome = ship(sent, folder, settings=QUICK)
    assert (outcome.work, "release@example" in str(outcome.signed_by)) == ("ok", True)
    assert current(folder) == sent.digest
    assert (root_of(folder) / "current" / "bundle.json.sig").is_file()


def test_an_unsigned_bundle_changes_nothing(bundle: Make, folder: DeviceAddress, key: Path) -> None:
    first = bundle("a")
    ship(first, folder, settings=QUICK)
    allow(folder, key)
    with pytest.raises(ArtifactError, match="refuses the signature"):
        ship(bundle("b", {"x": b"1"}), folder, settings=QUICK)
    assert current(folder) == first.digest


def test_a_stranger_and_a_changed_signature_are_refused(
    bundle: Make, folder: DeviceAddress, key: Path, tmp_path: Path
) -> None:
    allow(folder, key)
    stranger = bundle("a")
    signature.sign(stranger, loopback.make_key(tmp_path / "stranger"))
    other = bundle("b", {"x": b"1"})
    signature.sign(other, key)
    mixed = bundle("c", {"x": b"2"})
    mixed.signature_path.write_bytes(other.signature_path.read_bytes())
    for refused in (stranger, mixed):
        with pytest.raises(ArtifactError, match="refuses the signature"):
            ship(refused, folder, settings=QUICK)
        assert current(folder) is None
    assert ship(other, folder, settings=QUICK).work == "ok"


def test_a_bundle_in_use_is_signed_later(bundle: Make, folder: DeviceAddress, key: Path, tmp_path: Path) -> None:
    """It stays where it is, only the signature is exchanged, and one that is refused takes the place of none."""
    sent, root = bundle(), root_of(folder)
    ship(sent, folder, settings=QUICK)
    before = (root / "current").resolve().stat().st_ino
    allow(folder, key)
    signature.sign(sent, key)
    assert ship(sent, folder, settings=QUICK).signed_by is not None
    good = (root / "current" / "bundle.json.sig").read_bytes()
    sent.signature_path.unlink()
    for _ in range(2):
        with pytest.raises(ArtifactError, match="refuses the signature"):
            ship(sent, folder, settings=QUICK)
        assert (root / "current" / "bundle.json.sig").read_bytes() == good
        signature.sign(sent, loopback.make_key(tmp_path / "stranger"))
    assert current(folder) == sent.digest
    assert rollback.status(folder, verify=True).is_whole is True
    (root / "allowed_signers").unlink()
    sent.signature_path.unlink()
    ship(sent, folder, settings=QUICK)
    assert rollback.status(folder, verify=True).is_whole is True
    assert not (root / "current" / "bundle.json.sig").exists()
    assert (root / "current").resolve().stat().st_ino == before


def test_going_back_asks_for_the_signature_again(bundle: Make, folder: DeviceAddress, key: Path) -> None:
    """Of a bundle that came before the list, or whose signer has left it."""
    first, sent = bundle("a"), bundle("b", {"x": b"1"})
    ship(first, folder, settings=QUICK)
    passed(folder, first)
    signature.sign(sent, key)
    ship(sent, folder, settings=QUICK)
    allow(folder, key)
    with pytest.raises(ArtifactError, match=r"refuses the signature: the bundle is not signed"):
        rollback.rollback(folder)
    assert current(folder) == sent.digest
    (root_of(folder) / "allowed_signers").unlink()
    rollback.rollback(folder)
    passed(folder, sent)
    allow(folder, key)
    assert rollback.rollback(folder).current == sent.digest


def test_the_list_of_a_disk_that_is_mounted_here(bundle: Make, tmp_path: Path, key: Path) -> None:
    disk = DeviceAddress(name="disk", folder=tmp_path / "disk" / "edge", system_root=str(tmp_path / "disk"))
    (tmp_path / "disk/etc/edge").mkdir(parents=True)
    (tmp_path / "disk/etc/edge/allowed_signers").write_text("")
    with pytest.raises(ArtifactError, match=r"refuses the signature.*disk/etc/edge/allowed_signers asks"):
        ship(bundle(), disk, settings=QUICK)


def test_over_ssh(
    bundle: Make, key: Path, serve: Callable[..., loopback.Server], remote: Callable[..., DeviceAddress]
) -> None:
    place = remote(serve(), path="it's a device")
    allow(place, key)
    sent = bundle()
    with pytest.raises(ArtifactError, match="refuses the signature"):
        ship(sent, place, settings=QUICK)
    signature.sign(sent, key)
    assert ship(sent, place, settings=QUICK).work == "ok"


INSTALLER = """#!/bin/bash
# Stands for the real one, which tests/deploy/bundle runs: it makes an edge that says who installed it.
[ "$1 $3" = "--offline --home" ] && [ "$2" = "${0%/*}" ] || { echo "error: arguments: $*"; exit 1; }
[ -f "$2/fine" ] || { echo "error: no wheel for msgspec"; exit 1; }
mkdir -p "$4/venv/bin" && printf '#!/bin/sh\\necho edge 1.2.3 from a bundle\\n' >"$4/venv/bin/edge"
chmod +x "$4/venv/bin/edge"
"""


def test_edge_is_installed_from_a_verified_bundle(
    bundle: Make, serve: Callable[..., loopback.Server], remote: Callable[..., DeviceAddress]
) -> None:
    place = remote(serve(), path="it's a bare device")
    sent = bundle(files={"wheels/install.sh": INSTALLER.encode(), "wheels/fine": b"", "wheels/x.whl": b"x"})
    settings = msgspec.structs.replace(QUICK, bootstrap=True)
    assert ship(sent, place, settings=settings).work == "ok"
    found = rollback.status(place)
    assert (found.edge, found.edge_version) == (f"{place.path}/venv/bin/edge", "edge 1.2.3 from a bundle")
    assert current(place) == sent.digest


def test_an_installation_that_fails_changes_nothing(bundle: Make, folder: DeviceAddress) -> None:
    first = bundle("a")
    ship(first, folder, settings=QUICK)
    bad = bundle("b", {"wheels/install.sh": INSTALLER.encode()})
    with pytest.raises(DeviceError, match="could not be installed: error: no wheel for msgspec"):
        ship(bad, folder, settings=msgspec.structs.replace(QUICK, bootstrap=True))
    assert current(folder) == first.digest
