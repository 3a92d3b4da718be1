"""The comparison with other engines (benchmarks/peers): what is missing is named, a worker that fails costs nobody else
anything, a benchmark that is killed leaves nothing, and what is converted for an engine is the same model.

The workers here are scripted, but for the conversions: those are tried with the engines that are installed.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.peers import __main__ as command_line
from benchmarks.peers import comparison, engines, picture
from benchmarks.peers.comparison import Results, Row, Workload, compare
from benchmarks.peers.engines import Engine, cpus
from benchmarks.peers.peer import ROOT, Peer, PeerError
from benchmarks.peers.table import figures, table
from benchmarks.yardstick import LLAMA3, QWEN2, prompts
from tests.booted import PATIENCE, eventually, is_gone

SMALL = Workload("short", QWEN2, prompt=4, decode=3, batches=(1, 2), rounds=2)
HANG_SECONDS = 5.0
Expected = list[tuple[list[int], int]]  # prompts and their next tokens

WORKER = '''
import os, signal, subprocess, sys, time
from pathlib import Path
from benchmarks.peers.protocol import Engine, Timing, serve

class Scripted(Engine):
    """Does as its argument says when it measures more than one sequence in earnest."""

    def convert(self, source, place):
        Path(place).write_text("half")
        if sys.argv[1] == "refuses":
            raise RuntimeError("no such form")
        Path(place).write_text(f"{source}, whole")

    def load(self, model, threads, batch, context):
        print("noise on standard output", flush=True)
        os.write(1, b"more noise\\n")
        child = [sys.executable, "-c", "import time; time.sleep(3600)"]
        self.child = subprocess.Popen(child, start_new_session=True)
        return f"scripted, {threads} threads"

    def measure(self, prompts, decode):
        if len(prompts) > 1 and decode == 3:
            match sys.argv[1]:
                case "dies":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "leaves":
                    os._exit(3)
                case "hangs":
                    Path(os.environ["HANGS"]).touch()
                    time.sleep(3600)
                case "refuses":
                    raise RuntimeError("no such batch")
                case "decodes too little":
                    decode -= 1
        return Timing(0.5 * len(prompts), 0.25, [[1] * decode for _ in prompts])

serve(Scripted())
'''
GARBAGE = "import sys\nfor line in sys.stdin: print('loaded 100 %', flush=True)\n"
FLOOD = "import sys\nfor line in sys.stdin: print('x' * 3_000_000, flush=True)\n"


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place))
        yield place


@pytest.fixture
def scripted(tmp_path: Path) -> Callable[..., Engine]:
    """An engine whose worker is a script: of the one above, or of the source given."""

    def engine(how: str, source: str = WORKER) -> Engine:
        script = tmp_path / f"{how.replace(' ', '_')}.py"
        script.write_text(source)
        variables = {"PYTHONPATH": str(ROOT), "HANGS": str(tmp_path / "hangs")}
        return Engine(how, how, command=(sys.executable, str(script), how), variables=variables)

    return engine


def started(engine: Engine, place: Path) -> Peer:
    peer = engine.start(cpus(), place)
    peer.ask(PATIENCE, do="load", model="", threads=1, batch=2, context=8)
    return peer


def tree(peer: Peer) -> list[psutil.Process]:
    found = peer.processes()
    assert len(found) == 2, "the worker and the child it started"
    return found


# --- what is missing ------------------------------------------------------------------------------------------------


def test_engines_that_are_not_installed_are_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engines, "ENVIRONMENTS", tmp_path)
    peers = [engine for engine in engines.engines() if engine.environment]
    keys = ",".join(engine.key for engine in peers)
    assert command_line.main(["--workload", "short", "--only", keys]) == 0
    printed = capsys.readouterr().out.splitlines()
    for engine in peers:
        (line,) = [line for line in printed if line.startswith(engine.name)]
        assert "missing: not installed: run `make peers`" in line


def test_an_environment_whose_installation_failed_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "ENVIRONMENTS", tmp_path)
    (tmp_path / "vllm" / "bin").mkdir(parents=True)
    (tmp_path / "vllm" / "bin" / "python").touch()
    engine = Engine("vLLM", "vllm", environment="vllm")
    assert engine.missing()
    (tmp_path / "vllm" / ".installed").touch()
    assert not engine.missing()


def test_an_unknown_engine_is_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_line.options(["--only", "vllm-int8,gpt"])
    assert "no such engine: gpt; there are: llmasos-int8" in capsys.readouterr().err


# --- workers that fail ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "source", "reason"),
    [
        ("dies", WORKER, "ended during measure: killed by SIGKILL"),
        ("leaves", WORKER, "ended during measure: exit status 3"),
        ("hangs", WORKER, "did not answer measure within"),
        ("refuses", WORKER, "failed to measure: RuntimeError: no such batch"),
        ("decodes too little", WORKER, "decoded [2, 2] tokens, not 3 of 2 sequences each"),
        ("garbage", GARBAGE, "answered load with b'loaded 100 %', which is no answer"),
        ("flood", FLOOD, "answered load with b'xxxx"),
        ("does not start", "raise SystemExit(7)", "ended during load: exit status 7"),
    ],
)
def test_a_worker_that_fails_is_named_with_the_reason_and_the_others_go_on(
    how: str,
    source: str,
    reason: str,
    scripted: Callable[..., Engine],
    own_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(comparison, "TURN_SECONDS", HANG_SECONDS)
    before = set(psutil.Process().children(recursive=True))
    results = compare(SMALL, [scripted("good"), scripted(how, source), scripted("also good")], tmp_path)
    good, bad, other = results.rows
    assert bad.missing.startswith(f"{how} {reason}")
    assert f"missing: {how} {reason}" in table(results)
    assert str(own_cache) in bad.missing, "where to read what it printed"
    for row in (good, other):
        assert not row.missing
        assert row.decode == {1: [4.0, 4.0], 2: [8.0, 8.0]}
        assert row.prompt == {1: [8.0, 8.0], 2: [8.0, 8.0]}
        assert row.memory > 0
        assert row.memory_kind in ("PSS", "RSS")
        assert row.version == f"scripted, {results.threads} threads"
    assert set(psutil.Process().children(recursive=True)) <= before


def test_an_interpreter_that_is_not_there_is_a_failure_like_others(tmp_path: Path) -> None:
    gone = Engine("gone", "gone", command=(str(tmp_path / "no-python"),))
    results = compare(SMALL, [gone], tmp_path)
    assert results.rows[0].missing.startswith("gone ended during load: exit status 1")


def test_what_has_failed_is_not_asked_again(scripted: Callable[..., Engine], tmp_path: Path) -> None:
    with started(scripted("dies"), tmp_path) as peer:
        with pytest.raises(PeerError, match="ended during measure"):
            peer.ask(PATIENCE, do="measure", prompts=[[1], [2]], decode=3)
        with pytest.raises(PeerError, match="has failed before"):
            peer.ask(PATIENCE, do="measure", prompts=[[1]], decode=3)


def test_a_request_nobody_knows_is_answered(scripted: Callable[..., Engine], tmp_path: Path) -> None:
    with started(scripted("good"), tmp_path) as peer:
        with pytest.raises(PeerError, match="no such request"):
            peer.ask(PATIENCE, do="dance")
        assert peer.ask(PATIENCE, do="measure", prompts=[[1]], decode=2)["tokens"] == [[1, 1]]


def test_a_model_is_converted_once(scripted: Callable[..., Engine], tmp_path: Path) -> None:
    engine = dataclasses.replace(scripted("good"), converted="form")
    checkpoint = tmp_path / "models" / "yardstick"
    checkpoint.mkdir(parents=True)
    first = engine.model(checkpoint, cpus(), tmp_path, PATIENCE)
    assert first == tmp_path / "models" / "yardstick.form"
    assert first.read_text() == f"{checkpoint}, whole"
    first.write_text("as it was")
    assert engine.model(checkpoint, cpus(), tmp_path, PATIENCE).read_text() == "as it was"
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["yardstick", "yardstick.form"]


def test_a_conversion_that_fails_leaves_nothing(scripted: Callable[..., Engine], tmp_path: Path) -> None:
    engine = dataclasses.replace(scripted("refuses"), converted="form")
    checkpoint = tmp_path / "models" / "yardstick"
    checkpoint.mkdir(parents=True)
    with pytest.raises(PeerError, match="failed to convert: RuntimeError: no such form"):
        engine.model(checkpoint, cpus(), tmp_path, PATIENCE)
    assert list(checkpoint.parent.iterdir()) == [checkpoint]


# --- its processes --------------------------------------------------------------------------------------------------


def test_out_of_turn_all_processes_of_an_engine_are_stopped(scripted: Callable[..., Engine], tmp_path: Path) -> None:
    with started(scripted("good"), tmp_path) as peer:
        processes = tree(peer)
        peer.pause()
        assert [process.status() for process in processes] == [psutil.STATUS_STOPPED] * 2
        with peer.turn():
            assert psutil.STATUS_STOPPED not in [process.status() for process in processes]
            peer.ask(PATIENCE, do="measure", prompts=[[1]], decode=2)
        assert [process.status() for process in processes] == [psutil.STATUS_STOPPED] * 2
    assert all(is_gone(process) for process in processes), "also those that were stopped"


def test_a_worker_that_dies_takes_its_children_and_files_with_it(
    scripted: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    with started(scripted("good"), tmp_path) as peer:
        worker, child = tree(peer)
        assert list(scratch.iterdir())
        worker.kill()
        eventually(lambda: is_gone(child), "the child of the worker is gone")
        eventually(lambda: not list(scratch.iterdir()), "its temporary files are gone")


BENCHMARK = """
import os, signal, sys
from pathlib import Path
from benchmarks.peers.comparison import Workload, compare
from benchmarks.peers.engines import Engine
from benchmarks.yardstick import QWEN2

signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run in the background it is ignored

def engine(how):
    return Engine(how, how, command=(sys.executable, sys.argv[1], how), variables={"PYTHONPATH": os.getcwd()})

compare(Workload("short", QWEN2, 4, 3, (1, 2), 1), [engine("good"), engine("hangs")], Path(sys.argv[1]))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_benchmark_leaves_no_process_and_no_file(number: signal.Signals, tmp_path: Path) -> None:
    scratch, hangs = tmp_path / "scratch", tmp_path / "hangs"
    scratch.mkdir()
    (tmp_path / "worker.py").write_text(WORKER)
    benchmark = subprocess.Popen(
        [sys.executable, "-c", BENCHMARK, str(tmp_path / "worker.py")],
        cwd=ROOT,
        env={**os.environ, "HANGS": str(hangs), "TMPDIR": str(scratch)},
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: hangs.exists() or benchmark.poll() is not None, "one is measuring, one is stopped")
        assert benchmark.poll() is None
        started = psutil.Process(benchmark.pid).children(recursive=True)
        states = [process.status() for process in started]
        assert len(started) == 6, "a guard, a worker and its child, twice"
        assert states.count(psutil.STATUS_STOPPED) == 2
        assert len(list(scratch.iterdir())) == 2
        benchmark.send_signal(number)
        benchmark.wait(PATIENCE)
        eventually(lambda: all(is_gone(process) for process in started), "all that it started is gone")
        eventually(lambda: not list(scratch.iterdir()), "its temporary files are gone")
    finally:
        benchmark.kill()
        benchmark.wait()


