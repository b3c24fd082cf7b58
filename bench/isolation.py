#!/usr/bin/env python3
"""Measures how clients that are slow, stall, join and leave affect the others, and prints the results as Markdown.

    cargo build --release -p rtsprelay -p rtsprelay-bench
    bench/isolation.py                      # eleven minutes, on an otherwise idle machine
    bench/isolation.py --quick              # a minute, to check that it works; the figures are meaningless
    bench/isolation.py --only pairs,churn   # some of: pairs, gop5, stalled, churn

The relay runs on core 0 with one worker, camera and players on core 1. Windows with and without the other clients alternate, because
only ratios within a pair are meaningful; absolute values depend on the machine.
"""

import argparse
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
QUICK = False


def seconds(full, quick):
    return quick if QUICK else full


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Rig:
    """A relay (or the floor), and the camera that it pulls: its own, or another rig's."""

    def __init__(self, programs, camera=(), relay_keys="", relay=None, arguments=(), of=None, floor=False):
        self.programs = programs
        self.scratch = tempfile.TemporaryDirectory()
        self.camera = None
        if of is None:
            self.camera = subprocess.Popen(
                [programs / "rtsprelay-bench", "--cpu", "1", "camera", *camera], stdout=subprocess.PIPE, text=True
            )
        self.source = self.camera.stdout.readline().strip() if of is None else of.source
        self.port = free_port()
        config = pathlib.Path(self.scratch.name) / "rtsprelay.toml"
        config.write_text(
            f'listen = ["127.0.0.1:{self.port}"]\nworkers = 1\n\n[report]\nevery = "0s"\n\n[queue]\n{relay_keys}\n\n'
            f'[[stream]]\nname = "cam"\nsource = "{self.source}"\n'
        )
        command = [relay or programs / "rtsprelay", "run", "--config", config, *arguments]
        if floor:
            command = [programs / "rtsprelay-bench", "floor", "--source", self.source, "--listen", f"127.0.0.1:{self.port}"]
        self.log = open(pathlib.Path(self.scratch.name) / "log", "w+")
        self.relay = subprocess.Popen(
            ["taskset", "-c", "0", *command],
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        self.url = f"rtsp://127.0.0.1:{self.port}/" + ("" if floor else "cam")
        self.wait_ready()

    def wait_ready(self):
        request = f"DESCRIBE {self.url} RTSP/1.0\r\nCSeq: 1\r\n\r\n".encode()
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                    connection.sendall(request)
                    if b" 200 " in connection.recv(4096)[:20]:
                        # The first keyframes and one-time costs must not be part of the measurement.
                        time.sleep(2)
                        return
            except OSError:
                pass
            time.sleep(0.1)
        self.log.seek(0)
        sys.exit(f"the relay does not serve the camera:\n{self.log.read()}")

    def start_load(self, clients, measured, *arguments):
        return subprocess.Popen(
            [self.programs / "rtsprelay-bench", "--cpu", "1", "load", "--url", self.url, "--clients", str(clients),
             "--seconds", str(measured), "--warmup", str(seconds(4, 1)), "--pid", str(self.relay.pid), "--json", "--quiet",
             *arguments],
            stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def load(self, clients, measured, *arguments):
        return report_of(self.start_load(clients, measured, *arguments))

    def resident(self):
        pages = pathlib.Path(f"/proc/{self.relay.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.relay.pid}/fd"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in (self.relay, self.camera):
            if process is not None:
                process.terminate()
                process.wait(10)
        self.log.close()
        self.scratch.cleanup()


def report_of(process):
    output, _ = process.communicate()
    line = output.strip().splitlines()
    if not line:
        sys.exit("the load generator reported nothing")
    report = json.loads(line[-1])
    if report["generator"]["bottleneck"]:
        print(f"note: the generator: {report['generator']['bottleneck']}", file=sys.stderr)
    return report


def ms(micros):
    return f"{micros / 1000:.1f}"


def s(micros):
    return f"{micros / 1e6:.2f}"


def missing(group):
    return group["frames_missing"] + group["frames_damaged"]


def row(*cells):
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def head(*cells):
    row(*cells)
    row(*["---"] * len(cells))


def slow_cells(slow):
    age = slow["latency_us"]
    return (
        s(age["p50"]),
        s(age["max"]),
        f"{slow['playing']} of {slow['clients']}",
        missing_text(slow),
    )


def missing_text(slow):
    returns = slow["resumed_on_keyframe"] + slow["resumed_elsewhere"]
    return f"{slow['resumed_on_keyframe']} of {returns}, {slow['frames_damaged']} damaged"


def pairs(programs):
    """100 healthy players with and without 10 slow and 10 stalled ones."""
    print("\n## Healthy players beside slow and stalled ones\n")
    head("pair", "load average", "p99 alone, ms", "p99 beside them, ms", "ratio", "healthy: frames missing or damaged",
         "slow: p50, s", "slow: oldest, s", "slow: playing", "slow: returns on a keyframe", "stalled: closed")  # fmt: skip
    measured = seconds(40, 4)
    ratios = []
    with Rig(programs) as rig:
        for number in range(seconds(5, 1)):
            alone = with_others = None
            # Every second pair starts with the other window.
            for others in (False, True) if number % 2 == 0 else (True, False):
                if others:
                    with_others = rig.load(120, measured, "--slow", "10", "--stalled", "10")
                else:
                    alone = rig.load(100, measured)
            before, after = (report["normal"]["latency_us"]["p99"] for report in (alone, with_others))
            ratios.append(after / before)
            stalled = with_others["stalled"]
            row(number + 1, f"{os.getloadavg()[0]:.1f}", ms(before), ms(after), f"{ratios[-1]:.2f}",
                f"{missing(alone['normal'])} and {missing(with_others['normal'])} of {with_others['normal']['frames']}",
                *slow_cells(with_others["slow"]), f"{stalled['closed']} of {stalled['clients']}")  # fmt: skip
    print(f"\np99 ratio: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")


def gop5(programs):
    """The same players with a GOP of 5 s and a tone."""
    print("\n## GOP 5 s, with audio\n")
    head("healthy: p99, ms", "healthy: frames missing or damaged", "slow: p50, s", "slow: oldest, s", "slow: playing",
         "slow: returns on a keyframe", "slow: longest time without audio, s", "slow: most audio skipped, s",
         "stalled: closed")  # fmt: skip
    with Rig(programs, ["--gop", "150", "--audio"]) as rig:
        report = rig.load(120, seconds(40, 6), "--slow", "10", "--stalled", "10")
    normal, slow, stalled = report["normal"], report["slow"], report["stalled"]
    row(ms(normal["latency_us"]["p99"]), f"{missing(normal)} of {normal['frames']}", *slow_cells(slow),
        s(slow["audio_wait_us"]["max"]), s(slow["audio_skip_us"]["max"]),
        f"{stalled['closed']} of {stalled['clients']}")  # fmt: skip


def stalled(programs):
    """1,000 players that read nothing."""
    print("\n## 1,000 stalled players\n")
    clients = seconds(1000, 100)
    with Rig(programs, relay_keys='stall_timeout = "60s"') as rig:
        before = rig.resident()
        report = rig.load(clients, seconds(6, 2), "--stalled", str(clients), "--ramp", "400")
        after = report["server"]["rss_after"]
    head("players", "resident before, MB", "with them, MB", "more, MB")
    row(clients, f"{before / 1e6:.1f}", f"{after / 1e6:.1f}", f"{(after - before) / 1e6:.1f}")


def churn(programs):
    """200 players that stay, beside 5,000 joins and departures a minute."""
    print("\n## Players that come and go beside 200 that stay\n")
    head("window", "joins", "p99 of those who stay, ms", "their frames missing or damaged", "resident, MB", "descriptors")
    with Rig(programs) as rig:
        rig.load(300, 2)
        # Nothing shows when the kernel and the allocator have finished with the players that left, here and below.
        time.sleep(2)

        def line(name, joins, report):
            normal = report["normal"]
            # As above.
            time.sleep(1)
            row(name, joins, ms(normal["latency_us"]["p99"]), f"{missing(normal)} of {normal['frames']}",
                f"{rig.resident() / 1e6:.1f}", rig.descriptors())  # fmt: skip
            return normal["latency_us"]["p99"]

        row("nobody plays", "", "", "", f"{rig.resident() / 1e6:.1f}", rig.descriptors())
        first = line("alone", 0, rig.load(200, seconds(30, 3)))
        steady = rig.start_load(200, seconds(60, 4))
        # The players that stay join before the others.
        time.sleep(2)
        guests = rig.start_load(40, seconds(60, 4), "--churn", str(5000 / 60))
        guests = report_of(guests)
        beside = line("beside them", guests["left"], report_of(steady))
        last = line("alone again", 0, rig.load(200, seconds(30, 3)))
    first_pictures = guests["normal"]["first_keyframe_us"]
    print(f"\np99 ratio: {beside / statistics.mean((first, last)):.2f}. Those who came had their first keyframe after "
          f"{ms(first_pictures['p50'])} ms (p50) and {ms(first_pictures['p99'])} ms (p99).")  # fmt: skip


SECTIONS = {"pairs": pairs, "gop5": gop5, "stalled": stalled, "churn": churn}


def main():
    global QUICK
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a minute, to check that it works; the figures are meaningless")
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"some of: {', '.join(SECTIONS)}")
    parser.add_argument("--programs", type=pathlib.Path, default=ROOT / "target/release", help="where the programs are")
    arguments = parser.parse_args()
    QUICK = arguments.quick
    names = arguments.only.split(",")
    if unknown := set(names) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    begun = time.monotonic()
    print(f"{os.uname().sysname} {os.uname().release}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
    for name in names:
        SECTIONS[name](arguments.programs)
    print(f"\n{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
