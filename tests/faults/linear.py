"""Is a history of calls on logs one that a single, careful kernel could have given? As Jepsen asks of databases.

The sequential specification: a process is a log. A feed appends its tokens and answers the length; a decode appends what
the model says after the log, token by token, and answers where and what; a read answers the log. The log is only appended
to, so the log at the end has the order of everything in it, and the search of Wing and Gong (1993) comes down to giving
each part of it to one call: each call that was answered has its place there, once; each one whose answer is not known has
one or none; nothing else is there; and calls that did not overlap in time stand in the order in which they were made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Continue = Callable[[list[int], int], list[int]]
"""What the model says after a log: so many tokens."""


@dataclass(slots=True)
class Op:
    """A call on process `pid`, from `began` to `ended`. Answered: `at` is where its tokens stand in the log (of a read:
    the log's length). Not answered: `at` is -1, and it may have been done or not, a decode in part."""

    client: int
    pid: int
    kind: Literal["feed", "decode", "read"]
    tokens: list[int] = field(default_factory=list)
    count: int = 0  # of a decode: how many at most
    began: float = 0.0
    ended: float = float("inf")
    at: int = -1

    @property
    def answered(self) -> bool:
        return self.at >= 0

    @property
    def after(self) -> int:
        """The length of the log that it leaves, or saw."""
        return self.at if self.kind == "read" else self.at + len(self.tokens)


class Wrong(AssertionError):
    """No careful kernel gives such a history."""


def check(history: list[Op], logs: dict[int, list[int]], first: dict[int, list[int]], say: Continue) -> int:
    """`logs`: each process's log at the end, `first`: at the beginning. Returns how many calls have a place. Raises
    Wrong."""
    placed = 0
    for pid, log in logs.items():
        ops = [op for op in history if op.pid == pid]
        if log[: len(first[pid])] != first[pid]:
            raise Wrong(f"process {pid} began with {first[pid]}, and its log is {log[:8]}...")
        found = [_hold(op, log, say) for op in ops if op.answered]
        writers = sorted((op for op in found if op.kind != "read" and op.tokens), key=lambda op: op.at)
        end = len(first[pid])
        unknown = [op for op in ops if not op.answered and op.kind != "read"]
        for op in writers:
            if op.at < end:
                raise Wrong(f"{_told(op)} stands at {op.at}, where another does that was answered too")
            _explain(log, end, op.at, unknown, say)
            end = op.after
        _explain(log, end, len(log), unknown, say)
        _in_order(found)
        placed += len(found)
    return placed


def _hold(op: Op, log: list[int], say: Continue) -> Op:
    """An answered call is in the log, where and as it was told."""
    if op.kind == "read":
        if log[: op.at] != op.tokens:
            raise Wrong(f"{_told(op)} saw {op.tokens[-6:]} at its end, and the log has {log[: op.at][-6:]} there")
    elif log[op.at : op.after] != op.tokens:
        raise Wrong(
            f"{_told(op)} was answered, and the log has {log[op.at : op.after]} at {op.at}: it is lost, or changed"
        )
    elif op.kind == "decode" and say(log[: op.at], len(op.tokens)) != op.tokens:
        raise Wrong(f"{_told(op)} has other tokens than the model says")
    return op


def _explain(log: list[int], start: int, end: int, unknown: list[Op], say: Continue) -> None:
    """What stands between two answered calls is of calls whose answers are not known, each once."""
    while start < end:
        for op in unknown:
            if op.kind == "feed" and log[start : start + len(op.tokens)] == op.tokens and start + len(op.tokens) <= end:
                op.at = start
                start += len(op.tokens)
                unknown.remove(op)
                break
        else:
            for op in unknown:
                if op.kind == "decode" and (count := _said(log, start, min(end, start + op.count), say)):
                    op.at, op.tokens = start, log[start : start + count]
                    start += count
                    unknown.remove(op)
                    break
            else:
                raise Wrong(f"nobody has asked for {log[start:end][:8]} at {start}: done twice, or made up")


def _said(log: list[int], start: int, end: int, say: Continue) -> int:
    """How many tokens from `start` are what the model says there."""
    wanted = say(log[:start], end - start)
    count = 0
    while count < end - start and log[start + count] == wanted[count]:
        count += 1
    return count


def _in_order(ops: list[Op]) -> None:
    """A call that began when another had been answered comes after it: it leaves no shorter log, and a write a longer
    one."""
    longest, held = -1, None
    events = sorted([(op.ended, 1, op) for op in ops] + [(op.began, 0, op) for op in ops], key=lambda event: event[:2])
    for _, is_end, op in events:
        if is_end:
            if op.after > longest:
                longest, held = op.after, op
        elif held is not None and (op.at if op.kind != "read" else op.after) < longest:
            raise Wrong(f"{_told(op)} began after {_told(held)} was answered, and does not come after it")


def _told(op: Op) -> str:
    what = f"{op.tokens[:4]}" if op.kind == "feed" else f"{len(op.tokens)} tokens"
    return f"{op.kind} of {what} by client {op.client} on process {op.pid}"
