"""An agent, its tools and the shell on a device that says what it is told: no model, and no chance."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmasos.modelfiles.sim_vocabulary import END
from llmasos.syscalls import blocking
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.table import BootInfoCall, Decode, Getinfo, Ps, Read, Spawn, StatsCall
from llmasos.userland.sdk.sim_words import sim_tokenizer
from llmasos.userland.sdk.system import System
from tests.booted import PATIENCE, Booted, booted, command, eventually, wait_for_kernel
from tests.userland.command_line import llmasos

pytestmark = pytest.mark.processes

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "script.toml"
MULTIPLY = {
    "type": "function",
    "function": {
        "name": "multiply",
        "description": "Multiply two numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
    },
}


@pytest.fixture(scope="module")
def kernel() -> Iterator[Booted]:
    with booted("--device", f"sim:time_scale=0,script={SCRIPT}") as kernel:
        yield kernel


def test_an_agent_calls_its_tool_and_tells_the_result(kernel: Booted) -> None:
    with System.connect(kernel.place) as system:
        agent = system.spawn(tools=[MULTIPLY])
        answer = agent.turn("What is 6 times 7?")
        (call,) = answer.calls
        assert (call.name, call.arguments) == ("multiply", {"a": 6, "b": 7})
        assert agent.reply_tool(call, str(call.arguments["a"] * call.arguments["b"])).text == "It is 42."
        assert agent.ask("My name is Zoë") == "Good day, Zoë."


def test_words_arrive_one_by_one(kernel: Booted) -> None:
    with System.connect(kernel.place) as system:
        agent = system.spawn()
        pieces = list(agent.say("Tell me a story"))
        assert "".join(pieces) == "A page was swapped out, and nobody missed it."
        assert agent.info().usage.steps < 20


@pytest.mark.parametrize("words", [["spawn", "mute"], ["spawn", "mute", "--json"]])
def test_a_spawn_whose_answer_fails_before_its_first_word_leaves_no_process(kernel: Booted, words: list[str]) -> None:
    failed = llmasos(kernel.place, *words, "Fall over!")
    assert failed.returncode == 1
    assert "it was asked to" in failed.stderr
    with kernel.connect() as program:
        assert "mute" not in [row.name for row in program(Ps())]


def test_an_answer_that_fails_says_why_and_the_next_one_does_not(kernel: Booted) -> None:
    with System.connect(kernel.place) as system:
        agent = system.spawn()
        with pytest.raises(SyscallError, match="the script says so: it was asked to") as caught:
            agent.ask("Fall over!")
        assert caught.value.errno is Errno.EIO
        assert agent.ask("My name is Bob") == "Good day, Bob."


def test_the_shell_talks_to_it(kernel: Booted, tmp_path: Path) -> None:
    lines = "spawn alice My name is Ada.\nsay alice tell me a story\nsay alice And now?\nkill alice\n"
    words = [sys.executable, "-m", "llmasos", "--runtime", os.fspath(kernel.place), "shell"]
    said = subprocess.run(words, input=lines, capture_output=True, text=True, timeout=120, check=True)
    assert "alice: Good day, Ada." in said.stdout
    assert "alice: A page was swapped out, and nobody missed it." in said.stdout
    assert "alice: I have been told nothing about that." in said.stdout


def test_an_answer_goes_on_after_the_deaths_of_its_driver_and_of_its_kernel(tmp_path: Path) -> None:
    script, place = tmp_path / "answers.toml", tmp_path / "run"
    text = "one two three four five six seven eight nine ten"
    script.write_text(f'default = "{text}"\npace = 0.2\n')
    vocab, prompt = 300, sim_tokenizer(300).encode(f"user: Count!{END}\nassistant: ", control=True)

    def boot() -> subprocess.Popen[bytes]:
        words = command(place, "--device", f"sim:script={script.name},vocab={vocab}", "--quiet")
        process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL)
        wait_for_kernel(place, lambda: process.poll() is None)
        return process

    def said(client: blocking.Client) -> str:
        return sim_tokenizer(vocab).decode(client(Read(pid, len(prompt), timeout=PATIENCE)).tokens)

    first = boot()
    with blocking.connect(place) as client:
        pid = client(Spawn("sim", prompt, detached=True))
        client(Decode(pid, 200, stop_ids=[vocab - 1], wait=False))
        eventually(lambda: "two" in said(client), "two words")
        (driver,) = client(BootInfoCall()).devices
        os.kill(driver.os_pid, signal.SIGKILL)
        eventually(lambda: "four" in said(client), "two more")
    first.kill()
    first.wait()
    second = boot()
    try:
        with blocking.connect(place) as client:
            client(Read(pid, len(prompt), timeout=PATIENCE))
            eventually(lambda: not client(Getinfo(pid)).decoding, "the end of the answer")
            assert said(client) == text
            assert client(StatsCall()).tokens_decoded < len(text), "it was not begun anew"
    finally:
        second.terminate()
        second.wait()
