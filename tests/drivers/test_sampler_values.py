"""Whatever a sampler's fields hold, a row of a step costs itself at most its token: by the wire, which refuses what the
fields' types do, and directly, past it."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from llmasos.drivers import protocol
from llmasos.drivers.engine import sampler as rules
from llmasos.drivers.protocol import Run, Sample, Step
from llmasos.simulator import simulate
from llmasos.syscalls import wire
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import Sampler
from llmasos.syscalls.table import BY_RECORD, Decode, Getinfo, Spawn

HOT = Sampler(temperature=0.8, top_k=5, top_p=0.9, min_p=0.01, repetition_penalty=1.1, seed=3)
VALUES: list[Any] = [
    math.nan, math.inf, -math.inf, 0, -0.0, 5e-324, 1e-46, 1e-40, 1e-30, 1.0, 1.0 - 2**-53, 3.5e38, 1e308, -1, -1e308, 1,
    2, 1 << 31, (1 << 31) - 1, (1 << 63) - 1, 1 << 63, -(1 << 63), 10**30, True, None, "1", b"1", [], {},
]  # fmt: skip
WRONG = [(name, value) for name in Sampler.__struct_fields__ for value in VALUES]


def raw(value: Any, field: str) -> bytes | None:
    """A spawn whose sampler has that value; None where msgpack cannot say it."""
    call = Spawn("sim", tokens=[1], sampler=HOT)
    arguments = msgspec.to_builtins(call)
    arguments[Spawn.__struct_fields__.index("sampler")][Sampler.__struct_fields__.index(field)] = value
    try:
        return msgspec.msgpack.encode([1, 1, BY_RECORD[Spawn].number, arguments])
    except OverflowError:
        return None


def taken(value: Any, field: str) -> Sampler | None:
    """The sampler that the kernel gets by the wire; None: it is refused, by the field's name."""
    if (frame := raw(value, field)) is None:
        return None
    try:
        call = wire.decode_request(frame).call
    except wire.RefusedFrame as refusal:
        errno, reason = refusal.errno, refusal.reason
    else:
        assert isinstance(call, Spawn)
        return call.sampler
    assert errno is Errno.EINVAL
    assert field in reason
    return None


def rows() -> np.ndarray:
    scores = np.random.default_rng(5).normal(0, 3, (3, 50)).astype(np.float32)
    scores[1, :40] = -np.inf
    return scores


@pytest.mark.parametrize("field", Sampler.__struct_fields__)
def test_a_row_with_any_value_in_a_sampler_gets_a_token_or_a_reason_and_its_neighbours_theirs(field: str) -> None:
    scores, log = rows(), np.arange(20)
    alone = rules.sample(scores, [Sample(HOT, 7, True, 2)] * 3, [log] * 3)
    for value in VALUES:
        how = replace(HOT, **{field: value})  # not checked
        choices = rules.sample(scores, [Sample(one, 7, True, 2) for one in (HOT, how, HOT)], [log] * 3)
        assert (choices[0], choices[2]) == (alone[0], alone[2])
        assert choices[1].error or np.isfinite(scores[1, choices[1].token]), value


@pytest.mark.parametrize("field", ["position", "append", "logprobs"])
def test_so_it_does_with_any_value_in_what_is_wanted_of_it(field: str) -> None:
    scores = rows()
    alone = rules.sample(scores, [Sample(HOT, 7, True, 2)] * 3, [np.arange(20)] * 3)
    for value in VALUES:
        odd = replace(Sample(HOT, 7, True, 2), **{field: value})
        choices = rules.sample(scores, [Sample(HOT, 7, True, 2), odd, Sample(HOT, 7, True, 2)], [np.arange(20)] * 3)
        assert (choices[0], choices[2]) == (alone[0], alone[2])


@pytest.mark.parametrize("ids", [[50], [-51], [1 << 40], [1.5], []], ids=str)
def test_a_log_with_tokens_of_no_vocabulary_is_its_rows_trouble(ids: list[Any]) -> None:
    scores, want = rows(), [Sample(HOT, 7, True)] * 3
    alone = rules.sample(scores, want, [np.arange(20)] * 3)
    choices = rules.sample(scores, want, [np.arange(20), np.array(ids, dtype=None if ids else np.int64), np.arange(20)])
    assert (choices[0], choices[2]) == (alone[0], alone[2])
    assert bool(choices[1].error) == bool(ids)


def test_what_the_wire_takes_of_a_sampler_the_device_samples_with_and_what_it_refuses_it_names() -> None:
    kept = {(field, value): one for field, value in _hashable() if (one := taken(value, field)) is not None}
    assert 20 < len(kept) < len(WRONG)
    for one in kept.values():
        (choice,) = rules.sample(rows()[:1], [Sample(one, 7, True, 2)], [np.arange(20)])
        assert choice.error or choice.token >= 0
        body = protocol.encode(Step(1, [Run(1, 1, 0, [1], 0, [1], Sample(one, 1, True))]))
        step = protocol.decode_to_driver(body)
        assert isinstance(step, Step)
        assert step.runs[0].sample == Sample(one, 1, True)


def _hashable() -> list[tuple[str, Any]]:
    return [(field, value) for field, value in WRONG if not isinstance(value, list | dict)]


def test_processes_with_the_oddest_samplers_decode_beside_one_that_notices_nothing() -> None:
    sim = simulate(200)
    program = sim.program()
    pid = program.call(Spawn("sim", tokens=[5, 6, 7]))
    quiet = program.start(Decode(pid, 40))
    odd = [one for field, value in _hashable() if (one := taken(value, field)) is not None]
    started = [
        program.start(Decode(program.call(Spawn("sim", tokens=[5, 6, 7], sampler=how)), 3, logprobs=2)) for how in odd
    ]
    sim.run_until(lambda: quiet.done and all(one.done for one in started))
    assert quiet.value.tokens == sim.continuation([5, 6, 7], 40)
    assert all(one.errno in (Errno.OK, Errno.EIO) for one in started)
    assert sim.driver().incarnation == 1
    assert program.call(Getinfo(pid)).pid == pid
