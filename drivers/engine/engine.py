"""The engine: the Device (drivers/device.py) that the CPU and CUDA drivers share, whatever computes their steps.

It answers the kernel's requests and nothing else: which frames, which tokens and who runs have been decided. vLLM's model
runner is the counterpart; here a step names everything it needs, so the engine can be killed and told again.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from llmasos.drivers import checkpoint as process_images
from llmasos.drivers.engine import checkpoint, fetching, files
from llmasos.drivers.engine.contexts import Context
from llmasos.drivers.engine.digest import Stamp, stamp
from llmasos.drivers.engine.dtypes import Dtypes
from llmasos.drivers.engine.early import Computed, Early, Patience, Stop, Stopped, next_run
from llmasos.drivers.engine.image import Frames, ImageKind
from llmasos.drivers.engine.kv import Stretch
from llmasos.drivers.engine.layout import Layout
from llmasos.drivers.engine.sampler import is_plain, plain_choice, sample
from llmasos.drivers.engine.swap import Below, Lost, Places, at_once
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
    Move,
    Probe,
    Probed,
    Run,
    RunResult,
    Sample,
    Step,
    StepDone,
)
from llmasos.modelfiles import generation, source
from llmasos.modelfiles.files import broken, shown
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import SamplingDefaults

_log = logging.getLogger(__name__)
_LAYOUTS = 16  # remembered, so that a model that comes back into memory is not examined again
_MOVING_TASKS = 16  # of the frames of a step that are moved


class Engine:
    """A Device. `kinds` are its ways to run a model, the first that can is used; `memory` tells the bytes available;
    `early`: begin steps before they are asked for; `below`: the lower tiers, as declared in `hello`; `digests`: the
    directory where digests of models are remembered."""

    def __init__(
        self,
        hello: Hello,
        dtypes: Dtypes,
        kinds: Sequence[ImageKind],
        memory: Callable[[], int],
        *,
        early: bool = False,
        below: Sequence[Below] = (),
        digests: Path | None = None,
    ) -> None:
        self.progress = 0
        self._hello = hello
        self._dtypes = dtypes
        self._memory = memory
        self._kinds = kinds
        self._below = below
        self._movers = ThreadPoolExecutor(os.cpu_count() or 1, "swap")
        self._images: dict[int, Frames] = {}
        self._origins: dict[int, checkpoint.Origin] = {}
        self._digests = digests
        self._contexts: dict[int, Context] = {}
        self._layouts: dict[str, tuple[Any, Layout]] = {}  # by what was read, and the kind
        self._last: tuple[list[Run], list[RunResult]] | None = None  # the step before, if it may go on
        self._early: Early | None = None  # the next one, begun before it is asked for
        self._patience = Patience() if early else None

    def hello(self) -> Hello:
        return self._hello

    # --- models -----------------------------------------------------------------------------------------------------

    def probe(self, request: Probe) -> Probed:
        place = source.find(request.path)
        raw = files.read_config(place)
        dtype = self._dtypes.find(request.dtype or self._as_stored(place, raw))
        kind = self._kind(raw, dtype)
        config, layout = self._examine(kind, place, raw)
        said = generation.read(place, raw, layout.eos)
        return Probed(
            ref=request.ref,
            architecture=raw["model_type"],
            dtype=dtype,
            parameters=layout.parameters,
            weight_bytes=kind.weight_bytes(config, layout, dtype, self._is_kept(kind, place, raw, dtype)),
            vocab=layout.vocab,
            context=layout.context,
            layers=layout.layers,
            block_bytes=kind.kv_shape(layout, dtype).block_bytes,
            eos_ids=said.eos_ids,
            stream_bytes=kind.stream_bytes(config, layout, dtype),
            sampling=SamplingDefaults(said.temperature, said.top_k, said.top_p, said.min_p, said.repetition_penalty),
            stored=files.stored(place, raw, dtype, kind.keeps_integers),
        )

    def load(self, request: Load, report: Callable[[float], None]) -> Loaded:
        return self.fetch(request, report)()

    def fetch(self, request: Load, report: Callable[[float], None]) -> Callable[[], Loaded]:
        there = self._images.get(request.image)
        if (there is not None) != request.kept or (there is not None and there.complete):
            what = "not there without its weights" if request.kept else "loaded already"
            raise SyscallError(Errno.EINVAL, f"image {request.image} is {what}")
        directory = source.find(request.path, weights=True, said=fetching.told(request.path, report))
        loaded = _stamp(directory)
        raw = files.read_config(directory)
        dtype = self._dtypes.find(request.dtype or self._as_stored(directory, raw))
        kind = self._kind(raw, dtype)
        config, layout = self._examine(kind, directory, raw)
        frame_bytes = kind.kv_shape(layout, dtype).block_bytes
        kept = self._is_kept(kind, directory, raw, dtype)
        wanted = request.room or kind.weight_bytes(config, layout, dtype, kept)
        wanted += 0 if there is not None else request.frames * frame_bytes
        available = self._memory()
        if wanted > available:
            raise SyscallError(
                Errno.ENOMEM,
                f"{request.path} in {dtype} with {request.frames} KV frames needs {wanted >> 20} MiB, "
                f"{available >> 20} MiB are available; evict a model, ask for less KV, or use a smaller dtype",
            )
        origin = checkpoint.Origin(directory, self._digests, kind.way(layout, dtype), loaded)
        changed = there is not None and origin.loaded != self._origins[request.image].loaded
        if there is not None and there.slab.shape != kind.kv_shape(layout, dtype):
            raise broken(
                f"what lies in {directory} is another model than was loaded from there: its KV has another shape",
            )
        moved = [0.0]

        def progress(fraction: float) -> None:
            self._tick()
            if fraction - moved[0] >= 0.01:
                moved[0] = fraction
                report(fraction)

        try:
            frames = request.frames if there is None else there.slab
            image = kind.build(
                directory,
                lambda: files.open_weights(directory, raw, dtype),
                config,
                layout,
                dtype,
                frames,
                progress,
                request.room,
            )
        except MemoryError as error:
            raise SyscallError(Errno.ENOMEM, f"no memory for {request.path} in {dtype}: {error}") from None
        if _stamp(directory) != loaded:  # what was read may be of two models
            raise SyscallError(Errno.EIO, f"the files in {directory} changed while they were read; load it again")
        if there is not None:
            image.below, image.guesser = there.below, there.guesser
        elif image.slab.frames:
            image.below = [
                make(count, image.slab.some(0, 1)[0]) for make, count in zip(self._below, request.slots, strict=False)
            ]

        def bring_in() -> Loaded:
            self._images[request.image] = image
            self._origins[request.image] = origin
            return Loaded(request.ref, image.weight_bytes, image.exact, image.resident_bytes, changed)

        return bring_in

    def shed(self, image: int) -> None:
        if not self._image(image).complete:
            raise SyscallError(Errno.EINVAL, f"image {image} has no weights in memory")
        self._last = self._early = None
        self._images[image].close()

    def unload(self, image: int) -> None:
        gone = self._images.pop(image, None)
        if gone is None:
            raise SyscallError(Errno.EINVAL, f"no image {image} is loaded")
        del self._origins[image]
        self._last = self._early = None
        for places in gone.below:
            places.close()
        gone.close()
        self._contexts = {ctx: context for ctx, context in self._contexts.items() if context.image != image}

    def _tick(self) -> None:
        self.progress += 1

    @staticmethod
    def _is_kept(kind: ImageKind, place: Path, raw: dict[str, Any], dtype: str) -> bool:
        """Whether a quantised checkpoint's integers are run as they are."""
        return kind.keeps_integers and dtype == files.native_form(place, raw)

    def _as_stored(self, place: Path, raw: dict[str, Any]) -> str:
        """The dtype of a quantised checkpoint whose integers one of this device's kinds takes as they are, or ""."""
        form = files.native_form(place, raw)
        takes = form in self._dtypes.offered and any(
            kind.keeps_integers and not kind.why_not(raw, form) for kind in self._kinds
        )
        return form if takes and not self._dtypes.chosen else ""

    def _kind(self, raw: dict[str, Any], dtype: str) -> ImageKind:
        reasons = []
        for kind in self._kinds:
            if not (reason := kind.why_not(raw, dtype)):
                return kind
            reasons.append(reason)
        raise SyscallError(Errno.ENOTSUP, f"{raw['model_type']} in {dtype}: {'; '.join(reasons)}")

    def _examine(self, kind: ImageKind, place: Path, raw: dict[str, Any]) -> tuple[Any, Layout]:
        key = f"{kind.name}:{place}:{raw}"
        if key not in self._layouts:
            self._tick()
            found = kind.examine(place, raw, self._tick)
            while len(self._layouts) >= _LAYOUTS:
                del self._layouts[next(iter(self._layouts))]
            self._layouts[key] = found
        return self._layouts[key]

    # --- process images ---------------------------------------------------------------------------------------------

    def export(self, request: Export) -> Callable[[], Exported]:
        image = self._image(request.image) if request.image else None
        return checkpoint.export(request, image, self._origins.get(request.image), self._tick)

    def inspect(self, request: Inspect) -> Inspected:
        return process_images.inspect(request)

    def import_(self, request: Import) -> Imported:
        self._last = self._early = None
        image, origin = self._image(request.image), self._origins[request.image]
        return checkpoint.read(request, image, origin, self._movers, self._tick)

    # --- steps ------------------------------------------------------------------------------------------------------

    def drop(self, ctxs: Sequence[int]) -> None:
        self._last = self._early = None
        for ctx in ctxs:
            self._contexts.pop(ctx, None)
            for image in self._images.values():
                for places in image.below:
                    places.forget(ctx)

    def step(self, request: Step) -> StepDone:
        began = time.perf_counter()
        phases = dict.fromkeys(("prepare", "swap", "copy", "model", "sample"), 0.0)
        self._last = None
        early, self._early = self._early, None
        if early is not None and not early.is_asked(request):
            self._miss()
            early = None
        unwritten = self._move_out(request.outs)
        moved = time.perf_counter()
        for image, copies in groupby(request.copies, key=lambda copy: copy.image):
            self._image(image).slab.copy([(copy.src, copy.dst) for copy in copies])
        copied = time.perf_counter()
        lost = self._move_in(request.ins)
        phases["copy"] = copied - moved
        phases["swap"] = moved - began + time.perf_counter() - copied
        results: list[RunResult | None] = [None] * len(request.runs)
        order = sorted(range(len(request.runs)), key=lambda i: request.runs[i].image)
        for i, run in enumerate(request.runs):
            if run.ctx in lost:
                self._contexts.pop(run.ctx, None)
                results[i] = RunResult(run.ctx, lost=lost[run.ctx])
        order = [i for i in order if results[i] is None]
        for image, members in groupby(order, key=lambda i: request.runs[i].image):
            self._step_image(image, list(members), request.runs, results, phases, early)
        self._tick()
        done = [result for result in results if result is not None]
        self._last = request.runs, done
        spent = sum(early.computed.phases.values()) if early is not None and early.computed else 0.0
        return StepDone(request.ref, done, time.perf_counter() - began + spent, phases, unwritten)

    def _move_out(self, moves: list[Move]) -> list[int]:
        """Returns the indices of those that could not be written."""

        def write(piece: list[Move]) -> str:
            places, frames = self._ends(piece)
            try:
                places.write(piece[0].ctx, piece[0].slot, frames)
            except OSError as error:
                return str(error)
            return ""

        pieces = self._pieces(moves)
        if len({(move.image, move.tier, move.slot) for move in moves}) == len(moves):
            failures = self._by_many(write, pieces)
        else:  # a place that is written twice: in their order
            failures = [write(piece) for piece in pieces]
        unwritten: list[int] = []
        number = 0
        for piece, failure in zip(pieces, failures, strict=True):
            if failure:
                unwritten += range(number, number + len(piece))
            number += len(piece)
        if unwritten:
            _log.warning("%d frames could not be moved out: %s", len(unwritten), next(filter(None, failures)))
        self._wait()
        return unwritten

    def _move_in(self, moves: list[Move]) -> dict[int, int]:
        """Returns, for contexts of which a frame is lost, how many were read before it."""

        def read(piece: list[Move]) -> str:
            places, frames = self._ends(piece)
            try:
                places.read(piece[0].ctx, piece[0].slot, frames)
            except Lost as error:
                return str(error)
            return ""

        pieces = self._pieces(moves)
        arrived: dict[int, int] = {}
        lost: dict[int, int] = {}
        gone: Counter[int] = Counter()
        reasons: dict[int, str] = {}
        for piece, failure in zip(pieces, self._by_many(read, pieces), strict=True):
            ctx = piece[0].ctx
            if failure:
                reasons.setdefault(ctx, failure)
                gone[ctx] += len(piece)
                lost.setdefault(ctx, arrived.get(ctx, 0))
            arrived[ctx] = arrived.get(ctx, 0) + len(piece)
        for ctx, reason in reasons.items():
            _log.warning("%d frames of context %d are lost: %s", gone[ctx], ctx, reason)
        self._wait()
        return lost

    def _by_many(self, work: Callable[[list[Move]], str], pieces: list[list[Move]]) -> list[str]:
        """What the work on each piece comes to. Several are one task: handing one over takes as long as a frame."""
        size = max(1, len(pieces) // _MOVING_TASKS)
        tasks = [pieces[start : start + size] for start in range(0, len(pieces), size)]
        done = self._movers.map(lambda task: [work(piece) for piece in task], tasks)
        return [failure for task in done for failure in task]

    def _pieces(self, moves: list[Move]) -> list[list[Move]]:
        """The moves in their order, in pieces that are one copy each."""
        return [
            piece
            for (image, tier), some in groupby(moves, key=lambda move: (move.image, move.tier))
            for piece in at_once(list(some), self._image(image).below[tier - 1].shelf)
        ]

    def _ends(self, piece: list[Move]) -> tuple[Places, Stretch]:
        """The places of a piece and its frames."""
        first = piece[0]
        image = self._image(first.image)
        return image.below[first.tier - 1], image.slab.some(first.frame, len(piece))

    def _wait(self) -> None:
        """Until copies between the device and the host are done."""
        for image in self._images.values():
            image.slab.wait()

    def hears(self, request: object) -> None:
        early = self._early
        if early is not None and not early.is_asked(request):
            early.stop.set()

    def go_on(self, asked: Callable[[], bool]) -> None:
        """Begin the next step, if it is known which one that will be."""
        last, self._last = self._last, None
        if last is None or self._patience is None or not self._patience.ask():
            return
        early = self._expected(*last)
        if early is None:
            return
        self._early = early  # from here on `hears` may stop it
        if asked():
            self._early = None
            return
        with suppress(Stopped, MemoryError):
            early.computed = self._compute(self._images[early.number], early.runs, early.contexts, early.stop)

    def _miss(self) -> None:
        if self._patience is not None:
            self._patience.miss()

    def _expected(self, runs: list[Run], results: list[RunResult]) -> Early | None:
        """The step that follows if every context just goes on."""
        numbers = {run.image for run in runs}
        if len(numbers) != 1:
            return None
        number = numbers.pop()
        image = self._images[number]
        if not image.stops:
            return None
        spare = iter(image.slab.spare)
        early = Early(number, [], [])
        for run, result in zip(runs, results, strict=True):
            context = self._contexts.get(run.ctx)
            if context is None:
                return None
            following = next_run(run, result, image.layout.context, spare)
            own = context.copy()
            if following is None or own.follow(following):
                return None
            early.runs.append(following)
            early.contexts.append(own)
        return early

    def _done_early(self, image: Frames, early: Early, runs: list[Run], contexts: list[Context]) -> Computed | None:
        """What was computed before it was asked for, if that is what these runs ask."""
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

    def _image(self, number: int) -> Frames:
        if number not in self._images:
            raise SyscallError(Errno.EINVAL, f"no image {number} is loaded")
        return self._images[number]

    def _step_image(
        self,
        number: int,
        members: list[int],
        all_runs: list[Run],
        results: list[RunResult | None],
        phases: dict[str, float],
        early: Early | None,
    ) -> None:
        """Compute one image's runs; `members` says which of the step's they are."""
        image = self._image(number)
        good: list[int] = []
        contexts: list[Context] = []
        for i in members:
            run = all_runs[i]
            fault = image.check(run)
            context = self._contexts.get(run.ctx)
            if not fault:
                if context is None or context.image != number:
                    context = self._contexts[run.ctx] = Context(number)
                fault = context.follow(run)
            if fault or context is None:
                self._contexts.pop(run.ctx, None)  # what is known of it can no longer be trusted
                results[i] = RunResult(run.ctx, error=fault)
                continue
            good.append(i)
            contexts.append(context)
        if not good:
            return
        runs = [all_runs[i] for i in good]
        computed = self._done_early(image, early, runs, contexts) if early else None
        if computed is None:
            computed = self._compute(image, runs, contexts)
        for phase, seconds in computed.phases.items():
            phases[phase] += seconds
        at = 0
        for i, run, context, guess in zip(good, runs, contexts, computed.guesses, strict=True):
            if run.sample is None:
                results[i] = RunResult(run.ctx)
                continue
            own = computed.choices[at : at + len(guess) + 1]
            at += len(own)
            right = 0
            while right < len(guess) and guess[right] == own[right].token and not own[right + 1].error:
                right += 1
            if guess:
                image.guesser.held(context, len(guess), right)
                context.cut(len(guess) - right)
            first, more = own[0], [choice.token for choice in own[1 : right + 1]]
            results[i] = RunResult(run.ctx, first.token, first.logprobs, first.error, more)

    def _compute(self, image: Frames, runs: list[Run], contexts: list[Context], stop: Stop | None = None) -> Computed:
        """Compute runs of an image, with guesses, which join the logs. Raises Stopped."""
        start = time.perf_counter()
        guesses = self._guess(image, runs, contexts)
        batch = image.prepare(_longer(runs, guesses), contexts, stop)
        prepared = time.perf_counter()
        rows: list[int] = []
        wanted: list[Sample] = []
        logs: list[np.ndarray | None] = []
        for run, context, guess, last in zip(runs, contexts, guesses, batch.last_row, strict=True):
            if run.sample is not None:
                rows += range(last - len(guess), last + 1)
                wanted += [_later(run.sample, i) for i in range(len(guess) + 1)]
                logs += [self._log(run, context)] * (len(guess) + 1)
        plain = list(map(is_plain, wanted))
        best, logits = image.choose(batch, rows, plain)
        computed = time.perf_counter()
        scored = [i for i, only in enumerate(plain) if not only]
        drawn = iter(sample(logits, [wanted[i] for i in scored], [logs[i] for i in scored]))
        choices = [
            plain_choice(best[i], want) if only else next(drawn)
            for i, (want, only) in enumerate(zip(wanted, plain, strict=True))
        ]
        image.guesser.computed(sum(len(run.tokens) for run in runs) + sum(map(len, guesses)), computed - prepared)
        sampled = time.perf_counter() - computed
        return Computed(guesses, choices, {"prepare": prepared - start, "model": computed - prepared, "sample": sampled})

    def _guess(self, image: Frames, runs: list[Run], contexts: list[Context]) -> list[list[int]]:
        """Guesses at what follows each run; they join the logs."""
        if not image.exact or not any(run.ahead for run in runs):
            return [[] for _ in runs]
        ahead = [image.room(run) if run.sample is not None else 0 for run in runs]
        guesses = image.guesser.propose(sum(len(run.tokens) for run in runs), contexts, ahead)
        for context, guess in zip(contexts, guesses, strict=True):
            context.log.extend(guess)
        return guesses

    def _log(self, run: Run, context: Context) -> np.ndarray | None:
        """The ids of a context's log where the sampler needs them."""
        if run.sample is None or run.sample.sampler.repetition_penalty == 1.0 or not context.complete:
            return None
        return np.array(context.log, dtype=np.int64)


def _stamp(place: Path) -> Stamp:
    """What changes when one of a model's files does. Raises EIO for one that is not there (a link to nothing)."""
    try:
        return stamp(place)
    except OSError as error:
        reason = f"{shown(error.filename)} cannot be read ({error.strerror}); remove it, or copy or download it again"
        gone = isinstance(error, FileNotFoundError)
        raise (broken(reason) if gone else SyscallError(Errno.EIO, reason)) from None


def _longer(runs: list[Run], guesses: list[list[int]]) -> list[Run]:
    return [
        msgspec.structs.replace(run, tokens=run.tokens + guess) if guess else run
        for run, guess in zip(runs, guesses, strict=True)
    ]


def _later(want: Sample, tokens: int) -> Sample:
    return msgspec.structs.replace(want, position=want.position + tokens) if tokens else want
