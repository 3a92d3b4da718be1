"""Verbs of the command line: every command of the shell is one, by the same code. Also the manual, the pager, and what
happens to people who interrupt, and to output that nobody takes."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmasos.__main__ import _parser
from llmasos.syscalls import blocking
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Signal, State
from llmasos.syscalls.table import BY_NAME, Getinfo, GroupStat, Kill, Ps, Spawn, Wait
from llmasos.userland.shell import man, oneshot
from llmasos.userland.shell.grammar import Line, UsageError, parse
from llmasos.userland.shell.words import COMMANDS, EXAMPLES, GROUPS, OWN, SHELL_ONLY
from tests.booted import eventually
from tests.userland.command_line import DEADLINE, llmasos, on_terminal
from tests.userland.prompt import WIDTHS
from tests.userland.terminal import CTRL_C, Terminal

SIM = "sim:context=256,vocab=100"


# --- words ----------------------------------------------------------------------------------------------------------


def read(text: str) -> Line:
    name, *words = shlex.split(text)
    return oneshot.read(COMMANDS[name], words)


def test_every_command_is_a_verb_unless_it_is_about_a_shell() -> None:
    assert set(oneshot.VERBS) == set(COMMANDS) - SHELL_ONLY
    assert {name for _, names in GROUPS for name in names} == set(COMMANDS)


@pytest.mark.parametrize(
    ("line", "values", "words"),
    [
        ("kill -9 alice", {"SIGNAL": "9"}, ["alice"]),
        ("kill alice", {}, ["alice"]),
        ("nice alice -5", {"PID": "alice", "VALUE": "-5"}, []),
        ("say bob what\\'s new?", {"PID": "bob", "TEXT": "what's new?"}, []),
        ("say bob --max 3 hello there", {"PID": "bob", "--max": "3", "TEXT": "hello there"}, []),
        ("say bob hello --max 3", {"PID": "bob", "--max": "3", "TEXT": "hello"}, []),
        ("say bob 'My name is Ann' --json", {"PID": "bob", "--json": "", "TEXT": "My name is Ann"}, []),
        ("spawn jk well --nice 5 hello", {"NAME": "jk", "--nice": "5", "TEXT": "well hello"}, []),
        ("say bob -5 '- no list' --- ok", {"PID": "bob", "TEXT": "-5 - no list --- ok"}, []),
        ("say bob hello -- --json", {"PID": "bob", "TEXT": "hello --json"}, []),
        ("say bob -- --max 3", {"PID": "bob", "TEXT": "--max 3"}, []),
        ("say bob 'a  b' c", {"PID": "bob", "TEXT": "a  b c"}, []),
        ("spawn a --system 'Be brief.' --seed=3", {"NAME": "a", "--system": "Be brief.", "--seed": "3"}, []),
        ("ps --sort -TIME --runtime /x", {"--sort": "-TIME", "--runtime": "/x"}, []),
        ("group /a kv_max=1 --remove", {"PATH": "/a", "--remove": ""}, ["kv_max=1"]),
        ("run a.py --flag -x 1", {"FILE": "a.py"}, ["--flag", "-x", "1"]),
        ("models rm a b --yes", {"ACTION": "rm", "--yes": ""}, ["a", "b"]),
    ],
)
def test_separate_words_are_read_by_the_form_of_the_command(line: str, values: dict[str, str], words: list[str]) -> None:
    found = read(line)
    assert (found.values, found.words) == (values, words)


@pytest.mark.parametrize(
    "line",
    ["kill", "cat -x 4", "ps a b", "fork 3 two", "ps -o", "ps --wide=1", "join 3", "say 3 hi --jsno", "spawn a hi -j"],
)
def test_words_of_no_form_are_refused(line: str) -> None:
    with pytest.raises(UsageError):
        read(line)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_is_a_line_of_its_command(name: str) -> None:
    for text, meaning in EXAMPLES[name]:
        line = parse(text, COMMANDS)
        assert line is not None
        assert line.command.name == name
        assert meaning
        if "'" not in text:
            assert oneshot.read(COMMANDS[name], shlex.split(text)[1:]).values == line.values


def test_the_shell_refuses_an_unknown_option_as_the_command_line_does() -> None:
    with pytest.raises(UsageError, match=r"cat has no option -x; its options: -f, --raw"):
        parse("cat -x 4", COMMANDS)
    line = parse("nice 3 -5", COMMANDS)
    assert line is not None
    assert line.text("VALUE") == "-5"


def test_the_action_of_each_verb_is_where_it_is_looked_for() -> None:
    from llmasos.userland.shell.main import DO

    for name, module in oneshot._HOMES.items():
        assert DO[name].__module__ == f"llmasos.userland.shell.{module}"


def test_a_verb_that_looks_imports_no_sdk(where: Path) -> None:
    code = (
        "import sys\nfrom llmasos.__main__ import main\nmain(['ps'])\n"
        "print([name for name in sys.modules if name.startswith(('llmasos.userland.sdk.', 'jinja2', 'rich', 'prompt_'))])"
    )
    environment = {**os.environ, "LLMASOS_RUNTIME": str(where)}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=DEADLINE, check=True
    )
    assert ended.stdout.splitlines()[-1] == "[]"


# --- verbs ----------------------------------------------------------------------------------------------------------


def test_verbs_control_a_process_by_name_as_the_shell_does(where: Path, kernel: blocking.Client, agent: int) -> None:
    for words, holds in (
        (("stop", "sleeper"), lambda row: row.state is State.STOPPED),
        (("cont", "sleeper"), lambda row: row.state is State.BLOCKED),
        (("nice", "sleeper", "-5"), lambda row: row.nice == -5),
        (("realtime", "sleeper"), lambda row: (row.sched_class, row.budget, row.period) == ("realtime", 0.01, 0.1)),
        (("realtime", "sleeper", "--budget", "0.3", "--period", "1"), lambda row: (row.budget, row.period) == (0.3, 1)),
        (("realtime", "sleeper", "--off"), lambda row: (row.sched_class, row.budget) == ("fair", 0)),
        (("limits", "sleeper", "--tokens", "9"), lambda row: row.limits.tokens == 9),
        (("rename", "sleeper", "dreamer"), lambda row: row.name == "dreamer"),
        (("disown", "dreamer"), lambda row: row.ppid == 1),
    ):
        ended = llmasos(where, *words)
        assert (ended.returncode, ended.stderr) == (0, ""), words
        eventually(lambda holds=holds: holds(kernel(Getinfo(agent))), " ".join(words))  # type: ignore[misc]
    assert llmasos(where, "kill", "-KILL", "dreamer").returncode == 0
    eventually(lambda: kernel(Getinfo(agent)).state is State.ZOMBIE, "it has ended; its status is kept for who waits")


def test_what_a_verb_starts_outlives_it(where: Path, kernel: blocking.Client, agent: int, tmp_path: Path) -> None:
    image = tmp_path / "image"
    started = (
        ("spawn", "worker", "--model", SIM),
        ("fork", "sleeper", "2", "--name", "twin"),
        ("checkpoint", "sleeper", str(image)),
        ("restore", str(image), "again"),
    )
    for words in started:
        ended = llmasos(where, *words)
        assert (ended.returncode, ended.stderr) == (0, ""), words
    rows = {row.name: row for row in kernel(Ps())}
    for name in ("worker", "twin-1", "twin-2", "again"):
        assert rows[name].ppid == 1
        kernel(Kill(rows[name].pid))
    (copy,) = json.loads(llmasos(where, "fork", "sleeper", "--json").stdout)
    assert (copy["name"], copy["ppid"], copy["length"]) == ("sleeper", 1, 40)
    kernel(Kill(copy["pid"]))


def test_what_verbs_do_is_told_as_json(where: Path, kernel: blocking.Client, tmp_path: Path) -> None:
    def told(*words: str) -> Any:
        ended = llmasos(where, *words, "--json")
        assert (ended.returncode, ended.stderr) == (0, ""), words
        return json.loads(ended.stdout)

    spawned = told("spawn", "teller", "--model", "sim")
    assert (spawned["name"], spawned["ppid"], spawned["kind"]) == ("teller", 1, "llm")
    answer = json.loads(llmasos(where, "say", "--json", "--max", "4", "teller", "hello", "there").stdout)
    assert (answer["pid"], answer["finish"]) == (spawned["pid"], "length")
    turns = told("cat", "teller")
    assert [(turn["who"], turn["text"]) for turn in turns] == [
        ("you", "hello there"),
        ("teller", answer["text"].strip()),
    ]
    log = told("read", "teller", "0", "3")
    assert (len(log["tokens"]), log["length"]) == (3, kernel(Getinfo(spawned["pid"])).length)
    assert told("wait", "teller")["decoding"] is False
    image = told("checkpoint", "teller", str(tmp_path / "image"))
    assert (image["tokens"], image["path"]) == (log["length"], str(tmp_path / "image"))
    assert told("restore", str(tmp_path / "image"), "second")["length"] == log["length"]
    assert told("pagein", "sim")["state"] == "resident"
    assert told("models", "--estimate", "sim")["weight_bytes"] > 0
    for name in ("teller", "second"):
        assert llmasos(where, "kill", name).returncode == 0
    ended = told("wait", "teller")
    assert (ended["status"], ended["state"]) == (143, "zombie")


def test_the_shell_names_and_disowns_forks_too(where: Path, kernel: blocking.Client, agent: int) -> None:
    typed = "fork sleeper --name heir\nrename heir king\ndisown king\nfork sleeper --name lost\n"
    ended = llmasos(where, "shell", typed=typed)
    assert (ended.returncode, ended.stderr) == (0, "")
    names = {row.name: row for row in kernel(Ps())}
    assert "lost" not in names, "it ended with the shell"
    assert names["king"].ppid == 1
    kernel(Kill(names["king"].pid))
    for name in ("7", "-x", '""'):
        refused = llmasos(where, "shell", typed=f"rename sleeper {name}\n")
        assert refused.stderr.startswith("EINVAL: "), name


@pytest.mark.parametrize(
    ("line", "status", "errno"),
    [
        ("kill 999999", 1, "ESRCH"),
        ("group foo", 1, "ENOENT"),
        ("cat 1", 2, "EINVAL"),
        ("kill -HUP 3", 2, "EINVAL"),
        ("strace all --count 0", 2, "EINVAL"),
        ("top --seconds nan", 2, "EINVAL"),
        ("wait 1", 2, "EINVAL"),
        ("models fly", 2, "EINVAL"),
        ("spawn --nice 99 x", 2, "EINVAL"),
        ("ps -o FOO", 2, "EINVAL"),
        ("ps --sort FOO", 2, "EINVAL"),
        ("group g foo=1", 2, "EINVAL"),
        ("advise sim foo", 2, "EINVAL"),
        ("read 1 -1", 2, "EINVAL"),
        ("evict nothing", 1, "ENOENT"),
        ("run nothing.py", 1, "ENOENT"),
        ("man nothing", 1, "ENOENT"),
    ],
)
def test_the_status_says_whether_the_words_or_the_system_refused(where: Path, line: str, status: int, errno: str) -> None:
    ended = llmasos(where, *line.split())
    assert ended.returncode == status
    assert ended.stdout == ""
    assert ended.stderr.startswith(f"llmasos: {errno}: ")
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("kill 1", "`halt` ends the system"),
        ("cat 1", "process 1 is init, the kernel itself, not an LLM process"),
        ("wait 1", "process 1 is init, the kernel itself, which ends with `halt` only"),
        ("wait sim0", "is the driver of sim0, which ends with `halt` only"),
        ("group /foo", "there is no group '/foo'; `groups` lists those that there are, and `group /foo kv_max=64MiB`"),
        ("cat -x 4", "there is no option -x; there are: -f, --raw"),
    ],
)
def test_refusals_say_what_is_true(where: Path, line: str, said: str) -> None:
    assert said in llmasos(where, *line.split()).stderr


def test_a_group_that_a_verb_makes_outlives_it(where: Path, kernel: blocking.Client, agent: int) -> None:
    home = kernel(Getinfo()).group.rpartition("/")[0]
    made = llmasos(where, "group", "guests", "kv_max=64MiB")
    assert (made.returncode, made.stderr) == (0, "")
    assert re.search(rf"group +{home}/guests\n", made.stdout)
    (found,) = kernel(GroupStat(f"{home}/guests"))
    assert found.settings.kv_max == 64 << 20
    assert llmasos(where, "join", "sleeper", "guests").returncode == 0
    assert kernel(Getinfo(agent)).group == f"{home}/guests"
    spawned = llmasos(where, "spawn", "guest", "--model", SIM, "--group", "guests", "--json")
    assert json.loads(spawned.stdout)["group"] == f"{home}/guests"
    assert "guests" in llmasos(where, "groups", "guests").stdout
    for pid in (agent, json.loads(spawned.stdout)["pid"]):
        kernel(Kill(pid, Signal.KILL))
        kernel(Wait(pid))
    assert llmasos(where, "group", "guests", "--remove").returncode == 0
    with pytest.raises(SyscallError, match="ENOENT"):
        kernel(GroupStat(f"{home}/guests"))


def test_spawn_prints_the_pid_and_a_hint_that_can_be_typed(where: Path, kernel: blocking.Client) -> None:
    for name, typed in (("teller2", "teller2"), ("two words", "'two words'"), ("it's", None), (";", "';'"), ("  ", None)):
        ended = llmasos(where, "spawn", name, "--model", SIM)
        assert (ended.returncode, ended.stderr) == (0, "")
        found = re.fullmatch(r"\[(\d+)\] .* on .*: `say (.*) \.\.\.` talks to it\n", ended.stdout)
        assert found is not None
        assert found[2] == (typed or found[1])
        line = parse(f"say {found[2]} hello", COMMANDS)
        assert line is not None
        assert line.text("PID") in (name, found[1])
        kernel(Kill(int(found[1]), Signal.KILL))
        kernel(Wait(int(found[1])))


def test_a_devices_name_means_its_driver_unless_an_agent_is_wanted(where: Path, kernel: blocking.Client) -> None:
    pid = kernel(Spawn(model=SIM, tokens=[1, 2], name="sim0"))
    eventually(lambda: kernel(Getinfo(pid)).state is State.BLOCKED, "it waits for input")
    assert json.loads(llmasos(where, "ps", "sim0", "--json").stdout)["kind"] == "driver"
    assert json.loads(llmasos(where, "read", "sim0", "--json").stdout)["length"] == 2
    assert llmasos(where, "limits", "sim0", "--tokens", "7").returncode == 0
    assert kernel(Getinfo(pid)).limits.tokens == 7
    old = next(row.os_pid for row in kernel(Ps()) if row.name == "driver:sim0")
    assert llmasos(where, "kill", "-KILL", "sim0").returncode == 0
    eventually(
        lambda: any(row.name == "driver:sim0" and row.os_pid not in (0, old) for row in kernel(Ps())),
        "the driver is another one",
    )
    assert kernel(Getinfo(pid)).state is not State.ZOMBIE
    kernel(Kill(pid, Signal.KILL))
    kernel(Wait(pid))


def test_ps_leaves_out_agents_that_have_exited_and_says_so(where: Path, kernel: blocking.Client) -> None:
    assert llmasos(where, "spawn", "leaver", "--model", SIM).returncode == 0
    pid = next(row.pid for row in kernel(Ps()) if row.name == "leaver")
    assert "leaver" in llmasos(where, "ps").stdout
    kernel(Kill(pid, Signal.KILL))
    eventually(lambda: kernel(Getinfo(pid)).state is State.ZOMBIE, "it has exited")
    left = sum(row.state is State.ZOMBIE and row.ppid == 1 for row in kernel(Ps()))
    usual = llmasos(where, "ps")
    assert (usual.returncode, "leaver" in usual.stdout) == (0, False)
    assert re.search(rf"^{left} exited agents? not shown: `wait NAME` tells how; `ps --all` shows", usual.stderr)
    for words in (("ps", "--all"), ("ps", "--json"), ("ps", str(pid))):
        shown = llmasos(where, *words)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert "leaver" in shown.stdout, words
    typed = llmasos(where, "shell", "-c", "ps")
    assert "leaver" not in typed.stdout
    assert f"{left} exited agent" in typed.stdout + typed.stderr
    assert "exited with 137" in llmasos(where, "wait", "leaver").stdout
    assert "leaver" not in llmasos(where, "ps", "--all").stdout


@pytest.mark.parametrize("line", ["ps -o FOO", "group g foo=1", "read 1 -1", "kill 999999", "kill -HUP 3", "cat 1"])
def test_the_shell_has_the_same_statuses(where: Path, line: str) -> None:
    assert llmasos(where, "shell", "-c", line).returncode == llmasos(where, *line.split()).returncode


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("frob", "no verb 'frob'; `llmasos --help` lists them"),
        ("spwan", "no verb 'spwan'; did you mean 'spawn'?"),
        ("docter", "no verb 'docter'; did you mean 'doctor'?"),
        ("jobs", "'jobs' is a command of the shell only"),
        ("echo", "'echo' is a command of the shell only"),
    ],
)
def test_a_verb_that_there_is_not_is_one_line(where: Path, name: str, said: str) -> None:
    ended = llmasos(where, name, "hi")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"llmasos: EINVAL: {said}")
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["kil", "kll", "hlat", "halts", "evit"])
def test_what_destroys_is_never_proposed(where: Path, name: str) -> None:
    for words in ((name,), ("shell", "-c", name)):
        said = llmasos(where, *words).stderr
        assert "EINVAL: " in said
        assert not re.search("kill|halt'|evict", said), words


def test_limits_without_effect_are_said(where: Path, agent: int) -> None:
    said = llmasos(where, "limits", "sleeper", "--context", "5").stdout
    assert "its log has 40 tokens already: they stay, and it takes no more" in said
    said = llmasos(where, "limits", "sleeper", "--context", "5000").stdout
    assert "its model's window is 256 tokens, and bounds its context before --context 5000" in said
    found = json.loads(llmasos(where, "limits", "sleeper", "--context", "100", "--json").stdout)
    assert found == {"context": 100, "tokens": 0, "pages": 0, "notes": []}


def test_a_text_that_is_not_there_is_read_from_a_pipe(where: Path) -> None:
    assert llmasos(where, "spawn", "reader", "--model", "sim").returncode == 0
    ended = llmasos(where, "say", "reader", "--max", "2", typed="words from\na pipe\n")
    assert ended.returncode == 0
    assert len(ended.stdout.split()) == 2, "the bare answer"
    assert "as many tokens as it was allowed" in ended.stderr
    assert json.loads(llmasos(where, "cat", "reader", "--json").stdout)[0]["text"] == "words from\na pipe"
    assert llmasos(where, "kill", "reader").returncode == 0


# --- the manual -----------------------------------------------------------------------------------------------------


@WIDTHS
@pytest.mark.parametrize("topic", ["fork", "setsched", "EBUSY", ""])
def test_the_manual_fits_the_terminal(where: Path, topic: str, columns: int) -> None:
    words = ["man", *([topic] if topic else [])]
    lines, status = on_terminal(where, columns, *words)
    assert status == 0
    assert all(len(line) <= columns for line in lines)
    whole = llmasos(where, *words).stdout
    assert " ".join(lines).split() == whole.split()


def test_man_shows_a_command_a_call_and_an_error(tmp_path: Path) -> None:
    fork = llmasos(tmp_path, "man", "fork").stdout
    assert "llmasos fork [--name NAME] [--detach] [--json] PID [N]" in " ".join(fork.split())
    assert "--name NAME" in fork
    assert "SYSTEM CALL fork" in fork
    assert re.search(r"count: int = 1, same_seed: bool = False", " ".join(fork.split()))
    assert "pagein" in llmasos(tmp_path, "man", "ENOEXEC").stdout
    near = llmasos(tmp_path, "man", "frok")
    assert near.returncode == 1
    assert "did you mean fork" in near.stderr


def test_every_topic_has_a_page() -> None:
    for topic in man.topics():
        assert len(man.page(topic)) > 1, topic
    assert set(man.topics()) == {*COMMANDS, *OWN, *BY_NAME, *(one.name for one in Errno if one is not Errno.OK)}
    assert set(_parser()[1]) <= set(man.topics()), "each verb has a page"


@pytest.mark.parametrize("verb", ["kill", "spawn", "ps", "run", "man"])
def test_help_of_a_verb_is_its_page(tmp_path: Path, verb: str) -> None:
    ended = llmasos(tmp_path, verb, "--help")
    assert ended.returncode == 0
    assert f"llmasos {verb}" in ended.stdout
    for option in COMMANDS[verb].options:
        assert option.flag in ended.stdout


def test_a_long_page_goes_through_the_pager_and_a_short_one_does_not(tmp_path: Path) -> None:
    pager = tmp_path / "pager"
    pager.write_text("#!/bin/sh\necho PAGED\ncat\necho ENDED\n")
    pager.chmod(0o755)
    command = [sys.executable, "-m", "llmasos", "man", "spawn"]
    for lines, paged in ((10, True), (200, False)):
        with Terminal(command, {"PAGER": str(pager)}, rows=lines) as terminal:
            assert terminal.wait() == 0
            assert ("PAGED" in terminal.screen) == paged
            assert "USAGE" in terminal.screen
    with Terminal(command, {"PAGER": str(tmp_path / "none")}, rows=10) as terminal:
        assert terminal.wait() == 0
        assert "USAGE" in terminal.screen


def test_the_pager_works_inside_the_shell_and_may_be_left_early(where: Path, tmp_path: Path) -> None:
    environment = {
        "LLMASOS_RUNTIME": str(where),
        "XDG_STATE_HOME": str(tmp_path),
        "PAGER": "head -n 3",
    }
    with Terminal([sys.executable, "-m", "llmasos", "shell"], environment, rows=12) as terminal:
        terminal.expect("llmasos>")
        terminal.enter("man fork")
        terminal.expect("fork: copy a process")
        terminal.enter("uptime")
        terminal.expect(r"up \d")
        assert "SYSTEM CALL" not in terminal.screen
        terminal.enter("exit")
        assert terminal.wait() == 0


# --- interruptions and outputs ----------------------------------------------------------------------------------------

SLOW = "import sys, time\nprint('IMPORTING', flush=True)\ntime.sleep(100)\n"


@pytest.mark.parametrize(("verb", "module"), [("boot --device sim", "trio"), ("ps", "zmq"), ("ps", "argparse")])
def test_ctrl_c_while_modules_are_imported_is_one_line(tmp_path: Path, verb: str, module: str) -> None:
    (tmp_path / f"{module}.py").write_text(SLOW)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ""), str(Path(__file__).resolve().parents[2])])
    environment = {"PYTHONPATH": path, "LLMASOS_RUNTIME": str(tmp_path / "r")}
    with Terminal([sys.executable, "-m", "llmasos", *verb.split()], environment) as terminal:
        terminal.expect("IMPORTING")
        terminal.type(CTRL_C)
        assert terminal.wait() == 130
        assert "Traceback" not in terminal.screen
        assert re.search(r"llmasos( boot)?: interrupted\n", terminal.screen)


def test_ctrl_c_ends_what_goes_on_with_130(where: Path) -> None:
    with Terminal([sys.executable, "-m", "llmasos", "dmesg", "-f"], {"LLMASOS_RUNTIME": str(where)}) as terminal:
        terminal.expect("boots")
        terminal.type(CTRL_C)
        assert terminal.wait() == 130
        assert "Traceback" not in terminal.screen


@pytest.mark.parametrize("verb", ["ps", "ps --json", "man fork", "--help", "completion bash", "models ls", "--version"])
def test_a_full_disk_behind_the_output_is_one_line(where: Path, verb: str, tmp_path: Path) -> None:
    ended = onto(where, verb, Path("/dev/full"))
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert "No space left on device" in ended.stderr


def onto(where: Path, verb: str, file: Path) -> subprocess.CompletedProcess[str]:
    with file.open("w") as out:
        return subprocess.run(
            [sys.executable, "-m", "llmasos", *verb.split()],
            stdout=out,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LLMASOS_RUNTIME": str(where)},
            text=True,
            timeout=DEADLINE,
            check=False,
        )


@pytest.mark.parametrize("closing", ["| true", ">&-", "| head -n 1"])
def test_a_reader_that_has_gone_is_no_error(where: Path, closing: str) -> None:
    line = f"{shlex.quote(sys.executable)} -m llmasos man spawn {closing}"
    environment = {**os.environ, "LLMASOS_RUNTIME": str(where)}
    ended = subprocess.run(
        ["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert ended.stderr == ""
