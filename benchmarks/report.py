"""Figures of the benchmarks and how they are shown: every one stands beside its reference, measured in the same run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value. `ratio` is value / reference; `target` bounds the ratio (or, without a reference, the value):
    at most that if lower is better, at least that if higher is. None: only told."""

    name: str
    value: float
    unit: str
    reference: float | None = None
    reference_name: str = ""
    target: float | None = None
    better: Literal["lower", "higher"] = "lower"

    @property
    def ratio(self) -> float | None:
        return None if not self.reference else self.value / self.reference

    @property
    def met(self) -> bool | None:
        """Has it reached its target? None: it has none."""
        if self.target is None:
            return None
        measured = self.value if self.ratio is None else self.ratio
        return measured <= self.target if self.better == "lower" else measured >= self.target


HEAD = ("", "measured", "reference", "ratio", "target", "")


def table(figures: Iterable[Figure]) -> str:
    """The figures as one aligned table, a line each, missed targets marked MISS."""
    rows = [HEAD, *(_row(figure) for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _row(figure: Figure) -> tuple[str, ...]:
    reference = ""
    if figure.reference is not None:
        reference = f"{_number(figure.reference)} {figure.unit} ({figure.reference_name})"
    target = ""
    if figure.target is not None:
        sign = "<=" if figure.better == "lower" else ">="
        unit = "x" if figure.ratio is not None else f" {figure.unit}"
        target = f"{sign} {figure.target:g}{unit}"
    return (
        figure.name,
        f"{_number(figure.value)} {figure.unit}",
        reference,
        "" if figure.ratio is None else f"{figure.ratio:.2f}x",
        target,
        {None: "", True: "pass", False: "MISS"}[figure.met],
    )


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
