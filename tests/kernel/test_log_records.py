"""Opaque records: they stand where they were put, and go where the log goes."""

from __future__ import annotations

import copy
from pathlib import Path
from types import MappingProxyType

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos.kernel.groups.group import Group
from llmasos.kernel.journal.process_image import ProcessImage, read_image
from llmasos.kernel.journal.recorder import image_of
from llmasos.kernel.journal.records import BadFrame, Frame, Noted, decode, encode
from llmasos.kernel.journal.state import State
from llmasos.kernel.memory.page_table import Kept, PageTable
from llmasos.kernel.memory.swap import Slot
from llmasos.kernel.objects.log_records import NO_RECORDS, LogRecords
from llmasos.kernel.objects.process import LLMProcess
from llmasos.kernel.objects.process_table import ProcessTable
from llmasos.simulator import Prog, Simulation, simulate
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.limits import MAX_RECORD_BYTES, MAX_RECORDS
from llmasos.syscalls.records import LogRecord, Right, Signal
from llmasos.syscalls.table import (
    Checkpoint,
    Decode,
    Exec,
    Exit,
    Feed,
    Fork,
    Getinfo,
    Kill,
    Read,
    Records,
    Restore,
    Setsched,
    Spawn,
    Trace,
    Truncate,
)


def rows(program: Prog, pid: int, position: int = 0) -> list[tuple[int, bytes]]:
    return [(row.position, row.data) for row in program.call(Records(pid, position)).records]


def fails(program: Prog, call: object) -> SyscallError:
    with pytest.raises(SyscallError) as caught:
        program.call(call)  # type: ignore[arg-type]
    return caught.value


def process(sim: Simulation, pid: int) -> LLMProcess:
    return sim.kernel.table.llm(pid)


def talk(program: Prog, model: str = "sim") -> int:
    """A process of 9 tokens, five of them fed, with records at 0 (two), 3 and 9."""
    pid = program.call(Spawn(model, [1, 2, 3], records=[b"system", b"tools"]))
    program.call(Feed(pid, [4, 5], [b"user"]))
    program.call(Decode(pid, 4))
    program.call(Feed(pid, [], [b"switch"]))
    return pid


TALK = [(0, b"system"), (0, b"tools"), (3, b"user"), (9, b"switch")]


# --- as a list ------------------------------------------------------------------------------------------------------


@given(
    steps=st.lists(
        st.tuples(st.just("add"), st.integers(0, 5), st.lists(st.binary(max_size=3), max_size=3))
        | st.tuples(st.just("cut"), st.integers(0, 30), st.just([])),
        max_size=20,
    ),
    position=st.integers(0, 40),
)
def test_records_are_a_list_that_is_cut_by_position(steps: list[tuple[str, int, list[bytes]]], position: int) -> None:
    records, model, length = LogRecords(), list[tuple[int, bytes]](), 0
    for what, number, blobs in steps:
        if what == "add":
            records = records.with_more(length, blobs)
            model += [(length, blob) for blob in blobs]
            length += number
        else:
            length = min(length, number)
            left = [row for row in model if row[0] < length]
            assert records.cut(length) == (left != model)
            model = left
        records.journaled = len(records.rows)
    assert [(row.position, row.data) for row in records.rows] == model
    assert records.bytes == sum(len(blob) for _, blob in model)
    assert [(row.position, row.data) for row in records.since(position)] == [row for row in model if row[0] >= position]


def test_what_all_processes_share_that_have_nothing_refuses_to_be_written() -> None:
    with pytest.raises(AttributeError):
        NO_RECORDS.journaled = 0
    with pytest.raises(AttributeError):
        NO_RECORDS.rows = (LogRecord(0, b"x"),)
    with pytest.raises(ValueError, match="that has none"):
        NO_RECORDS.journal_has(1)
    assert copy.deepcopy(NO_RECORDS) is NO_RECORDS
    assert NO_RECORDS.with_more(3, [b"x"]).rows == (LogRecord(3, b"x"),)
    assert (NO_RECORDS.rows, NO_RECORDS.bytes, NO_RECORDS.cut(0)) == ((), 0, False)
    table = PageTable(Group())
    with pytest.raises(TypeError, match="shared"):
        table.kept[0] = Kept(Slot(1, 0), 16)
    assert table.chain == ()
    rows: object = ProcessTable(9).zombies(7)
    assert isinstance(rows, MappingProxyType)


