"""Relays a camera with Debian's gst-rtsp-server, as a server to compare with.

    gst_relay.py CAMERA_URL [PORT]

Prints "NAME=URL,PID" as `rtsprelay-bench fanout --peer` takes it, then serves until it is killed. Needs the packages
python3-gi, gir1.2-gst-rtsp-server-1.0, gstreamer1.0-plugins-good and gstreamer1.0-plugins-bad.
"""

import os
import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    camera, port = sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else "0"
    Gst.init(None)
    factory = GstRtspServer.RTSPMediaFactory.new()
    # No jitter buffer delay, no decoding; one pipeline for all clients.
    factory.set_launch(
        f"( rtspsrc location={camera} protocols=tcp latency=0 ! rtph264depay ! h264parse "
        "! rtph264pay name=pay0 pt=96 config-interval=-1 )"
    )
    factory.set_shared(True)
    server = GstRtspServer.RTSPServer.new()
    server.set_address("127.0.0.1")
    server.set_service(port)
    server.set_backlog(4096)
    server.get_mount_points().add_factory("/cam", factory)
    if server.attach(None) == 0:
        sys.exit(f"cannot listen at port {port}")
    print(f"gst=rtsp://127.0.0.1:{server.get_bound_port()}/cam,{os.getpid()}", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
