"""The command line, as a person or a script meets it: each test runs `llmasos` as a process of its own.

The kernel here has a simulated device, which needs no torch; what is said in words is tested in test_shell_talk.py.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from llmasos.syscalls import blocking, runtime
from llmasos.syscalls.records import Signal
from llmasos.syscalls.table import Getinfo, Kill, Ps
from llmasos.userland.programs.boot import private_kernel
from llmasos.userland.sdk.system import System
from tests.userland.command_line import DEADLINE, llmasos

SIM = "sim:context=256,vocab=100"


# --- before the verb --------------------------------------------------------------------------------------------------


@pytest.mark.processes
@pytest.mark.parametrize("line", ["--private shell", "shell --private", "--runtime={} --private shell"])
def test_a_private_shell_is_private_wherever_that_is_said(where: Path, line: str) -> None:
    ended = llmasos(where, *line.format(where).split(), "-c", "ps")
    assert (ended.returncode, ended.stdout) == (1, ""), "it does not come to the kernel that runs"
    assert "a private one wants a place of its own" in ended.stderr


def test_only_a_shell_is_private(where: Path) -> None:
    for verb in ("ps", "status", "frob"):
        ended = llmasos(where, "--private", verb)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert ended.stderr.startswith("llmasos: EINVAL: --private is for a shell"), verb
        assert len(ended.stderr.splitlines()) == 1


# --- without a kernel -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["ps", "top", "models", "dmesg", "halt", "strace all"])
def test_without_a_kernel_a_verb_says_how_to_boot_one(tmp_path: Path, verb: str) -> None:
    ended = llmasos(tmp_path, *verb.split(), typed="")
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith("llmasos: ECONNREFUSED: ")
    assert str(tmp_path) in ended.stderr
    assert "llmasos boot" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_without_a_kernel_a_program_is_not_started(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("print('started')")
    ended = llmasos(tmp_path, "run", str(program))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "ECONNREFUSED" in ended.stderr


def test_the_version_needs_no_kernel(tmp_path: Path) -> None:
    ended = llmasos(tmp_path, "--version")
    assert ended.returncode == 0
    assert re.fullmatch(r"llmasos \d+\.\d+\.\d+\S*\n", ended.stdout)


@pytest.mark.parametrize(
    "line",
    [
        "ps --colour", "ps one two", "kill", "nice 3", "nice 3 much", "fork", "strace all --count",
        "cat -x 4", "spawn", "top --seconds=a", "completion csh",
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_status_2_and_shows_the_usage(tmp_path: Path, line: str) -> None:
    ended = llmasos(tmp_path, *line.split())
    assert ended.returncode == 2
    assert "usage: llmasos" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_verbs_import_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, llmasos.__main__, userland.shell.main\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE, check=True)
    assert ended.stdout == "[]\n"


# --- looking --------------------------------------------------------------------------------------------------------


def test_ps_lists_every_process_in_plain_columns(where: Path, agent: int) -> None:
    ended = llmasos(where, "ps")
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[0].split()[:4] == ["PID", "PPID", "KIND", "STATE"]
    rows = {line.split()[0]: line for line in lines[1:]}
    assert "sleeper" in rows[str(agent)]
    assert "llm" in rows[str(agent)]
    assert "\x1b" not in ended.stdout
    assert {"init", "driver", "program", "llm"} == {line.split()[2] for line in lines[1:]}


def test_ps_of_one_process_tells_everything_of_it(where: Path, agent: int) -> None:
    ended = llmasos(where, "ps", str(agent))
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"context +40 of 256 tokens", ended.stdout)
    assert re.search(r"name +sleeper", ended.stdout)


@pytest.mark.parametrize(("pid", "errno"), [("999999", "ESRCH"), ("0", "EINVAL")])
def test_a_pid_that_never_was_is_refused_in_one_line(where: Path, pid: str, errno: str) -> None:
    for verb in ("ps", "strace"):
        ended = llmasos(where, verb, pid)
        assert ended.returncode == (1 if errno == "ESRCH" else 2)
        assert re.fullmatch(rf"llmasos: {errno}: .*\n", ended.stderr)


def test_top_prints_one_look_without_a_terminal(where: Path, agent: int) -> None:
    ended = llmasos(where, "top", "--seconds", "0.2")
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"sim0 +busy \[.*\] +\d+%  up", ended.stdout)
    assert "sleeper" in ended.stdout


def test_dmesg_and_models_print_what_the_kernel_has(where: Path, agent: int) -> None:
    assert re.search(r"\[ *\d+\.\d{6}\] .*boots", llmasos(where, "dmesg").stdout)
    assert re.search(r"sim:context=256,vocab=100 +resident +sim0", llmasos(where, "models").stdout)


def test_an_estimate_says_what_a_model_would_take_without_loading_it(where: Path, agent: int) -> None:
    ended = llmasos(where, "models", "--estimate", "sim:1b,vocab=100", "--dtype", "int8", "--context", "2000")
    assert ended.returncode == 0, ended.stderr
    said = {name: value.strip() for name, value in re.findall(r"^([\w ]+?)  +(.*)$", ended.stdout, re.M)}
    assert said["weights"] == "954 MiB"
    assert re.fullmatch(r".* for 1,000 tokens, .* for a context of 2,000 tokens", said["KV"])
    assert said["would have to go"] == "nobody"
    assert said["so"] == "it can be loaded"
    assert "sim:1b,vocab=100" not in llmasos(where, "models").stdout
    with System.connect(where, name="test") as system:
        info = system.estimate("sim:1b,vocab=100", "int8", context=2000)
        assert (info.weight_bytes, info.context, info.state) == (10**9, 2000, "absent")
    refused = llmasos(where, "models", "--estimate", "nowhere")
    assert refused.returncode == 1
    assert refused.stderr.startswith("llmasos: ENOENT: ")
    assert llmasos(where, "models", "--dtype", "int8").stderr.startswith("llmasos: EINVAL: ")


def test_strace_decodes_the_calls_of_others_and_leaves_out_its_own(where: Path, agent: int) -> None:
    watcher = subprocess.Popen(
        [sys.executable, "-m", "llmasos", "--runtime", str(where), "strace", str(agent), "--count", "1"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + DEADLINE
        while watcher.poll() is None and time.monotonic() < deadline:
            llmasos(where, "nice", str(agent), "1")
        said, _ = watcher.communicate(timeout=DEADLINE)
    finally:
        watcher.kill()
        watcher.wait()
    assert re.search(rf"\d+\.\d+ +\d+  setsched\(pid={agent}, nice=1\)", said)
    assert "trace(" not in said


# --- scripts and programs -------------------------------------------------------------------------------------------


def test_piped_commands_run_in_turn_with_plain_output(where: Path, agent: int) -> None:
    ended = llmasos(where, "shell", typed=f"# what is there\nps\n\nps {agent}\nuptime\nhelp\nhelp kill\n")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "PID  PPID" in ended.stdout
    assert re.search(r"name +sleeper", ended.stdout)
    assert "up " in ended.stdout
    assert "kill [-SIGNAL] [-s SIGNAL] [-l] [--shred] PID..." in ended.stdout
    assert "\x1b" not in ended.stdout


def test_a_failed_command_is_a_line_on_stderr_and_the_script_goes_on_to_a_status_of_1(where: Path) -> None:
    ended = llmasos(where, "shell", typed="kill 999999\nfly\nuptime\n")
    assert ended.returncode == 1
    assert ended.stdout.startswith("up ")
    first, second = ended.stderr.splitlines()
    assert first.startswith("ESRCH: ")
    assert second.startswith("EINVAL: there is no command 'fly'")


@pytest.mark.parametrize(("typed", "status"), [("exit", 0), ("exit 7", 7), ("fly\nexit", 1), ("exit 300\nexit", 1)])
def test_exit_ends_a_script_with_its_status(where: Path, typed: str, status: int) -> None:
    assert llmasos(where, "shell", typed=typed + "\nps\n").returncode == status


def test_control_commands_act_on_a_process_by_pid_or_name(where: Path, agent: int) -> None:
    typed = ["stop", "ps", "nice 5", "cont", "limits --tokens 9", "ps", "read 30 4"]
    lines = [f"{verb} sleeper {rest}" for verb, _, rest in (word.partition(" ") for word in typed)]
    ended = llmasos(where, "shell", typed="\n".join(lines))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.search(r"state +stopped", ended.stdout)
    assert re.search(r"class, nice +fair, 5", ended.stdout)
    assert re.search(r"limits +context -, tokens 9, pages -", ended.stdout)
    assert ended.stdout.splitlines()[-1].split() == ["30", "30", "31", "32", "33"]


def test_a_fork_is_reported_with_its_shared_pages(where: Path, agent: int) -> None:
    ended = llmasos(where, "shell", typed=f"fork {agent} 2\nkill {agent}\n")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.count(f"sleeper: copy of {agent}, 3 of 3 pages shared") == 2


def test_advice_is_given_and_shown(where: Path) -> None:
    given = llmasos(where, "advise", "sim:0.1b", "pin")
    assert (given.returncode, given.stdout, given.stderr) == (0, "", "")
    pinned = re.compile(r"^sim:0\.1b +(resident|loading \d+%), pinned ", re.MULTILINE)
    assert pinned.search(llmasos(where, "models").stdout)
    assert "in memory" in llmasos(where, "shell", typed="pagein sim:0.1b").stdout
    ended = llmasos(where, "shell", typed="advise sim:0.1b normal\nevict sim:0.1b --force\nmodels\n")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "sim:0.1b" not in ended.stdout
    refused = llmasos(where, "advise", "sim:0.1b", "perhaps")
    assert refused.returncode == 2
    assert "willneed" in refused.stderr


def test_the_policy_is_shown_and_changed(where: Path) -> None:
    ended = llmasos(where, "shell", typed="policy lottery\npolicy\npolicy fair\npolicy unfair\n")
    assert ended.stdout.count("[lottery]") == 2
    assert "[fair]" in ended.stdout
    assert "there is no policy 'unfair'; there are " in ended.stderr


@pytest.mark.parametrize(
    ("command", "errno"),
    [
        ("spawn a --model sim:fail=ENOEXEC", "ENOEXEC"),
        ("spawn a --model nosuch", "ENOENT"),
        ("pagein sim:fail=EIO", "EIO"),
        ("evict sim:never", "ENOENT"),
        ("advise sim:never dontneed", "ENOENT"),
        ("advise nosuch willneed", "ENOENT"),
        ("advise sim perhaps", "EINVAL"),
        ("spawn 7", "EINVAL"),
        ("spawn -x hi", "EINVAL"),
        ('spawn ""', "EINVAL"),
        ("strace --count 0", "EINVAL"),
        ("trace --count -3", "EINVAL"),
        ("top --seconds -1", "EINVAL"),
        ("top --seconds nan", "EINVAL"),
        ("policy --step-tokens 0", "EINVAL"),
        ("policy fair --max-runs 0", "EINVAL"),
        ("kill -HUP 3", "EINVAL"),
        ("nice 3 40", "EINVAL"),
        ("say nobody hello", "ESRCH"),
        ("cat 1", "EINVAL"),
        ("wait 999999", "ESRCH"),
        ("stop 999999", "ESRCH"),
        ("fork 999999", "ESRCH"),
        ("policy fair --device gpu7", "ENODEV"),
        ("run nothing.py", "ENOENT"),
    ],
)
def test_an_error_is_one_readable_line_with_its_errno(where: Path, command: str, errno: str) -> None:
    ended = llmasos(where, "shell", typed=command)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert re.fullmatch(rf"{errno}: .{{10,}}\n", ended.stderr), ended.stderr


def test_a_spawn_whose_text_cannot_be_said_leaves_no_process(where: Path) -> None:
    ended = llmasos(where, "shell", typed=f"spawn mute --model {SIM} höllo\nspawn big --max -5 hello\nps\n")
    assert len(ended.stderr.splitlines()) == 2
    assert "mute" not in ended.stdout
    assert "big" not in ended.stdout


def test_policy_refuses_0_and_says_how_to_see_the_present_values(where: Path) -> None:
    ended = llmasos(where, "shell", typed="policy --step-tokens 0")
    assert "--step-tokens wants at least 1, found 0; `policy` alone shows" in ended.stderr


def test_wait_of_a_name_finds_a_process_that_has_been_killed(where: Path) -> None:
    typed = f"spawn short --model {SIM}\nkill short\nwait short\nwait short\n"
    ended = llmasos(where, "shell", typed=typed)
    assert re.search(r"\[\d+\] short: exited with 143 ", ended.stdout)
    assert ended.stderr.startswith("ESRCH: ")


def test_a_device_name_stands_for_its_driver(where: Path) -> None:
    ended = llmasos(where, "shell", typed="ps sim0")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.search(r"name +driver:sim0", ended.stdout)


def test_a_program_finds_the_kernel_and_its_status_is_runs(where: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
            import sys
            import llmasos
            with llmasos.System.connect(name="guest") as system:
                print([row.name for row in system.ps() if row.name == "guest"], sys.argv[1:])
            sys.exit(7)
        """)
    )
    ended = llmasos(where, "run", str(program), "--flag", "two words")
    assert ended.stdout == "['guest'] ['--flag', 'two words']\n"
    assert ended.returncode == 7
    shell = llmasos(where, "shell", typed=f"run {program} a\n")
    assert shell.returncode == 1
    assert shell.stderr.endswith("exit status 7\n")


