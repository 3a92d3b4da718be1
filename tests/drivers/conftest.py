"""One thread, and no talk from transformers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llmasos.drivers.engine.loading import quiet_transformers

quiet_transformers()


SLOW_DISK = """
import os, time

def open_slowly(path, *more, _open=os.open, **others):
    while str(path).endswith("slow/model.safetensors") and not os.path.exists({go!r}):
        time.sleep(0.01)
    return _open(path, *more, **others)

os.open = open_slowly
"""


@pytest.fixture
def slow(zoo: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose weights, which are broken, a driver cannot open before there is a file `go` beside them."""
    directory = Path(shutil.copytree(zoo("llama"), tmp_path / "slow"))
    (directory / "model.safetensors").write_bytes(b"nothing")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SLOW_DISK.format(go=str(directory / "go")))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)
    return directory
