#!/usr/bin/env python3
"""Hands a relay over to new processes again and again under load, and prints what its clients noticed, as Markdown.

    cargo build --release -p rtsprelay -p rtsprelay-bench
    bench/upgrade.py                                                            # 500 players over TCP, 100 over UDP, 50 RTSPS, 50 WebSockets, four upgrades
    bench/upgrade.py --tcp 10000 --udp 0 --tls 0 --ws 0 --bitrate 50k --fps 2   # time and memory with ten thousand connections

The streams are those of five cameras, two publishers (ffmpeg) and the test pattern. Fails if a player is disconnected, if a frame is
missing or differs between two players, or if a timeline starts again.
"""

import argparse
import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

from isolation import ROOT, free_port

CAMERAS = 5
PUBLISHERS = 2


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=pathlib.Path, default=ROOT / "target/release", help="where the relay and the load generator are")
    parser.add_argument("--tcp", type=int, default=500, help="players over TCP")
    parser.add_argument("--udp", type=int, default=100, help="players over UDP")
    parser.add_argument("--tls", type=int, default=50, help="players by RTSPS")
    parser.add_argument("--ws", type=int, default=50, help="players by WebSocket, of the test pattern")
    parser.add_argument("--upgrades", type=int, default=4)
    parser.add_argument("--every", type=float, default=4, help="seconds between two of them")
    parser.add_argument("--bitrate", default="2M", help="of each camera")
    parser.add_argument("--fps", type=int, default=30, help="of each camera")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        Run(arguments, pathlib.Path(scratch)).run()


