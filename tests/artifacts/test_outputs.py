"""Where outputs go: a regular file is replaced, a link's target is replaced, everything else is written through."""

from __future__ import annotations

import gc
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edge.artifacts import store
from edge.errors import StoreError

CODE = """
import sys
from pathlib import Path
from edge.artifacts import store
store.write_bytes(Path(sys.argv[1]), b"first ")
store.write_bytes(Path(sys.argv[1]), b"second")
"""


def test_a_regular_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    before = path.stat().st_ino
    store.write_bytes(path, b"new")
    assert (path.read_bytes(), path.stat().st_ino == before) == (b"new", False)


def test_the_target_of_a_link_is_replaced_and_not_the_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link, second = tmp_path / "there" / "target", tmp_path / "link", tmp_path / "second"
    target.write_bytes(b"old")
    link.symlink_to("there/target")
    second.symlink_to(link)
    store.write_bytes(second, b"new")
    assert (target.read_bytes(), link.is_symlink(), second.is_symlink()) == (b"new", True, True)
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["target"]
    (tmp_path / "dangling").symlink_to("there/later")
    store.write_bytes(tmp_path / "dangling", b"made")
    assert (tmp_path / "there" / "later").read_bytes() == b"made"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(StoreError):
        store.write_bytes(tmp_path / "loop", b"x")


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/proc/self/fd/1", "/dev/fd/1"])
def test_standard_output_as_a_pipe_and_as_a_file(name: str, tmp_path: Path) -> None:
    piped = subprocess.run([sys.executable, "-c", CODE, name], capture_output=True, check=True, cwd=tmp_path)
    assert (piped.stdout, piped.stderr) == (b"first second", b"")
    out = tmp_path / "out"
    with out.open("ab") as file:
        file.write(b"before ")
        file.flush()
        inode = out.stat().st_ino
        subprocess.run([sys.executable, "-c", CODE, name], stdout=file, check=True, cwd=tmp_path)
    # The file that the shell has opened is the one that was written.
    assert (out.read_bytes(), out.stat().st_ino) == (b"before first second", inode)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_standard_output_as_a_socket(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        subprocess.run([sys.executable, "-c", CODE, "/dev/stdout"], stdout=theirs.fileno(), check=True, cwd=tmp_path)
        assert ours.recv(100) == b"first second"


def test_a_link_to_a_device_and_the_device_stay(tmp_path: Path) -> None:
    link = tmp_path / "null"
    link.symlink_to("/dev/null")
    for path in (Path("/dev/null"), link):
        store.write_bytes(path, b"gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)  # noqa: PTH116
    assert link.is_symlink()
    with pytest.raises(StoreError, match="No space left"):
        store.write_bytes(Path("/dev/full"), b"x" * 100_000)


def test_a_fifo_is_written_through(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(fifo.read_bytes()))
    reader.start()
    store.write_bytes(fifo, b"through")
    reader.join(30)
    assert read == [b"through"]
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def test_a_socket_is_written_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("s")
        listening.listen(1)
        got: list[bytes] = []

        def take() -> None:
            connection, _ = listening.accept()
            with connection:
                got.append(connection.makefile("rb").read())

        reader = threading.Thread(target=take)
        reader.start()
        store.write_bytes(Path("s"), b"through")
        reader.join(30)
    assert got == [b"through"]
    assert stat.S_ISSOCK(Path("s").stat().st_mode)


def test_lines_behind_a_link(tmp_path: Path) -> None:
    """A record is a link's target: it grows there, is moved on there, and the link stays."""
    (tmp_path / "there").mkdir()
    link = tmp_path / "run.jsonl"
    link.symlink_to("there/real.jsonl")
    for number in range(2):
        lines = store.Lines(link, head=lambda: b"head\n", files=3)
        lines.append(b"line %d\n" % number)
        lines.close()
    assert [path.name for path in tmp_path.iterdir() if path.name != "there"] == ["run.jsonl"]
    assert link.is_symlink()
    assert link.read_bytes() == b"head\nline 1\n"
    assert (tmp_path / "there" / "real.1.jsonl").read_bytes() == b"head\nline 0\n"


def test_lines_go_through_a_fifo_without_rotation(tmp_path: Path) -> None:
    fifo = tmp_path / "run.jsonl"
    os.mkfifo(fifo)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(fifo.read_bytes()))
    reader.start()
    lines = store.Lines(fifo, head=lambda: b"head\n", limit=10, files=3)
    for number in range(5):
        lines.append(b"line %d\n" % number)
    lines.close()
    reader.join(30)
    assert read == [b"head\n" + b"".join(b"line %d\n" % number for number in range(5))]
    assert [path.name for path in tmp_path.iterdir()] == ["run.jsonl"]


def test_lines_into_a_full_device_leave_nothing_for_the_garbage_collector() -> None:
    lines = store.Lines(Path("/dev/full"), head=lambda: b"head\n")
    for _ in range(2):
        with pytest.raises(StoreError, match="No space left on device"):
            lines.append(b"line\n")
    del lines
    gc.collect()
