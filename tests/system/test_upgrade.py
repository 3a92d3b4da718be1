"""What versions before this one have left on people's disks is read: journals and process images (samples/make.py)."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmasos.drivers.sim import tokens
from llmasos.drivers.sim.spec import model, parse
from llmasos.syscalls.blocking import Client
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.records import Kind, Sampler, State
from llmasos.syscalls.table import (
    Decode,
    Getinfo,
    GroupStat,
    Ps,
    Read,
    Records,
    Restore,
    Sched,
    Wait,
)
from tests.booted import PATIENCE, booted, eventually

pytestmark = pytest.mark.processes

SAMPLES = sorted(path.parent for path in (Path(__file__).parent / "samples").glob("*/expected.json"))
DEVICE = "sim:time_scale=0,eos_every=100000"
SIM = ("--device", DEVICE, "--journal")


def expected(sample: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((sample / "expected.json").read_text())
    return told


def continuation(log: list[int], count: int, sampler: Sampler) -> list[int]:
    """What the simulated model of the samples says after a log, by its definition."""
    spec = model("sim", "", parse({"time_scale": "0", "eos_every": "100000"})[1])
    return tokens.continuation(spec, log, sampler, count)


def log_of(kernel: Client, pid: int) -> list[int]:
    return kernel(Read(pid, 0), timeout=PATIENCE).tokens


def test_there_is_a_sample_of_the_version_of_the_journal_that_was_first_promised_to_be_read() -> None:
    assert "journal-3" in [sample.name for sample in SAMPLES]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_the_agents_of_an_earlier_version_go_on(sample: Path, tmp_path: Path) -> None:
    told = expected(sample)
    shutil.copyfile(sample / "kernel.journal", tmp_path / "kernel.journal")
    with booted(*SIM, str(tmp_path)) as booted_kernel, booted_kernel.connect() as kernel:
        for name, process in told["processes"].items():
            info = kernel(Getinfo(process["pid"]))
            assert info.name == name or name == "carol"
            assert (info.kind, info.ppid) == (Kind.LLM, 1)
            assert log_of(kernel, process["pid"]) == process["log"]
        alice = told["processes"]["alice"]
        records = kernel(Records(alice["pid"])).records
        assert [record.data.decode() for record in records] == told["records"]
        said = kernel(Decode(alice["pid"], 7), timeout=PATIENCE).tokens
        assert said == continuation(alice["log"], 7, Sampler(temperature=0.8, seed=7))
        assert kernel(Getinfo(told["processes"]["stopped"]["pid"])).state is State.STOPPED
        working = told["working"]
        begins = working["begins"]
        wanted = begins + continuation(begins, 500, Sampler(seed=kernel(Getinfo(working["pid"])).seed))
        eventually(lambda: kernel(Getinfo(working["pid"])).length > 600, "what was decoding decodes on")
        assert log_of(kernel, working["pid"])[: len(wanted)] == wanted
        [group] = [group for group in kernel(GroupStat(below=True)) if group.path == told["group"]]
        assert group.settings.cpu_weight == told["cpu_weight"]
        assert kernel(Sched()).policy == told["policy"]
        with booted_kernel.connect() as other:  # as this version has it: any program may wait for a detached process
            assert {row.pid for row in other(Ps())} >= {process["pid"] for process in told["processes"].values()}
            kernel(Getinfo(alice["pid"]))
            with pytest.raises(SyscallError, match="ETIME"):
                other(Wait(alice["pid"], 0.01))


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_its_process_images_are_restored(sample: Path, tmp_path: Path) -> None:
    with booted("--device", DEVICE) as booted_kernel, booted_kernel.connect() as kernel:
        for name, image in expected(sample)["images"].items():
            path = tmp_path / name
            shutil.copyfile(sample / name, path)
            path.chmod(0o600)
            pid = kernel(Restore(os.fspath(path), key=image["key"].encode()), timeout=PATIENCE)
            assert log_of(kernel, pid) == image["log"]
            assert len(kernel(Decode(pid, 4), timeout=PATIENCE).tokens) == 4
