"""Start the trial on the device: `edge canary` runs there, and only its report decides the verdict."""

from __future__ import annotations

import secrets

import msgspec

from edge.deploy import agent_protocol
from edge.deploy.agent_protocol import DeviceState, Trial
from edge.deploy.bundle import Bundle, signature
from edge.deploy.transport import DeviceAddress, DeviceSession
from edge.errors import DeviceError, UsageError
from edge.events import Listener, Note

# Limits of the canary by name, with their meaning.
GATES: dict[str, str] = {
    "labels": "golden images that may change their label",
    "distance": "distance of the outputs from the reference, relative (0 to 1)",
    "latency": "latency against the bundle in use, as a factor",
    "energy": "energy per image against the bundle in use, as a factor",
}
# Defaults of the factors; chosen, not derived: an engine that is rebuilt varies by some percent. Those of labels and
# distance come with the bundle.
FACTORS = {"latency": 1.25, "energy": 1.25}
# Below this difference a factor is meaningless: timer and scheduler have the same size.
SLOWER_MS = 0.1


def parse_gates(words: list[str]) -> dict[str, float]:
    """Parse ``NAME=NUMBER`` words as limits.

    Raises:
        UsageError: a name is unknown, or a value is not a number.
    """
    gates = {}
    for word in words:
        name, _, number = word.partition("=")
        if name not in GATES:
            raise UsageError(f"there is no gate {name!r}", hint=f"use one of {', '.join(GATES)}")
        try:
            gates[name] = float(number)
        except ValueError as exc:
            raise UsageError(f"gate {word!r}: {number!r} is not a number", hint=f"{name}=NUMBER") from exc
        if not 0 <= gates[name] < float("inf"):
            raise UsageError(f"gate {word!r}: must be 0 or more", hint=f"{name}: {GATES[name]}")
    return gates


def run(session: DeviceSession, bundle: Bundle, *, gates: dict[str, float], limit_s: int) -> Trial:
    """Let the device try a bundle; the device switches to it by itself if it passes.

    Raises:
        DeviceError: the device disconnects, or reports a verdict without a report of this trial.
    """
    nonce = secrets.token_hex(16)
    about = {"digest": bundle.digest, "name": bundle.about.name}
    lines = (
        agent_protocol.history_line("ship", trial="passed", **about),
        agent_protocol.history_line("trial failed", trial="failed", **about),
    )
    options = [word for name, value in sorted(gates.items()) for word in ("--gate", f"{name}={value:g}")]
    frames = session.ask("trial", bundle.digest, nonce, signature.check_script(), *lines, *options, "", limit_s=limit_s)
    return agent_protocol.read_trial(frames, digest=bundle.digest, nonce=nonce, where=session.where)


def bootstrap(
    session: DeviceSession, place: DeviceAddress, state: DeviceState, bundle: Bundle, listen: Listener
) -> DeviceState:
    """Install edge on the device from the wheels in the bundle, which was verified there.

    Raises:
        UsageError: the bundle contains no wheels.
        DeviceError: the installation failed; the message has the end of its log.
    """
    if not any(name.startswith("wheels/") for name in bundle.files):
        raise UsageError("the bundle contains no wheels", where=bundle.path, hint="edge bundle create --with-wheels …")
    listen(Note(f"{place.name}: installing edge from the bundle"))
    frames = session.ask("bootstrap", bundle.digest, limit_s=1800)
    found = {frame.word: frame.text for frame in frames}
    if found.get("code") != "0":
        words = agent_protocol.last_words(agent_protocol.decoded(found.get("log", "")))
        raise DeviceError(
            f"edge could not be installed: {words}", where=place.name,
            hint="the bundle in use is the same as before; look at incoming/install.log on the device",
        )  # fmt: skip
    return msgspec.structs.replace(state, edge=found.get("edge"), foreign_edge=found.get("foreign"))
