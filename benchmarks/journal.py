"""What the journal costs: the end of a step of 16 that decode, in the kernel core, with its frame made and written; and
the round trip of a call that changes nothing (null) and of one that does (feed) through real kernels, for each policy.

The kernels take turns, so that a busy machine slows them alike. The journal is in the runtime directory, on whatever
$TMPDIR is; what `always` costs is that file system's fsync.
"""

from __future__ import annotations

import contextlib
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks._core import Core
from benchmarks.null_call import connect, timed
from benchmarks.report import Figure
from llmasos.kernel.edge import journal_file as file
from llmasos.kernel.edge.journal_seal import Seal
from llmasos.kernel.edge.keys import Keys
from llmasos.kernel.edge.master import FileSource
from llmasos.kernel.events import Append
from llmasos.kernel.journal.records import Frame, encode
from llmasos.syscalls import blocking
from llmasos.syscalls.table import Decode, Feed, Null, Spawn

RUNS = 16
ROUNDS = 20
STEPS = 50  # in one round
TURNS = 10
CALLS = 100  # of each kind in one turn
TARGET = 1.25  # times the step without a journal
POLICIES = ("off", "never", "interval", "always")


def _deciding(journal: bool) -> Core:
    core = Core(frames=4096, max_runs=RUNS, step_tokens=256, context=4096, journal=journal)
    for number in range(RUNS):
        pid = core.call(Spawn("sim", tokens=[number + 1]))
        core.call(Decode(pid, 4000, wait=False))
    core.run(10)
    return core


def _round(core: Core, write: Callable[[Frame], None], times: list[float]) -> None:
    for _ in range(STEPS):
        event = core.results()
        start = time.perf_counter()
        actions = core.kernel.handle(event, core.now)
        for action in actions[:1]:
            if isinstance(action, Append):
                write(action.frame)
        times.append(time.perf_counter() - start)
        core.take(actions)
        if core.step is None or len(core.step.runs) != RUNS:
            raise RuntimeError(f"a step was not {RUNS} runs: {core.step}")


def _steps(directory: Path) -> list[float]:
    """Milliseconds of a step's end without a journal, with one that is encrypted, and with one that is not."""
    keys = Keys(FileSource(directory / "seal.key"), directory / "keys")
    encrypted = Seal(keys, None, {}, "").live.encode
    targets = [os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for name in ("encrypted", "plain")]
    cores = (
        (_deciding(False), lambda _: None),
        (_deciding(True), lambda frame: file.write_all(targets[0], file.framed(encrypted(frame)))),
        (_deciding(True), lambda frame: file.write_all(targets[1], file.framed(encode(frame)))),
    )
    times: list[list[float]] = [[] for _ in cores]
    gc.collect()
    try:
        for _ in range(ROUNDS):
            for (core, write), kept in zip(cores, times, strict=True):
                _round(core, write, kept)
    finally:
        for target in targets:
            os.close(target)
    return [1e3 * statistics.median(kept) for kept in times]


@contextlib.contextmanager
def _kernel(directory: Path, policy: str) -> Iterator[blocking.Client]:
    directory.mkdir()
    runtime = directory / "run"
    (directory / "kernel.toml").write_text(f'[journal]\nfsync = "{policy if policy != "off" else "never"}"\n')
    command = [
        sys.executable,
        "-m",
        "llmasos.kernel.edge.boot",
        "--runtime",
        os.fspath(runtime),
        "--die-with-parent",
        "--quiet",
    ]
    command += ["--device", "sim:time_scale=0", "--config", os.fspath(directory / "kernel.toml")]
    command += ["--no-journal"] if policy == "off" else ["--journal", os.fspath(runtime)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        with connect(runtime, process) as client:
            yield client
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def _calls(directory: Path) -> dict[tuple[str, str], float]:
    """Microseconds of a round trip, by policy and call."""
    times: dict[tuple[str, str], list[float]] = {}
    with contextlib.ExitStack() as stack:
        clients = {policy: stack.enter_context(_kernel(directory / policy, policy)) for policy in POLICIES}
        pids = {policy: client(Spawn("sim", [1])) for policy, client in clients.items()}
        for turn in range(TURNS + 1):
            for policy, client in clients.items():
                feed = Feed(pids[policy], [1])
                for name, call in (("null", Null()), ("feed", feed)):
                    some = timed(lambda client=client, call=call: client(call), CALLS)  # type: ignore[misc]
                    if turn:  # the first warms up
                        times.setdefault((policy, name), []).extend(some)
    return {key: statistics.median(some) for key, some in times.items()}


def run() -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="llmasos-") as place:
        off, on, plain = _steps(Path(place))
        calls = _calls(Path(place))
    told = "without a journal"
    name = f"end of a step of {RUNS}, frame made and written"
    steps = [Figure(name, on, "ms", off, told, TARGET), Figure(f"{name}, --plain", plain, "ms", off, told)]
    return steps + [
        Figure(f"{name} call, journal {policy}", calls[policy, name], "us", calls["off", name], told)
        for name in ("null", "feed")
        for policy in POLICIES[1:]
    ]
