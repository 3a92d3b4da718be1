"""Recordings of `top`: what is written comes back, whatever happened to the file, and plays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos.syscalls import records
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import ProcessInfo, TraceEvent
from llmasos.userland.top.model import History
from llmasos.userland.top.player import SPEEDS, Player
from llmasos.userland.top.record import _NAMED, Moment, Recording, Writer, read
from llmasos.userland.top.sample import Sample
from tests.userland.top_pictures import agent, sample


def written(path: Path, samples: Sequence[Sample], events: Sequence[TraceEvent] = ()) -> Path:
    writer = Writer(path)
    for one in samples:
        writer.add(one, events)
    writer.close()
    return path


def changing(second: int) -> Sample:
    """Agents that come, work and go."""
    rows: list[ProcessInfo] = [agent(4, "bob", computed=10 * second), agent(5, "sleeper")]
    rows += [agent(10 + second % 7, "guest", computed=second)]
    return sample(float(second), rows, tokens_computed=20 * second)


def test_what_was_recorded_comes_back(tmp_path: Path) -> None:
    samples = [changing(second) for second in range(150)]
    event = TraceEvent(3, 0.5, "sched.step", 0, "cpu0", 4, "5+4")
    writer = Writer(tmp_path / "r")
    writer.add(samples[0])
    writer.add(samples[1], [event], lost=7)
    for one in samples[2:]:
        writer.add(one)
    writer.close()
    back = read(tmp_path / "r")
    assert [moment.sample for moment in back.moments] == samples
    assert (back.moments[1].events, back.moments[1].lost) == ((event,), 7)
    assert (back.moments[2].events, back.moments[2].lost, back.torn) == ((), 0, False)
    assert back.kernel == "0.1.0"


def test_it_is_json_lines_whose_header_names_the_fields_and_only_the_user_can_read_it(tmp_path: Path) -> None:
    path = written(tmp_path / "r", [changing(second) for second in range(3)], [TraceEvent(0, 0.5, "sig.stop", 4)])
    assert path.stat().st_mode & 0o777 == 0o600
    header, event, first, _, second, *_ = map(json.loads, path.read_text().splitlines())
    assert (header["type"], header["version"]) == ("llmasos-top", 1)
    assert (event["type"], event["what"], event["pid"]) == ("event", "sig.stop", 4)
    at = {name: place for place, name in enumerate(header["fields"]["ProcessInfo"])}
    assert [row[at["name"]] for row in first["rows"]][-3:] == ["bob", "sleeper", "guest"]
    assert [row[at["name"]] for row in second["rows"]] == ["bob", "guest"], "who has not changed is not repeated"
    assert second["gone"] == [10]


def test_a_ticket_is_no_part_of_it() -> None:
    from llmasos.userland.top.sample import take

    boot = msgspec.structs.replace(changing(1).boot, ticket=b"secret")

    def kernel(call: object) -> object:
        return {"BootInfoCall": boot, "StatsCall": changing(1).stats}.get(type(call).__name__, [])

    assert take(kernel).boot.ticket == b""  # type: ignore[arg-type]


def test_a_file_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "r").write_text("precious")
    with pytest.raises(SyscallError) as error:
        Writer(tmp_path / "r")
    assert error.value.errno is Errno.EINVAL
    assert "name another" in error.value.reason
    assert (tmp_path / "r").read_text() == "precious"
    with pytest.raises(SyscallError, match="cannot be made"):
        Writer(tmp_path / "no" / "r")


def test_a_full_disk_ends_it_and_what_is_there_can_be_opened(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "r")
    writer.add(changing(0))
    writer._file.close()
    writer._file = Path("/dev/full").open("wb")  # noqa: SIM115
    with pytest.raises(SyscallError, match="No space left"):
        writer.add(changing(1))
    writer.close()
    assert len(read(tmp_path / "r").moments) == 1


@given(st.floats(0.0, 1.0))
def test_wherever_it_was_cut_short_the_samples_before_are_there(
    tmp_path_factory: pytest.TempPathFactory, share: float
) -> None:
    path = written(tmp_path_factory.mktemp("r") / "r", [changing(second) for second in range(5)])
    text = path.read_bytes()
    first = len(b"\n".join(text.split(b"\n")[:2])) + 1
    cut = first + round(share * (len(text) - first))
    path.write_bytes(text[:cut])
    back = read(path)
    assert [moment.sample for moment in back.moments] == [changing(s) for s in range(text[:cut].count(b"\n") - 1)]
    assert back.torn is not text[:cut].endswith(b"\n")


def test_what_is_no_recording_is_refused_by_name(tmp_path: Path) -> None:
    good = written(tmp_path / "good", [changing(0), changing(1)]).read_text().splitlines(keepends=True)
    header = good[0]
    bad = {
        "empty": ("", "no recording"),
        "prose": ("hello\nworld\n", "no recording"),
        "bytes": ("\x00\x01\n", "no recording"),
        "deep": ("[" * 100_000 + "\n", "no recording"),
        "headless": (good[1], "no recording"),
        "later": (header.replace('"version":1', '"version":2'), "version 2"),
        "no sample": (header, "no sample"),
        "damaged": (header + good[1] + "{}\n", "line 3"),
        "beginning lost": (header + good[2], "not whole"),
        "joined": ("".join(good) * 2, "second header"),
        "backwards": (header + good[1].replace('"elapsed":0', '"elapsed":9') + good[2], "follows"),
    }
    for name, (text, why) in bad.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(SyscallError, match=why) as error:
            read(tmp_path / name)
        assert error.value.errno is Errno.EINVAL, name
        assert name in error.value.reason
    with pytest.raises(SyscallError) as error:
        read(tmp_path / "missing")
    assert error.value.errno is Errno.ENOENT
    with pytest.raises(SyscallError) as error:
        read(tmp_path)
    assert error.value.errno is Errno.EIO


# --- playing --------------------------------------------------------------------------------------------------------


def recording(seconds: int = 300) -> Recording:
    events = [(TraceEvent(second, float(second), "sched.step"),) for second in range(seconds)]
    moments = [Moment(2.0 * second, changing(second), events[second]) for second in range(seconds)]
    return Recording(Path("r"), "0.1.0", 0.0, moments)


def test_it_plays_by_the_time_that_passes_and_stops_at_the_end() -> None:
    player = Player(recording())
    assert not player.advance(1.9)
    assert player.advance(0.2)
    assert player.index == 1
    assert player.position == pytest.approx(2.1)
    player.faster(+2)
    assert player.speed == 4.0
    assert player.advance(1.0)
    assert player.index == 3
    player.paused = True
    assert not player.advance(100.0)
    player.play()
    assert player.advance(10_000.0)
    assert (player.index, player.position, player.paused) == (299, 598.0, True)
    player.play()
    assert (player.index, player.paused) == (0, False), "from the start again"


def test_speeds_and_steps_have_ends() -> None:
    player = Player(recording(3))
    player.faster(-99)
    assert player.speed == SPEEDS[0]
    player.faster(+99)
    assert player.speed == SPEEDS[-1]
    assert not player.step(-1)
    assert player.step(+99)
    assert (player.index, player.position) == (2, 4.0)
    assert player.paused
    assert Player(Recording(Path("r"), "", 0.0, [Moment(5.0, changing(1))])).recording.length == 0.0


@given(st.lists(st.integers(-400, 400), min_size=1, max_size=8))
def test_however_one_came_there_the_picture_is_that_of_the_samples_before(moves: list[int]) -> None:
    one = recording()
    player = Player(one)
    for move in moves:
        player.step(move)
        player.picture()
    history = History()
    for moment in one.moments[: player.index + 1]:
        expected = history.add(moment.sample)
    got = player.picture()
    assert got.sample == expected.sample
    assert {pid: row.computed for pid, row in got.rows.items()} == {p: row.computed for p, row in expected.rows.items()}
    assert got.past[-50:] == expected.past[-50:]
    assert [event.seq for event in player.events(5)[0]] == list(range(max(0, player.index - 4), player.index + 1))


def test_the_names_in_the_header_are_records() -> None:
    assert all(hasattr(records, name) for name in _NAMED)
