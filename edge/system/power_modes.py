"""Show, set and restore power modes with nvpmodel and jetson_clocks.

If a mode needs a reboot (the set of cores or of GPU partitions changes: 7 W on an Orin Nano, MAXN on an AGX Orin),
nvpmodel asks for it on its standard input. edge closes standard input: nvpmodel then changes nothing, and edge raises
an error with the command to type. The previous state is stored on disk before anything changes, so it can be restored
even after a crash. Not tried on a Jetson: the tests replace both programs with scripts.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from edge.artifacts import store
from edge.errors import ArtifactError, DeviceError, UsageError
from edge.system import nvpmodel
from edge.system.device import in_container
from edge.system.nvpmodel import Listing, Mode

FORMAT = 1
_FOLDERS = ("usr/sbin", "usr/bin", "sbin", "bin")
_TIMEOUT_S = 60.0
_NO_NVPMODEL = "there is no nvpmodel on this machine: only a Jetson has power modes"
_SEE_MODE = (
    "set the mode on the host (sudo nvpmodel -m N); to see it here, docker run "
    "-v /etc/nvpmodel.conf:/etc/nvpmodel.conf:ro -v /var/lib/nvpmodel:/var/lib/nvpmodel:ro"
)


class PowerModeState(msgspec.Struct, frozen=True, kw_only=True):
    """Power mode of this machine, its available modes, and whether the clocks are locked (None: unknown).

    ``changed`` is what edge has set and not restored yet. ``notes`` are nvpmodel's own warnings.
    """

    mode: Mode
    modes: tuple[Mode, ...]
    default: Mode | None
    clocks_locked: bool | None
    changed: PowerModeChange | None = None
    notes: tuple[str, ...] = ()


class PowerModeChange(msgspec.Struct, frozen=True, kw_only=True):
    """State before edge changed it: the mode, and whether clocks were stored before they were locked."""

    format: int
    changed_utc: str
    before: Mode
    clocks_stored: bool


def show(root: Path = Path("/")) -> PowerModeState:
    """Return the current power mode from ``nvpmodel -q``, or from nvpmodel's files if it cannot be run.

    Raises:
        DeviceError: this machine has no power modes, or they cannot be read.
    """
    program = _find(root, "nvpmodel")
    text, listed = "", nvpmodel.listing(root)
    if program is not None:
        text = _run([program, "-q"], timeout_s=_TIMEOUT_S).text
        if not listed.modes:
            listed = nvpmodel.parse_listing(_run([program, "-p", "--verbose"], timeout_s=_TIMEOUT_S).text)
    mode = nvpmodel.parse_query(text) or nvpmodel.current(root)
    if mode is None:
        if program is None and not listed.modes:
            raise DeviceError(_NO_NVPMODEL) if not in_container(root) else _outside("nvpmodel")
        reported = "; ".join(nvpmodel.errors(text)) or text.strip() or "nothing"
        raise DeviceError("the power mode cannot be read", where=program, hint=f"nvpmodel reported: {reported}")
    return PowerModeState(
        mode=mode,
        modes=listed.modes,
        default=listed.default,
        clocks_locked=nvpmodel.clocks_locked(root),
        changed=_load_change(root),
        notes=nvpmodel.errors(text),
    )


def set_mode(
    wanted: str,
    root: Path = Path("/"),
    *,
    lock_clocks: bool = False,
    again: str | None = None,
    timeout_s: float = _TIMEOUT_S,
) -> PowerModeState:
    """Switch to the mode with that name or number; with ``lock_clocks`` lock all clocks at that mode's maximum.

    The previous state is stored first; :func:`restore` returns to it. ``again`` is the command to show in the hint when
    root is needed.

    Raises:
        DeviceError: not root, not a Jetson, the mode needs a reboot, or nvpmodel or jetson_clocks failed.
        UsageError: there is no such mode.
    """
    now = show(root)
    mode = _choose(wanted, now)
    changes_mode = mode.number != now.mode.number
    if not changes_mode and not lock_clocks:
        return now
    _need_root(again)
    clocks = _need(root, "jetson_clocks") if lock_clocks else None
    change = now.changed or PowerModeChange(
        format=FORMAT, changed_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"), before=now.mode,
        clocks_stored=False,
    )  # fmt: skip
    if clocks is not None and not change.clocks_stored:
        # Stored in the old mode; jetson_clocks asks before it overwrites a file, so the file must not exist.
        _clocks_file(root).parent.mkdir(parents=True, exist_ok=True)
        _clocks_file(root).unlink(missing_ok=True)
        _run_clocks([clocks, "--store", str(_clocks_file(root))])
        change = msgspec.structs.replace(change, clocks_stored=True)
    _save_change(root, change)
    if changes_mode:
        try:
            _switch(_need(root, "nvpmodel"), mode, root, timeout_s=timeout_s)
        except DeviceError:
            if now.changed is None:
                _forget_change(root)
            raise
    if clocks is not None:
        _run_clocks([clocks])
    return show(root)


def restore(root: Path = Path("/"), *, again: str | None = None) -> PowerModeState:
    """Restore the state from before edge changed the power mode.

    Raises:
        DeviceError: not root, the previous mode needs a reboot, or nvpmodel or jetson_clocks failed.
        UsageError: edge has changed nothing.
    """
    change = _load_change(root)
    if change is None:
        raise UsageError("there is nothing to restore: edge has not changed the power mode", hint="edge power set MODE")
    _need_root(again)
    now = show(root)
    if now.mode.number != change.before.number:
        _switch(_need(root, "nvpmodel"), change.before, root)
    if change.clocks_stored:
        _run_clocks([_need(root, "jetson_clocks"), "--restore", str(_clocks_file(root))])
    _forget_change(root)
    return show(root)


@contextlib.contextmanager
def during(wanted: str, root: Path = Path("/"), *, again: str | None = None) -> Iterator[PowerModeState]:
    """Set a power mode for the duration of a block and restore the previous one, also after an exception.

    A change by an earlier command that was not restored stays stored, for ``edge power restore``.

    Raises:
        DeviceError, UsageError: as :func:`set_mode`; the block does not run then.
    """
    before = show(root)
    state = set_mode(wanted, root, again=again)
    try:
        yield state
    finally:
        if state.mode.number != before.mode.number:
            if before.changed is None:
                restore(root)
            else:
                _switch(_need(root, "nvpmodel"), before.mode, root)


def mode_warning(wanted: str | None, root: Path = Path("/")) -> str | None:
    """Return a warning if the device is not in the profile's power mode, or has none; runs no program."""
    if wanted is None:
        return None
    mode, listed = nvpmodel.current(root), nvpmodel.listing(root)
    if mode is None:
        return f"the profile asks for power mode {wanted}, but this machine's power mode is unknown"
    target = listed.find(wanted)
    if target is None and listed.modes:
        names = ", ".join(m.name for m in listed.modes)
        return f"the profile asks for power mode {wanted}, but this device does not have that mode (it has {names})"
    if Listing((mode,)).find(wanted) or (target is not None and target.number == mode.number):
        return None
    return f"the profile asks for power mode {wanted}, but the device is in {mode} (edge power set {wanted})"


