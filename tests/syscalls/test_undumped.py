"""What kernel and drivers hold in memory is in no core dump."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmasos.syscalls import runtime

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(sys.platform != "linux", reason="core dumps as Linux makes them"),
]

ABORTS = """
import ctypes, os, resource, signal, sys
from llmasos.syscalls import undumped
secret = ("CANARY-" + sys.argv[1]).encode() * 1000
resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
if sys.argv[1] != "none":
    getattr(undumped, sys.argv[1])()
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE)[0])
print(open("/proc/self/coredump_filter").read(), len(os.listdir("/proc/self/fd")))
sys.stdout.flush()
os.kill(os.getpid(), signal.SIGABRT)
"""


@pytest.mark.parametrize(("how", "dumpable"), [("keep_out_of_dumps", "1"), ("shut", "0")])
def test_a_process_that_keeps_out_leaves_no_dump(tmp_path: Path, how: str, dumpable: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ABORTS, how],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=runtime.environment(),
    )
    assert done.returncode == -6, done.stderr
    found, limit, memory, _ = done.stdout.split()
    assert (found, memory) == (dumpable, "00000000")
    assert int(limit) in (0, 1)
    assert os.listdir(tmp_path) == []
