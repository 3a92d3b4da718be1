"""A short soak; `python -m tests.faults.soak --minutes 60` is one that tells of memory, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.soak import Figures, grown, soak, table


@pytest.mark.processes
def test_under_load_with_faults_no_descriptors_threads_or_files_are_left_behind(tmp_path: Path) -> None:
    figures, run = soak(tmp_path, 3.0, cpu=False, clients=2, settle=0.2)
    assert sum(load.done for load in run.loads) > 0
    assert [line for line in grown(figures[1], figures[-1]) if "memory" not in line] == []
    assert "kernel: descriptors" in table(figures)


def test_what_grows_by_more_than_a_fiftieth_is_told() -> None:
    before = Figures(600.0, {"kernel: memory, MB": 100.0, "kernel: descriptors": 30.0, "files": 12.0})
    assert grown(before, Figures(3600.0, {"kernel: memory, MB": 101.9, "kernel: descriptors": 32.0, "files": 12.0})) == []
    found = grown(before, Figures(3600.0, {"kernel: memory, MB": 102.1, "kernel: descriptors": 33.0, "files": 15.0}))
    assert [line.split(":")[0] for line in found] == ["kernel", "kernel", "files"]
    assert grown(before, Figures(3600.0, {"kernel: memory, MB": 80.0, "kernel: descriptors": 20.0, "files": 2.0})) == []
