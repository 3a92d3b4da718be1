"""What people write behind `--option`, or in `[device.options]`: read into a record, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos.drivers import places
from llmasos.drivers.cpu.options import MOST_GUESS_ROWS, MOST_THREADS, Options
from llmasos.drivers.options import WHOLE, number, option, parse
from llmasos.drivers.sim.spec import DeviceSpec
from llmasos.drivers.sim.spec import parse as parse_sim
from llmasos.syscalls.errno import Errno, SyscallError

NAMES = {field.name for field in fields(Options)}
GOOD = {
    "threads": (("1", 1), (str(MOST_THREADS), MOST_THREADS)),
    "dtype": (("int8", "int8"),),
    "installed": (("no", None), ("", None), ("/somewhere", Path("/somewhere"))),
    "guess": (("0", 0), (str(MOST_GUESS_ROWS), MOST_GUESS_ROWS)),
    "kv": (("bf16", "bf16"), ("int8", "int8")),
    "early": (("yes", True), ("no", False)),
    "swap": (("0", 0), ("64MiB", 64 << 20), ("1000000", 1_000_000)),
    "swapdir": (("/fast", Path("/fast")),),
}
BAD = {
    "threads": ("0", "-1", "two", "٣", str(MOST_THREADS + 1), "1" * 5000, "1.0"),
    "guess": ("x", "-1", str(MOST_GUESS_ROWS + 1)),
    "kv": ("int4", "BF16"),
    "early": ("perhaps", "1"),
    "swap": ("much", "-1", "1 furlong"),
}


def refusal(act: Callable[[], object]) -> SyscallError | None:
    try:
        act()
    except SyscallError as error:
        return error
    return None


def test_each_option_of_the_cpu_driver_is_read() -> None:
    assert GOOD.keys() == NAMES
    for name, cases in GOOD.items():
        for text, value in cases:
            assert getattr(parse(Options, {name: text}, "it"), name) == value


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in BAD.items() for text in texts])
def test_what_cannot_be_read_is_refused_by_name_with_what_is_allowed(name: str, text: str) -> None:
    with pytest.raises(SyscallError, match="was wanted") as caught:
        parse(Options, {name: text}, "the cpu driver")
    assert caught.value.errno is Errno.EINVAL
    assert caught.value.reason.startswith(f"the cpu driver: {name}=")


def test_an_unknown_option_is_refused_with_those_there_are() -> None:
    with pytest.raises(SyscallError) as caught:
        parse(Options, {"thread": "2"}, "the cpu driver")
    assert "no option 'thread'" in caught.value.reason
    assert all(name in caught.value.reason for name in NAMES)
    with pytest.raises(SyscallError, match="no option 'name'"):  # of a model's spec: not an option
        parse_sim({"name": "sim:7b"})


def test_what_is_not_given_or_empty_is_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain = parse(Options, {}, "it")
    assert parse(Options, dict.fromkeys(NAMES - {"installed"}, ""), "it") == plain
    monkeypatch.setenv(places.DIRECTORY, str(tmp_path))
    assert parse(Options, {}, "it").installed == tmp_path


@given(st.integers(0, 10**12), st.sampled_from(["", "k", "m", "ki", "mi"]))
def test_whole_numbers_with_suffixes_mean_what_they_say(count: int, suffix: str) -> None:
    unit = {"": 1, "k": 10**3, "m": 10**6, "ki": 1 << 10, "mi": 1 << 20}[suffix]
    if count * unit < 1 << 53:
        assert WHOLE.read(f"{count}{suffix}") == count * unit


@given(st.dictionaries(st.sampled_from(sorted(NAMES)), st.text(max_size=8), max_size=3))
def test_any_text_is_a_record_or_a_refusal(texts: dict[str, str]) -> None:
    if (error := refusal(lambda: parse(Options, texts, "it"))) is not None:
        assert error.errno is Errno.EINVAL
        assert any(f"{name}=" in error.reason for name in texts)


@given(st.dictionaries(st.sampled_from([f.name for f in fields(DeviceSpec)]), st.text(max_size=8), max_size=3))
def test_any_text_is_a_simulated_device_or_a_refusal(texts: dict[str, str]) -> None:
    if (error := refusal(lambda: parse_sim(texts))) is not None:
        assert error.errno is Errno.EINVAL


def test_a_default_that_is_a_function_is_called_for_each_record() -> None:
    made = iter(range(9))

    @dataclass
    class Counted:
        which: int = option(number(0, 9), lambda: next(made))

    assert [parse(Counted, {}, "it").which for _ in range(3)] == [0, 1, 2]
