"""Choose the INT8 route: implicit (a calibrator serves the table) or explicit (Q/DQ nodes in the network)."""

from __future__ import annotations

from typing import Literal

import msgspec

from edge.backends.tensorrt.environment import Caps
from edge.config import Precision, Profile
from edge.errors import ProfileError

Route = Literal["implicit", "explicit"]


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The chosen route (None for FP32 and FP16) and one sentence with the reason."""

    route: Route | None
    why: str


def decide(profile: Profile, precision: Precision, caps: Caps) -> Decision:
    """Choose the route for ``precision`` on this TensorRT.

    Raises:
        ProfileError: the profile asks for a route or a unit that this TensorRT does not have.
    """
    dla = profile.build.dla_core is not None
    if dla and not caps.dla:
        raise ProfileError(f"build.dla_core: {caps.title} has no DLA", where=profile.name, hint="leave dla_core out")
    if dla and precision == "fp32":
        raise ProfileError("build.dla_core: a DLA runs fp16 and int8, not fp32", where=profile.name)
    if precision != "int8":
        return Decision(route=None, why=_float_words(precision, caps))
    asked = profile.int8_route
    if asked == "implicit" and not caps.implicit_int8:
        raise ProfileError(
            f"int8_route: implicit, but {caps.title} has no calibrators",
            where=profile.name,
            hint="set int8_route: auto or explicit; the same table becomes Q/DQ nodes",
        )
    if asked == "explicit" and dla and caps.implicit_int8:
        raise ProfileError(
            f"int8_route: explicit, but a DLA does not support Q/DQ networks on {caps.title}",
            where=profile.name,
            hint="set int8_route: auto or implicit",
        )
    if asked != "auto":
        return Decision(route=asked, why=f"the profile says int8_route: {asked}")
    if not caps.implicit_int8:
        return Decision(route="explicit", why=f"{caps.title} has no calibrators: INT8 is in the graph as Q/DQ")
    if dla:
        return Decision(route="implicit", why=f"on {caps.title} a DLA needs a calibration table for INT8")
    # A Q/DQ engine was up to 30 % slower than a calibrated one of the same network (NVIDIA/TensorRT#4366).
    return Decision(
        route="implicit", why=f"{caps.title} reads the calibration table itself and may choose among more kernels"
    )


def _float_words(precision: Precision, caps: Caps) -> str:
    if precision == "fp32":
        return "fp32 is the network as it is, with TF32 off"
    if caps.precision_flags:
        return f"fp16 is a build flag on {caps.title}"
    return f"networks are strongly typed on {caps.title}: fp16 is in the graph"
