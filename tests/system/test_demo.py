"""The guided tour: it passes where everything holds, and says so with status 1 where something does not."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmasos.userland.demo import tour
from llmasos.userland.demo.acts import ACTS, Company
from llmasos.userland.demo.shares import Window
from llmasos.userland.demo.stage import Stage
from llmasos.userland.programs.boot import private_kernel

DEADLINE = 900.0


@pytest.fixture
def simulated() -> Iterator[Path]:
    """The runtime directory of a kernel with a simulated device."""
    with (
        tempfile.TemporaryDirectory(prefix="llmasos-") as place,
        private_kernel(Path(place), ["--device", "sim:time_scale=0"]),
    ):
        yield Path(place)


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory in which a socket's path is no longer than the system allows."""
    with tempfile.TemporaryDirectory(prefix="tour-") as place:
        yield Path(place)


@pytest.mark.timeout(DEADLINE)
def test_without_a_terminal_llmasos_runs_the_tour_to_its_end_and_leaves_nothing(short: Path) -> None:
    (short / "t").mkdir()
    environment = {**os.environ, "LLMASOS_RUNTIME": str(short / "r"), "TMPDIR": str(short / "t")}
    ended = subprocess.run(
        [sys.executable, "-m", "llmasos"],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr
    assert ended.stderr == ""
    assert "\x1b" not in ended.stdout
    assert "✗" not in ended.stdout
    assert ended.stdout.count("── ") == len(ACTS)
    assert f"{ended.stdout.count('  ✓ ')} claims checked, all hold" in ended.stdout
    assert not (short / "r").exists()
    assert not list((short / "t").glob("llmasos*"))


def test_a_claim_that_does_not_hold_ends_the_tour_with_status_1(
    simulated: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def act(stage: Stage, company: Company) -> None:
        stage.claim(True, "water is wet")
        stage.claim(False, "the sea is dry", "it is wet")

    monkeypatch.setattr(tour, "ACTS", (act,))
    assert tour.main(simulated, fast=True) == 1
    said = capsys.readouterr()
    assert "✓ water is wet" in said.out
    assert "✗ the sea is dry" in said.out
    assert said.err == "llmasos demo: this does not hold here: the sea is dry: it is wet\n"


def test_a_model_that_cannot_be_had_ends_the_tour_with_a_reason(
    simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "llmasos.toml"
    config.write_text('default_model = "sim:nonsense"\n')
    with (
        tempfile.TemporaryDirectory(prefix="llmasos-") as place,
        private_kernel(Path(place), ["--config", str(config), "--device", "sim:time_scale=0"]),
    ):
        assert tour.main(Path(place), fast=True) == 1
    assert capsys.readouterr().err.startswith("llmasos demo: the tour ended early: EINVAL: model 'sim:nonsense'")


def test_without_a_kernel_a_tour_of_the_running_one_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tour.main(tmp_path, fast=True) == 1
    assert "ECONNREFUSED" in capsys.readouterr().err


def test_shares_are_parts_of_all_tokens_of_a_window() -> None:
    window = Window({4: 30, 5: 10}, 2.0)
    assert (window.share(4), window.share(5)) == (0.75, 0.25)
    assert Window({4: 0, 5: 0}, 2.0).share(4) == 0.0
