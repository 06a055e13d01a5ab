"""Large files by rsync, where both sides have it: a changed file travels as its differences from the one in use.

rsync makes a connection of its own, with the same ssh and the same options. Names reach the other side inside of
rsync's protocol (``--protect-args``), never in a command line. What arrived, also in part, is then taken over and
verified like everything else, so rsync is never trusted with more than bytes.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from edge.deploy.transport.address import DeviceAddress
from edge.deploy.transport.ssh import ssh_command
from edge.errors import os_error

# Below this a second connection costs more than the differences save.
WORTH_BYTES = 1 << 20
_KEEPALIVE_S = 15.0


class RsyncResult(msgspec.Struct, frozen=True):
    """Bytes that rsync sent, and why it did not get to the end, if so."""

    sent_bytes: int
    problem: str | None


def rsync_usable(place: DeviceAddress) -> bool:
    """True if rsync is on this machine and the place is behind ssh."""
    return not place.is_folder and shutil.which("rsync") is not None


def rsync_files(
    files: Mapping[str, Iterator[bytes]],
    *,
    place: DeviceAddress,
    root: str,
    has_current: bool,
    keepalive: Callable[[], None],
) -> RsyncResult:
    """Bring ``files`` (contents by name) to ``incoming/rsync`` below ``root`` on the device.

    ``keepalive`` is called now and then, so that the conversation next to it stays alive.

    Raises:
        StoreError: there is no room here for a copy of the files.
        ArtifactError: a file of the bundle is damaged.
    """
    with tempfile.TemporaryDirectory(prefix="edge-rsync-") as name:
        folder = Path(name)
        for path, pieces in files.items():
            copy = folder / "files" / path
            try:
                copy.parent.mkdir(parents=True, exist_ok=True)
                with copy.open("wb") as file:
                    for piece in pieces:
                        file.write(piece)
            except OSError as exc:
                raise os_error(exc, copy) from exc
        (folder / "names").write_bytes(b"".join(path.encode() + b"\0" for path in files))
        return _run(_command(folder, place, root, has_current=has_current), keepalive)


def _command(folder: Path, place: DeviceAddress, root: str, *, has_current: bool) -> list[str]:
    host = f"[{place.host}]" if ":" in place.host else place.host
    command = [
        "rsync", "--recursive", "--protect-args", "--ignore-times", "--no-whole-file", "--inplace", "--partial",
        "--stats", "--no-human-readable", "--timeout=60", "--from0", f"--files-from={folder / 'names'}",
        f"--rsh={' '.join(_quoted(word) for word in ssh_command(place))}",
    ]  # fmt: skip
    if has_current:
        command.append(f"--copy-dest={root}/current/")
    return [*command, f"{folder / 'files'}/", f"{host}:{root}/incoming/rsync/"]


def _quoted(word: str) -> str:
    """A word of --rsh, which rsync (not a shell) takes apart: a quote inside of quotes is doubled."""
    return "'" + word.replace("'", "''") + "'"


def _run(command: list[str], keepalive: Callable[[], None]) -> RsyncResult:
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    said_at = time.monotonic()
    output = ""
    try:
        while True:
            try:
                output, _ = process.communicate(timeout=1.0)
                break
            except subprocess.TimeoutExpired:
                if time.monotonic() - said_at >= _KEEPALIVE_S:
                    keepalive()
                    said_at = time.monotonic()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    sent = re.search(r"^Total bytes sent: (\d+)", output, re.MULTILINE)
    lines = [line for line in output.splitlines() if line.strip()]
    problem = None if process.returncode == 0 else (lines[-1][:200] if lines else f"it ended with {process.returncode}")
    return RsyncResult(int(sent[1]) if sent else 0, problem)