def test_as_many_records_and_bytes_as_one_process_may_have_fit_and_no_more() -> None:
    records = LogRecords()
    records.check_room([b""] * MAX_RECORDS, 1)
    records.check_room([bytes(MAX_RECORD_BYTES - 1), b"x"], 1)
    records = records.with_more(0, [b"abc"])
    for blobs in ([b""] * MAX_RECORDS, [bytes(MAX_RECORD_BYTES - 2)]):
        with pytest.raises(SyscallError) as caught:
            records.check_room(blobs, 1)
        assert caught.value.errno is Errno.E2BIG
    records.check_room([b""] * (MAX_RECORDS - 1), 1)
    records.check_room([bytes(MAX_RECORD_BYTES - 3)], 1)


# --- by system calls ------------------------------------------------------------------------------------------------


def test_a_record_stands_where_the_tokens_it_came_with_begin() -> None:
    program = simulate().program()
    pid = talk(program)
    assert rows(program, pid) == TALK
    assert rows(program, pid, 1) == TALK[2:]
    assert rows(program, pid, 4) == TALK[3:]
    assert rows(program, pid, 10) == []
    assert program.call(Records(pid)).length == 9
    assert program.call(Getinfo(pid)).record_bytes == len("systemtoolsuserswitch")


@pytest.mark.parametrize(("length", "left"), [(9, 3), (8, 3), (4, 3), (3, 2), (2, 2), (1, 2), (0, 0)], ids="{}".format)
def test_a_cut_takes_the_records_of_the_tokens_it_takes_and_those_where_it_cuts(length: int, left: int) -> None:
    program = simulate().program()
    pid = talk(program)
    program.call(Truncate(pid, length))
    assert rows(program, pid) == TALK[:left]
    program.call(Feed(pid, [6], [b"again"]))
    assert rows(program, pid) == [*TALK[:left], (length, b"again")]


def test_a_feed_that_is_refused_leaves_no_records() -> None:
    sim = simulate()
    program = sim.program()
    pid = talk(program)
    assert fails(program, Feed(pid, [10**6], [b"x"])).errno is Errno.EINVAL
    assert fails(program, Feed(pid, [7] * 600, [b"x"])).errno is Errno.E2BIG
    program.start(Decode(pid, 30))
    assert fails(program, Feed(pid, [7], [b"x"])).errno is Errno.EBUSY
    assert fails(program, Spawn("sim", [10**6], records=[b"x"])).errno is Errno.EINVAL
    assert rows(program, pid) == TALK


