"""What a kind of device is: the table of callbacks that `llmasos.drivers.host` drives from its one work thread.

MINIX 3's libblockdriver is the model: the host owns the message loop, the heartbeat and the errors; a kind of
device fills in this table, and `drivers.<kind>.open_device(options)` returns one. All but `progress`, `hears`, `probe`,
`fetch`, `inspect` and what `export` returns are called from the same thread, one at a time; `probe` and `fetch` from
another one beside it, one at a time, and the last two from a third. A method that cannot do what it was asked raises a
SyscallError, which the host turns into `Failed`; the device is then as if it had not been asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from llmasos.drivers.protocol import (
    Export,
    Exported,
    Hello,
    Import,
    Imported,
    Inspect,
    Inspected,
    Load,
    Loaded,
    Probe,
    Probed,
    Step,
    StepDone,
)


class Device(Protocol):
    """One device: memory for weights and KV frames, and the means to run a model over them."""

    @property
    def progress(self) -> int:
        """Grows while the device gets on with a request; read from another thread, by the heartbeat."""

    def hello(self) -> Hello:
        """What this device is and what it can do."""

    def probe(self, request: Probe) -> Probed:
        """Read a model's configuration. Raises ENOENT, ENOEXEC (naming the architecture), EIO."""

    def fetch(self, request: Load, report: Callable[[float], None]) -> Callable[[], Loaded]:
        """Read a model into memory, calling `report(fraction)` at times, and change nothing that steps look at: what it
        returns does that, in their thread. Raises as probe does; ENOMEM."""

    def load(self, request: Load, report: Callable[[float], None]) -> Loaded:
        """`fetch`, and what that returns."""

    def shed(self, image: int) -> None:
        """Free the weights of an image, not its frames and contexts. Raises EINVAL if they are not there."""

    def unload(self, image: int) -> None:
        """Free an image, its frames and its contexts. Raises EINVAL if there is no such image."""

    def step(self, request: Step) -> StepDone:
        """Do the copies, then the runs as one batch. A run that fails alone says so in its result's error."""

    def drop(self, ctxs: Sequence[int]) -> None:
        """Forget contexts; unknown ones are ignored."""

    def export(self, request: Export) -> Callable[[], Exported]:
        """Take what is to be written of a process; another thread calls what is returned, which writes it."""

    def inspect(self, request: Inspect) -> Inspected:
        """What is in the file of a process image. Called by another thread."""

    def import_(self, request: Import) -> Imported:
        """Read KV from the file of a process image."""

    def go_on(self, asked: Callable[[], bool]) -> None:
        """There is nothing to do: begin what will probably be asked, if that is known and not `asked()` by now."""

    def hears(self, request: object) -> None:
        """Another thread tells what will be asked next: what was begun by `go_on` and is not that, is given up."""
