"""status: what kernel runs where, since when, how large it is, and what becomes of its agents."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from llmasos.syscalls import runtime
from llmasos.syscalls.blocking import Client
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.records import Kind, PolicyOut, State
from llmasos.syscalls.table import BootInfoCall, Models, Sched, StatsCall
from llmasos.userland.programs import ps
from llmasos.userland.programs.boot import leaves_at_logout
from llmasos.userland.programs.figures import size
from llmasos.userland.programs.listing import plain
from llmasos.userland.programs.system import taken_out

NOT_RUNNING = 3  # the exit status where no kernel runs, as service managers have it

_SAFE = {
    "always": "what was answered is on the disk: nothing is lost in a power cut",
    "interval": "written to the disk each second: after a power cut agents stand as they did up to a second before",
    "never": "the operating system writes it to the disk when it likes; a power cut may lose what came last",
}

_SEALED = "; `llmasos seal status` says under which key"
_AS_TEXT = ", and not encrypted"


def read(kernel: Client, where: Path) -> dict[str, Any]:
    """The facts, with bytes and seconds as numbers."""
    boot, stats = kernel(BootInfoCall()), kernel(StatsCall())
    agents = ps.processes(kernel, lambda row: row.kind is Kind.LLM and row.state is not State.ZOMBIE)
    programs = ps.processes(kernel, lambda row: row.kind is Kind.PROGRAM and row.pid != kernel.pid)
    out: Any = []
    with suppress(SyscallError):  # how devices are scheduled is told to operators
        out = plain(kernel(Sched()).taken_out) if boot.devices else []
    drivers = [device.os_pid for device in boot.devices if device.os_pid]
    return {
        "runtime": str(where.absolute()),
        "version": boot.version,
        "os_pid": boot.os_pid,
        "since": time.time() - boot.uptime,
        "uptime": boot.uptime,
        "arguments": boot.arguments,
        "memory": {"kernel": _resident([boot.os_pid]), "drivers": _resident(drivers)},
        "agents": len(agents),
        "decoding": sum(row.decoding for row in agents),
        "programs": len(programs),
        "models": [{"name": one.name, "dtype": one.dtype, "state": one.state} for one in kernel(Models()) if one.frames],
        "journal": {
            "kept": bool(stats.journal),
            "path": boot.journal_path,  # for operators
            "fsync": boot.fsync,
            "plain": boot.plain,
            "trouble": _trouble(stats.journal),
        },
        "audit": {"kept": bool(stats.audit), "trouble": _trouble(stats.audit)},
        "policies_out": out,
        "notes": leaves_at_logout() if where.absolute() == runtime.usual().absolute() else [],
    }


def nobody(where: Path) -> str:
    """What to say where no kernel runs."""
    if runtime.is_system(where):
        return f"the machine's kernel does not run ({where}); `systemctl start llmasos` starts it, where it is a service"
    place, kept = where / runtime.JOURNAL, None
    with suppress(RuntimeError):  # no home is known
        kept = next((one for one in (place, runtime.journal_place(where) / runtime.JOURNAL) if one.exists()), None)
    if kept is None:
        return f"no kernel runs in {where}; `llmasos` boots one"
    return f"no kernel runs in {where}; the last one has left its agents in {kept.resolve()}: `llmasos` goes on with them"


def pairs(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The same for people."""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(facts["since"]))
    memory, journal = facts["memory"], facts["journal"]
    models = [f"{one['name']} ({one['dtype']}, {one['state']})" for one in facts["models"]]
    told = [
        ("kernel", f"{facts['version']}, process {facts['os_pid']}, in {facts['runtime']}"),
        ("since", since),
        ("memory", f"{size(memory['kernel'])} kernel, {size(memory['drivers'])} drivers"),
        ("agents", f"{facts['agents']}, {facts['decoding']} of them decoding; {facts['programs']} programs attached"),
        ("models", ", ".join(models) or "none in use"),
    ]
    if facts["arguments"]:
        told.append(("booted with", " ".join(facts["arguments"])))
    if journal["kept"] and not journal["path"]:
        told += [("journal", "the next kernel goes on with the agents"), ("", _SAFE.get(journal["fsync"], ""))]
    elif not journal["kept"]:
        told.append(("journal", "none is kept: agents end with this kernel"))
    else:
        whose = "the kernel's user" if runtime.is_system(Path(facts["runtime"])) else "you"
        told += [
            ("journal", journal["path"]),
            ("", "the next kernel goes on with the agents; `llmasos halt` ends them"),
            ("", _SAFE.get(journal["fsync"], "")),
            ("", f"conversations lie there, readable by {whose} alone{_AS_TEXT if journal['plain'] else _SEALED}"),
        ]
        if journal["trouble"]:
            told.append(("", f"it cannot be written now: {journal['trouble']}"))
    if facts["audit"]["trouble"]:
        told.append(("audit", facts["audit"]["trouble"]))
    told += [("policy", f"taken out: {taken_out(PolicyOut(**one))}") for one in facts["policies_out"]]
    return [*told, *(("note", note) for note in facts["notes"])]


def _trouble(kept: str) -> str:
    """What stands in the way of the journal or the audit log, by their words in `stats`."""
    return "" if kept in ("", "kept") else kept


def _resident(pids: Sequence[int]) -> int:
    """Bytes of memory that these processes take."""
    total = 0
    for pid in pids:
        try:
            total += psutil.Process(pid).memory_info().rss
        except psutil.Error:  # it has just ended
            continue
    return total
