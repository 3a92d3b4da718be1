"""How many may show files to a shared kernel at once."""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from llmasos.kernel.edge.admission import NEWCOMERS, Admission
from llmasos.syscalls import budgets
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.shown import Denied, Show, Taken
from llmasos.syscalls.table import Names
from tests.doorway import apart, until
from tests.shown_files import Raw, opened, plain, serving, show


def test_who_shows_too_much_at_once_is_refused_and_named(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as served:
            many = [Raw(tmp_path) for _ in range(budgets.SHOWN.process)]
            for raw in many:
                raw.say(Show("model", ""))
            await until(lambda: served.budgets()[0].used == budgets.SHOWN.process)
            one_more = Raw(tmp_path)
            with one_more.socket:
                found = await apart(one_more.answer)
            assert isinstance(found, Denied)
            assert found.errno is budgets.SHOWN.errno
            assert f"shown files of OS process {os.getpid()}: 8 of at most 8" in found.reason
            for raw in many:
                raw.socket.close()
            await until(lambda: served.budgets()[0].used == 0)
            with opened(plain(tmp_path), os.O_RDONLY) as descriptor:
                assert isinstance(await apart(lambda: show(tmp_path, Names.MODEL, descriptor)), Taken)

    trio.run(main)


def test_users_who_show_all_that_they_may_keep_nobody_else_out() -> None:
    admission = Admission()
    with ExitStack() as places:

        def admitted(os_pid: int, uid: int) -> bool:
            with suppress(SyscallError):
                places.enter_context(admission.charged(os_pid, uid))
                return True
            return False

        greedy = 3 * budgets.SHOWN.owner
        found = [admitted(100 * uid + number, uid) for number in range(budgets.SHOWN.owner) for uid in (1, 2, 3)]
        assert 0 < sum(found) < greedy
        others = [admitted(1000 + uid, uid) for uid in range(4, 4 + NEWCOMERS)]
        assert all(others)
        with pytest.raises(SyscallError, match=r"of all: 40 of at most 40 are used") as caught:
            places.enter_context(admission.charged(5000, 5000))
        assert caught.value.errno is Errno.EAGAIN
    assert admission.told().used == 0
