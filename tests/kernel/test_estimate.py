"""estimate: what it says is what then happens, and it changes nothing itself."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos.kernel.memory.page_table import blocks
from llmasos.simulator import FRAME_BYTES, Prog, Simulation, simulate
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Advice, ModelInfo, Right
from llmasos.syscalls.table import Advise, Decode, Estimate, Evict, Getinfo, Models, Pagein, Spawn
from tests.kernel.paged import MB, PROMPT, memory, refused, spawn


def there(program: Prog) -> dict[str, ModelInfo]:
    """The models whose weights are in memory."""
    return {m.name: m for m in program.call(Models()) if m.state in ("resident", "streamed")}


# --- figures --------------------------------------------------------------------------------------------------------


def test_it_says_what_a_model_will_take_and_loads_nothing() -> None:
    sim = memory(5 * MB)
    program = sim.program()
    before, lines = program.call(Models()), len(sim.log)
    info = program.call(Estimate("sim:1m", context=1000))
    assert (info.state, info.architecture, info.parameters, info.dtype) == ("absent", "sim", MB, "bf16")
    assert (info.weight_bytes, info.resident_bytes) == (2 * MB, 2 * MB)
    assert info.kv_bytes_1000 == 1000 * FRAME_BYTES // 16
    assert (info.context, info.context_bytes) == (1000, blocks(1000) * FRAME_BYTES)
    assert info.total_bytes == info.weight_bytes + info.context_bytes
    assert (info.window, info.pool_tokens, info.pool_bytes) == (8192, 512 * 16, 512 * FRAME_BYTES)
    assert (info.weight_limit, info.weight_free) == (5 * MB, 5 * MB)
    assert (info.kv_limit, info.kv_free) == (16 * 512 * FRAME_BYTES,) * 2
    assert (info.going, info.refused) == ([], "")
    assert program.call(Models()) == before
    assert len(sim.log) == lines
    found = program.call(Pagein("sim:1m"))
    assert found.weight_bytes == info.weight_bytes
    assert found.frames * found.block_bytes == info.pool_bytes
    again = program.call(Estimate("sim:1m"))
    assert (again.state, again.going, again.resident_bytes) == ("resident", [], 2 * MB)
    assert again.weight_free == 3 * MB
    assert again.kv_free == info.kv_free - info.pool_bytes
    assert program.call(Estimate("sim:1m", dtype="bf16")) == again, "the default by its name"
    assert program.call(Estimate("sim:1m", dtype="int8")).weight_bytes == MB


def test_without_a_context_it_counts_with_as_many_tokens_as_one_can_have_here() -> None:
    program = simulate(frames=8).program()
    assert program.call(Estimate("sim:1m")).context == 8 * 16
    assert program.call(Estimate("sim:1m,context=100")).context == 100
    long = program.call(Estimate("sim:1m", context=129))
    assert "a context of 129 tokens is too long: 128 is what its KV memory on sim0 holds" in long.refused
    assert "100 is its window" in program.call(Estimate("sim:1m,context=100", context=101)).refused
    assert (long.context, long.context_bytes) == (129, 9 * FRAME_BYTES), "the figures are those asked for"


def test_what_can_only_be_streamed_says_how_much_of_it_stays() -> None:
    program = memory(3 * MB, streams="4").program()
    info = program.call(Estimate("sim:5m"))
    assert (info.weight_bytes, info.resident_bytes, info.refused) == (10 * MB, 3 * MB, "")
    assert program.call(Pagein("sim:5m")).resident_bytes == 3 * MB
    assert program.call(Estimate("sim:5m")).state == "streamed"


@pytest.mark.parametrize(
    ("model", "errno"),
    [("nowhere", Errno.ENOENT), ("sim:1m,arch=bert", Errno.ENOEXEC), ("sim:1m,fail=EIO", Errno.EIO)],
)
def test_what_cannot_be_loaded_fails_as_loading_it_does(model: str, errno: Errno) -> None:
    program = simulate().program()
    assert refused(program, Estimate(model)) == refused(program, Pagein(model))
    assert refused(program, Estimate(model))[0] is errno


def test_a_dtype_a_device_or_a_right_that_is_not_there_is_refused() -> None:
    sim = simulate()
    program = sim.program()
    assert refused(program, Estimate("sim", dtype="int4"))[0] is Errno.ENOTSUP
    assert refused(program, Estimate("sim", device="sim7"))[0] is Errno.ENODEV
    assert refused(sim.program("observer", Right.QUERY), Estimate("sim"))[0] is Errno.EPERM


# --- who would go ---------------------------------------------------------------------------------------------------


def test_it_names_who_would_go_and_what_for() -> None:
    sim = memory()
    program = sim.program()
    pid = spawn(program, "sim:1m")
    sim.run_idle()
    (gone,) = program.call(Estimate("sim:1.1m")).going
    assert (gone.name, gone.dtype, gone.weight_bytes, gone.processes) == ("sim:1m", "bf16", 2 * MB, 1)
    assert (gone.kv_bytes, gone.active) == (0, False), "its frames stay: a process maps them"
    decoding = program.start(Decode(pid, 2000))
    sim.run_for(0.01)
    (gone,) = program.call(Estimate("sim:1.1m")).going
    assert gone.active
    assert not decoding.done
    assert there(program).keys() == {"sim:1m"}
    assert program.call(Getinfo(pid)).usage.refaults == 0
    decoding.cancel()
    program.call(Evict("sim:1m", force=True))
    assert program.call(Estimate("sim:1.1m")).going == []


kinds = st.sampled_from(["unused", "asleep", "asleep", "pinned", "unneeded"])


@settings(max_examples=40)
@given(
    models=st.lists(st.tuples(st.integers(1, 9), kinds), max_size=4),
    wanted=st.integers(1, 12),
    room=st.integers(4, 24),
    kv=st.integers(1, 4),
)
def test_who_it_says_would_go_is_who_goes(models: list[tuple[int, str]], wanted: int, room: int, kv: int) -> None:
    """The oracle is the page-in itself. `kv`: how many models' frames there is memory for."""
    sim = memory(room * MB)
    sim.kernel.devices["sim0"].config.kv_bytes = kv * 512 * FRAME_BYTES
    program = sim.program()
    for number, (size, kind) in enumerate(models):
        name = f"sim:{size}.00{number}m"  # 2 MB a million
        with suppress(SyscallError):  # there may be no room for it
            if kind == "asleep":
                program.call(Decode(spawn(program, name), 3))
            else:
                program.call(Pagein(name))
            if kind in ("pinned", "unneeded"):
                program.call(Advise(name, Advice.PIN if kind == "pinned" else Advice.DONTNEED))
        sim.run_for(3.0)  # nobody's turn lasts so long
    name = f"sim:{wanted}.009m"
    before = there(program)
    info = program.call(Estimate(name))
    assert there(program) == before
    assert info.weight_free == max(0, info.weight_limit - sum(m.resident_bytes for m in before.values()))
    if info.refused:
        assert refused(program, Pagein(name)) == (Errno.ENOMEM, info.refused)
        assert there(program) == before
    else:
        program.call(Pagein(name))
        gone = before.keys() - there(program).keys()
        assert {one.name for one in info.going if one.weight_bytes} == gone


