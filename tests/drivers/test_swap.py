"""Lower tiers: what went out comes back to the bit, to nobody else, and not if anything was changed meanwhile."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos.drivers.cpu import open_device
from llmasos.drivers.cpu.native import library
from llmasos.drivers.device import Device
from llmasos.drivers.engine.disk_places import DiskPlaces
from llmasos.drivers.engine.engine import Engine
from llmasos.drivers.engine.host_places import HostPlaces
from llmasos.drivers.engine.swap import Lost, Places, at_once
from llmasos.drivers.engine.swap_file import SwapFile, open_swap
from llmasos.drivers.protocol import Load, Move
from llmasos.syscalls.errno import Errno, SyscallError
from tests.drivers.feeder import GREEDY, IMAGE, Feeder

BYTES = 420
FRAME = np.zeros(BYTES, dtype=np.uint8)
STRIDE = 12 + BYTES + 16
SIZE = 64 * STRIDE


def frame(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (1, BYTES), dtype=np.uint8)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[SwapFile]:
    with closing(SwapFile(tmp_path / "swap", SIZE)) as file:
        yield file


def makers(file: SwapFile) -> list[Places]:
    return [DiskPlaces(file, 4, BYTES), HostPlaces(4, FRAME)]


def test_an_image_without_places_gives_back_nobody_elses(file: SwapFile) -> None:
    none, some = DiskPlaces(file, 0, BYTES), DiskPlaces(file, 4, BYTES)
    some.write(7, 0, frame(1))
    none.close()
    DiskPlaces(file, 4, BYTES).write(8, 0, frame(2))
    into = np.empty_like(frame(0))
    some.read(7, 0, into)
    assert np.array_equal(into, frame(1))


@pytest.mark.parametrize("which", [0, 1], ids=["disk", "host"])
def test_frames_come_back_to_the_bit_and_only_to_their_context(file: SwapFile, which: int) -> None:
    places = makers(file)[which]
    odd = frame(1)
    odd[0, :12] = np.array([np.nan, np.inf, -0.0], dtype=np.float32).view(np.uint8)
    for slot, held in enumerate([odd, frame(2), frame(3)]):
        places.write(7 + slot % 2, slot, held)
    into = np.empty_like(frame(0))
    for slot, held in enumerate([odd, frame(2), frame(3)]):
        places.read(7 + slot % 2, slot, into)
        assert np.array_equal(into, held)
    for ctx, slot in ((8, 0), (7, 1), (7, 3), (9, 0)):
        with pytest.raises(Lost):
            places.read(ctx, slot, into)
    places.write(8, 0, frame(4))  # the place is another's now
    places.read(8, 0, into)
    assert np.array_equal(into, frame(4))
    with pytest.raises(Lost):
        places.read(7, 0, into)
    places.forget(8)
    for slot in (0, 1):
        with pytest.raises(Lost):
            places.read(8, slot, into)
    places.read(7, 2, into)


@pytest.mark.parametrize("which", [0, 1], ids=["disk", "host"])
def test_frames_side_by_side_move_at_once(file: SwapFile, which: int) -> None:
    places = HostPlaces(100, FRAME) if which else DiskPlaces(file, 40, BYTES)
    held = np.concatenate([frame(seed) for seed in range(5)])
    places.write(1, 8, held)
    places.write(2, 10, held[:1])
    into = np.zeros_like(held)
    places.read(1, 8, into[:2])
    places.read(1, 11, into[3:])
    assert np.array_equal(into[[0, 1, 3, 4]], held[[0, 1, 3, 4]])
    with pytest.raises(Lost, match="place 10"):
        places.read(1, 8, into)
    with pytest.raises(OSError, match="place"):
        places.write(1, 100, held[:1])


@given(
    st.lists(st.tuples(st.integers(1, 2), st.integers(0, 9), st.integers(0, 9)), max_size=12),
    st.integers(1, 4),
)
def test_pieces_of_moves_are_copies_of_one_shelf(ends: list[tuple[int, int, int]], shelf: int) -> None:
    moves = [Move(1, ctx, frame, 1, slot) for ctx, frame, slot in ends]
    pieces = at_once(moves, shelf)
    assert [move for piece in pieces for move in piece] == moves
    for piece in pieces:
        assert len({(m.ctx, m.frame - i, m.slot - i) for i, m in enumerate(piece)}) == 1
        assert piece[0].slot // shelf == piece[-1].slot // shelf
    for one, other in itertools.pairwise(pieces):
        joined = [*one, *other]
        assert (
            len({(m.ctx, m.frame - i, m.slot - i) for i, m in enumerate(joined)}) > 1
            or one[0].slot // shelf != other[0].slot // shelf
        )


@settings(deadline=None, max_examples=60)
@given(at=st.integers(0, STRIDE - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_is_never_taken_back(tmp_path_factory: pytest.TempPathFactory, at: int, bit: int) -> None:
    with closing(SwapFile(tmp_path_factory.mktemp("swap"), SIZE)) as file:
        places = DiskPlaces(file, 4, BYTES)
        places.write(1, 2, frame(1))
        byte = os.pread(file.descriptor, 1, 2 * STRIDE + at)
        os.pwrite(file.descriptor, bytes([byte[0] ^ 1 << bit]), 2 * STRIDE + at)
        with pytest.raises(Lost):
            places.read(1, 2, np.empty_like(frame(0)))


def test_what_stood_there_before_or_elsewhere_is_not_taken_back(file: SwapFile) -> None:
    places = DiskPlaces(file, 4, BYTES)
    places.write(1, 0, frame(1))
    older = os.pread(file.descriptor, STRIDE, 0)
    places.write(1, 0, frame(2))
    places.write(1, 1, frame(3))
    newer = os.pread(file.descriptor, STRIDE, 0)
    os.pwrite(file.descriptor, older, 0)
    os.pwrite(file.descriptor, newer, STRIDE)
    for slot in (0, 1):
        with pytest.raises(Lost):
            places.read(1, slot, np.empty_like(frame(0)))


def test_the_file_is_bounded_has_no_name_and_tells_nothing(file: SwapFile, tmp_path: Path) -> None:
    assert os.listdir(tmp_path / "swap") == []
    first = DiskPlaces(file, DiskPlaces.slots(SIZE // 2, BYTES), BYTES)
    second = DiskPlaces(file, DiskPlaces.slots(SIZE // 2, BYTES), BYTES)
    with pytest.raises(MemoryError, match="swap file"):
        DiskPlaces(file, 1, BYTES)
    first.close()
    DiskPlaces(file, 32, BYTES)
    plain = np.full_like(frame(0), 65)
    second.write(1, 0, plain)
    second.write(1, 1, plain)
    held = os.pread(file.descriptor, SIZE, 0)
    text = plain.tobytes()
    assert text[:32] not in held
    start = 32 * STRIDE
    assert held[start + 12 :][:BYTES] != held[start + STRIDE + 12 :][:BYTES]


def test_a_full_disk_is_an_error_and_not_a_frame(tmp_path: Path) -> None:
    """With a limit on the size of files, as a full disk has one on all of them."""
    program = textwrap.dedent("""
        import resource, signal, sys
        from pathlib import Path
        import numpy
        from llmasos.drivers.engine.disk_places import DiskPlaces
        from llmasos.drivers.engine.swap import Lost
        from llmasos.drivers.engine.swap_file import SwapFile
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        frame = numpy.ones((1, 16000), numpy.uint8)
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
        import numpy
        from llmasos.drivers.engine.disk_places import DiskPlaces
        from llmasos.drivers.engine.swap_file import SwapFile
        places = DiskPlaces(SwapFile(Path(sys.argv[1]), 1 << 20), 4, 4000)
        places.write(1, 0, numpy.ones((1, 4000), numpy.uint8))
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


