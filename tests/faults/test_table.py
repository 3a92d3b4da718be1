"""Faults at each place from which kernel and driver call the operating system.

Each (place, fault) of a working system once; of boots, halts, compactions and drivers' deaths, which take a second each,
some that are drawn (LLMASOS_WHOLE=1: all; `python -m tests.faults.campaign` goes through later calls at each place, too).
"""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.table import Feed, Read
from tests.faults import shim
from tests.faults.campaign import cases, under_test
from tests.faults.shim import Shim
from tests.faults.table import MOMENTS, Case, explore, run

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(bool(shim.unavailable()), reason=shim.unavailable()),
    pytest.mark.timeout(1800 if os.environ.get("LLMASOS_WHOLE") else 300),
]

WHOLE = bool(os.environ.get("LLMASOS_WHOLE"))
DRAWN = 3  # cases of the moments that take long
DEADLY = ("epoll_ctl",)  # libzmq and trio end the process at once, wherever it fails; each costs a boot
LEAST_PLACES = 25  # of a working system; fewer: the shim does not reach what it should


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shim.build(tmp_path_factory.mktemp("shim"))


def test_each_call_of_a_working_system_fails_once_and_nothing_acknowledged_is_lost(tmp_path: Path, library: Path) -> None:
    with under_test(tmp_path, library) as (agent, faults):
        rows = cases(explore(agent, faults, MOMENTS[:1]), 1)
        assert len({case.site for case in rows}) >= LEAST_PLACES
        rows = [case for case in rows if WHOLE or case.site.call not in DEADLY]
        outcomes = [run(case, agent, faults) for case in rows]
        assert sum(outcome.fired for outcome in outcomes) > 0.8 * len(rows)


def test_boots_and_deaths_of_drivers_outlive_faults_too(tmp_path: Path, library: Path) -> None:
    with under_test(tmp_path, library) as (agent, faults):
        longer = [moment for moment in MOMENTS[1:] if WHOLE or moment.name in ("boot", "a driver's death")]
        rows = cases(explore(agent, faults, tuple(longer)), 1)
        rows = rows if WHOLE else random.Random(4).sample(rows, DRAWN)
        for case in rows:
            run(case, agent, faults)


@pytest.mark.skipif(not WHOLE, reason="LLMASOS_WHOLE=1 tries the embedded model's driver, too")
def test_each_call_of_the_embedded_models_driver_fails_once_and_no_token_is_wrong(tmp_path: Path, library: Path) -> None:
    with under_test(tmp_path, library, "cpu:threads=1") as (agent, faults):
        rows = [case for case in cases(explore(agent, faults, MOMENTS[:1]), 1) if case.site.role == shim.DRIVER]
        outcomes = {(case.site.call, case.fault): run(case, agent, faults) for case in rows}
        assert outcomes["pwritev64v2", shim.TORN].fired
        assert outcomes["pwritev64v2", shim.MISDIRECTED].fired


def test_a_disk_that_says_it_wrote_a_record_and_did_not_is_noticed_and_told(tmp_path: Path, library: Path) -> None:
    """No kernel can keep what such a disk loses; but nobody gets another answer in silence."""
    with under_test(tmp_path, library) as (agent, faults):
        agent.turn()
        (site,) = {one.number for one in faults.sites() if one.call == "write" and "edge/journal_keeper" in one.stack}
        faults.arm(shim.TORN, role=shim.KERNEL, site=site)
        length = agent.client(Feed(agent.pid, [77]))
        assert faults.fired == 1
        agent.target.kill()
        with pytest.raises(SyscallError, match="was told of record") as caught:
            agent.client(Read(agent.pid))
        assert caught.value.errno is Errno.ESTALE
        assert "journal: " in agent.target.news()
        with agent.target.connect(ticket=agent.client.boot.ticket) as again:
            assert again(Read(agent.pid)).length == length - 1


def test_the_shim_lets_the_call_fail_that_it_is_told_and_no_other(tmp_path: Path, library: Path) -> None:
    """A program that writes twice: the second write fails, at the place that was named."""
    program = tmp_path / "llmasos.kernel.edge.boot.py"  # the shim looks for kernels by their command lines
    program.write_text(
        "import os\n"
        "def put(text):\n"
        "    os.write(1, text)\n"
        "for text in (b'one ', b'two ', b'three'):\n"
        "    try:\n"
        "        put(text)\n"
        "    except OSError as error:\n"
        "        put(os.strerror(error.errno).encode() + b' ')\n"
    )
    faults = Shim(library, tmp_path)

    def said() -> str:
        words = [sys.executable, os.fspath(program)]
        return subprocess.run(words, env=faults.environment, stdout=subprocess.PIPE, check=True, text=True).stdout

    assert said() == "one two three"
    (site,) = (site for site in faults.sites() if site.call == "write" and ":6" in site.stack)
    faults.arm(errno.ENOSPC, site=site.number, skip=1)
    assert said() == "one No space left on device three"
    assert faults.fired == 1
    assert site.role == shim.KERNEL


def test_what_may_fail_is_in_the_table() -> None:
    case = Case(MOMENTS[0], shim.Site(shim.DRIVER, 1, "pwritev", "llmasos/a.py:1"), shim.TORN)
    assert case.key == "work | driver pwritev llmasos/a.py:1 | torn | 0"
    assert all(fault < 0 or errno.errorcode[fault] for faults in shim.FAULTS.values() for fault in faults)
