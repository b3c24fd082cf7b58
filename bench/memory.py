#!/usr/bin/env python3
"""Measures how much memory streams take besides the media in their logs, and prints it as Markdown.

    cargo build --release -p rtsprelay -p rtsprelay-bench
    bench/memory.py                     # 300 cameras of 2 Mbit/s, one player each, over ten GOPs

The relay's resident memory, minus that of a relay without streams, is divided by the sum of `rtsprelay_log_bytes`, both as means over all samples.
"""

import argparse
import pathlib
import statistics
import subprocess
import tempfile
import time
import urllib.request

from isolation import ROOT, free_port


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=pathlib.Path, default=ROOT / "target/release", help="where the relay and the load generator are")
    parser.add_argument("--cameras", type=int, default=300)
    parser.add_argument("--players", type=int, default=1, help="players per camera")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--bitrate", default="2M", help="of each camera; at 25 frames a second, with a keyframe every 50")
    parser.add_argument("--seconds", type=int, default=20, help="time of the measurement: ten GOPs")
    arguments = parser.parse_args()

    without, _ = measured(arguments, 0)
    resident, logs = measured(arguments, arguments.cameras)
    of_streams = resident - without
    print("| cameras | players each | shards | resident MB | without streams | `log_bytes`, MB | (resident - without) / `log_bytes` |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    print(
        f"| {arguments.cameras} | {arguments.players} | {arguments.workers} | {resident / 1e6:.1f} | {without / 1e6:.1f} | {logs / 1e6:.1f} "
        f"| {of_streams / logs:.2f} |"
    )


def measured(arguments, cameras):
    """Resident memory and the logs' size, as means of samples every 0.1 s."""
    with tempfile.TemporaryDirectory() as scratch:
        return sampled(arguments, cameras, pathlib.Path(scratch))


def sampled(arguments, cameras, scratch):
    bench = arguments.programs / "rtsprelay-bench"
    paths = [f"cam{number}" for number in range(cameras)] or ["cam"]
    camera = subprocess.Popen(
        [bench, "camera", "--repeat", f"--bitrate={arguments.bitrate}", "--fps=25", "--gop=50", *(f"--path={path}" for path in paths)],
        stdout=subprocess.PIPE,
        text=True,
    )
    source = camera.stdout.readline().strip().rsplit("/", 1)[0]
    rtsp, http = free_port(), free_port()
    streams = "".join(f'[[stream]]\nname = "{path}"\nsource = "{source}/{path}"\n' for path in paths[:cameras])
    config = scratch / "rtsprelay.toml"
    config.write_text(
        f'listen = ["127.0.0.1:{rtsp}"]\nhttp = "127.0.0.1:{http}"\nworkers = {arguments.workers}\n[report]\nevery = "0s"\n'
        + (streams or '[[stream]]\nname = "none"\nsource = "publish"\n')
    )
    started = [camera]
    try:
        with open(scratch / "log", "w") as log:
            relay = subprocess.Popen([arguments.programs / "rtsprelay", "run", "--config", config], stdout=log, stderr=log)
        started.append(relay)
        # The logs fill up until each has complete GOPs.
        time.sleep(10)
        if cameras and arguments.players:
            urls = [f"--url=rtsp://127.0.0.1:{rtsp}/{path}" for path in paths]
            clients = cameras * arguments.players
            load = [bench, "load", "--quiet", f"--clients={clients}", f"--seconds={arguments.seconds + 5}", "--ramp=500", *urls]
            started.append(subprocess.Popen(load, stdout=subprocess.DEVNULL))
            time.sleep(5)
        residents, logs = [], []
        until = time.monotonic() + arguments.seconds
        while time.monotonic() < until:
            residents.append(resident(relay.pid))
            logs.append(log_bytes(http))
            time.sleep(0.1)
        return statistics.mean(residents), statistics.mean(logs)
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait()


def resident(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("the relay has gone")


def log_bytes(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("rtsprelay_log_bytes"))


main()
