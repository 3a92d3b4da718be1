"""By which line of its log a kernel tells of a fault."""

from __future__ import annotations

import errno
from pathlib import Path

from tests.faults.shim import Site
from tests.faults.table import MOMENTS, Case, line_of
from tests.faults.target import Target

STANDING = "[    {at}] warning: the machine has 2 cores; more would help\n"


def test_a_warning_that_stands_there_without_any_fault_tells_of_none(tmp_path: Path) -> None:
    target = Target(tmp_path, None)
    case = Case(MOMENTS[0], Site(0, 1, "write", "edge/nowhere.py"), errno.EIO)

    def said(*lines: str) -> str:
        with (tmp_path / "log").open("a") as log:
            log.writelines(lines)
        return line_of(case, target, target.news(), 0, 0)

    assert said(STANDING.format(at="0.1")) != ""
    target.calm()
    assert said(STANDING.format(at="7.25"), "[    7.300] info: it goes on\n") == ""
    assert said(STANDING.format(at="9.5"), "[    9.600] error: the disk is full\n").endswith("error: the disk is full")
