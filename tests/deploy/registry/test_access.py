"""Users, passwords, tokens and certificates, against a registry that really asks for them."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from edge.deploy.bundle.reader import open_bundle
from edge.deploy.bundle.unpacking import unpack_bundle
from edge.deploy.registry import credentials
from edge.deploy.registry.artifact import pull, push
from edge.deploy.registry.client import parse_reference
from edge.errors import DeviceError, StoreError, UsageError
from tests.support.bundles import FILES, tar_of
from tests.support.registries import Answer, Lying, Running, Start

# bcrypt of the password, of the lowest cost
HTPASSWD = "robot:$2b$04$0tbuFF.LFKtxuMObo3uJ3u27DlgBCkwUPtnUL4ETpGXRWl7.vJri6\n"
PASSWORD = "open sesame"
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not on this machine")


@pytest.fixture
def guarded(start: Start, tmp_path: Path) -> Running:
    """A registry that asks for a user and a password."""
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    return start(auth={"htpasswd": {"realm": "edge tests", "path": str(tmp_path / "htpasswd")}})


@pytest.fixture
def log_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """``log_in(host, "auths", …)``: what docker's configuration says about a registry."""

    def write(content: Any) -> Path:
        path = tmp_path / "docker" / "config.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
        monkeypatch.setenv("DOCKER_CONFIG", str(path.parent))
        return path

    return write


def basic(user: str = "robot", password: str = PASSWORD) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def round_trip(host: str, tmp_path: Path, **options: Any) -> None:
    path = tmp_path / "a.edge"
    path.write_bytes(tar_of(FILES))
    place = parse_reference(f"oci://{host}/team/tiny:1")
    push(open_bundle(path), place, **options)
    with pull(place, **options) as remote:
        unpack_bundle(remote, tmp_path / "out")


def test_nobody_is_let_in(guarded: Running, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="requires a user and a password") as failed:
        round_trip(guarded.host, tmp_path)
    assert "docker login" in str(failed.value)


def test_from_the_environment(guarded: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_REGISTRY_USER", "robot")
    monkeypatch.setenv("EDGE_REGISTRY_PASSWORD", PASSWORD)
    round_trip(guarded.host, tmp_path)


@pytest.mark.parametrize("key", ["{}", "http://{}", "https://{}/v2/"])
def test_from_docker_login(guarded: Running, tmp_path: Path, log_in: Callable[..., Path], key: str) -> None:
    log_in({"auths": {"other.example": {"auth": basic("x", "y")}, key.format(guarded.host): {"auth": basic()}}})
    round_trip(guarded.host, tmp_path)


def test_from_a_credential_helper(
    guarded: Running, tmp_path: Path, log_in: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    helper = tools / "docker-credential-tests"
    answer = json.dumps({"Username": "robot", "Secret": PASSWORD})
    helper.write_text(f"#!/bin/sh\nread host\n[ \"$host\" = {guarded.host} ] && echo '{answer}'\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    for content in ({"credHelpers": {guarded.host: "tests"}}, {"credsStore": "tests", "auths": {guarded.host: {}}}):
        log_in(content)
        round_trip(guarded.host, tmp_path)
        shutil.rmtree(tmp_path / "out")
    log_in({"credHelpers": {guarded.host: "absent"}})
    with pytest.raises(DeviceError, match="docker-credential-absent cannot be started"):
        round_trip(guarded.host, tmp_path)
    log_in({"credHelpers": {guarded.host: "../../bin/sh"}})
    with pytest.raises(DeviceError, match="not the name of a credential helper"):
        round_trip(guarded.host, tmp_path)


def test_a_wrong_password_is_tried_once_and_shown_nowhere(
    guarded: Running, tmp_path: Path, log_in: Callable[..., Path], capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """The library's own retries would go on for two minutes."""
    caplog.set_level("DEBUG")
    with contextlib.closing(Lying(guarded.host)) as proxy:
        log_in({"auths": {proxy.host: {"auth": basic(password="swordfish")}}})
        with pytest.raises(DeviceError, match=r"refuses access \(401\)") as failed:
            round_trip(proxy.host, tmp_path)
    assert len(proxy.seen) <= 3
    said = "".join([str(failed.value), caplog.text, *capfd.readouterr()])
    assert "swordfish" not in said
    assert basic(password="swordfish") not in said


def test_a_registry_that_repeats_the_password(guarded: Running, tmp_path: Path, log_in: Callable[..., Path]) -> None:
    with contextlib.closing(Lying(guarded.host)) as proxy:
        log_in({"auths": {proxy.host: {"auth": basic()}}})
        said = json.dumps({"errors": [{"message": f"no room for {PASSWORD} ({basic()})"}]}).encode()
        proxy.lie = lambda method, _path, _answer: Answer(507, {}, said) if method == "POST" else None
        with pytest.raises(DeviceError, match=r"answered 507, .*no room for \*\*\* \(\*\*\*\)"):
            round_trip(proxy.host, tmp_path)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"{", "not JSON"),
        (b'{"auths": {"HOST": {"auth": "?"}}}', "not base64"),
        (b'{"auths": {"HOST": {"auth": "cm9ib3Q="}}}', "no password"),
    ],
)
def test_a_broken_configuration(
    guarded: Running, tmp_path: Path, log_in: Callable[..., Path], content: bytes, match: str
) -> None:
    log_in({}).write_bytes(content.replace(b"HOST", guarded.host.encode()))
    with pytest.raises(StoreError, match=match):
        round_trip(guarded.host, tmp_path)


@pytest.mark.parametrize("content", [[], 7, {"auths": []}, {"auths": {"HOST": 3}}, {"auths": {"HOST": {"auth": 1}}}])
def test_a_configuration_that_says_nothing(
    guarded: Running, tmp_path: Path, log_in: Callable[..., Path], content: Any
) -> None:
    log_in(json.loads(json.dumps(content).replace("HOST", guarded.host)))
    with pytest.raises(DeviceError, match="requires a user"):
        round_trip(guarded.host, tmp_path)


def test_podman_keeps_them_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "containers" / "auth.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"auths": {"h": {"auth": basic()}}}))
    found = credentials.find("h", {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)})
    assert found is not None
    assert (found.user, found.password.reveal()) == ("robot", PASSWORD)
    assert PASSWORD not in repr(found)
    assert credentials.find("h", {"HOME": str(tmp_path)}) is None


