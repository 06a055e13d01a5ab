"""An RTSP server on loopback by GStreamer, in a process of its own: ``/usr/bin/python3 rtsp_server.py PORT``.

Every path is a camera of 320×240 at 25 frames per second. Lines on standard input change it while it goes:
``freeze``, ``move``, ``size W H``.

=============  =======================================================================
``/h264``      a moving ball in H.264
``/h265``      the same in H.265
``/auth``      H.264 for the user ``me`` with the password ``secret`` only
``/slow``      H.264 whose first frame comes after a second and a half
``/wide``      H.264 whose pixels are 4/3 as wide as they are high
=============  =======================================================================
"""

import os
import sys
import threading
import time

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

SLOW_S = 1.5
_SOURCE = "videotestsrc name=source is-live=true pattern=ball ! capsfilter name=size caps={caps} ! "
_H264 = (
    "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=12 ! video/x-h264,profile=baseline ! "
    "rtph264pay name=pay0 config-interval=-1 )"
)
_H265 = "x265enc tune=zerolatency speed-preset=ultrafast key-int-max=12 ! rtph265pay name=pay0 config-interval=-1 )"
_media = []
_asked = {}


def caps(width=320, height=240, more=""):
    return f"video/x-raw,format=I420,width={width},height={height},framerate=25/1{more}"


def apply(element):
    """Set what was asked for last."""
    source, size = element.get_by_name("source"), element.get_by_name("size")
    if "pattern" in _asked:
        source.set_property("pattern", _asked["pattern"])
    if "caps" in _asked:
        size.set_property("caps", Gst.Caps.from_string(_asked["caps"]))


def configure(factory, media):
    _media.append(media)
    apply(media.get_element())
    slow = media.get_element().get_by_name("slow")
    if slow is not None:

        def wait(_pad, _info):
            time.sleep(SLOW_S)
            return Gst.PadProbeReturn.REMOVE

        slow.get_static_pad("src").add_probe(Gst.PadProbeType.BUFFER, wait)


def obey():
    """Change the cameras as standard input says; its end is that of the process that started this one."""
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "size":
            _asked["caps"] = caps(*rest)
        else:
            _asked["pattern"] = "black" if word == "freeze" else "ball"
        for media in _media:
            element = media.get_element()
            if element is not None and element.get_by_name("source") is not None:
                apply(element)
    os._exit(0)


def main():
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(sys.argv[1])
    mounts = server.get_mount_points()
    auth = GstRtspServer.RTSPAuth()
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "user")
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic("me", "secret"), token)
    anyone = GstRtspServer.RTSPToken()
    anyone.set_string("media.factory.role", "anonymous")
    auth.set_default_token(anyone)
    server.set_auth(auth)
    for path, launch in {
        "/h264": f"( {_SOURCE} {_H264}",
        "/h265": f"( {_SOURCE} {_H265}",
        "/auth": f"( {_SOURCE} {_H264}",
        "/slow": f"( {_SOURCE} identity name=slow ! {_H264}",
        "/wide": f"( {_SOURCE} {_H264}",
    }.items():
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_launch(launch.format(caps=caps(more=",pixel-aspect-ratio=4/3" if path == "/wide" else "")))
        factory.set_shared(True)
        for role, may in (("user", "true"), ("anonymous", "false" if path == "/auth" else "true")):
            # Without access a path is not found; without construct it asks for a password.
            text = f"{role},media.factory.access=(boolean)true,media.factory.construct=(boolean){may}"
            factory.add_role_from_structure(Gst.Structure.from_string(text)[0])
        factory.connect("media-configure", configure)
        mounts.add_factory(path, factory)
    if not server.attach(None):
        sys.exit("the port is in use")
    threading.Thread(target=obey, daemon=True).start()
    print("ready", flush=True)
    GLib.MainLoop().run()


main()
