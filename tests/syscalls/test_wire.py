"""Frames and records: what is encoded is decoded to the same, what is wrong is answered with what and where."""

from __future__ import annotations

import functools
import re
import tracemalloc
import typing
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos.syscalls import limits, records, wire
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.printable import printable
from llmasos.syscalls.table import CANCEL, TABLE, Call, Decode, Feed, Fork, Getinfo, Null, Ps, Spawn

ENTRIES = pytest.mark.parametrize("entry", TABLE.values(), ids=lambda entry: entry.name)
pack = msgspec.msgpack.encode


@functools.cache  # hypothesis takes longer to look at a strategy that it has not seen than to draw from it
def values(annotation: Any, meta: tuple[msgspec.Meta, ...] = ()) -> st.SearchStrategy[Any]:
    """Valid values of a declared type, lists kept short."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return values(arguments[0], tuple(a for a in arguments[1:] if isinstance(a, msgspec.Meta)))
    if origin is typing.Union or type(annotation).__name__ == "UnionType":
        return st.one_of([values(argument) for argument in arguments])
    if origin is list:
        return st.lists(values(arguments[0]), max_size=5)
    if origin is dict:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=3)
    low = max((m.ge for m in meta if m.ge is not None), default=None)
    high = min((m.le for m in meta if m.le is not None), default=None)
    if annotation is bool:
        return st.booleans()
    if annotation is float:
        above = any(m.gt is not None for m in meta)
        return st.floats(0.0 if above else low, high, exclude_min=above, allow_nan=False, allow_infinity=False)
    if annotation is int:
        return st.integers(-(1 << 63) if low is None else int(low), (1 << 63) - 1 if high is None else int(high))
    if annotation is str:
        least = max((m.min_length or 0 for m in meta), default=0)
        printable = any(m.pattern == records.PRINTABLE for m in meta)
        if any(m.pattern == records.OWNER for m in meta):
            return st.from_regex(re.compile(records.OWNER, re.ASCII)).filter(lambda text: len(text) <= 64)
        if any(m.pattern == records.TENANT for m in meta):
            return st.from_regex(re.compile(records.TENANT, re.ASCII)).filter(lambda text: len(text) <= 64)
        alphabet = st.characters(exclude_categories=["Cs", "Cc"] if printable else ["Cs"])
        return st.text(alphabet, min_size=least, max_size=20)
    if annotation is bytes:
        return st.binary(max_size=20)
    if annotation in (None, type(None)):
        return st.none()
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        fields = msgspec.structs.fields(annotation)
        return st.builds(annotation, **{field.name: values(field.type) for field in fields})
    return st.sampled_from(list(annotation))


@ENTRIES
@given(data=st.data(), seq=st.integers(0, wire.MAX_SEQ))
def test_a_request_arrives_as_it_was_sent(entry: Any, data: st.DataObject, seq: int) -> None:
    call = data.draw(values(entry.record))
    assert wire.decode_request(wire.encode_request(seq, call)) == wire.Request(seq, call)


@ENTRIES
@given(data=st.data(), seq=st.integers(0, wire.MAX_SEQ))
def test_a_result_arrives_as_it_was_sent(entry: Any, data: st.DataObject, seq: int) -> None:
    sent = data.draw(values(entry.result))
    reply = wire.decode_reply(wire.encode_reply(seq, Errno.OK, sent))
    call = data.draw(values(entry.record))
    assert (reply.seq, wire.result(reply, call)) == (seq, sent)


@given(errno=st.sampled_from([e for e in Errno if e is not Errno.OK]), reason=st.text())
def test_an_error_arrives_with_its_reason(errno: Errno, reason: str) -> None:
    reply = wire.decode_reply(wire.encode_reply(7, errno, reason))
    with pytest.raises(SyscallError) as caught:
        wire.result(reply, Null())
    assert (caught.value.errno, caught.value.reason) == (errno, printable(reason, one_line=True))
    assert reason.isprintable() <= (caught.value.reason == reason)


def test_a_cancel_names_the_call_it_takes_back() -> None:
    assert wire.decode_request(wire.encode_cancel(9, 4)) == wire.Request(9, None, 4)


@pytest.mark.parametrize(
    ("frame", "seq", "errno", "says"),
    [
        (pack([1, 5, 21, [1, "x"]]), 5, Errno.EINVAL, "fork: count: wanted a whole number, found 'x'"),
        (pack([1, 5, 40, [1, [1, 2, -3]]]), 5, Errno.EINVAL, "tokens[2]: from 0 to 2147483647, found -3"),
        (pack([1, 5, 40, [1, [1, 2**31]]]), 5, Errno.EINVAL, "tokens[1]: from 0 to 2147483647, found 2147483648"),
        (pack([1, 5, 41, [1, 1, [1] * 65]]), 5, Errno.EINVAL, "stop_ids: at most 64 elements, found 65"),
        (pack([1, 5, 20, ["m", [], [float("nan")]]]), 5, Errno.EINVAL, "sampler.temperature: from 0 to 100, found nan"),
        (
            pack([1, 5, 20, ["m", [], None, "", "fair", 0, [1, 2, -3]]]),
            5,
            Errno.EINVAL,
            "limits.pages: from 0 to 2147483647, found -3",
        ),
        (
            pack([1, 5, 20, ["m", [], None, "a\x1b[2J"]]),
            5,
            Errno.EINVAL,
            "name: text without control characters, found 'a\\x1b[2J'",
        ),
        (pack([1, 5, 20, ["m\x9b2J"]]), 5, Errno.EINVAL, "model: text without control characters"),
        (pack([1, 5, 1, ["a\n"]]), 5, Errno.EINVAL, "name: text without control characters"),
        (pack([1, 5, 1, ["a\x7f"]]), 5, Errno.EINVAL, "name: text without control characters"),
        (pack([1, 5, 21, [1, 1, False, False, "", 7]]), 5, Errno.EINVAL, "at most length 5"),
        (pack([1, 5, 21, {"pid": 1}]), 5, Errno.EINVAL, "wanted a list"),
        (pack([1, 5, 21, [1.5]]), 5, Errno.EINVAL, "pid: wanted a whole number, found 1.5"),
        (pack([1, 5, 21, [True]]), 5, Errno.EINVAL, "pid: wanted a whole number, found True"),
        (pack([1, 5, 20, ["m", [], None, "", "fair", 99]]), 5, Errno.EINVAL, "nice: from -20 to 19, found 99"),
        (
            pack([1, 5, 20, ["m", [], None, "", "warp"]]),
            5,
            Errno.EINVAL,
            "there is no 'warp'; there are 'realtime', 'fair'",
        ),
        (
            pack([1, 5, 20, ["m", [], [1.0, 0, 0.0]]]),
            5,
            Errno.EINVAL,
            "sampler.top_p: more than 0 and at most 1, found 0.0",
        ),
        (pack([1, 5, 99, []]), 5, Errno.ENOSYS, "no system call 99"),
        (pack([1, 5, -1, []]), 5, Errno.ENOSYS, "no system call -1"),
        (pack([1, 5, CANCEL, []]), 5, Errno.EINVAL, "cancel"),
        (pack([1, 5, CANCEL, [-1]]), 5, Errno.EINVAL, "cancel"),
        (pack([2, 5, 21, [1]]), 5, Errno.EPROTO, "protocol version 2"),
        (pack([2, 5, {"another": "shape"}]), 5, Errno.EPROTO, "protocol version 2"),
        (pack([1, 5, 21]), 5, Errno.EINVAL, "at least length 4"),
        (pack([1, 5, 2, [], "more"]), 5, Errno.EINVAL, "at most length 4"),
        (pack([1, -5, 2, []]), 0, Errno.EINVAL, "a request is one msgpack frame"),
        (pack([1, 2**63, 2, []]), 0, Errno.EINVAL, "a request is one msgpack frame"),
        (pack(["1", 5, 2, []]), 5, Errno.EINVAL, "Expected `int`, got `str`"),
        (pack({"version": 1}), 0, Errno.EINVAL, "Expected `array`"),
        (b"", 0, Errno.EINVAL, "truncated"),
        (b"\xc1", 0, Errno.EINVAL, "msgpack"),
        (b"\x94\x01\x05\x15" + b"\x91" * 100_000, 0, Errno.EINVAL, "nested too deeply"),
        (b"\x94\x01\x05\x14\x91\xa2\xff\xff", 5, Errno.EINVAL, "utf-8"),
        (b"\x94\x01\x05\x28\x92\x01\xdd\xff\xff\xff\xff", 0, Errno.EINVAL, "truncated"),
        (pack([1, 5, 2, []]) + b"\x00", 0, Errno.EINVAL, "trailing"),
        (bytes(limits.MAX_REQUEST_BYTES + 1), 0, Errno.EMSGSIZE, "at most 8388608"),
    ],
)
def test_what_is_no_request_is_refused_with_the_place(frame: bytes, seq: int, errno: Errno, says: str) -> None:
    with pytest.raises(wire.RefusedFrame) as caught:
        wire.decode_request(frame)
    assert (caught.value.seq, caught.value.errno) == (seq, errno)
    assert says.lower() in caught.value.reason.lower()


def test_arguments_with_defaults_may_be_left_out_from_the_end() -> None:
    assert wire.decode_request(pack([1, 5, 21, [3]])).call == Fork(3)


def test_too_long_a_request_is_not_sent() -> None:
    with pytest.raises(SyscallError) as caught:
        wire.encode_request(1, Feed(1, [limits.MAX_TOKEN] * 2_200_000))
    assert caught.value.errno is Errno.EMSGSIZE


def test_too_long_a_result_is_answered_as_such() -> None:
    frame = wire.encode_reply(3, Errno.OK, "x" * (limits.MAX_REPLY_BYTES + 1))
    assert wire.decode_reply(frame)[:2] == (3, Errno.EMSGSIZE)
    assert len(frame) < 1000


@pytest.mark.parametrize("value", [1 << 70, [-(1 << 64)], "\udc80", object()], ids=["big", "small", "surrogate", "type"])
def test_a_result_that_no_message_can_carry_is_answered_as_such(value: Any) -> None:
    reply = wire.decode_reply(wire.encode_reply(3, Errno.OK, value))
    assert reply[:2] == (3, Errno.EIO)
    assert wire.reason(reply).startswith("the result cannot be sent: ")


def test_a_reason_that_no_message_can_carry_is_escaped() -> None:
    reply = wire.decode_reply(wire.encode_reply(3, Errno.ENOENT, "no file \udc80"))
    assert (reply.errno, wire.reason(reply)) == (Errno.ENOENT, r"no file \udc80")


def test_only_system_calls_can_be_encoded() -> None:
    class Other(Call[None]):
        pass

    with pytest.raises(SyscallError) as caught:
        wire.encode_request(1, Other())
    assert caught.value.errno is Errno.EINVAL


@pytest.mark.parametrize("frame", [b"", b"\xc0", pack([1, 2]), pack([9, 2, 0, None]), pack([1, 2, 77, "no such errno"])])
def test_what_is_no_reply_is_a_protocol_error(frame: bytes) -> None:
    with pytest.raises(SyscallError) as caught:
        wire.decode_reply(frame)
    assert caught.value.errno is Errno.EPROTO


def test_a_result_of_another_type_is_a_protocol_error() -> None:
    with pytest.raises(SyscallError) as caught:
        wire.result(wire.decode_reply(wire.encode_reply(1, Errno.OK, "text")), Getinfo(1))
    assert caught.value.errno is Errno.EPROTO


def test_an_older_client_can_read_a_record_that_has_grown() -> None:
    grown = [*msgspec.to_builtins(records.Limits(1, 2, 3)), "a field of a later version"]
    reply = wire.decode_reply(wire.encode_reply(1, Errno.OK, grown))
    assert msgspec.msgpack.decode(reply.body, type=records.Limits) == records.Limits(1, 2, 3)


@ENTRIES
def test_every_list_a_program_can_send_is_bounded(entry: Any) -> None:
    def check(annotation: Any, bounded: bool, where: str) -> None:
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if origin is Annotated:
            metas = [a for a in arguments[1:] if isinstance(a, msgspec.Meta)]
            check(arguments[0], any(m.max_length is not None for m in metas), where)
            return
        if origin in (list, dict) or annotation is str:
            assert bounded, f"{where} has no max_length"
        for argument in arguments:
            check(argument, False, where)
        if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
            for field in msgspec.structs.fields(annotation):
                check(field.type, False, f"{where}.{field.name}")

    check(entry.record, False, entry.name)


def test_describe_shows_a_call_as_strace_does() -> None:
    assert wire.describe(Fork(3, count=2)) == "fork(pid=3, count=2)"
    assert wire.describe(Null()) == "null()"
    assert wire.describe(Ps()) == "ps()"
    assert wire.describe(Feed(3, list(range(1000)))) == "feed(pid=3, tokens=[0, 1, 2, 3, 4, 5, 6, 7, ... 1000 in all])"
    assert wire.describe(Decode(3, 5, sampler=None, wait=False)) == "decode(pid=3, max_tokens=5, wait=False)"
    assert wire.describe(Spawn("m", sched_class=records.SchedClass.BATCH)) == "spawn(model='m', sched_class=batch)"
    assert wire.describe(Feed(3, [1], [b"a password", b""])) == "feed(pid=3, tokens=[1], records=[10 bytes, 0 bytes])"


def test_describe_shows_outcomes() -> None:
    assert wire.describe_outcome(Errno.OK, [4, 5]) == "[4, 5]"
    assert wire.describe_outcome(Errno.OK, None) == "None"
    assert wire.describe_outcome(Errno.ESRCH, "no process 7") == "-ESRCH (no process 7)"
    result = records.RecordsResult([records.LogRecord(7, b"a password")], 9)
    assert wire.describe_value(result) == "RecordsResult(records=[LogRecord(position=7, 10 bytes)], length=9)"
    assert wire.describe_value(records.Limits(1)) == "Limits(context=1, tokens=0, pages=0)"


@ENTRIES
@given(data=st.data())
def test_describe_shows_every_call_in_one_short_line(entry: Any, data: st.DataObject) -> None:
    shown = wire.describe(data.draw(values(entry.record)))
    assert shown.startswith(f"{entry.name}(")
    assert "\n" not in shown
    assert len(shown) < 2000


@pytest.mark.parametrize("seq", [0, 5, 127, 128, 255, 256, 1 << 16, 1 << 40, wire.MAX_SEQ])
def test_the_number_of_a_request_is_read_from_its_first_bytes(seq: int) -> None:
    frame = wire.encode_request(seq, Feed(3, [100_000] * 20))
    assert wire.seq_of(frame[:24]) == seq
    assert wire.seq_of(b"\x93" + frame[1:24]) == wire.seq_of(frame[:5]) == wire.seq_of(b"") == 0


def test_a_fault_in_long_arguments_is_told_without_making_objects_of_them_all() -> None:
    """Seven million empty lists are 7 MB on the wire, and half a gigabyte of memory."""
    lists = b"\xdd" + (2_000_000).to_bytes(4, "big") + b"\x90" * 2_000_000
    number = next(number for number, entry in TABLE.items() if entry.record is Feed)
    for frame in (
        b"\x94\x01\x05" + bytes([number]) + b"\x93\x03\x91\xff" + lists,
        b"\x94\x01" + lists + bytes([number]) + b"\x90",
    ):
        tracemalloc.start()
        try:
            with pytest.raises(wire.RefusedFrame) as caught:
                wire.decode_request(frame)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()
        assert caught.value.errno is Errno.EINVAL
