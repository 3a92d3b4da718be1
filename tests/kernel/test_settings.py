"""From the configuration file and the command line to what a kernel is booted with; and where it keeps what."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from llmasos.kernel.edge import boot_config, lock, settings
from llmasos.kernel.edge.boot import parse
from llmasos.kernel.edge.boot_config import Overrides, build
from llmasos.kernel.edge.detached import without_place
from llmasos.kernel.edge.settings import IDLE_SECONDS, read
from llmasos.syscalls import runtime
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import KvAction

FILE = """
default_model = "story"

[kernel]
quantum = 7

[[device]]
kind = "sim"
name = "one"
kv_bytes = "512MiB"
options = { time_scale = 0, swap = "1g", quiet = true }

[[device]]
kind = "sim"

[models]
story = "~/story"

[journal]
fsync = "always"
grace = 5

[groups."/users/ada"]
kv_max = "2MiB"
kv_action = "wait"
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, place in (
        ("HOME", ""),
        ("XDG_STATE_HOME", "state"),
        ("XDG_CONFIG_HOME", "config"),
        ("XDG_RUNTIME_DIR", "run"),
    ):
        monkeypatch.setenv(name, str(tmp_path / place))
    monkeypatch.delenv("LLMASOS_RUNTIME", raising=False)
    return tmp_path


def test_a_file_is_read_whole_and_the_command_line_overrides_it(home: Path) -> None:
    (home / "story").mkdir()
    (home / "kernel.toml").write_text(FILE)
    file = read(str(home / "kernel.toml"))
    plain = build(file, Overrides(), home / "r", "1.2")
    assert (plain.default_model, plain.quantum, plain.idle_seconds, plain.grace) == ("story", 7, IDLE_SECONDS, 5.0)
    assert [device.name for device in plain.devices] == ["one", "sim1"]
    assert plain.devices[0].kv_bytes == 512 << 20
    assert plain.devices[0].options == {"time_scale": "0", "swap": "1g", "quiet": "true"}
    assert plain.models["story"] == str(home / "story")
    assert plain.groups["/users/ada"].kv_max == 2 << 20
    assert plain.groups["/users/ada"].kv_action is KvAction.WAIT
    assert plain.journal is not None
    assert (plain.journal.directory, plain.fsync) == (str(home / "r"), "always")
    over = Overrides(devices=["sim:name=x,policy=fcfs"], models=["story=sim:1b"], kv_bytes="1GiB", journal=False)
    changed = build(file, over, home / "r", "1.2")
    assert [(device.name, device.policy, device.kv_bytes) for device in changed.devices] == [("x", "fcfs", 1 << 30)]
    assert changed.models["story"] == "sim:1b"
    assert changed.journal is None


def test_the_usual_kernel_keeps_its_journal_on_the_disk_and_any_other_in_its_own_place(home: Path) -> None:
    usual = build(read(None), Overrides(devices=["sim"]), runtime.default(), "")
    assert runtime.default() == home / "run" / "llmasos"
    assert usual.journal_path == str(home / "state" / "llmasos" / "kernel.journal")
    assert (usual.plain, build(read(None), Overrides(plain=True), home / "other", "").plain) == (False, True)
    other = build(read(None), Overrides(devices=["sim"]), home / "other", "")
    assert other.journal_path == str(home / "other" / "kernel.journal")
    named = build(read(None), Overrides(devices=["sim"], journal_directory="~/kept"), runtime.default(), "")
    assert named.journal_path == str(home / "kept" / "kernel.journal")
    private = build(read(None), Overrides(devices=["sim"], private=True), runtime.default(), "")
    assert (private.journal, private.journal_path) == (None, "")
    assert runtime.configuration() is None
    (home / "config" / "llmasos").mkdir(parents=True)
    (home / "config" / "llmasos" / "kernel.toml").touch()
    assert runtime.configuration() == home / "config" / "llmasos" / "kernel.toml"


