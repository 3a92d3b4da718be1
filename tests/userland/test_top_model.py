"""What `top` makes of samples: rates, the tree, the columns that a width has room for, the lines above."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from llmasos.syscalls.records import Kind, ModelInfo, PressureInfo, ProcessInfo, State, Tier, WaitFor
from llmasos.userland.top import panel
from llmasos.userland.top.columns import BY_TITLE, COLUMNS, NAME, Column, cell, place, short, speed
from llmasos.userland.top.details import pairs, waits
from llmasos.userland.top.model import PAST, History, Picture, Row
from llmasos.userland.top.sample import Sample
from llmasos.userland.top.spark import spark
from llmasos.userland.top.tree import Arrangement, members
from tests.userland.top_pictures import agent, device, group, model, program, sample


def picture(*samples: Sample) -> Picture:
    history = History()
    made = None
    for one in samples:
        made = history.add(one)
    assert made is not None
    return made


# --- rates ----------------------------------------------------------------------------------------------------------


def test_rates_are_tokens_over_the_seconds_of_the_kernels_clock() -> None:
    before = sample(10.0, [agent(4, "bob", computed=100, decoded=60)], tokens_computed=1000, tokens_decoded=500)
    now = sample(14.0, [agent(4, "bob", computed=180, decoded=80)], tokens_computed=1400, tokens_decoded=600)
    seen = picture(before, now)
    assert (seen.seconds, seen.computed, seen.decoded) == (4.0, 100.0, 25.0)
    assert (seen.rows[4].computed, seen.rows[4].decoded) == (20.0, 5.0)
    assert seen.rows[4].past == (20.0,)
    assert picture(before).rows[4].computed == 0.0, "one sample has no rate"


def test_a_process_that_came_since_has_done_all_of_it_since() -> None:
    seen = picture(sample(1.0), sample(3.0, [agent(4, "bob", computed=50)]))
    assert seen.rows[4].computed == 25.0


@pytest.mark.parametrize("other", [{"os_pid": 8, "at": 9.0}, {"at": 1.0}])
def test_another_kernel_counts_from_zero(other: dict[str, float]) -> None:
    old = [sample(at, [agent(4, "bob", computed=1000 * int(at))], tokens_computed=9000) for at in (7.0, 8.0)]
    seen = picture(*old, sample(rows=[agent(4, "bob", computed=7)], tokens_computed=7, **other))  # type: ignore[arg-type]
    assert (seen.seconds, seen.computed, seen.rows[4].computed, seen.rows[4].past) == (0.0, 0.0, 0.0, ())


def test_stall_is_the_share_of_time_that_it_waited_for_anything_but_input() -> None:
    before = sample(10.0, [agent(4, "bob", waits={"input": 5.0, "pagein": 1.0, "ready": 1.0})])
    now = sample(12.0, [agent(4, "bob", waits={"input": 6.0, "pagein": 1.5, "ready": 1.1, "stopped": 0.4})])
    assert picture(before, now).rows[4].stall == pytest.approx(0.3)


def test_a_group_is_the_sum_of_what_is_in_it_and_below_it() -> None:
    groups = [group("/users/ada/a"), group("/users/ada/a/b")]
    rows = [(4, "/users/ada/a", 100), (5, "/users/ada/a/b", 40), (6, "/users/ada", 20)]
    first = sample(1.0, [agent(pid, "x", group=path) for pid, path, _ in rows], groups=groups)
    then = sample(2.0, [agent(pid, "x", group=path, computed=count) for pid, path, count in rows], groups=groups)
    seen = picture(first, then)
    assert {path: made.computed for path, made in seen.groups.items()} == {
        "/": 160.0, "/system": 0.0, "/users": 160.0, "/users/ada": 160.0, "/users/ada/a": 140.0, "/users/ada/a/b": 40.0,
    }  # fmt: skip
    assert seen.groups["/users/ada/a"].length == 140
    assert [row.info.pid for row in members(seen, "/users/ada/a")] == [4, 5]
    assert [row.info.pid for row in members(seen, "/")] == [4, 5, 6]


def test_a_program_is_the_sum_of_its_agents_wherever_they_are() -> None:
    def rows(done: int) -> list[ProcessInfo]:
        return [
            agent(4, "bob", computed=done, decoded=done // 2, swapped=3), agent(5, "amy", computed=3 * done, swapped=4),
            program(7, "idle"), agent(8, "far", group="/users", computed=done), agent(9, "other", ppid=7, computed=done),
        ]  # fmt: skip

    seen = picture(sample(1.0, rows(0)), sample(2.0, rows(10)))
    shell = seen.rows[3]
    assert shell.agents is not None
    assert (shell.computed, shell.decoded, shell.agents.length, shell.agents.swapped) == (50.0, 5.0, 50, 7)
    assert seen.rows[7].computed == 10.0
    assert seen.rows[1].agents is None, "init has none"
    assert seen.groups["/"].computed == 60.0, "nobody counts twice"
    assert seen.peak == 30.0, "of a process"
    shown = {column.title: cell(column, shell, 8, 1.0, wide=False) for column in COLUMNS}
    assert (shown["TOK/S"], shown["TOKENS"], shown["SWAP"], shown["DECODED"]) == ("50.0", "50", "7", "5")
    alone = [line.of for line in Arrangement(flat=True).lines(seen) if line.key == "3"]
    assert [of.computed for of in alone] == [0.0], "in a flat list its agents stand for themselves"


def test_the_past_goes_back_so_far_and_what_was_idle_throughout_has_none() -> None:
    history = History()
    seen = None
    for second in range(PAST + 50):
        rows = [agent(4, "bob", computed=10 * second), agent(5, "sleeper", computed=99)]
        seen = history.add(sample(float(second), rows))
    assert seen is not None
    assert seen.rows[4].past == (10.0,) * PAST
    assert seen.rows[5].past == ()
    assert seen.peak == 10.0
    for second in range(PAST + 50, 2 * PAST + 50):
        seen = history.add(sample(float(second), [agent(4, "bob", computed=10 * (PAST + 49))]))
    assert seen.rows[4].past == (), "all of it is over"
    seen = history.add(sample(999.0))
    assert not [of for of in history._past if of.startswith("pid")], "who is gone is forgotten"


def test_how_busy_a_device_was() -> None:
    seen = picture(sample(1.0, devices=[device(busy=0.0)]), sample(5.0, devices=[device(busy=3.0)]))
    assert seen.busy["cpu0"] == (0.75,)


def test_a_sparkline_has_a_bar_for_each_moment_the_newest_last() -> None:
    assert spark([0.0, 1.0, 4.0, 8.0], 6, 8.0) == "   ▁▄█"
    assert spark([8.0, 0.0, 8.0], 2, 8.0) == " █"
    assert spark([], 3, 0.0) == "   "


# --- the tree -------------------------------------------------------------------------------------------------------


def crowd() -> Picture:
    """ada's shell (3) has bob and amy; zoe's program (7) has a fork in another group; one nobody knows the owner of."""
    groups = [group("/users/zoe"), group("/users/zoe/team")]

    def rows(done: int) -> list[ProcessInfo]:
        return [
            agent(4, "bob", computed=done), agent(5, "amy", computed=3 * done), program(7, "agents", "/users/zoe"),
            agent(8, "worker", ppid=7, group="/users/zoe", computed=2 * done, state=State.STOPPED, wait=WaitFor.NONE),
            agent(9, "helper", ppid=7, group="/users/zoe/team"), agent(10, "orphan", ppid=1, group="/gone"),
        ]  # fmt: skip

    return picture(sample(1.0, rows(0), groups=groups), sample(2.0, rows(10), groups=groups))


def drawn(arrangement: Arrangement, seen: Picture) -> list[str]:
    return [line.guide + ("+" if line.folded else "") + line.name for line in arrangement.lines(seen)]


def test_processes_stand_below_the_program_that_owns_them_within_their_group() -> None:
    assert drawn(Arrangement(), crowd()) == [
        "users", "├ ada", "│ └ shell", "│   ├ amy", "│   └ bob", "└ zoe", "  ├ agents", "  │ └ worker",
        "  └ team", "    └ helper", "system", "├ init", "└ driver:cpu0", "orphan",
    ]  # fmt: skip


def test_groups_with_nothing_but_one_group_in_them_share_its_line() -> None:
    assert drawn(Arrangement(), picture(sample(1.0)))[:2] == ["system", "├ init"]
    lines = Arrangement().lines(picture(sample(1.0)))
    assert [(line.name, line.key) for line in lines if line.key.startswith("/users")] == [("users/ada", "/users/ada")]


def test_what_is_folded_hides_what_is_below_it() -> None:
    arrangement = Arrangement(folded={"/users/ada", "7", "/not/there"})
    assert drawn(arrangement, crowd())[:6] == ["users", "├ +ada", "└ zoe", "  ├ +agents", "  └ team", "    └ helper"]
    arrangement.needle = "bob"
    assert drawn(arrangement, crowd()) == ["users/ada", "└ shell", "  └ bob"], "a filter looks into what is folded"


@pytest.mark.parametrize(
    ("needle", "found"),
    [
        ("BOB", ["users/ada", "└ shell", "  └ bob"]),
        ("8", ["users/zoe", "└ agents", "  └ worker"]),
        ("stopped", ["users/zoe", "└ agents", "  └ worker"]),
        ("team", ["users/zoe/team", "└ helper"]),
        ("driver", ["system", "└ driver:cpu0"]),
        ("nothing like this", []),
    ],
)
def test_a_filter_keeps_what_it_finds_and_what_that_stands_below(needle: str, found: list[str]) -> None:
    assert drawn(Arrangement(needle=needle), crowd()) == found


def test_sorting_is_among_siblings_and_equals_stay_in_order() -> None:
    assert drawn(Arrangement(sort=NAME), crowd())[:5] == ["orphan", "system", "├ driver:cpu0", "└ init", "users"]
    assert drawn(Arrangement(sort=NAME, reverse=True), crowd())[0] == "users"
    oldest = drawn(Arrangement(sort="PID"), crowd())
    assert oldest.index("│   ├ bob") + 1 == oldest.index("│   └ amy")
    flat = [line.of.info.pid for line in Arrangement(sort="TOK/S", flat=True).lines(crowd()) if isinstance(line.of, Row)]
    assert flat == [5, 8, 4, 9, 10, 1, 2, 3, 7], "the fastest first, then LLM processes, then the others by pid"


@given(st.data())
def test_whatever_the_tree_every_process_has_one_line(data: st.DataObject) -> None:
    paths = ["/", "/a", "/a/b", "/a/b/c", "/d"]
    owners = st.sampled_from([1, 20, 21, 22])
    rows = [program(pid, f"p{pid}", data.draw(st.sampled_from(paths))) for pid in (20, 21, 22)]
    rows += [
        agent(pid, f"a{pid}", ppid=data.draw(owners), group=data.draw(st.sampled_from([*paths, "/lost"])))
        for pid in range(30, 30 + data.draw(st.integers(0, 8)))
    ]
    groups = [group(path) for path in paths[1:] if data.draw(st.booleans())]
    seen = picture(sample(1.0, rows, groups=groups))
    for column in COLUMNS:
        arrangement = Arrangement(sort=column.title, reverse=data.draw(st.booleans()))
        lines = arrangement.lines(seen)
        keys = [line.key for line in lines]
        assert len(keys) == len(set(keys))
        assert sorted(int(key) for key in keys if not key.startswith("/")) == sorted(seen.rows)
        arrangement.flat = True
        values = [column.value(line.of) for line in arrangement.lines(seen)]
        assert values == sorted(values, reverse=isinstance(values[0], str) is arrangement.reverse)


# --- columns --------------------------------------------------------------------------------------------------------


@given(st.integers(20, 300), st.integers(1, 128), st.integers(1, 10))
def test_columns_stand_side_by_side_within_the_width_and_names_are_cut_last(width: int, names: int, pids: int) -> None:
    placed, hidden = place(width, names, pids)
    end = 0
    for at in placed:
        assert at.start >= end
        end = at.start + at.width + 1
    assert placed[-1].start + placed[-1].width <= width
    assert {at.column.title for at in placed} | {column.title for column in hidden} == set(BY_TITLE)
    (name,) = (at for at in placed if at.column.title == NAME)
    if name.width < min(names, 40):
        assert {at.column.title for at in placed} <= {"PID", NAME, "STATE", "TOK/S"}
    shown = [at.column.rank for at in placed]
    assert all(column.rank >= max(shown) for column in hidden), "the least important ones have gone"


def test_what_fits_at_the_widths_that_people_have() -> None:
    assert [at.column.title for at in place(60, 20)[0]][:4] == ["PID", NAME, "STATE", "TOK/S"]
    assert {"RATE", "NI", "TOKENS", "PAGES", "STALL"} <= {at.column.title for at in place(80, 20)[0]}
    assert place(200, 20)[1] == [BY_TITLE["GROUP"]]


_COUNTS = st.integers(0, (1 << 31) - 1)


@given(
    st.sampled_from(COLUMNS), st.booleans(), st.sampled_from(State), st.sampled_from(WaitFor), _COUNTS, _COUNTS,
    st.floats(0.0, 1e9), st.floats(0.0, 1e6), st.integers(-20, 19),
)  # fmt: skip
def test_every_cell_fits_its_column(
    column: Column,
    wide: bool,
    state: State,
    wait: WaitFor,
    count: int,
    pages: int,
    seconds: float,
    rate: float,
    nice: int,
) -> None:
    wait = wait if state is State.BLOCKED else WaitFor.NONE
    info = agent(
        4, "x", computed=count, decoded=count, state=state, wait=wait, nice=nice, exit_status=255, device_seconds=seconds,
        context=max(1, count), length=count, pages=pages, shared_pages=pages, swapped=pages,
    )  # fmt: skip
    row = Row(info, rate, rate, 1.0, (rate,) * 5)
    width = column.wide(120 if wide else 80)
    if column.title not in (NAME, "GROUP", "MODEL"):
        assert cell_len(cell(column, row, width, rate, wide=wide)) <= width
    seen = picture(sample(1.0, groups=[group("/big", pids=count)]))
    assert cell_len(cell(column, seen.groups["/big"], width, 0.0, wide=wide)) <= max(width, 5)


@given(st.floats(0, 1e18))
def test_a_count_is_short(count: float) -> None:
    assert len(short(count)) <= 5
    assert len(speed(count)) <= 5


# --- the lines above, and details -----------------------------------------------------------------------------------


def busy_picture() -> Picture:
    squeezed = PressureInfo([0.25, 0.1, 0.0], 1.0, [0.12, 0.0, 0.0], 1.0)
    rows = [agent(4, "bob"), agent(5, "amy", state=State.RUNNING, wait=WaitFor.NONE)]
    then = [agent(4, "bob"), agent(5, "amy", state=State.RUNNING, wait=WaitFor.NONE, computed=10)]
    devices = [device(), device("gpu1", state="down", error="it burns")]
    first, second = (
        sample(at, these, devices=devices, tokens_computed=done) for at, these, done in ((1.0, rows, 0), (3.0, then, 300))
    )
    seen = picture(first, second)
    seen.sample.groups[0] = group("/", pressure={"cpu": squeezed, "memory": squeezed})
    return picture(first, second)


def test_the_lines_above_tell_of_devices_tiers_models_and_pressure() -> None:
    text = "\n".join(line.plain for line in panel.lines(busy_picture(), 200, 50, panel.Palette()))
    assert re.search(r"2 agents +1 running +150 tok/s", text)
    assert re.search(r"cpu0 +busy \[ +\] +0% +up +0 ready +fair", text)
    assert re.search(r"gpu1 .* down +it burns", text)
    assert re.search(
        r"ram +KV +\[.*\] +1.9 MiB of 64.0 MiB +weights 13.0 MiB of 1.0 GiB +640 KiB kept for prefixes", text
    )
    assert re.search(r"disk +KV +\[.*\] +640 KiB of 3.1 MiB", text)
    assert re.search(r"30/100 pages of 64.0 KiB +tiny +on cpu0 +2 processes", text)
    assert re.search(r"pressure +cpu 25% \(all 12%\) +memory 25% \(all 12%\)", text)


def test_each_lower_tier_has_a_bar_of_its_own_and_those_of_an_older_kernel_one() -> None:
    tiers = [Tier("hbm", 8 << 30, 0.0), Tier("host", 2 << 30, 0.0), Tier("disk", 1 << 30, 0.0)]
    told = model(slots=50, slots_free=35, tier_slots=[20, 30], tier_slots_free=[10, 25])

    def lines(one: ModelInfo) -> str:
        seen = picture(sample(1.0, devices=[device(tiers=tiers)], models=[one]))
        return "\n".join(line.plain for line in panel.lines(seen, 200, 50, panel.Palette()))

    assert re.search(r"host +KV +\[.*\] +640 KiB of 1.2 MiB", lines(told))
    assert re.search(r"disk +KV +\[.*\] +320 KiB of 1.9 MiB", lines(told))
    older = lines(model(slots=50, slots_free=35))
    assert re.search(r"host\+disk +KV +\[.*\] +960 KiB of 3.1 MiB", older)
    none = lines(model(slots=0, slots_free=0))
    assert re.search(r"host +KV +\[ +\] +0 B of 2.0 GiB", none)


@given(st.integers(40, 240), st.integers(2, 20))
def test_a_line_has_whole_parts_only_and_what_is_left_out_is_counted(width: int, most: int) -> None:
    seen = busy_picture()
    words = set(re.findall(r"[^\W\d_]+", "\n".join(line.plain for line in panel.lines(seen, 1000, 50, panel.Palette()))))
    lines = panel.lines(seen, width, most, panel.Palette())
    assert len(lines) <= most
    for line in lines:
        assert cell_len(line.plain) <= width
        assert set(re.findall(r"[^\W\d_]+", line.plain)) <= words | {"line", "lines", "more", "d"}
    every = len(panel.lines(seen, width, 100, panel.Palette()))
    if every > most and width >= 100:
        assert re.search(rf"{every - most} lines? more: d", lines[0].plain)


@given(st.integers(30, 200))
def test_all_of_it_is_there_when_it_is_asked_for(width: int) -> None:
    text = panel.whole(busy_picture(), width, panel.Palette()).plain
    for told in ("2 agents", "it burns", "kept for prefixes", "of 3.1 MiB", "tiny", "2 processes", "memory 25%"):
        assert told in text
    assert all(cell_len(line) <= max(width, 40) for line in text.splitlines())


def test_details_say_what_a_process_waits_for() -> None:
    said = dict(pairs(Row(agent(4, "bob", wait=WaitFor.WEIGHTS, parked=2)), 80))
    assert said["waits for"] == "the weights of its model"
    assert said["state"] == "blocked:weights"
    for state in State:
        for wait in WaitFor:
            assert waits(agent(4, "x", state=state, wait=wait)), "whatever it is in, it is told"
    assert dict(pairs(picture(sample(1.0)).groups["/users"], 80))["group"] == "/users"
    assert "cpu time" in dict(pairs(Row(program(3, "shell")), 80))
    assert {row.info.kind for row in crowd().rows.values()} == set(Kind)
