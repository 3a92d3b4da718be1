"""The shell's language, beside bash: both run the same scripts, and print and return the same.

What a command of this system does is tested elsewhere; here are words, pipes, redirections, flow and statuses.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmasos.userland.programs.boot import private_kernel
from llmasos.userland.programs.screen import Screen
from llmasos.userland.sdk.system import System
from llmasos.userland.shell.main import Session
from llmasos.userland.shell.script import run_lines

BASH = shutil.which("bash")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    place = tmp_path_factory.mktemp("k")
    with private_kernel(place, ["--device", "sim"]), System.connect(place, name="test") as connected:
        yield connected


class Ran:
    """A script that has run: what it printed and returned."""

    def __init__(self, system: System, script: str, place: Path, *arguments: str) -> None:
        with (place / "out").open("w+") as out, (place / "err").open("w+") as err:
            shell = Session(system, Screen(out, err), lambda _: "", interactive=False)
            shell.variables.arguments = list(arguments)
            status = run_lines(shell, script.splitlines(), leaves=True)
            self.status = shell.status if shell.status is not None else status
        self.out = (place / "out").read_text()
        self.err = (place / "err").read_text()


SCRIPTS = {
    "words": "echo a 'b  c' \"d  e\" f\\ g   h",
    "empty words": "echo '' x \"\"; echo $nothing y \"$nothing\" z",
    "variables": 'x=1; y="$x 2"; echo $y "$y" ${x}0 \'$x\' "\\$x"',
    "splitting": 'x="a  b   c"; echo $x; echo "$x"; for w in $x; do echo "<$w>"; done',
    "defaults": 'echo ${a:-none} ${a-none}; a=; echo "${a:-empty}" "${a-set}" "${a:+x}" "${a+y}"',
    "parameters": 'echo $# $1 "$2" $3; for p; do echo "[$p]"; done; for p in "$@"; do echo "<$p>"; done; shift; echo $1 "$*"',
    "set": "set -- p 'q r'; echo $# $2; shift 2; echo $#",
    "status": "true; echo $?; false; echo $?; sh -c 'exit 7'; echo $?; ! true; echo $?; ! false; echo $?",
    "lists": "true && echo a || echo b; false && echo c || echo d; false || false || echo e; true && true && echo f",
    "precedence": "false && echo a; echo b & wait; true || echo c && echo d",
    "pipes": "printf 'c\\na\\nb\\n' | sort | head -n 2 | tr a-z A-Z",
    "status of a pipe": "false | true; echo $?; true | false; echo $?",
    "pipefail": "set -o pipefail; false | true; echo $?; sh -c 'exit 3' | sh -c 'exit 4' | true; echo $?; set +o pipefail; false | true; echo $?",
    "a pipe is a subshell": 'x=1; echo 5 | { read_it=2; x=$read_it; }; echo $x; { x=3; echo; } > /dev/null; echo $x',
    "redirections": "echo one > f; echo two >> f; cat ./f; sort -r < f; { echo a; echo b; } > g; cat ./g; : > f; wc -c < f",
    "errors": "sh -c 'echo out; echo err >&2' 2> e; echo -- ; cat ./e; sh -c 'echo err >&2' > both 2>&1; cat ./both; sh -c 'echo x >&2' &> all; cat ./all",
    "here strings": "tr a-z A-Z <<< 'some text'; x=words; tr a-z A-Z <<< \"more $x\"",
    "here texts": "x=7\nsort <<END | tr b B\nb $x\na '$x' \"q\"\nEND\ncat ./notes 2> /dev/null || sort <<'END'\nnot $x\nEND\necho after",
    "if": "if true; then echo a; fi; if false; then echo b; elif true; then echo c; else echo d; fi; if false; then :; else echo e; fi; echo $?",
    "if without": "false; if false; then echo a; fi; echo $?",
    "tests": "x=3; if [ $x = 3 ]; then echo three; fi; [ -f /nowhere ] || echo no; test 2 -gt 1 && echo yes",
    "for": "for a in 1 2 3; do for b in x y; do echo $a$b; done; done | tr '\\n' ' '; echo $a",
    "while": "i=0; while [ $i -lt 3 ]; do echo $i; i=$((i+1)); done; until [ $i = 0 ]; do i=$((i-1)); done; echo $i",
    "break": "for i in 1 2 3 4; do if [ $i = 2 ]; then continue; fi; if [ $i = 4 ]; then break; fi; echo $i; done; for i in 1 2; do for j in 1 2; do echo $i$j; break 2; done; done",
    "functions": 'f() { echo "f: $1 of $#"; return 5; }; f a b; echo $?; g() { f x | tr a-z A-Z; }; g; f() { echo other; }; f',
    "functions recur": 'down() { echo $1; if [ $1 -gt 0 ]; then down $(($1-1)); fi; }; down 3',
    "substitution": 'x=$(echo a; echo b); echo "$x" $x; echo "$(echo "in $(echo in)")"; y=$(false); echo $?; echo $(printf \'q\\n\\n\') end',
    "substitution is a subshell": "x=1; y=$(x=2; echo $x); echo $x $y; z=$(exit 4); echo $?",
    "sums": "x=6; echo $((x*7)) $((1+2*3-4)) $(( (1+2)*3 )) $((7/2)) $((-7/2)) $((7%3)) $((-7%3)) $((x>5)) $(($x == 6)) $((unset_name))",
    "subshells": "x=1; (x=2; echo $x); echo $x; (exit 3); echo $?",
    "groups": "{ echo a; echo b; } | sort -r; if { true; false; }; then echo yes; else echo no; fi",
    "comments": "echo a # b\n# c\necho d#e '#f'\n\n\necho g",
    "lines that go on": "echo a \\\n  b\necho c |\n  tr c d\ntrue &&\n\n  echo e\nfor x in 1 2\ndo\n  echo $x\ndone",
    "quotes over lines": "echo 'a\nb' \"c\nd\"",
    "patterns of files": "echo 1 > a.txt; echo 2 > b.txt; sh -c 'echo $#' sh *.txt; for f in *.txt; do echo $f; done; ls '*.txt' 2> /dev/null; echo none*",
    "exit": "echo a; exit 3; echo b",
    "errexit": "set -e; false || echo a; if false; then :; fi; ! true; false && true; echo b; false; echo c",
    "errexit in a function": "set -e; f() { false; echo inside; }; f || echo handled; f; echo after",
    "environment": "x=1 sh -c 'echo $x'; echo ${x:-unset}; export y=2; sh -c 'echo $y'; z=3; sh -c 'echo ${z:-unset}'; export z; sh -c 'echo $z'",
    "unset": "x=1; unset x; echo ${x-gone}; f() { echo f; }; unset f",
    "a program that is not there": "no-such-program 2> /dev/null; echo $?",
    "a file that is not there": "sort < /nowhere/x 2> /dev/null; echo $?; echo still",
    "a writer whose reader has gone": "yes | head -n 1; echo $?; set -o pipefail; yes | head -n 1; echo $?",
    "$! and $$": "sleep 0 & [ -n \"$!\" ] && echo some; [ $$ -gt 1 ] && echo pid",
    "tilde": "echo ~ ~/x '~' a~",
    "return in a file": "echo a\nreturn 4\necho b",
    "quotes within words": "x=\"a b\"c; echo $x\"d e\"f 'g'\"h\"",
    "pipes into loops": 'printf \'1\\n2\\n\' | for x in a b; do echo $x; done; for x in a b; do echo $x; done > f; cat ./f',
    "and in the background": "{ echo a; } > f & wait; cat ./f",
}  # fmt: skip


@pytest.mark.skipif(BASH is None, reason="there is no bash to compare with")
@pytest.mark.processes
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_does_what_it_does_in_bash(
    name: str, system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = SCRIPTS[name].replace(": >", "printf '' >").replace("then :;", "then true;")
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for place in (ours, theirs):
        (place / "run").mkdir(parents=True)
    assert BASH is not None
    (theirs / "script").write_text(f"set +m\n{script}\n" if "return" not in name else script)
    command = [BASH, str(theirs / "script"), "p1", "p  2", "p3"]
    if name == "return in a file":
        command = [BASH, "-c", f'. "{theirs}/script"']
    expected = subprocess.run(
        command, cwd=theirs / "run", capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60, check=False
    )
    monkeypatch.chdir(ours / "run")
    ran = Ran(system, script, ours, "p1", "p  2", "p3")
    assert (ran.out, ran.status) == (expected.stdout, expected.returncode), ran.err
