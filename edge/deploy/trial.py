"""The trial on the device, as it looks from here: `edge canary` runs there, and the script goes back when it fails."""

from __future__ import annotations

from typing import Any

import msgspec

from edge.deploy import agent_protocol
from edge.deploy.agent_protocol import DeviceState
from edge.deploy.bundle import Bundle, printable_name
from edge.deploy.transport import DeviceAddress, DeviceSession
from edge.errors import DeviceError, UsageError
from edge.events import Listener, Note

# Limits of the canary by name, and what each is.
GATES: dict[str, str] = {
    "labels": "golden pictures that may change their label",
    "distance": "distance of the outputs from the reference, relative (0 to 1)",
    "latency": "latency against the previous bundle, as a factor",
    "energy": "energy per picture against the previous bundle, as a factor",
}


# The edge there does not know the trial (2), cannot be started (126), or is not there (127): nothing about the bundle.
_UNTRIED = frozenset({2, 126, 127})


class TrialVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the canary said. ``passed`` is None when the edge there could not try it; ``report`` is its own JSON."""

    passed: bool | None
    reason: str | None = None
    report: dict[str, Any] | None = None


def parse_gates(words: list[str]) -> dict[str, float]:
    """``NAME=NUMBER`` words as limits.

    Raises:
        UsageError: an unknown name, or no number.
    """
    gates = {}
    for word in words:
        name, _, number = word.partition("=")
        if name not in GATES:
            raise UsageError(f"there is no gate {name!r}", hint=f"one of {', '.join(GATES)}")
        try:
            gates[name] = float(number)
        except ValueError as exc:
            raise UsageError(f"gate {word!r}: {number!r} is not a number", hint=f"{name}=NUMBER") from exc
        if not 0 <= gates[name] < float("inf"):
            raise UsageError(f"gate {word!r}: must be 0 or more", hint=f"{name}: {GATES[name]}")
    return gates


def run(session: DeviceSession, bundle: Bundle, *, gates: dict[str, float], wait_s: int) -> TrialVerdict:
    """Have the device try its current bundle; when it fails there, the device has gone back by itself."""
    line = agent_protocol.history_line("back", digest=bundle.digest, name=bundle.about.name)
    options = [word for name, value in sorted(gates.items()) for word in ("--gate", f"{name}={value:g}")]
    frames = session.ask("canary", bundle.digest, line, *options, "", silence_s=wait_s)
    said = {frame.word: frame.text for frame in frames}
    code, log = int(said["code"]), agent_protocol.decoded(said.get("log", ""))
    try:
        report = msgspec.json.decode(agent_protocol.decoded(said.get("report", "")), type=dict[str, Any])
    except msgspec.DecodeError:
        report = None
    if code == 0:
        return TrialVerdict(passed=True, report=report)
    if code in _UNTRIED:
        return TrialVerdict(passed=None, reason=f"the edge on the device cannot try it: {_words(log)}", report=report)
    failed = report.get("failed") if report else None
    said_why = "; ".join(map(str, failed)) if isinstance(failed, list) else ""
    reason = printable_name(said_why) or _words(log) or f"exit code {code}"
    return TrialVerdict(passed=False, reason=reason, report=report)


def bootstrap(
    session: DeviceSession, place: DeviceAddress, state: DeviceState, bundle: Bundle, listen: Listener
) -> DeviceState:
    """Install edge on the device from the wheels in the bundle, which has been verified there.

    Raises:
        DeviceError: it does not work; the words of the installer say why.
    """
    if not any(name.startswith("wheels/") for name in bundle.files):
        raise UsageError("the bundle holds no wheels", where=bundle.path, hint="edge bundle create --with-wheels …")
    listen(Note(f"{place.name}: installing edge from the bundle"))
    said = {frame.word: frame.text for frame in session.ask("bootstrap", bundle.digest, silence_s=1800)}
    if said.get("code") != "0":
        raise DeviceError(
            f"edge could not be installed: {_words(agent_protocol.decoded(said.get('log', '')))}", where=place.name,
            hint="`current` was not touched; look at incoming/install.log on the device",
        )  # fmt: skip
    return msgspec.structs.replace(state, edge=said.get("edge"))


def _words(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [""])[-1][:300]