# --- in a driver ----------------------------------------------------------------------------------------------------

FRAMES = 40
DTYPES = ["fp32", "bf16"] if isinstance(library.load(), str) else ["fp32", "bf16", "int8", "int4"]


def opened(model: Path, dtype: str, tmp_path: Path, tier: str = "disk", **options: str) -> Device:
    device = open_device({"threads": "2", "installed": "no", "swapdir": str(tmp_path), **options})
    if tier == "host":
        assert isinstance(device, Engine)
        device._below = [HostPlaces]
    device.fetch(Load(1, IMAGE, str(model), dtype, FRAMES, [600]), lambda fraction: None)()
    return device


@pytest.mark.parametrize(
    ("dtype", "tier", "idle"),
    [(dtype, tier, idle) for dtype in DTYPES for tier, idle in (("disk", False), ("disk", True), ("host", False))],
)
def test_contexts_that_take_turns_in_the_frames_say_what_they_would_have_said(
    zoo: Callable[[str], Path], tmp_path: Path, dtype: str, tier: str, idle: bool
) -> None:
    """Each has more than half of the frames, so that one always lies in the tier below."""
    logs = [[i % 190 for i in range(start, start + 340)] for start in (0, 57)]
    wanted = []
    for log in logs:
        feeder = Feeder(opened(zoo("qwen3"), dtype, tmp_path), FRAMES)
        wanted += feeder.generate([feeder.spawn(log)], 40)
    feeder = Feeder(opened(zoo("qwen3"), dtype, tmp_path, tier), FRAMES, idle=idle)
    first, second = (feeder.spawn(log, GREEDY) for log in logs)
    made: dict[int, list[int]] = {first.ctx: [], second.ctx: []}
    for turn in range(16):
        here, away = (first, second) if turn % 2 == 0 else (second, first)
        if away.table:
            feeder.move_out(away)
        if here.places:
            feeder.move_in(here)
        made[here.ctx] += feeder.generate([here], 5)[0]
    assert [made[first.ctx], made[second.ctx]] == wanted


