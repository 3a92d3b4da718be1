"""A model that is fetched while it is loaded: the kernel sees that something moves, and may lose interest."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from llmasos.drivers.engine import fetching
from llmasos.modelfiles import cache, source
from llmasos.modelfiles.hub import Progress
from llmasos.syscalls.errno import Errno, SyscallError
from tests.hub_server import served

FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"\2\0\0\0\0\0\0\0{}"}


def test_signs_come_now_and_then_and_lines_more_rarely(caplog: pytest.LogCaptureFixture) -> None:
    clock = [0.0]
    signs: list[float] = []
    said = fetching.told("org/name", signs.append, lambda: clock[0])
    with caplog.at_level(logging.INFO):
        for step in range(2_001):
            clock[0] = step / 100
            said(Progress(step << 20, 2_000 << 20, "model.safetensors"))
    assert signs == [0.0] * 41
    assert [record.message for record in caplog.records] == [
        "fetching org/name: 1000 of 2000 MiB",
        "fetching org/name: 2000 of 2000 MiB",
    ]


def test_a_download_that_nobody_waits_for_ends_and_leaves_nothing_half_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unwanted(_: float) -> None:
        raise SyscallError(Errno.EINTR, "nobody waits for it any more")

    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    with served() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.repository("org/name").commit(FILES)
        with pytest.raises(SyscallError) as ended:
            source.find("org/name", weights=True, said=fetching.told("org/name", unwanted))
        assert ended.value.errno is Errno.EINTR
        assert cache.commit_of("org/name", "main") is None
        assert source.find("org/name", weights=True, said=fetching.told("org/name", lambda _: None)).is_dir()