def test_without_a_home_it_is_said_where_a_journal_could_be(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(SyscallError, match=r"--journal DIR.*--no-journal") as caught:
        build(read(None), Overrides(devices=["sim"]), runtime.default(), "")
    assert caught.value.errno is Errno.ENOENT
    assert build(read(None), Overrides(devices=["sim"], journal=False), runtime.default(), "").journal is None


WRONG = {
    "quantum = 1": "there is no key 'quantum'; there are: default_model, kernel, ",
    "[kernel]\nquantun = 1": "[kernel]: there is no key 'quantun' (is 'quantum' meant?)",
    "[kernel]\nquantum = 0": "[kernel] quantum: 1 or more, found 0",
    "[kernel]\nquantum = '7'": "[kernel] quantum: wanted a whole number, found '7'",
    "[kernel]\nidle_seconds = -1": "[kernel] idle_seconds: from 0 to 1e+09, found -1",
    "kernel = 3": "[kernel]: wanted a table, found 3",
    "[device]\nkind = 'sim'": "wanted tables [[device]], found one [device]",
    "[[device]]\nname = 'a'": "[[device]] 1: the key 'kind' is missing",
    "[[device]]\nkind = 'sim'\n[[device]]\nkind = 'tpu'": "[[device]] 2 kind: there is no driver 'tpu'; there are: cpu, ",
    "[[device]]\nkind = 'sim'\nkv_byte = 1": "[[device]] 1: there is no key 'kv_byte' (is 'kv_bytes' meant?)",
    "[[device]]\nkind = 'sim'\nname = '1'": "[[device]] 1 name: a letter, then letters, digits, '_' and '-', found '1'",
    "[[device]]\nkind = 'sim'\nkv_bytes = 'much'": "[[device]] 1 kv_bytes: 'much' is no size",
    "[[device]]\nkind = 'sim'\npolicy = 'best'": "[[device]] 1 policy: no scheduling policy 'best'; there are: fair, ",
    "[[device]]\nkind = 'sim'\nvictims = 'best'": "[[device]] 1 victims: no policy 'best' for victims; there are: cost, ",
    "[[device]]\nkind = 'sim'\nevictions = 'x'": "[[device]] 1 evictions: no policy 'x'",
    "[[device]]\nkind = 'sim'\noptions = { a = [1] }": "[[device]] 1 options a: wanted ",
    "[models]\nstory = '/nope'": "[models] story: there is no /nope; ",
    "[models]\nstory = 3": "[models] story: wanted text, found 3",
    "[models]\nstory = ''": "[models] story: wanted a directory, a file or the name of a model",
    "[journal]\nfsync = 'sometimes'": "[journal] fsync: there is no 'sometimes'; there are 'always', 'interval', 'never'",
    "[groups.'users/ada']": '[groups."users/ada"]: the path of a group begins with a slash',
    "[groups.'/']": '[groups."/"]: the path of a group begins with a slash',
    "[groups.'/users/../ada']": "'..' is no name of a group",
    "[groups.'/users/a da']": "'a da' is no name of a group",
    "[groups.'/users/ada/session-3']": "are for programs' sessions",
    "[groups.'/ada']\nkv_action = 'beg'": "[groups.\"/ada\"] kv_action: there is no 'beg'; there are 'spill', 'wait', ",
    "[groups.'/ada']\nkv_max = 10\nkv_high = 11": '[groups."/ada"]: kv_high (11) has no effect above kv_max (10)',
    "[groups.'/ada']\ncpu_weight = 0": '[groups."/ada"] cpu_weight: from 1 to 10000, found 0',
    "[": "kernel.toml is wrong",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_in_a_file_is_named_with_its_table_and_what_is_allowed(home: Path, text: str) -> None:
    (home / "kernel.toml").write_text(text)
    with pytest.raises(SyscallError) as caught:
        read(str(home / "kernel.toml"))
    assert caught.value.errno is Errno.EINVAL
    assert caught.value.reason.startswith(f"the configuration {home / 'kernel.toml'} is wrong: ")
    assert WRONG[text] in caught.value.reason


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("default_model = 'sim:7b'\n[[device]]\nkind = 'cpu'", "that is a simulated model, and no device is simulated"),
        ("default_model = 'tiny'\n[[device]]\nkind = 'sim'", "all devices are simulated, and run the models whose names"),
        ("default_model = 'tinny'\n[[device]]\nkind = 'cpu'", "no model is called so; there are: "),
        ("default_model = '/nope'\n[[device]]\nkind = 'cpu'", "there is no /nope"),
    ],
)
def test_a_default_model_that_its_devices_cannot_run_is_refused(home: Path, text: str, says: str) -> None:
    (home / "kernel.toml").write_text(text)
    path = str(home / "kernel.toml")
    with pytest.raises(SyscallError, match=says) as caught:
        build(read(path), Overrides(file=path), home / "r", "")
    assert path in caught.value.reason
    assert "default_model" in caught.value.reason