def test_a_process_has_no_more_records_and_bytes_of_them_than_it_may() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", [1], records=[b"x" * (MAX_RECORD_BYTES - 2)]))
    program.call(Feed(pid, [2], [b"yy"]))
    error = fails(program, Feed(pid, [3], [b"z"]))
    assert error.errno is Errno.E2BIG
    assert f"2 records with {MAX_RECORD_BYTES} bytes" not in error.reason
    assert f"3 records with {MAX_RECORD_BYTES + 1} bytes" in error.reason
    assert program.call(Read(pid)).tokens == [1, 2], "records and tokens come together or not at all"
    program.call(Truncate(pid, 1))
    program.call(Feed(pid, [3], [b"z"]))
    other = program.call(Spawn("sim", [1], records=[b""] * MAX_RECORDS))
    assert fails(program, Feed(other, [], [b""])).errno is Errno.E2BIG
    half = [b"x" * (MAX_RECORD_BYTES // 2 + 1)] * 2
    assert fails(program, Spawn("sim", [1], records=half)).errno is Errno.E2BIG
    assert fails(program, Exec(pid, "sim", [1], records=half)).errno is Errno.E2BIG


def test_records_are_read_with_the_right_to_read_the_log() -> None:
    sim = simulate()
    program, observer = sim.program(), sim.program("observer", Right.QUERY)
    pid = talk(program)
    assert fails(observer, Records(pid)).errno is fails(observer, Read(pid)).errno is Errno.EPERM
    assert fails(program, Records(10**6)).errno is Errno.ESRCH
    program.call(Exit(pid))
    assert rows(program, pid) == TALK, "a zombie's log can be read, and so can they"


def test_a_child_has_its_parents_records_and_goes_its_own_way() -> None:
    program = simulate().program()
    pid = talk(program)
    child, other = program.call(Fork(pid, 2))
    program.call(Truncate(child, 3))
    program.call(Feed(child, [8], [b"child"]))
    program.call(Feed(pid, [8], [b"parent"]))
    assert rows(program, pid) == [*TALK, (9, b"parent")]
    assert rows(program, child) == [*TALK[:2], (3, b"child")]
    assert rows(program, other) == TALK


def test_exec_keeps_the_records_of_the_tokens_it_keeps() -> None:
    program = simulate().program()
    pid = talk(program)
    program.call(Exec(pid, "sim:2m"))
    assert rows(program, pid) == TALK
    assert fails(program, Exec(pid, "sim", records=[b"x"])).errno is Errno.EINVAL
    assert fails(program, Exec(pid, "sim:1m,vocab=30", [99], records=[b"x"])).errno is Errno.EINVAL
    assert rows(program, pid) == TALK
    program.call(Exec(pid, "sim:1m,vocab=30", [9, 9], records=[b"new", b"other"]))
    assert rows(program, pid) == [(0, b"new"), (0, b"other")]
    program.call(Exec(pid, "sim", [9]))
    assert rows(program, pid) == []


def test_a_process_that_moves_to_another_device_takes_its_records_along() -> None:
    sim = simulate(devices=2)
    program = sim.program()
    pid = talk(program)
    decoding = program.start(Decode(pid, 20))
    program.call(Setsched(pid, device="sim1"))
    sim.run_until(lambda: decoding.done)
    assert process(sim, pid).device.name == "sim1"
    assert rows(program, pid) == TALK


def test_the_trace_shows_sizes_and_nothing_of_what_records_say() -> None:
    sim = simulate()
    program, tracer = sim.program(), sim.program("strace")
    tracer.call(Trace())
    pid = program.call(Spawn("sim", [1, 2, 3], records=[b"system", b"tools"]))
    program.call(Records(pid))
    program.call(Feed(pid, [4], [b"x"] * 12))
    shown = "\n".join(event.detail for event in tracer.call(Trace(0)).events)
    assert "records=[6 bytes, 5 bytes]" in shown
    assert "LogRecord(position=0, 6 bytes)" in shown
    assert "1 bytes, ... 12 in all]" in shown
    assert "system" not in shown
    assert "secret" not in shown


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", [True, False], ids="kv={}".format)
def test_records_go_with_an_image_to_another_kernel(tmp_path: Path, kv: bool) -> None:
    program = simulate().program()
    pid = talk(program)
    program.call(Checkpoint(pid, str(tmp_path / "image"), kv))
    other = simulate().program()
    restored = other.call(Restore(str(tmp_path / "image")))
    assert rows(other, restored) == TALK
    other.call(Truncate(restored, 3))
    assert rows(other, restored) == TALK[:2]


def test_an_image_without_records_is_one_that_older_kernels_wrote_and_read() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", [1, 2, 3]))
    one = process(sim, pid)
    assert one.image is not None
    plain = msgspec.msgpack.decode(image_of(one))
    assert plain["version"] == 1
    assert "records" not in plain
    assert read_image(msgspec.msgpack.encode(plain), "file").records == []
    program.call(Feed(pid, [], [b"x"]))
    noted = msgspec.msgpack.decode(image_of(one))
    assert (noted["version"], noted["records"]) == (2, [[3, b"x"]])


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ([LogRecord(4, b"")], "stands at 4, its log has 3 tokens"),
        ([LogRecord(2, b""), LogRecord(1, b"")], "not in order"),
        ([LogRecord(0, b"x" * MAX_RECORD_BYTES), LogRecord(0, b"x")], "are possible"),
        ([LogRecord(0, b"")] * (MAX_RECORDS + 1), "are possible"),
    ],
    ids=["beyond the log", "order", "bytes", "count"],
)
def test_an_image_with_records_that_cannot_be_is_refused(records: list[LogRecord], why: str) -> None:
    sim = simulate()
    one = process(sim, sim.program().call(Spawn("sim", [1, 2, 3])))
    assert one.image is not None
    image = msgspec.msgpack.decode(image_of(one), type=ProcessImage)
    with pytest.raises(SyscallError, match=why) as caught:
        read_image(msgspec.msgpack.encode(msgspec.structs.replace(image, version=2, records=records)), "file")
    assert caught.value.errno is Errno.EIO


