"""Tables, JSON and lines as a person sees them in terminals of 60, 80 and 200 columns, and as a program reads them."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wcwidth import wcswidth

from llmasos.syscalls import blocking
from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.records import GroupInfo, GroupSettings, PressureInfo, ProcessInfo, State
from llmasos.syscalls.table import Getinfo, GroupCreate, Kill, Pagein, Spawn
from llmasos.userland.programs import groups, listing, ps, system
from llmasos.userland.programs.boot import private_kernel
from llmasos.userland.programs.listing import Asked
from llmasos.userland.programs.screen import Screen, wrapped
from llmasos.userland.programs.table import NAME, Column, Table, cut, cut_apart
from tests.booted import eventually
from tests.userland.command_line import llmasos, on_terminal
from tests.userland.prompt import WIDTHS, terminal
from tests.userland.terminal import Terminal

AGENT = "the-agent-with-a-long-name"
SIM = "sim:context=256,vocab=100"


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The runtime directory of a kernel with an agent, two groups whose paths differ in the middle, and a model twice."""
    place = tmp_path_factory.mktemp("k")
    with private_kernel(place, ["--device", "sim:time_scale=0"]), blocking.connect(place, name="test") as kernel:
        for path in ("/research-department", "/research-department/one", "/research-department/two"):
            kernel(GroupCreate(path))
        for path in ("one", "two"):
            kernel(GroupCreate(f"/research-department/{path}/with-the-same-name-below"))
        pid = kernel(Spawn(model=SIM, tokens=list(range(40)), name=AGENT))
        kernel(Pagein(SIM, dtype="int8"))
        eventually(lambda: kernel(Getinfo(pid)).state is State.BLOCKED, "it waits for input")
        yield place


# --- a real terminal ------------------------------------------------------------------------------------------------


@WIDTHS
@pytest.mark.parametrize("verb", ["ps", "models", "groups", "devices"])
def test_a_table_fits_the_terminal_and_says_what_it_leaves_out(where: Path, verb: str, columns: int) -> None:
    lines, status = on_terminal(where, columns, verb)
    assert status == 0
    assert all(wcswidth(line) <= columns for line in lines), lines
    heads = lines[0].split()
    listings: dict[str, listing.Listing[Any]] = {
        "ps": ps.LISTING, "models": system.MODELS, "groups": groups.LISTING, "devices": system.DEVICES,
    }  # fmt: skip
    usual = [one.column for one in listings[verb].fields if one.usual]
    said = " ".join(lines)
    for column in usual:
        assert column.title.split()[0] in heads or re.search(rf"not shown: .*\b{re.escape(column.word)}\b", said), column
    assert usual[0].title in heads


@WIDTHS
def test_names_are_whole_in_every_width(where: Path, columns: int) -> None:
    assert any(line.endswith(f"  {AGENT}") for line in on_terminal(where, columns, "ps")[0])
    assert any(SIM in line for line in on_terminal(where, columns, "models")[0])
    shown = "\n".join(on_terminal(where, columns, "groups")[0])
    for path in ("one", "two"):
        assert f"/research-department/{path}/with-the-same-name-below" in shown


@WIDTHS
def test_wide_shows_all_columns_and_o_those_that_were_chosen(where: Path, columns: int) -> None:
    heads = on_terminal(where, columns, "ps", "--wide")[0][0].split()
    assert heads == [one.title for one in ps.LISTING.fields if one.usual]
    lines, _ = on_terminal(where, columns, "ps", "-o", "name,pid,Group")
    assert lines[0].split() == ["NAME", "PID", "GROUP"]
    assert "not shown" not in "".join(lines)


@WIDTHS
def test_hints_and_errors_break_between_words(where: Path, columns: int) -> None:
    for words in (("kill", "999999"), ("group", "foo"), ("cat", "1"), ("policy", "unfair"), ("stop", "nobody-here")):
        lines, status = on_terminal(where, columns, *words)
        assert status in (1, 2)
        whole = llmasos(where, *words).stderr
        assert all(len(line) <= columns for line in lines)
        assert " ".join(lines).split() == whole.split(), "no word is broken"


