#!/usr/bin/env python3
"""Hands a relay over to new processes again and again under load, and prints what its clients noticed, as Markdown.

    cargo build --release -p rtsprelay -p rtsprelay-bench
    bench/upgrade.py                                                            # 500 players over TCP, 100 over UDP, 50 RTSPS, 50 WebSockets, four upgrades
    bench/upgrade.py --before OTHER/target/release                              # from another build to this one and back, and again
    bench/upgrade.py --tcp 10000 --udp 0 --tls 0 --ws 0 --bitrate 50k --fps 2   # time and memory with ten thousand connections

The streams are those of five cameras, two publishers (ffmpeg) and the test pattern; one camera is also sent to a multicast group. Fails if a player is disconnected, if a frame is
missing or differs between two players, or if a timeline starts again.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time

from isolation import ROOT, free_port

CAMERAS = 5
PUBLISHERS = 2
GROUP = "239.77.0.21"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=pathlib.Path, default=ROOT / "target/release", help="where the relay and the load generator are")
    parser.add_argument("--before", type=pathlib.Path, help="where another build is: it runs first, and each second upgrade is back to it")
    parser.add_argument("--tcp", type=int, default=500, help="players over TCP")
    parser.add_argument("--udp", type=int, default=100, help="players over UDP")
    parser.add_argument("--tls", type=int, default=50, help="players by RTSPS")
    parser.add_argument("--ws", type=int, default=50, help="players by WebSocket, of the cameras and of the test pattern")
    parser.add_argument("--upgrades", type=int, default=4)
    parser.add_argument("--every", type=float, default=4, help="seconds between two of them")
    parser.add_argument("--bitrate", default="2M", help="of each camera")
    parser.add_argument("--fps", type=int, default=30, help="of each camera")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        Run(arguments, pathlib.Path(scratch)).run()


class Receiver(threading.Thread):
    """One receiver of the multicast group: it sets the video track up and joins, and notes gaps and waits."""

    def __init__(self, url, port):
        super().__init__(daemon=True)
        self.over, self.packets, self.gaps, self.jumps, self.waits = threading.Event(), 0, 0, 0, []
        self.group = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.group.bind((GROUP, port))
        # What is dropped here would look like a gap. Root may have more than the limit (SO_RCVBUFFORCE, socket(7)).
        self.group.setsockopt(socket.SOL_SOCKET, 33 if os.geteuid() == 0 else socket.SO_RCVBUF, 4 << 20)
        self.group.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP) + socket.inet_aton("127.0.0.1"))
        self.group.settimeout(0.5)
        host, port, _ = re.match(r"rtsp://([^:]+):(\d+)(/.*)", url).groups()
        self.rtsp = socket.create_connection((host, int(port)))
        self.answers = self.rtsp.makefile("rb")
        described = self.ask(f"DESCRIBE {url} RTSP/1.0\r\nAccept: application/sdp")
        track = re.search(r"m=video.*?a=control:(\S+)", described, re.S).group(1)
        track = track if track.startswith("rtsp:") else f"{url}/{track}"
        answer = self.ask(f"SETUP {track} RTSP/1.0\r\nTransport: RTP/AVP;multicast")
        self.session = re.search(r"Session: ([^;\s]+)", answer, re.I).group(1)
        self.url = url
        self.ask(f"PLAY {url} RTSP/1.0\r\nSession: {self.session}")
        self.start()

    def ask(self, head):
        self.rtsp.sendall(f"{head}\r\nCSeq: 1\r\n\r\n".encode())
        lines = list(iter(lambda: self.answers.readline().decode().strip(), ""))
        if " 200 " not in lines[0]:
            raise SystemExit(f"{head.splitlines()[0]}: {lines[0]}")
        length = next((int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length:")), 0)
        return "\n".join(lines) + self.answers.read(length).decode()

    def run(self):
        last, at, asked = None, None, time.monotonic()
        while not self.over.is_set():
            if time.monotonic() - asked > 20:
                self.keep_alive()
                asked = time.monotonic()
            try:
                packet = self.group.recv(2048)
            except TimeoutError:
                continue
            now, seq, time_of = time.monotonic(), *struct.unpack_from("!HI", packet, 2)
            if last is not None:
                self.gaps += (seq - last[0]) % 65536 != 1
                self.jumps += (time_of - last[1]) % 2**32 > 90_000
                self.waits.append((now - at) * 1000)
            last, at = (seq, time_of), now
            self.packets += 1

    def keep_alive(self):
        self.ask(f"GET_PARAMETER {self.url} RTSP/1.0\r\nSession: {self.session}")

    def end(self):
        self.over.set()
        self.join()
        self.keep_alive()
        self.rtsp.close()


class Run:
    def __init__(self, arguments, scratch):
        self.arguments, self.scratch = arguments, scratch
        self.relay, self.bench = arguments.programs / "rtsprelay", arguments.programs / "rtsprelay-bench"
        self.rtsp, self.tls, self.http = free_port(), free_port(), free_port()
        # A pair for each of two tracks, from an even one on.
        self.group = free_port() // 8 * 8
        # What runs first, what is upgraded to, and so on in turn.
        self.builds = [arguments.before / "rtsprelay" if arguments.before else self.relay, self.relay]
        self.program = scratch / "rtsprelay"
        self.log = scratch / "log"
        self.started = []

    def run(self):
        try:
            self.start()
            receiver = Receiver(f"rtsp://127.0.0.1:{self.rtsp}/cam0", self.group)
            loads = self.players()
            time.sleep(self.warm_up())
            upgrades = self.upgrades()
            failed = self.told(loads, receiver, upgrades)
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
        multicast = f'multicast = "{GROUP}:{self.group}"\nmulticast_interface = "lo"\n'
        stream = '[[stream]]\nname = "{0}"\nsource = "{1}/{0}"\n{2}'
        streams = "".join(stream.format(path, source, multicast if path == paths[0] else "") for path in paths)
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
        self.install(0)
        with open(self.log, "w") as log:
            self.started.append(subprocess.Popen([self.program, "run", "--config", self.config], stdout=log, stderr=log))
        time.sleep(2)
        for number in range(PUBLISHERS):
            # As cameras that publish: without B frames, a keyframe a second.
            picture = "-re -f lavfi -i testsrc=size=320x240:rate=25 -c:v libx264 -preset ultrafast -tune zerolatency -g 25".split()
            publish = ["ffmpeg", "-loglevel", "error", *picture, "-f", "rtsp", "-rtsp_transport", "tcp", f"rtsp://127.0.0.1:{self.rtsp}/live{number}"]
            self.started.append(subprocess.Popen(publish))
        time.sleep(3)

    def install(self, number):
        """Upgrades start the program that lies at the path, as a package would have put it there."""
        shutil.copy(self.builds[number % 2], self.scratch / "new")
        os.replace(self.scratch / "new", self.program)

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
            "ws": (self.arguments.ws, "ws", "ws", self.http, ["/test", *cameras]),
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
        """For each upgrade: how long the new program took to start, how long nobody was served, and the processes' memory."""
        done = []
        for number in range(self.arguments.upgrades):
            self.install(number + 1)
            pid, others, most, over = self.pid(), self.processes(), [0], threading.Event()
            others.remove(pid)
            before = self.memory([pid])
            watcher = threading.Thread(target=self.watch_memory, args=[pid, most, over])
            watcher.start()
            said = subprocess.run([self.relay, "upgrade", "--pid", str(pid)], capture_output=True, text=True)
            over.set()
            watcher.join()
            if said.returncode:
                raise SystemExit(f"{said.stdout}{said.stderr}\n{self.log.read_text()[-3000:]}")
            time.sleep(self.arguments.every)
            line = [line for line in self.log.read_text().splitlines() if "handed over to the new program" in line][-1]
            times = dict(re.findall(r"(\w+_ms)=(\d+)", line))
            serves = self.pid()
            carriers = [f"{self.memory([pid]):.1f}" for pid in self.processes() if pid != serves]
            all_most = self.memory(others) + most[0] + self.memory([serves], "VmHWM")
            done.append((times, before, all_most, self.memory([serves]), " + ".join(carriers) or "none"))
        return done

    def processes(self):
        found = subprocess.run(["pgrep", "-f", f"{self.scratch}/rtsprelay run"], capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split()]

    def pid(self):
        """The one that serves: the log names each successor."""
        named = re.findall(r"handed over to the new program.*? pid=(\d+)", self.log.read_text())
        return int(named[-1]) if named else self.processes()[0]

    def watch_memory(self, pid, most, over):
        while not over.wait(0.01):
            most[0] = max(most[0], self.memory([pid]))

    def memory(self, pids, what="VmRSS"):
        """The resident memory of these processes together, in megabytes (proc(5)); VmHWM is the most that it was."""
        total = 0
        for pid in pids:
            try:
                for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith(f"{what}:"):
                        total += int(line.split()[1]) * 1024 / 1e6
            except FileNotFoundError:
                pass
        return total

    def told(self, loads, receiver, upgrades):
        """Prints everything; returns what was noticed."""
        failed = []
        print("| upgrade | " + " | ".join(upgrades[0][0]) + " | resident before, MB | at most, of all processes | after, of the new one | of each carrier |")
        print("|--:|" + "--:|" * (len(upgrades[0][0]) + 4))
        for number, (times, before, most, after, carriers) in enumerate(upgrades):
            print(f"| {number + 1} | " + " | ".join(times.values()) + f" | {before:.1f} | {most:.1f} | {after:.1f} | {carriers} |")
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
        receiver.end()
        waits = sorted(receiver.waits)
        if not waits:
            return [*failed, "multicast: no packets"]
        print(
            f"| 1 | multicast | {receiver.packets} packets | {receiver.gaps} gaps | {statistics.median(waits):.1f} between packets "
            f"| {waits[len(waits) * 99 // 100]:.1f} | {waits[-1]:.0f} |"
        )
        failed += [f"multicast: {count} {name}" for name, count in (("gaps", receiver.gaps), ("jumps of the timestamps", receiver.jumps)) if count]
        self.camera.send_signal(signal.SIGINT)
        sent = json.loads(self.camera.communicate()[0])
        print(f"\nThe cameras sent {sum(path['frames'] for path in sent)} frames.")
        return failed


main()
