"""The comparison as a picture: a row a workload, in it a panel for each number of processes and for prompts, each with a
scale of its own. Who is missing is named."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.comparison import Results
from benchmarks.peers.table import processes, threads

# Okabe and Ito's colours, which people with any colour vision tell apart; this system's first, in the table's order.
COLOURS = ("#D55E00", "#E69F00", "#999999", "#0072B2", "#56B4E9", "#007A5A", "#5FC9A8", "#CC79A7")
FORMATS = (".svg", ".png", ".pdf")


class NoPicture(Exception):
    """Why no picture can be drawn."""


def check(file: Path) -> None:
    """Raises NoPicture where it cannot be written, or there is nothing to draw with: better before an hour of measuring
    than after it."""
    if file.is_dir():
        raise NoPicture(f"{file} is a directory; name a file in it")
    if not file.parent.is_dir():
        raise NoPicture(f"{file}: there is no directory {file.parent}; make it (`mkdir -p`), or choose another place")
    if not os.access(file.parent, os.W_OK | os.X_OK):
        raise NoPicture(f"{file}: nothing can be written to {file.parent}; choose another place")
    if file.suffix not in FORMATS:
        raise NoPicture(f"{file} ends in none of {', '.join(FORMATS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise NoPicture("a picture needs matplotlib: `pip install -e '.[bench]'`") from None


def draw(all_results: Sequence[Results], file: Path) -> None:
    """Write the picture, in the format of the file's suffix. Raises NoPicture."""
    check(file)
    import matplotlib
    from matplotlib.figure import Figure

    shown = [(results, [row for row in results.rows if not row.missing]) for results in all_results]
    shown = [(results, rows) for results, rows in shown if rows]
    if not shown:
        raise NoPicture("nothing was measured that a picture could show")
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "llmasos", "font.size": 9}):
        figure = Figure(figsize=(10, 2.4 * len(shown) + 0.6), layout="constrained")
        drawn: dict[str, Any] = {}  # a bar of each engine, for the legend
        for part, (results, rows) in zip(figure.subfigures(len(shown), 1, squeeze=False)[:, 0], shown, strict=True):
            batches = results.workload.batches
            panels = part.subplots(1, len(batches) + 1)
            speeds = [(f"decode, {processes(batch)}", [row.decoded(batch) for row in rows]) for batch in batches]
            speeds.append((f"prompts of {processes(max(batches))}", [row.prompted(max(batches)) for row in rows]))
            for axes, (title, values) in zip(panels, speeds, strict=True):
                for i, (row, value) in enumerate(zip(rows, values, strict=True)):
                    colour = COLOURS[results.rows.index(row) % len(COLOURS)]
                    bars = axes.bar(i, value or 0.0, 0.85, color=colour)
                    axes.bar_label(bars, fmt="%.0f", fontsize=7, padding=1)
                    drawn.setdefault(row.engine.name, bars)
                axes.set_title(title, fontsize=9)
                axes.set_xticks([])
                axes.spines[["top", "right"]].set_visible(False)
            panels[0].set_ylabel("tokens/s, all together")
            missing = [row.engine.name for row in results.rows if row.missing]
            missed = f"; missing: {', '.join(missing)}" if missing else ""
            part.suptitle(f"{results.workload.title}, {threads(results.threads)}{missed}", fontsize=10)
        figure.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=4, frameon=False)
        write(figure, file)


def write(figure: Any, file: Path) -> None:
    """Save a figure under its name, whole or not at all. Raises NoPicture."""
    part = file.with_name(f".{file.stem}.part{file.suffix}")
    try:
        figure.savefig(part, metadata={"Date": None} if file.suffix == ".svg" else None)
        os.replace(part, file)
    except OSError as error:
        raise NoPicture(f"{file} cannot be written: {error.strerror}; choose another place") from None
    finally:
        part.unlink(missing_ok=True)
