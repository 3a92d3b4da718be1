"""The machine's description: keys that stay, values that make sense, and nothing guessed where nothing is known."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from llmasos.drivers import hal

KEYS = {
    "": {"system", "python", "cpu", "memory", "torch", "native", "gpus"},
    "cpu": {"model", "architecture", "cores", "threads", "isa", "caches", "bf16", "int8"},
    "native": {"isa", "error", "installed", "installed_bytes"},
    "memory": {"total", "available", "bandwidth"},
    "torch": {"version", "cpu_capability", "threads", "onednn", "cuda", "error"},
}
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd asimdhp asimddp bf16 i8mm sve\nCPU part\t: 0xd40\n"
X86_OLD = "processor\t: 0\nmodel name\t: Some CPU @ 2GHz\nflags\t\t: fpu sse2 avx2 fma f16c\n"
X86_AMX = "model name\t: Big CPU\nflags\t\t: avx2 avx512f avx512_bf16 avx512_vnni amx_tile amx_bf16 amx_int8\n"


def test_the_json_report_has_its_stable_keys() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llmasos.drivers.hal", "--json"],
        capture_output=True,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    found = json.loads(done.stdout)
    assert set(found) == KEYS[""]
    for part in ("cpu", "memory", "torch", "native"):
        assert set(found[part]) == KEYS[part]
    assert found["cpu"]["cores"] >= 1
    assert found["memory"]["total"] == psutil.virtual_memory().total
    assert found["torch"]["error"] == ""


def test_the_report_for_people_says_what_can_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert hal.main([]) == 0
    text = capsys.readouterr().out
    for word in ("cpu", "memory", "dtypes", "torch", "gpu"):
        assert any(line.startswith(word) for line in text.splitlines())


def looked_at() -> hal.Cpu:
    hal.cpu.cache_clear()
    try:
        return hal.cpu()
    finally:
        hal.cpu.cache_clear()


@pytest.mark.parametrize(
    ("text", "isa", "bf16", "int8"),
    [
        (ARM, ["asimd", "asimddp", "asimdhp", "bf16", "i8mm", "sve"], True, False),
        (X86_OLD, ["avx2", "f16c", "fma"], False, False),
        (
            X86_AMX,
            ["avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "amx_int8"],
            True,
            True,
        ),
        ("", [], False, False),
    ],
)
def test_what_a_cpu_can_do_is_read_from_its_flags(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, isa: list[str], bf16: bool, int8: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(hal, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.delenv(hal.BF16, raising=False)
    found = looked_at()
    assert (found.isa, found.bf16, found.int8) == (isa, bf16, int8)
    for told in (True, False):
        monkeypatch.setenv(hal.BF16, str(int(told)))
        assert looked_at().bf16 == told
    assert found.model


def test_memory_bandwidth_is_measured_on_request_and_the_best_of_several_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert hal.memory().bandwidth == 0.0
    clock = iter([0.0, 0.0, 1.0, 3.0, 3.0, 4.0, 4.5, 4.5, 5.0, 6.0, 10.0])  # reads of 2, 0.5 and 1 seconds
    monkeypatch.setattr(hal, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert hal.read_bandwidth(size=8 << 20, seconds=10.0) == (8 << 20) / 0.5
    assert next(clock, None) is None
