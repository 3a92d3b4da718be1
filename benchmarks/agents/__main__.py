"""`python -m benchmarks.agents`: compare, print a table and the aims, and draw a picture if asked to.

Exits 1 if an engine that is installed failed, tokens were not those of uninterrupted runs, or an aim was missed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import report
from benchmarks.agents import picture
from benchmarks.agents.comparison import (
    KEYS,
    PEER_ROUNDS,
    QUICK,
    ROUNDS,
    SMALL,
    Results,
    compare,
    engines,
)
from benchmarks.agents.table import figures, table
from benchmarks.agents.workload import Workload
from benchmarks.peers.picture import NoPicture, check
from benchmarks.yardstick import QWEN2


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agents", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few agents on a small model: does everything work?")
    parser.add_argument("--only", metavar="ENGINE,...", default="", help=f"of {', '.join(KEYS)}")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"of this system (default {ROUNDS})")
    parser.add_argument("--peer-rounds", type=int, metavar="N", help=f"of the others (default {PEER_ROUNDS})")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="e.g. docs/agents.svg")
    chosen = parser.parse_args(arguments)
    chosen.only = [key for key in chosen.only.split(",") if key]
    if unknown := sorted(set(chosen.only) - set(KEYS)):
        parser.error(f"no such engine: {', '.join(unknown)}; there are: {', '.join(KEYS)}")
    for option in ("rounds", "peer_rounds"):
        wanted = getattr(chosen, option)
        if wanted is not None and wanted < 1:
            parser.error(f"--{option.replace('_', '-')} {wanted}: at least one is needed")
    if chosen.picture:
        try:
            check(chosen.picture)
        except NoPicture as error:
            parser.error(f"--picture: {error}")
    return chosen


def measure(chosen: argparse.Namespace) -> Results:
    taking_part = [engine for engine in engines() if not chosen.only or engine.key in chosen.only]
    rounds = chosen.rounds or (1 if chosen.quick else ROUNDS)
    peer_rounds = chosen.peer_rounds or PEER_ROUNDS
    workload, shape = (QUICK, SMALL) if chosen.quick else (Workload(), QWEN2)
    return compare(workload, taking_part, rounds, peer_rounds, shape)


def main(arguments: list[str] | None = None) -> int:
    chosen = options(arguments)
    results = measure(chosen)
    print(f"\n{table(results)}\n", flush=True)
    aims = figures(results)
    print(report.table(aims))
    if chosen.picture:
        try:
            picture.draw(results, chosen.picture)
        except NoPicture as error:
            print(error, file=sys.stderr)
            return 1
    failed = any(row.missing and not row.engine.missing() for row in results.rows)
    return 1 if failed or results.differing or any(aim.met is False for aim in aims) else 0


if __name__ == "__main__":
    sys.exit(main())
