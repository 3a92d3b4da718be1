"""Mutants are the faults that they say, texts are none, and the sample and its interval are those of the definitions."""

from __future__ import annotations

import ast
from functools import cache
from typing import Any

import pytest

from tests.mutation import sample
from tests.mutation.mutants import Mutant, mutants, mutated
from tests.mutation.runner import FIRST, ROOT, Map, probed
from tests.mutation.trials import NotInFunctions, changed_functions, replace

TEXT = '''
"""What this is."""
LEAST: int = 3
def f(a: int, b: list[int]) -> int:
    """What f does."""
    if a < LEAST and not b:
        raise ValueError(f"{a + 1} is too few" if a else "none")
    system.log("info", "f was called")
    assert a > 0, "never"
    b[0] = max(a, 2) - 1
    a += 1
    return a if b else sum(x for x in b if x > 4)
'''


@cache
def everything() -> list[Mutant]:
    return sample.population()


def test_every_fault_is_one_change_that_its_name_tells() -> None:
    found = mutants("m.py", TEXT)
    assert [(one.line, one.change) for one in found if one.operator == "relation"] == [
        (6, "a < LEAST -> a <= LEAST"),
        (6, "a < LEAST -> a >= LEAST"),
        (12, "x > 4 -> x >= 4"),
        (12, "x > 4 -> x <= 4"),
    ]
    for one in found:
        before, after = one.change.split(" -> ")
        assert ast.unparse(mutated(TEXT, one.number)) != ast.unparse(ast.parse(TEXT)), one
        assert before != after
    told = {one.operator for one in found}
    assert told == {
        "relation",
        "connective",
        "unary",
        "constant",
        "statement",
        "twin",
        "arithmetic",
        "condition",
        "result",
    }
    assert {one.function for one in found} == {"", "f"}


def test_what_people_read_and_what_does_not_run_is_left_out() -> None:
    changed = [ast.unparse(mutated(TEXT, one.number)) for one in mutants("m.py", TEXT)]
    kept = ("What this is.", "What f does.", "assert a > 0, 'never'", "system.log('info', 'f was called')", "LEAST: int")
    assert [text for text in changed if not all(one in text for one in kept)] == []
    raising = [text for text in changed if "raise" in text]
    assert all("raise ValueError(f'{a + 1} is too few' if a else 'none')" in text for text in raising)


def test_mutants_of_the_core_compile() -> None:
    for one in sample.draw(everything(), 12, seed=3):
        compile(mutated((ROOT / one.path).read_text(), one.number), one.path, "exec")


def test_a_sample_is_stratified_and_the_same_for_a_seed() -> None:
    drawn = sample.draw(everything(), 200, seed=1)
    assert len({one.name for one in drawn}) == 200
    assert drawn == sample.draw(everything()[::-1], 200, seed=1) != sample.draw(everything(), 200, seed=2)
    for name in {sample.stratum(one) for one in everything()}:
        due = 200 * sum(sample.stratum(one) == name for one in everything()) / len(everything())
        assert abs(sum(sample.stratum(one) == name for one in drawn) - due) < 1


@pytest.mark.parametrize(
    ("found", "tried", "low", "high"), [(336, 400, 0.8009, 0.8728), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0)]
)
def test_the_interval_is_wilsons(found: int, tried: int, low: float, high: float) -> None:
    assert sample.wilson(found, tried) == pytest.approx((low, high), abs=2e-4)


def test_a_recorded_life_is_tried_first_then_the_quick_tests_and_all_where_a_line_runs_at_import() -> None:
    least, *_, last = mutants("m.py", TEXT)
    seconds = {"slow": 2.0, "quick": 0.1, "other": 1.0, FIRST: 1.5}
    known = Map(seconds, {"m.py": {"12": ["slow", "quick", FIRST]}})
    assert known.tests_of(last) == [FIRST, "quick", "slow"]
    assert known.tests_of(last, seconds=2.0) == [FIRST, "quick"]
    assert known.tests_of(least) == [FIRST, "quick", "other", "slow"]


def test_a_probe_tells_that_a_statement_runs_and_changes_nothing_else() -> None:
    text = "def f(a):\n    if a:\n        return 1\n    elif a is None:\n        a = 2\n    return 3\n"
    met: list[int] = []
    names = {"probe": met.append}
    exec(compile(probed(text, {3, 4, 6}, "probe"), "m.py", "exec"), names)
    f: Any = names["f"]
    assert (f(1), met) == (1, [3])
    assert (f(None), met) == (3, [3, 4, 6])


def test_a_mutated_function_takes_the_place_of_the_function_wherever_it_is() -> None:
    text = "class A:\n    limit = 3\n    def f(self, a):\n        return [b for b in a if b < 3]\n"
    names: dict[str, Any] = {}
    old = compile(text, "m.py", "exec")
    exec(old, names)
    one, number = names["A"](), next(one.number for one in mutants("m.py", text) if one.change == "b < 3 -> b <= 3")
    pairs = list(changed_functions(old, compile(mutated(text, number), "m.py", "exec")))
    replace(pairs, {("m.py", "A.f", 3): [names["A"].f]})
    assert one.f([1, 3, 4]) == [1, 3]
    outside = next(one.number for one in mutants("m.py", text) if one.change == "3 -> 4")
    with pytest.raises(NotInFunctions):
        list(changed_functions(old, compile(mutated(text, outside), "m.py", "exec")))
