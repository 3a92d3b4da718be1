"""Calls and processes of a kernel that was killed, in the next one: asked for again, joined, taken back, gone on with."""

from __future__ import annotations

from typing import Any

import pytest

from llmasos.kernel.journal import state as journal_state
from llmasos.kernel.journal.records import Answer
from llmasos.kernel.journal.state import MOST_ANSWER_BYTES, Answers
from llmasos.simulator import Future, simulate
from llmasos.syscalls import limits
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import (
    DecodeResult,
    ExitInfo,
    Finish,
    ReadResult,
    Signal,
    WaitFor,
)
from llmasos.syscalls.records import State as ProcessState
from llmasos.syscalls.table import (
    Attach,
    Decode,
    Dmesg,
    Exit,
    Feed,
    Getinfo,
    Kill,
    Read,
    Setsched,
    Spawn,
    Truncate,
    Wait,
)
from tests.kernel.journaled import WARM, fails, log_of, reboot

# --- calls ----------------------------------------------------------------------------------------------------------


def test_a_decode_that_is_asked_for_again_is_joined_and_answered_whole() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", [1, 2, 3], WARM))
    decode_ = program.start(Decode(pid, 40, logprobs=2))
    sim.run_until(lambda: len(log_of(sim, pid)) > 10)
    reboot(sim, program)
    sim.run_until(lambda: decode_.done)
    assert decode_.value.tokens == sim.continuation([1, 2, 3], 40, WARM)
    assert [entry.token for entry in decode_.value.logprobs] == decode_.value.tokens
    assert program.call(Getinfo(pid)).usage.decoded == 40


def test_a_decode_that_ends_before_its_program_is_back_is_answered_then() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", [1, 2, 3], WARM))
    decode_ = program.start(Decode(pid, 40))
    sim.run_until(lambda: len(log_of(sim, pid)) > 10)
    reboot(sim)
    sim.run_for(3.0)
    assert len(log_of(sim, pid)) == 43
    reboot(sim)  # once more: the answer has been written too
    program.come_back()
    assert decode_.value.tokens == sim.continuation([1, 2, 3], 40, WARM)
    again = program.call(Decode(pid, 2))
    assert again.position == 43


def test_a_decode_of_an_earlier_kernel_can_be_taken_back() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", [1, 2, 3], WARM))
    decode_ = program.start(Decode(pid, 400))
    sim.run_until(lambda: len(log_of(sim, pid)) > 10)
    reboot(sim)
    sim.connect(program)
    program.call(Attach(ticket=program.ticket))
    decode_.cancel()
    assert decode_.errno is Errno.EINTR
    row = program.call(Getinfo(pid))
    assert (row.decoding, row.finish) == (False, Finish.INTERRUPT)


def test_a_call_under_a_number_of_an_earlier_kernel_is_a_new_one_if_it_is_another() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", [1, 2, 3]))
    feed = program.start(Feed(pid, [4]))
    assert feed.value == 4
    reboot(sim, program)
    program.futures[feed.seq] = other = Future(program, feed.seq, Truncate(pid, 2))
    sim.event(program.event(other))
    sim.run_until(lambda: other.done)
    assert other.value == 2


def test_answers_are_kept_as_long_as_they_may_be_on_their_way() -> None:
    answers = Answers()
    for seq in range(limits.MAX_PARKED_CALLS + 10):
        answers.add(Answer(1, seq, 40, Errno.OK, b"\x01", ""))
    assert len(answers) == limits.MAX_PARKED_CALLS
    assert answers.get(9) is None


def test_a_call_whose_answer_is_too_long_to_be_kept_is_known_to_be_done() -> None:
    answers = Answers()
    large = bytes(MOST_ANSWER_BYTES // 2)
    answers.add(Answer(1, 1, 40, Errno.OK, b"\x01", ""))
    for seq in range(2, 6):
        answers.add(Answer(1, seq, 41, Errno.OK, large, ""))
    assert [(answer.seq, answer.errno) for answer in answers] == [
        (1, Errno.OK), (2, Errno.EIO), (3, Errno.EIO), (4, Errno.EIO), (5, Errno.OK),
    ]  # fmt: skip
    again = Answers()
    for answer in answers:
        again.add(answer)
    assert again == answers


def test_decodes_whose_answers_are_too_long_to_be_kept_are_not_done_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal_state, "MOST_ANSWER_BYTES", 1000)
    sim = simulate()
    program = sim.program()
    pids = [program.call(Spawn("sim", [1, 2, 3])) for _ in range(3)]
    decodes = [program.start(Decode(pid, 20, logprobs=4)) for pid in pids]
    sim.run_until(lambda: all(decode.done for decode in decodes))
    logs = [list(log_of(sim, pid)) for pid in pids]
    reboot(sim, program)
    for made in decodes:
        program.futures[made.seq] = other = Future(program, made.seq, made.call)
        sim.event(program.event(other))
        assert other.done
    assert [log_of(sim, pid) for pid in pids] == logs


# --- processes ------------------------------------------------------------------------------------------------------


