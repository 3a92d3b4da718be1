"""`python tests/system/samples/make.py DIRECTORY`, run by the version whose samples are wanted (its checkout first on
PYTHONPATH): a journal and process images as that version writes them, and what must come of them (expected.json).

Samples are made once, when a version is released, and never again: they are what users of that version have on their
disks. tests/system/test_upgrade.py reads them all.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from llmasos.syscalls import blocking, runtime
from llmasos.syscalls.records import GroupSettings, Limits, Sampler, SchedClass, Signal
from llmasos.syscalls.table import (
    Checkpoint,
    Decode,
    Exit,
    Feed,
    Fork,
    Getinfo,
    GroupCreate,
    Kill,
    Read,
    Records,
    Sched,
    Spawn,
)

DEVICE = "sim:time_scale=0,eos_every=100000"


def make(place: Path) -> None:
    with tempfile.TemporaryDirectory() as base:
        where = Path(base) / "run"
        command = [*runtime.module("llmasos.kernel.edge.boot"), "--runtime", str(where), "--device", DEVICE, "--quiet"]
        kernel = subprocess.Popen(command, env=runtime.environment(), stdin=subprocess.DEVNULL)
        while not runtime.listening(where):
            time.sleep(0.05)
        try:
            expected = _work(where, place)
        finally:
            kernel.send_signal(signal.SIGKILL)
            kernel.wait()
        shutil.copyfile(where / runtime.JOURNAL, place / "kernel.journal")
    (place / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def _work(where: Path, place: Path) -> dict[str, object]:
    kernel = blocking.connect(where, name="samples", timeout=30.0)
    settings = GroupSettings(kv_max=1 << 30, tokens_max=1e6, cpu_weight=200)
    group = kernel(GroupCreate("/people", settings)).path
    alice = kernel(
        Spawn(
            "sim", [1, 2, 3], Sampler(temperature=0.8, seed=7), "alice", detached=True, group="/people", records=[b"one"]
        )
    )
    kernel(Decode(alice, 20))
    kernel(Feed(alice, [4, 5], records=[b"two", b"three"]))
    kernel(Decode(alice, 12))
    bob = kernel(Spawn("sim:2m", [9] * 40, name="bob", nice=5, sched_class=SchedClass.BATCH, limits=Limits(tokens=500)))
    kernel(Decode(bob, 5))
    (carol,) = kernel(Fork(bob, detached=True))
    stopped = kernel(Spawn("sim", [8], name="stopped", detached=True))
    kernel(Kill(stopped, Signal.STOP))
    dead = kernel(Spawn("sim", [7], name="dead"))
    kernel(Exit(dead, 42))
    kernel(Sched(policy="mlfq", max_runs=9))
    images = {}
    for name, pid, key in (("alice", alice, b""), ("bob", bob, b"sesame")):
        kernel(Checkpoint(pid, os.fspath(place / f"{name}.image"), key=key))
        images[f"{name}.image"] = {"log": kernel(Read(pid, 0)).tokens, "key": key.decode()}
    working = kernel(Spawn("sim", [6, 6], name="working", detached=True))
    kernel(Decode(working, 50_000, wait=False))
    logs = {pid: kernel(Read(pid, 0)).tokens for pid in (alice, carol, stopped)}
    return {
        "version": version("llmasos"),
        "group": group,
        "cpu_weight": settings.cpu_weight,
        "policy": "mlfq",
        "processes": {
            kernel(Getinfo(pid)).name if pid != carol else "carol": {"pid": pid, "log": log} for pid, log in logs.items()
        },
        "working": {"pid": working, "begins": kernel(Read(working, 0, limit=200)).tokens},
        "children": [bob],
        "records": [record.data.decode() for record in kernel(Records(alice)).records],
        "images": images,
    }


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True)
    make(target.absolute())
