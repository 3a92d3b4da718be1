"""Several processes to one command, beside kill(1)."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from llmasos.syscalls.blocking import Client
from llmasos.syscalls.records import State
from llmasos.syscalls.table import Getinfo, Kill, Spawn
from tests.userland.command_line import llmasos, script
from tests.userland.prompt import living

pytestmark = pytest.mark.processes
KILL = shutil.which("kill")
MODEL = "sim:context=256,vocab=100"


def agents(kernel: Client, *names: str) -> list[int]:
    return [kernel(Spawn(MODEL, [1, 2, 3], name=name)) for name in names]


@pytest.mark.skipif(KILL is None, reason="there is no kill(1) to compare with")
@pytest.mark.parametrize("words", ["A", "A B", "A none", "none A", "none", "none no-name", "A B none"])
def test_the_status_of_kill_is_that_of_kill_1(words: str, where: Path, kernel: Client) -> None:
    assert KILL is not None
    theirs = [subprocess.Popen(["sleep", "600"]) for _ in "AB"]
    pids = {"A": str(theirs[0].pid), "B": str(theirs[1].pid), "none": "4194303", "no-name": "4194302"}
    try:
        expected = subprocess.run(
            [KILL, *(pids[word] for word in words.split())], capture_output=True, check=False
        ).returncode
        ended = [name for name, one in zip("AB", theirs, strict=True) if name in words and one.wait(60) == -15]
    finally:
        for one in theirs:
            one.kill()
            one.wait()
    agents(kernel, "A", "B")
    ran = llmasos(where, "kill", *words.replace("none", "nobody").split())
    assert (ran.returncode == 0) == (expected == 0), ran.stderr
    assert ran.returncode in (0, 1)
    assert [name for name in "AB" if not living(kernel, name)] == ended
    assert ran.stderr.count("llmasos: ESRCH") == words.count("no")
    for name in "AB":
        for row in living(kernel, name):
            kernel(Kill(row.pid))


def test_stop_cont_wait_and_disown_take_several(where: Path, kernel: Client) -> None:
    one, two = agents(kernel, "one", "two")
    ran = llmasos(where, "stop", "one", str(two))
    assert ran.returncode == 0
    assert {kernel(Getinfo(pid)).state for pid in (one, two)} == {State.STOPPED}
    ran = llmasos(where, "cont", "one", "nobody", "two")
    assert (ran.returncode, ran.stderr) == (1, "llmasos: ESRCH: no process is called 'nobody'; `ps` lists them\n")
    assert State.STOPPED not in {kernel(Getinfo(pid)).state for pid in (one, two)}
    ran = llmasos(where, "wait", "one", "two")
    assert ran.stdout.splitlines() == [
        f"[{one}] one: idle after 0 decoded tokens",
        f"[{two}] two: idle after 0 decoded tokens",
    ]
    ran = script(where, "spawn x", "spawn y", "disown x y", "kill o* tw* nobody", "echo $?")
    assert ran.stdout.splitlines()[-1] == "1"
    assert living(kernel, "x")
    assert living(kernel, "y")
    assert not living(kernel, "one") + living(kernel, "two")
    ran = llmasos(where, "kill", "-KILL", "x", "y")
    assert (ran.returncode, ran.stderr) == (0, "")


def test_jobs_are_a_table_and_json(where: Path) -> None:
    ran = script(
        where, "sleep 600 &", "jobs --json", "jobs -o JOB,COMMAND", "jobs --json -o state", "kill %1 %7", "echo $?"
    )
    assert ran.stderr.splitlines()[-1] == "ESRCH: there is no job '%7'; `jobs` lists them"
    text, _, rest = ran.stdout.partition("]\n")
    assert json.loads(text + "]") == [{"job": 1, "state": "running", "pid": 0, "decoded": 0, "command": "sleep 600"}]
    table, _, rest = rest.partition("[")
    assert [line.split() for line in table.splitlines()] == [["JOB", "COMMAND"], ["%1", "sleep", "600"]]
    assert json.loads("[" + rest.rpartition("]")[0] + "]") == [{"state": "running"}]
    assert rest.endswith("]\n1\n")


def test_watch_passes_on_the_options_of_what_it_watches(where: Path) -> None:
    ran = llmasos(where, "shell", "-c", "watch --count 1 ps --json -o pid")
    assert {"pid": 1} in json.loads(ran.stdout)
    ran = llmasos(where, "watch", "--count", "1", "ps", "--json", "-o", "pid")
    assert {"pid": 1} in json.loads(ran.stdout), ran.stderr


def test_a_verb_leaves_no_group_behind(where: Path, kernel: Client) -> None:
    made = llmasos(where, "spawn", "lasting", "--model", MODEL)
    assert made.returncode == 0, made.stderr
    assert llmasos(where, "fork", "lasting", "2", "--name", "copy").returncode == 0
    shown = json.loads(llmasos(where, "groups", "--json").stdout)
    mine = kernel(Getinfo()).group
    home = mine.rpartition("/")[0]
    sessions = [row for row in shown if "/session-" in row["path"] and row["path"] != mine]
    assert [row["pids"] for row in sessions] == [1], "that of `groups` itself"
    for name in ("lasting", "copy-1", "copy-2"):
        (row,) = living(kernel, name)
        assert row.group == home
        kernel(Kill(row.pid))
