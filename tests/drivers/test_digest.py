"""What a model is made from, as a number that is remembered only as long as the files are what they were."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from llmasos.drivers.engine.digest import content_digest, stamp


@pytest.fixture
def model(tmp_path: Path) -> Path:
    place = tmp_path / "model"
    place.mkdir()
    (place / "config.json").write_text("{}")
    (place / "model.safetensors").write_bytes(b"weights" * 1000)
    (place / "README.md").write_text("no part of it")
    return place


def made(model: Path, memory: Path | None) -> tuple[str, int]:
    """The digest, and how many pieces of files were read for it."""
    ticks: list[None] = []
    return content_digest(model, memory, lambda: ticks.append(None)), len(ticks)


def test_it_is_that_of_the_names_and_contents(model: Path) -> None:
    whole = hashlib.sha256()
    for name in ("config.json", "model.safetensors"):
        inner = hashlib.sha256((model / name).read_bytes()).hexdigest()
        whole.update(f"{name}\0{inner}\0".encode())
    assert made(model, None) == (whole.hexdigest(), 2)


def test_files_are_read_once_until_they_are_touched(model: Path, tmp_path: Path) -> None:
    memory = tmp_path / "deep" / "memory"
    first = made(model, memory)
    assert made(model, memory) == (first[0], 0)
    (model / "README.md").write_text("something else")
    assert made(model, memory) == (first[0], 0)
    before, state = stamp(model), (model / "model.safetensors").stat()
    (model / "model.safetensors").write_bytes(b"Weights" * 1000)
    os.utime(model / "model.safetensors", ns=(state.st_atime_ns, state.st_mtime_ns))  # as if nothing had been
    assert stamp(model) != before
    second = made(model, memory)
    assert second[0] != first[0]
    assert second[1] == 1


def test_where_nothing_can_be_remembered_it_is_made_each_time(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert made(model, tmp_path / "file" / "memory") == made(model, None)
