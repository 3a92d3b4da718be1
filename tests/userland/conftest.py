"""What several tests of userland start from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_server import Hub, served
from tests.userland.disk import FILES


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