def test_the_password_goes_to_nobody_else(lying: Lying, tmp_path: Path, log_in: Callable[..., Path]) -> None:
    """An open registry that does not ask is not told."""
    log_in({"auths": {lying.host: {"auth": basic()}}})
    round_trip(lying.host, tmp_path)
    assert lying.seen
    assert not [seen for seen in lying.seen if "authorization" in {name.lower() for name in seen[2]}]


# tokens, as most hosted registries use them


class TokenServer:
    """Gives out tokens [distribution, "Token Authentication Implementation"], signed with a key made for the test."""

    def __init__(self, folder: Path) -> None:
        self._key = folder / "token.key"
        self.certificate = folder / "token.crt"
        certificate(self._key, self.certificate, "/CN=tokens")
        self.asked: list[tuple[str, str | None]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                given = self.headers.get("Authorization")
                outer.asked.append((query.get("scope", [""])[0], given))
                allowed = given == f"Basic {basic()}"
                body = json.dumps({"token": outer.token(query)}).encode() if allowed else b"{}"
                self.send_response(200 if allowed else 401)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/token"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def token(self, query: dict[str, list[str]]) -> str:
        kind, name, actions = query["scope"][0].split(":")
        now = int(time.time())
        pem = "".join(self.certificate.read_text().split("-----")[2].split())
        head = {"typ": "JWT", "alg": "RS256", "x5c": [pem]}
        claims = {
            "iss": "tests", "sub": "robot", "aud": query["service"][0], "exp": now + 300, "nbf": now - 60, "iat": now,
            "jti": "1", "access": [{"type": kind, "name": name, "actions": actions.split(",")}],
        }  # fmt: skip
        signed = b".".join(_url64(json.dumps(part).encode()) for part in (head, claims))
        done = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", self._key], input=signed, capture_output=True, check=True
        )
        return b".".join([signed, _url64(done.stdout)]).decode()


def _url64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def certificate(key: Path, path: Path, subject: str, *options: str) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", subject, "-keyout", key,
         "-out", path, *options],
        capture_output=True, check=True,
    )  # fmt: skip


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[TokenServer]:
    server = TokenServer(tmp_path)
    yield server
    server.close()


@pytest.fixture
def with_tokens(start: Start, tokens: TokenServer) -> Running:
    """A registry that asks for a token of the server."""
    settings = {"service": "tests", "issuer": "tests", "rootcertbundle": str(tokens.certificate), "realm": tokens.url}
    return start(auth={"token": settings})


