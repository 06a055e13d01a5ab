"""A real registry (Debian's docker-registry) on a loopback port, and proxies in front of it that count or lie."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.registries import Counting, Lying, Running, Start, reserved, wait_for

PROGRAM = shutil.which("docker-registry")


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody's own logins, proxies or certificates reach these tests."""
    pytest.importorskip("oras", reason="oras is not installed (pip install 'jetson-edge[registry]')")
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    for name in (
        "DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "ORAS_USER", "ORAS_PASS", "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)


@contextlib.contextmanager
def registries(folder: Path) -> Iterator[Start]:
    """A function that starts a registry with these parts of its configuration; all end with the context."""
    if PROGRAM is None:
        pytest.skip("docker-registry is not on this machine")
    running: list[subprocess.Popen[bytes]] = []
    addresses = contextlib.ExitStack()

    def run(
        *, name: str = "registry", http: dict[str, Any] | None = None, auth: dict[str, Any] | None = None
    ) -> Running:
        storage, host = folder / name, addresses.enter_context(reserved())
        config: dict[str, Any] = {
            "version": 0.1, "log": {"level": "error", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(storage)}}, "http": {"addr": host, **(http or {})},
        }  # fmt: skip
        if auth:
            config["auth"] = auth
        path = folder / f"{name}.yml"
        path.write_text(yaml.safe_dump(config))
        with (folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen([str(PROGRAM), "serve", str(path)], stdout=log, stderr=log)
        running.append(process)
        wait_for(host, process, log=folder / f"{name}.log")
        return Running(host, storage)

    try:
        yield run
    finally:
        for process in running:
            process.kill()
            process.wait()
        addresses.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """``start(http={…}, auth={…})`` starts a registry with these parts of its configuration."""
    with registries(tmp_path) as run:
        yield run


@pytest.fixture(scope="session")
def open_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with registries(tmp_path_factory.mktemp("registry")) as run:
        yield run()


@pytest.fixture
def registry(open_registry: Running) -> Running:
    """An open registry with nothing in it."""
    shutil.rmtree(open_registry.storage, ignore_errors=True)
    return open_registry


@pytest.fixture
def counting(registry: Running) -> Iterator[Counting]:
    """The registry behind a proxy that counts."""
    proxy = Counting(registry.host)
    yield proxy
    proxy.close()


@pytest.fixture
def lying(registry: Running) -> Iterator[Lying]:
    """The registry behind a proxy that lies when told to."""
    proxy = Lying(registry.host)
    yield proxy
    proxy.close()
