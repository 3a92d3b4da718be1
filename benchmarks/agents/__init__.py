"""More agents than memory has room for: 24 that take turns with memory for 8, on this system and on other engines.

`python -m benchmarks.agents` runs the comparison and `--help` says how; `make peers` makes the other engines'
environments. Here is what `python -m benchmarks` wants; it measures this system alone unless $LLMASOS_AGENTS has other
options.
"""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # workers import this package in environments that have nothing of ours
    from benchmarks.report import Figure

DEFAULT = "--only llmasos-int8 --rounds 1"


def run() -> list[Figure]:
    """Measure, print the table to standard error, and give the figures."""
    from benchmarks.agents.__main__ import measure, options
    from benchmarks.agents.table import figures, table

    results = measure(options(shlex.split(os.environ.get("LLMASOS_AGENTS", DEFAULT))))
    print(f"\n{table(results)}\n", file=sys.stderr)
    if results.differing:
        raise RuntimeError(f"tokens are not those of uninterrupted runs: {results.differing}")
    return figures(results)
