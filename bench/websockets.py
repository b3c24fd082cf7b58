#!/usr/bin/env python3
"""Measures what players by WebSocket cost the relay, beside as many that play interleaved, and prints it as Markdown.

    cargo build --release -p rtsprelay -p rtsprelay-bench
    bench/websockets.py                 # 500 players of the test pattern's video, five pairs

Both are measured in turns with the same relay, in the order AB BA AB …; the CPU time is that of the whole relay.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

from isolation import ROOT, free_port

TICKS = os.sysconf("SC_CLK_TCK")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=pathlib.Path, default=ROOT / "target/release", help="where the relay and the load generator are")
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=8, help="of each measurement")
    arguments = parser.parse_args()
    rtsp, http = free_port(), free_port()
    ways = {"tcp": f"rtsp://127.0.0.1:{rtsp}/test", "ws": f"ws://127.0.0.1:{http}/test"}
    with tempfile.TemporaryDirectory() as scratch:
        config = pathlib.Path(scratch) / "rtsprelay.toml"
        config.write_text(
            f'listen = ["127.0.0.1:{rtsp}"]\nhttp = "127.0.0.1:{http}"\nworkers = 1\n[limits]\nclients_per_address = 0\n'
            '[report]\nevery = "0s"\n[[stream]]\nname = "test"\nsource = "test"\n'
        )
        relay = subprocess.Popen([arguments.programs / "rtsprelay", "run", "--config", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            time.sleep(3)
            costs = {way: [] for way in ways}
            for number in range(arguments.pairs):
                for way in sorted(ways, reverse=number % 2 == 1):
                    costs[way].append(cost(arguments, relay.pid, way, ways[way]))
        finally:
            relay.terminate()
            relay.wait()
    ratios = [ws / tcp for ws, tcp in zip(costs["ws"], costs["tcp"])]
    print("| players | interleaved, µs a player and frame | WebSocket | ratio: median | all |\n|--:|--:|--:|--:|---|")
    print(
        f"| {arguments.clients} | {statistics.median(costs['tcp']):.2f} | {statistics.median(costs['ws']):.2f} | {statistics.median(ratios):.3f} "
        f"| {' '.join(f'{ratio:.3f}' for ratio in ratios)} |"
    )


def cost(arguments, pid, way, url):
    """Microseconds of the relay's CPU time for each frame that a player gets."""
    command = [arguments.programs / "rtsprelay-bench", "load", "--json", "--video-only", f"--transport={way}", f"--clients={arguments.clients}"]
    load = subprocess.Popen([*command, f"--seconds={arguments.seconds + 3}", f"--url={url}"], stdout=subprocess.PIPE, text=True)
    # All have come, and the newest have been sent the frames since the keyframe.
    time.sleep(arguments.clients / 500 + 3)
    before, began = cpu(pid), time.monotonic()
    time.sleep(arguments.seconds)
    used, took = cpu(pid) - before, time.monotonic() - began
    seen = json.loads(load.communicate()[0])["normal"]
    if seen["closed"] or seen["frames_missing"] or seen["resumed_on_keyframe"]:
        raise SystemExit(f"{way}: players lost something: {seen}")
    return used * 1e6 / (seen["fps_mean"] * seen["playing"] * took)


def cpu(pid):
    """Seconds of CPU time."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


main()