# --- the journal ----------------------------------------------------------------------------------------------------


def test_records_survive_the_kernel() -> None:
    sim = simulate()
    program = sim.program()
    pid = talk(program)
    child = program.call(Fork(pid))[0]
    program.call(Truncate(pid, 3))
    program.call(Feed(pid, [6, 7], [b"later"]))
    program.call(Kill(child, Signal.STOP))
    for left in (TALK, TALK[:3]):
        sim.kill()
        sim.boot_again()
        program.come_back()
        assert rows(program, pid) == [*TALK[:2], (3, b"later")]
        assert rows(program, child) == left
        program.call(Feed(child, [], [b"more"]))
        assert rows(program, child) == [*left, (9, b"more")]
        program.call(Truncate(child, 9))
    program.call(Feed(pid, [8], [b"last"]))
    assert rows(program, pid) == [*TALK[:2], (3, b"later"), (5, b"last")]


def test_a_cut_a_feed_and_a_fork_at_one_boundary_are_journaled_in_their_order() -> None:
    sim = simulate(step_tokens=8)
    program = sim.program()
    pid = program.call(Spawn("sim", list(range(60)), records=[b"system"]))
    sim.run_until(lambda: process(sim, pid).running > 0)
    calls = [Truncate(pid, 20), Feed(pid, [1], [b"user"]), Fork(pid)]
    futures = [program.start(call) for call in calls]  # type: ignore[var-annotated, arg-type]
    assert not any(future.done for future in futures), "they wait for the end of the step"
    sim.run_until(lambda: all(future.done for future in futures))
    child = futures[2].value[0]
    sim.kill()
    sim.boot_again()
    program.come_back()
    assert rows(program, pid) == rows(program, child) == [(0, b"system"), (20, b"user")]


def test_a_compacted_journal_has_the_same_records() -> None:
    sim = simulate()
    program = sim.program()
    talk(program)
    assert sim.saved is not None
    again = State(b"")
    for frame in sim.saved.snapshot():
        again.apply(decode(encode(frame)))
    assert not again.difference(sim.saved)
    assert [list(saved.records) for saved in again.processes.values()] == [[LogRecord(*row) for row in TALK]]
    with pytest.raises(BadFrame, match="9 of 4 records"):
        again.apply(Frame(0, [Noted(next(iter(again.processes)), 9, [])]))


def test_a_decode_and_a_cut_that_change_no_records_write_none(monkeypatch: pytest.MonkeyPatch) -> None:
    sim = simulate()
    program = sim.program()
    pid = talk(program)
    written: list[object] = []
    apply = State.apply

    def keep(state: State, frame: Frame) -> None:
        written.extend(frame.entries)
        apply(state, frame)

    monkeypatch.setattr(State, "apply", keep)
    program.call(Decode(pid, 10))
    program.call(Truncate(pid, 12))
    assert written
    assert not any(isinstance(entry, Noted) for entry in written)
