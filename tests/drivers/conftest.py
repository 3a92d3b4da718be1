"""One thread, and no talk from transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from drivers.engine.loading import quiet_transformers
from tests import models_zoo

quiet_transformers()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a model of tests/models_zoo.py, built once."""
    built: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in built:
            built[name] = models_zoo.build(name, tmp_path_factory.mktemp(name))
        return built[name]

    return get
