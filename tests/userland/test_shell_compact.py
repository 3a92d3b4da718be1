"""The shell's `compact`, and the line that says when it is time for it."""

from __future__ import annotations

import pytest

from llmasos.userland.sdk.system import System
from tests.userland.command_line import script

pytestmark = pytest.mark.processes


def test_a_conversation_is_compacted_and_goes_on(cpu_system: System) -> None:
    with cpu_system.spawn(name="clerk") as agent:
        for question in ("My name is Mira. " + "I like foxes. " * 60, "Copy this list: red, green", "Who are you?"):
            agent.ask(question)
        length = agent.info().length
        ran = script(
            cpu_system.kernel.runtime, "compact clerk --keep 1", "compact clerk --drop --keep 1", "say clerk Who are you?"
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        first, second = [line for line in ran.stdout.splitlines() if line.startswith(f"[{agent.pid}] clerk: ")]
        assert f"they were {length} (older turns as the model sums them up)" in first
        assert second.endswith("(older turns dropped)")
        assert agent.info().length < length


def test_what_cannot_be_compacted_is_refused(cpu_system: System) -> None:
    with cpu_system.spawn(prompt="Once upon a time", name="writer"):
        ran = script(
            cpu_system.kernel.runtime,
            "compact writer",
            "compact writer --drop",
            "compact writer --keep -1",
            "compact nobody",
        )
        assert ran.returncode != 0
        said = ran.stdout + ran.stderr
        assert said.count("holds no conversation") == 2
        assert "--keep wants at least 0, found -1" in said
        assert "no process is called 'nobody'" in said


def test_an_answer_near_the_window_says_that_it_comes(cpu_system: System) -> None:
    with cpu_system.spawn(name="clerk") as agent:
        agent.ask("I like foxes. " * 40, 10)
        assert "compact" not in script(cpu_system.kernel.runtime, "say clerk --max 4 Who are you?").stdout
        agent.feed_ids([226] * int(0.86 * agent.model.context - agent.info().length))
        said = script(cpu_system.kernel.runtime, "say clerk --max 4 Who are you?").stdout
        assert f"`compact {agent.pid}` lets it go on" in said
        assert f"of {agent.model.context} tokens" in said
