"""Find out why a network camera does not open, and which codec and size it offers.

OpenCV says only that a stream does not open. This asks the same server step by step: its name, a TCP connection, then
RTSP's DESCRIBE (RFC 2326) or HTTP's GET. The answer to DESCRIBE is a session description (SDP, RFC 8866) with the codec
and, for H.264 and H.265, the sequence parameter set that holds the size (RFC 6184 and 7798).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import http.client
import re
import secrets
import socket
import ssl
import time
from collections.abc import Iterator
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec

from edge.artifacts import Secret
from edge.errors import DeviceError

_PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443, "rtmp": 1935}
_TLS = frozenset({"rtsps", "https"})
_LONGEST_ANSWER = 256 << 10
# Names in SDP of codecs that FFmpeg, and with it OpenCV, decodes. RTP payload types without a name: RFC 3551.
_DECODED = frozenset({"H264", "H265", "HEVC", "JPEG", "MP4V-ES", "MPV", "H263", "H263-1998", "H263-2000", "VP8", "VP9"})
_STATIC_PAYLOADS = {"26": "JPEG", "31": "H261", "32": "MPV", "33": "MP2T", "34": "H263"}


class StreamDescription(msgspec.Struct, frozen=True):
    """Description that a server gives of its stream: video codecs by their names in SDP, and width and height."""

    codecs: tuple[str, ...] = ()
    size: tuple[int, int] | None = None


def describe_stream(url: Secret, *, timeout_s: float = 3.0) -> StreamDescription | None:
    """Ask the server of ``url`` for its stream.

    Returns:
        The description; None where this kind of URL has none, or the server redirects.

    Raises:
        DeviceError: The stream cannot be had, and why. No text holds what is secret in the URL.
    """
    try:
        parts = urlsplit(url.reveal())
        port = parts.port or _PORTS.get(parts.scheme.lower())
    except ValueError:
        raise DeviceError("the address is not a URL", where=str(url)) from None
    scheme = parts.scheme.lower()
    if scheme == "udp" or port is None:
        return None
    with _reported(url, host=parts.hostname or "", port=port, timeout_s=timeout_s):
        end_s = time.monotonic() + timeout_s
        with _connected(scheme, parts.hostname or "", port, timeout_s) as connection:
            if connection is None:
                return None
            if scheme in {"rtsp", "rtsps"}:
                return _Rtsp(connection, url, parts, end_s).describe()
        if scheme in {"http", "https"}:
            _check_http(url, parts, port, timeout_s)
    return None


@contextlib.contextmanager
def _reported(url: Secret, *, host: str, port: int, timeout_s: float) -> Iterator[None]:
    """Turn what a socket raises into an error that says what to look at."""

    def error(what: str, hint: str) -> DeviceError:
        return DeviceError(what, where=str(url), hint=hint)

    try:
        yield
    except socket.gaierror as exc:
        raise error(
            f"the name {host} cannot be resolved ({exc.strerror})", f"getent hosts {host}; or use its IP address"
        ) from None
    except ConnectionRefusedError:
        raise error(
            f"nothing listens on port {port} of {host}",
            "is the stream switched on in the camera, and is the port right? RTSP is often on 554 or 8554",
        ) from None
    except TimeoutError:
        raise error(
            f"{host} does not answer on port {port} within {timeout_s:g} s",
            f"ping {host}; if the camera only needs more time: --wait-for-camera, or camera.timeout_s in the profile",
        ) from None
    except (OSError, http.client.HTTPException, ValueError) as exc:
        what = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
        raise error(f"{host}, port {port}: {_printable(url.scrub(what))}", f"ping {host}") from None


@contextlib.contextmanager
def _connected(scheme: str, host: str, port: int, timeout_s: float) -> Iterator[socket.socket | None]:
    """A connection; None where the server's certificate is not trusted here, so that no password goes there."""
    with socket.create_connection((host, port), timeout_s) as plain:
        if scheme not in _TLS:
            yield plain
            return
        try:
            secured = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
        except ssl.SSLCertVerificationError:
            yield None
            return
        with secured:
            yield secured


