"""What a TARGET means."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.deploy.transport import address
from edge.deploy.transport.address import DEFAULT_PATH, DeviceAddress
from edge.errors import UsageError


@pytest.mark.parametrize(
    ("text", "user", "host", "port", "path"),
    [
        ("ada@orin", "ada", "orin", None, DEFAULT_PATH),
        ("orin:", None, "orin", None, DEFAULT_PATH),
        ("orin:/opt/edge", None, "orin", None, "/opt/edge"),
        ("ada@orin:a folder/'s", "ada", "orin", None, "a folder/'s"),
        ("ada@orin:~/edge", "ada", "orin", None, "edge"),
        ("ada@corp.example@orin", "ada@corp.example", "orin", None, DEFAULT_PATH),
        ("ada@[fe80::1%eth0]:x", "ada", "fe80::1%eth0", None, "x"),
        ("[::1]", None, "::1", None, DEFAULT_PATH),
        ("ssh://ada@orin:2222/opt/edge", "ada", "orin", 2222, "/opt/edge"),
        ("ssh://[::1]:22", None, "::1", 22, DEFAULT_PATH),
        ("ssh://orin", None, "orin", None, DEFAULT_PATH),
    ],
)
def test_addresses(text: str, user: str | None, host: str, port: int | None, path: str) -> None:
    assert address.parse(text) == DeviceAddress(name=text, user=user, host=host, port=port, path=path)


def test_a_port_needs_the_form_of_a_url() -> None:
    with pytest.raises(UsageError, match="'ada@orin:2222' names the folder 2222, not a port") as caught:
        address.parse("ada@orin:2222")
    assert caught.value.hint == "for a port: ssh://ada@orin:2222; for that folder: ada@orin:./2222"
    cures = [address.parse("ssh://ada@orin:2222"), address.parse("ada@orin:./2222")]
    assert [(cure.port, cure.path) for cure in cures if cure is not None] == [(2222, DEFAULT_PATH), (None, "./2222")]


@pytest.mark.parametrize("text", ["./device", "/mnt/disk", "..", ".", "a/b:c", "~/device", "./ada@orin"])
def test_folders(text: str) -> None:
    place = address.parse(text)
    assert place is not None
    assert place.folder == Path(text).expanduser().absolute()


@pytest.mark.parametrize("text", ["orin-1", "line-3", "all"])
def test_bare_words_are_names(text: str) -> None:
    assert address.parse(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-oProxyCommand=touch x:",
        "ada@-oProxyCommand=x",
        "-l@orin",
        "ada@$(touch x)",
        "ada;x@orin",
        "`x`@orin",
        "orin\n:x",
        "orin:a\nb",
        "orin:~root/x",
        "ada@",
        "@orin",
        ":x",
        "ssh://orin:99999/x",
        "ssh://orin:port/x",
        "ssh://",
        "ssh://a b/x",
        "o'rin:x",
        "orin\0:x",
    ],
)
def test_what_is_no_target(text: str) -> None:
    if text == "@orin":
        assert address.parse(text) == DeviceAddress(name=text, host="orin")
        return
    with pytest.raises(UsageError):
        address.parse(text)


@pytest.mark.parametrize("jump", ["bastion", "ada@bastion:22", "a,b@c:1", "[::1]:22", "ada@[fe80::1]"])
def test_jump_hosts(jump: str) -> None:
    assert address.check_jump(jump) is None


@pytest.mark.parametrize("jump", ["", "-x", "a,,b", "a;b", "a:0", "a:99999", "$(x)@a", "a b", "a, b"])
def test_what_is_no_jump_host(jump: str) -> None:
    assert "is not [user@]host[:port]" in str(address.check_jump(jump))
