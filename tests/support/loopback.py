"""Real devices for tests and benchmarks: an OpenSSH server of one's own on loopback, and a line to it that can be cut.

Nothing of the machine's own ssh is used or touched: host key, user key, known hosts, configuration and port are new.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def why_not() -> str | None:
    """Why there can be no server here; None when there can."""
    for name, found in (("sshd", SSHD), ("ssh", shutil.which("ssh")), ("ssh-keygen", shutil.which("ssh-keygen"))):
        if found is None:
            return f"{name} is not installed (apt install openssh-server)"
    return None


def reserve() -> tuple[int, socket.socket]:
    """A port that nobody else is given until the socket is closed; a server that reuses addresses may listen on it."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    return int(holder.getsockname()[1]), holder


def make_key(path: Path) -> Path:
    if not path.exists():
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)], check=True, timeout=60
        )
    return path


class Server:
    """One sshd. ``config`` is a client configuration in which it is called ``dev``."""

    def __init__(self, folder: Path, *, keys: Path | None = None, **options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port, self._reserved = reserve()
        self.options = options
        keys = keys or folder
        keys.mkdir(parents=True, exist_ok=True)
        self.host_key = make_key(keys / "host_key")
        self.user_key = make_key(keys / "user_key")
        self.known_hosts = folder / "known_hosts"
        self.config = self.client_config("dev", self.port)
        self._process: subprocess.Popen[bytes] | None = None

    def client_config(self, name: str, port: int, *, user_key: Path | None = None) -> Path:
        """A configuration file for ssh in which this server, or a line to it, is ``name``."""
        public = self.host_key.with_suffix(".pub").read_text().split()[:2]
        with self.known_hosts.open("a") as file:
            file.write(f"[127.0.0.1]:{port} {' '.join(public)}\n")
        path = self.folder / f"{name}.config"
        path.write_text(
            f"Host {name}\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n"
            f'  IdentityFile "{user_key or self.user_key}"\n  IdentitiesOnly yes\n  IdentityAgent none\n'
            f'  UserKnownHostsFile "{self.known_hosts}"\n  GlobalKnownHostsFile /dev/null\n'
            "  StrictHostKeyChecking yes\n"
        )
        return path

    def start(self) -> Server:
        if os.geteuid() == 0:
            # Where sshd keeps its empty root; it refuses to start as root without it.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        settings = {
            "Port": str(self.port),
            "ListenAddress": "127.0.0.1",
            "HostKey": f'"{self.host_key}"',
            "AuthorizedKeysFile": f'"{self.user_key.with_suffix(".pub")}"',
            "PidFile": "none",
            "UsePAM": "no",
            "StrictModes": "no",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "PermitRootLogin": "prohibit-password",
            "MaxStartups": "100",
            "LogLevel": "ERROR",
        } | self.options
        config = self.folder / "sshd_config"
        config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        assert SSHD is not None
        log = (self.folder / "sshd.log").open("ab")
        self._process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        log.close()
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return self
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"sshd does not start: {(self.folder / 'sshd.log').read_text()[-500:]}")
            time.sleep(0.02)

    def sessions(self) -> list[int]:
        """Processes of sshd that serve a connection now."""
        assert self._process is not None
        found, todo = [], [self._process.pid]
        while todo:
            children = subprocess.run(
                ["ps", "-o", "pid=,comm=", "--ppid", str(todo.pop())], check=False, capture_output=True, text=True
            )
            for line in children.stdout.splitlines():
                number, name = line.split(None, 1)
                if name.startswith("sshd"):
                    found.append(int(number))
                    todo.append(int(number))
        return found

    def kill_sessions(self) -> int:
        """End every connection from the device's side, without a word."""
        gone = 0
        for number in self.sessions():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, 9)
                gone += 1
        return gone

    def stop(self) -> None:
        if self._process is not None:
            self.kill_sessions()
            self._process.kill()
            self._process.wait()
            self._process = None
        self._reserved.close()

    def __enter__(self) -> Server:  # noqa: PYI034
        return self.start()

    def __exit__(self, *_exc: object) -> None:
        self.stop()


class Wire:
    """A line to a port on loopback that counts bytes; one connection after the other, or several.

    It can be cut, also by itself when ``cut_after`` bytes went to the device; after ``silent_after`` it brings no more
    there, sets ``is_silent``, and stays open.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.to_device = 0
        self.from_device = 0
        self.cut_after: int | None = None
        self.silent_after: int | None = None
        self.is_silent = threading.Event()
        self._is_cut = threading.Event()
        self._ends: list[socket.socket] = []
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            self._ends += [near, far]
            threading.Thread(target=self._pump, args=(near, far, "to_device"), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, "from_device"), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, count: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                setattr(self, count, getattr(self, count) + len(data))
                if self.cut_after is not None and self.to_device >= self.cut_after:
                    self.cut()
                    return
                if self.silent_after is not None and self.to_device >= self.silent_after:
                    self.is_silent.set()
                    self._is_cut.wait()
                    return
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Cut every connection that there is."""
        self._is_cut.set()
        ends, self._ends = self._ends, []
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError):
                end.close()

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()


@contextlib.contextmanager
def wire(port: int) -> Iterator[Wire]:
    line = Wire(port)
    try:
        yield line
    finally:
        line.close()
