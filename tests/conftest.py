"""Fixtures that boot a real system: kernel and driver as OS processes in a runtime directory of their own. No test fails
because the machine is slow, so hypothesis measures no times. And what `make quick` runs starts no OS process: `processes`
marks the tests that do, and an audit hook sees that none is without the mark. `--optimised` runs all processes that tests
start without asserts, `--default-dtype` says what a model gets where nobody names a dtype."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from llmasos.drivers import hal
from llmasos.userland.sdk.system import System
from tests import models_zoo

settings.register_profile("untimed", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", settings.get_profile("untimed"), max_examples=20)  # make quick
settings.load_profile("untimed")

STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system"}
_running = [""]  # the test that may start no OS process


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--optimised", action="store_true", help="PYTHONOPTIMIZE=1 in all processes that tests start")
    parser.addoption("--default-dtype", choices=["fp32", "bf16"], help="what models get where nobody names a dtype")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.optimised and not getattr(
        config.option, "numprocesses", None
    ):  # workers of xdist are tests' processes
        os.environ["PYTHONOPTIMIZE"] = "1"
    for name in ("COLUMNS", "LINES"):  # readline, which pytest imports, sets them to those of no terminal
        os.environ.pop(name, None)
    if config.option.default_dtype:
        os.environ[hal.BF16] = str(int(config.option.default_dtype == "bf16"))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a worker, or in the background: programs that are started
        signal.signal(signal.SIGINT, signal.default_int_handler)  # would not hear Ctrl-C either
    if "not processes" in config.option.markexpr:  # as `make quick` says
        sys.addaudithook(_no_process)


def pytest_collection_finish() -> None:
    """The collector of cycles looks at what tests make, not at the half million objects of torch and of the tests."""
    gc.collect()
    gc.freeze()


def _no_process(event: str, arguments: tuple[Any, ...]) -> None:
    if event in STARTS and _running[0]:
        raise AssertionError(f"{event} {arguments[0]}: a test that starts an OS process is marked `processes`")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    _running[0] = item.nodeid
    try:
        return (yield)
    finally:
        _running[0] = ""


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """torch computes on one thread in the process of the tests. Its threads wait for each other by spinning, which takes
    ten times as long as what they compute where other tests have the cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def no_other_kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The runtime directory that programs take where none is named: one in which no kernel runs, not the user's; and no
    configuration or state of theirs either."""
    place = tmp_path_factory.mktemp("runtime")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMASOS_RUNTIME", str(place))
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
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