class _Rtsp:
    """One RTSP connection, for DESCRIBE without and with a password."""

    def __init__(self, connection: socket.socket, url: Secret, parts: SplitResult, end_s: float) -> None:
        self._connection = connection
        self._url = url
        self._user, self._password = unquote(parts.username or ""), unquote(parts.password or "")
        # Without the password, which goes into a header.
        host = parts.netloc.rpartition("@")[2]
        self._target = f"{parts.scheme}://{host}{parts.path}{'?' if parts.query else ''}{parts.query}"
        self._end_s = end_s
        self._sequence = 0

    def describe(self) -> StreamDescription | None:
        status, reason, headers, body = self._request("")
        has_password = bool(self._user or self._password)
        if status == 401 and has_password:
            status, reason, headers, body = self._request(self._authorization(headers))
        if status == 200:
            return _parse_sdp(body)
        if 300 <= status < 400:
            return None
        raise self._error(status, reason, has_password=has_password)

    def _error(self, status: int, reason: str, *, has_password: bool) -> DeviceError:
        if status == 401 and has_password:
            what, hint = (
                "the camera refuses this user and password (401)",
                "try them on the camera's web page; in a URL, special letters are written as %40 for @ and so on",
            )
        elif status == 401:
            what, hint = (
                "the camera asks for a user and a password (401)",
                "write rtsp://USER:PASSWORD@HOST/… into a file of mode 0600, and use --camera @FILE",
            )
        elif status == 404:
            what, hint = (
                "the camera has no stream of this path (404)",
                "the path is in the camera's manual; ONVIF Device Manager shows it, too",
            )
        else:
            what, hint = f"the server answers {status} {_printable(self._url.scrub(reason))}", None
        return DeviceError(what, where=str(self._url), hint=hint)

    def _request(self, authorization: str) -> tuple[int, str, list[tuple[str, str]], str]:
        self._sequence += 1
        lines = [
            f"DESCRIBE {self._target} RTSP/1.0", f"CSeq: {self._sequence}", "Accept: application/sdp",
            "User-Agent: edge",
        ]  # fmt: skip
        lines += [f"Authorization: {authorization}"] if authorization else []
        self._connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._received(data)
        head, _, body = data.partition(b"\r\n\r\n")
        first, *rest = head.decode(errors="replace").split("\r\n")
        match = re.fullmatch(r"RTSP/\d\.\d (\d{3}) ?(.*)", first)
        if match is None:
            raise DeviceError(
                "what answers on this port does not speak RTSP", where=str(self._url),
                hint="is the port right? RTSP is often on 554 or 8554; a web address begins with http://",
            )  # fmt: skip
        headers = [(name.strip().lower(), value.strip()) for name, _, value in (line.partition(":") for line in rest)]
        length = next((int(value) for name, value in headers if name == "content-length" and value.isdecimal()), 0)
        while len(body) < min(length, _LONGEST_ANSWER):
            body += self._received(body)
        return int(match[1]), match[2], headers, body.decode(errors="replace")

    def _received(self, before: bytes) -> bytes:
        left_s = self._end_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._connection.settimeout(left_s)
        data = self._connection.recv(65536)
        if not data or len(before) > _LONGEST_ANSWER:
            raise DeviceError(
                "the server ends the connection without an answer to DESCRIBE", where=str(self._url),
                hint="check the port, and close other viewers of the camera",
            )  # fmt: skip
        return data

    def _authorization(self, headers: list[tuple[str, str]]) -> str:
        """The header that answers ``WWW-Authenticate``: Digest (RFC 7616) before Basic (RFC 7617)."""
        offered = [value for name, value in headers if name == "www-authenticate"]
        for offer in offered:
            if offer.lower().startswith("digest"):
                return self._digest(dict(re.findall(r'(\w+)\s*=\s*"?([^",]*)"?', offer)))
        pair = f"{self._user}:{self._password}"
        return "Basic " + base64.b64encode(pair.encode()).decode()

    def _digest(self, offer: dict[str, str]) -> str:
        name = offer.get("algorithm", "MD5")
        algorithm = {"MD5": hashlib.md5, "SHA-256": hashlib.sha256}.get(name.upper(), hashlib.md5)

        def hashed(*words: str) -> str:
            return algorithm(":".join(words).encode()).hexdigest()

        realm, nonce = offer.get("realm", ""), offer.get("nonce", "")
        first, second = hashed(self._user, realm, self._password), hashed("DESCRIBE", self._target)
        fields = {"username": self._user, "realm": realm, "nonce": nonce, "uri": self._target}
        extra = ""
        if "auth" in offer.get("qop", "").split(","):
            own = secrets.token_hex(8)
            response = hashed(first, nonce, "00000001", own, "auth", second)
            extra = f', qop=auth, nc=00000001, cnonce="{own}"'
        else:
            response = hashed(first, nonce, second)
        if "opaque" in offer:
            fields["opaque"] = offer["opaque"]
        text = ", ".join(f'{key}="{value}"' for key, value in fields.items())
        return f'Digest {text}, response="{response}"{f", algorithm={name}" if "algorithm" in offer else ""}{extra}'


