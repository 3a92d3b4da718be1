"""The comparison of agents as a picture: turns completed, the wait for the first token, and what pressure does to an
urgent agent. Who is missing is named."""

from __future__ import annotations

from pathlib import Path

from benchmarks.agents.comparison import OURS, PRESSED, Results, roomy
from benchmarks.peers.picture import COLOURS, NoPicture, check, write
from benchmarks.peers.table import threads


def draw(results: Results, file: Path) -> None:
    """Write the picture, in the format of the file's suffix. Raises NoPicture."""
    check(file)
    import matplotlib
    from matplotlib.figure import Figure

    rows = [row for row in results.rows if not row.missing]
    if not rows:
        raise NoPicture("nothing was measured that a picture could show")
    work = results.workload
    names = [row.name.replace(", ", "\n", 1) for row in rows]
    colours = [COLOURS[results.rows.index(row) % len(COLOURS)] for row in rows]
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "llmasos", "font.size": 9}):
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        speeds, waits, gaps = figure.subplots(1, 3, width_ratios=(3, 3, 2))
        bars = speeds.barh(names, [row.speed for row in rows], 0.8, color=colours)
        speeds.bar_label(bars, fmt="%.2f", fontsize=7, padding=1)
        speeds.set_title("completed turns/s", fontsize=9)
        medians = [row.wait() * 1000 for row in rows]
        beyond = [row.wait(0.95) * 1000 - median for row, median in zip(rows, medians, strict=True)]
        # Points: the length of a bar means nothing where the axis has no zero.
        for place, (median, more, colour) in enumerate(zip(medians, beyond, colours, strict=True)):
            waits.errorbar(median, place, xerr=[[0.0], [more]], fmt="o", color=colour)
            waits.annotate(f"{median:,.0f}", (median, place), (0, 5), textcoords="offset points", fontsize=7, ha="center")
        waits.set_xscale("log")
        waits.set_ylim(speeds.get_ylim())
        waits.set_title("ms to a turn's first token\n(median; line: p95)", fontsize=9)
        waits.set_yticks(range(len(rows)), [""] * len(rows))
        urgent = [
            (label, row)
            for label, key in (("pressed", PRESSED.name), ("memory\nfor all", roomy(work).name))
            if (row := results.row(OURS, key)) and row.urgent
        ]
        values = [row.gap(0.99) * 1000 for _, row in urgent]
        bars = gaps.bar([label for label, _ in urgent], values, 0.7, color=COLOURS[0])
        gaps.bar_label(bars, fmt="%.0f", fontsize=7, padding=1)
        gaps.set_title("ms between an urgent\nagent's tokens, p99", fontsize=9)
        for axes in (speeds, waits):
            axes.invert_yaxis()
        for axes in (speeds, waits, gaps):
            axes.spines[["top", "right"]].set_visible(False)
        missing = [row.name for row in results.rows if row.missing]
        missed = f"; missing: {', '.join(missing)}" if missing else ""
        figure.suptitle(
            f"{work.agents} agents with {work.context:,} to {work.final:,} tokens, KV memory for {work.places}, "
            f"{work.outstanding} turns outstanding, {results.shape.name}, {threads(results.threads)}{missed}",
            fontsize=10,
        )
        write(figure, file)
