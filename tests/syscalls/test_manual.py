"""How declarations of system calls are written for people, for every call of the table."""

from __future__ import annotations

import msgspec
import pytest

from llmasos.syscalls import manual
from llmasos.syscalls.table import BY_NAME, TABLE, Entry


@pytest.mark.parametrize("entry", TABLE.values(), ids=lambda entry: entry.name)
def test_each_field_says_its_type_its_bounds_and_its_default(entry: Entry) -> None:
    for field in msgspec.structs.fields(entry.record):
        shown = manual.signature(field)
        assert shown.startswith(f"{field.name}: ")
        assert "msgspec" not in shown + manual.bounds(field.type)
        assert field.required == (not manual.default(field))
    assert "typing" not in manual.type_name(entry.result)


@pytest.mark.parametrize(
    ("call", "field", "signature", "bounds"),
    [
        ("fork", "count", "count: int = 1", "≥ 1, ≤ 256"),
        ("spawn", "sched_class", "sched_class: SchedClass = SchedClass.FAIR", ""),
        ("wait", "timeout", "timeout: float | None = None", "≥ 0.0, ≤ 86,400.0"),
        ("kill", "pid", "pid: int", "≥ 1"),
    ],
)
def test_as_the_table_has_it(call: str, field: str, signature: str, bounds: str) -> None:
    [found] = [one for one in msgspec.structs.fields(BY_NAME[call].record) if one.name == field]
    assert manual.signature(found) == signature
    assert manual.bounds(found.type) == bounds


def test_the_rights_of_a_call_are_named() -> None:
    assert manual.rights(BY_NAME["null"]) == "none"
    assert manual.rights(BY_NAME["spawn"]) == "SPAWN"
    assert set(manual.rights(BY_NAME["checkpoint"]).split()) == {"MEMORY", "CONTROL"}
