"""`python -m benchmarks.history [NAME]`: how the figures with NAME in their own or their benchmark's name have gone."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.history import PLACE, lines, runs


def main(arguments: list[str] | None = None, place: Path = PLACE) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.history", description=__doc__)
    parser.add_argument("name", nargs="?", default="", metavar="NAME", help="a part of a name; without it: all")
    name = parser.parse_args(arguments).name
    history = runs(place)
    told = list(lines(history, name))
    if not told:
        names = sorted({figure.name for run in history for figure in run.figures})
        there = f"there are: {', '.join(names)}" if names else "none has been kept yet: make bench keeps what it measures"
        print(f"no figure with {name!r} in its name; {there}", file=sys.stderr)
        return 1
    print("\n".join(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
