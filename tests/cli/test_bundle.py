"""``edge bundle``: what it prints, where, and how it ends."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.bundles import tar_of, tree

Edge = Callable[..., Any]


@pytest.fixture
def place(built: Callable[..., Path]) -> Path:
    """A working directory with a calibrated profile, and samples."""
    folder = built(4)
    (folder / "pictures" / "labels.csv").unlink()
    (folder / "pictures").rename(folder / "samples")
    return folder


def test_made_shown_verified_unpacked(place: Path, edge: Edge) -> None:
    done = edge("bundle", "create", "--profile", "tiny", "-o", "tiny.edge")
    assert done.code == 0, done.err
    digest = done.out.strip().rpartition("sha256:")[2]
    assert done.out.startswith("tiny.edge: 10 files, ")
    shown = edge("bundle", "show", "tiny.edge")
    assert f"sha256:{digest}" in shown.out
    for words in ("tiny (int8)", "host, any JetPack", "model/entropy2.table", "4 images", "model/model.onnx"):
        assert words in shown.out
    verified = edge("bundle", "verify", "tiny.edge", "--here")
    assert (verified.code, "tiny.edge: good; 10 files" in verified.out) == (0, True)
    assert "not signed" in verified.err
    assert edge("bundle", "unpack", "tiny.edge", "device").code == 0
    assert edge("bundle", "verify", "device").code == 0
    # What a device does with it.
    ran = edge("build", "-p", "device/profile.yaml", "--cache-dir", "device/tables", "--engine-dir", "new")
    assert (ran.code, "int8 built" in ran.out) == (0, True)


def test_what_a_stranger_wrote_is_escaped(tmp_path: Path, edge: Edge) -> None:
    path = tmp_path / "a.edge"
    path.write_bytes(tar_of({"a": b"1"}, info={"precision": "\u009b31m\u202e\U000e0001"}))
    for options in ((), ("--json",)):
        shown = edge("bundle", "show", path, *options)
        assert shown.code == 0, shown.err
        assert all(sign.isprintable() or sign == "\n" for sign in shown.out)
    assert json.loads(shown.out)["info"] == {"precision": "\u009b31m\u202e\U000e0001"}


def test_to_standard_output(place: Path, edge_process: Edge) -> None:
    """The bundle is the only thing there; the result is on stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "edge", "bundle", "create", "-p", "tiny", "-o", "-"], capture_output=True, check=True
    )
    (place / "piped.edge").write_bytes(done.stdout)
    assert b"10 files" in done.stderr
    assert edge_process("bundle", "verify", "piped.edge").code == 0


def test_the_short_form(place: Path, edge: Edge) -> None:
    assert edge("bundle", "create", "-p", "tiny", "-o", "long.edge").code == 0
    assert edge("bundle", "-p", "tiny", "-o", "short.edge").code == 0
    assert edge("bundle", "--output", "third.edge", "--profile", "tiny").code == 0
    assert len({(place / f"{name}.edge").read_bytes() for name in ("long", "short", "third")}) == 1
    assert "Usage" in edge("bundle", "-h").out
    assert edge("bundle", "--profile", "tiny").code == 2  # no -o


def test_json(place: Path, edge: Edge) -> None:
    made = json.loads(edge("bundle", "-p", "tiny", "-o", "tiny.edge", "--name", "x", "--json").out)
    assert (made["name"], made["jetpack"], made["family"], made["signed"]) == ("x", None, "host", False)
    assert json.loads(edge("bundle", "show", "tiny.edge", "--json").out) == made
    checked = json.loads(edge("bundle", "verify", "tiny.edge", "--json").out)
    assert (checked["digest"], checked["signers"]) == (made["digest"], [])
    assert json.loads(edge("bundle", "unpack", "tiny.edge", "out", "--json").out)["digest"] == made["digest"]


def test_what_it_refuses(place: Path, edge: Edge) -> None:
    assert edge("bundle", "-p", "tiny", "-o", "tiny.edge", "--no-golden").code == 0
    again = edge("bundle", "-p", "tiny", "-o", "tiny.edge", "--no-golden")
    assert (again.code, "--force overwrites it" in again.err) == (2, True)
    data = bytearray((place / "tiny.edge").read_bytes())
    data[data.rindex(b"logits")] ^= 1
    (place / "tiny.edge").write_bytes(data)
    for command in (("verify", "tiny.edge"), ("unpack", "tiny.edge", "out"), ("sign", "tiny.edge", "--key", "k")):
        done = edge("bundle", *command)
        assert (done.code, done.out) == (7, "")
        assert "does not match the sha256" in done.err
    assert "bundle.json" not in tree(place / "out")
    assert edge("bundle", "show", "nowhere.edge").code == 7
    assert edge("bundle", "show", "samples").code == 7
    for wrong in (("--jetpack", "6.2"), ("--name", "a\nb"), ("--name", "x" * 201)):
        assert edge("bundle", "-p", "tiny", "-o", "x.edge", *wrong).code == 2
    shutil.rmtree(place / "samples")
    none = edge("bundle", "-p", "tiny", "-o", "other.edge")
    assert none.code in {0, 2}  # the checkout's own samples, where edge runs from one
    assert edge("bundle", "-p", "tiny", "-o", "x.edge", "--golden", "nowhere").code == 6
    shutil.rmtree(place / "calib_cache")
    stale = edge("bundle", "-p", "tiny", "-o", "x.edge", "--no-golden")
    assert (stale.code, "edge calibrate --profile tiny" in stale.err) == (7, True)
    assert not (place / "x.edge").exists()


