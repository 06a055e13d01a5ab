from __future__ import annotations

import pickle
from pathlib import Path

import msgspec
import pytest

from edge.artifacts.secret import Secret, hides, masked_text, masked_url, read_address, read_secret
from edge.errors import ArtifactError, DeviceError, UsageError

CANARY = "c4nary-s3cret"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://cam.local/stream", "rtsp://cam.local/stream"),
        ("rtsp://cam.local:554/a/b?", "rtsp://cam.local:554/a/b?***"),
        (f"rtsp://admin:{CANARY}@cam.local:554/s", "rtsp://***@cam.local:554/s"),
        (f"rtsp://admin:{CANARY}@x@y@cam/s", "rtsp://***@cam/s"),
        (f"rtsp://admin:a/{CANARY}?b#c@cam/s", "rtsp://***@cam/s"),
        (f"rtsp://{CANARY}@cam/s", "rtsp://***@cam/s"),
        (f"http://cam/video?user=x&pwd={CANARY}&{CANARY}", "http://cam/video?user=***&pwd=***&***"),
        (f"http://cam/v#{CANARY}", "http://cam/v#***"),
        (
            f"rtsp://10.0.0.2/user=admin_password={CANARY}_channel=1_stream=0.sdp?real_stream",
            "rtsp://10.0.0.2/user=***?***",
        ),
        (f"rtspsrc location=rtsp://cam/s user-id=ada user-pw={CANARY}! appsink", None),
        ("https://hooks.example/services/T0/c4naryS3cretOfAHook1", "https://hooks.example/services/T0/***"),
        ("https://bot.example/bot12345:c4nary-S3cretOfAHookXYZ1/send", "https://bot.example/***/send"),
        (f"v4l2src ! x user-pw={CANARY} ! appsink", "v4l2src ! x user-pw=*** ! appsink"),
        ("user=0", "user=0"),
        ("ssh://user@host:22/path", "ssh://user@host:22/path"),
        (f"ssh://user:{CANARY}@host/path", "ssh://***@host/path"),
        ("rtsp://cam/h264Preview_01_main", "rtsp://cam/h264Preview_01_main"),
        ("rtsp://cam/Streaming/Channels/101", "rtsp://cam/Streaming/Channels/101"),
        (f"http://cam/token={CANARY}/mjpeg", "http://cam/token=***/mjpeg"),
        (f"front=rtsp://me:{CANARY}@cam/s", "front=rtsp://***@cam/s"),
        ("0", "0"),
        ("/dev/video0", "/dev/video0"),
        ("csi://0", "csi://0"),
        ("http://[fe80::1]:80/a", "http://[fe80::1]:80/a"),
    ],
)
def test_a_url_is_shown_without_what_is_secret(url: str, shown: str | None) -> None:
    masked = masked_url(url)
    assert masked == shown or shown is None
    assert "c4nary" not in masked
    assert hides(url) == (url != masked)


def test_urls_in_a_message_are_masked() -> None:
    said = f"cannot open 'rtsp://me:{CANARY}@cam/s?x={CANARY}' or <http://u:{CANARY}@h>: ask http://cam/help"
    assert masked_text(said) == "cannot open 'rtsp://***@cam/s?x=***' or <http://***@h>: ask http://cam/help"
    assert masked_text("no URL: a/b@c") == "no URL: a/b@c"
    # As a path has it.
    assert masked_text(f"rtsp:/me:{CANARY}@cam/s: there is nothing here") == "rtsp://***@cam/s: there is nothing here"
    assert masked_text("ada@orin-1:/opt/edge: no such host") == "ada@orin-1:/opt/edge: no such host"


def test_an_address_and_the_file_that_it_names(tmp_path: Path) -> None:
    path, warnings = tmp_path / "url", list[str]()
    path.write_text(f"http://u:{CANARY}@h/\n")
    path.chmod(0o600)
    given = Secret.url(f"@{path}")
    assert read_address(given, what="target", warn=warnings.append).reveal() == f"http://u:{CANARY}@h/"
    assert warnings == []
    path.chmod(0o644)
    read_address(given, what="target", warn=warnings.append)
    assert f"chmod 600 {path}" in warnings[0]
    assert CANARY not in warnings[0]
    # A file that was named by mistake is not shown either.
    path.write_text(f"root:{CANARY}\n")
    assert str(read_address(given, what="target", warn=warnings.append)) == "***"


def test_a_secret_is_masked_wherever_it_is_printed() -> None:
    secret = Secret.url(f"rtsp://admin:{CANARY}@cam/s")
    for text in (str(secret), repr(secret), f"{secret}", f"{secret:>40}", f"{secret!r}", f"{[secret]}", "%s" % secret):  # noqa: UP031
        assert CANARY not in text
        assert "rtsp://***@cam/s" in text
    assert CANARY not in str(DeviceError("it does not open", where=str(secret)))
    assert secret.reveal() == f"rtsp://admin:{CANARY}@cam/s"
    assert Secret(CANARY) == Secret(CANARY) != Secret("other")
    assert str(Secret(CANARY)) == "***"


def test_a_secret_leaves_the_process_in_no_format() -> None:
    with pytest.raises(TypeError):
        pickle.dumps(Secret(CANARY))
    with pytest.raises(TypeError):
        msgspec.json.encode(Secret(CANARY))


def test_what_a_library_says_is_scrubbed() -> None:
    secret = Secret.url(f"rtsp://admin:{CANARY}%21@cam/s?token=abcdefgh")
    said = f"cannot open rtsp://admin:{CANARY}%21@cam/s?token=abcdefgh (password {CANARY}!, token abcdefgh)"
    assert secret.scrub(said) == "cannot open rtsp://***@cam/s?token=*** (password ***, token ***)"
    assert Secret.url("rtsp://cam/s").scrub("rtsp://cam/s") == "rtsp://cam/s"


def test_a_secret_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "url"
    path.write_text(f"  rtsp://x:{CANARY}@cam/s \nsecond line\n")
    assert read_secret(path, what="camera URL").reveal() == f"rtsp://x:{CANARY}@cam/s"
    path.write_text("\n")
    with pytest.raises(UsageError, match="first line"):
        read_secret(path, what="camera URL")
    with pytest.raises(ArtifactError, match="cannot read camera URL"):
        read_secret(tmp_path / "absent", what="camera URL")