def _check_http(url: Secret, parts: SplitResult, port: int, timeout_s: float) -> None:
    """Look at the status and the type of an answer, without its body."""
    made = http.client.HTTPSConnection if parts.scheme.lower() == "https" else http.client.HTTPConnection
    connection = made(parts.hostname or "", port, timeout=timeout_s)
    headers = {"User-Agent": "edge"}
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    try:
        connection.request("GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), headers=headers)
        answer = connection.getresponse()
        status, kind = answer.status, (answer.getheader("content-type") or "").partition(";")[0].strip().lower()
    finally:
        connection.close()
    if status >= 400:
        words = {
            401: "the camera refuses this user and password (401)" if parts.username else
            "the camera asks for a user and a password (401)",
            404: "the camera has no stream of this path (404)",
        }  # fmt: skip
        what = words.get(status, f"the server answers {status} {_printable(url.scrub(answer.reason))}")
        hint = "the address of the stream is in the camera's manual" if status == 404 else None
        raise DeviceError(what, where=str(url), hint=hint)
    if kind in {"text/html", "text/plain", "application/json"}:
        raise DeviceError(
            f"the answer is {_printable(kind)}, not a video", where=str(url),
            hint="the address of the stream itself is in the camera's manual, such as /video.mjpg",
        )  # fmt: skip


def undecodable(description: StreamDescription) -> str | None:
    """Return the reason why OpenCV lacks the codec of a stream; None if it has the codec."""
    if not description.codecs:
        return "the stream has no video"
    if not any(codec in _DECODED for codec in description.codecs):
        return f"its video is {' and '.join(description.codecs)}, which this OpenCV may not decode"
    return None


def _parse_sdp(text: str) -> StreamDescription:
    """Codecs and size of the video in a session description."""
    codecs: list[str] = []
    size: tuple[int, int] | None = None
    is_video = False
    payloads: list[str] = []
    for line in text.splitlines():
        if line.startswith("m="):
            words = line[2:].split()
            is_video = bool(words) and words[0] == "video"
            payloads = words[3:]
            if is_video:
                codecs += [_STATIC_PAYLOADS[payload] for payload in payloads if payload in _STATIC_PAYLOADS]
        elif is_video and (found := re.match(r"a=rtpmap:(\d+) ([^/\s]+)", line)) is not None:
            if found[1] in payloads:
                codecs.append(_printable(found[2].upper())[:32])
        elif is_video and line.startswith("a=fmtp:"):
            size = size or _size_of(line)
    return StreamDescription(tuple(dict.fromkeys(codecs)), size)


def _size_of(fmtp: str) -> tuple[int, int] | None:
    """Width and height from the parameter sets of a ``fmtp`` line; None where they are not there, or make no sense."""
    with contextlib.suppress(ValueError, binascii.Error, IndexError):
        if (found := re.search(r"sprop-parameter-sets=([^;,\s]+)", fmtp)) is not None:
            return h264_size(base64.b64decode(found[1]))
        if (found := re.search(r"sprop-sps=([^;,\s]+)", fmtp)) is not None:
            return h265_size(base64.b64decode(found[1]))
    return None


class _Bits:
    """Bits of a NAL unit's payload, with Exp-Golomb codes (H.264, 9.1)."""

    def __init__(self, data: bytes) -> None:
        # 00 00 03 stands for 00 00 in what may hold no start code.
        data = data.replace(b"\0\0\3", b"\0\0")
        self._text = "".join(f"{byte:08b}" for byte in data)
        self._at = 0

    def read(self, count: int) -> int:
        """Return the next ``count`` bits as a number."""
        part = self._text[self._at : self._at + count]
        if len(part) < count:
            raise IndexError("the parameter set is cut off")
        self._at += count
        return int(part, 2) if part else 0

    def golomb(self) -> int:
        """Return the next unsigned Exp-Golomb number."""
        zeros = 0
        while not self.read(1):
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)

    def signed(self) -> int:
        """Return the next signed Exp-Golomb number."""
        value = self.golomb()
        return (value + 1) // 2 if value % 2 else -(value // 2)