def test_a_bundle_that_would_forge_the_screen(tmp_path: Path, edge: Edge) -> None:
    """Anybody can seal a manifest; what it says is shown without what a terminal obeys."""
    evil = "\x1b[2J\x1b]0;x\x07 good\r\nsigned by you"
    for index, info in enumerate([
        {"precision": evil, "input": evil, "output": [evil], "wheels": {"python": [evil]}, "golden": evil},
        {"wheels": 7, "golden": {}, "input": None}, {"wheels": {"python": 3}},
    ]):  # fmt: skip
        path = tmp_path / f"{index}.edge"
        path.write_bytes(tar_of({"wheels/a.whl": b"", "golden/a.jpg": b""}, info=info))
        done = edge("bundle", "show", path)
        assert done.code == 0, done.err
        assert not set(done.out) & {"\x1b", "\x07", "\r"}
        assert "\nsigned by you" not in done.out
    path.write_bytes(tar_of({}, name=evil))
    done = edge("bundle", "show", path)
    assert (done.code, "\x1b" in done.err) == (7, False)


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not on this machine")
def test_signed(place: Path, edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("alice", "mallory"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", name], check=True, cwd=place)
    (place / "signers").write_text(f"alice@lab {(place / 'alice.pub').read_text()}")
    made = edge("bundle", "-p", "tiny", "-o", "tiny.edge", "--no-golden", "--key", "mallory")
    assert (made.code, ", signed, " in made.out) == (0, True)
    wrong = edge("bundle", "verify", "tiny.edge", "--allowed-signers", "signers")
    assert (wrong.code, "its signer is not in" in wrong.err) == (7, True)
    signed = edge("bundle", "sign", "tiny.edge", "--key", "alice")
    assert signed.out.startswith("tiny.edge.sig: signs sha256:")
    right = edge("bundle", "verify", "tiny.edge", "--allowed-signers", "signers")
    assert "signed by alice@lab (ED25519 SHA256:" in right.out
    # A device asks by itself where it has a list.
    monkeypatch.setenv("HOME", str(place / "home"))
    (place / "home/.local/share/edge").mkdir(parents=True)
    shutil.copy(place / "signers", place / "home/.local/share/edge/allowed_signers")
    assert "signed by alice@lab" in edge("bundle", "verify", "tiny.edge").out
    (place / "tiny.edge.sig").unlink()
    unsigned = edge("bundle", "verify", "tiny.edge")
    assert (unsigned.code, "not signed" in unsigned.err) == (7, True)


@pytest.mark.skipif(shutil.which("docker-registry") is None, reason="docker-registry is not on this machine")
def test_pushed_and_pulled(place: Path, edge: Edge, registry_host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("oras")
    monkeypatch.setenv("HOME", str(place / "nobody"))
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "*")
    edge("bundle", "-p", "tiny", "-o", "tiny.edge", "--no-golden")
    pushed = edge("bundle", "push", "tiny.edge", f"oci://{registry_host}/team/tiny:1")
    assert pushed.code == 0, pushed.err
    reference = pushed.out.strip()
    assert reference.startswith(f"oci://{registry_host}/team/tiny:1@sha256:")
    assert "sent" in pushed.err
    again = json.loads(edge("bundle", "push", "tiny.edge", f"oci://{registry_host}/team/tiny:2", "--json").out)
    assert (again["sent_bytes"], f"{registry_host}/team/tiny:2@" in again["reference"]) == (0, True)
    pulled = edge("bundle", "pull", reference, "-o", "pulled.edge")
    assert pulled.code == 0, pulled.err
    assert (place / "pulled.edge").read_bytes() == (place / "tiny.edge").read_bytes()
    assert edge("bundle", "pull", reference, "-o", "pulled.edge").code == 2
    reused = json.loads(edge("bundle", "pull", reference, "-o", "folder", "--reuse", "tiny.edge", "--json").out)
    assert reused["fetched_bytes"] == 0
    assert edge("bundle", "verify", "folder").code == 0
    assert edge("bundle", "pull", f"oci://{registry_host}/team/tiny:9", "-o", "x").code == 7
    assert edge("bundle", "pull", "oci://me:secret@h/n:t", "-o", "x").code == 2
    assert edge("bundle", "pull", "oci://127.0.0.1:1/n:t", "-o", "x").code == 8
    # Where the device has a list, an unsigned one is refused before anything is written.
    (place / "nobody/.local/share/edge").mkdir(parents=True)
    (place / "nobody/.local/share/edge/allowed_signers").touch()
    unsigned = edge("bundle", "pull", reference, "-o", "y")
    assert (unsigned.code, "not signed" in unsigned.err, (place / "y").exists()) == (7, True, False)


@pytest.fixture
def registry_host(tmp_path: Path) -> Any:
    """The address of a registry on this machine."""
    from tests.support.registries import reserved, wait_for

    config, log = tmp_path / "registry.yml", tmp_path / "registry.log"
    with reserved() as host, log.open("wb") as file:
        config.write_text(
            f"version: 0.1\nhttp: {{addr: '{host}'}}\nstorage: {{filesystem: {{rootdirectory: '{tmp_path}/images'}}}}\n"
        )
        process = subprocess.Popen(["docker-registry", "serve", config], stdout=file, stderr=file)
        wait_for(host, process, log=log)
        yield host
        process.kill()
        process.wait()
