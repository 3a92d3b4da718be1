"""A driver process that answers wrongly, once for each way: the kernel ends it with a line that says what was wrong, the
next one goes on, and every answer is what it would have been (tests/kernel/test_wrong_driver.py tries all fields)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmasos.syscalls.records import Sampler
from llmasos.syscalls.table import BootInfoCall, Decode, Dmesg, Read, Spawn
from tests.booted import booted

# Runs in the driver: what is in the file `lie` is sent instead of the next message of that kind, once.
LIAR = """
import sys

if "llmasos.drivers.host" in sys.orig_argv:
    import os
    import pathlib
    import msgspec
    from llmasos.drivers import answers

    honest, lie = answers.encoded, pathlib.Path({lie!r})

    def encoded(message):
        body = honest(message)
        try:
            kind, index, value = msgspec.json.decode(lie.read_bytes())
        except OSError:
            return body
        if type(message).__name__ != kind:
            return body
        lie.unlink()
        if index == "raw":
            return value.encode()
        if index == "twice":
            return msgspec.msgpack.encode(["Done", 1 << 40])
        fields = msgspec.msgpack.decode(body)
        fields[index] = value
        return msgspec.msgpack.encode(fields)

    answers.encoded = encoded
"""
LIES = [
    ('["StepDone", 2, []]', "results are not those of its runs"),
    ('["StepDone", 3, "soon"]', "it sent what is no message: Expected `float`, got `str` - at `$[3]`"),
    ('["StepDone", "raw", "hello"]', "it sent what is no message: MessagePack data is malformed"),
    ('["StepDone", "twice", 0]', "a Done for 1099511627776, which nobody asked"),
]


def test_a_driver_that_lies_dies_and_no_answer_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lie = tmp_path / "lie"
    (tmp_path / "sitecustomize.py").write_text(LIAR.format(lie=str(lie)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    prompt, said = [5, 6, 7], []
    with booted() as kernel, kernel.connect() as program:
        honest = program(Spawn("sim", tokens=prompt, sampler=Sampler(temperature=1.0, seed=3)))
        wanted = program(Decode(honest, 3 * len(LIES))).tokens
        pid = program(Spawn("sim", tokens=prompt, sampler=Sampler(temperature=1.0, seed=3)))
        for number, (what, words) in enumerate(LIES, start=1):
            lie.write_text(what)
            said += program(Decode(pid, 3)).tokens
            assert not lie.exists()
            assert program(BootInfoCall()).devices[0].incarnation == number + 1
            deaths = [line.text for line in program(Dmesg()) if "driver died" in line.text]
            assert len(deaths) == number
            assert words in deaths[-1]
        assert said == wanted
        assert program(Read(honest)).tokens == prompt + wanted


def test_a_driver_that_names_another_process_as_itself_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lie = tmp_path / "lie"
    lie.write_text('["Hello", 3, 1]')
    (tmp_path / "sitecustomize.py").write_text(LIAR.format(lie=str(lie)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with booted() as kernel, kernel.connect() as program:
        assert program(Decode(program(Spawn("sim", tokens=[1])), 1)).tokens
        assert program(BootInfoCall()).devices[0].incarnation == 2
        assert any("it says that it is OS process 1, and is another" in line.text for line in program(Dmesg()))
