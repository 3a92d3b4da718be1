"""Which sleeping process loses its pages first: replaceable policies, like page replacement in teaching kernels.

A policy is a small pure object, one for each image. The kernel tells it when a process gets pages (`came`), runs with
them (`ran`) and has none any more (`gone`), and asks it to choose among the processes that hold pages and do not want to
run. `lru` and `fifo` do what their names say. `clock` is fifo with a second chance for a process that has run since the
hand went by. `cost`, the default, takes the pages that are cheap to bring back and idle for long (after GreedyDual-Size,
Cao and Irani 1997).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from llmasos.kernel.clock import MILLISECOND
from llmasos.kernel.objects.process import LLMProcess
from llmasos.syscalls.constraint import near
from llmasos.syscalls.errno import Errno

_WORTHLESS_TO_TAKE = 1 << 256  # above every cost
_LOOKED_AT = 64  # sleepers that `cost` compares, the longest idle first


class Victims:
    """`lru`: choose the process that ran longest ago.

    To write another policy: subclass, choose, and load it from its file (docs/policies.md)."""

    name = "lru"
    fault = ""  # of a module of the user's: why its guard (kernel/edge/guards.py) lets it go on no longer

    def came(self, process: LLMProcess) -> None:
        """The process has pages, after having had none."""

    def ran(self, process: LLMProcess) -> None:
        """The process takes part in a step."""

    def gone(self, process: LLMProcess) -> None:
        """The process has no pages any more."""

    def choose(self, sleepers: Iterable[LLMProcess], now: int) -> LLMProcess | None:
        """The process that loses its pages; None if there is none: a policy of the user's is asked only while there are
        some, and None is a fault then. `sleepers` come in the order in which they last ran."""
        return next(iter(sleepers), None)


class Fifo(Victims):
    """Choose the process that has had its pages longest."""

    name = "fifo"

    def __init__(self) -> None:
        self._came: dict[int, None] = {}  # pids in the order in which they came

    def came(self, process: LLMProcess) -> None:
        self._came.setdefault(process.pid)

    def gone(self, process: LLMProcess) -> None:
        self._came.pop(process.pid, None)

    def choose(self, sleepers: Iterable[LLMProcess], now: int) -> LLMProcess | None:
        asleep = {process.pid: process for process in sleepers}
        return next((asleep[pid] for pid in self._came if pid in asleep), None)


class Clock(Fifo):
    """Choose as fifo does, but pass over a process once that has run since the hand last went by."""

    name = "clock"

    def __init__(self) -> None:
        super().__init__()
        self._referenced: set[int] = set()

    def ran(self, process: LLMProcess) -> None:
        self._referenced.add(process.pid)

    def gone(self, process: LLMProcess) -> None:
        super().gone(process)
        self._referenced.discard(process.pid)

    def choose(self, sleepers: Iterable[LLMProcess], now: int) -> LLMProcess | None:
        asleep = {process.pid: process for process in sleepers}
        for _ in range(2):  # in the second round no process is referenced any more
            for pid in list(self._came):
                if pid not in asleep:
                    continue
                if pid not in self._referenced:
                    return asleep[pid]
                self._referenced.discard(pid)
                self._came[pid] = self._came.pop(pid)  # the hand has gone by
        return None


class Cost(Victims):
    """Choose the process whose frames are cheapest to bring back for the time that it has been idle."""

    name = "cost"

    def choose(self, sleepers: Iterable[LLMProcess], now: int) -> LLMProcess | None:
        return min(islice(sleepers, _LOOKED_AT), key=lambda process: self._worth(process, now), default=None)

    @staticmethod
    def _worth(process: LLMProcess, now: int) -> int:
        """The time to bring back one of its frames, divided by the time that it has been idle, in units of 2**-32."""
        image, table = process.image, process.table
        if image is None or not table.frames:
            return 0
        alone = sum(image.pool.refs[frame] == 1 for frame in table.frames)
        if not alone:
            return _WORTHLESS_TO_TAKE  # nothing would become free
        idle = max(now - process.since, MILLISECOND)
        return (image.swap_cost.time(table.cached, table.clean) << 32) // (alone * idle)


VICTIMS: dict[str, type[Victims]] = {policy.name: policy for policy in (Cost, Victims, Fifo, Clock)}


def make_victims(name: str) -> Victims:
    """A fresh policy; EINVAL names the ones there are."""
    if name not in VICTIMS:
        raise Errno.EINVAL(f"no policy {name!r} for victims{near(name, VICTIMS)}; there are: {', '.join(VICTIMS)}")
    return VICTIMS[name]()
