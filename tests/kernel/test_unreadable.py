"""Who comes from a sandbox by the socket of another kernel is known, though nobody may look into it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmasos.kernel.edge.peers import in_sandbox

APART = ["unshare", "--user", "--map-root-user", "--pid", "--fork"]


@pytest.mark.processes
@pytest.mark.parametrize("apart", [True, False], ids=["in a sandbox", "in none"])
def test_a_program_that_runs_a_file_which_it_may_not_read_is_known_by_its_pids(
    monkeypatch: pytest.MonkeyPatch, *, apart: bool
) -> None:
    def readlink(path: str) -> str:
        if path.startswith(f"/proc/{os_pid}/"):  # as the system says of such a one, but to root
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    real, words = os.readlink, ["cat"]
    with subprocess.Popen([*(APART if apart else []), *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write(b"there\n")
        program.stdin.flush()
        if not program.stdout.readline():
            pytest.skip("this machine does not let its user have namespaces")
        own = Path(f"/proc/{program.pid}/task/{program.pid}/children")
        os_pid = int(own.read_text()) if apart else program.pid
        monkeypatch.setattr(os, "readlink", readlink)
        peer: Any = SimpleNamespace(host="", sandbox=0, uid=os.getuid(), os_pid=os_pid)
        assert in_sandbox(peer) is apart
        program.stdin.close()
