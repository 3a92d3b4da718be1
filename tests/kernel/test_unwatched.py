"""What the other tests of the core pass by: found by faults put into it that nobody noticed (tests/mutation)."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from llmasos.kernel.journal import process_image
from llmasos.kernel.memory.victims import Clock, Fifo
from llmasos.simulator import FRAME_BYTES, simulate
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import Advice, Signal
from llmasos.syscalls.table import (
    Advise,
    Checkpoint,
    Decode,
    Feed,
    Kill,
    Models,
    Pagein,
    Restore,
    Spawn,
    StatsCall,
)
from tests.kernel.paged import refused

PROMPT = [5, 6, 7, 8] * 9


def test_for_the_kv_of_a_new_model_only_models_go_that_nobody_needs() -> None:
    sim = simulate(16)
    config = sim.kernel.devices["sim0"].config
    config.kv_bytes = 3 * 16 * FRAME_BYTES  # three models
    program = sim.program()
    program.call(Spawn("sim:1.1m", tokens=[1]))
    program.call(Pagein("sim:1.2m"))
    program.call(Advise("sim:1.2m", Advice.PIN))
    program.call(Pagein("sim:1.3m"))
    program.call(Pagein("sim:1.4m"))
    there = {row.name for row in program.call(Models()) if row.state == "resident"}
    assert there == {"sim:1.1m", "sim:1.2m", "sim:1.4m"}
    program.call(Spawn("sim:1.4m", tokens=[1]))
    errno, reason = refused(program, Pagein("sim:1.5m"))
    assert errno is Errno.ENOMEM
    assert "beside the models in use" in reason
    assert {row.name for row in program.call(Models()) if row.state == "resident"} == there


def test_a_restored_process_counts_as_spawned_and_one_that_cannot_be_does_not(tmp_path: Path) -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=PROMPT))
    program.call(Checkpoint(pid, str(tmp_path / "image")))
    before = program.call(StatsCall()).spawned
    program.call(Restore(str(tmp_path / "image")))
    assert program.call(StatsCall()).spawned == before + 1
    refused(program, Restore(str(tmp_path / "none")))
    assert program.call(StatsCall()).spawned == before + 1


@pytest.mark.parametrize("version", [0, process_image.VERSION + 1, 999])
def test_an_image_of_another_version_is_refused_by_its_version_whatever_its_form(version: int) -> None:
    for body in ({"version": version}, {"version": version, "log": "what a later version has there"}):
        with pytest.raises(Exception, match=rf"EINVAL: FILE holds a process of version {version}, up to") as caught:
            process_image.read_image(msgspec.msgpack.encode(body), "FILE")
        assert getattr(caught.value, "errno", None) is Errno.EINVAL


@pytest.mark.parametrize("victims", ["fifo", "clock"])
def test_who_has_given_up_its_pages_comes_last_when_it_has_some_again(victims: str) -> None:
    sim = simulate(64, victims=victims)
    program = sim.program()
    pids = [program.call(Spawn("sim", tokens=PROMPT)) for _ in range(3)]
    for pid in pids:
        program.call(Decode(pid, 1))
    (image,) = sim.kernel.devices["sim0"].images.values()
    order = image.victims
    assert isinstance(order, Fifo | Clock)
    sleepers = list(image.users.values())
    first = order.choose(sleepers, sim.clock)
    assert first is not None
    image.cut(first, 0)
    assert order.choose([first], sim.clock) is None, "it has none to lose"
    image.hold(first)
    assert order.choose(sleepers, sim.clock) is not first


def test_what_was_to_be_computed_ahead_still_is_when_a_process_was_only_stopped() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=[1]))
    sim.run_idle()
    process = sim.kernel.table.llm(pid)
    program.call(Kill(pid, Signal.STOP))
    program.call(Feed(pid, PROMPT))
    assert process.ahead
    program.call(Kill(pid, Signal.CONT))
    assert process.ahead
    sim.run_idle()
    assert process.table.cached == len(PROMPT), "all but the last"
