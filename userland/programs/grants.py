"""grants: rights on processes that were handed to other programs, as a table."""

from __future__ import annotations

from llmasos.syscalls import limits
from llmasos.syscalls.pids import shown
from llmasos.syscalls.records import GrantInfo
from llmasos.syscalls.rights_words import words_of
from llmasos.syscalls.table import Grants
from llmasos.userland.programs.figures import duration
from llmasos.userland.programs.listing import Field, Listing
from llmasos.userland.programs.ps import Kernel

LISTING: Listing[GrantInfo] = Listing(
    (
        Field("HANDLE", "handle", shown=lambda one: shown(one.handle), right=True, style="bold", keep=6),
        Field("ON", "pid", shown=lambda one: shown(one.pid) if one.pid else one.group, right=True, keep=6, elastic=True),
        Field("RIGHTS", "rights", shown=lambda one: words_of(one.rights), keep=6, elastic=True, least=8),
        Field("TO", "to", keep=5, elastic=True, least=6),
        Field("HOLDER", "holder", shown=lambda one: shown(one.holder) if one.holder else "-", right=True, keep=4),
        Field("OF", "parent", shown=lambda one: shown(one.parent) if one.parent else "-", right=True, keep=3),
        Field("LEFT", "left", shown=lambda one: duration(one.left) if one.until else "-", right=True, keep=4),
    )
)


def read(kernel: Kernel) -> list[GrantInfo]:
    """All that the caller holds or may take back, in as many calls as it takes."""
    rows: list[GrantInfo] = []
    while True:
        page = kernel(Grants(after=rows[-1].handle if rows else 0))
        rows += page
        if len(page) < limits.MAX_LIST:
            return rows
