"""`llmasos models` for what is on the disk, as a person meets it: a home of its own, a hub on loopback, no kernel."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from gguf import GGUFWriter
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from llmasos.__main__ import main
from llmasos.modelfiles import cache, files
from llmasos.syscalls.errno import SyscallError
from llmasos.userland.programs import disk, models, pull
from llmasos.userland.programs.boot import private_kernel
from llmasos.userland.programs.listing import Asked
from llmasos.userland.programs.screen import Screen
from llmasos.userland.sdk.options import located
from llmasos.userland.shell.completion import ShellCompleter
from llmasos.userland.shell.words import COMMANDS
from tests.booted import PATIENCE, eventually
from tests.hub_server import Hub, Trouble
from tests.models_zoo import build
from tests.userland.disk import FILES, WEIGHTS


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "llmasos", "models", *words]


def llmasos(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a command line without a terminal, in this process: it is the same and need not start."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["models", *words])
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


def said(*words: str) -> str:
    done = llmasos(*words)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def refusal(*words: str) -> str:
    done = llmasos(*words)
    assert (done.returncode, done.stdout) == (2 if done.stderr.startswith("llmasos: EINVAL: ") else 1, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("llmasos: ")
    return done.stderr


def test_a_model_is_fetched_listed_checked_and_removed(server: Hub, tmp_path: Path) -> None:
    assert "pull" in said("ls")
    place = said("pull", "org/name").split()[-1]
    assert place.startswith(str(tmp_path))
    (listed,) = json.loads(said("ls", "--json"))
    assert (listed["name"], listed["path"], listed["problem"]) == ("org/name", place, "")
    assert listed["size"] == sum(map(len, FILES.values()))
    assert json.loads(said("--found", "--json")) == [listed]
    assert "org/name" in said("du")
    (check,) = json.loads(said("check", "org/name", "--json"))
    assert check["broken"] is False
    assert "--yes" in refusal("rm", "org/name")
    assert "removed org/name" in said("rm", "org/name", "--yes")
    assert json.loads(said("ls", "--json")) == json.loads(said("du", "--json")) == []


def test_a_check_says_the_architecture_and_that_nobody_was_there_to_ask_whether_it_is_run(
    server: Hub,
) -> None:
    said("pull", "org/name")
    rows = {row["what"]: row for row in json.loads(said("check", "org/name", "--json"))[0]["findings"]}
    assert rows["configuration"]["found"] == "architecture llama"
    assert rows["engine"]["status"] == "note"
    assert "models --estimate org/name" in rows["engine"]["found"]


def test_a_check_says_what_the_driver_says_of_it_where_a_kernel_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMASOS_RUNTIME", str(tmp_path / "k"))
    runs, not_run = build("llama", tmp_path / "runs"), build("llama", tmp_path / "not run")
    config = json.loads((not_run / "config.json").read_text())
    (not_run / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    with private_kernel(tmp_path / "k", ["--device", "cpu:threads=1"]):
        assert "cpu0 runs llama" in said("check", str(runs))
        done = llmasos("check", str(not_run), "--json")
        refused = next(row for row in json.loads(done.stdout)[0]["findings"] if row["what"] == "engine")
        told = llmasos("--estimate", str(not_run)).stderr
    assert (done.returncode, refused["status"]) == (1, "refused")
    assert refused["found"] in told
    assert "architecture 'bert' is not supported" in told


def test_what_is_broken_is_a_status_and_says_what_to_do(server: Hub) -> None:
    place = Path(said("pull", "org/name").split()[-1])
    weights = (place / "model.safetensors").resolve()
    weights.write_bytes(WEIGHTS[:-1] + b"!")
    done = llmasos("check", "org/name")
    assert done.returncode == 1
    assert [line for line in done.stdout.splitlines() if line.startswith("broken") and "digest" in line]


def test_a_gguf_file_that_is_cut_short_is_broken(server: Hub, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(8)
    writer.add_tensor("token_embd.weight", np.zeros((8, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "1 tensors of 1024 bytes (F32)" in said("check", str(file))
    os.truncate(file, file.stat().st_size - 64)
    done = llmasos("check", str(file))
    assert done.returncode == 1
    assert [line for line in done.stdout.splitlines() if line.startswith("broken") and "weights" in line]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["pull", "org/nothing"], "org/nothing"),
        (["pull", "llama3:8b"], "Ollama"),
        (["pull", "./here"], "org/name"),
        (["pull"], "wants the name"),
        (["ls", "org/name"], "takes no name"),
        (["ls", "--found"], "--found"),
        (["check", "org/nam"], "not in"),
        (["check", "ollama:none"], "--found"),
        (["rm", "org/nothing", "--yes"], "not in"),
        (["rm", "org/name@v1", "--yes"], "as a whole"),
        (["rm", "ollama:m:x", "--yes"], "ollama rm m:x"),
        (["rm", ".", "--yes"], "yours"),
        (["rm", "../../x", "--yes"], "yours"),
    ],
)
def test_what_cannot_be_done_is_one_line(server: Hub, words: list[str], what: str) -> None:
    assert what in refusal(*words)


def test_ctrl_c_leaves_what_has_arrived_and_the_next_pull_goes_on_with_it(server: Hub) -> None:
    hold = threading.Event()
    server.troubles = [Trouble("model.safetensors", cut_after=1_500_000, hold=hold)]
    root = Path(__file__).resolve().parents[2]
    running = subprocess.Popen(
        command("pull", "org/name"),
        env={**os.environ, "PYTHONPATH": str(root)},
        stderr=subprocess.PIPE,
        text=True,
    )
    blobs = cache.folder("org/name") / "blobs"
    eventually(lambda: any(one.stat().st_size >= 1_000_000 for one in blobs.glob("*.incomplete")), "some has arrived")
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=PATIENCE)
    hold.set()
    assert running.returncode == 130
    assert "goes on where it was" in err
    assert "unfinished download" in said("du")
    there = max(one.stat().st_size for one in blobs.glob("*.incomplete"))  # smaller files may have been under way too
    said("pull", "org/name")
    assert server.fetched("model.safetensors")[-1].sent == len(WEIGHTS) - there


def test_a_broken_store_does_not_break_the_list(server: Hub, tmp_path: Path) -> None:
    manifest = tmp_path / ".ollama/models/manifests/registry.ollama.ai/library/m/x"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{")
    (one,) = json.loads(said("--found", "--json"))
    assert one["name"] == "ollama:m:x"
    assert "manifest" in one["problem"]


def test_a_fifo_where_lm_studio_says_its_place_is_not_waited_for(server: Hub, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".lmstudio-home-pointer")
    assert json.loads(said("--found", "--json")) == []


def test_spawn_is_told_the_path_of_a_stores_model(server: Hub, tmp_path: Path) -> None:
    file = tmp_path / ".lmstudio/models/org/repo/m.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"GGUF")
    for name, told in (("lmstudio:org/repo/m", str(file)), ("hf.co/org/name", "org/name")):
        with pytest.raises(StopIteration) as ended:  # it has asked the kernel nothing
            next(located(name))
        assert ended.value.value == told


# --- in this process ------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def installed(of: str, name: str = "int8") -> Path:
    place = disk.installed_directory()
    assert place is not None
    place.mkdir(parents=True, exist_ok=True)
    file = place / f"{of}-{name}-0123456789abcdef.v1.7"
    file.write_bytes(b"x" * 100)
    return file


def test_what_was_installed_of_a_model_is_counted_and_goes_with_it(server: Hub) -> None:
    place = pull.pull(Screen(io.StringIO()), "org/name")
    mine, other = installed(place.name), installed("another")
    uses = {use.what: use.kind for use in disk.usage(files.unlisted) if use.kind.startswith("installed")}
    assert uses == {"org/name": "installed as int8", "another": "installed as int8"}
    disk.removal("org/name").act()
    assert not mine.exists()
    assert other.exists()


@pytest.mark.parametrize(("answer", "stays"), [("n", True), ("", True), ("yes", False), ("Y", False)])
def test_rm_asks_before(server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: str, stays: bool) -> None:
    place = pull.pull(Screen(io.StringIO()), "org/name")
    typed = Terminal(f"{answer}\n")
    monkeypatch.setattr(sys, "stdin", typed)
    models.act(Screen(io.StringIO()), "rm", ["org/name"], where=tmp_path / "none", listing=Asked(), yes=False)
    assert place.exists() is stays


@pytest.mark.parametrize("path", ["org/name", "hf.co/org/name", "org/name@v1", "{place}", "{place}/m.gguf"])
def test_who_runs_what_is_to_be_removed_is_known(server: Hub, path: str) -> None:
    place = pull.pull(Screen(io.StringIO()), "org/name")
    removed = disk.removal("org/name")
    rows = [
        ("it", path.format(place=place)),
        ("other", "org/name2"),
        ("tiny", "/models/tiny"),
        ("sim", "sim:context=2"),
    ]
    assert disk.users(rows, removed) == ["it"]


def test_a_model_that_a_kernel_runs_is_not_removed_unless_that_is_said(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = pull.pull(Screen(io.StringIO()), "org/name")
    monkeypatch.setattr(models, "_known", lambda _: [("org/name", "org/name")])
    screen = Screen(io.StringIO())
    with pytest.raises(SyscallError, match=r"EBUSY.*org/name loaded"):
        models.act(screen, "rm", ["org/name"], where=tmp_path, listing=Asked(), yes=False)
    assert place.exists()
    models.act(screen, "rm", ["org/name"], where=tmp_path, listing=Asked(), yes=True)
    assert not place.exists()


def test_the_meter_draws_one_line_on_a_terminal_and_lines_now_and_then_elsewhere() -> None:
    clock = [0.0]
    for out, drawn in ((Terminal(), 20), (io.StringIO(), 3)):
        meter = pull.Meter(Screen(out), lambda: clock[0])
        for step in range(20):
            clock[0] += 1.0
            meter("m\x1b[2J.gguf", step * 10, 200)
        meter.close()
        text = out.getvalue()
        assert "\x1b[2J" not in text
        assert text.count("m\\x1b[2J.gguf") == drawn
        assert ("\n" in text) is not out.isatty()


def test_nothing_is_imported_that_a_list_does_not_need(server: Hub) -> None:
    program = (
        "import sys\nfrom llmasos.__main__ import main\nmain(['models', '--found'])\n"
        "print([n for n in ('torch', 'transformers', 'numpy', 'trio', 'huggingface_hub') if n in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_shell_completes_models_that_other_programs_have(server: Hub, tmp_path: Path) -> None:
    file = tmp_path / ".lmstudio/models/org/repo/m.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"GGUF")
    completer = ShellCompleter(COMMANDS, cast(Any, lambda call: []))
    offered = completer.get_completions(Document("spawn --model lmst"), CompleteEvent())
    assert [one.text for one in offered] == ["lmstudio:org/repo/m"]
