"""The guides to the simulator and to policies: their programs run, print what is shown, and their tables are complete."""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path

import msgspec
import pytest

from docs import blocks
from llmasos.kernel.edge import boot_config, settings
from llmasos.simulator.chart import BARS, MARKS
from llmasos.syscalls import trace_events
from llmasos.syscalls.records import TraceEvent, WaitFor
from llmasos.syscalls.table import Decode, Dmesg, Sched, Spawn, Trace
from tests.booted import booted

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
SIMULATOR, POLICIES, CONFIGURATION = (DOCS / f"{name}.md" for name in ("simulator", "policies", "configuration"))
_PYTHON = re.compile(r"^```python\n(.*?)^```\n(?:\n```\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
EXAMPLE = ROOT / "examples" / "policies" / "shortest_first.py"


@pytest.mark.parametrize("guide", [SIMULATOR, POLICIES], ids=lambda path: path.name)
def test_the_programs_of_a_guide_run_and_print_what_it_shows(guide: Path) -> None:
    text, names = guide.read_text(), dict[str, object]()
    programs = list(_PYTHON.finditer(text))
    assert len(programs) >= 2
    for program in programs:
        printed = io.StringIO()
        code = "\n" * text.count("\n", 0, program.start(1)) + program[1]
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(guide), "exec"), names)
        if program[2] is not None:
            assert printed.getvalue().splitlines() == program[2].splitlines()


def test_the_policy_of_the_guide_is_the_example_and_it_is_short() -> None:
    text = EXAMPLE.read_text()
    assert f"```python\n{text}```" in POLICIES.read_text()
    code = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith(("#", '"""'))]
    assert len(code) <= 20


@pytest.mark.processes
def test_the_policy_of_the_guide_runs_on_a_running_kernel() -> None:
    policy = f"{EXAMPLE}:ShortestFirst"
    kernel_with_it = booted("--device", "sim:time_scale=0.05", "--max-runs", "1", "--policy", policy)
    with kernel_with_it as kernel, kernel.connect() as client:
        assert client(Sched()).policy.startswith("shortest_first.py:ShortestFirst@")
        client(Trace(timeout=0.0))  # from here on all is recorded
        pids = [client(Spawn("sim", [1, 2, 3])) for _ in range(3)]
        for pid, count in zip(pids, (90, 60, 30), strict=True):
            client(Decode(pid, count, wait=False))
        events: list[TraceEvent] = []
        while sum(event.what == "proc.decoded" for event in events) < len(pids):
            events += client(Trace(start=len(events), limit=1000)).events
        assert [event.pid for event in events if event.what == "proc.decoded"] == pids[::-1]
        assert client(Sched(policy="mlfq")).policy == "mlfq"
        assert client(Sched(policy=policy)).policy.startswith("shortest_first.py:ShortestFirst@")
        assert [line.text for line in client(Dmesg()) if line.level == "error"] == []


def test_every_sign_of_a_chart_is_explained_and_every_kind_of_bar_is_one_that_ps_says() -> None:
    text = SIMULATOR.read_text()
    table = text[text.index("## The picture") : text.index("`chart.rows` has")]
    for kind, (sign, _, _) in {**BARS, **MARKS}.items():
        assert f"| `{sign}` | `{kind}` |" in table
    assert {*BARS} - {"run", "prompt", "again", "ready", "stopped"} <= {wait.value for wait in WaitFor}
    assert set(MARKS) <= set(trace_events.EVENTS)


def test_every_block_stands_in_a_document_and_has_something_to_say_of_each_of_its_rows() -> None:
    found = [name for path in DOCS.glob("*.md") for name in blocks.named(path.read_text())]
    assert sorted(found) == sorted(blocks.BLOCKS)
    for name, block in blocks.BLOCKS.items():
        for row in block().splitlines()[2:]:
            about = re.split(r"(?<!\\)\|", row)[-2].strip()
            assert about, f"{name}: nothing is said of {row}"


def test_the_configuration_of_the_reference_is_one(tmp_path: Path) -> None:
    found = re.search(r"^```toml\n(.*?)^```$", CONFIGURATION.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    file = tmp_path / "llmasos.toml"
    (tmp_path / "story").mkdir()
    file.write_text(found[1].replace("/srv/models/story", str(tmp_path / "story")))
    config = boot_config.build(settings.read(os.fspath(file)), boot_config.Overrides(), tmp_path, "test")
    assert config.devices[0].policy == "mlfq"
    assert config.quantum == 32
    assert set(config.groups) == {"/users/ada"}


def test_the_reference_has_every_key_of_the_configuration_file() -> None:
    text = CONFIGURATION.read_text()
    for struct in (settings.File, settings.Tuning, settings.Device, settings.Journal, settings.GroupFile):
        for field in msgspec.structs.fields(struct):
            assert f"| `{field.name}` | " in text
