"""The comparison as a picture: a panel a workload, a group of bars for each number of processes and for prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers.comparison import Results

# Okabe and Ito's colours, which people with any colour vision tell apart; this system's first, in the table's order.
COLOURS = ("#D55E00", "#E69F00", "#999999", "#0072B2", "#56B4E9", "#007A5A", "#5FC9A8", "#CC79A7")


class NoPicture(Exception):
    """Why no picture can be drawn."""


def check() -> None:
    """Raises NoPicture where there is nothing to draw with: better before an hour of measuring than after it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise NoPicture("a picture needs matplotlib: `pip install -e '.[bench]'`") from None


def draw(all_results: Sequence[Results], file: Path) -> None:
    """Write the picture, in the format of the file's suffix. Raises NoPicture."""
    check()
    import matplotlib
    from matplotlib.figure import Figure

    shown = [(results, [row for row in results.rows if not row.missing]) for results in all_results]
    shown = [(results, rows) for results, rows in shown if rows]
    if not shown:
        raise NoPicture("nothing was measured that a picture could show")
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "llmasos", "font.size": 9}):
        figure = Figure(figsize=(9.5, 3.2 * len(shown)), layout="constrained")
        for place, (results, rows) in enumerate(shown):
            axes = figure.add_subplot(len(shown), 1, place + 1)
            batches = results.workload.batches
            groups = [*(f"decode, {batch}" for batch in batches), "prompt"]
            width = 0.8 / len(rows)
            for i, row in enumerate(rows):
                speeds = [row.decoded(batch) or 0.0 for batch in batches]
                speeds.append(row.prompted(max(batches)) or 0.0)
                offsets = [group - 0.4 + (i + 0.5) * width for group in range(len(groups))]
                colour = COLOURS[results.rows.index(row) % len(COLOURS)]
                bars = axes.bar(offsets, speeds, width, color=colour, label=row.engine.name)
                axes.bar_label(bars, fmt="%.0f", fontsize=6, padding=1)
            axes.set_xticks(range(len(groups)), groups)
            axes.set_ylabel("tokens/s, all together")
            axes.set_title(f"{results.workload.title} ({results.threads} threads)", loc="left", fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
            if place == 0:
                axes.legend(ncols=2, frameon=False, fontsize=8, loc="upper left")
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