@needs_openssl
def test_tokens(with_tokens: Running, tokens: TokenServer, tmp_path: Path, log_in: Callable[..., Path]) -> None:
    """One to read and one to write: the first does not do for the second."""
    log_in({"auths": {with_tokens.host: {"auth": basic()}}})
    round_trip(with_tokens.host, tmp_path, auth_hosts=[urlsplit(tokens.url).netloc])
    scopes = {",".join(sorted(scope.rpartition(":")[2].split(","))) for scope, _ in tokens.asked}
    assert scopes == {"pull", "pull,push"}


@needs_openssl
def test_tokens_for_nobody(with_tokens: Running, tmp_path: Path, log_in: Callable[..., Path]) -> None:
    for content in ({}, {"auths": {with_tokens.host: {"auth": basic(password="wrong")}}}):
        log_in(content)
        with pytest.raises(DeviceError, match="refuses access"):
            round_trip(with_tokens.host, tmp_path)


def test_a_token_server_in_plain_http_elsewhere(lying: Lying, tmp_path: Path, log_in: Callable[..., Path]) -> None:
    log_in({"auths": {lying.host: {"auth": basic()}}})
    challenge = {"Www-Authenticate": 'Bearer realm="http://tokens.invalid/token",service="s"'}
    lying.lie = lambda _m, path, answer: answer._replace(status=401, headers=challenge) if path != "/v2/" else None
    with pytest.raises(DeviceError, match="over plain HTTP"):
        round_trip(lying.host, tmp_path)


# Where credentials do not go.


@pytest.fixture
def elsewhere(registry: Running) -> Iterator[Lying]:
    """Another host, which notes what it is sent."""
    server = Lying(registry.host)
    yield server
    server.close()


def authorized(server: Lying) -> list[str]:
    return [path for _, path, headers in server.seen if "authorization" in {name.lower() for name in headers}]


def ask_basic(method: str, path: str, answer: Answer) -> Answer | None:
    """The greeting of a registry that asks for a password."""
    return answer._replace(status=401, headers={"Www-Authenticate": 'Basic realm="x"'}) if path == "/v2/" else None


def test_not_to_another_host_that_takes_the_upload(
    lying: Lying, elsewhere: Lying, tmp_path: Path, log_in: Callable[..., Path]
) -> None:
    log_in({"auths": {lying.host: {"auth": basic()}}})

    def lie(method: str, path: str, answer: Answer) -> Answer | None:
        if method == "POST":
            return answer._replace(headers={**answer.headers, "Location": f"http://{elsewhere.host}/upload"})
        return ask_basic(method, path, answer)

    lying.lie = lie
    with pytest.raises(DeviceError) as failed:
        round_trip(lying.host, tmp_path)
    assert elsewhere.seen
    assert authorized(lying)
    assert authorized(elsewhere) == []
    assert PASSWORD not in str(failed.value)


def test_not_to_a_token_server_that_nobody_allowed(
    lying: Lying, elsewhere: Lying, tmp_path: Path, log_in: Callable[..., Path]
) -> None:
    log_in({"auths": {lying.host: {"auth": basic()}}})
    challenge = {"Www-Authenticate": f'Bearer realm="http://{elsewhere.host}/token",service="s"'}
    lying.lie = lambda _m, path, answer: answer._replace(status=401, headers=challenge) if path != "/v2/" else None
    with pytest.raises(DeviceError, match="refuses access") as failed:
        round_trip(lying.host, tmp_path)
    assert f"{elsewhere.host} is another host, so it got no credentials" in str(failed.value.hint)
    assert elsewhere.seen
    assert authorized(elsewhere) == []
    with pytest.raises(DeviceError):
        round_trip(lying.host, tmp_path, auth_hosts=[elsewhere.host])
    assert authorized(elsewhere)