@WIDTHS
def test_an_event_of_strace_is_one_line_and_calls_that_only_look_are_left_out(
    where: Path, tmp_path: Path, columns: int
) -> None:
    with (
        terminal(where, tmp_path, "strace", "all", "--count", "4", columns=columns) as watcher,
        blocking.connect(where, name="test") as kernel,
    ):
        while watcher.process.poll() is None:  # from when it looks on
            kernel(Getinfo())
            kernel(Kill(kernel(Spawn(model=SIM, tokens=list(range(100)), name="short"))))
        watcher.wait()
        lines = watcher.screen.splitlines()
    assert len(lines) == 4
    assert all(len(line) <= columns for line in lines)
    assert not any("getinfo" in line for line in lines)


@WIDTHS
def test_the_shells_bottom_line_tells_images_of_one_model_apart_and_is_cut_between_its_parts(
    shell: Terminal, columns: int
) -> None:
    shell.shows(r"agents?: \d+ decoding")
    line = [line for line in shell.display if line][-1]
    assert len(line) < columns
    first, *others = re.split(r"  \|  ", line.removesuffix(" …"))
    assert re.fullmatch(r" \d+ agents?: \d+ decoding, \d+ stopped", first)
    whole = [rf"{re.escape(SIM)} {dtype} \d+/\d+ pages" for dtype in ("bf16", "int8")] + [r"\d+ tokens decoded"]
    assert len(others) == {60: 0, 80: 0, 200: 3}[columns]
    assert all(re.fullmatch(*pair) for pair in zip(whole, others, strict=False))
    assert line.endswith(" …") == (columns < 200)


