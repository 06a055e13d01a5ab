"""A program in the place of ssh whose device lies: ``lying_ssh(folder, lie)`` writes one called ssh into a folder.

It speaks the protocol of the device's script, and gives a wrong answer in one place.
"""

from __future__ import annotations

import sys
from pathlib import Path

# What is answered: by request, lines in place of those of an honest device. NONCE is put in front of each.
D, N = "d" * 64, "9" * 5000
HELLO = ["root /x", "there yes", "clock 5", "free 100000000 4096", "done"]
LIES: dict[str, dict[str, list[str]]] = {
    "clock": {"hello": ["root /x", "clock " + "9" * 29, "done"]},
    "clock of 5000 digits": {"hello": ["root /x", f"clock {N}", "done"]},
    "clock in other digits": {"hello": ["root /x", "clock ٣", "done"]},
    "no root": {"hello": ["clock 5", "done"]},
    "relative root": {"hello": ["root x", "clock 5", "done"]},
    "root twice": {"hello": ["root /x", *HELLO]},
    "free": {"hello": ["root /x", "clock 5", f"free {N} {N}", "done"]},
    "free superscript": {"hello": ["root /x", "clock 5", "free ² ²", "done"]},
    "file elsewhere": {"hello": [*HELLO[:-1], "file ../../../tmp/pwned eA==", "done"]},
    "file unknown": {"hello": [*HELLO[:-1], "file proc/a eA==", "done"]},
    "file not base64": {"hello": [*HELLO[:-1], "file proc/device-tree/model Y", "done"]},
    "files": {"hello": [*HELLO[:-1], *["file proc/device-tree/model eA=="] * 100, "done"]},
    "current elsewhere": {"hello": [*HELLO[:-1], "current ../../etc", "done"]},
    "escape": {"hello": ["fail write \x1b]0;pwn\x07\x1b[31mRED No space"]},
    "unknown failure": {"hello": ["fail because"]},
    "unknown word": {"hello": ["blah", *HELLO]},
    "needs a word": {"want": [f"need {D} x", "done"]},
    "needs nothing": {"want": ["need", "done"]},
    "needs another": {"want": [f"need {D} 0", "done"]},
    "needs less than nothing": {"want": ["need FIRST -5", "done"]},
    "needs too much": {"want": [f"need FIRST {N}", "done"]},
    "needs one twice": {"want": ["need FIRST 0", "need FIRST 0", "done"]},
    "data while sending": {"put": ["data 100"]},
    "sealed another": {"seal": [f"sealed {D}"]},
    "bad another": {"seal": [f"bad {D}"]},
    "data for a seal": {"seal": ["data 5"]},
    "rotten another": {"tree": [f"rotten {D}", "done"]},
    "switched to another": {"look": [f"current {D}", "done"]},
    "nested": {"hello": ["root /x", "clock 5", "edge " + "[" * 2_000_000]},
}
ENDLESS = ("without a line end", "lines", "frames", "errors")
# These take as long as a device may take to answer.
SILENT = ("mute", "drips", "dies", "dies late")

_PROGRAM = r"""#!PYTHON
import os, sys, time
lie, endless = LIE
out, inp = sys.stdout.buffer, sys.stdin.buffer
def forever(data, to=out):
    while True:
        to.write(data); to.flush()
if endless == "without a line end": forever(b"A" * 65536)
if endless == "lines": forever(b"y\n" * 30000)
if endless == "mute": time.sleep(600)
if endless == "dies": sys.exit(1)
if endless == "drips":
    while True: out.write(b".\n"); out.flush(); time.sleep(1)
if endless == "errors": forever(b"E" * 65536, sys.stderr.buffer)
n = int(inp.readline()); inp.read(n); nonce = inp.readline().strip()
def say(*lines):
    for line in lines:
        out.write(nonce + b" " + line.encode() + b"\n")
    out.flush()
say("ready 1")
if endless == "frames": forever(nonce + b" root /" + b"z" * 1000 + b"\n")
def line():
    found = inp.readline()
    if not found: sys.exit(0)
    return found.rstrip(b"\n").decode(errors="replace")
def lines():
    found = []
    while True:
        one = line()
        if not one: return found
        found.append(one)
HONEST = {"hello": ["root /x", "there yes", "clock 5", "free 100000000 4096", "done"],
          "begin": ["free 100000000 4096", "done"], "tree": ["done"], "switch": ["done"],
          "look": ["current BUNDLE", "done"], "adopt": ["done"]}
bundle = first = ""
while True:
    request = line()
    if request == "want" and endless == "dies late": os.kill(os.getpid(), 9)
    if request == "hello": [line() for _ in range(4)]
    elif request in ("begin", "switch"): words = [line() for _ in range(2)]
    elif request == "want":
        wanted = lines(); first = wanted[0]
        HONEST["want"] = [f"need {one} 0" for one in wanted] + ["done"]
    elif request == "put":
        inp.read(int(line().split()[2])); say(*lie.get("put", [])); continue
    elif request == "seal": HONEST["seal"] = [f"sealed {line()}"]
    elif request == "tree": bundle = line(); line(); line(); lines()
    elif request == "keepalive": continue
    told = lie.get(request, HONEST.get(request, ["done"]))
    say(*(one.replace("FIRST", first).replace("BUNDLE", bundle) for one in told))
"""


def write_lying_ssh(folder: Path, lie: str) -> Path:
    """Write a program called ssh into ``folder`` whose device tells one of ``LIES``, ``ENDLESS`` or ``SILENT``."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "ssh"
    told = repr((LIES.get(lie, {}), lie if lie in (*ENDLESS, *SILENT) else ""))
    program.write_text(_PROGRAM.replace("PYTHON", sys.executable).replace("LIE", told))
    program.chmod(0o755)
    return program
