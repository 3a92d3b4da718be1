"""Lower tiers: what went out comes back to the bit, to nobody else, and not if anything was changed meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.engine.swap import DiskPlaces, HostPlaces, Lost, Places, SwapFile

FRAME = torch.zeros(3, 2, 5, 7, dtype=torch.bfloat16)
BYTES = FRAME.numel() * FRAME.itemsize
SIZE = 64 * 4096


def frame(seed: int) -> torch.Tensor:
    return torch.randn(FRAME.shape, generator=torch.Generator().manual_seed(seed)).to(FRAME.dtype)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[SwapFile]:
    with closing(SwapFile(tmp_path / "swap", SIZE)) as file:
        yield file


def makers(file: SwapFile) -> list[Places]:
    return [DiskPlaces(file, 4, BYTES), HostPlaces(4, FRAME)]


@pytest.mark.parametrize("which", [0, 1], ids=["disk", "host"])
def test_frames_come_back_to_the_bit_and_only_to_their_context(file: SwapFile, which: int) -> None:
    places = makers(file)[which]
    odd = frame(1)
    odd.view(-1)[:3] = torch.tensor([float("nan"), float("inf"), -0.0])
    for slot, held in enumerate([odd, frame(2), frame(3)]):
        places.write(7 + slot % 2, slot, held)
    into = torch.empty_like(FRAME)
    for slot, held in enumerate([odd, frame(2), frame(3)]):
        places.read(7 + slot % 2, slot, into)
        assert torch.equal(into.view(torch.int16), held.view(torch.int16))
    for ctx, slot in ((8, 0), (7, 1), (7, 3), (9, 0)):
        with pytest.raises(Lost):
            places.read(ctx, slot, into)
    places.write(8, 0, frame(4))  # the place is another's now
    places.read(8, 0, into)
    assert torch.equal(into, frame(4))
    with pytest.raises(Lost):
        places.read(7, 0, into)
    places.forget(8)
    for slot in (0, 1):
        with pytest.raises(Lost):
            places.read(8, slot, into)
    places.read(7, 2, into)


@settings(deadline=None, max_examples=60)
@given(at=st.integers(0, 12 + BYTES + 16 - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_is_never_taken_back(
    tmp_path_factory: pytest.TempPathFactory, at: int, bit: int
) -> None:
    with closing(SwapFile(tmp_path_factory.mktemp("swap"), SIZE)) as file:
        places = DiskPlaces(file, 4, BYTES)
        places.write(1, 2, frame(1))
        byte = os.pread(file.descriptor, 1, 2 * 4096 + at)
        os.pwrite(file.descriptor, bytes([byte[0] ^ 1 << bit]), 2 * 4096 + at)
        with pytest.raises(Lost):
            places.read(1, 2, torch.empty_like(FRAME))


def test_what_stood_there_before_or_elsewhere_is_not_taken_back(file: SwapFile) -> None:
    places = DiskPlaces(file, 4, BYTES)
    places.write(1, 0, frame(1))
    older = os.pread(file.descriptor, 4096, 0)
    places.write(1, 0, frame(2))
    places.write(1, 1, frame(3))
    newer = os.pread(file.descriptor, 4096, 0)
    os.pwrite(file.descriptor, older, 0)
    os.pwrite(file.descriptor, newer, 4096)
    for slot in (0, 1):
        with pytest.raises(Lost):
            places.read(1, slot, torch.empty_like(FRAME))


def test_the_file_is_bounded_has_no_name_and_tells_nothing(file: SwapFile, tmp_path: Path) -> None:
    assert os.listdir(tmp_path / "swap") == []
    first = DiskPlaces(file, DiskPlaces.slots(SIZE // 2, BYTES), BYTES)
    second = DiskPlaces(file, DiskPlaces.slots(SIZE // 2, BYTES), BYTES)
    with pytest.raises(MemoryError, match="swap file"):
        DiskPlaces(file, 1, BYTES)
    first.close()
    DiskPlaces(file, 32, BYTES)
    plain = torch.full_like(FRAME, 1.5)
    second.write(1, 0, plain)
    second.write(1, 1, plain)
    held = os.pread(file.descriptor, SIZE, 0)
    text = plain.view(torch.uint8).numpy().tobytes()
    assert text[:32] not in held
    start = held.rindex(held.strip(b"\0")[:4])
    assert held[start + 12 :][:BYTES] != held[start + 4096 + 12 :][:BYTES]


def test_a_full_disk_is_an_error_and_not_a_frame(tmp_path: Path) -> None:
    """With a limit on the size of files, as a full disk has one on all of them."""
    program = textwrap.dedent("""
        import resource, signal, sys
        from pathlib import Path
        import torch
        from drivers.engine.swap import DiskPlaces, Lost, SwapFile
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        frame = torch.ones(4, 1000)
        places = DiskPlaces(SwapFile(Path(sys.argv[1]), 1 << 20), 4, 16_000)
        for slot in (0, 1):
            try:
                places.write(1, slot, frame)
            except OSError as error:
                print("refused:", error)
            try:
                places.read(1, slot, frame)
            except Lost as error:
                print("lost:", error)
    """)
    said = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout
    assert said.count("refused:") == said.count("lost:") == 2


def test_nothing_is_left_of_a_driver_that_was_killed(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        import torch
        from drivers.engine.swap import DiskPlaces, SwapFile
        places = DiskPlaces(SwapFile(Path(sys.argv[1]), 1 << 20), 4, 4000)
        places.write(1, 0, torch.ones(1000))
        print("written", flush=True)
        time.sleep(60)
    """)
    child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"written\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert os.listdir(tmp_path) == []
