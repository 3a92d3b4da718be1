"""The handlers of the system calls, by the record of the call: as `syscalls[]` in xv6's syscall.c.

A handler gets the system, the request, the call, and the objects that the call touches, as its row says. It returns the
result, or `wait(channel)`, or raises SyscallError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llmasos.kernel.calls import (
    context,
    estimate,
    group,
    image,
    info,
    inventory,
    memory,
    move,
    process,
    rights,
    shred,
    system,
)
from llmasos.syscalls import table as calls
from llmasos.syscalls.table import Call

HANDLERS: Mapping[type[Call[Any]], Callable[..., object]] = {
    calls.Feed: context.feed,
    calls.Decode: context.decode,
    calls.Read: context.read,
    calls.Records: context.records,
    calls.Truncate: context.truncate,
    calls.Estimate: estimate.estimate,
    calls.GroupCreate: group.group_create,
    calls.GroupSet: group.group_set,
    calls.GroupStat: group.group_stat,
    calls.GroupRemove: group.group_remove,
    calls.GroupMove: group.group_move,
    calls.GroupKill: group.group_kill,
    calls.Checkpoint: image.checkpoint,
    calls.Restore: image.restore,
    calls.Getinfo: info.getinfo,
    calls.Ps: info.ps,
    calls.Models: memory.models,
    calls.Pagein: memory.pagein,
    calls.Evict: memory.evict,
    calls.Advise: memory.advise,
    calls.Setsched: move.setsched,
    calls.Spawn: process.spawn,
    calls.Fork: process.fork,
    calls.Exec: process.exec_,
    calls.Exit: process.exit_,
    calls.Wait: process.wait_,
    calls.Kill: process.kill,
    calls.Shred: shred.shred,
    calls.ShredOwner: shred.shred_owner,
    calls.Setlimits: process.setlimits,
    calls.Detach: process.detach,
    calls.Rename: process.rename,
    calls.Attach: system.attach,
    calls.Leave: system.leave,
    calls.Null: system.null,
    calls.BootInfoCall: system.boot_info,
    calls.StatsCall: system.stats,
    calls.Trace: system.trace,
    calls.Dmesg: system.dmesg,
    calls.Shutdown: system.shutdown,
    calls.Sched: system.sched,
    calls.Inventory: inventory.inventory,
    calls.Grant: rights.grant,
    calls.Accept: rights.accept,
    calls.Grants: rights.grants,
    calls.Revoke: rights.revoke,
    calls.SandboxOpen: rights.sandbox_open,
    calls.SandboxClose: rights.sandbox_close,
}
