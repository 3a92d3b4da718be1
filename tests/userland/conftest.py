"""What several tests of userland start from: a kernel, a connection to it, an agent in it, a person at its shell."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmasos.syscalls import blocking
from llmasos.syscalls.blocking import Client
from llmasos.syscalls.records import State
from llmasos.syscalls.table import Getinfo, Spawn
from llmasos.userland.programs.boot import private_kernel
from tests.booted import SIM, eventually
from tests.hub_server import Hub, served
from tests.userland.disk import FILES
from tests.userland.prompt import PROMPT, living, terminal
from tests.userland.terminal import Terminal


@pytest.fixture(scope="module")
def where(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The runtime directory of a running kernel: with a simulated device, unless the module's FLAGS say otherwise."""
    place = tmp_path_factory.mktemp("k")
    with private_kernel(place, getattr(request.module, "FLAGS", SIM)):
        yield place


@pytest.fixture
def kernel(where: Path) -> Iterator[Client]:
    with blocking.connect(where, name="test") as client:
        yield client


@pytest.fixture
def agent(kernel: Client) -> int:
    """The pid of the one process called sleeper, an LLM process with 40 tokens in its log, which is idle."""
    eventually(lambda: not living(kernel, "sleeper"), "the last one has gone")
    pid = kernel(Spawn(model="sim:context=256,vocab=100", tokens=list(range(40)), name="sleeper"))
    eventually(lambda: kernel(Getinfo(pid)).state is State.BLOCKED, "it waits for input")
    return pid


@pytest.fixture
def columns() -> int:
    """Of the terminal; the mark WIDTHS says others."""
    return 100


@pytest.fixture
def shell(where: Path, tmp_path: Path, columns: int) -> Iterator[Terminal]:
    """A shell on a terminal, at its prompt."""
    with terminal(where, tmp_path, columns=columns) as opened:
        opened.expect(PROMPT)
        yield opened


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with org/name, asked by whatever runs in an empty home."""
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING", "OLLAMA", "LLAMA_", "XDG_", "LLMASOS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LLMASOS_RUNTIME", str(tmp_path / "runtime"))
    monkeypatch.chdir(tmp_path)
    with served() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.repository("org/name").commit(FILES)
        yield hub
