"""What the operating system tells of other processes, and where it does not."""

from __future__ import annotations

import os
from typing import Any

import pytest

from llmasos.kernel.edge.figures import hidden


@pytest.mark.parametrize(
    ("shown", "levels"),
    [(("/proc/self", "/proc/1"), []), (("/proc/self",), ["warning"]), ((), [])],
    ids=["all are shown", "hidepid", "there is no /proc"],
)
def test_a_kernel_from_which_others_processes_are_hidden_says_what_it_cannot_show(
    shown: tuple[str, ...], levels: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    exists = os.path.exists

    def seen(path: Any) -> bool:
        return path in shown if str(path).startswith("/proc/") else exists(path)

    monkeypatch.setattr(os.path, "exists", seen)
    assert [level for level, text in hidden() if "gid=" in text] == levels
