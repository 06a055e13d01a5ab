"""One connection to one repository of a registry: the room of `oras` and of the HTTP under it.

`oras` knows how a registry asks for credentials, Basic and token, and moves single requests. Its own retries are left
out: they sleep for two minutes on a wrong password. Reads are retried by urllib3 where that may help. Nothing is ever
sent over plain HTTP to another machine, also not where a redirect or the address of a token server says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

from edge.deploy.registry import credentials
from edge.deploy.registry.reference import Reference, is_loopback
from edge.errors import ArtifactError, DeviceError, EdgeError, UsageError, require

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
MAX_MANIFEST_BYTES = 4 << 20  # what registries take [OCI distribution specification 1.1, "Pushing manifests"]
_TIMEOUT_S = (10.0, 60.0)  # to connect, and between two pieces
_PIECE = 1 << 20
_LOGIN = "docker login, or EDGE_REGISTRY_USER and EDGE_REGISTRY_PASSWORD"


class Body:
    """Bytes to send: their number, and a way to get them from the start, as often as somebody asks for credentials."""

    def __init__(self, size: int, pieces: Callable[[], Iterable[bytes]]) -> None:
        self._size = size
        self._pieces = pieces

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._pieces())


class Connection:
    """Requests to the repository of ``reference``."""

    def __init__(self, reference: Reference, *, plain_http: bool = False, ca_file: str | None = None) -> None:
        self.reference = reference
        self._where = f"oci://{reference.host}/{reference.name}"
        self._errors: Any = require("requests").exceptions
        if ca_file is not None and not os.path.isfile(ca_file):  # noqa: PTH113 - a string for requests
            raise UsageError("there is no such file of certificates", where=ca_file)
        self._prefix, self._client = self._connected(plain_http, ca_file)
        self._base = f"{self._prefix}://{reference.host}/v2/{reference.name}"

    def close(self) -> None:
        """Close what is open."""
        self._client.session.close()

    def has_blob(self, digest: str) -> bool:
        """True if the repository has the blob."""
        response = self._request("HEAD", f"{self._base}/blobs/{digest}")
        if response.status_code not in {200, 404}:
            raise self._refused(response, "asking for a blob")
        return bool(response.status_code == 200)

    def blob(self, digest: str) -> Iterator[bytes]:
        """The bytes that the registry gives out for a digest, unverified, as they come.

        Raises:
            ArtifactError: it has no such blob.
            DeviceError: the connection broke, or access is refused.
        """
        response = self._request("GET", f"{self._base}/blobs/{digest}", stream=True)
        with contextlib.closing(response):
            if response.status_code == 404:
                raise ArtifactError(f"the registry has no {digest}, which the artifact names", where=self._where)
            if response.status_code != 200:
                raise self._refused(response, "getting a blob")
            with self._translated():
                yield from response.iter_content(_PIECE)

    def put_blob(self, digest: str, body: Body) -> None:
        """Send a blob.

        Raises:
            DeviceError: the connection broke, or the registry does not take it.
        """
        started = self._request("POST", f"{self._base}/blobs/uploads/")
        place = started.headers.get("Location")
        if started.status_code != 202 or not place:
            raise self._refused(started, "starting an upload")
        url = require("requests").compat.urljoin(f"{self._base}/", place)
        url += ("&" if "?" in url else "?") + f"digest={digest}"
        done = self._request("PUT", url, data=body, headers={"Content-Type": "application/octet-stream"})
        if done.status_code != 201:
            raise self._refused(done, f"sending {digest}")

    def manifest(self) -> tuple[bytes, str]:
        """The artifact's manifest and digest; the latter is what was asked for, and what the registry itself says.

        Raises:
            ArtifactError: there is none, or the registry gives out another one than it says.
            DeviceError: the connection broke, or access is refused.
        """
        wanted = self.reference.wanted
        response = self._request(
            "GET", f"{self._base}/manifests/{wanted}", headers={"Accept": MANIFEST_TYPE}, stream=True
        )
        with contextlib.closing(response):
            if response.status_code == 404:
                raise ArtifactError("there is no such artifact", where=str(self.reference))
            if response.status_code != 200:
                raise self._refused(response, "getting the manifest")
            data = b""
            with self._translated():
                for piece in response.iter_content(_PIECE):
                    data += piece
                    if len(data) > MAX_MANIFEST_BYTES:
                        raise ArtifactError("too large for the manifest of an artifact", where=str(self.reference))
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        for said in (self.reference.digest, response.headers.get("Docker-Content-Digest")):
            if said is not None and said != digest:
                raise ArtifactError(
                    f"the registry gave out a manifest with {digest} for {said}",
                    where=str(self.reference),
                    hint="do not use it; tell who runs the registry",
                )
        return data, digest

    def put_manifest(self, data: bytes, *, digest: str) -> None:
        """Send the manifest, and let the reference's tag point to it."""
        url = f"{self._base}/manifests/{self.reference.tag or digest}"
        done = self._request("PUT", url, data=data, headers={"Content-Type": MANIFEST_TYPE})
        if done.status_code != 201:
            raise self._refused(done, "sending the manifest")
        said = done.headers.get("Docker-Content-Digest")
        if said not in {None, digest}:
            raise ArtifactError(f"the registry took {digest} and says that it has {said}", where=str(self.reference))

    def _connected(self, plain_http: bool, ca_file: str | None) -> tuple[str, Any]:  # noqa: FBT001
        """True if it is http or https, and a client that knows how this registry asks for credentials."""
        # A registry on this machine may speak either, and nobody is between it and us.
        prefixes = ["http"] if plain_http else ["https", "http"] if self.reference.is_loopback else ["https"]
        problem: EdgeError | None = None
        for prefix in prefixes:
            client = _client(self.reference, prefix=prefix, plain_http=plain_http, ca_file=ca_file)
            try:
                with self._translated():
                    greeting = client.session.request(
                        "GET", f"{prefix}://{self.reference.host}/v2/", verify=ca_file or True
                    )
                if greeting.status_code not in {200, 401}:
                    raise self._refused(greeting, "so no registry is there")
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
                raise DeviceError("the registry asks for a user and a password", where=self._where, hint=_LOGIN)
            return
        if asks.startswith("basic"):
            # With every request, so that no body is sent in vain; and nobody takes the realm for a token server.
            client.session.auth = (found.user, found.password)
            client.auth = require("oras.auth").get_auth_backend("basic", client.session)
        client.auth.set_basic_auth(found.user, found.password)

    def _request(self, method: str, url: str, **options: Any) -> Any:  # noqa: ANN401
        with self._translated():
            response = self._client.do_request(url, method, **options)
            if response.status_code == 401 and getattr(self._client.auth, "token", None):
                # The token is for less than this: reading, not writing. `oras` would send it again.
                self._client.auth.token = None
                response = self._client.do_request(url, method, **options)
        return response

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """The exceptions of requests, in our words."""
        try:
            yield
        except EdgeError:
            raise
        except self._errors.SSLError as exc:
            reason = _reason(exc)
            if "CERTIFICATE_VERIFY_FAILED" in reason:
                what, hint = (
                    "certificate is not trusted",
                    "--ca-file FILE, for a registry with a certificate of your own",
                )
            else:
                what, hint = "answer is not TLS", "--plain-http, if it has none and you know the network"
            raise DeviceError(f"the registry's {what}: {reason}", where=self._where, hint=hint) from exc
        except self._errors.Timeout as exc:
            raise DeviceError("the registry does not answer", where=self._where) from exc
        except (self._errors.RequestException, OSError) as exc:
            raise DeviceError(f"the registry cannot be reached: {_reason(exc)}", where=self._where) from exc
        except ValueError as exc:  # what oras says when it has nothing to authenticate with
            raise DeviceError("the registry refuses access", where=self._where, hint=_LOGIN) from exc

    def _refused(self, response: Any, doing: str) -> EdgeError:  # noqa: ANN401
        code = response.status_code
        if code in {401, 403}:
            return DeviceError(f"the registry refuses access ({code}), {doing}", where=self._where, hint=_LOGIN)
        return DeviceError(f"the registry answered {code}, {doing}{_said(response)}", where=self._where)


