"""The table of `jobs -o`, and the records of `jobs --json`."""

from __future__ import annotations

from dataclasses import dataclass

from llmasos.userland.programs.listing import Field, Listing
from llmasos.userland.programs.table import NAME


@dataclass(frozen=True)
class JobRow:
    """A job: an agent that answers (`pid`, and the tokens it has `decoded` in its life), or a pipeline (pid 0)."""

    job: int
    state: str
    pid: int
    decoded: int
    command: str


LISTING: Listing[JobRow] = Listing(
    (
        Field("JOB", "job", shown=lambda row: f"%{row.job}", right=True, keep=NAME),
        Field("STATE", "state", keep=8),
        Field("PID", "pid", shown=lambda row: row.pid or "-", right=True, keep=5),
        Field("DECODED", "decoded", shown=lambda row: row.decoded if row.pid else "-", right=True, keep=4),
        Field("COMMAND", "command", elastic=True, keep=NAME),
    )
)
