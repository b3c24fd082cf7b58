"""Relays a camera with VLC, as a server to compare with. Over UDP only: VLC's RTSP server does not support interleaving.

    vlc_relay.py CAMERA_URL [PORT]

Prints "NAME=URL,PID" as `rtsprelay-bench fanout --peer` takes it, then serves until it is killed. Needs the packages
vlc-bin, vlc-plugin-base and ffmpeg: Debian's VLC cannot pull a camera by itself, so ffmpeg does it in a process of its own,
whose cost is not in the figures.
"""

import os
import socket
import subprocess
import sys
import time

PULL = ["ffmpeg", "-nostdin", "-v", "error", "-rtsp_transport", "tcp", "-fflags", "nobuffer"]
MUX = ["-c", "copy", "-muxdelay", "0", "-muxpreload", "0", "-f", "mpegts", "-"]


def feed(camera, pipe):
    """Pulls the camera, retrying when it disconnects or is not reachable yet, until VLC exits."""
    parent = os.getppid()
    while os.getppid() == parent:
        subprocess.run([*PULL, "-i", camera, *MUX], stdout=pipe, stderr=subprocess.DEVNULL)
        time.sleep(0.1)


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    camera, port = sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else "0"
    if port == "0":
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        os.close(read_end)
        feed(camera, write_end)
        return
    os.close(write_end)
    os.set_inheritable(read_end, True)
    url = f"rtsp://127.0.0.1:{port}/cam"
    print(f"vlc={url},{os.getpid()}", flush=True)
    if os.getuid() == 0:
        # It refuses to run as root.
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        os.environ["HOME"] = "/nonexistent"
    arguments = ["-I", "dummy", "-q", "--demux", "ts", "--file-caching", "50", "--sout-keep", "--sout-all"]
    os.execvp("vlc", ["vlc", *arguments, "--sout", f"#rtp{{sdp={url}}}", f"fd://{read_end}"])


if __name__ == "__main__":
    main()
