"""What faults have found, each by itself."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from llmasos.kernel.edge import supervision
from llmasos.kernel.edge.place import watch
from llmasos.kernel.edge.supervision import Supervisor
from llmasos.kernel.events import DeviceConfig, DriverExited, DriverPrinted, Event


def test_a_driver_for_which_there_is_no_pipe_could_not_be_started_and_the_kernel_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left() -> tuple[int, int]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    told: list[Event] = []

    async def scenario() -> None:
        async with trio.open_nursery() as nursery:
            Supervisor([DeviceConfig("sim0", "sim")], tmp_path, told.append, nursery).start("sim0", 1)

    monkeypatch.setattr(os, "pipe", none_left)
    trio.run(scenario)
    (ended,) = told
    assert isinstance(ended, DriverExited)
    assert ended.reason == f"it could not be started: [Errno {errno.EMFILE}] {os.strerror(errno.EMFILE)}"


def test_a_driver_whose_output_cannot_be_read_is_no_reason_for_the_kernel_to_end(tmp_path: Path) -> None:
    class Torn(trio.abc.ReceiveStream):
        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            raise trio.BrokenResourceError from OSError(errno.EIO, os.strerror(errno.EIO))

        async def aclose(self) -> None:
            await trio.lowlevel.checkpoint()

    told: list[Event] = []
    child = supervision._Child()
    child.process = SimpleNamespace(stdout=Torn())  # type: ignore[assignment]

    async def scenario() -> None:
        async with trio.open_nursery() as nursery:
            supervisor = Supervisor([DeviceConfig("sim0", "sim")], tmp_path, told.append, nursery)
            await supervisor._listen("sim0", 1, child)

    trio.run(scenario)
    (printed,) = told
    assert isinstance(printed, DriverPrinted)
    assert os.strerror(errno.EIO) in printed.text


def test_a_kernel_that_fails_is_not_ended_by_a_notice_of_its_directories(tmp_path: Path) -> None:
    """Else the signal's default, which ends the process, would come before the traceback."""
    before = signal.getsignal(signal.SIGIO)

    async def scenario() -> None:
        with trio.move_on_after(0.05):
            await watch(lambda: [tmp_path], lambda: None)

    try:
        trio.run(scenario)
        assert signal.getsignal(signal.SIGIO) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGIO, before)
