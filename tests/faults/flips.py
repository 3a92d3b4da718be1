"""Bits that flip in what a driver holds: `python -m tests.faults.flips --flips 200`. What is noticed, and what is not.

In each round one bit, drawn, is another than it was: in a KV frame or a weight in memory, in the swap file, in a process
image, in an installed model, in the model's own files. A driver with the embedded model then decodes, and its tokens are
held against those without. *Noticed*: the bytes are not used, and somebody is told (the frame is lost and computed again,
the file is refused or made again, its digest is another). The others are used as they are, and change an answer or not.
docs/security.md has the table.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np

from llmasos.drivers.cpu import open_device
from llmasos.drivers.cpu.native.image import NativeImage
from llmasos.drivers.cpu.native.installed_file import Mapped
from llmasos.drivers.engine.digest import content_digest
from llmasos.drivers.engine.disk_places import DiskPlaces
from llmasos.drivers.engine.engine import Engine
from llmasos.drivers.protocol import Export, Import, Inspect, Load
from llmasos.syscalls.errno import SyscallError
from tests.drivers.feeder import IMAGE, Feeder, Process

MODEL = Path(__file__).parents[2] / "models" / "tiny"
FRAMES = 24
PROMPT = [(7 * i + i * i) % 250 for i in range(70)]
COUNT = 12  # tokens to decode
Fate = Literal["noticed", "another answer", "the same answer"]
FATES: tuple[Fate, ...] = ("noticed", "another answer", "the same answer")


def flip(array: np.ndarray, pick: random.Random) -> Callable[[], None]:
    """Flip a bit of bytes; returns what flips it back."""
    at, bit = pick.randrange(len(array)), np.uint8(1 << pick.randrange(8))

    def turn() -> None:
        array[at] ^= bit

    turn()
    return turn


def flip_in_file(file: Path | int, pick: random.Random, first: int = 0, end: int = 0) -> None:
    """Flip a bit of a file, in the bytes from `first` to `end`; 0: to its end."""
    descriptor = file if isinstance(file, int) else os.open(file, os.O_RDWR)
    at = pick.randrange(first, end or os.fstat(descriptor).st_size)
    (byte,) = os.pread(descriptor, 1, at)
    os.pwrite(descriptor, bytes((byte ^ 1 << pick.randrange(8),)), at)
    if not isinstance(file, int):
        os.close(descriptor)


class Warned(logging.Handler):
    """The warnings of drivers, which the kernel's log gets."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1