# --- when the driver is not well ------------------------------------------------------------------------------------


def down(sim: Simulation) -> None:
    sim.crash()
    sim.run_until(lambda: sim.kernel.devices["sim0"].state != "up")


def test_it_waits_for_a_driver_that_starts_and_is_told_when_one_dies() -> None:
    sim = simulate(restart_first=1.0)
    program = sim.program()
    down(sim)
    asked = program.start(Estimate("sim:1m"))
    sim.run_until(lambda: asked.done)
    assert asked.value.weight_bytes == 2 * MB
    asked = program.start(Estimate("sim:2m"))
    sim.crash()
    sim.run_until(lambda: asked.done)
    assert asked.errno is Errno.ERESTART
    assert program.call(Estimate("sim:2m")).weight_bytes == 4 * MB


def test_on_a_device_that_does_not_start_it_is_refused_and_a_cancelled_one_leaves_nothing() -> None:
    sim = simulate(restart_first=1.0)
    program = sim.program()
    device = sim.kernel.devices["sim0"]
    down(sim)
    waiting, cancelled = program.start(Estimate("sim:1m")), program.start(Estimate("sim:1m"))
    cancelled.cancel()
    assert (cancelled.errno, len(device.up)) == (Errno.EINTR, 1)
    while not device.hopeless:
        sim.crash()
        sim.run_for(0.0001)
    assert waiting.errno is Errno.ENODEV
    assert refused(program, Estimate("sim:1m"))[0] is Errno.ENODEV
    assert not device.up


def test_what_a_driver_said_when_it_died_is_told_to_operators_only() -> None:
    sim = simulate(restart_first=1.0)
    operator, ann = sim.program(), sim.program(uid=1001)
    device = sim.kernel.devices["sim0"]
    looking = [program.start(Estimate("sim:1m")) for program in (operator, ann)]
    sim.driver().die("no /home/op/secret")
    sim.run_for(0.0001)
    waiting = [program.start(Spawn("sim", [1])) for program in (operator, ann)]
    while not device.hopeless:
        sim.driver().die("no /home/op/secret")
        sim.run_for(0.0001)
    at_once = [program.start(Spawn("sim", [1])) for program in (operator, ann)]
    sim.run_for(0.0001)
    for futures, errno in ((looking, Errno.ERESTART), (waiting, Errno.ENODEV), (at_once, Errno.ENODEV)):
        told = [future.reply.reason for future in futures if future.reply]
        assert [future.errno for future in futures] == [errno, errno]
        assert ["secret" in reason for reason in told] == [True, False]


def test_it_does_not_tell_whether_others_have_the_model_in_memory() -> None:
    told = []
    for there in (False, True):
        sim = simulate(256)
        ann, ben = sim.program(uid=1001), sim.program(uid=1002)
        if there:
            ann.call(Spawn("sim:context=128", [1, 2], detached=True))
        told.append([ben.call(Estimate("sim:context=128", dtype=dtype)) for dtype in ("", "bf16")])
        assert ann.call(Estimate("sim:context=128")).state == ("resident" if there else "absent")
    for absent, there in zip(*told, strict=True):
        assert (there.state, there.resident_bytes) == ("absent", absent.resident_bytes)
        assert (there.name, there.refused, there.going) == (absent.name, absent.refused, absent.going)


def test_a_step_beside_it_is_not_cleared_of_a_drivers_death() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", PROMPT))
    sim.run_idle()
    asked = program.start(Estimate("sim:2m"))
    decoding = program.start(Decode(pid, 5))
    sim.crash()
    sim.run_until(lambda: asked.done)
    assert sim.kernel.table.llm(pid).crashes == 1
    sim.run_until(lambda: decoding.done)
    assert decoding.value.tokens == sim.continuation(PROMPT, 5)
