"""Expressions for names of layers mean what Python's `re` takes them for, in time that grows with the name alone."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos.drivers.engine.quantised.patterns import Expression, Pattern
from llmasos.syscalls.errno import Errno, SyscallError

NAMES = (
    "model.layers.0.self_attn.q_proj", "model.layers.12.mlp.down_proj", "lm_head", "", "x\ny",
    "model.layers.1.mlp.experts.17.w1",
)  # fmt: skip
PUBLISHED = (
    r".*", r".*self_attn.*", r"model\.layers\.\d+\.mlp\.(gate|up|down)_proj$", r"^lm_head$", r".*\.(q|k|v)_proj",
    r"[^.]+$",
    r".*layers\.[0-9]{1,2}\.(?:self_attn|mlp).*", r"model\.layers\.(1|12)\..*", r"\w+_head?",
    r".*mlp\.experts\.\d+\.w[123]$", r"",
    r"a{0}lm_head", r"^$", r".*\s.*", r"(model|lm)[._]", r"((a*)*)*$", r".*?down_proj", r"[]x]", r"[a\]-]",
)  # fmt: skip


@pytest.mark.parametrize("expression", PUBLISHED)
def test_published_expressions_match_what_re_matches(expression: str) -> None:
    ours = Expression(expression)
    for name in NAMES:
        assert ours.begins(name) is (re.match(expression, name) is not None), name


_PARTS = st.sampled_from(
    [
        "a",
        "b",
        ".",
        r"\.",
        r"\d",
        "[ab]",
        "[^a]",
        "(a|b)",
        "(?:ab|a)",
        "^",
        "$",
        "a*",
        "b+",
        "(ab)?",
        "a{1,2}",
    ]
)


@given(st.lists(_PARTS, max_size=6).map("".join), st.text("ab.1", max_size=8))
@settings(max_examples=300, deadline=None)
def test_expressions_match_what_re_matches(expression: str, name: str) -> None:
    assert Expression(expression).begins(name) is (re.match(expression, name) is not None)


def test_an_expression_that_keeps_re_for_hours_takes_no_time() -> None:
    hostile = Expression("((a+)+)+$")
    assert not hostile.begins("a" * 900 + "b")
    assert hostile.begins("a" * 900)


@pytest.mark.parametrize(
    "expression",
    [
        "(?!a)b",
        "(?<=a)b",
        r"\1",
        "(a",
        "a)",
        "[a",
        "*a",
        "a{1,2,3}",
        "a{999}",
        "(" * 50 + "a" + ")" * 50,
        "a" * 2000,
    ],
)
def test_what_is_not_understood_is_refused(expression: str) -> None:
    with pytest.raises(SyscallError) as refused:
        Expression(expression).begins("abc")
    assert refused.value.errno == Errno.ENOTSUP


def test_names_come_before_expressions_before_classes() -> None:
    assert (Pattern("model.l").rank, Pattern("re:.*").rank) == (0, 1)
    assert Pattern("Linear").is_class
    assert not Pattern("model.L").is_class
    assert Pattern("model.l").matches("model.l")
    assert not Pattern("model.l").matches("model.layer")
