"""`top` without a terminal: one look in plain text, of a kernel or of a recording; and a recording that is made there."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmasos.syscalls.records import ProcessInfo, State, WaitFor
from llmasos.syscalls.table import Spawn
from llmasos.userland.programs.screen import Screen
from llmasos.userland.top import plain
from llmasos.userland.top.record import Writer, read
from llmasos.userland.top.sample import Sample
from tests.booted import Booted, booted, eventually
from tests.userland.command_line import DEADLINE, llmasos
from tests.userland.top_pictures import agent, device, sample

PICTURE = """\
up 14.0s   5 processes (5 blocked)   25.0 tok/s decoded, 100 computed
cpu0  busy [██████████████████      ]  75%  up  fair, 1 ready, 0 restarts
tiny  KV   [███████▏                ] 30/100 pages of 64.0 KiB, 10 more kept for their prefix

PID  NAME         STATE          NI  TOK/S  DECODED  TOKENS  PAGES  SHARED       RSS  TIME  MODEL
  5  amy          running        -5   20.0       80     180     12       0            2.0s  tiny
  4  bob          stopped         0      0        7      64      4       2            0.5s  tiny
  1  init         blocked:input                                             20.0 MiB  1.5s  init
  2  driver:cpu0  blocked:input                                             20.0 MiB  1.5s  driver
  3  shell        blocked:input                                             20.0 MiB  1.5s  program
"""


def looked_at() -> tuple[Sample, Sample]:
    def rows(computed: int, decoded: int) -> list[ProcessInfo]:
        return [
            agent(4, "bob", computed=64, decoded=7, shared_pages=2, state=State.STOPPED, wait=WaitFor.NONE,
                  device_seconds=0.5),
            agent(5, "amy", computed=computed, decoded=decoded, nice=-5, state=State.RUNNING, wait=WaitFor.NONE,
                  device_seconds=2.0),
        ]  # fmt: skip

    before = sample(10.0, rows(100, 60), devices=[device(busy=1.0)], tokens_computed=1000, tokens_decoded=500)
    now = sample(
        14.0,
        rows(180, 80),
        devices=[device(busy=4.0, ready=1)],
        tokens_computed=1400,
        tokens_decoded=600,
    )
    return before, now


def test_one_look_in_plain_text() -> None:
    out = io.StringIO()
    plain.show(Screen(out, io.StringIO()), *looked_at())
    assert out.getvalue() == PICTURE


def test_of_a_recording_the_last_sample_is_printed_and_no_kernel_is_needed(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "r")
    for one in looked_at():
        writer.add(one)
    writer.close()
    for words in (("top", str(tmp_path / "r")), ("top", str(tmp_path / "r"), "--once")):
        ended = llmasos(tmp_path, *words)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, PICTURE, "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("missing",), "llmasos: ENOENT: there is no file missing"),
        ((__file__,), "is no recording of `top`"),
        (("missing", "--record", "r"), "not both"),
    ],
)
def test_what_cannot_be_opened_is_one_line(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    ended = llmasos(tmp_path, "top", *words)
    assert (ended.returncode, ended.stdout) == (1 if "ENOENT" in said else 2, "")
    assert said in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.fixture(scope="module")
def kernel() -> Iterator[Booted]:
    with booted("--device", "sim:time_scale=0") as kernel:
        yield kernel


def test_without_a_terminal_it_records_until_it_is_interrupted(kernel: Booted, tmp_path: Path) -> None:
    path = tmp_path / "r"
    with kernel.connect(name="owner") as owner:
        owner(Spawn(model="sim:context=256,vocab=100", tokens=list(range(40)), name="sleeper"))
        with subprocess.Popen(
            [sys.executable, "-m", "llmasos", "--runtime", os.fspath(kernel.place), "top", "--seconds", "0.1", "--record",
             os.fspath(path)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as top:  # fmt: skip
            eventually(lambda: path.exists() and path.read_bytes().count(b'"type":"sample"') > 2, "there are samples")
            top.send_signal(signal.SIGINT)
            out, err = top.communicate(timeout=DEADLINE)
            assert (top.returncode, err) == (0, "")
    assert out == f"recording into {path}; Ctrl-C ends\n"
    recording = read(path)
    assert "sleeper" in [row.name for row in recording.moments[-1].sample.rows]
    assert not any(event.what.endswith(".trace") for moment in recording.moments for event in moment.events)
    again = llmasos(kernel.place, "top", "--record", os.fspath(path))
    assert again.returncode == 2
    assert "name another file" in again.stderr


def test_one_look_can_be_recorded_and_the_shell_opens_it(kernel: Booted, tmp_path: Path) -> None:
    path = tmp_path / "r"
    assert llmasos(kernel.place, "top", "--once", "--record", os.fspath(path)).returncode == 0
    assert len(read(path).moments) == 2
    shell = llmasos(kernel.place, "shell", typed=f"top {path}\ntop {path} --record x\ntop --once\n")
    assert shell.returncode == 1
    assert shell.stdout.count("driver:sim0") == 2
    assert "not both" in shell.stderr
