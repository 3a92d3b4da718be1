"""The documents point at files and names that exist, as a script of the xv6 book checks its own pointers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import comments
from llmasos.drivers import hal
from llmasos.drivers.cpu.native import library
from llmasos.syscalls import records
from tests import file_matrix

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.md")])
_PATH = re.compile(
    r"`((?:examples|syscalls|kernel|drivers|modelfiles|userland|llmasos|models|benchmarks|docs|tests)/[\w./-]*)`"
)
_LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_path_a_document_names_exists(document: Path) -> None:
    named = _PATH.findall(document.read_text())
    missing = [path for path in named if not (ROOT / path).exists()]
    assert not missing, f"{document.name} names {missing}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_of_a_document_leads_somewhere(document: Path) -> None:
    links = _LINK.findall(document.read_text())
    missing = [link for link in links if not (document.parent / link).exists()]
    assert not missing, f"{document.name} links to {missing}"


def test_the_manual_of_the_system_calls_says_what_the_fields_of_records_mean() -> None:
    said, page = comments.of(Path(records.__file__).resolve()), (ROOT / "docs" / "syscalls.md").read_text()
    assert said["Signal", "CHLD"] == "a child has ended"
    fields = [comment for (owner, _), comment in said.items() if owner]
    assert len(fields) > 100
    assert [comment for comment in fields if f"| {comment.replace('|', chr(92) + '|')} |" not in page] == []


def test_there_are_documents_that_name_paths() -> None:
    assert any(_PATH.search(document.read_text()) for document in DOCUMENTS)


def test_the_table_of_files_and_dtypes_says_what_the_driver_does() -> None:
    if not isinstance(library.load(), library.Library) or not hal.cpu().int8:
        pytest.skip("the table is of machines with the native decoder and a CPU with VNNI")
    assert file_matrix.page() in file_matrix.PAGE.read_text(), "make docs brings it up to date"
