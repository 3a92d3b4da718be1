"""The engine: the Device (drivers/device.py) that the CPU and CUDA drivers share, whatever computes their steps.

It answers the kernel's requests and nothing else: the kernel has decided which frames, which tokens and who runs. vLLM's
model runner is the counterpart; here a step names everything it needs, so the engine can be killed and told again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from llmasos.drivers import checkpoint as process_images
from llmasos.drivers import trust
from llmasos.drivers.engine import checkpoint, computing, fetching
from llmasos.drivers.engine.ahead import Ahead
from llmasos.drivers.engine.contexts import Context
from llmasos.drivers.engine.digest import Stamp, content_digest, stamp
from llmasos.drivers.engine.dtypes import Dtypes
from llmasos.drivers.engine.early import Early
from llmasos.drivers.engine.image import Frames, ImageKind
from llmasos.drivers.engine.models import Models, Way
from llmasos.drivers.engine.moving import Mover
from llmasos.drivers.engine.swap import Below
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
    Run,
    RunResult,
    Step,
    StepDone,
    Wipe,
)
from llmasos.modelfiles import generation, source
from llmasos.modelfiles.files import broken, shown
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import SamplingDefaults

_PHASES = ("prepare", "swap", "copy", "model", "sample")
_REPORTED = 0.01  # the least fraction of a load that is reported


@dataclass(slots=True)
class _Work:
    """A step that is under way."""

    runs: list[Run]
    early: Early | None  # what was begun of it before it was asked for
    results: list[RunResult | None]
    phases: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_PHASES, 0.0))  # seconds
    changed: list[int] = field(default_factory=list)  # images whose files are not what was loaded any more


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
        self._memory = memory
        self._below = below
        self._digests = digests
        self._models = Models(kinds, dtypes, self._tick)
        self._images: dict[int, Frames] = {}
        self._origins: dict[int, checkpoint.Origin] = {}
        self._known: dict[Stamp, str] = {}  # digests that this process has computed, of models that have to be trusted
        self._contexts: dict[int, Context] = {}
        self._mover = Mover(self._images)
        self._ahead = Ahead(computing.compute, enabled=early)

    def hello(self) -> Hello:
        return self._hello

    def _tick(self) -> None:
        self.progress += 1

    def _image(self, number: int) -> Frames:
        if number not in self._images:
            raise SyscallError(Errno.EINVAL, f"no image {number} is loaded")
        return self._images[number]

    # --- models -----------------------------------------------------------------------------------------------------

    def probe(self, request: Probe) -> Probed:
        place = source.find(request.path)
        way = self._models.find(place, request.dtype)
        said = generation.read(place, way.raw, way.layout.eos)
        return Probed(
            ref=request.ref,
            architecture=way.raw["model_type"],
            dtype=way.dtype,
            parameters=way.layout.parameters,
            weight_bytes=way.weight_bytes,
            vocab=way.layout.vocab,
            context=way.layout.context,
            layers=way.layout.layers,
            block_bytes=way.kv_shape.block_bytes,
            eos_ids=said.eos_ids,
            stream_bytes=way.stream_bytes,
            sampling=SamplingDefaults(said.temperature, said.top_k, said.top_p, said.min_p, said.repetition_penalty),
            stored=way.stored,
        )

    def fetch(self, request: Load, report: Callable[[float], None]) -> Callable[[], Loaded]:
        there = self._images.get(request.image)
        if (there is not None) != request.again or (there is not None and there.complete):
            what = "not there without its weights" if request.again else "loaded already"
            raise SyscallError(Errno.EINVAL, f"image {request.image} is {what}")
        directory = source.find(request.path, weights=True, said=fetching.told(request.path, report))
        loaded = _stamp(directory)
        way = self._models.find(directory, request.dtype)
        self._check_memory(request, way)
        origin = checkpoint.Origin(directory, self._digests, way.fingerprint, loaded)
        if request.trust is not None:
            origin.digest = self._known.get(loaded) or content_digest(directory, None, self._tick)
            self._known = {loaded: origin.digest} | self._known
            way = way.trusting()
            origin.trusted = trust.check(request.trust, request.path, directory, origin.digest)
        changed = there is not None and origin.loaded != self._origins[request.image].loaded
        if there is not None and there.slab.shape != way.kv_shape:
            raise broken(
                f"what lies in {directory} is another model than was loaded from there: its KV has another shape",
            )
        image = self._build(request, way, there, report)
        if _stamp(directory) != loaded:  # then the image may be of two models
            raise SyscallError(Errno.EIO, f"the files in {directory} changed while they were read; load it again")

        def bring_in() -> Loaded:
            self._images[request.image] = image
            self._origins[request.image] = origin
            return Loaded(request.ref, image.weight_bytes, image.exact, image.resident_bytes, changed)

        return bring_in

    def measure(self, image: int) -> Measured | None:
        origin = self._origins.get(image)
        if origin is None:
            return None
        return Measured(image, origin.measure(self._tick), origin.trusted)

    def _check_memory(self, request: Load, way: Way) -> None:
        """Raises ENOMEM where weights and frames need more than is available."""
        wanted = request.room or way.weight_bytes
        if not request.again:
            wanted += request.frames * way.kv_shape.block_bytes
        available = self._memory()
        if wanted > available:
            raise SyscallError(
                Errno.ENOMEM,
                f"{request.path} in {way.dtype} with {request.frames} KV frames needs {wanted >> 20} MiB, "
                f"{available >> 20} MiB are available; evict a model, ask for less KV, or use a smaller dtype",
            )

    def _build(self, request: Load, way: Way, there: Frames | None, report: Callable[[float], None]) -> Frames:
        """The image, with new frames and places, or with those of the one that is `there` without its weights."""
        reported = 0.0

        def progress(fraction: float) -> None:
            nonlocal reported
            self._tick()
            if fraction - reported >= _REPORTED:
                reported = fraction
                report(fraction)

        frames = request.frames if there is None else there.slab
        try:
            image = way.kind.build(way.model, frames, progress, request.room)
        except MemoryError as error:
            raise SyscallError(Errno.ENOMEM, f"no memory for {request.path} in {way.dtype}: {error}") from None
        if there is not None:
            image.below, image.guesser = there.below, there.guesser
        elif image.slab.frames:
            one = image.slab.some(0, 1)[0]
            image.below = [make(count, one) for make, count in zip(self._below, request.slots, strict=False)]
        return image

    def drop_weights(self, image: int) -> None:
        if not self._image(image).complete:
            raise SyscallError(Errno.EINVAL, f"image {image} has no weights in memory")
        self._ahead.forget()
        self._images[image].close()

    def unload(self, image: int) -> None:
        gone = self._images.pop(image, None)
        if gone is None:
            raise SyscallError(Errno.EINVAL, f"no image {image} is loaded")
        del self._origins[image]
        self._ahead.forget()
        for places in gone.below:
            places.close()
        gone.close()
        self._contexts = {ctx: context for ctx, context in self._contexts.items() if context.image != image}

    # --- process images ---------------------------------------------------------------------------------------------

    def export(self, request: Export) -> Callable[[], Exported]:
        image = self._image(request.image) if request.image else None
        return checkpoint.export(request, image, self._origins.get(request.image), self._tick)

    def inspect(self, request: Inspect) -> Inspected:
        return process_images.inspect(request)

    def import_(self, request: Import) -> Imported:
        self._ahead.forget()
        image, origin = self._image(request.image), self._origins[request.image]
        return checkpoint.read(request, image, origin, self._mover.threads, self._tick)

    # --- steps ------------------------------------------------------------------------------------------------------

    def drop(self, ctxs: Sequence[int]) -> None:
        self._ahead.forget()
        for ctx in ctxs:
            self._contexts.pop(ctx, None)
            for image in self._images.values():
                for places in image.below:
                    places.forget(ctx)

    def wipe(self, request: Wipe) -> None:
        image = self._image(request.image)
        self._ahead.forget()
        image.slab.wipe([*request.frames, *image.slab.spare])
        for tier, places in enumerate(image.below, 1):
            places.wipe([slot for number, slot in request.places if number == tier])

    def hears(self, request: object) -> None:
        self._ahead.hears(request)

    def go_on(self, asked: Callable[[], bool]) -> None:
        self._ahead.begin(self._images, self._contexts, asked)

    def step(self, request: Step) -> StepDone:
        began = time.perf_counter()
        work = _Work(request.runs, self._ahead.take(request), [None] * len(request.runs))
        unwritten = self._mover.out(request.outs)
        moved = time.perf_counter()
        for image, copies in groupby(request.copies, key=lambda copy: copy.image):
            self._image(image).slab.copy([(copy.src, copy.dst) for copy in copies])
        for image, wiped in groupby(request.wipes, key=lambda wipe: wipe[0]):
            self._image(image).slab.wipe([frame for _, frame in wiped])
        copied = time.perf_counter()
        self._lose(work, self._mover.back(request.ins))
        work.phases["copy"] = copied - moved
        work.phases["swap"] = moved - began + time.perf_counter() - copied
        waiting = [i for i, result in enumerate(work.results) if result is None]
        by_image = sorted(waiting, key=lambda i: request.runs[i].image)
        for image, members in groupby(by_image, key=lambda i: request.runs[i].image):
            self._step_image(image, list(members), work)
        self._tick()
        results = [result for result in work.results if result is not None]
        self._ahead.done(request.runs, results)
        ahead = sum(work.early.computed.phases.values()) if work.early and work.early.computed else 0.0
        seconds = time.perf_counter() - began + ahead
        return StepDone(request.ref, results, seconds, work.phases, unwritten, work.changed)

    def _lose(self, work: _Work, lost: dict[int, int]) -> None:
        """Runs whose frames are lost are not computed; `lost` says how many frames came before, by context."""
        for i, run in enumerate(work.runs):
            if run.ctx in lost:
                self._contexts.pop(run.ctx, None)
                work.results[i] = RunResult(run.ctx, unread=lost[run.ctx])

    def _step_image(self, number: int, members: list[int], work: _Work) -> None:
        """Compute one image's runs; `members` says which of the step's they are."""
        image = self._image(number)
        good: list[int] = []
        contexts: list[Context] = []
        for i in members:
            context = self._follow(image, work.runs[i])
            if isinstance(context, str):
                self._contexts.pop(work.runs[i].ctx, None)  # its table and log can no longer be trusted
                work.results[i] = RunResult(work.runs[i].ctx, error=context)
                continue
            good.append(i)
            contexts.append(context)
        if not good:
            return
        runs = [work.runs[i] for i in good]
        computed = self._ahead.finish(image, work.early, runs, contexts) if work.early else None
        if computed is None:
            try:
                computed = computing.compute(image, runs, contexts)
            except SyscallError as error:  # the image cannot be computed with; the others of the step can
                work.changed += [number] if image.changed else []
                for i in good:
                    self._contexts.pop(work.runs[i].ctx, None)
                    work.results[i] = RunResult(work.runs[i].ctx, error=error.reason)
                return
        for phase, seconds in computed.phases.items():
            work.phases[phase] += seconds
        for i, result in zip(good, computing.results(image, runs, contexts, computed), strict=True):
            work.results[i] = result

    def _follow(self, image: Frames, run: Run) -> Context | str:
        """The context of a run, told of the run; or the fault of the run."""
        if fault := image.check(run):
            return fault
        context = self._contexts.get(run.ctx)
        if context is None or context.image != run.image:
            context = self._contexts[run.ctx] = Context(run.image)
        return context.follow(run) or context


def _stamp(place: Path) -> Stamp:
    """A value that changes when one of a model's files does. Raises EIO for a file that is missing (a dead link)."""
    try:
        return stamp(place)
    except OSError as error:
        reason = f"{shown(error.filename)} cannot be read ({error.strerror}); remove it, or copy or download it again"
        gone = isinstance(error, FileNotFoundError)
        raise (broken(reason) if gone else SyscallError(Errno.EIO, reason)) from None
