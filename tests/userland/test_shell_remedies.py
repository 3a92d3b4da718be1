"""What the shell says when it cannot: in the words of a person at it, with the command that helps."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from llmasos.syscalls.blocking import Client
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import GroupSettings, Kind, KvAction, ModelInfo, Signal
from llmasos.syscalls.table import Getinfo, GroupStat, Kill, Models, Pagein
from llmasos.userland.programs import groups, log, ps
from llmasos.userland.sdk import options
from llmasos.userland.shell import pipes
from llmasos.userland.shell.remedy import told
from llmasos.userland.shell.script import run_lines
from tests.booted import SIM, eventually
from tests.syscalls.raised import raises
from tests.userland.command_line import DEADLINE, llmasos, script
from tests.userland.prompt import PROMPT, terminal

pytestmark = pytest.mark.processes
FLAGS = (*SIM, "--device", "sim")
ON_ONE = "sim:context=256,vocab=100"


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("tokens_max=-1", "tokens_max wants a number from 0, found '-1'"),
        ("tokens_max=abc", "tokens_max wants a number from 0, found 'abc'"),
        ("tokens_max=nan", "tokens_max wants a number from 0, found 'nan'"),
        ("tokens_max=1e15", "tokens_max wants a number from 0 to 1,000,000,000,000, found '1e15'"),
        ("tokens_total=1.5", "tokens_total wants a whole number from 0, found '1.5'"),
        ("cpu_weight=0", "cpu_weight wants a whole number from 1 to 10,000, found '0'"),
        ("kv_action=die", "kv_action wants one of spill, wait, fail, kill, found 'die'"),
        ("kv_max=9999999999t", "kv_max wants a whole number from 0 to 4,611,686,018,427,387,904, found '9999999999t'"),
    ],
)
def test_a_setting_that_cannot_be_is_told_in_words(word: str, said: str) -> None:
    with pytest.raises(SyscallError) as caught:
        groups.settings([word], GroupSettings())
    assert str(caught.value) == f"EINVAL: {said}"


def test_settings_are_read_as_they_are_meant() -> None:
    words = ["kv_max=64MiB", "tokens_max=2.5", "pids_max=7", "cpu_weight=10000", "kv_action=wait"]
    now = GroupSettings(tokens_total=5, pids_max=1)
    wanted = GroupSettings(
        kv_max=64 << 20, tokens_max=2.5, tokens_total=5, pids_max=7, cpu_weight=10000, kv_action=KvAction.WAIT
    )
    assert groups.settings(words, now) == wanted


def test_a_group_without_its_parents_says_which_to_make_first(where: Path, kernel: Client) -> None:
    refused = script(where, "group /x/y/z tokens_max=1")
    found = re.fullmatch(r"ENOENT: there is no group '/x' for '/x/y/z' to be in; `(.*)` makes it\n", refused.stderr)
    assert found is not None, refused.stderr
    ran = script(where, found[1], found[1].replace("/x", "/x/y"), "group /x/y/z tokens_max=1")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert kernel(GroupStat("/x/y/z"))[0].settings.tokens_max == 1


def test_kv_memory_that_no_page_fits_into_is_told_of(where: Path, agent: int) -> None:
    ran = script(where, "group small kv_max=10", "group small kv_max=64MiB", "group small kv_max=0")
    assert len([line for line in ran.stdout.splitlines() if line.startswith("kv_max is 10 bytes, and a page of")]) == 1
    assert "notes" not in json.loads(llmasos(where, "group", "small", "kv_max=64MiB", "--json").stdout)
    assert len(json.loads(llmasos(where, "group", "small", "kv_max=10", "--json").stdout)["notes"]) == 1


def test_an_error_about_a_limit_names_the_command_that_raises_it() -> None:
    """Of every error in the tree that names a group's limit, or a process's."""
    named = [one for one in raises() if re.search(r"(kv_max|weights_max|tokens_total) of group|Limits\.", one.reason)]
    assert len(named) >= 3
    for one in named:
        said = told(SyscallError(one.errno, one.reason.replace("of group …", "of group /a/b").replace("…", "7")))
        assert re.search(r"; `(group /a/b \w+=(N|SIZE)|limits \w+ --\w+ N)` raises it$", said), said


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (
            "a context of 9 tokens is too long: 8 is what kv_max of group /g.1/b-c allows (9 bytes)",
            "a context of 9 tokens is too long: 8 is what kv_max of group /g.1/b-c allows (9 bytes); "
            "`group /g.1/b-c kv_max=SIZE` raises it",
        ),
        ("8 is its own limit (Limits.context)", "8 is its own limit; `limits PID --context N` raises it"),
        ("process 5 is spent; raise it (Limits.tokens)", "process 5 is spent; `limits 5 --tokens N` raises it"),
        ("no model 'x'", "no model 'x'"),
    ],
)
def test_a_remedy_is_a_command(reason: str, said: str) -> None:
    assert told(SyscallError(Errno.EDQUOT, reason)) == f"EDQUOT: {said}"


def test_a_verb_says_the_same(where: Path, agent: int) -> None:
    assert llmasos(where, "group", "/full", "weights_max=1").returncode == 0
    refused = llmasos(where, "join", str(agent), "/full")
    assert refused.returncode == 1
    assert refused.stderr.endswith("; `group /full weights_max=SIZE` raises it\n")


# --- words that are taken ---------------------------------------------------------------------------------------------


def test_nice_takes_its_value_as_nice_1_has_it(where: Path, kernel: Client, agent: int) -> None:
    for ran, value in (
        (lambda: script(where, f"nice -n 5 {agent}"), 5),
        (lambda: script(where, f"nice {agent} -3"), -3),
        (lambda: llmasos(where, "nice", str(agent), "-n", "7"), 7),
    ):
        done = ran()
        assert (done.returncode, done.stderr) == (0, "")
        assert kernel(Getinfo(agent)).nice == value
    for line, wanted in ((f"nice {agent}", "VALUE"), ("nice -n 5", "PID"), (f"nice -n 5 {agent} 6", "one value")):
        refused = script(where, line)
        assert refused.stderr.startswith("EINVAL: nice needs")
        assert wanted in refused.stderr


def test_fork_says_how_many_copies_it_makes_at_most(where: Path, agent: int) -> None:
    assert script(where, f"fork {agent} 257").stderr == "EINVAL: fork: N wants at most 256, found 257\n"
    assert "at most 256" in " ".join(llmasos(where, "fork", "--help").stdout.split())


def test_every_heading_of_the_help_has_something_below_it(tmp_path: Path) -> None:
    lines = [line for line in llmasos(tmp_path, "--help").stdout.partition("each a verb:")[2].splitlines() if line]
    headings = [at for at, line in enumerate(lines) if re.fullmatch(r"  \w+:", line)]
    assert len(headings) >= 4
    assert all(lines[at + 1].startswith("    ") for at in headings)
    assert "Language" not in llmasos(tmp_path, "help").stdout


# --- devices ----------------------------------------------------------------------------------------------------------


def test_a_model_on_another_device_says_which() -> None:
    assert _elsewhere(ON_ONE, "") == (
        f"no model {ON_ONE!r} on the default device: it is in memory on sim1; `--device sim1` (device='sim1') names it"
    )
    assert _elsewhere(ON_ONE, "sim0") == f"no model {ON_ONE!r} on sim0: it is in memory on sim1"
    for name, device in ((ON_ONE, "sim1"), ("another", "")):
        assert _elsewhere(name, device) is None


def _elsewhere(name: str, device: str) -> str | None:
    """What a model is refused with where the device does not have it, and sim1 has ON_ONE; None: not with that."""
    script = options.paged_in(name, "", device)
    call = next(script)
    try:
        assert isinstance(call, Pagein), call
        call = script.throw(SyscallError(Errno.ENOENT, "none of that name"))
        assert isinstance(call, Models), call
        script.send([ModelInfo(name=ON_ONE, path="", device="sim1")])
    except SyscallError as error:
        return error.reason if "it is in memory on" in error.reason else None
    raise AssertionError("it was not refused")


def test_dmesg_says_who_killed_a_driver(where: Path, kernel: Client) -> None:
    (driver,) = [row.pid for row in ps.processes(kernel) if row.kind is Kind.DRIVER and row.device == "sim1"]
    kernel(Kill(driver, Signal.KILL))
    said = f"sim1: driver died: killed by the kernel: program {kernel(Getinfo()).pid} (test) sent KILL"
    eventually(lambda: said in [line.text for line in log.read(kernel)], "it is told")


# --- what is read -----------------------------------------------------------------------------------------------------


def test_a_line_of_a_script_has_a_bound(where: Path) -> None:
    with open("/dev/zero", "rb") as zero:
        ended = subprocess.run(
            [sys.executable, "-m", "llmasos", "--runtime", str(where), "shell"],
            stdin=zero,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
    assert ended.returncode == 1
    assert ended.stderr == "llmasos: E2BIG: a line is longer than 16 MiB; these are no commands\n"


def test_a_command_of_several_lines_has_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "MAX_TEXT", 100)
    with pytest.raises(SyscallError, match=r"^E2BIG: the command of line 1 is longer"):
        run_lines(_Unused(), ["cat <<E\n", *["x" * 30 + "\n"] * 9])  # type: ignore[arg-type]


class _Unused:
    """A session in which nothing is run."""

    line = 1

    class variables:
        aliases: dict[str, str] = {}


@pytest.mark.parametrize("given", ["pipe", "file"])
def test_commands_that_are_given_to_the_tour_are_not_dropped(tmp_path: Path, given: str) -> None:
    (tmp_path / "f").write_text("ps\n")
    if given == "pipe":
        ended = llmasos(tmp_path, typed="ps\n")
    else:
        with open(tmp_path / "f", encoding="utf-8") as file:
            ended = _without_words(tmp_path, file)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "`llmasos shell` takes commands" in ended.stderr


@pytest.mark.parametrize("given", ["/dev/null", "an empty file", "a pipe that is closed", "nothing"])
def test_without_commands_it_is_the_tour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    from llmasos import __main__

    read, write = os.pipe()
    os.close(write)
    (tmp_path / "empty").touch()
    places: dict[str, Callable[[], int]] = {
        "/dev/null": lambda: os.open(os.devnull, os.O_RDONLY),
        "an empty file": lambda: os.open(tmp_path / "empty", os.O_RDONLY),
        "a pipe that is closed": lambda: os.dup(read),
        "nothing": lambda: -1,
    }
    kept, source = os.dup(0), places[given]()
    try:
        os.close(0) if source < 0 else os.dup2(source, 0)
        assert not __main__._is_given_lines()
    finally:
        os.dup2(kept, 0)
        for one in (kept, read, *([source] if source >= 0 else [])):
            os.close(one)


def _without_words(where: Path, source: IO[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llmasos"],
        stdin=source,
        env={**os.environ, "LLMASOS_RUNTIME": str(where)},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


# --- at a terminal ----------------------------------------------------------------------------------------------------


def test_cat_reads_what_is_typed_up_to_its_end(where: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    with terminal(where, tmp_path) as shell:
        shell.expect(PROMPT)
        for line in (f"cat > {kept}", f"cat - | sort >> {kept}"):
            shell.enter(line)
            eventually(lambda: shell.echoes, "cat has the terminal")
            shell.enter("two words")
            shell.expect(r"two words")
            shell.enter("another")
            shell.expect(r"another")
            shell.type("\x04")
            shell.expect(PROMPT)
        shell.enter("cat")
        eventually(lambda: shell.echoes, "cat has the terminal")
        shell.type("\x03")
        eventually(lambda: not shell.echoes, "the shell has the terminal")
        shell.expect(PROMPT)
        shell.enter("echo still $((40+2))")
        shell.expect("still 42")
    assert kept.read_text() == "two words\nanother\nanother\ntwo words\n"


@pytest.mark.parametrize("no_color", ["", "1"])
def test_the_prompt_heeds_no_color(where: Path, tmp_path: Path, no_color: str) -> None:
    with terminal(where, tmp_path, NO_COLOR=no_color) as shell:
        shell.expect(PROMPT)
        shell.enter("echo some$((1+1))thing")
        shell.expect("some2thing")
        shell.expect(PROMPT)
        coloured = re.search(rb"\x1b\[[0-9;]*\b(1|3[0-7]|9[0-7]|38;[0-9;]*)m", shell.raw)
    assert (coloured is None) == bool(no_color)


# --- policies of one's own --------------------------------------------------------------------------------------------

POLICY = """
from llmasos.policies import Policy

class Mine(Policy):
    def key(self, process):
        return process.pid
"""


def test_a_policy_whose_file_has_changed_says_so(where: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(POLICY)
    loaded = llmasos(where, "policy", "own.py:Mine", "--json", cwd=tmp_path)
    assert loaded.returncode == 0, loaded.stderr
    name = json.loads(loaded.stdout)["policy"]
    assert "has changed" not in llmasos(where, "policy", name, cwd=tmp_path).stdout
    file.write_text(POLICY + "\n# another\n")
    said = "own.py has changed since that text was loaded: `policy own.py:Mine` takes it as it is now"
    assert said in llmasos(where, "policy", name, cwd=tmp_path).stdout
    assert json.loads(llmasos(where, "policy", name, "--json", cwd=tmp_path).stdout)["notes"] == [said]
    newer = json.loads(llmasos(where, "policy", "own.py:Mine", "--json", cwd=tmp_path).stdout)
    assert newer["policy"] not in ("", name)
    assert "notes" not in newer
    assert llmasos(where, "policy", "fair").returncode == 0
