"""A home in which no program has put a model yet."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def no_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty home, named by the only variable that says where models are."""
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING", "OLLAMA", "LLAMA_", "LLMASOS_MODELS", "XDG_CACHE")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
