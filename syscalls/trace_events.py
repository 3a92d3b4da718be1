"""The events of the kernel's trace: what each means, and what its fields `pid`, `device`, `amount` and `detail` say.

`man trace` and docs/syscalls.md are made of this table, and simulations hold the kernel to it. Names whose last word is
another's (a call's, a signal's) stand with that word in capitals.
"""

from __future__ import annotations

from typing import NamedTuple

from llmasos.syscalls.records import TraceEvent


class Shape(NamedTuple):
    """An event. What a field is; empty: it has nothing (0, or no text)."""

    about: str
    pid: str = ""
    device: str = ""  # `*`: the device that it happens on
    amount: str = ""
    detail: str = ""


_PROCESS, _CALLER = "the process", "the program that calls"
EVENTS = {
    "call.CALL": Shape("a system call comes", _CALLER, amount="its sequence number", detail="it, with its arguments"),
    "ret.CALL": Shape(
        "a system call is answered", _CALLER, amount="its sequence number", detail="the result, or `-ERRNO (reason)`"
    ),
    "proc.attach": Shape("a program attaches", "the program", amount="its pid in the host"),
    "proc.detach": Shape("a program ends", "the program", amount="its status", detail="why"),
    "proc.spawn": Shape("a process has its model and begins", _PROCESS, "*", "tokens in its log", "its name"),
    "proc.fork": Shape("a process is forked", "the child", "*", "pages that it shares", "`of PID`: the parent"),
    "proc.exec": Shape("a process has another model", _PROCESS, "*", "tokens in its log", "the model"),
    "proc.decoded": Shape("a decode has ended", _PROCESS, "*", "tokens since it began", "why (`Finish`)"),
    "proc.exit": Shape("a process ends", _PROCESS, amount="its status", detail="why"),
    "proc.shred": Shape("a process is destroyed", _PROCESS, "*", "tokens that its log had"),
    "proc.move": Shape("a process has moved", _PROCESS, "the new one", "tokens in its log", "`FROM to TO`"),
    "proc.checkpoint": Shape("a process image is written", _PROCESS, "*", "its bytes", "the file"),
    "proc.restore": Shape("a process comes from an image", _PROCESS, "*", "tokens in its log", "the file"),
    "proc.state": Shape(
        "a process has a new state; in simulations that record only", _PROCESS, "*", detail="what it waits for, or it"
    ),
    "sched.step": Shape(
        "a step begins", "", "*", "tokens that it computes", "`PID+TOKENS,...`: who is in it, with how many tokens"
    ),
    "sched.again": Shape(
        "in the step that begins a process computes again what it had lost", _PROCESS, "*", "how many tokens"
    ),
    "sched.done": Shape("the step is done", "", "*", "tokens that it computed", "the device's time, `0.512 ms`"),
    "sched.set": Shape("nice or class is set", _PROCESS, amount="its nice value", detail="its class"),
    "sched.policy": Shape("another policy is in force", "", "*", "", "`KIND OLD -> NEW`"),
    "sched.fault": Shape("a policy is taken out", "", "*", "", "which, and why"),
    "mem.preempt": Shape("a process loses all its pages", _PROCESS, "*", "pages", "how many of them are moved out"),
    "mem.out": Shape("pages are moved to a lower tier", _PROCESS, "*", "pages"),
    "mem.in": Shape("pages are moved back", _PROCESS, "*", "pages"),
    "mem.copy": Shape("a shared page is copied, to be written", "", "*", "1", "`FRAME->FRAME`"),
    "mem.fault": Shape("a process wants a model that is evicted", _PROCESS, "*", "bytes of its weights", "the model"),
    "mem.pagein": Shape("a model is in memory", "", "*", "bytes of its weights", "the model"),
    "mem.evict": Shape("a model leaves memory", "", "*", "bytes that become free", "the model"),
    "mem.thrash": Shape(
        "processes keep their pages longer, or shorter, since the device thrashes, or does less", "", "*",
        "how many quanta they keep them", "the model",
    ),
    "mem.high": Shape("a process grows above `kv_high` and pauses", _PROCESS, "*", "bytes above it", "the group"),
    "mem.kill": Shape("a process is killed at `kv_max`", _PROCESS, "*", "bytes that become free", "the group"),
    "group.create": Shape("a group is made", _CALLER, detail="the group"),
    "group.set": Shape("settings of a group change", _CALLER, detail="the group"),
    "group.remove": Shape("a group is removed", _CALLER, detail="the group"),
    "group.move": Shape("a process joins another group", _PROCESS, detail="`OLD -> NEW`"),
    "group.held": Shape("a process is held back by its group", _PROCESS, "*", "", "`GROUP: WHY`"),
    "sig.SIGNAL": Shape("a signal", _PROCESS, amount="of `chld`, `xcpu`: its number", detail="`from PID`: who sent it"),
    "driver.up": Shape("a driver is up", "the driver", "*", "how often it has been started"),
    "driver.down": Shape("a driver has ended", "the driver", "*", "how often it had been started", "why"),
    "kernel.down": Shape("the kernel is killed; in simulations that record only", "", "each"),
    "journal.recover": Shape(
        "processes are back after a boot", amount="tokens in their logs", detail="`N processes`"
    ),
    "journal.attach": Shape("a program is back", "the program", amount="its pid in the host"),
    "journal.compact": Shape("the journal was compacted", amount="its bytes now", detail="`of N bytes`: before"),
    "journal.fail": Shape("the journal cannot be written", detail="why"),
    "journal.whole": Shape("the journal is whole again"),
}  # fmt: skip
_FAMILIES = {name.partition(".")[0]: name for name in EVENTS if name.rpartition(".")[2].isupper()}


def shape(what: str) -> Shape | None:
    """What is declared of the events of a name; None: nothing."""
    return EVENTS.get(_FAMILIES.get(what.partition(".")[0], what))


def undeclared(event: TraceEvent) -> str:
    """What an event has that the table does not tell; empty: nothing."""
    found = shape(event.what)
    if found is None:
        return f"{event.what} is no event of the table"
    for field in ("pid", "device", "amount", "detail"):
        if getattr(event, field) and not getattr(found, field):
            return f"{event.what} has a {field}, {getattr(event, field)!r}, of which the table says nothing"
    return ""


def fields(name: str) -> str:
    """The fields of an event, in a sentence: `pid: the process; amount: pages`."""
    found = EVENTS[name]
    told = [(field, getattr(found, field)) for field in ("pid", "amount", "detail")]
    return "; ".join(f"{field}: {meaning}" for field, meaning in told if meaning)
