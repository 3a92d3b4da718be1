"""`top` and the tables of a system with several devices, and with policies of the user's own."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.cells import cell_len

from llmasos.syscalls.errno import SyscallError
from llmasos.syscalls.policy_file import located_policy, shown_policy, whole_policy
from llmasos.userland.programs import ps
from llmasos.userland.programs.screen import Screen
from llmasos.userland.top import panel, plain
from llmasos.userland.top.model import History, Picture
from tests.booted import booted
from tests.userland.command_line import llmasos
from tests.userland.top_pictures import agent, device, model, sample

WIDTHS = (60, 80, 200)
FAIREST = '''"""A policy for tests."""
from llmasos.policies import Policy


class ShortestFirst(Policy):
    def key(self, process):
        return process.left
'''


def two() -> Picture:
    devices = [device(), device("sim0", kv_bytes=1 << 30)]
    return History().add(sample(1.0, [agent(4, "bob")], devices=devices, models=[model(), model(device="sim0")]))


@pytest.mark.parametrize("width", WIDTHS)
def test_each_line_of_memory_says_whose_it_is(width: int) -> None:
    lines = [line.plain for line in panel.lines(two(), width, 50, panel.Palette())]
    assert all(cell_len(line) <= width for line in lines)
    for tier in ("ram", "disk"):
        assert [line.split()[0] for line in lines if f" {tier} " in line] == ["cpu0", "sim0"]
    starts = {line.index("[") for line in lines if " KV " in line or " busy " in line}
    assert len(starts) == 1, "bars stand below one another"
    assert re.search(r"^sim0 ram .* of 1.0 GiB", "\n".join(lines), re.M)
    if width > 60:
        assert [line.rpartition(" on ")[2].split()[0] for line in lines if line.startswith("model")] == ["cpu0", "sim0"]


def test_of_one_device_the_name_is_not_repeated() -> None:
    picture = History().add(sample(1.0))
    lines = [line.plain for line in panel.lines(picture, 80, 50, panel.Palette())]
    assert [line.split()[0] for line in lines][1:5] == ["cpu0", "ram", "disk", "model"]
    assert not any(" on cpu0" in line for line in lines)


def test_one_look_in_plain_text_tells_two_models_of_one_name_apart() -> None:
    out = io.StringIO()
    plain.show(Screen(out, io.StringIO()), two().sample, two().sample)
    assert [line.rpartition(", on ")[2] for line in out.getvalue().splitlines() if line.startswith("tiny  KV")] == [
        "cpu0", "sim0",
    ]  # fmt: skip


def test_the_rate_of_a_process_says_that_it_is_of_all_that_was_computed() -> None:
    info = agent(4, "bob", decoded=1767, computed=3498, device_seconds=4.0)
    (told,) = [value for name, value in ps.details(info) if name == "device time"]
    assert told == "4.0s (874 tok/s computed, what was computed again included)"


# --- names of policies ---------------------------------------------------------------------------------------------


def test_a_policy_is_shown_with_half_its_digest_and_that_can_be_typed() -> None:
    whole, other = "/a/mine.py:Mine@0123456789abcdef", "/a/mine.py:Mine@0123456799999999"
    assert shown_policy(whole) == "/a/mine.py:Mine@01234567"
    for name in ("fair", "", "/a/mine.py:Mine", "x@0123456789abcdef"):
        assert shown_policy(name) == name
    assert whole_policy("/a/mine.py:Mine@01234567", ["fair", whole, whole]) == whole
    assert whole_policy("/a/mine.py:Mine@01234567", [whole, other]) == "/a/mine.py:Mine@01234567"
    assert whole_policy("fair", ["fair", whole]) == "fair"
    with pytest.raises(SyscallError, match=r"FILE\.py:CLASS"):
        located_policy("/a/mine.py:Mine@01234567")


@pytest.mark.processes
def test_tables_show_eight_digits_documents_all_and_a_narrow_one_has_its_columns(tmp_path: Path) -> None:
    (tmp_path / "shortest_first.py").write_text(FAIREST)
    with booted("--device", "sim:time_scale=0") as kernel:
        assert llmasos(kernel.place, "policy", f"{tmp_path}/shortest_first.py:ShortestFirst").returncode == 0
        document = json.loads(llmasos(kernel.place, "policy", "--json").stdout)
        whole = document["policy"]
        assert re.fullmatch(r"\S+:ShortestFirst@[0-9a-f]{16}", whole)
        shown = whole[:-8]
        devices = json.loads(llmasos(kernel.place, "devices", "--json").stdout)
        assert [one["policy"] for one in devices] == [whole]
        for words in (("policy",), ("devices", "--wide"), ("top", "--once")):
            told = llmasos(kernel.place, *words).stdout
            assert f"@{shown.rpartition('@')[2]}" in told
            assert whole.rpartition("@")[2] not in told
        assert llmasos(kernel.place, "policy", "fair").returncode == 0
        back = llmasos(kernel.place, "policy", shown)
        assert (back.returncode, back.stderr) == (0, "")
        assert json.loads(llmasos(kernel.place, "policy", "--json").stdout)["policy"] == whole