def test_calls_wait_while_the_model_is_loaded_and_a_reader_reads_on() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", [1, 2, 3]))
    stopped = program.call(Spawn("sim", [1, 2, 3]))
    program.call(Kill(stopped, Signal.STOP))
    program.call(Decode(pid, 30, wait=False))
    part = program.call(Read(pid, 3))
    reboot(sim, program)
    row = program.call(Getinfo(pid))
    assert (row.state, row.wait) == (ProcessState.BLOCKED, WaitFor.DEVICE)
    assert program.call(Getinfo(stopped)).state is ProcessState.STOPPED
    feed = program.start(Feed(stopped, [9]))
    assert not feed.done
    tokens = part.tokens
    while len(tokens) < 30:
        tokens += program.call(Read(pid, 3 + len(tokens))).tokens
    assert tokens == sim.continuation([1, 2, 3], 30)
    assert feed.value == 4
    assert program.call(Getinfo(stopped)).state is ProcessState.STOPPED


def test_a_process_whose_model_does_not_fit_any_more_stays_and_goes_on_where_it_does() -> None:
    sim = simulate()
    program = sim.program()
    pid = program.call(Spawn("sim", [1, 2, 3], detached=True))
    decode_ = program.start(Decode(pid, 60))
    sim.run_until(lambda: len(log_of(sim, pid)) > 40)
    reader = program.start(Read(pid, 63))
    whole = sim.file.devices[0].image_kv_bytes
    sim.file.devices[0].image_kv_bytes = whole // 32
    reboot(sim, program)
    assert fails(lambda: sim.run_until(lambda: decode_.done) or decode_.value).errno is Errno.EIO
    row = program.call(Getinfo(pid))
    assert (row.state, row.wait, row.decoding) == (ProcessState.BLOCKED, WaitFor.WEIGHTS, True)
    assert "room for" in row.reason
    error = fails(lambda: program.call(Truncate(pid, 1)))
    assert error.errno is Errno.EBUSY
    assert "room for" in error.reason
    assert any(line.level == "error" and "room for" in line.text for line in program.call(Dmesg()))
    read: ReadResult = program.call(Read(pid))
    assert read.tokens[3:] == sim.continuation([1, 2, 3], read.length - 3)
    for waits in (lambda: reader.value, lambda: program.call(Read(pid, read.length, follow=True))):
        error = fails(waits)
        assert (error.errno, "room for" in error.reason) == (Errno.EBUSY, True)
    sim.crash()  # its driver comes again, and so does the question
    sim.run_for(1.0)
    assert program.call(Getinfo(pid)).wait is WaitFor.WEIGHTS
    sim.file.devices[0].image_kv_bytes = whole
    reboot(sim)
    sim.run_for(5.0)
    assert log_of(sim, pid)[3:] == sim.continuation([1, 2, 3], 60)


def test_a_process_goes_on_on_another_device_of_its_kind_and_waits_where_there_is_none() -> None:
    sim = simulate(devices=2)
    program = sim.program()
    pid = program.call(Spawn("sim", [1, 2, 3], device="sim1"))
    gone = sim.file.devices.pop()
    reboot(sim, program)
    assert program.call(Decode(pid, 5)).tokens == sim.continuation([1, 2, 3], 5)
    assert program.call(Getinfo(pid)).device == "sim0"
    assert program.call(Setsched(pid, 4)) is None
    sim.kill()
    assert sim.saved is not None
    head = sim.saved.processes[pid].head
    sim.saved.processes[pid].head = dataclass_replace(head, device="cuda0", kind="cuda")
    sim.boot_again()
    program.come_back()
    error = fails(lambda: program.call(Feed(pid, [1])))
    assert (error.errno, "no device of kind cuda" in error.reason) == (Errno.EBUSY, True)
    assert gone.name == "sim1"
    assert program.call(Read(pid)).length == 8


def test_a_process_whose_device_is_gone_goes_to_one_of_its_kind_and_not_to_the_first() -> None:
    sim = simulate(devices=3)
    pid = sim.program().call(Spawn("sim", [1, 2, 3], device="sim2"))
    sim.kill()
    sim.file.devices.pop()
    sim.file.devices[0].kind = "cuda"
    sim.boot_again()
    assert sim.kernel.table.llm(pid).device.name == "sim1"


def dataclass_replace(record: Any, **changes: Any) -> Any:
    fields = {name: getattr(record, name) for name in record.__struct_fields__}
    return type(record)(**{**fields, **changes})


def test_a_deadline_is_what_was_left_of_it() -> None:
    sim = simulate(options={"overhead": "0.1"})
    program = sim.program()
    pid = program.call(Spawn("sim", [1, 2, 3]))
    begun = sim.now
    decode_ = program.start(Decode(pid, 300, deadline=3.0))
    sim.run_for(1.0)
    sim.kill()
    sim.run_for(50.0)  # nobody knows how long the kernel was dead
    sim.boot_again()
    program.come_back()
    sim.run_until(lambda: decode_.done)
    assert decode_.value.finish is Finish.DEADLINE
    assert 3.0 <= decode_.at - 50.0 - begun <= 3.5


def test_what_was_to_happen_at_the_token_boundary_happens() -> None:
    sim = simulate(options={"overhead": "0.1"})
    program = sim.program()
    pids = [program.call(Spawn("sim", [1, 2, 3])) for _ in range(2)]
    decodes = [program.start(Decode(pid, 50)) for pid in pids]
    sim.run_for(1.05)
    assert all(sim.kernel.table.llm(pid).running for pid in pids)
    assert program.call(Kill(pids[0], Signal.INT)) is None
    assert program.call(Exit(pids[1], 7)) is None
    reboot(sim, program)
    assert decodes[0].value.finish is Finish.INTERRUPT
    assert decodes[1].value.finish is Finish.KILLED
    info: ExitInfo = program.call(Wait(pids[1]))
    assert info.status == 7
    assert isinstance(decodes[0].value, DecodeResult)
