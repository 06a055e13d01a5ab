"""Random answers of a device, made from good ones, and given to everything that reads answers."""

from __future__ import annotations

import base64
import random

from edge.deploy import agent_protocol
from edge.deploy.transport.frames import FORMS, Answer, FrameReader, MessageFrame
from edge.errors import EdgeError

D = "d" * 64
NONCE = b"0123456789abcdef"
_B64 = base64.b64encode(b'{"at":"x","passed":true,"failed":["a"]}').decode()
GOOD: dict[str, list[str]] = {
    "hello": ["root /x", "there yes", "clock 5", "free 100 4096", f"current {D}", "verdict passed", "edge /bin/edge",
              "rsync yes", "file proc/device-tree/model eA==", "done"],
    "want": [f"need {D} 5", "done"],
    "trial": ["code 0", f"report {_B64}", f"log {_B64}", "result passed", f"current {D}", "done"],
    "status": [f"bundle {D} passed 5 {_B64}", f"history {_B64}", "version edge 0.1.0", "done"],
    "gc": [f"removed {D}", "freed 5", "done"],
    "listing": [f"entry {D}  records/a.json", "done"],
}  # fmt: skip
_QUICK = [request for request in GOOD if request != "hello"]
_BITS = [
    b"", b" ", b"\n", b"\r", b"\0", b"\x1b[31m", b"-1", b"9" * 40, b"\xff\xfe", b"../..", b"[" * 50, b"{}", b"\xd9\xa3",
    D.encode(), NONCE, b"passed", b"unknown", b"done", b"data 3", b"fail write x", b"=", b"eA==", b"/",
]  # fmt: skip


def is_refused(draw: random.Random) -> bool:
    """Read one, and return True if it was refused; nothing but edge's own errors is caught."""
    try:
        read_one(draw)
    except EdgeError:
        return True
    return False


def read_one(draw: random.Random) -> None:
    """Make one answer wrong in a few places and read it."""
    # Detecting the device writes files: one in forty is enough of these.
    request = "hello" if draw.random() < 0.025 else draw.choice(_QUICK)
    data = b"".join(NONCE + b" " + line.encode() + b"\n" for line in GOOD[request])
    for _ in range(draw.randint(0, 3)):
        at, length = draw.randint(0, len(data)), draw.choice((0, 0, 1, 5, 40))
        data = data[:at] + draw.choice(_BITS) + data[at + length :]
    reader = FrameReader(NONCE, where="dev")
    reader.expects_data = draw.random() < 0.2
    reader.feed(data)
    if reader.data_bytes:
        reader.take()
    answer = Answer(request if draw.random() < 0.9 else draw.choice(list(FORMS)), where="dev")
    frames = []
    for frame in reader.frames:
        answer.check(frame)
        if frame.word in {"done", "fail"}:
            break
        frames.append(frame)
    _read(request, frames)


def _read(request: str, frames: list[MessageFrame]) -> None:
    if request == "hello":
        agent_protocol.read_hello(frames, now_s=0.0, where="dev")
    elif request == "want":
        agent_protocol.read_needs(frames, [D], where="dev")
    elif request == "trial":
        agent_protocol.read_trial(frames, digest=D, nonce="0", where="dev")
    elif request == "status":
        agent_protocol.read_bundles(frames)
        agent_protocol.read_history(frames)
