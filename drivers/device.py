"""A kind of device: the table of callbacks that the driver's loop (host.py) and its threads (worker.py) call.

MINIX 3's libblockdriver is the model: the loop owns messages, heartbeats and errors; a kind of device fills in this
table, and `drivers.<kind>.open_device(options)` returns one. One thread calls the methods, one at a time, with these
exceptions: a second thread calls `probe` and `fetch`, also one at a time; a third calls `inspect` and the function that
`export` returns; a fourth `measure`; the main thread reads `progress` and calls `hears`. A method that cannot do what it
was asked raises a SyscallError, which becomes a `Failed`; the device is then as if it had not been asked.
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
    Measured,
    Probe,
    Probed,
    Step,
    StepDone,
    Wipe,
)


class Device(Protocol):
    """One device: memory for weights and KV frames, and the means to run a model over them."""

    @property
    def progress(self) -> int:
        """Grows while the device gets on with a request. The heartbeat reads it, in another thread."""

    def hello(self) -> Hello:
        """The first message: what this device is and can do."""

    def probe(self, request: Probe) -> Probed:
        """Read a model's configuration. Raises ENOENT, ENOEXEC (naming the architecture), EIO."""

    def fetch(self, request: Load, report: Callable[[float], None]) -> Callable[[], Loaded]:
        """Read a model into memory, calling `report(fraction)` at times, and change nothing that steps look at. The
        function that it returns makes the image usable; the thread of the steps calls it. Raises as probe does;
        ENOMEM."""

    def measure(self, image: int) -> Measured | None:
        """The digest of the model that was loaded as an image; None: there is no such image any more. Called in a thread
        of its own. Raises EIO: the files are not those that were loaded."""

    def drop_weights(self, image: int) -> None:
        """Free the weights of an image, not its frames and contexts. Raises EINVAL if the weights are not there."""

    def unload(self, image: int) -> None:
        """Free an image, its frames and its contexts. Raises EINVAL if there is no such image."""

    def step(self, request: Step) -> StepDone:
        """Move and copy frames, then compute the runs as one batch. The result of a run that fails alone has its
        error."""

    def drop(self, ctxs: Sequence[int]) -> None:
        """Forget contexts; unknown ones are ignored."""

    def wipe(self, request: Wipe) -> None:
        """Zero frames and places that nobody has. Raises EINVAL if there is no such image."""

    def export(self, request: Export) -> Callable[[], Exported]:
        """Copy the KV of a process; the function that is returned writes it, in another thread."""

    def inspect(self, request: Inspect) -> Inspected:
        """Read the head of a process image's file. Called in another thread."""

    def import_(self, request: Import) -> Imported:
        """Read KV from the file of a process image."""

    def go_on(self, asked: Callable[[], bool]) -> None:
        """Nothing is asked for: begin the step that will probably come, if it is known. `asked()` becomes true as soon as
        there is a request."""

    def hears(self, request: object) -> None:
        """A request has arrived, and this is called in another thread: if `go_on` has begun a step, and the request is
        not for it, give it up."""