def test_a_program_killed_by_a_signal_is_reported_as_shells_do(where: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert llmasos(where, "run", str(program)).returncode == 128 + signal.SIGKILL


# --- booting and halting --------------------------------------------------------------------------------------------


def test_a_second_boot_says_who_holds_the_directory(where: Path) -> None:
    ended = llmasos(where, "boot", "--device", "sim")
    assert ended.returncode == 1
    assert str(runtime.holder(where)) in ended.stderr
    assert str(where) in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_detached_kernel_serves_until_halted_and_leaves_nothing(tmp_path: Path) -> None:
    booted = llmasos(tmp_path, "boot", "--detach", "--device", "sim")
    try:
        assert booted.returncode == 0, booted.stderr
        pid = runtime.holder(tmp_path)
        assert pid
        assert llmasos(tmp_path, "ps").returncode == 0
    finally:
        halted = llmasos(tmp_path, "halt")
    assert (halted.returncode, halted.stderr) == (0, "")
    assert runtime.holder(tmp_path) is None
    assert llmasos(tmp_path, "ps").returncode == 1
    assert not [path for path in tmp_path.iterdir() if path.is_socket()]


def test_halt_from_a_shell_ends_both(tmp_path: Path) -> None:
    with private_kernel(tmp_path, ["--device", "sim"]) as kernel:
        ended = llmasos(tmp_path, "shell", typed="halt\nps\n")
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "the kernel has halted\n", "")
        assert kernel.wait(DEADLINE) == 0