def _client(reference: Reference, *, prefix: str, plain_http: bool, ca_file: str | None) -> Any:  # noqa: ANN401
    """A client of `oras` with time limits, few retries, and no plain HTTP to other machines."""
    require("oras")
    from oras import logger
    from oras.provider import Registry
    from requests.adapters import HTTPAdapter
    from urllib3.util.retry import Retry

    logger.setup_logger(quiet=True)

    class Limited(HTTPAdapter):  # type: ignore[misc]
        """Time limits for every request; plain HTTP only where it is allowed."""

        def send(self, request: Any, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
            """Send it, or refuse to."""
            url = urlsplit(str(request.url))
            if url.scheme == "http" and not plain_http and not is_loopback(url.netloc):
                raise DeviceError(
                    "the registry sends us to a plain http address, where others can read and change what is sent",
                    where=str(reference),
                    hint="--plain-http, if you know the network",
                )
            options["timeout"] = options.get("timeout") or _TIMEOUT_S
            return super().send(request, *arguments, **options)

    class Client(Registry):  # type: ignore[misc]
        """The registry without its retries."""

        do_request = inspect.unwrap(Registry.do_request)

    client = Client(hostname=reference.host, insecure=prefix == "http", tls_verify=ca_file or True)
    retry = Retry(
        total=3, connect=0, other=0, backoff_factor=0.5, status_forcelist=(429, 502, 503, 504),
        allowed_methods=("GET", "HEAD"), raise_on_status=False, respect_retry_after_header=False,
    )  # fmt: skip
    for scheme in ("https://", "http://"):
        client.session.mount(scheme, Limited(max_retries=retry))
    return client


def _reason(exc: BaseException) -> str:
    """The innermost cause, without the addresses of objects that urllib3 puts in front."""
    while True:
        inner = next((item for item in (getattr(exc, "reason", None), *exc.args) if isinstance(item, Exception)), None)
        if inner is None:
            break
        exc = inner
    text = getattr(exc, "strerror", None) or str(exc).rpartition("object at ")[2].partition(": ")[2] or str(exc)
    return (str(text).splitlines() or [type(exc).__name__])[0][:200]


def _said(response: Any) -> str:  # noqa: ANN401
    """What the registry says about it, if it says it as the specification asks."""
    try:
        first = response.json()["errors"][0]
        text = str(first.get("message") or first.get("code"))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return ""
    return f": {''.join(sign for sign in text if sign.isprintable())[:200]}"
