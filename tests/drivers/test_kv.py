"""KV frames as bytes: alike for a slab in the CPU's memory, for torch's view of it, and for one that only torch has."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from llmasos.drivers.engine.disk_places import DiskPlaces
from llmasos.drivers.engine.host_places import HostPlaces
from llmasos.drivers.engine.kv import KVShape, KVSlab, bytes_of, fill
from llmasos.drivers.engine.swap import Lost
from llmasos.drivers.engine.swap_file import SwapFile
from llmasos.drivers.engine.torch_kv import TorchSlab

SHAPE = KVShape(2, 3, 4, "bfloat16")
FRAMES = 5


def far() -> TorchSlab:
    """A slab as one in a GPU is: a tensor, and no array behind it."""
    slab = TorchSlab(SHAPE, FRAMES, torch.device("cpu"))
    slab.raw = torch.zeros((FRAMES, SHAPE.block_bytes), dtype=torch.uint8)
    slab._see(slab.raw)
    return slab


SLABS: dict[str, Callable[[], KVSlab]] = {
    "native": lambda: KVSlab(SHAPE, FRAMES),
    "torch": lambda: TorchSlab(SHAPE, FRAMES, torch.device("cpu")),
    "torch over native": lambda: TorchSlab.over(KVSlab(SHAPE, FRAMES)),
    "far": far,
}


@pytest.fixture(params=sorted(SLABS))
def slab(request: pytest.FixtureRequest) -> KVSlab:
    made = SLABS[request.param]()
    content = np.random.default_rng(7).integers(0, 256, (FRAMES, SHAPE.block_bytes), dtype=np.uint8)

    def write(into: memoryview) -> None:
        into[:] = content.reshape(-1).data

    fill(made.some(0, FRAMES), write)
    assert np.array_equal(made.gather(list(range(FRAMES))), content)
    return made


def test_the_name_of_a_shape_is_what_files_of_process_images_know() -> None:
    assert SHAPE.name == "bfloat16 2 layers x 2 x 3 heads x 16 tokens x 4"
    assert SHAPE.block_bytes == 2 * 2 * 3 * 16 * 4 * 2


def test_frames_are_copied_in_order_and_gathered(slab: KVSlab) -> None:
    before = slab.gather([0, 1, 2])
    slab.copy([(0, 3), (3, 4), (1, 0)])
    assert np.array_equal(slab.gather([3, 4, 0, 1]), before[[0, 0, 1, 1]])
    held = slab.gather([2])
    slab.copy([(0, 2)])
    assert np.array_equal(held, before[[2]]), "what was gathered is a copy"
    assert slab.gather([]).shape == (0, SHAPE.block_bytes)
    assert bytes(bytes_of(slab.some(1, 2))) == before[1].tobytes() + before[1].tobytes()


def test_wiped_frames_have_no_byte_of_what_was_in_them(slab: KVSlab) -> None:
    before = slab.gather(list(range(FRAMES)))
    slab.wipe([])
    slab.wipe([3, 1])
    assert not slab.gather([1, 3]).any()
    assert np.array_equal(slab.gather([0, 2, 4]), before[[0, 2, 4]])


def test_a_place_in_host_memory_goes_to_another_context_with_nothing_in_it(slab: KVSlab) -> None:
    host = HostPlaces(4, slab.some(0, 1)[0])
    with closing(host):
        host.write(1, 0, slab.some(0, 2))
        host.forget(1)
        with pytest.raises(Lost):
            host.read(2, 0, slab.some(3, 1))
        slab.wipe([4])
        host.write(2, 0, slab.some(4, 1))
        host.read(2, 0, slab.some(2, 1))
        assert not slab.gather([2]).any(), "all of a place is written"
        with pytest.raises(Lost):
            host.read(2, 1, slab.some(3, 1))


def test_frames_go_out_and_come_back_by_way_of_disk_and_host(slab: KVSlab, tmp_path: Path) -> None:
    before = slab.gather(list(range(FRAMES)))
    with closing(SwapFile(tmp_path, 1 << 16)) as file:
        for places in (DiskPlaces(file, 4, SHAPE.block_bytes), HostPlaces(4, slab.some(0, 1)[0])):
            places.write(1, 1, slab.some(2, 2))
            slab.copy([(0, 2), (0, 3)])
            places.read(1, 1, slab.some(3, 1))
            places.read(1, 2, slab.some(2, 1))
            assert np.array_equal(slab.gather([3, 2]), before[[2, 3]])
            slab.copy([(3, 4), (2, 3), (4, 2)])
            assert np.array_equal(slab.gather([2, 3]), before[[2, 3]])


def test_what_torch_writes_is_in_the_bytes() -> None:
    slab = KVSlab(SHAPE, FRAMES)
    seen = TorchSlab.over(slab)
    seen.data[3].fill_(1.0)
    assert np.array_equal(slab.raw[3].view(np.uint16), np.full(SHAPE.block_bytes // 2, 0x3F80))
    seen.clear(3, 15)
    assert int((slab.raw[3].view(np.uint16) == 0).sum()) == 2 * 2 * 3 * 4
    assert TorchSlab.over(seen) is seen


def test_wiped_frames_are_zeros_and_their_neighbours_as_they_were(slab: KVSlab) -> None:
    before = slab.gather(list(range(FRAMES)))
    slab.wipe([1, 3])
    after = slab.gather(list(range(FRAMES)))
    assert not after[[1, 3]].any()
    assert np.array_equal(after[[0, 2, 4]], before[[0, 2, 4]])


def test_wiped_places_of_host_memory_hold_nothing_of_anybody(slab: KVSlab) -> None:
    host = HostPlaces(4, slab.some(0, 1)[0])
    with closing(host):
        host.write(7, 0, slab.some(0, 2))
        host.wipe([0, 3])
        assert not host._places(0, 1).any()
        assert host._places(1, 1).any()
        with pytest.raises(Lost):
            host.read(7, 0, slab.some(0, 1))
