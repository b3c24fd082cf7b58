"""Serves a real encoder's stream with gst-rtsp-server, as a camera would.

    gst_server.py CODEC [--gop FRAMES] [--no-audio]

CODEC is x264, x265, vp8, vp9 or mjpeg; 1280x720 at 30 fps, with AAC, at rtsp://127.0.0.1:PORT/cam. Prints "ready PORT", then serves until its
standard input ends, so that it never outlives the test that started it.
"""

import argparse
import sys
import threading

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

ENCODERS = {
    "x264": "x264enc tune=zerolatency speed-preset=ultrafast bitrate=2000 key-int-max={gop} bframes=0 sliced-threads=false "
    "option-string=scenecut=0:open-gop=0 ! video/x-h264,profile=baseline ! rtph264pay name=pay0 pt=96 config-interval=-1",
    "x265": "x265enc tune=zerolatency speed-preset=ultrafast bitrate=2000 key-int-max={gop} "
    "option-string=scenecut=0:open-gop=0:bframes=0:repeat-headers=1:info=0:log-level=error ! rtph265pay name=pay0 pt=96 "
    "config-interval=-1",
    "vp8": "vp8enc deadline=1 cpu-used=16 keyframe-max-dist={gop} target-bitrate=2000000 ! rtpvp8pay name=pay0 pt=96",
    "vp9": "vp9enc deadline=1 cpu-used=8 keyframe-max-dist={gop} target-bitrate=2000000 lag-in-frames=0 "
    "! rtpvp9pay name=pay0 pt=96",
    "mjpeg": "jpegenc quality=60 ! rtpjpegpay name=pay0 pt=26",
}


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("codec", choices=ENCODERS)
    arguments.add_argument("--gop", type=int, default=30)
    arguments.add_argument("--no-audio", action="store_true")
    options = arguments.parse_args()

    Gst.init(None)
    launch = (
        "( videotestsrc is-live=true pattern=ball ! video/x-raw,format=I420,width=1280,height=720,framerate=30/1 ! "
        + ENCODERS[options.codec].format(gop=options.gop)
    )
    if not options.no_audio:
        launch += (
            " audiotestsrc is-live=true wave=sine freq=440 ! audio/x-raw,rate=48000,channels=2 ! avenc_aac ! aacparse ! "
            "rtpmp4gpay name=pay1 pt=97"
        )
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(launch + " )")
    # One encoder, however many sessions.
    factory.set_shared(True)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service("0")
    server.get_mount_points().add_factory("/cam", factory)
    loop = GLib.MainLoop()
    server.attach(None)

    def quit_with_parent():
        sys.stdin.buffer.read()
        GLib.idle_add(loop.quit)

    threading.Thread(target=quit_with_parent, daemon=True).start()
    print("ready", server.get_bound_port(), flush=True)
    loop.run()


main()
