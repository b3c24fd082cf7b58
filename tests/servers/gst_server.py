"""Serves a real encoder's stream with gst-rtsp-server, as a camera would.

    gst_server.py CODEC [--gop FRAMES] [--mtu BYTES] [--no-audio] [--size WIDTHxHEIGHT] [--port PORT]

CODEC is x264, x265, vp8, vp9 or mjpeg; 640x360 at 30 fps, with AAC, at rtsp://127.0.0.1:PORT/cam. No larger: on a busy machine the
encoder must get to 30 frames a second, or no player does. Or it is `others`: tracks without a picture, each at a path of its own.
Prints "ready PORT", then serves until its standard input ends, so that it never outlives the test that started it.
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

TONE = "audiotestsrc is-live=true wave=sine freq=440 samplesperbuffer={samples} ! audio/x-raw,rate={rate},channels={channels} ! audioconvert ! "
# Path: samples in a buffer, rate, channels, encoder and payloader.
OTHERS = {
    "g722": (320, 16000, 1, "avenc_g722 ! rtpg722pay pt=9"),
    "g726": (160, 8000, 1, "avenc_g726 bitrate=32000 ! rtpg726pay pt=96"),
    "l16": (160, 44100, 2, "audio/x-raw,format=S16BE ! rtpL16pay pt=96"),
    "l24": (160, 48000, 2, "audio/x-raw,format=S24BE ! rtpL24pay pt=96"),
    "opus": (960, 48000, 2, "opusenc ! rtpopuspay pt=96"),
    "pcma": (160, 8000, 1, "alawenc ! rtppcmapay pt=8"),
    "pcmu": (160, 8000, 1, "mulawenc ! rtppcmupay pt=0"),
    "ac3": (1536, 48000, 2, "avenc_ac3 ! rtpac3pay pt=96"),
}
# Codecs that only GStreamer supports.
UNKNOWN = (
    "fakesrc is-live=true do-timestamp=true sizetype=fixed sizemax=64 filltype=pattern datarate=6400 format=time ! "
    "application/x-whatever ! rtpgstpay pt=98 name=pay0"
)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("codec", choices=[*ENCODERS, "others"])
    arguments.add_argument("--gop", type=int, default=30)
    arguments.add_argument("--mtu", type=int, default=1400, help="bytes of a video packet at most")
    arguments.add_argument("--no-audio", action="store_true")
    arguments.add_argument("--size", default="640x360")
    arguments.add_argument("--port", default="0")
    options = arguments.parse_args()

    Gst.init(None)
    launches = {}
    if options.codec == "others":
        for path, (samples, rate, channels, encoder) in OTHERS.items():
            launches[path] = TONE.format(samples=samples, rate=rate, channels=channels) + encoder + " name=pay0"
        launches["unknown"] = UNKNOWN
    else:
        width, height = options.size.split("x")
        launch = (
            f"videotestsrc is-live=true pattern=ball ! video/x-raw,format=I420,width={width},height={height},framerate=30/1 ! "
            + ENCODERS[options.codec].format(gop=options.gop)
            + f" mtu={options.mtu}"
        )
        if not options.no_audio:
            launch += (
                " audiotestsrc is-live=true wave=sine freq=440 ! audio/x-raw,rate=48000,channels=2 ! avenc_aac ! aacparse ! "
                "rtpmp4gpay name=pay1 pt=97"
            )
        launches["cam"] = launch
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(options.port)
    for path, launch in launches.items():
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_launch("( " + launch + " )")
        # One encoder for all sessions.
        factory.set_shared(True)
        server.get_mount_points().add_factory("/" + path, factory)
    loop = GLib.MainLoop()
    server.attach(None)

    def quit_with_parent():
        sys.stdin.buffer.read()
        GLib.idle_add(loop.quit)

    threading.Thread(target=quit_with_parent, daemon=True).start()
    print("ready", server.get_bound_port(), flush=True)
    loop.run()


main()
