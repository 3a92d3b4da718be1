"""The columns of the table: what each shows of a process or a group, what it sorts by, and which of them a width has room
for.

Numbers are shortened to fixed widths, so that a table does not jump when they change. When the terminal is narrow,
columns go whole, the least important first; names are cut last, when nothing is left to go but what tells processes
apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from llmasos.modelfiles.called import called
from llmasos.syscalls.pids import shown
from llmasos.syscalls.printable import printable
from llmasos.syscalls.records import Kind, ProcessInfo
from llmasos.userland.programs import ps
from llmasos.userland.programs.figures import duration, size
from llmasos.userland.top.model import Group, Row, Sums
from llmasos.userland.top.spark import spark

Value = float | str
NAME = "NAME"
WIDE = 99  # columns from which the longer form of a cell is shown: a terminal of 100 has a scrollbar
_LEAST_NAME = 8  # a name is not cut below this while any other column could go
_MOST_NAME = 40  # one longer than this makes no column go


@dataclass(frozen=True)
class Column:
    """One column. `rank`: those with greater ones go first. The width is that of the longest cell there may be."""

    title: str
    rank: int
    width: int
    text: Callable[[Row | Group, bool], str]  # of a line; the flag: there is room for the longer form
    value: Callable[[Row | Group], Value]  # what it sorts by: numbers the greatest first, texts by the alphabet
    about: str
    right: bool = True
    long: int = 0  # its width where there is room

    def wide(self, width: int) -> int:
        """Its width in a terminal of `width` columns."""
        return self.long if self.long and width >= WIDE else self.width


def short(count: float) -> str:
    """A count in at most five characters: `12345`, `123k`, `1.2M`."""
    if count < 99_999.5:
        return f"{count:.0f}"
    for unit in "kMGTP":
        count /= 1000
        if count < 999.5:
            return f"{count:.1f}{unit}" if count < 9.95 else f"{count:.0f}{unit}"
    return "lots"


def speed(rate: float) -> str:
    """Tokens a second, in at most five characters."""
    return "" if rate == 0 else f"{rate:.1f}" if rate < 99.95 else short(rate)


def state(info: ProcessInfo, *, wide: bool) -> str:
    """`blocked:weights`; in short what it waits for: `weights`."""
    return ps.state(info) if wide else str(info.wait) if info.wait else str(info.state)


def _llm(of: Row | Group) -> ProcessInfo | None:
    return of.info if isinstance(of, Row) and of.info.kind is Kind.LLM else None


@dataclass(frozen=True)
class _Number:
    """A number of LLM processes, and of groups and programs where a sum means something. -1: it has none."""

    process: Callable[[ProcessInfo], float]
    group: Callable[[Group | Sums], float] | None

    def __call__(self, of: Row | Group) -> float:
        if isinstance(of, Group) or of.agents is not None:
            together = of if isinstance(of, Group) else of.agents
            return self.group(together) if self.group is not None and together is not None else -1.0
        return self.process(of.info) if of.info.kind is Kind.LLM else -1.0

    def text(self, of: Row | Group, wide: bool) -> str:
        value = self(of)
        summed = isinstance(of, Group) or of.agents is not None
        return "" if value < 0 or (value == 0 and summed) else short(value)


def _number(
    title: str,
    rank: int,
    about: str,
    process: Callable[[ProcessInfo], float],
    group: Callable[[Group | Sums], float] | None = None,
) -> Column:
    number = _Number(process, group)
    return Column(title, rank, max(5, len(title)), number.text, number, about)


def _state(of: Row | Group, wide: bool) -> str:
    if isinstance(of, Row):
        return state(of.info, wide=wide)
    text = f"{short(of.info.pids)} proc{'' if of.info.pids == 1 else 's'}"
    return text if wide or len(text) <= 8 else text[:-6] + " p"


def _time(of: Row | Group) -> float:
    return of.device_seconds if isinstance(of, Group) else ps.time(of.info)


def _time_text(of: Row | Group, wide: bool) -> str:
    seconds = _time(of)
    text = duration(seconds)
    return "" if isinstance(of, Group) and not seconds else text if len(text) <= 8 else f"{seconds / 86_400:.0f}d"


def _share(value: float) -> str:
    return f"{value:.0%}" if value >= 0.005 else ""


def _window(of: Row | Group) -> float:
    info = _llm(of)
    return info.length / info.context if info is not None and info.context else -1.0


def _model(of: Row | Group) -> str:
    info = _llm(of)
    return printable(called(info.model), one_line=True) if info is not None else ""


def _nice(of: Row | Group) -> float:
    info = _llm(of)
    return float(info.nice) if info is not None else 100.0


def _nice_text(of: Row | Group, wide: bool) -> str:
    if isinstance(of, Group):
        return ""
    return str(of.info.nice) if of.info.kind is Kind.LLM else ""


def _rss(of: Row | Group) -> float:
    return float(of.info.rss) if isinstance(of, Row) else -1.0


def _pid(of: Row | Group) -> Value:
    return -float(of.info.pid) if isinstance(of, Row) else 1.0  # the oldest first


COLUMNS: tuple[Column, ...] = (
    Column("PID", 0, 6, lambda of, _: shown(of.info.pid) if isinstance(of, Row) else "", _pid,
           "number of the process"),
    Column(NAME, 0, 0, lambda of, _: "", lambda of: name(of), "its name, or the group's", right=False),
    Column("STATE", 1, 8, _state, lambda of: _state(of, True),
           "state, and what a blocked process waits for (in a narrow terminal that alone); of a group: its processes",
           right=False, long=15),
    Column("TOK/S", 2, 5, lambda of, _: speed(of.computed), lambda of: of.computed,
           "tokens a second through the model, prompts and recomputing included"),
    Column("RATE", 6, 8, lambda of, _: "", lambda of: of.computed,
           "the past of TOK/S; the highest bar is the greatest rate of any process (any group)", right=False, long=16),
    Column("DEC/S", 9, 5, lambda of, _: speed(of.decoded), lambda of: of.decoded, "tokens a second decoded"),
    Column("STALL", 5, 5, lambda of, _: _share(of.stall), lambda of: of.stall,
           "share of the time in which it waited for the device, memory, weights or its group's limits"),
    Column("NI", 7, 3, _nice_text, lambda of: -_nice(of), f"nice: {-20} (largest share) to 19"),
    _number("TOKENS", 3, "tokens in the log", lambda info: info.length, lambda group: group.length),
    Column("FULL", 8, 4, lambda of, _: _share(_window(of)), _window, "how full the window of its context is"),
    _number("PAGES", 4, "pages of KV in the device", lambda info: info.pages, lambda group: group.pages),
    _number("SHARED", 11, "of these, pages that others map too", lambda info: info.shared_pages),
    _number("SWAP", 10, "pages in lower tiers", lambda info: info.swapped, lambda group: group.swapped),
    _number("DECODED", 13, "tokens decoded in its life", lambda info: info.usage.decoded,
            lambda group: group.tokens_decoded),
    Column("TIME", 12, 8, _time_text, _time,
           "seconds of the device; of programs and drivers: of the CPU"),
    Column("RSS", 16, 8, lambda of, _: size(_rss(of)) if _rss(of) > 0 else "", _rss,
           "memory of a program or driver"),
    Column("DEVICE", 15, 8, lambda of, _: of.info.device if isinstance(of, Row) else "",
           lambda of: of.info.device if isinstance(of, Row) else "", "the device that it runs on", right=False),
    Column("MODEL", 14, 14, lambda of, _: _model(of), _model, "the model that it runs", right=False, long=28),
    Column("GROUP", 17, 16, lambda of, _: of.info.group if isinstance(of, Row) else of.info.path,
           lambda of: of.info.group if isinstance(of, Row) else of.info.path, "its control group", right=False, long=28),
)  # fmt: skip
BY_TITLE = {column.title: column for column in COLUMNS}


def name(of: Row | Group) -> str:
    """What a line is called."""
    if isinstance(of, Group):
        return printable(of.info.path.rpartition("/")[2] or "/", one_line=True)
    return printable(of.info.name or str(of.info.kind), one_line=True)


def cell(column: Column, of: Row | Group, width: int, peak: float, *, wide: bool) -> str:
    """What a column shows of a line, in `width` columns."""
    if column.title == "RATE":
        return spark(of.past, width, peak)
    return printable(column.text(of, wide), one_line=True)


@dataclass(frozen=True)
class Placed:
    """A column, and where it stands."""

    column: Column
    start: int
    width: int


def place(width: int, names: int, pids: int = 6) -> tuple[list[Placed], list[Column]]:
    """The columns that a terminal of `width` has room for, in their order, and those that it has not. `names` is what the
    longest name wants, with the lines of the tree before it; `pids` is the length of the longest pid.

    Those of rank 0 to 2 come first, then NAME gets what it wants (of one that is very long: _MOST_NAME); the others
    follow by rank as long as the next one fits, and what is left is NAME's again.
    """
    columns = [replace(column, width=max(column.width, pids)) if column.title == "PID" else column for column in COLUMNS]
    gap = 2 if width >= WIDE else 1
    must = [column for column in columns if column.rank <= 2 and column.title != NAME]
    taken = sum(column.wide(width) + gap for column in must)
    left = width - taken - max(_LEAST_NAME, min(names, _MOST_NAME, width - taken))
    chosen = set(must) if left >= 0 else set()
    if left < 0:  # so narrow that even these do not fit: the pid goes last
        left = width - _LEAST_NAME
        for column in must:
            if column.wide(width) + gap > left:
                break
            chosen.add(column)
            left -= column.wide(width) + gap
        left = 0
    for column in sorted((c for c in columns if c.rank > 2), key=lambda column: column.rank):
        if column.wide(width) + gap > left:
            break
        chosen.add(column)
        left -= column.wide(width) + gap
    used = sum(column.wide(width) + gap for column in chosen)
    at, placed = 0, []
    for column in columns:
        if column.title == NAME:
            wide = max(1, width - used)
        elif column in chosen:
            wide = column.wide(width)
        else:
            continue
        placed.append(Placed(column, at, wide))
        at += wide + gap
    return placed, [column for column in columns if column not in chosen and column.title != NAME]
