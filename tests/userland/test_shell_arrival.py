"""A person who waits for a model sees how far it is."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path

import pytest

from llmasos.userland.programs.boot import private_kernel
from llmasos.userland.sdk.llm import LLM
from llmasos.userland.sdk.system import System
from tests.userland.terminal import Terminal

SLOW = "sim:link=1.5e9"  # 4 GB of weights in some 3 s


def test_a_model_that_is_waited_for_says_how_far_it_is_and_the_line_is_gone_when_it_is_there(
    tmp_path: Path,
) -> None:
    with private_kernel(tmp_path / "k", ["--device", SLOW]):
        command = [sys.executable, "-m", "llmasos", "shell"]
        with Terminal(command, {"LLMASOS_RUNTIME": str(tmp_path / "k"), "XDG_STATE_HOME": str(tmp_path)}) as terminal:
            terminal.expect("llmasos>")
            terminal.enter("pagein sim:2b")
            terminal.expect(r"\d+%  loading in bf16: sim:2b")
            terminal.expect("sim:2b is in memory on sim0")
            shown = terminal.raw[: terminal.raw.rindex(b"sim:2b is in memory")]
            assert shown.rstrip(b"\x1b[0m").endswith(b"\r\x1b[K")
            for line, said in (
                ("spawn ada --model sim:2b", "ada on sim:2b"),
                (f"checkpoint ada {tmp_path}/image", "is in"),
                ("kill ada", "llmasos>"),
                ("evict --force sim:2b", "llmasos>"),
            ):
                terminal.enter(line)
                terminal.expect(said)
            terminal.enter(f"restore {tmp_path}/image back")
            terminal.expect(r"\d+%  loading in bf16: sim:2b")
            terminal.expect("back on sim:2b")


PROGRAM = "import llmasos; print(llmasos.LLM.from_pretrained('sim:2b').model.name, 'is there')"


def test_a_program_on_a_terminal_is_told_too_on_stderr(tmp_path: Path) -> None:
    with private_kernel(tmp_path / "k", ["--device", SLOW]):
        command = [sys.executable, "-c", PROGRAM]
        with Terminal(command, {"LLMASOS_RUNTIME": str(tmp_path / "k")}) as terminal:
            terminal.expect(r"\d+%  loading in bf16: sim:2b")
            terminal.expect("sim:2b is there")


def test_a_program_elsewhere_is_told_by_its_log_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with (
        private_kernel(tmp_path / "k", ["--device", SLOW]),
        System.connect(tmp_path / "k") as system,
        caplog.at_level(logging.INFO, "llmasos"),
    ):
        assert LLM.from_pretrained("sim:2b", system=system).model.name == "sim:2b"
        assert re.fullmatch(r"loading in bf16: sim:2b, \d+%", caplog.messages[0])
        caplog.clear()
        LLM.from_pretrained("sim:2b", system=system)
        assert caplog.messages == [], "it is there"
    assert capfd.readouterr() == ("", "")
