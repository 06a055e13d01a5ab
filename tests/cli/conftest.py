"""The command line as its user has it: whole commands, in this process or in one of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from edge.cli import main
from edge.config import profiles
from tests.support import calibrated
from tests.support.network_camera import Server

# Python code that runs before a command, in the process that becomes it: what it sets stays after exec.
# Permissions do not hold for root until CAP_DAC_OVERRIDE (1) and CAP_DAC_READ_SEARCH (2) are dropped
# (PR_CAPBSET_DROP is 24).
_READ_ONLY = "import ctypes; [ctypes.CDLL(None).prctl(24, number, 0, 0, 0) for number in (1, 2)]"
_FULL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (256, 256))"
_NO_HANGUP = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
# A limit on the size of files would truncate the compiled modules, too, which other processes read.
_EXEC = "import os, sys; os.environ['PYTHONDONTWRITEBYTECODE'] = '1'; os.execv(sys.argv[1], sys.argv[1:])"


class Ended(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal's settings do not reach the tests, and tables are wide enough not to fold."""
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "TERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def edge(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """``edge("run", "--json")``: the whole command with its exit code and streams, in this process."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["edge", *(str(item) for item in arguments)])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, out, err)

    return run


@pytest.fixture
def edge_process() -> Callable[..., Ended]:
    """The same in a process of its own, under a ``limit`` where there is one."""

    def run(*arguments: object, limit: str = "", env: dict[str, str] | None = None) -> Ended:
        done = subprocess.run(
            _line(arguments, limit), capture_output=True, check=False, text=True, timeout=120,
            env={**os.environ, **(env or {})},
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a command and go on; whatever still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: object, limit: str = "") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            _line(arguments, limit),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def place(
    tmp_path: Path, tiny_profile: Callable[..., Path], pictures: Callable[..., list[Path]]
) -> Callable[..., Path]:
    """``place(n=8, **overrides)``: a working directory with ``profiles/tiny.yaml`` and ``pictures/`` with labels.csv.

    Caches and engines of commands without ``--cache-dir`` and ``--engine-dir`` land in it.
    """

    def make(n: int = 8, **overrides: object) -> Path:
        tiny_profile("profiles", **overrides)
        pictures("pictures", n, labels=True)
        return tmp_path

    return make


@pytest.fixture
def built(place: Callable[..., Path]) -> Callable[..., Path]:
    """The same after ``edge calibrate`` and ``edge build`` in both precisions."""

    def make(n: int = 8, **overrides: object) -> Path:
        folder = place(n, **overrides)
        chosen = profiles.read_profile(folder / "profiles" / "tiny.yaml")
        calibrated.built(chosen, folder / "pictures", cache=folder / "calib_cache", engines=folder / "engines")
        return folder

    return make


@pytest.fixture
def read_only(tmp_path: Path) -> str:
    """A limit under which permissions hold, for root as well. Skips where that cannot be had."""
    probe = tmp_path / "read-only-probe"
    probe.mkdir(mode=0o555)
    line = [sys.executable, "-c", f"{_READ_ONLY}; {_EXEC}", "/bin/sh", "-c", f"echo > '{probe}/file'"]
    if subprocess.run(line, capture_output=True, check=False).returncode == 0:
        pytest.skip("permissions do not hold for this user")
    return _READ_ONLY


@pytest.fixture
def full_disk() -> str:
    """A limit under which no file gets longer than 256 bytes: the disk fills up while a file is written."""
    return _FULL_DISK


@pytest.fixture
def no_hangup() -> str:
    """A limit under which the command is started with SIGHUP ignored, as nohup does."""
    return _NO_HANGUP


class Gate:
    """A picture that a command waits for, each time it reads it, until the test lets it through."""

    def __init__(self, link: Path) -> None:
        self._data = link.read_bytes()
        self._link = link
        self.name = link.name
        self._count = 0
        self._renew()

    def wait(self, process: subprocess.Popen[str]) -> int:
        """Wait until ``process`` is there; the handle to let it through by."""
        until = time.monotonic() + 120
        while time.monotonic() < until:
            try:
                writer = os.open(self._pipe, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                # Nobody reads yet.
                assert process.poll() is None, process.communicate()
                time.sleep(0.02)
            else:
                # It is on its way from open to read. A signal between Python's last look for signals and the system
                # call would be noticed only when read returns, which is never.
                time.sleep(0.2)
                return writer
        pytest.fail("nobody came to read the image")

    def let_through(self, writer: int) -> None:
        """Give the picture to whoever waits for it; whoever comes next waits again."""
        self._renew()
        os.set_blocking(writer, True)
        with os.fdopen(writer, "wb") as file:
            file.write(self._data)

    def open(self) -> None:
        """Make it an ordinary picture again."""
        self._link.unlink()
        self._link.write_bytes(self._data)

    def _renew(self) -> None:
        # A pipe of its own for each reader: a second one on the same pipe could not be told from the first.
        self._count += 1
        self._pipe = self._link.with_name(f".{self._link.name}.{self._count}")
        os.mkfifo(self._pipe)
        link = self._link.with_name(f".{self._link.name}.link")
        link.symlink_to(self._pipe.name)
        link.replace(self._link)


@pytest.fixture
def server() -> Iterator[Server]:
    playing = Server()
    yield playing
    playing.close()


@pytest.fixture
def gate() -> type[Gate]:
    """``gate(path)`` turns a picture into one that a command waits for."""
    return Gate


def _line(arguments: tuple[object, ...], limit: str) -> list[str]:
    command = [sys.executable, "-m", "edge", *(str(item) for item in arguments)]
    return [sys.executable, "-c", f"{limit}; {_EXEC}", *command] if limit else command
