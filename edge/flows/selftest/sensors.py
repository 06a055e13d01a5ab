"""Steps about the machine around the engine: what it is, its power sensors, its camera."""

from __future__ import annotations

from edge import telemetry
from edge.flows.selftest.bench import Bench
from edge.flows.selftest.record import Told, failed, ok, skipped

_READINGS = 5
_INTERVAL_S = 0.25


def machine(bench: Bench) -> Told:
    """Which machine this is, and whether edge supports it."""
    has = bench.machine
    name = has.product or has.model or has.cpu or "unknown machine"
    words = [name, f"{has.memory_mib} MiB" if has.memory_mib else "", f"JetPack {has.jetpack}" if has.jetpack else ""]
    words += [f"mode {has.power_mode}" if has.power_mode else ""]
    text = ", ".join(word for word in words if word)
    if has.unsupported:
        return failed(f"{text}: {has.unsupported}", hint="edge doctor")
    if bench.profile.family not in {"host", "rtx", has.family}:
        return failed(f"{text}; the profile is for {bench.profile.family}", hint="edge selftest without --profile")
    return ok(text)


def pictures(bench: Bench) -> Told:
    """Pictures to try it with."""
    if not bench.pictures:
        return failed("no pictures", hint="--images DIR; a checkout has some in samples/")
    return ok(f"{len(bench.pictures)} pictures", pictures=len(bench.pictures), digest=bench.pictures.digest())


def power(bench: Bench) -> Told:
    """Whether power can be read, from where, and what it is right now."""
    source = telemetry.probe(bench.root)
    if isinstance(source, telemetry.NoSource):
        reasons = {reason.source: reason.reason for reason in source.reasons}
        hint = next((reason.hint for reason in source.reasons if reason.hint), "edge doctor")
        if bench.machine.is_jetson:
            return failed("a Jetson has power sensors, and none can be read", hint=hint, **reasons)
        return skipped("no power sensor that can be read", hint=hint, **reasons)
    values = []
    try:
        for _ in range(_READINGS):
            bench.pause(_INTERVAL_S)
            reading = source.read()
            if reading.power_mw is not None:
                values.append(reading.power_mw)
    finally:
        source.close()
    figures = {"source": source.name, "scope": source.scope, "power_mw": values, "readings": _READINGS}
    if not values:
        return failed(
            f"{source.name} is there and gives no power in {_READINGS} readings", hint="edge doctor", **figures
        )
    mean = sum(values) / len(values)
    return ok(f"{mean / 1000:.2f} W by {source.name} ({source.scope}), {len(values)} readings", **figures)