def test_devices_of_the_command_line_have_a_default_model_of_their_own(home: Path) -> None:
    for model, device, usual in (("tiny", "sim", "sim"), ("sim:7b", "cpu", "tiny"), ("sim:7b", "sim", "sim:7b")):
        (home / "kernel.toml").write_text(f"default_model = '{model}'\n")
        config = build(read(str(home / "kernel.toml")), Overrides(devices=[device]), home / "r", "")
        assert config.default_model == usual


@pytest.mark.parametrize(
    ("over", "says"),
    [
        (Overrides(devices=["tpu"]), "no driver for a device of kind 'tpu'; there are: "),
        (Overrides(devices=["sim:quick"]), "'quick' is not key=value"),
        (Overrides(devices=["sim:max_runs=-1"]), "max_runs"),
        (Overrides(devices=["sim"], models=["story"]), "wanted NAME=PATH"),
        (Overrides(devices=["sim"], kv_bytes="much"), "kv_bytes of sim0"),
        (Overrides(devices=["sim"], kv_bytes="1"), "kv_bytes of sim0: 1 bytes hold no page"),
        (Overrides(devices=["sim"], weight_bytes="512"), "weight_bytes of sim0: 512 bytes hold no page and no model"),
    ],
)
def test_what_is_wrong_on_the_command_line_is_named(home: Path, over: Overrides, says: str) -> None:
    with pytest.raises(SyscallError, match=says) as caught:
        build(read(None), over, home, "")
    assert caught.value.errno is Errno.EINVAL


def test_a_model_of_the_command_line_that_is_not_there_is_refused(home: Path) -> None:
    with pytest.raises(SyscallError, match="--model foo=/nope: there is no /nope") as caught:
        build(read(None), Overrides(devices=["sim"], models=["foo=/nope"]), home, "")
    assert caught.value.errno is Errno.ENOENT


def test_a_file_that_is_not_there_or_too_long_is_refused(home: Path) -> None:
    with pytest.raises(SyscallError, match="cannot be read"):
        read(str(home / "nothing"))
    (home / "long").write_text("#" * (settings.MOST_BYTES + 1))
    with pytest.raises(SyscallError, match="is no configuration"):
        read(str(home / "long"))


def test_directories_with_models_in_them_are_known_by_their_names(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("zoo/a", "zoo/b", "alone", "zoo/empty"):
        (home / place).mkdir(parents=True)
        if place != "zoo/empty":
            (home / place / "config.json").write_text("{}")
    monkeypatch.setenv("LLMASOS_MODELS", f"{home / 'zoo'}:{home / 'alone'}")
    known = boot_config.known_models()
    assert {"tiny", "a", "b", "alone"} <= set(known)
    assert "empty" not in known
    assert known["a"] == str(home / "zoo" / "a")


def test_a_kernel_is_booted_again_by_the_words_that_say_what_and_not_where() -> None:
    words = ["--runtime", "r", "--detach", "--device", "sim", "--log=x", "--max-runs", "3", "--hand-over", "--quiet"]
    assert without_place(words) == ["--device", "sim", "--max-runs", "3"]
    assert parse(without_place(words)).max_runs == 3
    [policy] = without_place(["--policy", "mine.py:Mine"])
    assert policy == f"--policy={os.path.abspath('mine.py')}:Mine"


def test_a_runtime_directory_is_held_by_one_and_left_as_it_was(tmp_path: Path) -> None:
    place = tmp_path / "run" / "llmasos"
    assert lock.prepare(place)
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert not lock.prepare(place), "it is there already"
    held = lock.hold(place)
    assert runtime.holder(place) == os.getpid()
    assert not runtime.listening(place)
    with pytest.raises(SyscallError, match=f"pid {os.getpid()}") as caught:
        lock.hold(place)
    assert caught.value.errno is Errno.EBUSY
    (place / runtime.LOG).write_text("why it failed")
    lock.release(place, held, keep_log=True)
    assert [path.name for path in place.iterdir()] == [runtime.LOG]
    assert runtime.holder(place) is None
    lock.release(place, lock.hold(place))
    assert not list(place.iterdir())
    assert runtime.halted(place)
    place.chmod(0o755)
    with pytest.raises(SyscallError, match="open to other users"):
        lock.prepare(place)
    (tmp_path / "file").touch()
    with pytest.raises(SyscallError, match="no directory"):
        lock.prepare(tmp_path / "file")