@pytest.mark.parametrize("flag", ["--policy unfair", "--config nothing.toml", "--kv-bytes lots"])
def test_a_kernel_that_cannot_boot_says_why_in_one_line(tmp_path: Path, flag: str) -> None:
    ended = llmasos(tmp_path, "boot", "--device", "sim", *flag.split())
    assert ended.returncode == 1
    assert flag.split()[1] in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


# --- doctor ---------------------------------------------------------------------------------------------------------


def test_the_doctor_reports_machine_packages_and_kernel_as_json(where: Path) -> None:
    ended = llmasos(where, "doctor", "--json")
    report = json.loads(ended.stdout)
    found = {(finding["area"], finding["what"]): finding for finding in report["findings"]}
    missing = [finding for finding in report["findings"] if finding["status"] == "missing"]
    assert ended.returncode == (1 if missing else 0)
    assert found["packages", "torch"]["status"] == "ok"
    assert found["kernel", "running here"]["found"].startswith(f"process {runtime.holder(where)}, up ")
    assert found["models", "tiny"]["status"] == "ok"
    assert report["machine"]["cpu"]["cores"] >= 1


def test_the_doctor_finds_what_is_missing_and_says_what_to_do(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    ended = llmasos(deep, "doctor")
    assert ended.returncode == 1
    assert re.search(r"runtime directory +missing", ended.stdout)
    assert "a socket's path may have 107 bytes" in ended.stdout


# --- process images -------------------------------------------------------------------------------------------------


def test_an_agent_goes_to_a_file_and_comes_back_for_good(where: Path, agent: int, tmp_path: Path) -> None:
    ended = llmasos(where, "checkpoint", str(agent), str(tmp_path / "image"))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.fullmatch(rf"\[{agent}\] is in {tmp_path}/image: 40 tokens, with the KV of 39, \S+ \S+\n", ended.stdout)
    ended = llmasos(where, "restore", str(tmp_path / "image"), "back")
    assert (ended.returncode, ended.stderr) == (0, "")
    match = re.fullmatch(rf"\[(\d+)\] back on \S+: 40 tokens, idle, from {tmp_path}/image\n", ended.stdout)
    assert match is not None
    with blocking.connect(where, name="test") as kernel:
        row = kernel(Getinfo(int(match[1])))
        assert (row.name, row.length, row.ppid) == ("back", 40, 1), "it outlives the command"
        kernel(Kill(row.pid, Signal.KILL))


def test_a_passphrase_comes_from_a_file(where: Path, agent: int, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("open sesame\nand more\n")
    (tmp_path / "wrong").write_text("sesame\n")
    (tmp_path / "none").touch()
    image = str(tmp_path / "image")
    with_secret = ("--passphrase-file", str(tmp_path / "secret"))
    assert llmasos(where, "checkpoint", str(agent), image, "--no-kv", *with_secret).returncode == 0
    for name, errno in (("wrong", "EPERM"), ("none", "EINVAL"), ("nowhere", "ENOENT")):
        ended = llmasos(where, "restore", image, "--passphrase-file", str(tmp_path / name))
        assert ended.returncode == (2 if errno == "EINVAL" else 1)
        assert ended.stderr.startswith(f"llmasos: {errno}: ")
    ended = llmasos(where, "restore", image, *with_secret, "opened")
    assert ended.returncode == 0
    with blocking.connect(where, name="test") as kernel:
        (row,) = (row for row in kernel(Ps()) if row.name == "opened")
        kernel(Kill(row.pid, Signal.KILL))


def test_what_is_no_image_is_refused_in_one_line(where: Path, agent: int, tmp_path: Path) -> None:
    (tmp_path / "diary").write_text("dear diary")
    for words in (("restore", "diary"), ("checkpoint", str(agent), "diary")):
        ended = llmasos(where, *words[:-1], str(tmp_path / "diary"))
        assert ended.returncode == 2
        assert "no process image" in ended.stderr
        assert len(ended.stderr.splitlines()) == 1
    assert (tmp_path / "diary").read_text() == "dear diary"


@pytest.mark.parametrize(
    ("line", "errno", "told"),
    [
        ("checkpoint PID", "EINVAL", "a directory; name a file, such as"),
        ("checkpoint PID none/image", "ENOENT", "no directory {place}/none; make it"),
        ("checkpoint PID afile/image", "ENOENT", "{place}/afile is no directory; choose another place"),
        ("checkpoint PID new/", "EINVAL", "new/ ends as a directory does; name a file"),
        ("checkpoint PID /proc/image", "EPERM", "no file can be made in /proc; choose another place"),
        ("checkpoint PID ~nobody-here/image", "ENOENT", "nobody here is called 'nobody-here'"),
        ("checkpoint PID IMAGE --passphrase-file none", "ENOENT", "that has it in its first line"),
        ("checkpoint PID IMAGE --passphrase-file .", "EINVAL", "that has it in its first line"),
        ("restore .", "EINVAL", "a directory, no process image; name the file that `checkpoint` has written"),
        (
            "restore none/image",
            "ENOENT",
            "no directory {place}/none; name the file that `checkpoint` has written",
        ),
        ("restore nothing", "ENOENT", "{place}/nothing: there is no such file; name the file"),
        ("restore afile", "EINVAL", "name the file that `checkpoint` has written"),
        ("restore image --model ./none", "ENOENT", "no model '{place}/none'"),
        ("run .", "EINVAL", "a directory; name a Python file"),
        ("run none.py", "ENOENT", "no program 'none.py' here ({place}); name a Python file"),
    ],
    ids=str,
)
def test_a_path_that_cannot_be_says_why_and_what_to_do_and_leaves_nothing(
    where: Path, agent: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, errno: str, told: str
) -> None:
    (tmp_path / "afile").touch()
    monkeypatch.chdir(tmp_path)
    words = [{"PID": str(agent), "IMAGE": "image"}.get(word, word) for word in line.split()]
    if words[0] == "checkpoint" and len(words) == 2:
        words.append(".")
    if words[:2] == ["restore", "image"]:
        assert llmasos(where, "checkpoint", str(agent), "image").returncode == 0
    before = {path.name for path in tmp_path.iterdir()}
    ended = llmasos(where, *words)
    assert ended.returncode == (2 if errno == "EINVAL" else 1)
    assert ended.stderr.startswith(f"llmasos: {errno}: ")
    assert told.format(place=tmp_path) in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == before


def test_paths_are_those_of_whoever_types_them(
    where: Path, agent: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "mein köfferchen 箱"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path, file in (
        ("a b.img", place / "a b.img"),
        ("../c", tmp_path / "c"),
        ("~/d é.img", tmp_path / "d é.img"),
    ):
        assert llmasos(where, "checkpoint", str(agent), path, "--no-kv").returncode == 0
        assert file.is_file()
        restored = llmasos(where, "shell", typed=f'restore "{path}" twin\nkill -KILL twin\n')
        assert (restored.returncode, restored.stderr) == (0, "")
        assert f"from {file}" in restored.stdout


def test_the_shell_writes_and_restores(where: Path, agent: int, tmp_path: Path) -> None:
    image = tmp_path / "image"
    lines = [
        f"checkpoint sleeper {image}", f"restore {image} second", f"restore {image} 7", f"restore --detach {image} third",
        "ps", "kill -KILL third",
    ]  # fmt: skip
    ended = llmasos(where, "shell", typed="\n".join(lines))
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "a name may not be a number" in ended.stderr
    assert f"is in {image}: 40 tokens, with the KV of 39" in ended.stdout
    assert re.search(r"\[\d+\] second on \S+: 40 tokens, idle", ended.stdout)
    assert re.search(r"llm .* third", ended.stdout)