class Bench:
    """A driver with the embedded model, and what it must say."""

    def __init__(self, place: Path, dtype: str) -> None:
        self.place, self.dtype = place, dtype
        self.store = place / "installed"
        self.device = self.opened(MODEL)
        self.feeder = Feeder(self.device, FRAMES)
        self.wanted = self.said()

    def opened(self, model: Path) -> Engine:
        device = open_device({"threads": "1", "installed": os.fspath(self.store), "swapdir": os.fspath(self.place)})
        assert isinstance(device, Engine)
        device.fetch(Load(1, IMAGE, os.fspath(model), self.dtype, FRAMES, [FRAMES]), lambda fraction: None)()
        return device

    @property
    def image(self) -> NativeImage:
        image = self.device._images[IMAGE]
        assert isinstance(image, NativeImage)
        return image

    @contextmanager
    def process(self) -> Iterator[Process]:
        """One that has its prompt in frames, and a first token."""
        process = self.feeder.spawn(PROMPT)
        try:
            self.feeder.generate([process], 1)
            yield process
        finally:
            self.feeder.end(process)

    def said(self, between: Callable[[Process], None] = lambda process: None) -> list[int]:
        with self.process() as process:
            between(process)
            self.feeder.generate([process], COUNT)
            return process.log[len(PROMPT) :]

    def fate(self, said: list[int], whole: bool = True) -> Fate:
        return "the same answer" if said == self.wanted and whole else "another answer"

    def answer(self, between: Callable[[Process], None] = lambda process: None) -> Fate:
        try:
            return self.fate(self.said(between))
        except AssertionError:  # scores that are no numbers, or a file that has changed: it ends, with the reason
            return "noticed"

    # --- where bits flip ---

    def frames(self, pick: random.Random) -> Fate:
        def between(process: Process) -> None:
            frame = self.image.slab.raw[pick.choice(process.table[:-1])]
            flip(frame.reshape(-1).view(np.uint8), pick)

        return self.answer(between)

    def weights(self, pick: random.Random) -> Fate:
        arena = self.image._network._weights
        used = np.flatnonzero(arena._bytes[: arena.used].reshape(-1, 64).any(axis=1))
        back = flip(arena._bytes[64 * pick.choice(used) :][:64], pick)
        try:
            return self.answer()
        finally:
            back()

    def swap(self, pick: random.Random) -> Fate:
        (places,) = self.image.below
        assert isinstance(places, DiskPlaces)
        with self.process() as process:
            self.feeder._places = 0  # the first place that is used
            self.feeder.move_out(process)
            self.feeder.step([])
            first = places._start + pick.choice(process.places) * places._stride
            flip_in_file(places._file.descriptor, pick, first, first + places._stride)
            self.feeder.move_in(process)
            (result,) = self.feeder.step([self.feeder.run(process, 1)])
        return "noticed" if result.unread >= 0 else "the same answer"

    def process_image(self, pick: random.Random) -> Fate:
        path = os.fspath(self.place / "image")
        with self.process() as process, self.process() as other:
            self.device.export(Export(7, IMAGE, process.ctx, path, b"head", process.computed, process.table))()
            flip_in_file(Path(path), pick)
            try:
                found = self.device.inspect(Inspect(8, path))
                taken = self.device.import_(Import(9, IMAGE, path, found.id, 0, other.table, found.tokens))
            except SyscallError:
                return "noticed"
            return "noticed" if taken.reason else self.fate(self.said(), found.tokens == process.computed)

    def installed(self, pick: random.Random) -> Fate:
        """A file that is loaded after that."""
        (path,) = self.files()
        flip_in_file(path, pick)
        warned = Warned()
        logging.getLogger("llmasos").addHandler(warned)
        try:
            said = Bench(self.place, self.dtype).wanted
        finally:
            logging.getLogger("llmasos").removeHandler(warned)
        return "noticed" if warned.count and said == self.wanted else self.fate(said)

    def in_use(self, pick: random.Random) -> Fate:
        """A file of which the embedding is mapped; by a fault of the disk, which changes no times."""
        return self.beneath(pick, told=False)

    def written_to(self, pick: random.Random) -> Fate:
        """The same by a write, of which the file's times tell."""
        return self.beneath(pick, told=True)

    def beneath(self, pick: random.Random, *, told: bool) -> Fate:
        (path,) = self.files()
        mapped, guard = self.image._network._tables, self.image._guard
        assert isinstance(mapped, Mapped)
        assert guard is not None
        size, length = path.stat().st_size, len(mapped.map)
        row = length // 3  # the tables begin with the embedding, which has some hundred rows of the tokens that come
        before = path.read_bytes()
        flip_in_file(path, pick, size - length, size - length + row)
        if not told:
            guard._stamp = guard._now()
        try:
            return self.answer()
        finally:
            with path.open("r+b") as file:
                file.write(before)
            guard._stamp, guard.trouble = guard._now(), ""

    def files(self) -> list[Path]:
        return [path for path in self.store.glob("*-int8-*") if not path.name.startswith(".") and path.stat().st_size]

    def own_files(self, pick: random.Random) -> Fate:
        """The model's, before they are loaded: whoever has their digest finds that."""
        model = Path(shutil.copytree(MODEL, self.place / "model"))
        try:
            before = content_digest(model, None, lambda: None)
            flip_in_file(model / "model.safetensors", pick)
            return "noticed" if content_digest(model, None, lambda: None) != before else "the same answer"
        finally:
            shutil.rmtree(model)


IN_MEMORY, ON_DISK = ("fp32", "bf16", "int8"), ("int8",)
PLACES: dict[str, tuple[Callable[[Bench, random.Random], Fate], tuple[str, ...]]] = {
    "KV frames in memory": (Bench.frames, IN_MEMORY),
    "weights in memory": (Bench.weights, IN_MEMORY),
    "an installed model that is in use": (Bench.in_use, ON_DISK),
    "the same, by a write": (Bench.written_to, ON_DISK),
    "frames in the swap file": (Bench.swap, ON_DISK),
    "a process image": (Bench.process_image, ON_DISK),
    "an installed model, when it is loaded": (Bench.installed, ON_DISK),
    "the model's own files, by their digest": (Bench.own_files, ON_DISK),
}


def campaign(place: Path, flips: int, seed: int, only: str = "") -> dict[tuple[str, str], Counter[Fate]]:
    """So many flips in each place, with each dtype: what became of them."""
    found: dict[tuple[str, str], Counter[Fate]] = {}
    for dtype in IN_MEMORY:
        bench = Bench(Path(tempfile.mkdtemp(dir=place)), dtype)
        for name, (act, dtypes) in PLACES.items():
            if dtype in dtypes and only in name:
                pick = random.Random(f"{seed} {name} {dtype}")
                found[name, dtype] = Counter(act(bench, pick) for _ in range(flips))
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.flips", description=__doc__)
    parser.add_argument("--flips", type=int, default=100, help="in each place, with each dtype")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args(arguments)
    logging.getLogger("llmasos").addHandler(logging.NullHandler())  # the table counts what drivers say
    with tempfile.TemporaryDirectory(prefix="llmasos-flips-") as place:
        found = campaign(Path(place), chosen.flips, chosen.seed)
    for (name, dtype), fates in found.items():
        print(f"{name:40} {dtype:5}" + "".join(f"{fates[fate]:6} {fate}" for fate in FATES))
    return 0


if __name__ == "__main__":
    sys.exit(main())
