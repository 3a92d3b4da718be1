"""The shell's `models` does what `llmasos models` does, and agents go where `--device` says; on two devices."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from llmasos.modelfiles import cache
from llmasos.userland.programs.screen import Screen
from llmasos.userland.sdk.system import System
from llmasos.userland.shell.completion import ShellCompleter
from llmasos.userland.shell.grammar import parse
from llmasos.userland.shell.main import Session
from llmasos.userland.shell.words import COMMANDS
from tests.booted import eventually
from tests.hub_server import Hub, Trouble
from tests.userland.disk import FILES, WEIGHTS
from tests.userland.terminal import CTRL_C, Terminal

FLAGS = ["--device", "sim:time_scale=0", "--device", "sim:time_scale=0"]


@pytest.fixture
def system(where: Path) -> Iterator[System]:
    with System.connect(where, name="shell") as connected:
        yield connected


class Typed:
    """A shell whose output and errors are kept, and whose person answers `answer`."""

    def __init__(self, system: System, answer: str = "") -> None:
        self.out = io.StringIO()
        self.shell = Session(system, Screen(self.out), lambda _: answer, interactive=bool(answer))

    def __call__(self, line: str, capsys: pytest.CaptureFixture[str]) -> str:
        before = self.out.tell()
        self.shell.execute(line)
        captured = capsys.readouterr()
        return self.out.getvalue()[before:] + captured.out + captured.err


def test_models_on_disk_are_pulled_listed_checked_and_removed_in_the_shell(
    server: Hub, system: System, capsys: pytest.CaptureFixture[str]
) -> None:
    do = Typed(system)
    assert "tiny" in do("models", capsys)
    assert "pull" in do("models ls", capsys)
    assert "org/name is in" in do("models pull org/name", capsys)
    (listed,) = json.loads(do("models ls --json", capsys))
    assert listed["name"] == "org/name"
    assert "org/name" in do("models --found", capsys)
    assert "org/name" in do("models du", capsys)
    checked = do("models check org/name", capsys)
    assert "digest" in checked
    assert "KV" in do("models --estimate sim --context 100", capsys)
    assert not do.shell.failures
    assert "--yes" in do("models rm org/name", capsys)
    assert "removed org/name" in do("models rm org/name --yes", capsys)
    assert not cache.folder("org/name").exists()


@pytest.mark.parametrize("answer", ["n", "y"])
def test_rm_asks_the_person_at_the_shell(
    server: Hub, system: System, capsys: pytest.CaptureFixture[str], answer: str
) -> None:
    do = Typed(system, answer)
    do("models pull org/name", capsys)
    do("models rm org/name", capsys)
    assert cache.folder("org/name").exists() is (answer == "n")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("models lss", "there are ls, du, pull, rm, check"),
        ("models pull", "wants the name"),
        ("models ls org/name", "takes no name"),
        ("models --found ls", "stands by itself"),
        ("models --dtype int8", "--estimate"),
        ("models pull org/nothing", "org/nothing"),
        ("models --estimate no-such-model", "no-such-model"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_the_shell_goes_on(
    server: Hub, system: System, capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    do = Typed(system)
    assert said in do(line, capsys)
    assert (do.shell.failures, do.shell.status) == (1, None)


def test_several_names_and_options_among_them() -> None:
    line = parse('models pull org/one --json "./with space" org/two', COMMANDS)
    assert line is not None
    assert (line.text("ACTION"), line.words, line.has("--json")) == (
        "pull",
        ["org/one", "./with space", "org/two"],
        True,
    )
    program = parse("run file.py --flag -x y", COMMANDS)
    assert program is not None
    assert program.words == ["--flag", "-x", "y"], "a program's arguments are its own"


def test_actions_and_names_are_completed(server: Hub, tmp_path: Path) -> None:
    file = tmp_path / ".lmstudio/models/org/repo/m.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"GGUF")

    def offered(line: str) -> list[str]:
        completer = ShellCompleter(COMMANDS, cast(Any, lambda call: []))
        return [one.text for one in completer.get_completions(Document(line), CompleteEvent())]

    assert offered("models p") == ["pull"]
    assert offered("models --f") == ["--found"]
    assert offered("models check lmst") == ["lmstudio:org/repo/m"]
    assert "--device" in offered("spawn --dev")


def test_ctrl_c_ends_a_pull_and_not_the_shell(server: Hub, where: Path, tmp_path: Path) -> None:
    hold = threading.Event()
    server.troubles = [Trouble("model.safetensors", cut_after=1_500_000, hold=hold)]
    root = Path(__file__).resolve().parents[2]  # the test stands in another directory
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "LLMASOS_RUNTIME": str(where),
        "XDG_STATE_HOME": str(tmp_path),
    }
    with Terminal([sys.executable, "-m", "llmasos", "shell"], environment) as shell:
        shell.expect("llmasos>")
        shell.enter("models pull org/name")
        blobs = cache.folder("org/name") / "blobs"
        eventually(lambda: any(one.stat().st_size >= 1_000_000 for one in blobs.glob("*.incomplete")), "some arrives")
        shell.type(CTRL_C)
        shell.expect("goes on where it was")
        hold.set()
        shell.expect("llmasos>")
        shell.enter("models pull org/name")
        shell.expect("org/name is in")
        shell.expect("llmasos>")
    assert server.fetched("model.safetensors")[-1].sent < len(WEIGHTS)
    assert cache.listing(next((cache.folder("org/name") / "snapshots").iterdir())) == set(FILES)


def test_spawn_goes_to_the_device_that_is_named(system: System, capsys: pytest.CaptureFixture[str]) -> None:
    do = Typed(system)
    do("spawn --model sim --device sim1 x hi", capsys)
    assert system.kernel is do.shell.kernel
    assert do.shell.info(do.shell.pid("x")).device == "sim1"
    assert "sim9" in do("spawn --model sim --device sim9 y hi", capsys)
    do("kill x", capsys)
