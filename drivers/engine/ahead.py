"""Beginning a step before it is asked for, and using or dropping it then (early.py says why, and why it is safe).

At most one step is begun ahead: the one in which every context of the last step goes on. The engine forgets it when
contexts or images change in another way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress

from llmasos.drivers.engine.contexts import Context
from llmasos.drivers.engine.early import Computed, Early, Patience, Stop, Stopped, next_run
from llmasos.drivers.engine.image import Frames
from llmasos.drivers.protocol import Run, RunResult, Step
from llmasos.syscalls.errno import SyscallError

Compute = Callable[[Frames, list[Run], list[Context], Stop | None], Computed]


class Ahead:
    """The step that is begun ahead, if the device does that. `images` and `contexts` are the engine's."""

    def __init__(self, compute: Compute, *, enabled: bool) -> None:
        self._compute = compute
        self._patience = Patience() if enabled else None
        self._last: tuple[list[Run], list[RunResult]] | None = None  # the step before, if it may go on
        self._early: Early | None = None  # the next one
        self._had: dict[tuple[int, int], int] = {}  # which context a spare frame (image, frame) stood in for last

    def forget(self) -> None:
        """Contexts or images change: no step goes on from the last one."""
        self._last = self._early = None

    def done(self, runs: list[Run], results: list[RunResult]) -> None:
        """A step is done, and all its contexts may go on."""
        self._last = runs, results

    def hears(self, request: object) -> None:
        """A request has arrived, told in another thread: give up a step that it does not ask for."""
        early = self._early
        if early is not None and not early.is_asked(request):
            early.stop.set()

    def begin(self, images: Mapping[int, Frames], contexts: Mapping[int, Context], asked: Callable[[], bool]) -> None:
        """Begin the next step, if it is known which one that will be and nobody has `asked` for anything by now."""
        last, self._last = self._last, None
        if last is None or self._patience is None or not self._patience.ask():
            return
        early = _expected(*last, images, contexts)
        if early is None:
            return
        self._clear(early, images[early.number])
        self._early = early  # from here on `hears` may stop it
        if asked():
            self._early = None
            return
        with suppress(Stopped, MemoryError, SyscallError):  # which the step then meets itself
            early.computed = self._compute(images[early.number], early.runs, early.contexts, early.stop)

    def _clear(self, early: Early, image: Frames) -> None:
        """A spare frame is copied whole to the one that the kernel gives: it has nothing of another context."""
        for run in early.runs:
            for frame in run.blocks:
                if self._had.get((early.number, frame), run.ctx) != run.ctx:
                    image.slab.wipe([frame])
                self._had[early.number, frame] = run.ctx

    def take(self, request: Step) -> Early | None:
        """The step that was begun, if it is the one that is asked for now."""
        self._last = None
        early, self._early = self._early, None
        if early is not None and not early.is_asked(request):
            self._miss()
            return None
        return early

    def finish(self, image: Frames, early: Early, runs: list[Run], contexts: list[Context]) -> Computed | None:
        """The outcome of the step that was begun, its KV moved to the frames of these runs and contexts, which have been
        told of them; None if the step is another one."""
        moves = early.moves(runs, contexts)
        if moves is None or early.computed is None or self._patience is None:
            self._miss()
            early.computed = None
            return None
        self._patience.hit()
        image.slab.copy(moves)
        for context, own in zip(contexts, early.contexts, strict=True):
            context.log, context.end, context.trust = own.log, own.end, own.trust
        return early.computed

    def _miss(self) -> None:
        if self._patience is not None:
            self._patience.miss()


def _expected(
    runs: list[Run], results: list[RunResult], images: Mapping[int, Frames], contexts: Mapping[int, Context]
) -> Early | None:
    """The step that follows if every context just goes on."""
    numbers = {run.image for run in runs}
    if len(numbers) != 1:
        return None
    number = numbers.pop()
    image = images[number]
    if not image.stops:
        return None
    spare = iter(image.slab.spare)
    early = Early(number, [], [])
    for run, result in zip(runs, results, strict=True):
        context = contexts.get(run.ctx)
        if context is None:
            return None
        following = next_run(run, result, image.layout.context, spare)
        own = context.copy()
        if following is None or own.follow(following):
            return None
        early.runs.append(following)
        early.contexts.append(own)
    return early
