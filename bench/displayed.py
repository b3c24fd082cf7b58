#!/usr/bin/env python3
"""Measures the age of the pictures that ffplay and GStreamer's rtspsrc show, with start = "cached" and "live".

    cargo build --release -p rtsprelay
    .venv/bin/python bench/displayed.py     # five minutes; tests/run --install installs what it needs

The relay serves its test pattern. ffplay shows it on a virtual screen (Xvfb), which is captured 60 times a second; that adds up
to 17 ms. GStreamer writes each picture to a pipe (fdsink sync=true) instead of a window, when its clock says that it is due.
Comparing the captured pictures with the pattern's 120 frames gives the number of the frame shown; the stamps that a plain client
reads from the same relay give the time at which that frame was made. Every join happens in another phase of the keyframe interval
(1 s).
"""

import argparse
import os
import pathlib
import random
import re
import socket
import statistics
import subprocess
import tempfile
import threading
import time

import cv2
import numpy

ROOT = pathlib.Path(__file__).resolve().parent.parent
WIDTH, HEIGHT, FRAMES = 640, 360, 120
STAMP = re.compile(rb"rtsprelay-stamp1([0-9a-fA-F]{16})([0-9a-fA-F]{16})")
# A difference of the mean of all pixels; consecutive frames differ by more.
DIFFERENCE_MAX = 6.0

PLAYERS = {
    "ffplay, as it is": ["ffplay", "-rtsp_transport", "tcp"],
    "ffplay -fflags nobuffer -flags low_delay": [
        "ffplay", "-rtsp_transport", "tcp", "-fflags", "nobuffer", "-flags", "low_delay",
    ],
    "rtspsrc, as it is (latency=2000)": ["2000"],
    "rtspsrc latency=100": ["100"],
}  # fmt: skip


def command(player, url):
    words = PLAYERS[player]
    if words[0] == "ffplay":
        size = ["-x", str(WIDTH), "-y", str(HEIGHT), "-noborder", "-left", "0", "-top", "0"]
        return [*words, *size, "-v", "error", url]
    # Only video: a sound card's clock would affect the measurement.
    return ["gst-launch-1.0", "-q", "rtspsrc", f"location={url}", "protocols=tcp", f"latency={words[0]}", "name=s",
            "s.", "!", "application/x-rtp,media=video", "!", "rtph264depay", "!", "h264parse", "!", "avdec_h264", "!",
            "videoconvert", "!", "video/x-raw,format=GRAY8", "!", "fdsink", "sync=true"]  # fmt: skip


