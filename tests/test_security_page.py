"""The page on security names tests that exist, one or more for each kind of attack."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text()
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


@cache
def functions(file: str) -> set[str]:
    nodes = ast.walk(ast.parse((ROOT / file).read_text()))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_test_that_the_page_names_exists() -> None:
    named = set(_TEST.findall(PAGE))
    assert len(named) > 40
    assert {(file, name) for file, name in named if not (ROOT / file).exists() or name not in functions(file)} == set()


def test_each_of_the_twenty_kinds_of_attack_is_shown_by_a_test() -> None:
    rows = re.findall(r"^\| (\d+) \|(.*)$", PAGE, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 21))
    assert [number for number, row in rows if not _TEST.search(row)] == []


def test_reports_and_the_page_lead_to_each_other_and_from_the_first_page() -> None:
    assert "(../SECURITY.md)" in PAGE
    assert "(docs/security.md)" in (ROOT / "SECURITY.md").read_text()
    assert "(docs/security.md)" in (ROOT / "README.md").read_text()
