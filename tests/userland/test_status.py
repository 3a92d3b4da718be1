"""What `status` says to people."""

from __future__ import annotations

import pytest

from llmasos.userland.programs import status


@pytest.mark.parametrize("plain", [True, False])
def test_who_keeps_conversations_unencrypted_is_told_so_and_of_no_key(*, plain: bool) -> None:
    journal = {"kept": True, "path": "/place/kernel.journal", "fsync": "interval", "plain": plain, "trouble": ""}
    facts = {
        "version": "1.0",
        "os_pid": 2,
        "runtime": "/run",
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
    told = "\n".join(text for _, text in status.pairs(facts))
    assert ("not encrypted" in told, "under which key" in told) == (plain, not plain)
