"""Connections to a device: a folder or ssh, both with the same device-side script (``agent.sh``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge import lazy_exports

if TYPE_CHECKING:
    from edge.deploy.transport.address import DeviceAddress, check_jump, remote_address
    from edge.deploy.transport.frames import MessageFrame, invalid, printable_lines
    from edge.deploy.transport.rsync import WORTH_BYTES, rsync_files, rsync_usable
    from edge.deploy.transport.session import DeviceSession, without_cancel
    from edge.deploy.transport.ssh import connect, root_of
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "address": ["DeviceAddress", "check_jump", "remote_address"],
            "frames": ["MessageFrame", "invalid", "printable_lines"],
            "rsync": ["WORTH_BYTES", "rsync_files", "rsync_usable"],
            "session": ["DeviceSession", "without_cancel"],
            "ssh": ["connect", "root_of"],
        },
    )

__all__ = [
    "WORTH_BYTES",
    "DeviceAddress",
    "DeviceSession",
    "MessageFrame",
    "address",
    "check_jump",
    "connect",
    "invalid",
    "printable_lines",
    "remote_address",
    "root_of",
    "rsync_files",
    "rsync_usable",
    "without_cancel",
]
