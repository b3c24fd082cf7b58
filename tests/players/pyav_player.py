"""Publishes or plays with PyAV, whose FFmpeg is newer than the distribution's and knows AV1 over RTP.

    pyav.py publish URL tcp|udp        320x240 in AV1, until it is stopped
    pyav.py play URL tcp|udp FRAMES    decodes so many frames, and says in JSON what it saw
    pyav.py watch URL tcp|udp          says "packet" for each of the picture, until it is stopped; waits 5 s for whatever comes
"""

import json
import sys
import time

import av
import numpy


def publish(url, transport):
    with av.open(url, "w", format="rtsp", options={"rtsp_transport": transport, "strict": "experimental"}) as output:
        stream = output.add_stream("libsvtav1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        stream.codec_context.gop_size = 25
        # Low delay: no picture refers to a later one.
        stream.options = {"preset": "12", "svtav1-params": "pred-struct=1:lookahead=0:lp=1"}
        start, number = time.monotonic(), 0
        while True:
            picture = numpy.full((240, 320, 3), number * 5 % 256, numpy.uint8)
            picture[:, number * 4 % 320] = 255
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts = number
            output.mux(stream.encode(frame))
            number += 1
            time.sleep(max(0, start + number / 25 - time.monotonic()))


def play(url, transport, frames):
    seen = {"codec": None, "width": 0, "height": 0, "times": [], "keyframe_first": None}
    with av.open(url, options={"rtsp_transport": transport}, timeout=30) as source:
        stream = source.streams.video[0]
        seen["codec"] = stream.codec_context.codec.canonical_name
        for packet in source.demux(stream):
            if seen["keyframe_first"] is None:
                seen["keyframe_first"] = packet.is_keyframe
            for frame in packet.decode():
                seen["width"], seen["height"] = frame.width, frame.height
                # Without a sender report the demuxer has no wall-clock time.
                if frame.time is not None:
                    seen["times"].append(float(frame.time))
            if len(seen["times"]) >= frames:
                break
    print(json.dumps(seen))


def watch(url, transport):
    with av.open(url, options={"rtsp_transport": transport, "timeout": "5000000"}) as source:
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is None and packet.size == 0:
                sys.exit("the stream ended")
            print("packet", flush=True)


def main():
    what, url, transport = sys.argv[1:4]
    if what == "publish":
        publish(url, transport)
    elif what == "watch":
        watch(url, transport)
    else:
        play(url, transport, int(sys.argv[4]))


main()