def _choose(wanted: str, now: PowerModeState) -> Mode:
    mode = Listing(now.modes or (now.mode,)).find(wanted)
    if mode is None:
        names = ", ".join(f"{m.name} ({m.number})" for m in now.modes) or "none are configured"
        raise UsageError(f"there is no power mode {wanted!r} on this device", hint=f"one of {names}")
    return mode


def _switch(program: Path, mode: Mode, root: Path, *, timeout_s: float = _TIMEOUT_S) -> None:
    """Set the mode and verify that it is set."""
    done = _run([program, "-m", str(mode.number)], timeout_s=timeout_s)
    after = nvpmodel.parse_query(_run([program, "-q"], timeout_s=_TIMEOUT_S).text) or nvpmodel.current(root)
    if done.code == 0 and after is not None and after.number == mode.number:
        return
    if nvpmodel.asks_to_reboot(done.text):
        raise DeviceError(
            f"power mode {mode} needs a reboot, and edge does not reboot; the mode is still {after or 'unknown'}",
            hint=f"sudo nvpmodel -m {mode.number}  and answer YES to reboot; then run edge again",
        )
    reported = "; ".join(nvpmodel.errors(done.text)) or done.text.strip().split("\n")[-1] or f"status {done.code}"
    raise DeviceError(f"nvpmodel did not switch to {mode}; the mode is {after or 'unknown'}: {reported}", where=program)


