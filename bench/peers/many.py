#!/usr/bin/env python3
"""Starts go2rtc or MediaMTX with the cameras that `rtsprelay-bench fleet` lists, over TCP and without their other services.

    rtsprelay-bench fleet --peer "go2rtc=bench/peers/many.py go2rtc /opt/go2rtc {port} {sources}"
    rtsprelay-bench fleet --peer "mediamtx=bench/peers/many.py mediamtx /opt/mediamtx {port} {sources}"

MediaMTX must be one that knows `rtspTransports`. This process becomes the server, so that its number is the server's.
"""

import argparse
import json
import os
import pathlib
import tempfile
import urllib.parse


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("program", help="the server's program")
    parser.add_argument("port", type=int, help="port of 127.0.0.1 to serve RTSP at")
    parser.add_argument("sources", type=pathlib.Path, help="file with a camera's URL on each line, whose path is served")
    arguments = parser.parse_args()
    urls = arguments.sources.read_text().split()
    cameras = {urllib.parse.urlsplit(url).path.strip("/"): url for url in urls}
    configuration, options = KINDS[arguments.kind](f"127.0.0.1:{arguments.port}", cameras)
    # A fixed name, because there is one such server at a time. A YAML parser also reads JSON.
    path = pathlib.Path(tempfile.gettempdir()) / f"rtsprelay-bench-{arguments.kind}-{os.getuid()}-{arguments.port}.yml"
    path.write_text(json.dumps(configuration))
    os.execvp(arguments.program, [arguments.program, *options, str(path)])


def go2rtc(listen, cameras):
    off = {"listen": ""}
    return {"api": off, "webrtc": off, "srtp": off, "rtsp": {"listen": listen}, "streams": cameras}, ["-config"]


def mediamtx(listen, cameras):
    services = dict.fromkeys(["rtmp", "hls", "webrtc", "srt"], False)
    paths = {name: {"source": url, "rtspTransport": "tcp"} for name, url in cameras.items()}
    return {**services, "rtspAddress": listen, "rtspTransports": ["tcp"], "paths": paths}, []


KINDS = {"go2rtc": go2rtc, "mediamtx": mediamtx}

if __name__ == "__main__":
    main()