def grey_thumbnail(image):
    return cv2.resize(image, (WIDTH // 4, HEIGHT // 4), interpolation=cv2.INTER_AREA).astype(numpy.int16)


def pattern():
    clip = cv2.VideoCapture(str(ROOT / "assets/pattern.h264"))
    frames = []
    while True:
        ok, image = clip.read()
        if not ok:
            break
        frames.append(grey_thumbnail(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)))
    assert len(frames) == FRAMES, f"the pattern has {len(frames)} frames"
    return numpy.stack(frames)


class Stamps(threading.Thread):
    """Plays the stream and records when each frame was made."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.made = {}
        self.newest = 0
        self.connection = socket.create_connection(("127.0.0.1", port))
        url, session = f"rtsp://127.0.0.1:{port}/t", ""
        for number, (method, path, header) in enumerate(
            (("SETUP", "/trackID=0", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"), ("PLAY", "", ""))
        ):
            self.connection.sendall(
                f"{method} {url}{path} RTSP/1.0\r\nCSeq: {number + 1}\r\n{session}{header}\r\n".encode()
            )
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += self.connection.recv(4096)
            assert b" 200 " in answer[:20], answer
            if found := re.search(rb"Session: ([^;\r]+)", answer):
                session = f"Session: {found[1].decode()}\r\n"
        self.start()

    def run(self):
        tail = b""
        while data := self.connection.recv(1 << 16):
            data = tail + data
            for frame, made in STAMP.findall(data):
                self.newest = int(frame, 16)
                self.made[self.newest] = int(made, 16) / 1e9
            tail = data[-64:]

    def age(self, shown, at):
        """The age at this time of the newest frame that looks like this."""
        number = self.newest - (self.newest - shown) % FRAMES
        return at - self.made[number] if number in self.made else None


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def screen():
    """A virtual screen of the picture's size: its process and its name."""
    reader, writer = os.pipe()
    process = subprocess.Popen(
        ["Xvfb", "-displayfd", str(writer), "-screen", "0", f"{WIDTH}x{HEIGHT}x24", "-nolisten", "tcp"],
        pass_fds=[writer],
        stderr=subprocess.DEVNULL,
    )
    os.close(writer)
    with os.fdopen(reader) as numbers:
        return process, f":{numbers.readline().strip()}"


def shown_ages(player, url, stamps, frames, seconds):
    """The ages of the pictures that one player shows, from the first one on."""
    processes = []
    ages, first = [], None
    try:
        begun = time.time()
        if player.startswith("ffplay"):
            server, display = screen()
            processes.append(server)
            environment = {
                **os.environ, "DISPLAY": display, "SDL_AUDIODRIVER": "dummy", "SDL_RENDER_DRIVER": "software"
            }  # fmt: skip
            grab = ["ffmpeg", "-v", "error", "-f", "x11grab", "-framerate", "60", "-draw_mouse", "0", "-video_size",
                    f"{WIDTH}x{HEIGHT}", "-i", display, "-pix_fmt", "gray", "-f", "rawvideo", "-"]  # fmt: skip
            processes.append(subprocess.Popen(grab, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL))
            begun = time.time()
            processes.append(subprocess.Popen(command(player, url), env=environment, stdin=subprocess.DEVNULL,
                                              stdout=subprocess.DEVNULL))  # fmt: skip
            pictures = processes[1].stdout
        else:
            processes.append(subprocess.Popen(command(player, url), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL))
            pictures = processes[0].stdout
        while first is None or time.time() < first + seconds:
            if first is None and time.time() > begun + 20:
                raise SystemExit(f"{player} shows nothing")
            picture = pictures.read(WIDTH * HEIGHT)
            at = time.time()
            image = grey_thumbnail(numpy.frombuffer(picture, numpy.uint8).reshape(HEIGHT, WIDTH))
            differences = numpy.abs(frames - image).mean(axis=(1, 2))
            shown = int(differences.argmin())
            if differences[shown] > DIFFERENCE_MAX:
                continue
            age = stamps.age(shown, at)
            if age is not None:
                first = first or at
                ages.append(age)
    finally:
        for process in reversed(processes):
            # A capture process that waits for its reader reacts to nothing less.
            process.kill()
            process.wait(10)
    return ages, first - begun


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--joins", type=int, default=5, help="number of times that each player joins")
    parser.add_argument("--seconds", type=float, default=5, help="how long each stays after its first picture, in seconds")
    parser.add_argument("--only", default="", help="only players whose name starts with this")
    parser.add_argument("--relay", type=pathlib.Path, default=ROOT / "target/release/rtsprelay")
    arguments = parser.parse_args()
    frames = pattern()
    print("| player | start | age of the pictures shown: median, s | medians of the joins, s | first picture after, s |")
    print("| --- | --- | --- | --- | --- |")
    for player in filter(lambda name: name.startswith(arguments.only), PLAYERS):
        for start in ("cached", "live"):
            with tempfile.TemporaryDirectory() as scratch:
                port = free_port()
                config = pathlib.Path(scratch) / "rtsprelay.toml"
                config.write_text(
                    f'listen = ["127.0.0.1:{port}"]\n\n[report]\nevery = "0s"\n\n'
                    f'[[stream]]\nname = "t"\nsource = "test"\nstart = "{start}"\n'
                )
                relay = subprocess.Popen(
                    [arguments.relay, "run", "--config", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
                try:
                    # It listens well before that, and then the log has its first keyframe.
                    time.sleep(2)
                    stamps = Stamps(port)
                    # Players that start at a cached keyframe show pictures from before they connected.
                    time.sleep(2)
                    medians, everything, firsts = [], [], []
                    for _ in range(arguments.joins):
                        # At a random time within the GOP.
                        time.sleep(random.random())
                        ages, first = shown_ages(player, f"rtsp://127.0.0.1:{port}/t", stamps, frames, arguments.seconds)
                        medians.append(statistics.median(ages))
                        everything += ages
                        firsts.append(first)
                finally:
                    relay.terminate()
                    relay.wait(10)
            print(f"| {player} | {start} | {statistics.median(everything):.2f} | "
                  f"{', '.join(f'{age:.2f}' for age in sorted(medians))} | {statistics.median(firsts):.2f} |",
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
