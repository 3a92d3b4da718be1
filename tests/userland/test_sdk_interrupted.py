"""Turns that are cut short, by Ctrl-C, by cancellation or by a refusal: the log is as it was, the process free."""

from __future__ import annotations

import shutil
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
import trio

from llmasos import aio
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.table import Call, Decode, Feed, Records, Truncate
from llmasos.userland.sdk import script, turns
from llmasos.userland.sdk.system import Process, System
from tests import models_zoo
from tests.userland.chat_shapes import SHAPES

pytestmark = pytest.mark.processes

THINKING = (
    SHAPES["thoughts in the last answer only"].source.replace("<|im_start|>", "<|user|>").replace("<|im_end|>", "<|end|>")
)
NO_SYSTEM = SHAPES["no system role"].source.replace("<|im_start|>", "<|user|>").replace("<|im_end|>", "<|end|>")


@pytest.fixture(autouse=True)
def cleans_up_for_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the machine takes to end a decode: who is cancelled goes on without it only after that time."""
    for module in (script, turns):
        monkeypatch.setattr(module, "CLEANUP_SECONDS", 3600.0)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Models with random weights and a template of one's choice."""
    place = models_zoo.build("llama", tmp_path_factory.mktemp("interrupted") / "model")

    def with_template(source: str) -> str:
        found = place.with_name(f"model{abs(hash(source))}")
        if not found.exists():
            shutil.copytree(place, found)
            (found / "chat_template.jinja").write_text(source)
        return str(found)

    return with_template


class Cut:
    """A kernel whose first call of a kind does not come back: `error` comes instead, before or after it has been done."""

    def __init__(self, kernel: Any, kind: type[Call[Any]], error: BaseException, *, done: bool) -> None:
        self._kernel, self._kind, self._error, self._done = kernel, kind, error, done
        self._armed = True

    def __call__(self, call: Call[Any], **more: Any) -> Any:
        if not (self._armed and isinstance(call, self._kind)):
            return self._kernel(call, **more)
        self._armed = False
        if self._done:
            self._kernel(call, **more)
        raise self._error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernel, name)


def _state(process: Process) -> tuple[list[int], Any]:
    return process.tokens(), process.system(Records(process.pid))


WAYS: dict[str, Callable[[Process], object]] = {
    "turn": lambda process: process.turn("two", 3),
    "ask": lambda process: process.ask("two", 3),
    "pieces": lambda process: list(process.pieces("two", 3)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("kind", "done"), [(Truncate, False), (Truncate, True), (Feed, False), (Feed, True), (Decode, False)]
)
def test_an_interrupt_before_the_answer_leaves_the_log_as_it_was(
    cpu_system: System,
    models: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    kind: type[Call[Any]],
    done: bool,
) -> None:
    """Also where the turn had cut the thoughts of the last answer from it, and whether or not the call came through."""
    with cpu_system.spawn(models(THINKING), thoughts="drop") as process:
        process.turn("one", 1)
        process.truncate(len(process.tokens()) - 1)
        process.feed("<think>\nhm\n</think>\n\nyes<|end|>", allow_special=True)
        before = _state(process)
        cut = Cut(cpu_system.kernel, kind, KeyboardInterrupt(), done=done)
        with monkeypatch.context() as patched:
            patched.setattr(cpu_system, "kernel", cut)
            with pytest.raises(KeyboardInterrupt):
                WAYS[way](process)
        assert _state(process) == before
        process.turn("three", 1)


@pytest.mark.parametrize("way", WAYS)
def test_an_interrupt_as_the_answer_begins_ends_its_decode(
    cpu_system: System, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The kernel has begun it, and this program has not heard of that yet."""
    long: dict[str, Callable[[Process], object]] = {
        "turn": lambda process: process.turn("two", 400),
        "ask": lambda process: process.ask("two", 400),
        "pieces": lambda process: list(process.pieces("two", 400)),
    }
    with cpu_system.spawn() as process:
        cut = Cut(cpu_system.kernel, Decode, KeyboardInterrupt(), done=True)
        with monkeypatch.context() as patched:
            patched.setattr(cpu_system, "kernel", cut)
            with pytest.raises(KeyboardInterrupt):
                long[way](process)
        assert not process.info().decoding
        process.turn("three", 1)


@pytest.mark.parametrize("kind", [Feed, Decode])
@pytest.mark.parametrize("told", [{"thinking": False}, {"system": "Be brief."}], ids=str)
def test_records_at_the_end_of_a_log_outlive_a_turn_that_is_refused(
    cpu_system: System,
    models: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    told: dict[str, Any],
    kind: type[Call[Any]],
) -> None:
    """Switches after the log was cut to nothing, instructions of a template without a system role: both have no ids."""
    with cpu_system.spawn(models(THINKING if "thinking" in told else NO_SYSTEM), **told) as process:
        process.truncate(0)
        before = _state(process)
        assert before[1].records
        refused = SyscallError(Errno.EDQUOT, "no")
        with monkeypatch.context() as patched:
            patched.setattr(cpu_system, "kernel", Cut(cpu_system.kernel, kind, refused, done=False))
            with pytest.raises(SyscallError, match=r"^EDQUOT"):
                process.turn("one", 2)
        assert _state(process) == before


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
def test_who_leaves_an_asynchronous_answer_can_ask_at_once(cpu_system: System) -> None:
    """trio closes a generator that was dropped a moment later: who asks until then waits. One that is held is in use."""

    async def main() -> None:
        async with (
            aio.System.connect(cpu_system.kernel.boot.runtime) as system,
            await system.spawn() as agent,
        ):
            acts: list[Callable[[], AsyncGenerator[object]]] = [
                lambda: agent.say("A long story, please.", 100),
                lambda: agent.pieces("A long story, please.", 100),
                lambda: agent.stream(100),
            ]
            for act in acts:
                for _ in range(3):
                    async for _piece in act():
                        break
                    assert await agent.ask("One word.", 2)
            held = agent.say("A long story, please.", 100)
            await anext(held)
            with pytest.raises(SyscallError, match="hear that answer to its end") as caught:
                await agent.ask("One word.", 2)
            assert caught.value.errno is Errno.EBUSY
            await held.aclose()
            assert await agent.ask("One word.", 2)

    trio.run(main)


def test_who_is_cancelled_in_an_answer_can_ask_at_once(cpu_system: System) -> None:
    async def main() -> None:
        async with (
            aio.System.connect(cpu_system.kernel.boot.runtime) as system,
            await system.spawn() as agent,
        ):
            for act in (
                lambda: agent.generate(400),
                lambda: agent.generate(400, stop="never"),
                lambda: agent.turn("A long story, please.", 400),
                lambda: agent.ask("A long story, please.", 400),
            ):
                for _ in range(5):
                    await agent.truncate(0)
                    await agent.feed("Once")
                    with trio.move_on_after(0.02):
                        await act()
                    await agent.generate(1)

    trio.run(main)
