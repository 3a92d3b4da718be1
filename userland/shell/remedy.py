"""What an error of the kernel says to a person at the shell: the command that helps stands in it.

The kernel names a limit (`kv_max of group /guests`, `Limits.tokens`), for it does not know who asks: a program makes
calls, a person types commands.
"""

from __future__ import annotations

import re

from llmasos.syscalls.errno import SyscallError

_OF_A_GROUP = re.compile(r"\b(kv_max|weights_max|tokens_total) of group (/[\w./-]*)")
_OF_A_PROCESS = re.compile(r"(?:; raise it)? \(Limits\.(context|tokens|pages)\)")
_PROCESS = re.compile(r"\bprocess (\d+)")


def told(error: SyscallError) -> str:
    """The error as it is printed; of one about a limit, with the command that raises it."""
    said = str(error)
    if found := _OF_A_GROUP.search(said):
        value = "N" if found[1] == "tokens_total" else "SIZE"
        return f"{said}; `group {found[2]} {found[1]}={value}` raises it"
    if found := _OF_A_PROCESS.search(said):
        process = _PROCESS.search(said)
        before, after = said[: found.start()], said[found.end() :]
        return f"{before}{after}; `limits {process[1] if process else 'PID'} --{found[1]} N` raises it"
    return said
