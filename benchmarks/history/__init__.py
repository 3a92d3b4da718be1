"""How figures of the benchmarks have gone: `make bench` appends what it measured to a file for each benchmark beside this
one, and `python -m benchmarks.history NAME` prints them.

A run says on which machine it was and of which commit. Times of different machines are not compared; a ratio to what was
measured in the same run is what two of them have in common.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.report import Figure
from llmasos.drivers import hal

PLACE = Path(__file__).parent
ROOT = PLACE.parents[1]


@dataclass(frozen=True)
class Machine:
    model: str
    cores: int
    isa: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.model}, {self.cores} cores ({' '.join(self.isa) or 'nothing notable'})"


@dataclass(frozen=True)
class Measured:
    """One value of a run, in its figure's unit; `ratio` is to the reference that was measured in the same run."""

    name: str
    value: float
    unit: str
    reference: float | None
    ratio: float | None


@dataclass(frozen=True)
class Run:
    """What one run of a benchmark measured. `date` is UTC, in ISO 8601; `commit` ends in + where files had changed."""

    benchmark: str
    date: str
    commit: str
    machine: Machine
    figures: list[Measured]


def this_machine() -> Machine:
    cpu = hal.cpu()
    return Machine(cpu.model, cpu.cores, list(cpu.isa))


def this_commit(root: Path = ROOT) -> str:
    """The commit that is checked out, or "" where this is no checkout."""

    def git(*words: str) -> str:
        command = ["git", "-C", os.fspath(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/history")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def run_of(benchmark: str, figures: Iterable[Figure]) -> Run:
    """A run that has just been made here."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    measured = [Measured(one.name, one.value, one.unit, one.reference, one.ratio) for one in figures]
    return Run(benchmark, date, this_commit(), this_machine(), measured)


def append(run: Run, place: Path = PLACE) -> Path:
    """Add a run to its benchmark's file: the whole file is written anew, or not at all."""
    file = place / f"{run.benchmark}.json"
    kept = json.loads(file.read_text()) if file.exists() else []
    part = file.with_suffix(".part")
    part.write_text(json.dumps([*kept, asdict(run)], indent=1) + "\n")
    part.replace(file)
    return file


def runs(place: Path = PLACE) -> list[Run]:
    """All that is kept, the oldest first."""
    found = [_run(one) for file in sorted(place.glob("*.json")) for one in json.loads(file.read_text())]
    return sorted(found, key=lambda run: run.date)


def _run(kept: dict[str, Any]) -> Run:
    figures = [Measured(**one) for one in kept["figures"]]
    return Run(kept["benchmark"], kept["date"], kept["commit"], Machine(**kept["machine"]), figures)


def courses(history: Iterable[Run], name: str) -> dict[tuple[str, str], list[tuple[Run, Measured]]]:
    """(figure, machine) -> its values in the order of time, for every figure with `name` in its own or its benchmark's
    name."""
    found: dict[tuple[str, str], list[tuple[Run, Measured]]] = {}
    for run in history:
        for figure in run.figures:
            if name in figure.name or name in run.benchmark:
                found.setdefault((figure.name, str(run.machine)), []).append((run, figure))
    return found


def lines(history: Iterable[Run], name: str) -> Iterator[str]:
    """How each of these figures has gone, on each machine; the last column is the change since the run before."""
    for (figure, machine), course in sorted(courses(history, name).items()):
        yield f"{figure} on {machine}"
        before: float | None = None
        for run, measured in course:
            ratio = "" if measured.ratio is None else f"{measured.ratio:.2f}x"
            change = "" if not before else f"{(measured.value / before - 1) * 100:+.1f} %"
            value = f"{measured.value:>10.4g} {measured.unit:8} {ratio:>8} {change:>9}"
            yield f"  {run.date[:16]}  {run.commit or 'no commit':14}  {value}".rstrip()
            before = measured.value