# --- what is told ---------------------------------------------------------------------------------------------------


def row(key: str, decode: float, memory: float = 1.0, missing: str = "") -> Row:
    """An engine of the comparison with one round of results: speeds `decode` times the batch, prompts ten times that."""
    (engine,) = (engine for engine in engines.engines() if engine.key == key)
    batches = (1, 4, 16)
    if missing:
        return Row(engine, missing=missing)
    return Row(
        engine,
        "1.0",
        {batch: [decode * batch] for batch in batches},
        {batch: [decode * batch * 10] for batch in batches},
        int(memory * 1e9),
        "PSS",
    )


def results(name: str, *rows: Row) -> Results:
    return Results(comparison.WORKLOADS[name], 2, list(rows))


def test_the_aims_are_ratios_to_the_fastest_peer() -> None:
    found = figures(
        results(
            "short",
            row("llmasos-int8", 60.0, 0.7),
            row("llmasos-int4", 105.0),
            row("llama.cpp-q8_0", 48.0),
            row("llama.cpp-q4_0", 100.0),
            row("vllm-int8", 30.0, 1.4),
            row("openvino-int8", 40.0, 1.0),
        )
    )
    told = [(figure.name, figure.reference_name, figure.ratio, figure.target) for figure in found]
    assert told == [
        ("short: decode, int8, 1 process", "llama.cpp Q8_0", 1.25, 1.2),
        ("short: decode, int8, 4 processes", "OpenVINO int8", 1.5, 1.5),
        ("short: decode, int8, 16 processes", "OpenVINO int8", 1.5, 1.5),
        ("short: prompt, int8, 16 processes", "vLLM int8", 2.0, 1.2),
        ("short: decode, int4, 1 process", "llama.cpp Q4_0", 1.05, 1.05),
        ("short: memory of all processes, int8, PSS", "vLLM int8", 0.5, 1.0),
        ("short: memory of all processes, int8, PSS", "OpenVINO int8", 0.7, 1.0),
    ]
    assert all(figure.met for figure in found)


