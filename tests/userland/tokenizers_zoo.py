"""Directories with a tokenizer, and how many examples are tried."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings

from tests.userland import words_zoo

EXAMPLES = int(os.environ.get("LLMASOS_EXAMPLES", "100"))


many = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@contextmanager
def directory(files: dict[str, Any]) -> Iterator[str]:
    place = tempfile.mkdtemp()
    try:
        yield str(words_zoo.write(files, Path(place)))
    finally:
        shutil.rmtree(place)
