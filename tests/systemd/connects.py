#!/usr/bin/python3
"""Connects to servers all the time while a process of theirs ends and its successor starts, and sends each connection a request.

    connects.py PID SCHEME://HOST:PORT... -- COMMAND [ARG...]

PID is the process that COMMAND ends (it can go on after COMMAND has returned). Ends once five connections to each server that were begun
after the end of PID are answered. Fails if a connection is refused or gets no answer; only connections that the process may have accepted
before its end may be cut off.
"""
import os
import select
import socket
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit

# Seconds between two connections; few probes have a place at a time.
EVERY = {"rtsp": 0.02, "http": 0.2}
PATIENCE = 60
REQUESTS = {
    "rtsp": b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n",
    "http": b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
}


class Connection:
    def __init__(self, url, after):
        self.url, self.after, self.outcome = url, after, None
        self.began = time.monotonic()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        at = urlsplit(self.url)
        try:
            stream = socket.create_connection((at.hostname, at.port), PATIENCE)
        except OSError as error:
            self.outcome = f"refused ({error})"
            return
        try:
            stream.sendall(REQUESTS[at.scheme])
            answer = stream.recv(4096)
            self.outcome = "answered" if b" 200 " in answer.split(b"\r\n")[0] else f"cut ({answer[:40]})"
        except OSError as error:
            self.outcome = f"cut ({error})"
        finally:
            self.took = time.monotonic() - self.began
            stream.close()


def main():
    split = sys.argv.index("--")
    pid, urls, command = int(sys.argv[1]), sys.argv[2:split], sys.argv[split + 1 :]
    ending = select.poll()
    ending.register(os.pidfd_open(pid), select.POLLIN)
    connections, started, due = [], None, dict.fromkeys(urls, 0)
    end = time.monotonic() + PATIENCE

    def served(after):
        return all(
            sum(c.outcome == "answered" for c in connections if c.url == url and c.after == after) >= 5 for url in urls
        )

    while not served(True):
        if time.monotonic() > end:
            break
        after = bool(ending.poll(0))
        now = time.monotonic()
        for url in [url for url in urls if due[url] <= now]:
            connections.append(Connection(url, after))
            due[url] = now + EVERY[urlsplit(url).scheme]
        if started is None and served(False):
            started = subprocess.Popen(command)
        time.sleep(0.005)
    if started is None or started.wait() != 0:
        sys.exit(f"it did not come to {command}, or that failed")
    for connection in connections:
        connection.thread.join(max(0, end - time.monotonic()))
    refused = [c.outcome for c in connections if (c.outcome or "").startswith("refused")]
    lost = [f"{c.url}: {c.outcome}" for c in connections if c.outcome != "answered" and (c.after or c.outcome is None)]
    cut = sum((c.outcome or "").startswith("cut") and not c.after for c in connections)
    answered = [c.took for c in connections if c.outcome == "answered"]
    print(
        f"{len(connections)} connections: {len(answered)} answered, the longest after {max(answered, default=0):.2f} s;"
        f" {len(refused)} refused, {len(lost)} without an answer; the one that ended cut off {cut}"
    )
    if refused or lost or not served(True):
        sys.exit(f"refused: {set(refused)}, lost: {set(lost)}")


main()
