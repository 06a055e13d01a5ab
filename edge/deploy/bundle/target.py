"""True if a bundle is for a machine: its device family and its JetPack release."""

from __future__ import annotations

from edge.deploy.bundle.manifest import BundleManifest
from edge.errors import DeviceError
from edge.system import Device


def mismatch(about: BundleManifest, machine: Device) -> str | None:
    """The reason why the bundle is not for ``machine``, in words; None when it is.

    A desktop with an RTX card is a host like any other to :mod:`edge.system.device`, so a bundle for ``rtx`` is
    for hosts.
    A release of JetPack matches with all of its updates: 6.2 is also 6.2.1, and is not 6.20.
    """
    where = machine.product or machine.model or machine.machine or "this machine"
    if machine.family is None:
        return f"{where} is of no device family that edge knows: {machine.unsupported or 'unknown'}"
    family = "host" if about.family == "rtx" else about.family
    if family != machine.family:
        return f"the bundle is for {about.family}, {where} is {machine.family}"
    if about.jetpack is None or not machine.is_jetson:
        return None
    wanted = " or ".join(about.jetpack)
    if machine.jetpack is None:
        return f"the bundle is for JetPack {wanted}, and which JetPack {where} has cannot be told"
    if not any(f"{machine.jetpack}.".startswith(f"{release}.") for release in about.jetpack):
        return f"the bundle is for JetPack {wanted}, {where} has {machine.jetpack}"
    return None


def check(about: BundleManifest, machine: Device) -> None:
    """Refuse a bundle that is for another machine.

    Raises:
        DeviceError: saying what it is for and what this is.
    """
    why = mismatch(about, machine)
    if why is not None:
        raise DeviceError(why, hint="edge bundle show FILE; make one with the profile of this device")
