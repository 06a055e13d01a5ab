"""Check this machine for ``edge doctor``: its properties, missing parts, and the next steps.

Nothing is changed and nothing is sent. It checks for the problems that Jetson users report most: NumPy 2 under JetPack
6, an OpenCV without GStreamer, a TensorRT that this Python cannot see or that does not import, a container without the
device tree, missing groups, no swap, a clock that was never set, a GPU clock below that of the power mode.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from edge.config import Profile, available_profiles, read_profile
from edge.deploy.bundle import Deployed, deployed
from edge.errors import DEPENDENCIES, ProfileError, install_command
from edge.system import (
    DISTRIBUTIONS,
    Device,
    OptionalDependency,
    Process,
    device_tree,
    identify,
    in_container,
    nvpmodel,
    this_process,
)
from edge.telemetry import SOURCES, Board, Unavailable, open_source

Level = Literal["ok", "warning", "problem"]
Group = Literal["machine", "python", "dependencies", "cameras", "power", "profiles"]

_INSTALL: dict[str, str] = {
    **DEPENDENCIES,
    "tensorrt": "sudo apt install python3-libnvinfer",
}
_FOR_HOST = {"numpy", "cv2", "onnx", "onnxruntime"}
_FOR_JETSON = {"numpy", "cv2", "tensorrt", "pycuda"}
_BACKEND_DEPENDENCIES = {"onnxruntime": ("onnxruntime",), "tensorrt": ("tensorrt", "pycuda")}
# NVIDIA's Python package on PyPI has no build for Tegra: on a Jetson it comes by apt only.
_TENSORRT_AGAIN = "sudo apt install --reinstall python3-libnvinfer"
_GROUPS = {"video": "cameras and GPU nodes", "render": "render nodes of the GPU"}
_PIP_UNINSTALL = f"{shlex.quote(sys.executable or 'python3')} -m pip uninstall"
_VENV = "/usr/bin/python3 -m venv --system-site-packages .venv  (and install edge there)"

_LOW_DISK_MIB = 2048
_VERY_LOW_DISK_MIB = 512
_SMALL_MEMORY_MIB = 10 * 1024
# A clock before this was never set: no file of this version of edge can be older.
_EARLIEST_S = 1_700_000_000  # 2023-11-14


class DoctorFinding(msgspec.Struct, frozen=True, kw_only=True):
    """One checked item. ``value`` is a version or a path, if there is one."""

    group: Group
    name: str
    level: Level
    text: str
    value: str | None = None
    next_step: str | None = None


class DoctorReport(msgspec.Struct, frozen=True):
    """The device and all findings, in display order."""

    device: Device
    findings: tuple[DoctorFinding, ...]


def examine(
    root: Path, profiles: list[Path], *, shipped: Deployed | None = None, process: Process | None = None,
    now_s: float | None = None,
) -> DoctorReport:  # fmt: skip
    """Examine the machine under ``root`` and the profiles in the folders ``profiles``.

    ``shipped`` is the bundle in use on this device. ``process`` is the Python to examine, by default the running one,
    and ``now_s`` the time in seconds since 1970. Problems are findings: this does not raise.
    """
    process = process or this_process()
    device = identify(root)
    findings = [
        *_machine(root, device, process),
        *_container(root, device),
        *_clock(time.time() if now_s is None else now_s),
        *_python(root, device, process),
        *_dependencies(device, process),
        *_cameras(root, device, process),
        *_power(root, device),
        *_named_power(root, process),
        *_profiles(profiles, shipped, device, process),
    ]
    return DoctorReport(device, tuple(findings))


def _machine(root: Path, device: Device, process: Process) -> Iterator[DoctorFinding]:
    what = ", ".join(
        word for word in (device.product, device.module, device.model if device.is_jetson else device.cpu) if word
    )
    yield _finding("machine", "device", what or "unknown", value=device.family)
    if device.unsupported:
        yield _finding("machine", "support", device.unsupported, level="problem", step=_way_out(device))
    memory = f"{device.memory_mib} MiB" if device.memory_mib else "unknown"
    yield _finding("machine", "cpu", f"{device.cores or '?'} cores, {memory} of memory, {device.machine or '?'}")
    if device.is_jetson:
        system = f"JetPack {device.jetpack or 'unknown'} (L4T {device.l4t or 'unknown'})"
        gpu = f"GPU of compute capability {device.sm or 'unknown'}"
        yield _finding("machine", "system", f"{system}, {gpu}", value=device.l4t)
        locked = {True: "locked", False: "not locked: latency varies with load", None: "unknown"}
        text = f"{device.power_mode or 'unknown'}, clocks {locked[device.clocks_locked]}"
        step = "sudo jetson_clocks  (for measurements)" if device.clocks_locked is False else None
        yield _finding("machine", "power mode", text, value=device.power_mode, step=step)
        yield from _gpu_clock(root, device)
        yield from _throttling(root)
        yield from _swap(root, device)
    yield _disk(process)


def _way_out(device: Device) -> str:
    if device.family is not None:
        return "flash JetPack 6 or newer"
    known = device.soc in {None, "tegra234", "tegra264"}
    return "name a profile with --profile; edge profile list" if known else "a Jetson Orin or Thor is needed"


def _gpu_clock(root: Path, device: Device) -> Iterator[DoctorFinding]:
    capped = nvpmodel.gpu_clock_cap(root, device.module)
    if capped is not None:
        text = f"at most {capped[0]} MHz, where the mode {device.power_mode} allows {capped[1]} MHz"
        step = (
            "sudo nvpmodel -m N for this mode again, then reboot; if it stays, the boot firmware is of another "
            "configuration: flash JetPack for this module again (a Super module: its -super configuration)"
        )
        yield _finding("machine", "gpu clock", text, level="warning", value=f"{capped[0]} MHz", step=step)


def _container(root: Path, device: Device) -> Iterator[DoctorFinding]:
    if not in_container(root):
        return
    if not device.is_jetson:
        text = "this is a container; on a Jetson it needs the runtime nvidia and a mount of the device tree"
        yield _finding("machine", "container", text, step="docs/containers.md has the command")
        return
    mounts = {
        "the device tree": (device_tree(root) / "compatible", "/sys/firmware/devicetree/base:/run/host/device-tree:ro"),
        "the release of Jetson Linux": (
            root / "etc/nv_tegra_release",
            "/etc/nv_tegra_release:/etc/nv_tegra_release:ro",
        ),
        "the power modes": (root / "etc/nvpmodel.conf", "/etc/nvpmodel.conf:/etc/nvpmodel.conf:ro"),
        "the power mode that is set": (nvpmodel.status_file(root), "/var/lib/nvpmodel:/var/lib/nvpmodel:ro"),
    }
    hidden = {what: mount for what, (file, mount) in mounts.items() if not file.exists()}
    text = "this is a container: nvpmodel, jetson_clocks and tegrastats run on the host"
    if hidden:
        step = "docker run " + " ".join(f"-v {mount}" for mount in hidden.values())
        yield _finding("machine", "container", f"{text}; not seen: {', '.join(hidden)}", level="warning", step=step)
    else:
        yield _finding("machine", "container", text)


def _clock(now_s: float) -> Iterator[DoctorFinding]:
    if now_s < _EARLIEST_S:
        day = time.strftime("%Y-%m-%d", time.gmtime(max(now_s, 0)))
        text = f"the clock says {day}: signatures, certificates and records"
        step = "sudo timedatectl set-ntp true, or sudo date -s 'YYYY-MM-DD HH:MM'"
        yield _finding("machine", "clock", f"{text} have wrong times or are refused", level="problem", step=step)


def _throttling(root: Path) -> Iterator[DoctorFinding]:
    counts = Board(root, clock=time.monotonic).read().throttles
    words = {"oc1": "under-voltage", "oc2": "mean over-current", "oc3": "peak over-current"}
    seen = [f"{counts[name]} × {word}" for name, word in words.items() if counts.get(name)]
    if seen:
        # Short peaks (oc3) are counted under any heavy load; the other two mean that the supply does not keep up.
        serious = bool(counts.get("oc1") or counts.get("oc2"))
        yield _finding(
            "machine",
            "throttling",
            f"{', '.join(seen)} since boot",
            level="warning" if serious else "ok",
            step="check the power supply and its cable, or choose a lower power mode" if serious else None,
        )


def _swap(root: Path, device: Device) -> Iterator[DoctorFinding]:
    if device.memory_mib is None or device.memory_mib > _SMALL_MEMORY_MIB:
        return
    try:
        lines = (root / "proc/swaps").read_text(encoding="utf-8", errors="replace").splitlines()[1:]
    except OSError:
        return
    areas = [line.split()[0] for line in lines if line.split()]
    if any("zram" not in area for area in areas):
        yield _finding("machine", "swap", ", ".join(areas))
        return
    yield _finding(
        "machine",
        "swap",
        "only zram, which is memory itself" if areas else "none: an engine build may be killed for lack of memory",
        level="warning",
        step="sudo fallocate -l 8G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile && "
        "sudo swapon /swapfile",
    )


def _disk(process: Process) -> DoctorFinding:
    level: Level = "ok"
    if process.free_mib < _LOW_DISK_MIB:
        level = "problem" if process.free_mib < _VERY_LOW_DISK_MIB else "warning"
    step = None if level == "ok" else "free some space: engines, tables and timing caches are written here"
    return _finding("machine", "disk", f"{process.free_mib} MiB free in this folder", level=level, step=step)


def _python(root: Path, device: Device, process: Process) -> Iterator[DoctorFinding]:
    kind = "no virtual environment"
    if process.in_venv:
        kind = f"virtual environment{' with system packages' if process.system_site else ''}"
    yield _finding("python", "python", f"{process.version}, {kind}", value=process.executable)
    if not device.is_jetson:
        return
    hidden = sorted(root.glob("usr/lib/python3*/dist-packages/tensorrt"))
    if "tensorrt" not in process.dependencies and hidden:
        text = "TensorRT is installed for the system's Python, but this Python cannot import it"
        yield _finding("python", "tensorrt", text, level="problem", step=_VENV, value=str(hidden[0]))
    elif process.base_prefix != "/usr":
        text = f"this is not the system's Python ({process.base_prefix}): NVIDIA's packages need the system's"
        yield _finding("python", "origin", text, level="warning", step=_VENV)


def _dependencies(device: Device, process: Process) -> Iterator[DoctorFinding]:
    needed = _FOR_JETSON if device.is_jetson else _FOR_HOST
    for name in DISTRIBUTIONS:
        dependency = process.dependencies.get(name)
        if dependency is not None:
            yield _present(name, dependency, device)
        elif name in needed:
            text = "not installed"
            yield _finding("dependencies", name, text, level="problem", step=_INSTALL[name])
        elif name in _FOR_HOST or device.is_jetson:
            why = "optional" if name == "jtop" else "only needed to calibrate or evaluate on this machine"
            yield _finding("dependencies", name, f"not installed; {why}", step=_INSTALL[name])
        else:
            yield _finding("dependencies", name, "not installed; not needed on this machine")


def _present(name: str, dependency: OptionalDependency, device: Device) -> DoctorFinding:
    version = dependency.version or "unknown version"
    level: Level = "warning"
    on_jetpack6 = (device.l4t or "").startswith("36.")
    if name == "tensorrt" and device.is_jetson and dependency.distributions and dependency.problem is not None:
        level, text = "problem", f"{dependency.problem}; it is from PyPI, which has no build for a Jetson"
        step = f"{_PIP_UNINSTALL} {' '.join(dependency.distributions)}; {_TENSORRT_AGAIN}"
    elif dependency.problem is not None:
        again = _TENSORRT_AGAIN if name == "tensorrt" and device.is_jetson else _INSTALL[name]
        level, text, step = "problem", dependency.problem, f"install it again: {again}"
    elif name == "numpy" and on_jetpack6 and _major(version) >= 2:
        level, text = "problem", f"{version}: the packages of JetPack 6 are built for NumPy 1"
        step = install_command("numpy>=1.26,<2")
    elif name == "cv2" and len(dependency.distributions) > 1:
        text = f"{version}, from several packages that overwrite each other: {', '.join(dependency.distributions)}"
        step = f"{_PIP_UNINSTALL} {' '.join(dependency.distributions)}; then install one of them"
    elif name == "cv2" and device.is_jetson and dependency.gstreamer is False:
        text = f"{version} without GStreamer: no CSI camera, no hardware decoder"
        step = (
            f"{_PIP_UNINSTALL} {' '.join(dependency.distributions) or 'opencv-python'}; "
            "sudo apt install libopencv-python"
        )
    else:
        has = {True: ", with GStreamer", False: ", without GStreamer", None: ""}[dependency.gstreamer]
        return _finding("dependencies", name, f"{version}{has}", value=dependency.version)
    return _finding("dependencies", name, text, level=level, value=dependency.version, step=step)


def _cameras(root: Path, device: Device, process: Process) -> Iterator[DoctorFinding]:
    nodes = sorted((root / "dev").glob("video[0-9]*"), key=lambda path: (len(path.name), path.name))
    names: dict[str, str] = {}
    for link in sorted((root / "dev/v4l/by-id").glob("*")):
        names.setdefault(link.resolve().name, link.name)
    for node in nodes:
        about = root / "sys/class/video4linux" / node.name
        label = _line(about / "name") or "camera"
        # Only the first node of a camera gives pictures; the others carry metadata.
        role = " (metadata)" if (_line(about / "index") or "0") != "0" else ""
        stable = names.get(node.name)
        text = f"{label}{role}{f', by-id {stable}' if stable else ''}"
        if os.access(node, os.R_OK | os.W_OK):
            yield _finding("cameras", node.name, text, value=f"/dev/{node.name}")
        else:
            text, step = f"{text}: no permission", "sudo usermod -aG video $USER  (then log in again)"
            yield _finding("cameras", node.name, text, level="warning", value=f"/dev/{node.name}", step=step)
    if not nodes:
        yield _finding("cameras", "none", "no /dev/video*; only needed for cameras")
    owners = re.findall(r"(?m)^(video|render):[^:]*:(\d{1,9}):", _text(root / "etc/group"))
    missing = [name for name, number in owners if int(number) not in process.groups]
    if device.is_jetson and missing and process.user_id != 0:
        step = f"sudo usermod -aG {','.join(missing)} $USER  (then log in again)"
        if in_container(root):
            step = "docker run " + " ".join(f"--group-add {number}" for name, number in owners if name in missing)
        text = "this user is not in " + " and ".join(
            f"the group {name}, which owns {_GROUPS[name]}" for name in missing
        )
        yield _finding("cameras", "group", text, level="warning", step=step)


def _power(root: Path, device: Device) -> Iterator[DoctorFinding]:
    chosen = False
    unavailable: list[Unavailable] = []
    for name in (name for name, entry in SOURCES.items() if entry.is_probed):
        source = open_source(name, root)
        if isinstance(source, Unavailable):
            unavailable.append(source)
            continue
        partial = source.scope == "partial"
        text = f"works, scope {source.scope}{'' if chosen else '; this one is used'}"
        text += ": less than the power of the whole module" if partial else ""
        yield _finding("power", name, text, level="warning" if partial and not chosen else "ok", value=source.scope)
        source.close()
        chosen = True
    for reason in unavailable:
        # The user can fix this, and no other source works: worth a warning.
        level: Level = "warning" if reason.hint and not chosen else "ok"
        yield _finding("power", reason.source, f"not used: {reason.reason}", level=level, step=reason.hint)
    if not chosen:
        # A Jetson has the sensors: that none can be used is not in order. A host often has none.
        level = "warning" if device.is_jetson else "ok"
        yield _finding("power", "none", "power will be reported as not measured", level=level)


def _named_power(root: Path, process: Process) -> Iterator[DoctorFinding]:
    """Check the sources that are used only when named explicitly."""
    for name, entry in SOURCES.items():
        if entry.is_probed or name == "none":
            continue
        only = f"only when named explicitly (--power {name})"
        if entry.dependency is not None:
            state = "installed" if entry.dependency in process.dependencies else "not installed"
            yield _finding("power", name, f"{only}; {state}")
        elif entry.has_root or root == Path("/"):
            source = open_source(name, root)
            if isinstance(source, Unavailable):
                yield _finding("power", name, f"{only}; not here: {source.reason}")
                continue
            yield _finding("power", name, f"{only}; works, scope {source.scope}", value=source.scope)
            source.close()


def _profiles(
    folders: list[Path], shipped: Deployed | None, device: Device, process: Process
) -> Iterator[DoctorFinding]:
    paths = {path.stem: path for path in available_profiles(folders)}
    if shipped is not None:
        paths[deployed.CURRENT] = shipped.profile
    if not paths:
        where = ", ".join(str(folder) for folder in folders) or "no folder profiles/"
        step = "run edge inside a checkout or in a folder with profiles/NAME.yaml"
        yield _finding("profiles", "none", f"no profile: {where}", level="warning", step=step)
    for name, path in paths.items():
        try:
            profile = read_profile(path)
        except ProfileError as exc:
            text = f"{exc.where}: {exc.what}"
            yield _finding("profiles", name, text, level="problem", value=str(path), step=exc.hint)
            continue
        yield _profile(name, path, profile, device, process)


def _profile(name: str, path: Path, profile: Profile, device: Device, process: Process) -> DoctorFinding:
    fits = profile.family in {"host", device.family}
    missing, steps = [], []
    for what, file in (("model", profile.model), ("labels", profile.labels)):
        if not Path(file).is_file():
            missing.append(f"{what} {file}")
            steps.append(f"put the {what} there, or change {path}")
    for dependency in _BACKEND_DEPENDENCIES.get(profile.backend, ()) if fits else ():
        found = process.dependencies.get(dependency)
        if found is None or found.problem:
            missing.append(f"optional dependency {dependency}{'' if found is None else ', which does not import'}")
            steps.append(_INSTALL[dependency] if found is None else "see dependencies above")
    where = "" if fits else f"for {profile.family}, this is {device.family or 'another device'}"
    if not missing:
        text = where or f"ready: {profile.backend}, {profile.precision}"
        return _finding("profiles", name, text, value=str(path))
    text = f"{where + '; ' if where else ''}missing: {', '.join(missing)}"
    level: Level = "problem" if fits else "warning"
    return _finding("profiles", name, text, level=level, value=str(path), step="; ".join(steps))


def _finding(
    group: Group, name: str, text: str, *, level: Level = "ok", value: str | None = None, step: str | None = None
) -> DoctorFinding:
    return DoctorFinding(group=group, name=name, level=level, text=text, value=value, next_step=step)


def _major(version: str) -> int:
    match = re.match(r"\d{1,6}", version)
    return int(match[0]) if match else 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _line(path: Path) -> str:
    return _text(path).strip()
