"""Steps about the machine around the engine: what it is, its power sensors, its camera."""

from __future__ import annotations

from edge import telemetry
from edge.diagnostics.selftest_context import SelfTestContext
from edge.diagnostics.selftest_record import StepOutcome, failed, ok, skipped
from edge.media import Frame, LiveStream, cameras, v4l2

_FRAMES = 10
_READINGS = 5
_INTERVAL_S = 0.25


def machine(bench: SelfTestContext) -> StepOutcome:
    """Identify this machine, and check that edge supports it."""
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


def pictures(bench: SelfTestContext) -> StepOutcome:
    """Pictures to try it with."""
    if not bench.pictures:
        return failed("no pictures", hint="--images DIR; a checkout has some in samples/")
    return ok(f"{len(bench.pictures)} pictures", pictures=len(bench.pictures), digest=bench.pictures.digest())


def power(bench: SelfTestContext) -> StepOutcome:
    """True if power can be read, from where, and what it is right now."""
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


def camera(bench: SelfTestContext) -> StepOutcome:
    """True if the camera gives frames: the one that was named, else the first that is there."""
    address = bench.camera
    if address is None:
        there = v4l2.cameras(bench.root)
        if not there:
            return skipped("no /dev/video*", hint="--camera csi://0 or an address, as in edge run")
        address = there[0].path
    settings = bench.profile.camera
    # An error already says what is wrong with a camera, and which command helps.
    stream = LiveStream(
        cameras.camera_source(address, settings, root=bench.root, backend=bench.has_capture), settings,
        open_capture=bench.open_capture,
    )  # fmt: skip
    taken: list[Frame] = []
    try:
        while len(taken) < _FRAMES:
            given = stream.next()
            if not isinstance(given, Frame):
                return failed(f"{address}: {given.reason if given else 'closed'} after {len(taken)} frames")
            taken.append(given)
            height, width = given.load().shape[:2]
    finally:
        stream.close()
    span = taken[-1].since_s - taken[0].since_s
    rate = (taken[-1].seq - taken[0].seq) / span if span > 0 else None
    figures = {
        "address": address, "width": width, "height": height, "rate_per_s": rate, "dropped": stream.dropped,
        "notes": stream.notes, "opened_as": stream.opened.opened_as,
    }  # fmt: skip
    pace = f", {rate:.1f} frames/s" if rate else ""
    return ok(f"{address}: {len(taken)} frames of {width}×{height}{pace}", **figures)
