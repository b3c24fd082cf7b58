#!/usr/bin/env python3
"""Measures the time from PLAY to the first packet: for players on the stream's home, and for single players on another shard.

    cargo build --release -p rtsprelay
    bench/first_picture.py

Players connect one after another. Those on the stream's home stay connected, until the relay assigns the next one to the other shard, which
must subscribe to the stream for it. That one disconnects, and the next one takes its place. RTP-Info must name each player's very first packet.
"""

import argparse
import pathlib
import re
import select
import socket
import statistics
import subprocess
import tempfile
import threading
import time

from isolation import ROOT, free_port

SHARDS = 2


class Player:
    def __init__(self, port):
        self.url = f"rtsp://127.0.0.1:{port}/test"
        self.socket = socket.create_connection(("127.0.0.1", port), 10)
        self.cseq, self.buffer, self.session = 0, b"", None

    def ask(self, method, url, *headers):
        self.cseq += 1
        session = [f"Session: {self.session}"] if self.session else []
        lines = [f"{method} {url} RTSP/1.0", f"CSeq: {self.cseq}", *session, *headers, "", ""]
        self.socket.sendall("\r\n".join(lines).encode())
        while b"\r\n\r\n" not in self.buffer:
            self.read()
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        head = head.decode()
        if " 200 " not in head:
            raise SystemExit(f"{method}: {head}")
        body = int((re.search(r"Content-Length: (\d+)", head, re.I) or [0, 0])[1])
        while len(self.buffer) < body:
            self.read()
        head += "\r\n\r\n" + self.buffer[:body].decode()
        self.buffer = self.buffer[body:]
        return head

    def read(self):
        came = self.socket.recv(65536)
        if not came:
            raise SystemExit("the relay closed the connection")
        self.buffer += came

    def play(self):
        """Milliseconds from PLAY to the first packet, and the shard."""
        track = re.search(r"m=video.*?a=control:(\S+)", self.ask("DESCRIBE", self.url), re.S)[1]
        track = track if track.startswith("rtsp://") else f"{self.url}/{track}"
        head = self.ask("SETUP", track, "Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
        self.session = re.search(r"Session: (\w+)", head)[1]
        began = time.monotonic()
        head = self.ask("PLAY", self.url)
        while True:
            while len(self.buffer) < 16:
                self.read()
            channel, size = self.buffer[1], int.from_bytes(self.buffer[2:4])
            if channel == 0:
                break
            while len(self.buffer) < 4 + size:
                self.read()
            self.buffer = self.buffer[4 + size :]
        took = (time.monotonic() - began) * 1000
        told, came = int(re.search(r"seq=(\d+)", head)[1]), int.from_bytes(self.buffer[6:8])
        if told != came:
            raise SystemExit(f"RTP-Info says {told}, the first packet is {came}")
        return took, int(self.session, 16) % SHARDS


def drain(sockets):
    """Reads the data of the players that stay."""
    while True:
        ready, _, _ = select.select(list(sockets), [], [], 0.05)
        for one in ready:
            one.recv(1 << 20)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=pathlib.Path, default=ROOT / "target/release", help="where the relay is")
    parser.add_argument("--players", type=int, default=50, help="players on the other shard")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between two of them")
    arguments = parser.parse_args()
    port = free_port()
    with tempfile.TemporaryDirectory() as scratch:
        config = pathlib.Path(scratch) / "rtsprelay.toml"
        config.write_text(
            f'listen = ["127.0.0.1:{port}"]\nworkers = {SHARDS}\n[report]\nevery = "0s"\n[[stream]]\nname = "test"\nsource = "test"\n'
        )
        relay = subprocess.Popen([arguments.programs / "rtsprelay", "run", "--config", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            time.sleep(3)
            stay, took, home = [], {True: [], False: []}, None
            threading.Thread(target=drain, args=[stay], daemon=True).start()
            while len(took[False]) < arguments.players:
                player = Player(port)
                ms, shard = player.play()
                home = shard if home is None else home
                took[shard == home].append(ms)
                if shard == home:
                    stay.append(player.socket)
                else:
                    player.socket.close()
                    # Longer than the shard stays subscribed without players.
                    time.sleep(arguments.pause)
        finally:
            relay.terminate()
            relay.wait()
    print("| shard | players | median ms | worst ms |\n|---|--:|--:|--:|")
    for at_home, values in took.items():
        if values:
            print(f"| {'home' if at_home else 'another'} | {len(values)} | {statistics.median(values):.2f} | {max(values):.2f} |")


main()
