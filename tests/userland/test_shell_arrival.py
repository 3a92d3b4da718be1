"""A person who waits for a model sees how far it is."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.userland.terminal import Terminal
from userland.programs.boot import private_kernel


def test_a_model_that_is_waited_for_says_how_far_it_is_and_the_line_is_gone_when_it_is_there(
    tmp_path: Path,
) -> None:
    slow = "sim:link=1e9"  # 4 GB of weights in 4 s
    with private_kernel(tmp_path / "k", ["--device", slow]):
        command = [sys.executable, "-m", "llmasos", "shell"]
        with Terminal(
            command, {"LLMASOS_RUNTIME": str(tmp_path / "k"), "XDG_STATE_HOME": str(tmp_path)}
        ) as terminal:
            terminal.expect("llmasos>")
            terminal.enter("pagein sim:2b")
            terminal.expect(r"\d+%  loading in bf16: sim:2b")
            terminal.expect("sim:2b is in memory on sim0")
            shown = terminal.raw[: terminal.raw.rindex(b"sim:2b is in memory")]
            assert shown.rstrip(b"\x1b[0m").endswith(b"\r\x1b[K")
