"""What tests look at on a device, from outside of edge's own ship."""

from __future__ import annotations

import io
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edge.artifacts.store import FileEntry, sha256_bytes
from edge.deploy.bundle import archive
from edge.deploy.bundle.manifest import BundleManifest, encode_manifest
from edge.deploy.bundle.reader import Bundle, open_bundle
from edge.deploy.push import ShipSettings
from edge.deploy.transport.address import DeviceAddress

QUICK = ShipSettings(canary=False)


def root_of(place: DeviceAddress) -> Path:
    return place.folder if place.folder is not None else Path(place.path)


def current(place: DeviceAddress) -> str | None:
    """Digest of the bundle in use, after every file of it was read and compared with the manifest."""
    link = root_of(place) / "current"
    if not link.is_symlink():
        return None
    # The folder, not the link: a device that is still at work may switch while this reads.
    target = link.resolve()
    found = open_bundle(target)
    for name in found.files:
        found.read(name)
    assert found.digest == target.name
    listed = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert listed - {"bundle.json.sig"} == {*found.files, "bundle.json"}
    return found.digest


def passed(place: DeviceAddress, bundle: Bundle) -> None:
    """Leave the report of a trial that passed, as the device's script keeps it."""
    report = f'{{"program":"edge canary","format":2,"bundle":"{bundle.digest}","nonce":"0","passed":true,"failed":[]}}'
    (root_of(place) / "canary" / f"{bundle.digest}.json").write_text(report)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``, but for the lock."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }


def tar_of(files: Mapping[str, bytes], **fields: Any) -> bytes:
    entries = {name: FileEntry(sha256_bytes(data), len(data)) for name, data in files.items()}
    content: dict[str, Any] = {
        "format": 1,
        "name": "tiny",
        "family": "host",
        "jetpack": None,
        "profile": "tiny",
        "created_with": "edge 0",
        "files": entries,
        "info": {},
    }
    file = io.BytesIO()
    archive.write(
        file,
        encode_manifest(BundleManifest(**{**content, **fields})),
        entries,
        lambda name, out: out.write(files[name]) and None,
    )
    return file.getvalue()


class Program:
    """A program in the place of edge on a device. ``does`` is what its next `canary` does:

    ``pass`` and ``fail`` write the report of such a trial; ``code N`` ends with N and no report; ``reset`` ends the
    device's script without a word, as a power cut would; ``stale`` and ``other`` write the report of another trial and
    of another bundle; ``foreign`` is a program that has nothing to do with edge.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._control = path.with_suffix(".does")
        self.calls = path.with_suffix(".calls")
        self.does("pass")
        places = {"CONTROL": self._control, "CALLS": self.calls}
        text = _PROGRAM
        for word, place in places.items():
            text = text.replace(word, shlex.quote(str(place)))
        path.write_text(text)
        path.chmod(0o755)

    def does(self, what: str) -> None:
        self._control.write_text(what + "\n")

    def trials(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    def on(self, place: DeviceAddress) -> DeviceAddress:
        return msgspec.structs.replace(place, edge=str(self.path))


_PROGRAM = r"""#!/bin/sh
read -r does number <CONTROL
if [ "$1" = --version ]; then
  [ "$does" != foreign ] || { echo 'Welcome to n2n v.3.1.1'; exit 0; }
  echo 'edge 9.9'
  exit 0
fi
bundle=${2##*/} nonce='' state='' previous=''
for word in "$@"; do
  case $previous in --nonce) nonce=$word ;; --state) state=$word ;; esac
  previous=$word
done
echo "$bundle while $(readlink -- "$state/current") is in use" >>CALLS
report() { printf '{"program":"edge canary","format":2,"bundle":"%s","nonce":"%s","passed":%s,"failed":[%s]}\n' "$@"; }
case $does in
  pass) report "$bundle" "$nonce" true '' ;;
  fail) report "$bundle" "$nonce" false '"too slow"'; exit 1 ;;
  stale) report "$bundle" 0123 true '' ;;
  other) report "$(printf %064d 0)" "$nonce" true '' ;;
  liar) report "$bundle" "$nonce" true ''; exit 1 ;;
  code) echo 'error: what it says' >&2; exit "$number" ;;
  signal) kill -9 $$ ;;
  reset) kill -9 "$PPID" ;;
  foreign) echo 'Welcome to n2n v.3.1.1'; exit 1 ;;
esac
"""
