"""The version of this package is that which the packaging tools know."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from llmasos.syscalls.version import version


def test_it_is_what_importlib_says() -> None:
    assert version() == importlib.metadata.version("llmasos")


def test_it_is_empty_where_the_package_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llmasos_tools-3.dist-info").mkdir()
    (tmp_path / "a.zip").touch()
    monkeypatch.setattr("sys.path", ["", str(tmp_path), str(tmp_path / "a.zip"), str(tmp_path / "gone")])
    monkeypatch.chdir(tmp_path)
    assert version() == ""
