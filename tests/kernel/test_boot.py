"""Booting and ending: who may have a runtime directory, what is refused in which words, and that nothing stays."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path

import psutil
import pytest
import trio

from llmasos.kernel.core import Kernel
from llmasos.kernel.edge import boot_config, lock, supervision
from llmasos.kernel.edge import settings as config
from llmasos.kernel.edge.boot import main
from llmasos.kernel.edge.place import Place
from llmasos.kernel.edge.server import Server
from llmasos.kernel.events import DeviceConfig, KernelConfig
from llmasos.syscalls import blocking, runtime
from llmasos.syscalls.blocking import Client
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.size import size as read_size
from llmasos.syscalls.table import BootInfoCall, Getinfo, Models, Null, Ps, Shutdown, Spawn
from llmasos.userland.programs.boot import boot_if_none
from tests.booted import PATIENCE, SIM, booted, command, eventually, is_gone, wait_for_kernel

pytestmark = pytest.mark.processes


def left(place: Path) -> list[Path]:
    """What is left in a runtime directory; a private kernel takes the directory itself along."""
    return list(place.iterdir()) if place.exists() else []


def drivers_up(program: Client) -> bool:
    return all(device.state == "up" for device in program(BootInfoCall()).devices)


# --- the runtime directory ------------------------------------------------------------------------------------------


def test_a_second_boot_on_the_same_directory_says_who_holds_it_and_harms_nothing() -> None:
    with booted() as kernel:
        second = subprocess.run(command(kernel.place), capture_output=True, text=True, timeout=PATIENCE)
        assert second.returncode == 1
        assert f"pid {kernel.pid}" in second.stderr
        assert "llmasos halt" in second.stderr
        assert second.stderr.count("\n") == 1
        with kernel.connect() as program:
            program(Null())


def test_two_kernels_run_side_by_side() -> None:
    with booted() as one, booted() as other, one.connect() as first, other.connect() as second:
        assert first(BootInfoCall()).os_pid == one.pid
        assert second(BootInfoCall()).os_pid == other.pid
        first(Shutdown())
        assert one.wait() == 0
        second(Null())


def test_the_runtime_directory_is_for_its_owner_only(tmp_path: Path) -> None:
    place = tmp_path / "run"
    with booted(place=place):
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
    place.mkdir()
    place.chmod(0o755)
    with pytest.raises(SyscallError) as caught:
        lock.prepare(place)
    assert caught.value.errno is Errno.EPERM
    assert "open to other users (mode 0755)" in caught.value.reason
    assert stat.S_IMODE(place.stat().st_mode) == 0o755


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_the_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, -1)
    with pytest.raises(SyscallError) as caught:
        lock.prepare(tmp_path)
    assert caught.value.errno is Errno.EPERM
    assert "belongs to user 12345" in caught.value.reason


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make links for others")
@pytest.mark.parametrize("below", ["", "d"])
def test_a_link_that_another_user_has_made_is_not_followed(tmp_path: Path, below: str) -> None:
    mine, link = tmp_path / "mine", tmp_path / "llmasos-0"
    (mine / below).mkdir(mode=0o700, parents=True, exist_ok=True)
    link.symlink_to(mine)
    assert not lock.prepare(link / below)  # one's own is followed
    os.chown(link, 12345, -1, follow_symlinks=False)
    with pytest.raises(SyscallError, match="a symbolic link that user 12345 has made") as caught:
        lock.prepare(link / below)
    assert caught.value.errno is Errno.EPERM


def test_a_file_is_refused_as_a_runtime_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SyscallError) as caught:
        lock.prepare(tmp_path / "file")
    assert caught.value.errno is Errno.EINVAL


def test_a_path_too_long_for_its_sockets_is_refused_readably(tmp_path: Path) -> None:
    with pytest.raises(SyscallError, match=r"^EINVAL: .*107"):
        lock.prepare(tmp_path / ("x" * 110))


def test_asking_who_holds_a_directory_does_not_hinder_a_boot(tmp_path: Path) -> None:
    held = lock.hold(tmp_path)
    assert runtime.holder(tmp_path) == os.getpid()
    lock.release(tmp_path, held)
    assert runtime.holder(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


# --- ending ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_halts_the_kernel_in_good_order_and_nothing_stays(number: signal.Signals) -> None:
    with booted() as kernel:
        with kernel.connect() as program:
            eventually(lambda: drivers_up(program), "the driver is up")
        family = kernel.descendants()
        assert len(family) == 2
        os.kill(kernel.pid, number)
        assert kernel.wait() == 0
        assert all(is_gone(process) for process in family)
        assert left(kernel.place) == []
        assert f"{number.name} received" in kernel.output()


def test_a_driver_that_hangs_does_not_keep_the_kernel_from_ending() -> None:
    with booted() as kernel:
        with kernel.connect() as program:
            eventually(lambda: drivers_up(program), "the driver is up")
            family = kernel.descendants()
            for process in family[1:]:
                process.suspend()
            program(Shutdown())
        os.kill(kernel.pid, signal.SIGINT)  # once more: do not wait for good order
        assert kernel.wait() == 0
        assert all(is_gone(process) for process in family)


def test_a_killed_kernel_leaves_no_process_no_socket_and_no_file() -> None:
    with booted() as kernel:
        with kernel.connect() as program:
            eventually(lambda: drivers_up(program), "the driver is up")
        family = kernel.descendants()
        assert len(family) == 2
        os.kill(kernel.pid, signal.SIGKILL)
        kernel.wait()
        eventually(lambda: all(is_gone(process) for process in family), "the driver has left")
        eventually(lambda: left(kernel.place) == [], "the runtime directory is empty")


def test_what_a_killed_kernel_and_its_killed_driver_left_is_taken_over(tmp_path: Path) -> None:
    place = tmp_path / "run"
    with booted(place=place) as kernel:
        with kernel.connect() as program:
            eventually(lambda: drivers_up(program), "the driver is up")
        for process in reversed(kernel.descendants()):
            process.suspend()
        for process in reversed(kernel.descendants()):
            process.kill()
        kernel.wait()
    assert (place / runtime.PROGRAMS).exists()
    with booted(place=place) as kernel, kernel.connect() as program:
        program(Null())


def test_the_end_of_the_parent_is_the_end_of_the_kernel() -> None:
    with booted() as kernel:
        family = kernel.descendants()
        assert kernel.process.stdin is not None
        kernel.process.stdin.close()
        assert kernel.wait() == 0
        assert all(is_gone(process) for process in family)
        assert left(kernel.place) == []


# --- detached -------------------------------------------------------------------------------------------------------


def test_a_detached_kernel_answers_when_the_command_returns_and_logs_to_the_file_that_is_named(tmp_path: Path) -> None:
    place, log = tmp_path / "run", tmp_path / "log"
    start = [*command(place), "--detach", "--log", os.fspath(log)]
    done = subprocess.run(start, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"its log is {log}" in done.stdout
    pid = runtime.holder(place)
    assert pid is not None
    process = psutil.Process(pid)
    try:
        assert os.getsid(pid) == pid  # no terminal can hang up on it
        assert "boots" in log.read_text()
        assert not (place / runtime.LOG).exists()
        again = subprocess.run(start, capture_output=True, text=True, timeout=PATIENCE)
        assert again.returncode == 1
        assert f"pid {pid}" in again.stderr
        os.kill(pid, signal.SIGTERM)
        eventually(lambda: is_gone(process), "the kernel has ended")
        assert {path.name for path in left(place)} == {runtime.JOURNAL, runtime.BOOTED}  # which the next one goes on with
    finally:
        if not is_gone(process):
            process.kill()


def test_a_detached_kernel_that_cannot_boot_says_why(tmp_path: Path) -> None:
    start = [*command(tmp_path / "run", "--device", "sim", "--policy", "none such"), "--detach"]
    done = subprocess.run(start, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert "no scheduling policy 'none such'" in done.stderr


def test_of_two_that_are_detached_at_the_same_moment_one_says_that_it_runs(tmp_path: Path) -> None:
    start = [*command(tmp_path, "--no-journal"), "--detach"]
    both = [subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        said = [each.communicate(timeout=PATIENCE) for each in both]
        assert sorted(each.returncode for each in both) == [0, 1]
        winner, loser = sorted(range(2), key=lambda n: both[n].returncode)
        assert said[winner][0].startswith(f"kernel {runtime.holder(tmp_path)} runs in")
        assert "already" in said[loser][1]
    finally:
        if pid := runtime.holder(tmp_path):
            os.kill(pid, signal.SIGTERM)


def test_the_log_of_a_detached_kernel_that_was_killed_is_not_lost_with_the_next_boot(tmp_path: Path) -> None:
    start = [*command(tmp_path), "--detach"]

    def booted_so_often(times: int) -> bool:
        return (tmp_path / runtime.LOG).read_text().count("boots") == times

    for boots in (1, 2):
        subprocess.run(start, capture_output=True, check=True, timeout=PATIENCE)
        pid = runtime.holder(tmp_path)
        assert pid is not None
        process = psutil.Process(pid)
        eventually(partial(booted_so_often, boots), "all boots are in the log")
        process.kill()
        eventually(partial(is_gone, process), "the kernel is gone")
    bad = subprocess.run([*start, "--policy", "none such"], capture_output=True, text=True, timeout=PATIENCE)
    assert (bad.returncode, bad.stderr.count("\n")) == (1, 1)  # no word of the others


# --- configuration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[kernel]\nquantums = 3", "[kernel]: there is no key 'quantums' (is 'quantum' meant?)"),
        ("[[device]]\nkind = '../cpu'", "[[device]] 1 kind: one of cpu, cuda, sim, found '../cpu'"),
        ("[kernel]\nhang_seconds = inf", "[kernel] hang_seconds: more than 0 and at most 1e+09, found inf"),
        ("[groups.'/a']\ntokens_max = inf", '[groups."/a"] tokens_max: from 0 to 1e+12, found inf'),
        ("= nonsense", "is wrong"),
    ],
)
def test_a_wrong_configuration_is_refused_with_its_path(
    tmp_path: Path, text: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.toml").write_text(text)
    assert main(["--config", str(tmp_path / "c.toml"), "--runtime", str(tmp_path / "run")]) == 1
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--config", "/nowhere.toml"], "/nowhere.toml cannot be read"),
        (["--config", "/proc"], "/proc cannot be read: Is a directory; name a TOML file"),
        (["--config", "/dev/zero"], "/dev/zero has more than 1048576 bytes and is no configuration"),
        (["--device", "abacus"], "no driver for a device of kind 'abacus'; there are: cpu, cuda, sim"),
        (["--device", "cpu:threads"], "'threads' is not key=value"),
        (["--device", "cpu:max_runs=many"], "max_runs"),
        (["--device", "sim", "--kv-bytes", "-5"], "is no size"),
        (["--model", "tiny"], "wanted NAME=PATH"),
        (["--model", "foo=/nope"], "--model foo=/nope: there is no /nope"),
        (["--device", "sim", "--kv-bytes", "1"], "1 bytes hold no page"),
        (["--device", "sim:name=a", "--device", "sim:name=a"], "two devices are called 'a'"),
        (["--device", "sim", "--policy", "best"], "no scheduling policy 'best'"),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_line(
    tmp_path: Path, arguments: list[str], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["--runtime", str(tmp_path / "run"), *arguments]) == 1
    told = capfd.readouterr().err
    assert says in told
    assert told.count("\n") == 1
    assert not [path for path in left(tmp_path / "run") if path.name != runtime.LOG]


def test_the_command_line_overrides_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(
        "default_model = 'm'\n[kernel]\nquantum = 7\n[models]\nm = '.'\n"
        "[[device]]\nkind = 'cpu'\npolicy = 'fcfs'\nkv_bytes = '2MiB'\noptions = {threads = 2, fast = true}\n"
    )
    file = config.read(str(path))
    built = boot_config.build(file, boot_config.Overrides(), tmp_path, "1")
    assert built.devices == [
        DeviceConfig("cpu0", "cpu", kv_bytes=2 << 20, policy="fcfs", options={"threads": "2", "fast": "true"})
    ]
    assert (built.quantum, built.default_model, built.models["m"]) == (7, "m", os.getcwd())
    over = boot_config.Overrides(policy="mlfq", max_runs=3, step_tokens=9, kv_bytes="1k", models=["m=org/m"])
    built = boot_config.build(file, over, tmp_path, "1")
    device = built.devices[0]
    assert (device.policy, device.max_runs, device.step_tokens, device.kv_bytes) == ("mlfq", 3, 9, 1000)
    assert built.models["m"] == "org/m"
    assert [d.name for d in boot_config.build(file, boot_config.Overrides(["sim", "sim"]), tmp_path, "1").devices] == [
        "sim0",
        "sim1",
    ]


@pytest.mark.parametrize(
    ("text", "over", "directory"),
    [
        ("", boot_config.Overrides(), "RUN"),
        ("", boot_config.Overrides(private=True), None),
        ("[journal]\nenabled = true", boot_config.Overrides(private=True), "RUN"),
        ("", boot_config.Overrides(private=True, journal=True, journal_directory="/j"), "/j"),
        ("[journal]\nenabled = false", boot_config.Overrides(), None),
        ("[journal]\ndirectory = '/d'", boot_config.Overrides(), "/d"),
        ("[journal]\ndirectory = '/d'", boot_config.Overrides(journal=False), None),
        ("[journal]\ndirectory = '/d'", boot_config.Overrides(journal=True, journal_directory="/j"), "/j"),
    ],
)
def test_a_journal_is_kept_unless_nobody_wants_it(
    tmp_path: Path, text: str, over: boot_config.Overrides, directory: str | None
) -> None:
    (tmp_path / "c.toml").write_text(text)
    built = boot_config.build(config.read(str(tmp_path / "c.toml")), over, tmp_path / "RUN", "1")
    found = built.journal
    assert (found.directory if found else None) == (str(tmp_path / "RUN") if directory == "RUN" else directory)
    assert (found is None or found.fsync, built.grace) == (found is None or "interval", 30.0)


def test_a_device_of_the_command_line_is_told_from_its_options() -> None:
    device = boot_config.device("sim:name=a,policy=fcfs,max_runs=4,kv_bytes=1MiB,flops=1e9")
    assert (device.kind, device.name, device.policy, device.max_runs) == ("sim", "a", "fcfs", 4)
    assert device.options == {"flops": "1e9"}


@pytest.mark.parametrize(
    ("text", "size"), [("17", 17), ("1k", 1000), ("1KiB", 1024), ("1.5 GiB", 3 << 29), ("2T", 2 * 10**12)]
)
def test_sizes_have_units(text: str, size: int) -> None:
    assert read_size(text, "x") == size


def test_models_are_found_in_the_directories_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two", "not-a-model"):
        (tmp_path / "all" / name).mkdir(parents=True)
    for name in ("all/one", "all/two", "single"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "config.json").write_text("{}")
    monkeypatch.setenv("LLMASOS_MODELS", f"{tmp_path / 'all'}:{tmp_path / 'single'}:{tmp_path / 'none'}")
    found = boot_config.known_models()
    assert {"one", "two", "single"} <= found.keys()
    assert "not-a-model" not in found


# --- what boots -----------------------------------------------------------------------------------------------------


def test_every_device_gets_a_driver_and_models_are_known_by_name() -> None:
    arguments = ("--device", "sim:name=a", "--device", "sim:name=b", "--model", "big=sim:7b")
    with booted(*arguments) as kernel, kernel.connect() as program:
        eventually(lambda: drivers_up(program), "the drivers are up")
        assert [device.name for device in program(BootInfoCall()).devices] == ["a", "b"]
        assert {row.name for row in program(Ps())} >= {"init", "driver:a", "driver:b", "test"}
        assert "big" in [model.name for model in program(Models())]


@pytest.mark.parametrize("way", ["--quiet", "--detach", "--die-with-parent"])
def test_a_device_that_cannot_start_ends_the_boot_which_says_why(tmp_path: Path, way: str) -> None:
    place = tmp_path / "run"
    words = command(place, "--device", "sim", "--device", "sim:nonsense=1", way)
    done = _until_its_end(words)
    assert done.returncode == 1
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith("llmasos boot: device sim1 cannot start: EINVAL: ")
    assert "no option 'nonsense'" in said
    assert not [path for path in left(place) if path.name != runtime.LOG], "no journal, and no words for the next kernel"


def _until_its_end(words: list[str]) -> subprocess.CompletedProcess[str]:
    child = subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert child.stdin is not None
    assert child.stderr is not None
    with child.stdin, child.stderr:
        child.wait(PATIENCE)
        return subprocess.CompletedProcess(words, child.returncode, "", child.stderr.read())


def test_agents_outlive_a_boot_whose_device_cannot_start(tmp_path: Path) -> None:
    place = tmp_path / "run"
    first = subprocess.Popen(command(place), stdout=subprocess.DEVNULL)
    wait_for_kernel(place, lambda: first.poll() is None)
    with blocking.connect(place) as program:
        pid = program(Spawn("sim", [1, 2, 3], detached=True))
        before = (place / runtime.BOOTED).read_bytes()
    first.terminate()
    assert first.wait(PATIENCE) == 0
    wrong = command(place, "--device", "sim:nonsense=1", "--detach")
    assert subprocess.run(wrong, capture_output=True, timeout=PATIENCE, check=False).returncode == 1
    assert (place / runtime.BOOTED).read_bytes() == before, "the words of a kernel that ran"
    with booted(*SIM, "--journal", os.fspath(place), place=place) as kernel, kernel.connect() as program:
        assert program(Getinfo(pid)).length == 3


def test_who_cannot_boot_as_before_is_told_how_to_boot_otherwise(tmp_path: Path) -> None:
    place, model = tmp_path / "run", tmp_path / "model"
    model.mkdir()
    first = subprocess.Popen(command(place, *SIM, "--model", f"foo={model}"), stdout=subprocess.DEVNULL)
    wait_for_kernel(place, lambda: first.poll() is None)
    with blocking.connect(place) as program:
        program(Spawn("sim", [1, 2, 3], detached=True))
    first.terminate()
    assert first.wait(PATIENCE) == 0
    model.rmdir()
    with pytest.raises(SyscallError, match=rf"there is no {model}.*as before .*--model foo=.*boots one otherwise"):
        boot_if_none(place)
    assert (place / runtime.JOURNAL).exists()


def outcome(place: Path, devices: list[DeviceConfig], *, wanted: bool = True) -> tuple[str, bool]:
    """Of a boot: why it failed, and whether the kernel came so far as to be ready; then it ends in good order."""
    said: list[str] = []

    def ready() -> None:
        said.append("ready")
        os.kill(os.getpid(), signal.SIGTERM)

    async def main() -> str:
        held = lock.hold(place)
        files = Place(place, held)
        server = Server(Kernel(KernelConfig(devices)), devices, files, lambda line: None, wanted=wanted, ready=ready)
        with trio.fail_after(PATIENCE):
            await server.run()
        lock.release(place, held)
        return server.failed

    return trio.run(main), bool(said)


def test_a_kernel_that_nobody_named_devices_for_goes_on_with_those_that_start(tmp_path: Path) -> None:
    good, bad = {"time_scale": "0"}, {"nonsense": "1"}
    some, none = [
        [DeviceConfig(f"sim{i}", "sim", options=one) for i, one in enumerate(options)]
        for options in ((good, bad), (bad, bad))
    ]
    assert outcome(tmp_path, some, wanted=False) == ("", True)
    assert outcome(tmp_path, some, wanted=True)[0].startswith("device sim1 cannot start: ")
    assert "cannot start" in outcome(tmp_path, none, wanted=False)[0]


@pytest.mark.parametrize(("deaths", "starts"), [(2, True), (3, False)])
def test_a_device_whose_driver_dies_at_each_start_ends_the_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaths: int, *, starts: bool
) -> None:
    """It does not come to say so itself: there are no more threads, say."""
    command_of = supervision.command

    def dies(device: DeviceConfig, incarnation: int, directory: Path) -> list[str]:
        if incarnation > deaths:
            return command_of(device, incarnation, directory)
        return ["sh", "-c", "echo no more threads; exit 1"]

    monkeypatch.setattr(supervision, "command", dies)
    failed = "" if starts else "device sim0 cannot start: exit status 1: no more threads"
    assert outcome(tmp_path, [DeviceConfig("sim0", "sim", options={"time_scale": "0"})]) == (failed, starts)


def test_a_quiet_kernel_prints_warnings_only() -> None:
    with booted(*SIM, "--quiet") as kernel:
        with kernel.connect() as program:
            eventually(lambda: drivers_up(program), "the driver is up")
            program(Shutdown())
        assert kernel.wait() == 0
        assert kernel.output() == ""


def test_dying_with_the_parent_needs_a_pipe() -> None:
    words = [sys.executable, "-m", "llmasos.kernel.edge.boot", "--die-with-parent", "--device", "sim"]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert "needs a pipe" in done.stderr


def test_a_kernel_of_simulated_devices_only_has_a_simulated_model_by_default(tmp_path: Path) -> None:
    def default(*devices: str, file: config.File | None = None) -> str:
        return boot_config.build(file or config.File(), boot_config.Overrides(list(devices)), tmp_path, "").default_model

    assert default("sim") == default("sim", "sim") == "sim"
    assert default("cpu") == default("sim", "cpu") == "tiny"
    assert default("sim", file=config.File(default_model="sim:1b")) == "sim:1b"
