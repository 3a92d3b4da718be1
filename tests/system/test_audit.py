"""The audit log of a kernel as people have it: on by itself, over the kernel's death, with an anchor; and what was said,
keys and tickets are in no log and no file that others may read."""

from __future__ import annotations

import json
import signal
import stat
import sys
from pathlib import Path

import pytest

from llmasos.syscalls.table import Checkpoint, Kill, Rename
from llmasos.userland.programs.power import halt
from tests.booted import PATIENCE, eventually
from tests.system.home import Home, born

pytestmark = pytest.mark.processes
CANARY = "a-canary-that-sang"


def test_the_log_goes_on_over_a_death_and_is_verified(home: Home, tmp_path: Path) -> None:
    heads = tmp_path / "heads"
    home.config.write_text(f'{home.config.read_text()}[audit]\nhead_seconds = 0.2\nanchor = "{heads}"\n')
    home.type("boot", "--detach")
    with home.connect() as kernel:
        pid = born(kernel)
        ticket = kernel.boot.ticket
        kernel(Rename(pid, CANARY))
        kernel(Checkpoint(pid, str(tmp_path / "image"), key=f"{CANARY}-key".encode()), timeout=PATIENCE)
    home.type("say", str(pid), f"{CANARY} said I")
    eventually(heads.exists, "a head is anchored")
    if sys.platform == "linux":
        for process in home.processes():
            assert Path(f"/proc/{process.pid}/coredump_filter").read_text().strip() == "00000000"
            limits = Path(f"/proc/{process.pid}/limits").read_text()
            assert limits.partition("Max core file size")[2].split()[0] in ("0", "1")
    home.kill(signal.SIGKILL)
    home.type("boot", "--detach")
    with home.connect() as kernel:
        kernel(Kill(pid))

    shown = [json.loads(line) for line in home.type("audit", "show", "--json").stdout.splitlines()]
    assert [line["what"] for line in shown].count("boot") == 2
    assert [line["n"] for line in shown] == list(range(len(shown)))
    assert {"attach", "rename", "checkpoint", "kill", "loaded", "head"} <= {line["what"] for line in shown}
    assert "nothing is wrong" in home.type("audit", "verify", "--anchor", str(heads)).stdout
    _nobody_else_reads_it(tmp_path, ticket)

    place = home.state / "llmasos" / "audit"
    halt(home.place)
    assert "nothing is wrong" in home.type("audit", "verify", "--anchor", str(heads)).stdout
    (file,) = place.glob("*.log")
    file.write_bytes(file.read_bytes().replace(b'"what":"kill"', b'"what":"skill"', 1))
    assert "its seal is wrong" in home.type("audit", "verify", status=1).stdout


def _nobody_else_reads_it(base: Path, ticket: bytes) -> None:
    """What was planted is in no log; whatever has it belongs to its user alone."""
    secrets = [CANARY.encode(), ticket, ticket.hex().encode()]
    files = [path for path in base.rglob("*") if path.is_file() and path.name != "heads"]
    assert any(path.name == "kernel.log" for path in files)
    for path in files:
        text = path.read_bytes()
        if any(secret in text for secret in secrets):
            assert path.suffix != ".log", f"{path} has what was said"
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, f"{path} is open to others"