def test_with_long_contexts_the_rival_is_the_best_of_all_peers() -> None:
    rows = [
        row("llmasos-int8", 45.0),
        row("llmasos-int4", 90.0),
        row("llama.cpp-q4_0", 30.0),
        row("vllm-int8", 20.0),
    ]
    *others, last = figures(results("long", *rows))
    assert [other.target for other in others] == [None, None]
    assert (last.name, last.reference_name) == ("long: decode, int8, 16 processes", "llama.cpp Q4_0")
    assert (last.ratio, last.target) == (1.5, 1.5)


def test_nothing_is_claimed_against_an_engine_that_is_missing() -> None:
    rows = [row("llmasos-int8", 60.0), row("vllm-int8", 0.0, missing="not installed: run `make peers`")]
    there = results("short", *rows)
    assert figures(there) == []
    assert "vLLM int8" in table(there)
    assert "missing: not installed: run `make peers`" in table(there)


def test_a_table_has_medians_and_memory() -> None:
    measured = row("llmasos-int8", 50.0, 0.75)
    measured.decode[1] = [10.0, 70.0, 60.0]
    lines = table(results("short", measured)).splitlines()
    assert lines[1].split() == ["engine", "1", "4", "16", "prompt", "memory", "(PSS)"]
    assert lines[2].split() == ["LLMasOS", "int8", "60.0", "200", "800", "8000", "0.75", "GB", "1.0"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (".", "is a directory; name a file in it"),
        ("none/a.svg", "there is no directory"),
        ("/proc/none/a.svg", "choose another place"),
        ("a.xyz", "ends in none of .svg, .png, .pdf"),
    ],
)
def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, told: str
) -> None:
    with pytest.raises(SystemExit):
        command_line.options(["--picture", os.path.join(tmp_path, name)])
    assert told in capsys.readouterr().err


