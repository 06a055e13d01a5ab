"""Devices of the tests: folders, and an sshd of one's own on loopback."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from edge.deploy.bundle.reader import Bundle, open_bundle
from edge.deploy.transport.address import DeviceAddress
from tests.support import loopback
from tests.support.devices import tar_of

FILES = {"profile.yaml": b"name: tiny\n", "model/tiny.onnx": b"weights " * 100, "labels/empty.txt": b""}


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[..., Bundle]:
    """``bundle(name="a", files={…}, **fields)``: a bundle of these contents, besides those that all have."""

    def make(name: str = "a", files: Mapping[str, bytes] | None = None, **fields: Any) -> Bundle:
        path = tmp_path / f"{name}.edge"
        path.write_bytes(tar_of({**FILES, **(files or {})}, **{"name": name, **fields}))
        return open_bundle(path)

    return make


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys for every server of the run: making them takes longer than starting one."""
    folder = tmp_path_factory.mktemp("keys")
    if loopback.why_not() is None:
        loopback.make_key(folder / "host_key")
        loopback.make_key(folder / "user_key")
    return folder


@pytest.fixture
def serve(tmp_path: Path, keys: Path) -> Iterator[Callable[..., loopback.Server]]:
    """``serve(**options_of_sshd)``: a running server; skips where sshd is not installed."""
    why = loopback.why_not()
    if why is not None:
        pytest.skip(why)
    servers: list[loopback.Server] = []

    def start(**options: str) -> loopback.Server:
        server = loopback.Server(tmp_path / f"server{len(servers)}", keys=keys, **options)
        servers.append(server)
        return server.start()

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def remote(tmp_path: Path) -> Callable[..., DeviceAddress]:
    """``remote(server, path="device")``: the place of a folder in ``tmp_path`` behind a server."""

    def make(server: loopback.Server, path: str = "device", **fields: Any) -> DeviceAddress:
        return DeviceAddress(
            **{"name": "dev", "host": "dev", "path": str(tmp_path / path), "ssh_config": server.config, **fields}
        )

    return make


@pytest.fixture
def folder(tmp_path: Path) -> DeviceAddress:
    """A device that is a folder."""
    return DeviceAddress(name="device", folder=tmp_path / "device")
