"""Why a network camera does not open: servers that answer what cameras answer, and parameter sets of real encoders."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from edge.artifacts import Secret
from edge.errors import DeviceError
from edge.media.network_probe import StreamDescription, describe_stream, h264_size, h265_size, undecodable

SDP = (
    "v=0\r\nm=audio 0 RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"
    "a=fmtp:96 packetization-mode=1;sprop-parameter-sets=Z0LAFdoFB+wFqDAwNSgAAAMACAAAAwGUeLF1,aM48gA==\r\n"
)
Answer = Callable[[str], bytes]


def rtsp(body: str, status: str = "200 OK", headers: str = "") -> bytes:
    return f"RTSP/1.0 {status}\r\nCSeq: 1\r\n{headers}Content-Length: {len(body)}\r\n\r\n{body}".encode()


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], int]]:
    """``serve(answer)``: a server whose connections get ``answer(request)`` for each request; its port."""
    listening: list[socket.socket] = []

    def start(answer: Answer) -> int:
        server = socket.create_server(("127.0.0.1", 0))
        listening.append(server)

        def work() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    while request := connection.recv(65536).decode():
                        data = answer(request)
                        if not data:
                            break
                        connection.sendall(data)

        threading.Thread(target=work, daemon=True).start()
        return int(server.getsockname()[1])

    yield start
    for server in listening:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def ask(port: int, address: str = "rtsp://{}/live", **more: float) -> StreamDescription | None:
    return describe_stream(Secret.url(address.format(f"127.0.0.1:{port}")), **more)


def test_codec_and_size_are_read_from_the_description(serve: Callable[[Answer], int]) -> None:
    assert ask(serve(lambda _request: rtsp(SDP))) == StreamDescription(("H264",), (320, 240))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (rtsp("", "404 Not Found"), "no stream of this path (404)"),
        (rtsp("", "401 Unauthorized", 'WWW-Authenticate: Basic realm="x"\r\n'), "asks for a user and a password"),
        (rtsp("", "453 Not \x1b[2JEnough"), "the server answers 453 Not ?[2JEnough"),
        (b"HTTP/1.0 400 Bad Request\r\n\r\n", "does not speak RTSP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "does not speak RTSP"),
        (b"", "ends the connection without an answer"),
    ],
)
def test_what_a_server_answers_is_said(answer: bytes, words: str, serve: Callable[[Answer], int]) -> None:
    with pytest.raises(DeviceError) as caught:
        ask(serve(lambda _request: answer))
    assert words in caught.value.what


def test_an_answer_without_end_ends(serve: Callable[[Answer], int]) -> None:
    with pytest.raises(DeviceError, match="does not answer"):
        ask(serve(lambda _request: b"RTSP/1.0 200 OK\r\nContent-Length: 999999999\r\n\r\nv=0"), timeout_s=0.2)


def test_a_digest_password_is_sent_as_rfc_7616_says_and_only_there(serve: Callable[[Answer], int]) -> None:
    seen: list[str] = []

    def answer(request: str) -> bytes:
        seen.append(request)
        found = re.search(r'uri="([^"]*)".*response="([0-9a-f]*)"', request)
        if found is None:
            return rtsp("", "401 Unauthorized", 'WWW-Authenticate: Digest realm="cam", nonce="abc"\r\n')

        def hashed(text: str) -> str:
            return hashlib.md5(text.encode()).hexdigest()

        right = hashed(f"{hashed('me:cam:p@ss')}:abc:{hashed(f'DESCRIBE:{found[1]}')}")
        return rtsp(SDP) if found[2] == right else rtsp("", "401 Unauthorized")

    assert ask(serve(answer), "rtsp://me:p%40ss@{}/live") == StreamDescription(("H264",), (320, 240))
    assert "p@ss" not in "".join(seen)
    assert "p%40ss" not in "".join(seen)
    with pytest.raises(DeviceError, match=r"refuses this user and password") as caught:
        ask(serve(answer), "rtsp://me:wrong@{}/live")
    assert "wrong" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [("200 OK", "text/html", "the answer is text/html, not a video"), ("404 Not Found", "text/plain", "(404)"),
     ("401 Unauthorized", "text/plain", "asks for a user and a password")],
)  # fmt: skip
def test_a_web_page_is_no_camera(status: str, kind: str, words: str, serve: Callable[[Answer], int]) -> None:
    port = serve(lambda _request: f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: 0\r\n\r\n".encode())
    with pytest.raises(DeviceError) as caught:
        ask(port, "http://{}/video.mjpg")
    assert words in caught.value.what


def test_nobody_listens_or_no_such_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(DeviceError, match=f"nothing listens on port {port} of 127"):
        ask(port)
    with pytest.raises(DeviceError, match=r"the name nowhere\.invalid cannot be resolved"):
        describe_stream(Secret.url("rtsp://nowhere.invalid/x"))
    with pytest.raises(DeviceError, match="is not a URL"):
        describe_stream(Secret.url("rtsp://host:port/x"))
    assert describe_stream(Secret.url("udp://239.0.0.1:5000")) is None


@pytest.mark.parametrize(
    ("codecs", "words"),
    [((), "the stream has no video"), (("H266",), "its video is H266, which this OpenCV may not decode")],
)
def test_a_codec_that_opencv_lacks_is_named(codecs: tuple[str, ...], words: str) -> None:
    assert undecodable(StreamDescription(codecs)) == words


def test_sizes_of_parameter_sets() -> None:
    """As x264 and x265 wrote them: 1920×1080 is 1088 lines with eight cropped, 480×240 needs none."""
    assert h264_size(base64.b64decode("Z2QAKKzZQHgCJ+XARAAAAwAEAAADAMg8YMZY")) == (1920, 1080)
    assert h265_size(base64.b64decode(
        "QgEBAWAAAAMAkAAAAwAAAwA/oAoIDxZbpKTC//AAEAAWoMDAwIAAAAMAgAAADIQ=")) == (320, 240)  # fmt: skip
    with pytest.raises(IndexError):
        h264_size(base64.b64decode("Z2QAKA=="))