def test_a_picture_is_whole_or_not_there(tmp_path: Path) -> None:
    class HalfAFigure:
        def savefig(self, file: Path, metadata: object) -> None:
            file.write_text("<svg")
            raise OSError(28, "No space left on device")

    with pytest.raises(picture.NoPicture, match="No space left on device; choose another place"):
        picture.write(HalfAFigure(), tmp_path / "a.svg")
    assert list(tmp_path.iterdir()) == []


def test_a_picture_shows_every_engine_that_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install -e '.[bench]'")
    rows = [row("llmasos-int8", 60.0), row("vllm-int8", 30.0), row("openvino-int8", 0.0, missing="no")]
    picture.draw([results("short", *rows)], tmp_path / "comparison.svg")
    drawn = (tmp_path / "comparison.svg").read_text()
    assert "LLMasOS int8" in drawn
    assert "vLLM int8" in drawn
    assert "missing: OpenVINO int8" in drawn


def test_without_any_result_there_is_no_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install -e '.[bench]'")
    with pytest.raises(picture.NoPicture, match="nothing was measured"):
        picture.draw([results("short", row("vllm-int8", 0.0, missing="no"))], tmp_path / "comparison.svg")


# --- the same model everywhere --------------------------------------------------------------------------------------

LONG, DECODED = 1200, 8
CLEAR = 4  # prompts whose next token is the clearest of all: no rounding of weights changes it


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Expected]:
    """A checkpoint of a small network, shaped as the yardsticks are, and what transformers makes of some prompts."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"qwen2": QWEN2, "llama": LLAMA3}[request.param]
    fields = {
        **shape.fields,
        "vocab_size": 512,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "initializer_range": 0.1,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(shape.architecture, **fields))
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    model = model.bfloat16()
    place = tmp_path_factory.mktemp(shape.architecture) / "model"
    model.save_pretrained(place)
    some = prompts(256, 16, 512)
    with torch.inference_mode():
        best = model.float()(torch.tensor(some)).logits[:, -1].topk(2)
    clearest = (best.values[:, 0] - best.values[:, 1]).argsort(descending=True)[:CLEAR].tolist()
    return place, [(some[i], int(best.indices[i, 0])) for i in clearest]


@pytest.mark.parametrize("key", [engine.key for engine in engines.engines()])
def test_every_engine_continues_a_prompt_as_transformers_does(
    key: str, small: tuple[Path, Expected], tmp_path: Path
) -> None:
    (engine,) = (engine for engine in engines.engines() if engine.key == key)
    if reason := engine.missing():
        pytest.skip(f"{engine.name} is {reason}")
    eager = {
        "TORCH_COMPILE_DISABLE": "1",
        "VLLM_CPU_CI_ENV": "1",
    }  # compiling takes minutes and computes the same
    engine = dataclasses.replace(engine, variables={**engine.variables, **eager})
    checkpoint, expected = small
    model = engine.model(checkpoint, cpus(), tmp_path, PATIENCE)
    with engine.start(cpus(), tmp_path) as worker:
        worker.ask(PATIENCE, do="load", model=str(model), threads=len(cpus()), batch=CLEAR, context=LONG + DECODED)
        for batch in (expected, expected[:1], list(reversed(expected))):
            timing = worker.ask(PATIENCE, do="measure", prompts=[prompt for prompt, _ in batch], decode=3)
            assert [sequence[0] for sequence in timing["tokens"]] == [token for _, token in batch]
            assert min(len(sequence) for sequence in timing["tokens"]) >= 3
            assert timing["prompt_seconds"] > 0
            assert timing["step_seconds"] > 0
        # Many steps of prompts, during which those that are done may decode: everybody decodes as much as was asked for.
        many = prompts(CLEAR, LONG, 512)
        timing = worker.ask(PATIENCE, do="measure", prompts=many, decode=DECODED)
        assert min(len(sequence) for sequence in timing["tokens"]) >= DECODED
