"""Nothing but SyscallError leaves the SDK: wrong arguments, broken files, a kernel that is not there or goes away.
Each has a kind, a reason and a hint."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llmasos
from llmasos import aio
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.table import Call
from llmasos.userland.sdk import public
from llmasos.userland.sdk.system import Process, System
from tests.booted import SIM, booted
from tests.loops import run_under

pytestmark = pytest.mark.processes

Act = Callable[[System, Process, Path], object]

MISUSE: dict[str, tuple[Act, Errno, str]] = {
    "a number for a text": (lambda s, a, p: a.ask(3), Errno.EINVAL, r"ask\(\) text: wanted text, found int 3"),  # type: ignore[arg-type]
    "no text": (lambda s, a, p: a.ask(), Errno.EINVAL, r"ask\(\) needs 'text'"),  # type: ignore[call-arg]
    "None for a text": (lambda s, a, p: a.say(None), Errno.EINVAL, "wanted text, found None"),  # type: ignore[arg-type]
    "a keyword that is none": (
        lambda s, a, p: s.spawn(temp=3),  # type: ignore[call-arg]
        Errno.EINVAL,
        r"spawn\(\) takes no 'temp'; did you mean temperature\?",
    ),
    "too many by place": (
        lambda s, a, p: s.spawn("tiny", "x", "name"),  # type: ignore[call-arg]
        Errno.EINVAL,
        r"spawn\(\) takes 2 arguments by place, found 3",
    ),
    "an argument twice": (
        lambda s, a, p: a.ask("x", text="y"),  # type: ignore[misc]
        Errno.EINVAL,
        r"ask\(\) was given 'text' twice",
    ),
    "nice out of range": (lambda s, a, p: s.spawn(nice=99), Errno.EINVAL, "nice: from -20 to 19, found 99"),
    "nice of a process": (lambda s, a, p: a.nice(-21), Errno.EINVAL, "nice: from -20 to 19, found -21"),
    "a temperature below 0": (
        lambda s, a, p: s.spawn(temperature=-1.0),
        Errno.EINVAL,
        "temperature: from 0 to 100, found -1",
    ),
    "a temperature that is no number": (
        lambda s, a, p: s.spawn(temperature=float("nan")),
        Errno.EINVAL,
        "temperature: from 0 to 100, found nan",
    ),
    "top_p of 0": (lambda s, a, p: s.spawn(top_p=0.0), Errno.EINVAL, "top_p: more than 0 and at most 1, found 0"),
    "a seed beyond 64 bits": (
        lambda s, a, p: s.spawn(seed=1 << 70),
        Errno.EINVAL,
        r"spawn: sampler\.seed: at most 64 bits",
    ),
    "a negative timeout": (lambda s, a, p: a.ask("x", timeout=-1), Errno.EINVAL, "timeout: wanted seconds, 0 or more"),
    "a timeout in words": (lambda s, a, p: a.ask("x", timeout="1"), Errno.EINVAL, "timeout: wanted a number or None"),  # type: ignore[arg-type]
    "an endless timeout": (lambda s, a, p: a.wait(float("inf")), Errno.EINVAL, "timeout: wanted seconds"),
    "a path that is a number": (lambda s, a, p: s.restore(3), Errno.EINVAL, "wanted text or a path"),  # type: ignore[arg-type]
    "a path with a null": (lambda s, a, p: s.restore("a\0b"), Errno.EINVAL, "a file's name"),
    "no such file": (lambda s, a, p: s.restore(p / "none"), Errno.ENOENT, "none"),
    "a directory as an image": (lambda s, a, p: s.restore(p), Errno.EINVAL, "."),
    "a file that is no image": (lambda s, a, p: s.restore(written(p / "no image", "hello")), Errno.EINVAL, "no image"),
    "a checkpoint into nowhere": (lambda s, a, p: a.checkpoint(p / "no" / "where"), Errno.ENOENT, "no"),
    "an unknown model": (lambda s, a, p: s.spawn("no-such-model"), Errno.ENOENT, "no-such-model"),
    "a model with a null": (lambda s, a, p: s.load("a\0b"), Errno.EINVAL, "."),
    "a broken model": (lambda s, a, p: s.load(written(p / "x.gguf", "GGUF")), Errno.EIO, "."),
    "half of a surrogate pair": (lambda s, a, p: a.ask("\ud800"), Errno.EINVAL, "."),
    "token ids that are floats": (lambda s, a, p: a.feed_ids([1.5]), Errno.EINVAL, "1.5"),  # type: ignore[list-item]
    "token ids beyond the vocabulary": (lambda s, a, p: a.feed_ids([10**6]), Errno.EINVAL, "."),
    "token ids beyond 64 bits": (lambda s, a, p: a.feed_ids([3, 1 << 80]), Errno.EINVAL, r"tokens\.1: at most 64 bits"),
    "a generator that raises": (lambda s, a, p: a.feed_ids(1 // n for n in (1, 0)), Errno.EIO, "ZeroDivisionError"),
    "too long for the window": (lambda s, a, p: a.feed("word " * 20_000), Errno.E2BIG, "."),
    "to a length beyond the log": (lambda s, a, p: a.truncate(10_000), Errno.EINVAL, "."),
    "an answer of no tokens": (lambda s, a, p: a.ask("x", -1), Errno.EINVAL, "max_tokens"),
    "an empty stop string": (lambda s, a, p: a.ask("x", stop=""), Errno.EINVAL, "a stop string is empty"),
    "a stop that is a number": (lambda s, a, p: a.ask("x", stop=3), Errno.EINVAL, "stop: wanted text"),  # type: ignore[arg-type]
    "a message without a role": (lambda s, a, p: a.turn({"content": "x"}), Errno.EINVAL, "role"),
    "no results of tools": (lambda s, a, p: a.reply_tools([]), Errno.EINVAL, "no results"),
    "a result of no call": (lambda s, a, p: a.reply_tool("call", "x"), Errno.EINVAL, "wanted a ToolCall"),  # type: ignore[arg-type]
    "thoughts by another word": (lambda s, a, p: s.spawn(thoughts="all"), Errno.EINVAL, "wanted '' or 'drop' or 'keep'"),  # type: ignore[arg-type]
    "thinking without a switch": (lambda s, a, p: s.spawn(thinking=True), Errno.EINVAL, "no switch"),
    "a pid of nobody": (lambda s, a, p: s.process(999_999), Errno.ESRCH, "."),
    "a pid that is text": (lambda s, a, p: s.process("bob"), Errno.EINVAL, "'bob' is no pid"),
    "the kernel as a process": (lambda s, a, p: s.process(1), Errno.EINVAL, "not an LLM process"),
    "a wait for nobody": (lambda s, a, p: s.wait(999_999), Errno.ECHILD, "."),
    "no copies": (lambda s, a, p: a.fork(0), Errno.EINVAL, "count: from 1 to 256, found 0"),
    "a name that moves the cursor": (lambda s, a, p: a.rename("a\x1b[2J"), Errno.EINVAL, "without control characters"),
    "a name without an end": (lambda s, a, p: a.rename("x" * 1000), Errno.EINVAL, "at most 128 characters, found 1000"),
    "a device that is not there": (lambda s, a, p: a.move("gpu7"), Errno.ENODEV, "gpu7"),
    "a signal by a wrong number": (lambda s, a, p: a.signal(99), Errno.EINVAL, "wanted Signal"),  # type: ignore[arg-type]
    "an unknown policy": (lambda s, a, p: s.sched("fastest"), Errno.EINVAL, "fastest"),
    "a group that is not there": (lambda s, a, p: a.join("/nobody"), Errno.ENOENT, "nobody"),
    "a group's setting that is none": (
        lambda s, a, p: s.group("g", kv_maximum=3),  # type: ignore[call-arg]
        Errno.EINVAL,
        "takes no 'kv_maximum'",
    ),
    "a weight out of range": (lambda s, a, p: s.group("g", cpu_weight=0), Errno.EINVAL, "cpu_weight: from 1 to 10000"),
    "what is no system call": (lambda s, a, p: s("ps"), Errno.EINVAL, "no system call"),  # type: ignore[arg-type]
    "a system call of wrong types": (lambda s, a, p: s(type(a)), Errno.EINVAL, "no system call"),  # type: ignore[arg-type]
    "compacting what is short": (lambda s, a, p: a.compact(), Errno.EINVAL, "."),
    "beams that sample": (
        lambda s, a, p: llmasos.LLM.from_pretrained("tiny", system=s).generate("x", num_beams=2, temperature=1.0),
        Errno.EINVAL,
        "beam search",
    ),
    "two lengths": (
        lambda s, a, p: llmasos.LLM.from_pretrained("tiny", system=s).generate("x", 3, max_new_tokens=3),
        Errno.EINVAL,
        "not both",
    ),
    "a client's keyword that is none": (
        lambda s, a, p: llmasos.Client(wher=p),  # type: ignore[call-arg]
        Errno.EINVAL,
        r"Client\(\) takes no 'wher'; did you mean where\?",
    ),
    "a passphrase that is empty": (
        lambda s, a, p: a.checkpoint(p / "a", passphrase=""),
        Errno.EINVAL,
        r"passphrase: at least one character",
    ),
    "a passphrase that is bytes": (
        lambda s, a, p: a.checkpoint(p / "a", passphrase=b"open sesame"),  # type: ignore[arg-type]
        Errno.EINVAL,
        r"passphrase: wanted text or None, found bytes$",
    ),
    "a negative timeout of one call": (lambda s, a, p: a.info(timeout=-1), Errno.EINVAL, "timeout: wanted seconds"),
    "no kernel": (lambda s, a, p: System.connect(p / "nowhere"), Errno.ECONNREFUSED, "llmasos boot"),
    "no kernel for a client": (lambda s, a, p: System.connect(p / ("x" * 200)), Errno.EINVAL, "at most 107"),
    "a file as a runtime directory": (
        lambda s, a, p: System.connect(written(p / "file", ""), boot=True, flags=SIM),
        Errno.EIO,
        ".",
    ),
    "flags that no kernel has": (
        lambda s, a, p: System.connect(p / "r", boot=True, flags=["--no-such-flag"]),
        Errno.EINVAL,
        "did not boot",
    ),
    "flags as one text": (lambda s, a, p: System.connect(p, boot=True, flags="--quiet"), Errno.EINVAL, "flags: wanted"),
    "a place that is a number": (lambda s, a, p: System.connect(3), Errno.EINVAL, "where: wanted text"),  # type: ignore[arg-type]
}


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("what", MISUSE)
def test_what_cannot_be_is_one_error_with_kind_reason_and_hint(cpu_system: System, tmp_path: Path, what: str) -> None:
    act, errno, said = MISUSE[what]

    def misuse() -> None:
        found: Any = act(cpu_system, agent, tmp_path)
        if hasattr(found, "__next__"):
            list(found)

    with cpu_system.spawn() as agent:
        with pytest.raises(SyscallError, match=said) as caught:
            misuse()
        assert caught.value.errno is errno
        assert caught.value.reason
        assert caught.value.hint
        assert not agent.info().decoding


def test_there_are_many() -> None:
    assert len(MISUSE) >= 60


# --- environments that fail -----------------------------------------------------------------------------------------


class Failing:
    """A kernel whose every call raises what no kernel raises."""

    def __init__(self, kernel: Any, error: Exception) -> None:
        self._kernel, self._error = kernel, error

    def __call__(self, call: Call[Any], **_: Any) -> Any:
        raise self._error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernel, name)


@pytest.mark.parametrize(
    ("error", "errno"),
    [
        (OSError(28, "No space left on device", "/tmp/x"), Errno.EIO),
        (PermissionError(13, "Permission denied", "/x"), Errno.EPERM),
        (FileNotFoundError(2, "No such file or directory", "/x"), Errno.ENOENT),
        (MemoryError(), Errno.ENOMEM),
        (RecursionError("too deep"), Errno.EINVAL),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), Errno.EINVAL),
        (AssertionError("a defect"), Errno.EIO),
        (RuntimeError("another"), Errno.EIO),
        (ExceptionGroup("several", [SyscallError(Errno.EBUSY, "in use")]), Errno.EBUSY),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_goes_wrong_below_is_a_system_call_error(
    cpu_system: System, monkeypatch: pytest.MonkeyPatch, error: Exception, errno: Errno
) -> None:
    with cpu_system.spawn() as agent:
        acts: list[Callable[[], object]] = [
            agent.info,
            agent.tokens,
            agent.text,
            lambda: agent.ask("x"),
            lambda: list(agent.say("x")),
            lambda: agent.generate(3),
            lambda: agent.compact(),
            lambda: cpu_system.spawn("tiny", "x"),
            cpu_system.ps,
            cpu_system.models,
        ]
        with monkeypatch.context() as patched:
            patched.setattr(cpu_system, "kernel", Failing(cpu_system.kernel, error))
            for act in acts:
                with pytest.raises(SyscallError) as caught:
                    act()
                assert caught.value.errno is errno
                assert caught.value.__cause__ is error


def test_a_kernel_that_dies_ends_every_call_in_both_faces() -> None:
    with booted(*SIM) as kernel, System.connect(kernel.place, reconnect=0) as system:
        process = system.spawn("sim", [7])

        async def main() -> list[Errno]:
            found = []
            async with aio.System.connect(kernel.place, reconnect=0) as other:
                there = await other.process(process.pid)
                os.kill(kernel.pid, signal.SIGKILL)
                for act in (there.tokens, lambda: there.generate(3), there.info, other.ps, there.kill):
                    with pytest.raises(SyscallError) as caught:
                        await act()
                    found.append(caught.value.errno)
            return found

        assert set(run_under("asyncio", main)) == {Errno.EPIPE}
        for act in (
            process.tokens,
            lambda: process.generate(3),
            lambda: list(process.stream(3)),
            system.ps,
            process.kill,
        ):
            with pytest.raises(SyscallError) as caught:
                act()
            assert caught.value.errno is Errno.EPIPE


def test_a_directory_of_another_kind_of_file_names_the_place(tmp_path: Path) -> None:
    place = written(tmp_path / "file", "")
    with pytest.raises(SyscallError) as caught:
        System.connect(place)
    assert caught.value.errno is Errno.ECONNREFUSED
    assert str(place) in caught.value.reason


def test_annotations_of_unknown_forms_are_a_defect_and_not_passed_over() -> None:
    with pytest.raises(TypeError, match="no check is known"):
        public.check_of("a text")
