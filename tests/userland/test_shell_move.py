"""migrate and exec in the shell: an agent on another device, and with another model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmasos.syscalls import blocking
from llmasos.syscalls.table import BootInfoCall
from llmasos.userland.programs.boot import private_kernel
from tests.booted import eventually
from tests.userland.command_line import script


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The runtime directory of a running kernel with two CPU drivers."""
    place = tmp_path_factory.mktemp("k")
    with private_kernel(place, ["--device", "cpu:threads=1", "--device", "cpu:threads=1", "--kv-bytes", "64MiB"]):
        with blocking.connect(place) as kernel:
            eventually(
                lambda: all(device.state == "up" for device in kernel(BootInfoCall()).devices),
                "both drivers are up",
            )
        yield place


def test_an_agent_goes_on_talking_on_another_device(where: Path) -> None:
    done = script(
        where,
        "spawn mira My name is Ada.",
        "migrate mira cpu1",
        "ps mira",
        "say mira What is my name?",
        "migrate mira cpu1",
    )
    assert done.returncode == 0, done.stderr
    moved = re.search(r"^\[\d+\] mira is on cpu1: (\d+) tokens, (\d+) of them cached$", done.stdout, re.MULTILINE)
    assert moved is not None
    assert int(moved[2]) >= int(moved[1]) - 1
    assert re.search(r"^model +tiny on cpu1$", done.stdout, re.MULTILINE)
    assert "Ada" in done.stdout


def test_a_device_that_is_not_there_and_a_word_too_few(where: Path) -> None:
    done = script(where, "spawn bob hello", "migrate bob cuda7", "migrate bob", "ps bob")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0].startswith("ENODEV: no device 'cuda7'; there are: cpu0, cpu1")
    assert "Usage: migrate [--json] PID DEVICE" in lines[1]
    assert re.search(r"^model +tiny on cpu0$", done.stdout, re.MULTILINE)


def test_an_agent_with_another_model_remembers_what_was_said(where: Path, zoo: Callable[[str], Path]) -> None:
    llama = zoo("llama")
    done = script(
        where,
        f"spawn eve --model {llama} --dtype fp32 --max 4 My name is Ada.",
        "exec eve tiny",
        "cat eve",
        "cat --raw eve",
        "say eve What is my name?",
        "exec eve ./nowhere",
    )
    assert re.search(r"^\[\d+\] eve runs tiny \(\w+\): \d+ tokens$", done.stdout, re.MULTILINE)
    assert "you: My name is Ada." in done.stdout
    assert "<|bos|><|user|>My name is Ada.<|end|><|assistant|>" in done.stdout, "as its own template has it"
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["ENOENT"]
