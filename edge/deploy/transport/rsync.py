"""Send large files with rsync if both sides have it: a changed file is sent as its difference from the one in use.

rsync opens its own connection with the same ssh and options. File names are sent in rsync's protocol
(``--protect-args``), never in a command line. Received data, also partial, is verified like everything else, so rsync
is never trusted.
"""

from __future__ import annotations

import os
import re
import selectors
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import msgspec

from edge.deploy.transport.address import DeviceAddress
from edge.deploy.transport.frames import printable_lines
from edge.deploy.transport.ssh import ssh_command

# Below this a second connection costs more than the differences save.
WORTH_BYTES = 1 << 20
_KEEPALIVE_S = 15.0
_KEPT_OUTPUT = 16_384
_MAX_OUTPUT_BYTES = 1 << 20
_LIMIT_S = 180.0
_LOWEST_RATE_BPS = 5_000


class RsyncResult(msgspec.Struct, frozen=True):
    """Number of bytes that rsync sent, and the problem if it failed."""

    sent_bytes: int
    problem: str | None


def rsync_usable(place: DeviceAddress) -> bool:
    """Return True if rsync is installed here and the device is behind ssh."""
    return not place.is_folder and shutil.which("rsync") is not None


def rsync_files(
    folder: Path,
    names: Sequence[str],
    *,
    place: DeviceAddress,
    root: str,
    has_current: bool,
    keepalive: Callable[[], None],
) -> RsyncResult:
    """Send files of ``folder`` to ``incoming/rsync`` below ``root`` on the device.

    Args:
        folder: folder with the files; several transfers may read it at once.
        names: their paths in it.
        place: the device.
        root: the folder of its bundles.
        has_current: a bundle is in use there, so differences from its files are enough.
        keepalive: called regularly to keep the session alive.

    Returns:
        The number of sent bytes. A failure is returned as its problem; the files are then sent as a stream.
    """
    try:
        total_bytes = sum((folder / name).stat().st_size for name in names)
        with open(os.memfd_create("names"), "w+b") as listed:  # noqa: PTH123 - a file without a name
            listed.write(b"".join(name.encode() + b"\0" for name in names))
            listed.seek(0)
            command = _command(folder, place, root, has_current=has_current)
            limit_s = _LIMIT_S + total_bytes / _LOWEST_RATE_BPS
            return _run(command, listed, keepalive, limit_s=limit_s)
    except OSError as exc:
        return RsyncResult(0, exc.strerror or str(exc))


def _command(folder: Path, place: DeviceAddress, root: str, *, has_current: bool) -> list[str]:
    host = f"[{place.host}]" if ":" in place.host else place.host
    command = [
        "rsync", "--recursive", "--protect-args", "--ignore-times", "--no-whole-file", "--inplace", "--partial",
        "--stats", "--no-human-readable", "--timeout=60", "--from0", "--files-from=-",
        f"--rsh={' '.join(_quoted(word) for word in ssh_command(place))}",
    ]  # fmt: skip
    if has_current:
        command.append(f"--copy-dest={root}/current/")
    return [*command, f"{folder}/", f"{host}:{root}/incoming/rsync/"]


def _quoted(word: str) -> str:
    """Quote one word of --rsh, which rsync (not a shell) splits: a quote inside quotes is doubled."""
    return "'" + word.replace("'", "''") + "'"


def _run(command: list[str], listed: IO[bytes], keepalive: Callable[[], None], *, limit_s: float) -> RsyncResult:
    """Run rsync; only the end of its output, which the device may control, is stored."""
    deadline = time.monotonic() + limit_s
    kept_at = time.monotonic()
    output = bytearray()
    with (
        subprocess.Popen(command, stdin=listed, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process,
        selectors.DefaultSelector() as selector,
    ):
        assert process.stdout is not None  # noqa: S101 - it was asked for
        selector.register(process.stdout, selectors.EVENT_READ)
        printed_bytes = 0
        try:
            while time.monotonic() < deadline and printed_bytes < _MAX_OUTPUT_BYTES:
                if selector.select(timeout=1.0):
                    data = os.read(process.stdout.fileno(), 1 << 16)
                    if not data:
                        break
                    printed_bytes += len(data)
                    output = (output + data)[-_KEPT_OUTPUT:]
                if time.monotonic() - kept_at >= _KEEPALIVE_S:
                    keepalive()
                    kept_at = time.monotonic()
            else:
                process.kill()
        except BaseException:
            process.kill()
            raise
    text = printable_lines(output)
    sent = re.search(r"^Total bytes sent: (\d{1,15})$", text, re.MULTILINE)
    lines = [line for line in text.splitlines() if line.strip()]
    problem = None if process.returncode == 0 else (lines[-1][:200] if lines else f"it ended with {process.returncode}")
    return RsyncResult(int(sent[1]) if sent else 0, problem)