def test_what_was_changed_in_the_file_is_lost_and_nothing_else(zoo: Callable[[str], Path], tmp_path: Path) -> None:
    device = opened(zoo("llama"), "fp32", tmp_path)
    assert isinstance(device, Engine)
    feeder = Feeder(device, FRAMES)
    one, other = feeder.spawn(list(range(100))), feeder.spawn(list(range(50, 150)))
    feeder.generate([one, other], 3)
    feeder.move_out(one)
    feeder.generate([other], 1)
    (places,) = device._images[IMAGE].below
    assert isinstance(places, DiskPlaces)
    stride = places._stride
    os.pwrite(places._file.descriptor, b"x", 4 * stride + 100)
    feeder.move_in(one)
    results = feeder.step([feeder.run(one, 1), feeder.run(other, 1)])
    assert (results[0].unread, results[0].token) == (4, -1)
    assert (results[1].unread, results[1].error) == (-1, "")
    assert results[1].token >= 0
    one.log = one.log[:64]
    one.table, one.computed, one.told, one.knows_log = (
        one.table[:4],
        63,
        0,
        False,
    )  # what came before has arrived
    feeder.generate([one], 5)
    alone = Feeder(opened(zoo("llama"), "fp32", tmp_path), FRAMES)
    assert one.log[64:] == alone.generate([alone.spawn(one.log[:64])], 5)[0]


def test_a_context_that_is_dropped_takes_its_key_with_it(zoo: Callable[[str], Path], tmp_path: Path) -> None:
    device = opened(zoo("llama"), "fp32", tmp_path)
    feeder = Feeder(device, FRAMES)
    one, other = feeder.spawn(list(range(100))), feeder.spawn([1, 2, 3])
    feeder.generate([one], 1)
    feeder.move_out(one)
    feeder.generate([other], 1)
    device.drop([one.ctx])
    feeder.move_in(one)
    (result,) = feeder.step([feeder.run(one, 1)])
    assert result.unread == 0


def test_the_options_say_how_much_and_where(tmp_path: Path) -> None:
    tiers = open_device({"swap": "64MiB", "swapdir": str(tmp_path / "deep" / "swap")}).hello().tiers
    assert [(tier.name, tier.size) for tier in tiers[1:]] == [("disk", 64 << 20)]
    assert len(open_device({"swap": "0"}).hello().tiers) == 1
    (tmp_path / "file").touch()
    with pytest.raises(SyscallError, match="swapdir") as caught:
        open_device({"swapdir": str(tmp_path / "file")})
    assert caught.value.errno is Errno.EIO
    with pytest.raises(SyscallError, match="swap='much': a size such as") as caught:
        open_device({"swap": "much"})
    assert caught.value.errno is Errno.EINVAL


def test_a_full_disk_means_no_swap_and_a_line_that_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda directory: usage._replace(free=100_000))
    assert open_swap(None, tmp_path) is None
    assert f"no swap: {tmp_path} is full" in caplog.text
    made = open_swap(64 << 10, tmp_path)  # whoever asks for little gets it
    assert made is not None
    with closing(made):
        assert made.size == 64 << 10
