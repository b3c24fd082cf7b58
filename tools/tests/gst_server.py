"""An RTSP server of GStreamer for tests: LOGIN NAME=LAUNCH ...

LOGIN is USER:PASSWORD, or - for none. Prints the port, then serves until it is killed.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402

Gst.init(None)
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service("0")
login = sys.argv[1]
if login != "-":
    user, password = login.split(":", 1)
    auth = GstRtspServer.RTSPAuth()
    auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "user")
    auth.add_digest(user, password, token)
    server.set_auth(auth)
for mount in sys.argv[2:]:
    name, launch = mount.split("=", 1)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch("( " + launch + " )")
    factory.set_shared(True)
    permissions = GstRtspServer.RTSPPermissions()
    for right in ("access", "construct"):
        permissions.add_permission_for_role("user", "media.factory." + right, True)
    factory.set_permissions(permissions)
    server.get_mount_points().add_factory("/" + name, factory)
if not server.attach(None):
    sys.exit("no port")
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
