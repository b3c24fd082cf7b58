"""Plays an RTSP URL with GStreamer's rtspsrc, decodes it, and says in JSON what it saw.

    gst_player.py URL tcp|udp FRAMES [CA_FILE]
    gst_player.py URL tcp|udp watch

The second says "frame" for each, until it is stopped.

Of an rtsps:// URL the certificate must be signed by CA_FILE; without one any certificate will do.
"""

import json
import sys

import gi

gi.require_version("Gst", "1.0")
from gi.repository import Gio, GLib, Gst  # noqa: E402


def main():
    url, transport = sys.argv[1], sys.argv[2]
    frames = None if sys.argv[3] == "watch" else int(sys.argv[3])
    Gst.init(None)
    # PyGObject makes a class when it is first used. If two of GStreamer's threads do that at once, one of them may find a class without methods.
    for method in (Gst.Caps.get_structure, Gst.Structure.get_string, Gst.Pad.query_caps, Gst.Buffer.has_flags):
        assert callable(method)
    pipeline = Gst.Pipeline()
    source = Gst.ElementFactory.make("rtspsrc")
    source.set_property("location", url)
    source.set_property("protocols", transport)
    source.set_property("latency", 200)
    if len(sys.argv) > 4:
        source.set_property("tls-database", Gio.TlsFileDatabase.new(sys.argv[4]))
    elif url.startswith("rtsps:"):
        source.set_property("tls-validation-flags", Gio.TlsCertificateFlags.NO_FLAGS)
    # The times follow from the RTP timestamps, not from the arrival.
    source.set_property("buffer-mode", 0)
    pipeline.add(source)
    loop = GLib.MainLoop()
    seen = {"codecs": [], "width": 0, "height": 0, "times": [], "corrupt": 0, "audio_buffers": 0, "problems": []}

    def on_rtp_pad(_, pad):
        caps = pad.query_caps(None)
        structure = caps.get_structure(0)
        media, encoding = structure.get_string("media"), structure.get_string("encoding-name")
        if encoding is None:
            return
        seen["codecs"].append(encoding)
        decoder = Gst.ElementFactory.make("decodebin")
        decoder.connect("pad-added", on_decoded_pad, media)
        pipeline.add(decoder)
        decoder.sync_state_with_parent()
        pad.link(decoder.get_static_pad("sink"))

    def on_decoded_pad(_, pad, media):
        sink = Gst.ElementFactory.make("fakesink")
        sink.set_property("sync", False)
        sink.set_property("signal-handoffs", True)
        sink.connect("handoff", on_video if media == "video" else on_audio)
        pipeline.add(sink)
        sink.sync_state_with_parent()
        pad.link(sink.get_static_pad("sink"))

    def on_audio(_, buffer, pad):
        seen["audio_buffers"] += 1

    def on_video(_, buffer, pad):
        structure = pad.get_current_caps().get_structure(0)
        seen["width"], seen["height"] = structure.get_value("width"), structure.get_value("height")
        if frames is None:
            print("frame", flush=True)
            return
        if buffer.has_flags(Gst.BufferFlags.CORRUPTED):
            seen["corrupt"] += 1
        seen["times"].append(buffer.pts / 1e9)
        if len(seen["times"]) >= frames:
            GLib.idle_add(loop.quit)

    def on_message(_, message):
        if message.type in (Gst.MessageType.ERROR, Gst.MessageType.WARNING):
            error, debug = message.parse_error() if message.type == Gst.MessageType.ERROR else message.parse_warning()
            seen["problems"].append(f"{error.message} ({debug})")
            if message.type == Gst.MessageType.ERROR:
                loop.quit()
        elif message.type == Gst.MessageType.EOS:
            seen["problems"].append("the stream ended")
            loop.quit()

    source.connect("pad-added", on_rtp_pad)
    bus = pipeline.get_bus()
    bus.add_signal_watch()
    bus.connect("message", on_message)
    pipeline.set_state(Gst.State.PLAYING)
    loop.run()
    pipeline.set_state(Gst.State.NULL)
    print(json.dumps(seen))


main()
