"""`python -m benchmarks.peers`: compare, print a table a workload and the aims, and draw a picture if asked to.

Exits 1 if an engine that is installed failed, or an aim was missed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import report
from benchmarks.peers import picture
from benchmarks.peers.comparison import WORKLOADS, Results, compare
from benchmarks.peers.engines import engines
from benchmarks.peers.table import figures, table


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    keys = [engine.key for engine in engines()]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of few tokens: does everything work?")
    parser.add_argument("--only", metavar="ENGINE,...", default="", help=f"of {', '.join(keys)}")
    parser.add_argument("--workload", choices=WORKLOADS, help="default: all")
    parser.add_argument("--rounds", type=int, metavar="N", help="instead of the workload's own")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="e.g. docs/comparison.svg")
    chosen = parser.parse_args(arguments)
    chosen.only = [key for key in chosen.only.split(",") if key]
    if unknown := sorted(set(chosen.only) - set(keys)):
        parser.error(f"no such engine: {', '.join(unknown)}; there are: {', '.join(keys)}")
    if chosen.rounds is not None and chosen.rounds < 1:
        parser.error(f"--rounds {chosen.rounds}: at least one is needed")
    if chosen.picture:
        try:
            picture.check(chosen.picture)
        except picture.NoPicture as error:
            parser.error(f"--picture: {error}")
    return chosen


def measure(chosen: argparse.Namespace) -> Iterator[Results]:
    """The results of each workload, as they come."""
    taking_part = [engine for engine in engines() if not chosen.only or engine.key in chosen.only]
    for workload in [WORKLOADS[chosen.workload]] if chosen.workload else WORKLOADS.values():
        if chosen.quick:
            workload = workload.quick()
        if chosen.rounds:
            workload = workload.of_rounds(chosen.rounds)
        yield compare(workload, taking_part)


def main(arguments: list[str] | None = None) -> int:
    chosen = options(arguments)
    all_results: list[Results] = []
    aims: list[report.Figure] = []
    for results in measure(chosen):
        print(f"\n{table(results)}\n", flush=True)
        all_results.append(results)
        aims += figures(results)
    print(report.table(aims))
    if chosen.picture:
        try:
            picture.draw(all_results, chosen.picture)
        except picture.NoPicture as error:
            print(error, file=sys.stderr)
            return 1
    failed = any(row.missing and not row.engine.missing() for results in all_results for row in results.rows)
    return 1 if failed or any(aim.met is False for aim in aims) else 0


if __name__ == "__main__":
    sys.exit(main())
