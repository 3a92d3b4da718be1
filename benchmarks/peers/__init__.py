"""This system beside other engines, each in an environment of its own: same shapes, prompts and threads, taking turns.

`make peers` makes the environments, `python -m benchmarks.peers` runs the comparison and `--help` says how. Here is what
`python -m benchmarks` wants; it runs the shortest workload unless $LLMASOS_PEERS has other options.
"""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # workers import this package in environments that have nothing of ours
    from benchmarks.report import Figure

DEFAULT = "--workload short"


def run() -> list[Figure]:
    """Measure, print the tables to standard error, and give the figures."""
    from benchmarks.peers.__main__ import measure, options
    from benchmarks.peers.table import figures, table

    chosen = options(shlex.split(os.environ.get("LLMASOS_PEERS", DEFAULT)))
    found: list[Figure] = []
    for results in measure(chosen):
        print(f"\n{table(results)}\n", file=sys.stderr)
        found += figures(results)
    return found
