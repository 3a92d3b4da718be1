"""A simulated device that verifies the kernel's requests.

It keeps a slab of KV frames as a real device does, but records in them the computation instead of keys and values
(memory.py), so that each run can verify the frames it reads (running.py). Costs are modelled (roofline.py); a real
process sleeps them times `time_scale`, a simulation takes them as virtual time. `Fate` acts out the deaths and hangs that
the options ask for; a simulation has its own.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence

from llmasos.drivers import checkpoint as process_images
from llmasos.drivers import trust
from llmasos.drivers.protocol import (
    IMAGES,
    LOGPROBS,
    SIZES,
    VERSION,
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
from llmasos.drivers.sim import checkpoint, roofline, script
from llmasos.drivers.sim.fate import Fate
from llmasos.drivers.sim.memory import Image, Memory
from llmasos.drivers.sim.running import Fault, Runs, Unsaid
from llmasos.drivers.sim.spec import DTYPES, DeviceSpec, ModelSpec, model
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Tier

SLICE_SECONDS = 0.05  # the longest sleep between two signs of progress


class SimDevice:
    """The Device of `python -m llmasos.drivers.host sim`, and of every simulation of the kernel."""

    def __init__(self, spec: DeviceSpec, models: ModelSpec, fate: Fate | None = None) -> None:
        self.spec = spec
        self.models = models
        self.steps = 0
        self._loads = 0
        self._fate = fate or Fate()
        self._memory = Memory(spec)
        self.faults = self._memory.faults
        self._images, self._contexts = self._memory.images, self._memory.contexts
        self._trusted: dict[int, str] = {}  # why images may be loaded
        self._progress = 0

    @property
    def progress(self) -> int:
        return self._progress

    def _tick(self) -> None:
        self._progress += 1

    def hello(self) -> Hello:
        s = self.spec
        return Hello(
            version=VERSION,
            kind="sim",
            os_pid=os.getpid(),
            description=f"simulated device, {s.flops:.3g} FLOP/s, {s.bandwidth:.3g} B/s",
            tiers=[Tier("ram", s.memory, s.bandwidth), *([Tier("swap", s.swap, s.link)] if s.swap else [])],
            architectures=["sim"],
            dtypes=list(DTYPES),
            features=[LOGPROBS, IMAGES],
            sizes=SIZES,
            max_runs=s.max_runs,
            step_tokens=s.step_tokens,
            stream_tokens=s.stream_tokens,
            guess_rows=s.guess_rows,
        )

    # --- models -----------------------------------------------------------------------------------------------------

    def _model(self, path: str, dtype: str) -> ModelSpec:
        spec = model(path, dtype, self.models)
        if spec.arch != "sim":
            raise SyscallError(Errno.ENOEXEC, f"model {path!r} is a {spec.arch}; this driver runs only: sim")
        if spec.script:
            script.check(script.load(spec.script), spec.script, spec.vocab)
        return spec

    def probe(self, request: Probe) -> Probed:
        m = self._model(request.path, request.dtype)
        return Probed(
            ref=request.ref,
            architecture=m.arch,
            dtype=m.dtype,
            parameters=int(m.params),
            weight_bytes=m.weight_bytes,
            vocab=m.vocab,
            context=m.context,
            layers=m.layers,
            block_bytes=m.frame_bytes,
            eos_ids=[m.eos],
            stream_bytes=m.weight_bytes // self.spec.streams if self.spec.streams else 0,
        )

    def fetch(self, request: Load, report: Callable[[float], None]) -> Callable[[], Loaded]:
        m = self._model(request.path, request.dtype)
        trusted = trust.check(request.trust, request.path, None, m.digest) if request.trust is not None else ""
        self._loads += 1
        if self.spec.fail_load:
            raise SyscallError(Errno[self.spec.fail_load], f"loading {request.path!r} fails by option fail_load")
        if self.spec.fail_load_every and self._loads % self.spec.fail_load_every == 0:
            raise SyscallError(Errno.EIO, f"loading {request.path!r} fails by option fail_load_every")
        there = self._images.get(request.image)
        if (there is not None) != request.again or (there is not None and there.weights):
            raise SyscallError(
                Errno.EINVAL,
                f"image {request.image} is {'loaded already' if there is not None else 'not there without its weights'}",
            )
        weights = min(request.room or m.weight_bytes, m.weight_bytes)
        used = sum(i.weights + i.frames * i.model.frame_bytes for i in list(self._images.values()))
        wanted = weights + (0 if request.again else request.frames * m.frame_bytes)
        if used + wanted > self.spec.memory:
            raise SyscallError(
                Errno.ENOMEM,
                f"model {request.path!r} with {request.frames} frames needs {wanted} bytes; "
                f"{self.spec.memory - used} of {self.spec.memory} are free: evict a model or give it less KV",
            )
        self._pass(roofline.load_seconds(self.spec, m), report)
        if sum(request.slots) * m.frame_bytes > self.spec.swap or len(request.slots) > 1:
            raise SyscallError(Errno.EINVAL, f"{request.slots} places were asked for in {self.spec.swap} bytes")
        image = there or Image(m, request.frames, m.root, slots=sum(request.slots))

        def bring_in() -> Loaded:
            image.weights = weights
            self._images[request.image] = image
            self._trusted[request.image] = trusted
            return Loaded(request.ref, m.weight_bytes, self.spec.guess_rows > 0, weights)

        return bring_in

    def measure(self, image: int) -> Measured | None:
        there = self._images.get(image)
        return Measured(image, there.model.digest, self._trusted.get(image, "")) if there is not None else None

    def load_seconds(self, request: Load) -> float:
        """Modelled seconds of a load that succeeds."""
        return roofline.load_seconds(self.spec, self._model(request.path, request.dtype))

    def drop_weights(self, image: int) -> None:
        if image not in self._images or not self._images[image].weights:
            raise SyscallError(Errno.EINVAL, f"image {image} has no weights in memory")
        self._images[image].weights = 0

    def unload(self, image: int) -> None:
        if image not in self._images:
            raise SyscallError(Errno.EINVAL, f"image {image} is not loaded")
        self._memory.unload(image)

    def drop(self, ctxs: Sequence[int]) -> None:
        self._memory.drop(ctxs)

    def wipe(self, request: Wipe) -> None:
        if request.image not in self._images:
            raise SyscallError(Errno.EINVAL, f"image {request.image} is not loaded")
        self._memory.destroy(self._images[request.image], request)

    def go_on(self, asked: Callable[[], bool]) -> None:
        """A simulated device begins nothing unasked."""

    def hears(self, request: object) -> None:
        """Nothing is ever begun early."""

    # --- process images ---------------------------------------------------------------------------------------------

    def export(self, request: Export) -> Callable[[], Exported]:
        return checkpoint.export(request, self._memory, self.spec.arithmetic, self._tick)

    def inspect(self, request: Inspect) -> Inspected:
        return process_images.inspect(request)

    def import_(self, request: Import) -> Imported:
        if self.spec.crash_import:
            self._fate.die()
        return checkpoint.read(request, self._memory, self.spec.arithmetic)

    # --- steps ------------------------------------------------------------------------------------------------------

    def step(self, request: Step) -> StepDone:
        self.steps += 1
        self._fail_as_asked(request)
        unwritten = self._memory.move_out(request)
        copied = self._memory.copy(request)
        self._memory.wipe(request.wipes)
        lost = self._memory.move_in(request)
        results, longer = self._run(request, lost)
        seconds, phases = self._costs(request, copied)
        if longer:
            seconds, phases = seconds + longer, {**phases, "script": longer}
        self._pass(seconds, lambda _: None)
        return StepDone(request.ref, results, seconds, phases, unwritten)

    def _run(self, request: Step, lost: dict[int, int]) -> tuple[list[RunResult], float]:
        """The results of the runs, and the seconds that a script adds; those of contexts that have `lost` a frame are not
        computed."""
        runs = Runs(self._memory)
        errors: dict[int, str] = {}  # index of a run -> why it failed
        for i, run in enumerate(request.runs):
            if run.ctx in lost:
                self._contexts.pop(run.ctx, None)
                continue
            try:
                runs.write(run, i)
            except Fault as fault:
                errors[i] = self._fault(request, run, fault)
        results = []
        for i, run in enumerate(request.runs):
            if run.ctx in lost:
                results.append(RunResult(run.ctx, unread=lost[run.ctx]))
            elif i in errors:
                results.append(RunResult(run.ctx, error=errors[i]))
            elif self.spec.error_token in run.tokens:
                results.append(RunResult(run.ctx, error="a token of this run fails by option error_token"))
            else:
                try:
                    runs.read(run, i)
                    results.append(runs.guess(run, i, runs.sample(run)))
                except Fault as fault:
                    results.append(RunResult(run.ctx, error=self._fault(request, run, fault)))
                except Unsaid as error:
                    results.append(RunResult(run.ctx, error=str(error)))
            self._progress += 1
        return results, runs.seconds

    def _fault(self, request: Step, run: Run, fault: Fault) -> str:
        self._contexts.pop(run.ctx, None)
        text = f"step {request.ref}, context {run.ctx}: {fault}"
        self.faults.append(text)
        return text

    def _costs(self, request: Step, copied: int) -> tuple[float, dict[str, float]]:
        """Modelled seconds of a step, whole and by phase."""
        images = self._images
        runs = [(images[run.image].model, run.position, len(run.tokens)) for run in request.runs if run.image in images]
        moves = [move for move in (*request.outs, *request.ins) if move.image in images]
        swapped = sum(images[move.image].model.frame_bytes for move in moves)
        used = {run.image: images[run.image] for run in request.runs if run.image in images}
        streamed = sum(image.model.weight_bytes - image.weights for image in used.values())
        return roofline.step_seconds(self.spec, runs, copied, swapped, streamed)

    # --- time and failure -------------------------------------------------------------------------------------------

    def _fail_as_asked(self, request: Step) -> None:
        s = self.spec
        asked = {token for run in request.runs for token in run.tokens}
        if self.steps == s.crash_after or s.crash_token in asked:
            self._fate.die()
        if self.steps == s.hang_after or s.hang_token in asked:
            self._fate.hang()

    def _pass(self, seconds: float, report: Callable[[float], None]) -> None:
        """Let modelled seconds pass, in slices, so that a slow step is not taken for a hang."""
        whole = seconds * self.spec.time_scale
        slices = math.ceil(whole / SLICE_SECONDS)
        for i in range(slices):
            self._fate.sleep(whole / slices)
            self._progress += 1
            report((i + 1) / slices)