def test_not_through_a_proxy_in_the_clear(
    elsewhere: Lying, tmp_path: Path, log_in: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://{elsewhere.host}")
    monkeypatch.setenv("http_proxy", f"http://{elsewhere.host}")
    elsewhere.lie = lambda _m, _p, answer: answer._replace(status=401, headers={"Www-Authenticate": "Basic realm=x"})
    log_in({"auths": {"registry.invalid": {"auth": basic()}}})
    with pytest.raises(DeviceError, match="unencrypted to an HTTP proxy"):
        round_trip("registry.invalid", tmp_path, plain_http=True)
    assert elsewhere.seen
    assert authorized(elsewhere) == []


def test_a_registry_on_this_machine_is_reached_without_a_proxy(
    registry: Running, elsewhere: Lying, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{elsewhere.host}")
    round_trip(registry.host, tmp_path)
    assert elsewhere.seen == []


@pytest.mark.parametrize("challenge", ["Negotiate", "Bearer", "Bearer realm=", 'Bearer realm=""', "Digest x", ""])
@pytest.mark.parametrize("where", ["/v2/", "other"])
def test_ways_to_log_in_that_edge_does_not_know(
    lying: Lying, tmp_path: Path, log_in: Callable[..., Path], challenge: str, where: str
) -> None:
    log_in({"auths": {lying.host: {"auth": basic()}}})
    headers = {"Www-Authenticate": challenge} if challenge else {}
    lying.lie = lambda _m, path, answer: (
        answer._replace(status=401, headers=headers) if (path == "/v2/") == (where == "/v2/") else None
    )
    with pytest.raises(DeviceError, match=r"the registry requires '.*'; edge supports Basic, and Bearer"):
        round_trip(lying.host, tmp_path)
    assert authorized(lying) == []


@pytest.mark.parametrize("body", [b"[" * 200_000, b'{"errors":' * 50_000, b"{" + b'"a":1,' * 900_000])
def test_errors_that_nobody_can_read(lying: Lying, tmp_path: Path, body: bytes) -> None:
    lying.lie = lambda _m, path, answer: answer._replace(status=500, body=body) if path != "/v2/" else None
    with pytest.raises(DeviceError, match=r"answered 500|without end") as failed:
        round_trip(lying.host, tmp_path)
    assert len(str(failed.value)) < 500


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("kind", ["PUT /blobs", "PUT /manifests", "POST /blobs"])
def test_a_registry_that_is_busy_is_asked_again(lying: Lying, tmp_path: Path, status: int, kind: str) -> None:
    method, part = kind.split()
    busy = [True]

    def lie(asked: str, path: str, answer: Answer) -> Answer | None:
        if asked == method and part in path and busy:
            busy.pop()
            return answer._replace(status=status, headers={"Retry-After": "0"}, body=b"")
        return None

    lying.lie = lie
    round_trip(lying.host, tmp_path)
    assert not busy


# TLS


@pytest.fixture
def with_tls(start: Start, tmp_path: Path) -> tuple[Running, Path]:
    """A registry with a certificate of its own, and that certificate."""
    key, path = tmp_path / "tls.key", tmp_path / "tls.crt"
    certificate(key, path, "/CN=registry", "-addext", "subjectAltName=IP:127.0.0.1")
    return start(http={"tls": {"certificate": str(path), "key": str(key)}}), path


@needs_openssl
def test_a_certificate_of_its_own(with_tls: tuple[Running, Path], tmp_path: Path) -> None:
    registry, path = with_tls
    with pytest.raises(DeviceError, match="certificate is not trusted") as failed:
        round_trip(registry.host, tmp_path)
    assert "--ca-file" in str(failed.value)
    round_trip(registry.host, tmp_path, ca_file=str(path))


@needs_openssl
def test_the_environment_may_name_certificates(
    with_tls: tuple[Running, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, path = with_tls
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(path))
    round_trip(registry.host, tmp_path)


@needs_openssl
def test_a_certificate_for_another_name(with_tls: tuple[Running, Path], tmp_path: Path) -> None:
    registry, path = with_tls
    with pytest.raises(DeviceError, match="certificate is not trusted"):
        round_trip(registry.host.replace("127.0.0.1", "localhost"), tmp_path, ca_file=str(path))


@needs_openssl
def test_certificates_that_are_none(with_tls: tuple[Running, Path], tmp_path: Path) -> None:
    registry, _ = with_tls
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UsageError, match="certificate file does not exist"):
        round_trip(registry.host, tmp_path, ca_file=str(tmp_path / "absent"))
    with pytest.raises((DeviceError, UsageError)):
        round_trip(registry.host, tmp_path, ca_file=str(tmp_path / "text"))


@needs_openssl
def test_plain_http_to_a_registry_with_tls(with_tls: tuple[Running, Path], tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="answered 400"):
        round_trip(with_tls[0].host, tmp_path, plain_http=True)


def test_tls_to_nobody_who_speaks_it(registry: Running, tmp_path: Path) -> None:
    """By another name of this machine, plain http is only for those who say so."""
    host = registry.host.replace("127.0.0.1", "0.0.0.0")
    with contextlib.suppress(OSError), pytest.raises(DeviceError, match="not TLS") as failed:
        round_trip(host, tmp_path)
    assert "--plain-http" in str(failed.value)
    round_trip(host, tmp_path, plain_http=True)