# --- as data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["ps", "models", "groups", "devices", "stats", "uptime", "policy", f"ps {AGENT}"])
def test_json_is_one_document_of_the_records_as_they_are(where: Path, verb: str) -> None:
    ended = llmasos(where, *verb.split(), "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    found = json.loads(ended.stdout)
    assert found
    assert "\x1b" not in ended.stdout
    if verb == "ps":
        (row,) = (row for row in found if row["name"] == AGENT)
        with blocking.connect(where, name="test") as kernel:
            info = kernel(Getinfo(row["pid"]))
        assert set(ProcessInfo.__struct_fields__) <= set(row)
        assert (row["length"], row["kind"], row["model"]) == (40, "llm", info.model)
        assert row["usage"]["computed"] == info.usage.computed


def test_json_has_the_chosen_columns_only_and_under_the_same_names(where: Path) -> None:
    rows = json.loads(llmasos(where, "ps", "--json", "-o", "PID,DECODED,TOKENS").stdout)
    assert all(set(row) == {"pid", "usage", "length"} for row in rows)
    assert all(set(row["usage"]) == {"decoded"} for row in rows)


def test_rows_are_sorted_by_value_and_not_by_letters(where: Path) -> None:
    for word, step in (("PID", 1), ("-pid", -1)):
        rows = json.loads(llmasos(where, "ps", "--json", "--sort", word, "-o", "pid").stdout)
        pids = [row["pid"] for row in rows]
        assert pids == sorted(pids)[::step]
    ended = llmasos(where, "ps", "--sort", "COLOUR")
    assert ended.returncode == 2
    assert "there is no column 'COLOUR'; there are PID, " in ended.stderr


def test_a_pipe_gets_every_column_uncut_and_without_a_remark(where: Path) -> None:
    ended = llmasos(where, "ps")
    assert ended.stdout.splitlines()[0].split() == [one.title for one in ps.LISTING.fields if one.usual]
    assert "not shown" not in ended.stdout + ended.stderr


def test_json_commands_no_terminal_and_reads_back_the_same() -> None:
    evil = 'a"\\\x1b]0;x\x07\x7f\x9b2J\u202e\ud800日本 ü'
    text = listing.text({"name": evil})
    assert json.loads(text)["name"] == evil
    assert text.isprintable()
    assert "日本 ü" in text


# --- the rules of fitting -------------------------------------------------------------------------------------------

cell = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z", "M")), max_size=30)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    count = draw(st.integers(1, 6))
    columns = [
        Column(
            f"C{number}",
            right=draw(st.booleans()),
            elastic=draw(st.booleans()),
            keep=draw(st.integers(1, NAME - 1)),
            least=draw(st.integers(3, 12)),
        )
        for number in range(count)
    ]
    columns.append(Column("NAME", elastic=True, keep=NAME))
    table = Table(columns)
    for _ in range(draw(st.integers(0, 4))):
        table.add(*(draw(cell) for _ in columns))
    return table


@given(tables(), st.integers(8, 200))
def test_no_line_is_wider_than_the_terminal_and_every_column_is_shown_or_named(table: Table, width: int) -> None:
    fit = table.fitted(width)
    assert all(wcswidth(line) <= width for line in table.lines(fit))
    shown = [table.columns[i].word for i in fit.shown]
    assert "NAME" in shown
    assert sorted(shown + fit.hidden) == sorted(column.word for column in table.columns)
    if fit.hidden:
        assert wcswidth(table.plain()[0]) > 0
        assert max(map(wcswidth, table.plain())) > width, "nothing is left out of what fits"


@given(tables(), st.integers(8, 200))
def test_the_least_wanted_columns_go_first(table: Table, width: int) -> None:
    fit = table.fitted(width)
    gone = [column.keep for column in table.columns if column.word in fit.hidden]
    stayed = [table.columns[i].keep for i in fit.shown]
    assert not gone or max(gone) <= min(stayed)


@given(cell, st.integers(0, 30), st.sampled_from(["start", "middle", "end"]))
def test_a_cut_text_fits_and_a_text_that_fits_is_not_cut(text: str, width: int, where: str) -> None:
    shown = cut(text, width, where)
    assert wcswidth(shown) <= width
    assert shown == text or "…" in shown or width == 0
    assert (shown == text) == (wcswidth(text) <= width)


def test_names_are_cut_where_they_stay_different() -> None:
    assert cut_apart(["/a/long/path/one", "/a/long/path/two"], 10) == ["/a/lo…/one", "/a/lo…/two"]
    assert len(set(cut_apart(["one/a/long/path", "two/a/long/path"], 10))) == 2


@given(st.text("ab \n", max_size=60), st.integers(5, 30))
def test_wrapped_text_keeps_its_words_and_its_width(text: str, width: int) -> None:
    lines = wrapped(text, width)
    assert " ".join(lines).split() == text.split()
    for line in lines:
        assert len(line) <= width or len(line.split()) == 1


def test_a_column_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    screen = Screen(io.StringIO(), io.StringIO())
    with pytest.raises(SyscallError, match="there is no column 'X'; there are DEVICE, KIND"):
        system.DEVICES.show(screen, [], Asked(columns="NAME,X"))


def test_models_of_one_name_are_told_apart() -> None:
    from llmasos.syscalls.records import ModelInfo

    rows = [ModelInfo("tiny", "/t", dtype=dtype, device=device) for dtype, device in
            (("bf16", "cpu0"), ("int8", "cpu0"), ("int8", "cpu1"))]  # fmt: skip
    assert system.apart(rows) == ["tiny bf16", "tiny int8 on cpu0", "tiny int8 on cpu1"]
    assert system.apart(rows[:1]) == ["tiny"]


def test_the_stall_of_a_group_tells_memory_and_what_its_limits_held_back() -> None:
    def shown(memory: float, quota: float) -> str:
        some = {"memory": memory, "quota": quota, "cpu": 0.9, "weights": 0.9}
        pressure = {name: PressureInfo([share] * 3, 0.0, [0.0] * 3, 0.0) for name, share in some.items()}
        info = GroupInfo("/a", GroupSettings(), 0, 0, 0, 0, 0, [], {}, pressure)
        (field,) = (field for field in groups.LISTING.fields if field.column.title == "STALL")
        return str(field.cell(info))

    assert shown(0.25, 0.0) == "25%"
    assert shown(0.0, 0.4) == "0%, quota 40%"
    assert shown(0.03, 0.004) == "3%"
