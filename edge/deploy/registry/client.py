"""One connection to one repository of a registry: the adapter of `oras` and its HTTP client.

`oras` implements the Basic and token authentication of registries, and single requests. Its retries are disabled: they
wait for two minutes on a wrong password. Its reader of docker's configuration is not used: it ignores DOCKER_CONFIG and
podman, and sends the password of localhost to 127.0.0.1. Reads are retried by urllib3, writes by this module.

:class:`_Access` alone decides about credentials, for every request, redirect and token server: they go to the registry
and to hosts named by the user, never unencrypted to another machine or a proxy. Registries on this machine are reached
without a proxy.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import inspect
import ipaddress
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from edge.artifacts import Secret, masked_url
from edge.deploy.registry import credentials
from edge.errors import ArtifactError, DeviceError, EdgeError, UsageError, require

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
MAX_MANIFEST_BYTES = 4 << 20  # maximum of registries [OCI distribution specification 1.1, "Pushing manifests"]
_TIMEOUT_S = (10.0, 60.0)  # to connect, and between two pieces
_PIECE = 1 << 20
_MAX_ANSWER_BYTES = 1 << 20  # of answers stored in memory: errors, tokens
_PAUSES_S = (1.0, 2.0, 4.0, 8.0)
_LONGEST_PAUSE_S = 30.0
_LOGIN = "use docker login, or set EDGE_REGISTRY_USER and EDGE_REGISTRY_PASSWORD"

SCHEME = "oci://"
DEFAULT_TAG = "latest"
# [OCI distribution specification 1.1, "Pulling manifests"]
_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)(?::[0-9]{1,5})?")
_REFERENCE_HINT = "oci://registry.example:5000/team/orin:1.2, perhaps with @sha256:…"


class Reference(msgspec.Struct, frozen=True):
    """Reference to one artifact: a tag, a digest, or a tag with the expected digest."""

    host: str
    name: str
    tag: str | None
    digest: str | None

    @property
    def is_loopback(self) -> bool:
        """True if the registry is on this machine, so that the connection cannot be intercepted."""
        return is_loopback(self.host)

    @property
    def wanted(self) -> str:
        """The digest or tag to request; a digest takes precedence."""
        return self.digest or self.tag or DEFAULT_TAG

    def pinned(self, digest: str) -> Reference:
        """Return the same reference with this digest."""
        return msgspec.structs.replace(self, digest=digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{SCHEME}{self.host}/{self.name}{tag}{f'@{self.digest}' if self.digest else ''}"


def is_loopback(netloc: str) -> bool:
    """Return True if ``host[:port]`` is this machine."""
    # An IPv6 address is in brackets, and contains colons.
    host = netloc if netloc.endswith("]") else re.sub(r":[0-9]*$", "", netloc)
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def parse_reference(text: str) -> Reference:
    """Read a reference.

    Raises:
        UsageError: it is invalid; a password in it is never shown.
    """
    if not text.startswith(SCHEME):
        raise UsageError("invalid registry reference", where=masked_url(text), hint=_REFERENCE_HINT)
    host, slash, path = text.removeprefix(SCHEME).partition("/")
    # A password may contain a slash: only a digest may follow an @.
    if "@" in re.sub(r"@sha256:[^@]*$", "", f"{host}/{path}"):
        raise UsageError(
            "a user or password does not belong on a command line, where others can read it",
            hint="use docker login, or set EDGE_REGISTRY_USER and EDGE_REGISTRY_PASSWORD",
        )
    rest, at, digest = path.partition("@")
    name, colon, tag = rest.partition(":")
    problems = (
        (not slash or not _HOST.fullmatch(host), f"{host!r} is not the name of a registry"),
        (not _NAME.fullmatch(name), f"{name!r} is not the name of a repository (lower case)"),
        (bool(colon) and not _TAG.fullmatch(tag), f"{tag!r} is not a tag"),
        (bool(at) and not _DIGEST.fullmatch(digest), f"{digest!r} is not a digest (sha256: and 64 hex digits)"),
    )
    for wrong, what in problems:
        if wrong:
            raise UsageError(what, where=text, hint=_REFERENCE_HINT)
    return Reference(host, name, tag or (None if digest else DEFAULT_TAG), digest or None)


class Body:
    """Bytes to send: their number, and a function that returns them from the start for each attempt."""

    def __init__(self, size: int, pieces: Callable[[], Iterable[bytes]]) -> None:
        self._size = size
        self._pieces = pieces

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._pieces())


class Connection:
    """Connection to the repository of ``reference``."""

    def __init__(
        self,
        reference: Reference,
        *,
        plain_http: bool = False,
        ca_file: str | None = None,
        auth_hosts: Sequence[str] = (),
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.reference = reference
        self._sleep = sleep
        self._access = _Access(reference, plain_http=plain_http, auth_hosts=auth_hosts)
        self._where = f"oci://{reference.host}/{reference.name}"
        self._errors: Any = require("requests").exceptions
        if ca_file is not None and not os.path.isfile(ca_file):  # noqa: PTH113 - a string for requests
            raise UsageError("this certificate file does not exist", where=ca_file)
        self._secrets: list[Secret] = []
        self._prefix, self._client = self._connected(plain_http, ca_file)
        self._base = f"{self._prefix}://{reference.host}/v2/{reference.name}"

    def close(self) -> None:
        """Close the connection."""
        self._client.session.close()

    def has_blob(self, digest: str) -> bool:
        """Return True if the repository has the blob."""
        response = self._request("HEAD", f"{self._base}/blobs/{digest}")
        if response.status_code not in {200, 404}:
            raise self._refused(response, "checking for a blob")
        return bool(response.status_code == 200)

    def blob(self, digest: str) -> Iterator[bytes]:
        """Return the bytes that the registry gives out for a digest, unverified, as they come.

        Raises:
            ArtifactError: the registry does not have the blob.
            DeviceError: the connection was lost, or access is refused.
        """
        response = self._request("GET", f"{self._base}/blobs/{digest}", stream=True)
        with contextlib.closing(response):
            if response.status_code == 404:
                raise ArtifactError(f"the registry lacks {digest}, which belongs to the artifact", where=self._where)
            if response.status_code != 200:
                raise self._refused(response, "getting a blob")
            with self._translated():
                yield from response.iter_content(_PIECE)

    def put_blob(self, digest: str, body: Body) -> None:
        """Send a blob.

        Raises:
            DeviceError: the connection was lost, or the registry does not take it.
        """
        done = self._send(lambda: self._put_blob(digest, body))
        if done.status_code != 201:
            raise self._refused(done, f"sending {digest}")

    def _put_blob(self, digest: str, body: Body) -> Any:  # noqa: ANN401
        """Make one attempt: a failed upload cannot be continued."""
        started = self._send(lambda: self._request("POST", f"{self._base}/blobs/uploads/"))
        place = started.headers.get("Location")
        if started.status_code != 202 or not place:
            raise self._refused(started, "starting an upload")
        url = require("requests").compat.urljoin(f"{self._base}/", place)
        url += ("&" if "?" in url else "?") + f"digest={digest}"
        return self._request("PUT", url, data=body, headers={"Content-Type": "application/octet-stream"})

    def manifest(self) -> tuple[bytes, str]:
        """Return the artifact's manifest and its digest, which is the one asked for and the registry's own.

        Raises:
            ArtifactError: there is none, or it does not match its digest.
            DeviceError: the connection was lost, or access is refused.
        """
        wanted = self.reference.wanted
        response = self._request(
            "GET", f"{self._base}/manifests/{wanted}", headers={"Accept": MANIFEST_TYPE}, stream=True
        )
        with contextlib.closing(response):
            if response.status_code == 404:
                raise ArtifactError("this artifact does not exist", where=str(self.reference))
            if response.status_code != 200:
                raise self._refused(response, "getting the manifest")
            data = b""
            with self._translated():
                for piece in response.iter_content(_PIECE):
                    data += piece
                    if len(data) > MAX_MANIFEST_BYTES:
                        raise ArtifactError(
                            "the data is too large for the manifest of an artifact", where=str(self.reference)
                        )
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        for reported in (self.reference.digest, response.headers.get("Docker-Content-Digest")):
            if reported is not None and reported != digest:
                raise ArtifactError(
                    f"the registry returned a manifest with {digest} for {reported}",
                    where=str(self.reference),
                    hint="do not use it; inform the operator of the registry",
                )
        return data, digest

    def put_manifest(self, data: bytes, *, digest: str) -> None:
        """Send the manifest, and set the reference's tag to it."""
        url = f"{self._base}/manifests/{self.reference.tag or digest}"
        done = self._send(lambda: self._request("PUT", url, data=data, headers={"Content-Type": MANIFEST_TYPE}))
        if done.status_code != 201:
            raise self._refused(done, "sending the manifest")
        reported = done.headers.get("Docker-Content-Digest")
        if reported not in {None, digest}:
            raise ArtifactError(f"the registry accepted {digest} but reports {reported}", where=str(self.reference))

    def _connected(self, plain_http: bool, ca_file: str | None) -> tuple[str, Any]:  # noqa: FBT001
        """Connect by https or http; return which, and a client that knows how this registry asks for credentials."""
        # A registry on this machine may use either, and nothing is between it and edge.
        prefixes = ["http"] if plain_http else ["https", "http"] if self.reference.is_loopback else ["https"]
        problem: EdgeError | None = None
        for prefix in prefixes:
            client = _client(self.reference, self._access, prefix=prefix, ca_file=ca_file)
            try:
                with self._translated():
                    greeting = client.session.request(
                        "GET", f"{prefix}://{self.reference.host}/v2/", verify=ca_file or True
                    )
                if greeting.status_code not in {200, 401}:
                    raise self._refused(greeting, "so this is not a registry")
                self._log_in(client, greeting)
            except EdgeError as exc:
                client.session.close()
                # Of a registry with a bad certificate, http knows only that it is none.
                if problem is None or "certificate" not in problem.what:
                    problem = exc
            else:
                return prefix, client
        raise problem or DeviceError("no registry answers", where=self._where)

    def _log_in(self, client: Any, greeting: Any) -> None:  # noqa: ANN401
        found = credentials.find(self.reference.host, os.environ)
        asks = str(greeting.headers.get("Www-Authenticate", "")).lower()
        if found is None:
            if greeting.status_code == 401 and asks.startswith("basic"):
                raise DeviceError("the registry requires a user and a password", where=self._where, hint=_LOGIN)
            return
        pair = base64.b64encode(f"{found.user}:{found.password.reveal()}".encode()).decode()
        self._secrets = [found.password, Secret(pair)]
        if asks.startswith("basic"):
            # Authenticate every request, so that no body is sent in vain, and the realm is not mistaken for a token
            # server.
            client.session.auth = (found.user, found.password.reveal())
            client.auth = require("oras.auth").get_auth_backend("basic", client.session)
        client.auth.set_basic_auth(found.user, found.password.reveal())

    def _request(self, method: str, url: str, **options: Any) -> Any:  # noqa: ANN401
        with self._translated():
            response = self._client.do_request(url, method, **options)
            if response.status_code == 401 and getattr(self._client.auth, "token", None):
                # The token is for less than this: reading, not writing. `oras` would send it again.
                self._client.auth.token = None
                response = self._client.do_request(url, method, **options)
        return response

    def _send(self, work: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Call ``work``, and again after a pause while the registry reports that it is busy (429, 503)."""
        for pause_s in (*_PAUSES_S, None):
            response = work()
            if response.status_code not in {429, 503} or pause_s is None:
                break
            asked = str(response.headers.get("Retry-After", ""))
            self._sleep(min(max(pause_s, int(asked) if re.fullmatch("[0-9]{1,3}", asked) else 0), _LONGEST_PAUSE_S))
        return response

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Translate the exceptions of requests into EdgeError."""
        try:
            yield
        except EdgeError:
            raise
        except self._errors.SSLError as exc:
            reason = _reason(exc)
            if "CERTIFICATE_VERIFY_FAILED" in reason:
                what, hint = (
                    "certificate is not trusted",
                    "use --ca-file FILE for a registry with your own certificate",
                )
            else:
                what, hint = "answer is not TLS", "use --plain-http if it has no TLS and the network is trusted"
            raise DeviceError(f"the registry's {what}: {reason}", where=self._where, hint=hint) from exc
        except self._errors.Timeout as exc:
            raise DeviceError("the registry does not answer", where=self._where) from exc
        except (self._errors.RequestException, OSError) as exc:
            raise DeviceError(f"the registry cannot be reached: {_reason(exc)}", where=self._where) from exc
        except (ValueError, RecursionError, AttributeError, TypeError, KeyError) as exc:
            # The exception of oras without credentials, or for an unreadable answer of a token server.
            raise DeviceError("the registry refuses access", where=self._where, hint=self._login_hint()) from exc

    def _login_hint(self) -> str:
        others = ", ".join(sorted(self._access.withheld))
        return f"{others} is another host, so it got no credentials; --auth-host HOST allows it" if others else _LOGIN

    def _refused(self, response: Any, doing: str) -> EdgeError:  # noqa: ANN401
        code = response.status_code
        if code in {401, 403}:
            return DeviceError(
                f"the registry refuses access ({code}), {doing}", where=self._where, hint=self._login_hint()
            )
        # A registry may repeat what was sent to it.
        text = _reported(response)
        for secret in self._secrets:
            text = secret.scrub(text)
        return DeviceError(f"the registry answered {code}, {doing}{text}", where=self._where)


class _Access:
    """The hosts that may get credentials: the registry, and token servers named by the user.

    ``withheld`` are hosts that requested credentials, or that the registry named, but got none.
    """

    def __init__(self, reference: Reference, *, plain_http: bool, auth_hosts: Sequence[str]) -> None:
        self.withheld: set[str] = set()
        self._reference = reference
        self._plain_http = plain_http
        self._hosts = {reference.host.lower(), *(host.lower() for host in auth_hosts)}

    def is_registry(self, request: Any) -> bool:  # noqa: ANN401
        """Return True if a request goes to the registry itself."""
        return _host_of(request) == self._reference.host.lower()

    def check(self, request: Any, proxies: Mapping[str, str] | None) -> Mapping[str, str]:  # noqa: ANN401
        """Check where a request goes; refuse it or remove its credentials; return the proxies to use.

        Raises:
            DeviceError: it would use plain HTTP to another machine, or send unencrypted credentials to a proxy.
        """
        url, host = urlsplit(str(request.url)), _host_of(request)
        if url.scheme == "http" and not self._plain_http and not is_loopback(host):
            raise DeviceError(
                f"the registry redirects to {host} over plain HTTP, which can be intercepted",
                where=str(self._reference), hint="use --plain-http if the network is trusted",
            )  # fmt: skip
        if "Authorization" in request.headers and host not in self._hosts:
            del request.headers["Authorization"]
            self.withheld.add(host)
        if is_loopback(host):
            return {}
        if url.scheme == "http" and "Authorization" in request.headers and (proxies or {}).get("http"):
            raise DeviceError(
                "credentials would be sent unencrypted to an HTTP proxy", where=str(self._reference),
                hint=f"NO_PROXY={host.partition(':')[0]} edge bundle …, or use a registry with TLS",
            )  # fmt: skip
        return proxies or {}


def _host_of(request: Any) -> str:  # noqa: ANN401
    return urlsplit(str(request.url)).netloc.rpartition("@")[2].lower()


def _client(reference: Reference, access: _Access, *, prefix: str, ca_file: str | None) -> Any:  # noqa: ANN401
    """Make a client of `oras` with time limits, few retries, bounded answers, and restricted credentials."""
    require("oras")
    from oras import logger
    from oras.provider import Registry
    from requests.adapters import HTTPAdapter
    from urllib3.util.retry import Retry

    logger.setup_logger(quiet=True)

    class Limited(HTTPAdapter):  # type: ignore[misc]
        """Applies limits to every request and answer, including redirects and token servers."""

        def send(self, request: Any, stream: bool = False, **options: Any) -> Any:  # noqa: ANN401, FBT001, FBT002
            """Send the request, or refuse it."""
            options["proxies"] = access.check(request, options.get("proxies"))
            options["timeout"] = options.get("timeout") or _TIMEOUT_S
            response = super().send(request, stream=True, **options)
            if response.status_code == 401 and access.is_registry(request):
                _check_challenge(response, reference)
            if not stream:
                # Without streaming, the caller stores all of it in memory.
                response._content = response.raw.read(_MAX_ANSWER_BYTES + 1, decode_content=True)  # noqa: SLF001
                if len(response.content) > _MAX_ANSWER_BYTES:
                    response.close()
                    raise DeviceError("the answer is too long", where=str(reference))
            return response

    class Client(Registry):  # type: ignore[misc]
        """The client of `oras` without its retries."""

        do_request = inspect.unwrap(Registry.do_request)

    client = Client(hostname=reference.host, insecure=prefix == "http", tls_verify=ca_file or True)
    retry = Retry(
        total=3, connect=0, other=0, backoff_factor=0.5, status_forcelist=(429, 502, 503, 504),
        allowed_methods=("GET", "HEAD"), raise_on_status=False, respect_retry_after_header=False,
    )  # fmt: skip
    for scheme in ("https://", "http://"):
        client.session.mount(scheme, Limited(max_retries=retry))
    return client


def _check_challenge(response: Any, reference: Reference) -> None:  # noqa: ANN401
    """Refuse an unknown authentication method.

    Raises:
        DeviceError: it is neither Basic nor Bearer, or has no token server.
    """
    challenge = str(response.headers.get("Www-Authenticate", ""))
    scheme = challenge.partition(" ")[0].lower()
    realm = re.search(r'realm="([^"]+)"', challenge)
    if scheme == "basic" or (scheme == "bearer" and realm is not None and re.match(r"https?://[^/]", realm[1])):
        return
    response.close()
    shown = "".join(sign for sign in challenge[:60] if sign.isprintable()) or "nothing"
    raise DeviceError(
        f"the registry requires {shown!r}; edge supports Basic, and Bearer with the address of a token server",
        where=str(reference), hint="use another registry, or another login method on this one",
    )  # fmt: skip


def _reason(exc: BaseException) -> str:
    """Return the innermost cause, without the object addresses that urllib3 adds."""
    while True:
        inner = next((item for item in (getattr(exc, "reason", None), *exc.args) if isinstance(item, Exception)), None)
        if inner is None:
            break
        exc = inner
    text = getattr(exc, "strerror", None) or str(exc).rpartition("object at ")[2].partition(": ")[2] or str(exc)
    return (str(text).splitlines() or [type(exc).__name__])[0][:200]


def _reported(response: Any) -> str:  # noqa: ANN401
    """Return the error message of a response in the form of the OCI specification; empty without one."""
    try:
        first = response.json()["errors"][0]
        text = str(first.get("message") or first.get("code"))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return ""
    return f": {''.join(sign for sign in text if sign.isprintable())[:200]}"
