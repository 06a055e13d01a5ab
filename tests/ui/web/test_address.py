from __future__ import annotations

import socket
from pathlib import Path

import pytest

from edge.errors import ArtifactError, DeviceError, UsageError
from edge.ui.web.address import Access, Address, listen, new_token, parse_address, read_token


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("8080", "127.0.0.1", 8080),
        (":8080", "127.0.0.1", 8080),
        ("0.0.0.0:80", "0.0.0.0", 80),
        ("localhost:0", "localhost", 0),
        ("[::1]:8080", "::1", 8080),
        (" 10.0.0.7:9 ", "10.0.0.7", 9),
        ("jetson.local:65535", "jetson.local", 65535),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert parse_address(text, option="--web") == Address(host, port)


@pytest.mark.parametrize(
    "text",
    ["", ":", "host", "host:", "::1:8080", "1:2:3", "host:65536", "host:-1", "host:http", "host:٣", "http://host:80",
     "a b:80", "[::g]:80", "[host]:80", "host:8080/path", "a\nb:80"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(text, option="--web")
    assert caught.value.where == "--web"


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.168.1.7", False), ("jetson", False), ("localhost.evil.example", False)],
)  # fmt: skip
def test_loopback(host: str, expected: bool) -> None:
    assert Address(host, 1).is_loopback is expected


def test_urls() -> None:
    assert Address("::1", 8080).url == "http://[::1]:8080/"
    assert Address("10.0.0.7", 80).url == "http://10.0.0.7:80/"
    assert Address("0.0.0.0", 80).url == f"http://{socket.gethostname()}:80/"


def test_a_port_in_use_says_how_to_find_who_has_it() -> None:
    with listen(Address("127.0.0.1", 0), option="--web") as first:
        port = first.getsockname()[1]
        with pytest.raises(DeviceError, match="in use") as caught:
            listen(Address("127.0.0.1", port), option="--web")
    assert f"ss -ltnp 'sport = :{port}'" in str(caught.value)


def test_an_address_that_this_machine_does_not_have() -> None:
    with pytest.raises(DeviceError, match=r"cannot listen on 192\.0\.2\.1"):
        listen(Address("192.0.2.1", 0), option="--web")
    with pytest.raises(DeviceError, match="cannot listen"):
        listen(Address("no-such-host.invalid", 0), option="--web")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True), ("127.0.0.1:8080", True), ("localhost:8080", True), ("LOCALHOST", True),
        ("[::1]:80", True), ("192.168.1.7:80", True),
        (socket.gethostname(), True), (f"{socket.gethostname()}.local:8080", True),
        ("", False), ("evil.example", False), ("127.0.0.1.evil.example", False), ("localhost.evil.example:80", False),
        ("evil.example#127.0.0.1", False), ("a b", False), ("[::1].evil.example", False),
    ],
)  # fmt: skip
def test_host_names(host: str, expected: bool) -> None:
    # A browser cannot be made to send the last one: it is no name that resolves.
    assert Access(None).is_ours(host) is expected


def test_tokens() -> None:
    token = new_token()
    access = Access(token)
    assert token != new_token()
    assert access.is_token(token.reveal())
    text = token.reveal()
    assert text not in f"{token} {access!r} {access.session}"
    for wrong in ("", text[:-1], f"{text}x", "ä" * 40, "\udc80", str(token)):
        assert not access.is_token(wrong)
    assert not access.may_look(cookie=None, authorization=None)
    assert not access.may_look(cookie=token.reveal(), authorization=None)
    assert not access.may_look(cookie="\udc80", authorization=f"Basic {token.reveal()}")
    assert access.may_look(cookie=access.session.reveal(), authorization=None)
    assert access.may_look(cookie=None, authorization=f"bearer {token.reveal()} ")
    assert Access(token).session != access.session
    assert Access(None).may_look(cookie=None, authorization=None)


def test_a_token_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("  0123456789abcdef\nsecond line\n")
    assert read_token(path).reveal() == "0123456789abcdef"
    for short in ("", "\n", "short", "a b c d e f g h i j k l", "ä" * 20, "0123456789abcdef\x00"):
        path.write_text(short)
        with pytest.raises(UsageError, match="a token must have at least"):
            read_token(path)
    with pytest.raises(ArtifactError, match="cannot read the token"):
        read_token(tmp_path / "absent")
