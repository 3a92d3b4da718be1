"""`python -m benchmarks [NAME...]`: run the benchmarks of this package (all, or those named) and print one table.

A benchmark is a module here with `run() -> list[Figure]`. With --keep, as `make bench` says, what was measured is added
to the history (benchmarks/history). Exits 1 if a target was missed or a benchmark failed.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
import traceback

import benchmarks
from benchmarks import history
from benchmarks.report import Figure, table

NOT_BENCHMARKS = {"__main__", "history", "report", "yardstick"}


def names() -> list[str]:
    found = (module.name for module in pkgutil.iter_modules(benchmarks.__path__))
    return sorted(name for name in found if name not in NOT_BENCHMARKS and not name.startswith("_"))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of: {', '.join(names())}")
    parser.add_argument("--keep", action="store_true", help="append the figures to benchmarks/history")
    options = parser.parse_args(arguments)
    chosen = options.names or names()
    if unknown := sorted(set(chosen) - set(names())):
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are: {', '.join(names())}")
    figures: list[Figure] = []
    failed: list[str] = []
    for name in chosen:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            measured: list[Figure] = importlib.import_module(f"benchmarks.{name}").run()
            figures += measured
            if options.keep:
                history.append(history.run_of(name, measured))
        except Exception:  # one broken benchmark must not hide the others' figures
            traceback.print_exc()
            failed.append(name)
    print(table(figures))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed or any(figure.met is False for figure in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
