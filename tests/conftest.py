"""Fixtures that boot a real system: kernel and driver as OS processes in a runtime directory of their own. And no test
fails because the machine is slow, so hypothesis measures no times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from llmasos.userland.sdk.system import System
from tests import models_zoo

settings.register_profile("untimed", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def no_other_kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The runtime directory that programs take where none is named: one in which no kernel runs, not the user's."""
    place = tmp_path_factory.mktemp("runtime")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMASOS_RUNTIME", str(place))
        yield place


@pytest.fixture(scope="session", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where drivers keep installed models while the tests run; not where the user's are."""
    place = tmp_path_factory.mktemp("installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMASOS_CACHE", str(place))
        yield place


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Directories of tiny random models (tests/models_zoo.py), built when first asked for."""
    place = tmp_path_factory.mktemp("zoo")

    def directory(name: str) -> Path:
        there = place / name
        return there if there.exists() else models_zoo.build(name, there)

    return directory


@pytest.fixture(scope="module")
def cpu_system() -> Iterator[System]:
    """A booted system with a CPU driver on one thread: tests share two cores."""
    with System.connect(boot=True, flags=["--device", "cpu:threads=1"], name="tests") as system:
        yield system
