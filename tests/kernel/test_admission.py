"""How many may show files to a shared kernel at once."""

from __future__ import annotations

import os
from pathlib import Path

import trio
import trio.testing

from llmasos.syscalls import budgets
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
