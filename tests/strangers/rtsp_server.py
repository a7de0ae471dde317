"""An RTSP server of GStreamer's, for the system's own Python (Debian: gir1.2-gst-rtsp-server-1.0).

python3 rtsp_server.py PORT WIDTH FRAMES [USER:PASSWORD] [udp]

It serves ``/live``: a test picture of so many frames, 30 a second, or without an end for -1.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402 - the versions come first


def main() -> None:
    """Serve until the process is ended."""
    port, width, frames, *more = sys.argv[1:]
    Gst.init(None)
    server, factory = GstRtspServer.RTSPServer(), GstRtspServer.RTSPMediaFactory()
    server.set_address("127.0.0.1")
    server.set_service(port)
    factory.set_launch(
        f"( videotestsrc is-live=true num-buffers={frames} pattern=ball ! "
        f"video/x-raw,width={width},height=96,framerate=30/1 ! "
        "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 ! "
        "rtph264pay name=pay0 config-interval=-1 )"
    )
    if "udp" in more:
        factory.set_protocols(GstRtsp.RTSPLowerTrans.UDP)
    for signed in (word for word in more if ":" in word):
        _sign_in(server, factory, *signed.split(":", 1))
    server.get_mount_points().add_factory("/live", factory)
    server.attach(None)
    GLib.MainLoop().run()


def _sign_in(server: object, factory: object, user: str, password: str) -> None:
    token, rights = GstRtspServer.RTSPToken(), GstRtspServer.RTSPPermissions()
    token.set_string("media.factory.role", "user")
    for right in ("access", "construct"):
        rights.add_permission_for_role("user", f"media.factory.{right}", True)
    factory.set_permissions(rights)
    auth = GstRtspServer.RTSPAuth()
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
    server.set_auth(auth)


main()
