"""Scripts of agents: `llmasos shell FILE`, `-c`, `#!`, what they leave behind, and what their statuses say."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from llmasos.syscalls.blocking import Client
from llmasos.syscalls.table import Kill
from llmasos.userland.shell.completion import Place, place
from llmasos.userland.shell.grammar import Argument, line_of
from llmasos.userland.shell.words import COMMANDS
from tests.userland.command_line import DEADLINE, llmasos
from tests.userland.prompt import living, pid_of

FLAGS = ["--device", "cpu:threads=1"]

pytestmark = pytest.mark.processes


def shell(where: Path, cwd: Path, *words: str, typed: str | None = None) -> subprocess.CompletedProcess[str]:
    return llmasos(where, "shell", *words, typed=typed, cwd=cwd)


def test_text_goes_through_agents_and_programs_of_the_host(where: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("My lucky number is 42.\n")
    ran = shell(
        where,
        tmp_path,
        "-c",
        "cat ./notes.txt | spawn ann '' | tee out.txt; cat ann; say ann 'What is my lucky number?' > answer; "
        "grep -c 42 < answer",
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    kept = (tmp_path / "out.txt").read_text()
    assert "42" in kept
    lines = ran.stdout.splitlines()
    assert lines[0] == kept.rstrip("\n"), "bare text, without who says it"
    assert lines[1:3] == ["you: My lucky number is 42.", f"ann: {lines[0]}"]
    assert lines[3:] == ["1"]


def test_a_script_has_arguments_and_the_status_of_its_last_command(where: Path, tmp_path: Path) -> None:
    (tmp_path / "script").write_text("echo $0 $# \"$2\"\nkill nobody\nsh -c 'exit 9'\n")
    ran = shell(where, tmp_path, "script", "a", "b c")
    assert (ran.returncode, ran.stdout) == (9, "script 2 b c\n")
    assert ran.stderr == "script: line 2: ESRCH: no process is called 'nobody'; `ps` lists them\n"
    assert shell(where, tmp_path, "-c", "kill nobody; echo $1", "x").stdout == "x\n"
    assert shell(where, tmp_path, "-c", "kill nobody; true").returncode == 0
    for line, status in (("kill nobody", 1), ("kill", 2), ("frok 6", 127), ("exit 5", 5), ("set -e; false; exit 0", 1)):
        assert shell(where, tmp_path, "-c", line).returncode == status, line
    assert "there is no file 'nowhere'" in shell(where, tmp_path, "nowhere").stderr


@pytest.mark.parametrize(
    "line",
    ["echo hi", "ps", "ps --json", "man say", 'spawn full "hello"', "echo x | cat -", "for x in a; do echo $x; done"],
)
def test_a_full_disk_behind_a_redirection_is_an_error_of_that_command(where: Path, tmp_path: Path, line: str) -> None:
    ran = shell(where, tmp_path, "-c", f"{line} > /dev/full; echo $?; {line} > kept; echo $?")
    assert (ran.returncode, ran.stdout) == (0, "1\n0\n"), ran.stderr
    assert ran.stderr.splitlines()[-1] == "EIO: /dev/full: No space left on device"
    assert (tmp_path / "kept").read_text()


def test_errors_that_cannot_be_written_are_one_error(where: Path, tmp_path: Path) -> None:
    lines = "{ kill nobody; time true; } > out 2> /dev/full; echo $?; echo a > /nowhere/x; echo $?"
    ran = shell(where, tmp_path, "-c", lines)
    assert (ran.returncode, ran.stdout) == (0, "0\n1\n"), "the group's own status"
    assert ran.stderr.splitlines() == [
        "EIO: /dev/full: No space left on device",
        "ENOENT: there is no directory '/nowhere' for '/nowhere/x'",
    ]


def test_an_answer_that_cannot_be_written_is_interrupted(where: Path, tmp_path: Path) -> None:
    said = "spawn writer --max 2000 'Tell me a very long story about a fox.' > /dev/full; say writer 'hello' > kept"
    ran = shell(where, tmp_path, "-c", said)
    assert (ran.returncode, ran.stderr) == (0, "EIO: /dev/full: No space left on device\n")


def test_many_words_are_read_in_one_pass() -> None:
    class Counted(Argument):
        asked = 0

        def __getattribute__(self, name: str) -> object:
            if name == "text":
                Counted.asked += 1
            return super().__getattribute__(name)

    line = line_of(COMMANDS["echo"], [Counted(str(number)) for number in range(2000)])
    assert line.words == [str(number) for number in range(2000)]
    assert Counted.asked <= 4 * 2000


def test_many_words_reach_a_command(where: Path, tmp_path: Path) -> None:
    ran = shell(where, tmp_path, "-c", "echo $(seq 100000) | wc -w; x=$(seq 100000); echo ${x:-n} | tail -c 7")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "100000\n100000\n", "")


def test_a_directory_is_no_script(where: Path, tmp_path: Path) -> None:
    ran = shell(where, tmp_path, "./")
    assert (ran.returncode, ran.stderr) == (2, "llmasos: EINVAL: './' is a directory; name a file\n")


def test_a_script_runs_by_its_first_line(where: Path, tmp_path: Path) -> None:
    command = tmp_path / "llmasos"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m llmasos "$@"\n')
    script = tmp_path / "script"
    script.write_text("#!/usr/bin/env -S llmasos shell\necho one $1\nexit 3\n")
    for file in (command, script):
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    environment = {**os.environ, "LLMASOS_RUNTIME": str(where), "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    ran = subprocess.run([script, "two"], env=environment, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (3, "one two\n", "")


def test_what_a_script_spawns_ends_with_it_unless_it_is_disowned(where: Path, tmp_path: Path, kernel: Client) -> None:
    ran = shell(where, tmp_path, "-c", "spawn short; spawn long; disown long; spawn kept --detach")
    assert ran.returncode == 0, ran.stderr
    assert not living(kernel, "short")
    for name in ("long", "kept"):
        kernel(Kill(pid_of(kernel, name)))


def test_an_error_in_a_script_says_where(where: Path, tmp_path: Path) -> None:
    (tmp_path / "part").write_text("true\n\nkill nobody\n")
    (tmp_path / "script").write_text(
        "# first\nf() {\n  echo in f\n  kill nobody\n}\nf\n. ./part\nif true; then\n  ps nobody\nfi\n"
        "x=$(\n  kill nobody\n)\nno-such-program\necho $unset ${unset:?is wanted}\necho never\n"
    )
    ran = shell(where, tmp_path, "script")
    places = [line.partition(": E")[0] for line in ran.stderr.splitlines()]
    assert places == [
        "script: line 4",
        "./part: line 3",
        "script: line 9",
        "script: line 12",
        "script: line 14",
        "script: line 15",
    ]
    assert (ran.returncode, ran.stdout) == (1, "in f\n")
    (tmp_path / "script").write_text("echo a\n\nif true; then\n( ;\nfi\n")
    assert shell(where, tmp_path, "script").stderr.startswith("script: line 3: EINVAL: ")


def test_a_pattern_of_names_is_each_that_matches(where: Path, tmp_path: Path, kernel: Client) -> None:
    lines = "for n in pat1 pat2 other; do spawn $n --detach > /dev/null; done\nkill pat*\necho $?\nkill pat*\necho $?\n"
    ran = shell(where, tmp_path, typed=lines)
    assert ran.stdout == "0\n1\n"
    assert ran.stderr == "ESRCH: no process has a name like 'pat*'; `ps` lists them\n"
    assert not living(kernel, "pat1") + living(kernel, "pat2")
    kernel(Kill(pid_of(kernel, "other")))


def test_failures_that_are_looked_at_do_not_count(where: Path, tmp_path: Path) -> None:
    tested = "if kill nobody; then true; fi\nkill nobody || true\n! kill nobody\nwhile kill nobody; do true; done\n"
    ran = shell(where, tmp_path, typed=tested)
    assert ran.returncode == 0
    assert ran.stderr.count("ESRCH") == 4
    assert shell(where, tmp_path, typed=tested + "kill nobody\ntrue\n").returncode == 1


def test_source_aliases_and_functions_hold_from_the_next_line_on(where: Path, tmp_path: Path) -> None:
    (tmp_path / "names").write_text("alias up='uptime'\nx=5\nf() { echo f $1; }\necho sourced $1\nreturn 0\necho not\n")
    ran = shell(where, tmp_path, typed="source names a\nup | grep -c up\necho $x\nf b\n. ./names c\nunalias up\nup\n")
    assert ran.stdout == "sourced a\n1\n5\nf b\nsourced c\n"
    assert ran.stderr == "EINVAL: there is no command 'up'; `help` lists the commands\n"


def test_watch_runs_a_line_again_and_time_says_how_long(where: Path, tmp_path: Path) -> None:
    ran = shell(where, tmp_path, "-c", "watch -n 0.1 --count 3 'echo a | tr a b'; time echo c")
    assert ran.stdout == "b\nb\nb\nc\n"
    assert re.fullmatch(r"real \d+\.\ds, [\d,]+ tokens decoded in the system\n", ran.stderr)


def test_a_file_that_is_named_like_an_agent_is_told_of(where: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    ran = shell(where, tmp_path, "-c", "cat notes.txt; cat ./nowhere; cat .; cat ./")
    assert ran.stderr.splitlines() == [
        "ESRCH: no process is called 'notes.txt'; `ps` lists them; a file is named with a slash: `cat ./notes.txt`",
        "ENOENT: there is no file './nowhere'",
        "ESRCH: no process is called '.'; `ps` lists them; a file is named with a slash: `cat ./.`",
        "EINVAL: './' is a directory; name a file",
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("for x in a; do", "the line is not whole: a command is missing"),
        ("done", "'done' has no place there; a command could be"),
        ("echo $((1/0))", "a sum divides by zero"),
        ("echo $((x y))", "wants a sum of whole numbers"),
        ("echo ${x", "the brace of ${ is not closed"),
        ("echo $(ps", "the parenthesis of $( is not closed"),
        ("ps > ", "> needs a file behind it"),
        ("ps() { true; }", "'ps' is a command of the shell"),
        ("f() { f; }; f", "more than 50 deep"),
        ("f() { if true; then for x in a; do { (f); }; done; fi; }; f", "too deeply"),
        ("echo " + "$(" * 2000, "too much within itself"),
        ("(" * 2000 + "ps" + ")" * 2000, "too much within itself"),
        ("alias a=b; alias b=a\na", "there is no command"),
        ("break", "there is nothing here to leave"),
        ("set -q", "set has no switch 'q'"),
        ("fg", "there is no job"),
        ("fg %x", "a job is %1, %2"),
        ("unalias nothing", "there is no alias 'nothing'"),
        ("shift 3", "there are 0 arguments, found 3"),
        ("say nobody", "say needs TEXT"),
        ("cat <<END\nx", "is not closed"),
        ("cat", "cat needs PID, or input"),
        ("cat -f ./a ./b", "are for one process"),
        ("echo `date`", "a backquote runs no command here: write $(COMMAND)"),
        ("read; false", "read wants PID FROM N, or NAMES and an input"),
        ("read 1x < /etc/passwd", "no process is called '1x'"),
        ("read -r 1x < /etc/passwd", "a variable is letters, digits and `_`, found '1x'"),
        ("local x=1", "only a function has variables of its own"),
        ("trap 'echo x' TERM", "trap takes EXIT and INT, found 'TERM'"),
        ("case x in a) echo", "the line is not whole"),
        ("case x of a) ;; esac", "case needs `in` behind its word"),
        ("case x in a b) ;; esac", "a pattern of case ends with `)`"),
        ("case x in ;; esac", "a pattern of case is wanted"),
        ("echo x 3> f", "no descriptors but 0, 1 and 2"),
        ("echo ${x%a b}", "a pattern with ' ' in it is quoted"),
        ("echo $((x++))", "wants a sum of whole numbers: numbers, variables"),
        ("!!", "Up and Ctrl-R find earlier lines"),
        ("[[ a ]]", "is bash's own"),
        ("type no-such-thing", "there is nothing called 'no-such-thing'"),
        ("echo a > /nowhere/x", "there is no directory '/nowhere'"),
        ("echo a;; echo b", "';;' has no place there"),
        ("!no-such-program", "there is no program 'no-such-program' on PATH"),
    ],
)
def test_a_wrong_line_says_what_is_wrong(where: Path, tmp_path: Path, line: str, said: str) -> None:
    ran = shell(where, tmp_path, typed=line)
    assert ran.returncode == 1
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr


# --- where completion is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("", Place("word", "")),
        ("ps | gr", Place("word", "gr", written="gr")),
        ("for x in a; do ki", Place("word", "ki", written="ki")),
        ("if ps; then say al", Place("word", "al", ["say"], written="al")),
        ("say alice what is", Place("text", "what is", ["say", "alice"])),
        ("say alice --m", Place("word", "--m", ["say", "alice"], written="--m")),
        ("spawn x --model 'my mo", Place("word", "my mo", ["spawn", "x", "--model"], written="'my mo")),
        ("echo hi > out", Place("file", "out")),
        ("x=$(ps al", Place("word", "al", ["ps"], written="al")),
        ("!ls fi", Place("word", "fi", ["ls"], host=True, written="fi")),
        ("ps # a comment al", None),
    ],
)
def test_the_place_of_the_cursor_is_known(line: str, found: Place | None) -> None:
    assert place(line, COMMANDS, {}) == found
