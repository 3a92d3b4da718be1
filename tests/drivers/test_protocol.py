"""What a driver and a kernel must agree on before anything else, and how each difference is named."""

from __future__ import annotations

import math
import os
from pathlib import Path

import msgspec
import pytest

from llmasos.drivers.protocol import (
    SIZES,
    VERSION,
    FromDriver,
    Hello,
    Imported,
    Loaded,
    Probed,
    Progress,
    Sizes,
    decode_from_driver,
    disagreement,
    encode,
)
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Tier
from llmasos.syscalls.table import BootInfoCall, Dmesg, Spawn
from tests.booted import booted, eventually

HELLO = Hello(VERSION, "sim", 1, "a device", [Tier("ram", 1, 0.0)], ["sim"], ["bf16"], [], SIZES)
OTHER_INSTALLATION = """
import sys

if "llmasos.drivers.host" in sys.orig_argv:
    import msgspec
    from llmasos.drivers import protocol

    protocol.{name} = {value}
"""


def test_a_driver_of_the_same_installation_agrees() -> None:
    assert disagreement(HELLO) == ""


@pytest.mark.parametrize("name", Sizes.__struct_fields__)
def test_each_size_that_both_sides_count_on_is_compared(name: str) -> None:
    other = msgspec.structs.replace(SIZES, **{name: 2 * getattr(SIZES, name)})
    reason = disagreement(msgspec.structs.replace(HELLO, sizes=other))
    assert f"{name} is {2 * getattr(SIZES, name)} there, {getattr(SIZES, name)} here" in reason
    assert sum(field in reason for field in Sizes.__struct_fields__) == 1


@pytest.mark.parametrize("name", Sizes.__struct_fields__)
def test_a_size_that_a_driver_leaves_out_is_not_filled_in_by_the_kernel(name: str) -> None:
    sent = msgspec.to_builtins(HELLO)
    where = sent.index(msgspec.to_builtins(SIZES))
    del sent[where][name]
    heard = decode_from_driver(msgspec.msgpack.encode(sent))
    assert isinstance(heard, Hello)
    assert f"{name} is not declared there" in disagreement(heard)


@pytest.mark.parametrize(
    "offer", [{"max_runs": 0}, {"step_tokens": 0}, {"stream_tokens": -1}, {"guess_rows": -1}], ids=lambda o: next(iter(o))
)
def test_steps_that_cannot_be_are_refused(offer: dict[str, int]) -> None:
    ((name, value),) = offer.items()
    assert f"{name}={value}" in disagreement(msgspec.structs.replace(HELLO, **offer))


def test_a_hello_of_another_version_is_named_whatever_form_it_has() -> None:
    for rest in (msgspec.to_builtins(HELLO)[2:], [], ["sim", {"what": "a later version says"}]):
        body = msgspec.msgpack.encode(["Hello", VERSION + 1, *rest])
        try:
            heard = decode_from_driver(body)
        except msgspec.DecodeError as error:
            reason = str(error)
        else:
            assert isinstance(heard, Hello)
            reason = disagreement(heard)
        assert f"version {VERSION + 1} of the protocol, the kernel version {VERSION}" in reason


@pytest.mark.parametrize("body", [b"", b"\xc1", encode(HELLO)[:-1], msgspec.msgpack.encode(["Hello", VERSION])])
def test_what_is_no_message_is_told_from_another_version(body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError) as caught:
        decode_from_driver(body)
    assert "version" not in str(caught.value)


PROBED = Probed(1, "sim", "bf16", 2, 3, 4, 5, 6, 7, [0], 8)
LOADED = Loaded(1, 2, resident_bytes=3)


@pytest.mark.parametrize(
    "wrong",
    [
        *(msgspec.structs.replace(PROBED, **{n: -1}) for n in ("weight_bytes", "block_bytes", "vocab", "context")),
        msgspec.structs.replace(PROBED, stream_bytes=1 << 63),
        msgspec.structs.replace(LOADED, weight_bytes=-1),
        msgspec.structs.replace(LOADED, resident_bytes=-1),
        Imported(1, -1),
    ],
    ids=str,
)
def test_amounts_that_cannot_be_are_no_message(wrong: FromDriver) -> None:
    with pytest.raises(msgspec.ValidationError, match="Expected `int`"):
        decode_from_driver(encode(wrong))


@pytest.mark.parametrize("fraction", [math.nan, math.inf, -0.1, 1.1])
def test_progress_beyond_the_whole_is_no_message(fraction: float) -> None:
    with pytest.raises(msgspec.ValidationError, match="Expected `float`"):
        decode_from_driver(encode(Progress(1, fraction)))
    assert decode_from_driver(encode(Progress(1, 1.0))) == Progress(1, 1.0)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("SIZES", "msgspec.structs.replace(protocol.SIZES, block_tokens=32)", "block_tokens is 32 there, 16 here"),
        ("VERSION", "999", "the driver speaks version 999 of the protocol"),
    ],
)
def test_a_driver_of_another_installation_is_refused_with_a_reason_in_the_log_and_on_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(OTHER_INSTALLATION.format(name=name, value=value))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with booted() as kernel, kernel.connect() as program:
        eventually(lambda: bool(program(BootInfoCall()).devices[0].error), "the driver is refused")
        assert words in program(BootInfoCall()).devices[0].error
        assert any(words in line.text for line in program(Dmesg()))
        with pytest.raises(SyscallError, match=words) as caught:  # not kept waiting for ever
            program(Spawn("sim", tokens=[1]))
        assert caught.value.errno is Errno.ENODEV
