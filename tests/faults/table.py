"""What fails, when, and what must hold then: the table that `campaign.py` and the tests run.

A fault is an errno that a call fails with, a write or a read that is cut short, a block that is torn or goes astray. A
moment is something that the system does, and by which the places are reached from which it calls the operating system.
After each fault at each place must hold:

- no answer is another than without the fault (target.py compares them token by token), nothing acknowledged is lost;
- the system goes on, or a kernel ends with a reason in its log, which is no traceback, and the next one has everything;
- there is a line: a warning or error in the log, the reason why the kernel or a driver ended, or an errno for the caller;
  but for what is made good at once (INTERRUPTED), and for what nobody misses (QUIET).
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Signal
from llmasos.syscalls.table import Kill, Spawn, Wait
from tests.faults.shim import FAULTS, MISDIRECTED, SHORT, TORN, Shim, Site, fault_name
from tests.faults.target import MODEL, Agent, Broken, Target, form_of

INTERRUPTED = (errno.EINTR, SHORT)
"""Faults after which the caller tries again, or goes on with the rest."""


UNREAL = r"^site-packages/trio/_core/_wakeup_socketpair"
"""Places where no operating system lets calls fail so: a byte from the process to itself, which wakes its event loop."""


def possible(site: Site, fault: int) -> bool:
    """Whether it can come alone. Where a driver's connection cannot be sent to, reading it ends, too; libzmq waits for
    that, and sends nothing more until then. The kernel has no libzmq."""
    return not (site.call.startswith("send") and site.stack.startswith("libzmq") and fault not in INTERRUPTED)


class Quiet(NamedTuple):
    call: str  # a pattern of calls
    stack: str  # a pattern of places
    why: str
    faults: tuple[int, ...] = ()  # these; none: all


QUIET = (
    Quiet(".*", r"psutil/", "figures of processes are missing for a second, and shown as such"),
    Quiet(
        ".*", r"edge/place\.py", "a directory that cannot be watched: what is removed there is noticed at the next look"
    ),
    Quiet(
        ".*",
        r"edge/supervision\.py",
        "whether the system has killed for want of memory: then a death counts as the driver's",
    ),
    Quiet("open.*|read", r"edge/(machine|standing|policies)\.py", "what an earlier kernel has left, if it has"),
    Quiet("write", r"edge/console\.py", "the log itself"),
    Quiet(
        "pwrite.*",
        r"edge/slot_file\.py",
        "a key that is not what was written is written again",
        (TORN, MISDIRECTED),
    ),
    Quiet(
        "pwrite.*",
        r"edge/audit_file\.py",
        "where the audit log's chain was: the next is written within a second, and a kernel without it follows the lines",
        (TORN, MISDIRECTED),
    ),
    Quiet("f(data)?sync", r"edge/slot_file\.py", "a file of keys that cannot be synced: they are in a new one, which is"),
    Quiet("open.*|write", r"syscalls/undumped\.py", "dumps are as short as before, and a forced one has memory in it"),
    Quiet("unlink.*", r"edge/", "a file that is left behind is removed by the next kernel"),
    Quiet(
        "open.*|read|flock|unlink.*",
        r"drivers/(orphaned|host)\.py",
        "a driver that cleans up behind a kernel that was killed: there is nobody to tell, and the next kernel does it",
    ),
    Quiet("epoll_ctl", r"^site-packages/trio/_core/_io_epoll\.py", "what cannot be changed is registered anew"),
    Quiet("epoll_ctl", r"^libzmq", "a driver that was told to quit ends at once"),
    Quiet("mkdir", r"", "it is there already"),
    Quiet("flock", r"atomic_file\.py", "a file system without locks"),
    Quiet(
        "recv.*|send|sendmsg|connect|getsockopt|accept.*",
        r"libzmq|edge/(door|connections|listening|peers|payers)\.py",
        "a connection that breaks: who had it connects anew",
    ),
)


class Moment(NamedTuple):
    """`during` is done with the fault in the way."""

    name: str
    during: Callable[[Agent, Callable[[], None]], None]
    seconds: float  # about what it takes, for the order


def _work(agent: Agent, arm: Callable[[], None]) -> None:
    arm()
    agent.company()
    agent.turn()
    agent.images()


def _figures(agent: Agent, arm: Callable[[], None]) -> None:
    arm()
    time.sleep(1.2)  # they are looked at each second while a program is there


def _compact(agent: Agent, arm: Callable[[], None]) -> None:
    arm()
    for _ in range(24):  # of 60 KB each in the journal
        pid = agent.call(Spawn(MODEL, [31_000] * 4000, detached=True, name="large"))
        if pid is not None:
            agent.call(Kill(pid, Signal.KILL))
            agent.call(Wait(pid, 1.0))


def _driver(agent: Agent, arm: Callable[[], None]) -> None:
    arm()
    agent.target.kill(driver=True)
    agent.turn()


def _reboot(agent: Agent, arm: Callable[[], None]) -> None:
    agent.target.reboot(arm)
    agent.turn()


def _halt(agent: Agent, arm: Callable[[], None]) -> None:
    arm()
    agent.target.halt()
    agent.turn()


def _kernels_death(agent: Agent, arm: Callable[[], None]) -> None:
    """Its driver cleans up behind it."""
    arm()
    agent.target.reboot(lambda: None)
    agent.turn()


def _first_boot(agent: Agent, arm: Callable[[], None]) -> None:
    agent.target.reboot(arm, first=True)
    agent.begin_anew()
    agent.turn()
    agent.images()


MOMENTS = (
    Moment("work", _work, 0.1),
    Moment("figures", _figures, 1.2),
    Moment("compaction", _compact, 0.5),
    Moment("a driver's death", _driver, 1.0),
    Moment("boot", _reboot, 1.0),
    Moment("the kernel's death", _kernels_death, 1.2),
    Moment("halt", _halt, 1.5),
    Moment("first boot", _first_boot, 1.6),
)


class Case(NamedTuple):
    """One row of the table."""

    moment: Moment
    site: Site
    fault: int
    skip: int = 0  # calls at the place that go well before

    @property
    def key(self) -> str:
        return f"{self.moment.name} | {self.site} | {fault_name(self.fault)} | {self.skip}"


@dataclass(slots=True)
class Outcome:
    fired: bool
    ended: bool = False  # a kernel has
    line: str = ""  # that tells of it; or why there need be none


def explore(agent: Agent, shim: Shim, moments: tuple[Moment, ...] = MOMENTS) -> list[tuple[Moment, Site]]:
    """The places that each moment reaches, each place with the first moment that does."""
    found: list[tuple[Moment, Site]] = []
    known: set[tuple[int, int]] = set()
    for moment in moments:
        moment.during(agent, lambda: None)  # what comes once in a kernel's life, or in a user's, has come
        agent.works()
        moment.during(agent, shim.forget)
        for site in shim.sites():
            if (site.role, site.number) not in known and site.call in FAULTS and not re.search(UNREAL, site.stack):
                known.add((site.role, site.number))
                found.append((moment, site))
        agent.works()
    return found


def run(case: Case, agent: Agent, shim: Shim) -> Outcome:
    """Raises Broken: something that must hold does not."""
    target = agent.target
    target.news()
    ended, errors = len(target.ended), len(target.errors)
    try:
        case.moment.during(
            agent, lambda: shim.arm(case.fault, role=case.site.role, site=case.site.number, skip=case.skip)
        )
        outcome = Outcome(shim.fired > 0 or len(target.ended) > ended, len(target.ended) > ended)
        shim.disarm()
        agent.works()
    except Broken as error:
        raise Broken(f"{case.key}: {error}") from None
    except SyscallError as error:
        if error.errno is Errno.ETIME:
            raise Broken(f"{case.key}: {error}") from None
        raise Broken(f"{case.key}: an error where none may be: {error}") from None
    finally:
        shim.disarm()
    if not all(target.ended[ended:]):
        raise Broken(f"{case.key}: a kernel has ended, and its log does not say why:\n{target.log[-1000:]}")
    outcome.line = line_of(case, target, target.news(), ended, errors)
    if outcome.fired and not outcome.line:
        raise Broken(f"{case.key}: nothing tells of it")
    return outcome


def line_of(case: Case, target: Target, news: str, ended: int, errors: int) -> str:
    told = [line for line in news.splitlines() if re.search(r"\] (warning|error): |^llmasos boot: ", line)]
    told = [line for line in told if "killed by SIGKILL" not in line]  # that was the moment itself
    told = [line for line in told if form_of(line) not in (target.standing or ())]
    if len(target.ended) > ended:
        return target.ended[-1]
    if told:
        return told[0]
    if len(target.errors) > errors:
        return target.errors[-1]
    if case.fault in INTERRUPTED:
        return "it is done again"
    for quiet in QUIET:
        fits = re.fullmatch(quiet.call, case.site.call) and re.search(quiet.stack, case.site.stack)
        if fits and (not quiet.faults or case.fault in quiet.faults):
            return quiet.why
    return ""
