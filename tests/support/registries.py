"""A real registry's address, and proxies in front of one that count or lie."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import http.server
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Running(NamedTuple):
    """A registry: its address and the folder of its storage."""

    host: str
    storage: Path

    def blob(self, digest: str) -> Path:
        """The file in which it keeps a blob."""
        value = digest.removeprefix("sha256:")
        return self.storage / "docker/registry/v2/blobs/sha256" / value[:2] / value / "data"


Start = Callable[..., Running]


@contextlib.contextmanager
def reserved() -> Iterator[str]:
    """An address that nobody else is given meanwhile; a server that reuses addresses may listen on it."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{holder.getsockname()[1]}"


def wait_for(host: str, process: subprocess.Popen[bytes], *, log: Path) -> None:
    """Until somebody listens at ``host``."""
    name, _, port = host.partition(":")
    until = time.monotonic() + 30
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError), socket.create_connection((name, int(port)), timeout=1):
            return
        time.sleep(0.02)
    pytest.fail(f"the registry did not start: {log.read_text()}")


class Counting:
    """A TCP proxy that counts the bytes that go to the registry, and those that come back."""

    def __init__(self, host: str) -> None:
        name, _, port = host.partition(":")
        self._target = (name, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.up = self.down = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._serve, daemon=True).start()

    def reset(self) -> None:
        """Count from zero."""
        self.up = self.down = 0

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:
                return
            there = socket.create_connection(self._target)
            for source, sink, name in ((here, there, "up"), (there, here, "down")):
                threading.Thread(target=self._move, args=(source, sink, name), daemon=True).start()

    def _move(self, source: socket.socket, sink: socket.socket, name: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                with self._lock:
                    setattr(self, name, getattr(self, name) + len(data))
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class Answer(NamedTuple):
    """What a registry says to one request."""

    status: int
    headers: dict[str, str]
    body: bytes


Lie = Callable[[str, str, Answer], "Answer | None"]


class Lying:
    """An HTTP proxy that may change what the registry says: ``lie(method, path, answer)`` gives another, or None."""

    def __init__(self, target: str) -> None:
        self.lie: Lie = lambda _method, _path, _answer: None
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _relay(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.seen.append((self.command, self.path, dict(self.headers.items())))
                upstream = http.client.HTTPConnection(target, timeout=30)
                headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
                upstream.request(self.command, self.path, body=body or None, headers=headers)
                got = upstream.getresponse()
                answer = Answer(got.status, dict(got.getheaders()), got.read())
                upstream.close()
                answer = outer.lie(self.command, self.path, answer) or answer
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    if name.lower() not in {"content-length", "transfer-encoding", "connection", "date"}:
                        self.send_header(name, value)
                length = answer.headers.get("Content-Length") if self.command == "HEAD" else str(len(answer.body))
                self.send_header("Content-Length", length or "0")
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else answer.body)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = _relay

            def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
                pass

            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):  # a client that has heard enough
                    super().handle()

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        """Stop it."""
        self._server.shutdown()
        self._server.server_close()


def with_manifest(answer: Answer, change: Callable[[dict[str, Any]], Any]) -> Answer:
    """The answer with another manifest in it, and the digest of that one."""
    content = json.loads(answer.body)
    change(content)
    body = json.dumps(content).encode()
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    return Answer(answer.status, {**answer.headers, "Docker-Content-Digest": digest}, body)
