"""What `status` says to people."""

from __future__ import annotations

import pytest

from llmasos.syscalls import runtime
from llmasos.userland.programs import status


def told(*, plain: bool = False, place: str = "/place") -> str:
    journal = {"kept": True, "path": f"{place}/kernel.journal", "fsync": "interval", "plain": plain, "trouble": ""}
    facts = {
        "version": "1.0",
        "os_pid": 2,
        "runtime": place,
        "since": 0.0,
        "memory": {"kernel": 1, "drivers": 1},
        "agents": 0,
        "decoding": 0,
        "programs": 0,
        "models": [],
        "arguments": [],
        "journal": journal,
        "audit": {"kept": False, "trouble": ""},
        "policies_out": [],
        "notes": [],
    }
    return "\n".join(text for _, text in status.pairs(facts))


@pytest.mark.parametrize("plain", [True, False])
def test_who_keeps_conversations_unencrypted_is_told_so_and_of_no_key(*, plain: bool) -> None:
    text = told(plain=plain)
    assert ("not encrypted" in text, "under which key" in text) == (plain, not plain)


def test_an_operator_of_the_machines_kernel_is_not_told_that_its_journal_is_for_him() -> None:
    assert "readable by you alone" in told()
    assert "readable by the kernel's user alone" in told(place=str(runtime.system()))
