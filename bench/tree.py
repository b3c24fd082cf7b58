#!/usr/bin/env python3
"""Measures what a hop costs in a tree of relays: players of an origin beside players of an edge that pulls from it, or of the last in a chain of
edges, with the same frames at the same time. Prints the results as Markdown.

    cargo build --release -p rtsprelay -p rtsprelay-bench
    bench/tree.py                        # 20 rounds, ten players on each of the two
    bench/tree.py --clients 1            # the cost of a single viewer on an edge
    bench/tree.py --hops 5               # an edge that pulls from an edge that … from the origin
"""

import argparse
import contextlib
import pathlib
import statistics
import types

from isolation import ROOT, Rig, head, missing, report_of, row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=pathlib.Path, default=ROOT / "target/release", help="where the relay and the load generator are")
    parser.add_argument("--clients", type=int, default=10, help="players of the origin, and of the edge")
    parser.add_argument("--hops", type=int, default=1, help="edges from the origin to the one that is measured")
    parser.add_argument("--seconds", type=int, default=4, help="time of each round")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()

    columns = ["p50 ms", "p99 ms", "µs of CPU a client and frame"]
    head("round", *(f"origin: {name}" for name in columns), *(f"edge: {name}" for name in columns))
    rounds = []
    with contextlib.ExitStack() as chain:
        origin = edge = chain.enter_context(Rig(arguments.programs))
        for _ in range(arguments.hops):
            edge = chain.enter_context(Rig(arguments.programs, of=types.SimpleNamespace(source=edge.url)))
        for number in range(arguments.rounds):
            # The order alternates from round to round.
            order = (origin, edge) if number % 2 else (edge, origin)
            loads = {rig: rig.start_load(arguments.clients, arguments.seconds, "--video-only") for rig in order}
            reports = [report_of(loads[rig]) for rig in (origin, edge)]
            if any(missing(report["normal"]) for report in reports):
                print(f"round {number + 1}: frames are missing", flush=True)
            cells = [
                (report["normal"]["latency_us"]["p50"], report["normal"]["latency_us"]["p99"], report["server"]["cpu_us_per_client_frame"])
                for report in reports
            ]
            rounds.append(cells)
            row(number + 1, *(f"{p50 / 1000:.2f} | {p99 / 1000:.2f} | {cpu:.1f}" for p50, p99, cpu in cells))
    print()
    for which, name, unit in ((0, "p50", "ms"), (1, "p99", "ms"), (2, "CPU a client and frame", "µs")):
        scale = 1000 if unit == "ms" else 1
        at = [[cells[node][which] / scale for cells in rounds] for node in (0, 1)]
        more = [edge - origin for origin, edge in zip(*at)]
        adds = "the hop adds"
        if arguments.hops > 1 and which < 2:
            more = [added / arguments.hops for added in more]
            adds = f"each of {arguments.hops} hops adds"
        elif arguments.hops > 1:
            adds = "a client of the last edge costs more by"
        print(
            f"{name}: origin {statistics.median(at[0]):.2f}, edge {statistics.median(at[1]):.2f} {unit}; "
            f"{adds} {statistics.median(more):.2f} ({min(more):.2f}–{max(more):.2f}) {unit}, {len(rounds)} rounds"
        )


main()