class Run:
    def __init__(self, arguments, scratch):
        self.arguments, self.scratch = arguments, scratch
        self.relay, self.bench = arguments.programs / "rtsprelay", arguments.programs / "rtsprelay-bench"
        self.rtsp, self.tls, self.http = free_port(), free_port(), free_port()
        self.log = scratch / "log"
        self.started = []

    def run(self):
        try:
            self.start()
            loads = self.players()
            time.sleep(self.warm_up())
            upgrades = self.upgrades()
            failed = self.told(loads, upgrades)
        finally:
            for process in reversed(self.started):
                process.terminate()
                process.wait()
            subprocess.run(["pkill", "-KILL", "-f", str(self.config)])
        if failed:
            sys.exit("; ".join(failed))

    def start(self):
        paths = [f"cam{number}" for number in range(CAMERAS)]
        camera = [self.bench, "camera", "--json", f"--bitrate={self.arguments.bitrate}", f"--fps={self.arguments.fps}", *(f"--path={path}" for path in paths)]
        self.camera = subprocess.Popen(camera, stdout=subprocess.PIPE, text=True)
        self.started.append(self.camera)
        source = self.camera.stdout.readline().strip().rsplit("/", 1)[0]
        streams = "".join(f'[[stream]]\nname = "{path}"\nsource = "{source}/{path}"\n' for path in paths)
        streams += "".join(f'[[stream]]\nname = "live{number}"\nsource = "publish"\n' for number in range(PUBLISHERS))
        head = f'listen = ["127.0.0.1:{self.rtsp}"]\nhttp = "127.0.0.1:{self.http}"\nworkers = {self.arguments.workers}\n'
        if self.arguments.tls:
            key, certificate = self.scratch / "key.pem", self.scratch / "certificate.pem"
            request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=localhost"]
            subprocess.run([*request, "-keyout", key, "-out", certificate], check=True, capture_output=True)
            head += f'listen_tls = ["127.0.0.1:{self.tls}"]\ntls_certificate = "{certificate}"\ntls_key = "{key}"\n'
        self.config = self.scratch / "rtsprelay.toml"
        self.config.write_text(
            f'{head}[limits]\nclients_per_address = 0\nclients = 20000\n[report]\nevery = "0s"\n[[stream]]\nname = "test"\nsource = "test"\n{streams}'
        )
        # Upgrades start the program that lies at the path, as a package would have put it there.
        program = self.scratch / "rtsprelay"
        shutil.copy(self.relay, program)
        with open(self.log, "w") as log:
            self.started.append(subprocess.Popen([program, "run", "--config", self.config], stdout=log, stderr=log))
        time.sleep(2)
        for number in range(PUBLISHERS):
            # As cameras that publish: without B frames, a keyframe a second.
            picture = "-re -f lavfi -i testsrc=size=320x240:rate=25 -c:v libx264 -preset ultrafast -tune zerolatency -g 25".split()
            publish = ["ffmpeg", "-loglevel", "error", *picture, "-f", "rtsp", "-rtsp_transport", "tcp", f"rtsp://127.0.0.1:{self.rtsp}/live{number}"]
            self.started.append(subprocess.Popen(publish))
        time.sleep(3)

    def warm_up(self):
        return 3 + (self.arguments.tcp + self.arguments.udp) / 500

    def players(self):
        """The load generators, by kind."""
        lasts = self.warm_up() + self.arguments.upgrades * (self.arguments.every + 1)
        cameras = [f"/cam{number}" for number in range(CAMERAS)]
        kinds = {
            "tcp": (self.arguments.tcp, "tcp", "rtsp", self.rtsp, cameras),
            "published": (20 * PUBLISHERS, "tcp", "rtsp", self.rtsp, [f"/live{number}" for number in range(PUBLISHERS)]),
            "udp": (self.arguments.udp, "udp", "rtsp", self.rtsp, cameras),
            "tls": (self.arguments.tls, "tcp", "rtsps", self.tls, cameras),
            "ws": (self.arguments.ws, "ws", "ws", self.http, ["/test"]),
        }
        loads = {}
        for kind, (clients, transport, scheme, port, paths) in kinds.items():
            if not clients:
                continue
            command = [self.bench, "load", "--json", "--verify", "--warmup=0", f"--clients={clients}", f"--seconds={lasts:.0f}", f"--transport={transport}"]
            command += [f"--url={scheme}://127.0.0.1:{port}{path}" for path in paths]
            command += ["--tls-insecure"] if scheme == "rtsps" else []
            loads[kind] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            self.started.append(loads[kind])
        return loads

    def upgrades(self):
        """For each upgrade: how long the new program took to start, how long nobody was served, and both processes' memory."""
        done = []
        for _ in range(self.arguments.upgrades):
            most, over = [0], threading.Event()
            watcher = threading.Thread(target=self.watch_memory, args=[most, over])
            watcher.start()
            before = self.resident()
            said = subprocess.run([self.relay, "upgrade", "--pid", str(self.pid())], capture_output=True, text=True)
            if said.returncode:
                raise SystemExit(f"{said.stdout}{said.stderr}\n{self.log.read_text()[-3000:]}")
            time.sleep(self.arguments.every)
            over.set()
            watcher.join()
            line = [line for line in self.log.read_text().splitlines() if "handed over to the new program" in line][-1]
            times = dict(re.findall(r"(\w+_ms)=(\d+)", line))
            done.append((times, before / 1e6, most[0] / 1e6, self.resident() / 1e6))
        return done

    def processes(self):
        found = subprocess.run(["pgrep", "-f", f"{self.scratch}/rtsprelay run"], capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split()]

    def pid(self):
        """The one that serves: the log names each successor."""
        named = re.findall(r"handed over to the new program.*? pid=(\d+)", self.log.read_text())
        return int(named[-1]) if named else self.processes()[0]

    def resident(self):
        """Of all processes together, in bytes."""
        total = 0
        for pid in self.processes():
            try:
                for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("VmRSS:"):
                        total += int(line.split()[1]) * 1024
            except FileNotFoundError:
                pass
        return total

    def watch_memory(self, most, over):
        while not over.wait(0.01):
            most[0] = max(most[0], self.resident())

    def told(self, loads, upgrades):
        """Prints everything; returns what was noticed."""
        failed = []
        print("| upgrade | " + " | ".join(upgrades[0][0]) + " | resident before, MB | most, of all processes | after |")
        print("|--:|" + "--:|" * (len(upgrades[0][0]) + 3))
        for number, (times, before, most, after) in enumerate(upgrades):
            print(f"| {number + 1} | " + " | ".join(times.values()) + f" | {before:.1f} | {most:.1f} | {after:.1f} |")
        print("\n| players | kind | frames | missing | longest time without a frame, ms: p50 | p99 | most |\n|--:|---|--:|--:|--:|--:|--:|")
        for kind, load in loads.items():
            report = json.loads(load.communicate()[0])
            seen, verified, longest = report["normal"], report["verified"], report["normal"]["longest_wait_us"]
            print(
                f"| {seen['playing']} | {kind} | {seen['frames']} | {seen['frames_missing']} | {longest['p50'] / 1000:.0f} | {longest['p99'] / 1000:.0f} "
                f"| {longest['max'] / 1000:.0f} |"
            )
            wrong = {name: seen[name] for name in ("closed", "frames_missing", "frames_damaged", "sequence_gaps", "timeline_restarts", "malformed")}
            wrong["different"] = verified["different"]
            failed += [f"{kind}: {count} {name}" for name, count in wrong.items() if count]
        self.camera.send_signal(signal.SIGINT)
        sent = json.loads(self.camera.communicate()[0])
        print(f"\nThe cameras sent {sum(path['frames'] for path in sent)} frames.")
        return failed


main()