class _Done(msgspec.Struct, frozen=True):
    code: int
    text: str


def _run(command: list[Path | str], *, timeout_s: float) -> _Done:
    """Run a program with empty standard input, detached from the terminal, and return its output.

    A stop signal in the meantime waits for the program: a half-set mode is worse than a late end.
    """
    program = Path(command[0])
    try:
        child = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
        )
    except OSError as exc:
        raise DeviceError(f"the program cannot be started: {exc.strerror or exc}", where=program) from exc
    try:
        out, _ = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as exc:
        _kill(child)
        raise DeviceError(f"the program did not end within {timeout_s:g} s and was stopped", where=program) from exc
    except BaseException:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.communicate(timeout=10)
        _kill(child)
        raise
    return _Done(child.returncode, out.decode(errors="replace"))


def _kill(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.kill()
        child.communicate()


def _run_clocks(command: list[Path | str]) -> None:
    done = _run(command, timeout_s=_TIMEOUT_S)
    if done.code != 0:
        reported = done.text.strip().split("\n")[-1] or "no reason given"
        raise DeviceError(
            f"jetson_clocks failed with status {done.code}: {reported}",
            where=Path(command[0]),
            hint="edge power restore  restores the power mode",
        )


def _need_root(again: str | None) -> None:
    if os.geteuid() != 0:
        raise DeviceError("changing the power mode needs root", hint=f"sudo {again}" if again else "run it with sudo")


def _outside(name: str) -> DeviceError:
    return DeviceError(
        f"{name} is outside of this container: power modes and clocks are set on the host", hint=_SEE_MODE
    )


def _need(root: Path, name: str) -> Path:
    found = _find(root, name)
    if found is None and in_container(root):
        raise _outside(name)
    if found is None:
        raise DeviceError(f"there is no {name} on this machine", hint="it comes with Jetson Linux (nvidia-l4t-tools)")
    return found


def _find(root: Path, name: str) -> Path | None:
    with contextlib.suppress(OSError):  # a folder that this user may not enter
        return next((path for folder in _FOLDERS if (path := root / folder / name).is_file()), None)
    return None


def _change_file(root: Path) -> Path:
    return root / "var/lib/edge/power.json"


def _clocks_file(root: Path) -> Path:
    return root / "var/lib/edge/jetson_clocks.conf"


def _save_change(root: Path, change: PowerModeChange) -> None:
    store.write_bytes(_change_file(root), msgspec.json.encode(change))


def _load_change(root: Path) -> PowerModeChange | None:
    path = _change_file(root)
    try:
        change = msgspec.json.decode(path.read_bytes(), type=PowerModeChange)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise ArtifactError(f"cannot read the stored power mode: {exc.strerror}", where=path) from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ArtifactError(f"the stored power mode is damaged: {exc}", where=path, hint=f"rm {path}") from exc
    if change.format != FORMAT:
        raise ArtifactError(
            f"the stored power mode has format {change.format}; this edge reads format {FORMAT}", where=path
        )
    return change


def _forget_change(root: Path) -> None:
    for path in (_change_file(root), _clocks_file(root)):
        path.unlink(missing_ok=True)
