#!/usr/bin/env python3
"""Compares the CPU of two relays that serve the same frames on the same core, at the same time or in turns, and prints it as Markdown.

    cargo build --release -p rtsprelay -p rtsprelay-bench
    bench/pairs.py --other ../before/target/release/rtsprelay            # before and after a change
    bench/pairs.py --other-arguments=--test-unmeasured                   # the cost of counters and histograms (*)
    bench/pairs.py --floor                                               # compared with one blocking write per frame and client
    bench/pairs.py --floor --clients 10 --in-turns                       # the same with few players

If the machine's speed varies, it varies for both alike when they run at the same time, so a few pairs show more than many
measurements in turns. But the server that gets a frame first finds the cache cold and wakes the players' core, so it pays for both.
With few players that is much of the cost. The relay and the bare loop do not come first equally often: compare them in turns.
The order in which the two are started and played from alternates between pairs. (*) Needs a build with `--features rtsprelay/testing`.
"""

import argparse
import math
import pathlib
import statistics
import sys

from isolation import ROOT, Rig, head, missing, report_of, row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=pathlib.Path, default=ROOT / "target/release", help="where the relay and the load generator are")
    parser.add_argument("--other", type=pathlib.Path, help="the other relay; by default the same program")
    parser.add_argument("--other-arguments", default="", help="additional arguments for the other, separated by spaces")
    parser.add_argument("--floor", action="store_true", help="compare with `rtsprelay-bench floor`")
    parser.add_argument("--clients", type=int, default=500, help="players of each of the two")
    parser.add_argument("--transport", choices=["tcp", "udp"], default="tcp")
    parser.add_argument("--in-turns", action="store_true", help="measure each alone, one after the other")
    parser.add_argument("--seconds", type=int, default=8, help="time of each measurement")
    parser.add_argument("--pairs", type=int, default=10)
    arguments = parser.parse_args()

    head("pair", "this: µs of CPU a client and frame", "the other", "this / other")
    ratios = []
    for number in range(arguments.pairs):
        costs = pair(arguments, number % 2 == 1)
        ratios.append(costs["this"] / costs["other"])
        row(number + 1, f"{costs['this']:.2f}", f"{costs['other']:.2f}", f"{ratios[-1]:.3f}")
    mean = statistics.geometric_mean(ratios)
    spread = statistics.stdev(map(math.log, ratios)) / math.sqrt(len(ratios)) if len(ratios) > 1 else math.nan
    print(
        f"\nthis / other: median {statistics.median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f}), "
        f"geometric mean {mean:.3f} ± {mean * spread:.3f} (standard error), {len(ratios)} pairs"
    )


def pair(arguments, other_first):
    other = {"relay": arguments.other, "arguments": arguments.other_arguments.split(), "floor": arguments.floor}
    kinds = {"this": {}, "other": other}
    order = ("other", "this") if other_first else ("this", "other")
    load = arguments.clients, arguments.seconds, "--transport", arguments.transport
    if arguments.in_turns:
        reports = []
        for kind in order:
            with Rig(arguments.programs, **kinds[kind]) as rig:
                reports.append(rig.load(*load))
    else:
        with Rig(arguments.programs, **kinds[order[0]]) as one, Rig(arguments.programs, **kinds[order[1]], of=one) as two:
            started = [rig.start_load(*load) for rig in (one, two)]
            reports = [report_of(process) for process in started]
    for kind, report in zip(order, reports):
        if missing(report["normal"]):
            sys.exit(f"{kind}: {missing(report['normal'])} frames are missing: the machine is too slow for so many players")
    return {kind: report["server"]["cpu_us_per_client_frame"] for kind, report in zip(order, reports)}


if __name__ == "__main__":
    main()