# profile_idc of the H.264 profiles whose parameter set says the colour format (7.3.2.1.1).
_WITH_CHROMA = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135})


def h264_size(nal: bytes) -> tuple[int, int]:
    """Return width and height of an H.264 sequence parameter set (ITU-T H.264, 7.3.2.1.1).

    Raises:
        IndexError: It is cut off.
    """
    bits = _Bits(nal[4:])
    profile = nal[1]
    bits.golomb()
    chroma = 1
    if profile in _WITH_CHROMA:
        chroma = bits.golomb()
        if chroma == 3:
            bits.read(1)
        bits.golomb(), bits.golomb(), bits.read(1)
        if bits.read(1):
            for index in range(8 if chroma != 3 else 12):
                if bits.read(1):
                    _skip_scaling_list(bits, 16 if index < 6 else 64)
    bits.golomb()
    order = bits.golomb()
    if order == 0:
        bits.golomb()
    elif order == 1:
        bits.read(1), bits.signed(), bits.signed()
        for _ in range(bits.golomb()):
            bits.signed()
    bits.golomb(), bits.read(1)
    width, height_units = (bits.golomb() + 1) * 16, bits.golomb() + 1
    frames_only = bits.read(1)
    height = height_units * 16 * (2 - frames_only)
    if not frames_only:
        bits.read(1)
    bits.read(1)
    if bits.read(1):
        across, down = {0: (1, 1), 1: (2, 2), 2: (2, 1)}.get(chroma, (1, 1))
        left, right, top, bottom = (bits.golomb() for _ in range(4))
        width -= (left + right) * across
        height -= (top + bottom) * down * (2 - frames_only)
    return width, height


def _skip_scaling_list(bits: _Bits, count: int) -> None:
    last = following = 8
    for _ in range(count):
        if following:
            following = (last + bits.signed()) % 256
        last = following or last


def h265_size(nal: bytes) -> tuple[int, int]:
    """Return width and height of an H.265 sequence parameter set (ITU-T H.265, 7.3.2.2).

    Raises:
        IndexError: It is cut off.
    """
    bits = _Bits(nal[2:])
    bits.read(4)
    layers = bits.read(3)
    bits.read(1)
    bits.read(88), bits.read(8)
    present = [(bits.read(1), bits.read(1)) for _ in range(layers)]
    if layers:
        bits.read(2 * (8 - layers))
    for has_profile, has_level in present:
        bits.read(88 * has_profile + 8 * has_level)
    bits.golomb()
    chroma = bits.golomb()
    if chroma == 3:
        bits.read(1)
    width, height = bits.golomb(), bits.golomb()
    if bits.read(1):
        across, down = {1: (2, 2), 2: (2, 1)}.get(chroma, (1, 1))
        left, right, top, bottom = (bits.golomb() for _ in range(4))
        width -= (left + right) * across
        height -= (top + bottom) * down
    return width, height


def _printable(text: str) -> str:
    """Replace what moves the cursor of a terminal in a text that a server sent."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:80]
