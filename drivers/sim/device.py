"""A simulated device that verifies what the kernel tells it.

It keeps a slab of KV frames as a real device does, but a slot holds, instead of keys and values, the token that was
computed there and the hash of the whole prefix up to it. A run writes its own slots and reads all slots before them
through its block table: a frame that was clobbered, handed out twice, not copied, or kept wrongly does not hold the
hash of this prefix, the run says which slot is wrong, and `faults` remembers it. What a run reads decides its token.

Costs are modelled (roofline.py); a real process sleeps them times `time_scale`, a simulation takes them as virtual
time. Deaths and hangs that the options ask for are acted out by `Fate`, which a simulation replaces by its own.
"""

from __future__ import annotations

import math
import os
import signal
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import msgspec

from llmasos.drivers import checkpoint
from llmasos.drivers.checkpoint_file import Damaged, Reader
from llmasos.drivers.protocol import (
    BLOCK_TOKENS,
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
    Probe,
    Probed,
    Run,
    RunResult,
    Step,
    StepDone,
)
from llmasos.drivers.sim import roofline, tokens
from llmasos.drivers.sim.spec import DTYPES, DeviceSpec, ModelSpec, model
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Tier

_WRONG_EVERY = 4  # guesses
_BLOCK = struct.Struct(f"<I{BLOCK_TOKENS}I{BLOCK_TOKENS}Q")  # slots written, their tokens, their hashes
SLICE_SECONDS = 0.05  # the longest sleep between two signs of progress


class Fate:
    """How a driver process dies, hangs and lets time pass."""

    def die(self) -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("SIGKILL returned")

    def hang(self) -> NoReturn:
        while True:
            threading.Event().wait()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass(slots=True)
class _Swapped:
    ctx: int
    tokens: list[int]
    hashes: list[int]


@dataclass(slots=True)
class _Image:
    model: ModelSpec
    frames: int
    root: int
    tokens: dict[int, list[int]] = field(default_factory=dict)  # frame -> the token in each slot written so far
    hashes: dict[int, list[int]] = field(default_factory=dict)  # frame -> the prefix hash in each of them
    slots: int = 0  # places in the second tier
    swapped: dict[int, _Swapped] = field(default_factory=dict)  # place -> what is there
    weights: int = 0  # bytes of them in memory; 0: none are


@dataclass(slots=True)
class _Context:
    image: int
    table: list[int]
    log: list[int]
    chain: list[int]  # the prefix hash after each token of the log
    told: bool  # the log came from the kernel, not from the frames


class _Fault(Exception):
    """The kernel asked for something that a correct kernel does not ask for."""


class SimDevice:
    """The Device of `python -m llmasos.drivers.host sim`, and of every simulation of the kernel."""

    def __init__(self, spec: DeviceSpec, models: ModelSpec, fate: Fate | None = None) -> None:
        self.spec = spec
        self.models = models
        self.faults: list[str] = []
        self.steps = 0
        self._moved_out = self._moved_in = 0  # frames
        self._loads = 0
        self._fate = fate or Fate()
        self._images: dict[int, _Image] = {}
        self._contexts: dict[int, _Context] = {}
        self._progress = 0

    @property
    def progress(self) -> int:
        return self._progress

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

    def load(self, request: Load, report: Callable[[float], None]) -> Loaded:
        return self.fetch(request, report)()

    def fetch(self, request: Load, report: Callable[[float], None]) -> Callable[[], Loaded]:
        m = self._model(request.path, request.dtype)
        self._loads += 1
        if self.spec.fail_load:
            raise SyscallError(Errno[self.spec.fail_load], f"loading {request.path!r} fails by option fail_load")
        if self.spec.fail_load_every and self._loads % self.spec.fail_load_every == 0:
            raise SyscallError(Errno.EIO, f"loading {request.path!r} fails by option fail_load_every")
        there = self._images.get(request.image)
        if (there is not None) != request.kept or (there is not None and there.weights):
            raise SyscallError(
                Errno.EINVAL,
                f"image {request.image} is {'loaded already' if there is not None else 'not there without its weights'}",
            )
        weights = min(request.room or m.weight_bytes, m.weight_bytes)
        used = sum(i.weights + i.frames * i.model.frame_bytes for i in list(self._images.values()))
        wanted = weights + (0 if request.kept else request.frames * m.frame_bytes)
        if used + wanted > self.spec.memory:
            raise SyscallError(
                Errno.ENOMEM,
                f"model {request.path!r} with {request.frames} frames needs {wanted} bytes; "
                f"{self.spec.memory - used} of {self.spec.memory} are free: evict a model or give it less KV",
            )
        self._pass(roofline.load_seconds(self.spec, m), report)
        if sum(request.slots) * m.frame_bytes > self.spec.swap or len(request.slots) > 1:
            raise SyscallError(Errno.EINVAL, f"{request.slots} places were asked for in {self.spec.swap} bytes")
        image = there or _Image(m, request.frames, m.root, slots=sum(request.slots))

        def bring_in() -> Loaded:
            image.weights = weights
            self._images[request.image] = image
            return Loaded(request.ref, m.weight_bytes, self.spec.guess_rows > 0, weights)

        return bring_in

    def load_seconds(self, request: Load) -> float:
        """Modelled seconds of a load that succeeds."""
        return roofline.load_seconds(self.spec, self._model(request.path, request.dtype))

    def shed(self, image: int) -> None:
        if image not in self._images or not self._images[image].weights:
            raise SyscallError(Errno.EINVAL, f"image {image} has no weights in memory")
        self._images[image].weights = 0

    def unload(self, image: int) -> None:
        if image not in self._images:
            raise SyscallError(Errno.EINVAL, f"image {image} is not loaded")
        del self._images[image]
        self._contexts = {c: x for c, x in self._contexts.items() if x.image != image}

    def drop(self, ctxs: Sequence[int]) -> None:
        gone = set(ctxs)
        for ctx in ctxs:
            self._contexts.pop(ctx, None)
        for image in self._images.values():
            image.swapped = {slot: held for slot, held in image.swapped.items() if held.ctx not in gone}

    def go_on(self, asked: Callable[[], bool]) -> None:
        """A simulated device does nothing that it was not asked for."""

    def hears(self, request: object) -> None:
        """Nothing is ever begun early."""

    # --- process images ---------------------------------------------------------------------------------------------

    def _way(self, image: _Image) -> dict[str, str]:
        return {"model": image.model.name, "weights": image.model.dtype, "engine": self.spec.arithmetic}

    def export(self, request: Export) -> Callable[[], Exported]:
        def tick() -> None:
            self._progress += 1

        if not request.image:
            return lambda: checkpoint.save(request, {}, 0, [], "", tick)
        image = self._images[request.image]
        parts, reason = [], ""
        for frame in request.frames:
            if frame not in image.hashes:
                self.faults.append(f"export {request.ref}: frame {frame} holds nothing")
            parts.append(_packed(image.tokens.get(frame, []), image.hashes.get(frame, [])))
        for _, slot in request.places:
            held = image.swapped.get(slot)
            if held is None or held.ctx != request.ctx:
                reason = f"place {slot} holds nothing of context {request.ctx}"
                break
            parts.append(_packed(held.tokens, held.hashes))
        way = self._way(image)
        return lambda: checkpoint.save(request, way, _BLOCK.size, parts, reason, tick)

    def inspect(self, request: Inspect) -> Inspected:
        return checkpoint.inspect(request)

    def import_(self, request: Import) -> Imported:
        image = self._images[request.image]
        if self.spec.crash_import:
            self._fate.die()
        try:
            with Reader(request.path, request.key) as file:
                if reason := checkpoint.mistrust(file, request, self._way(image), _BLOCK.size):
                    return checkpoint.nothing_imported(request, reason)
                failures = [self._fetch(request, image, file, i) for i in range(len(request.frames))]
                return checkpoint.imported(request, failures, file)
        except SyscallError as error:
            return checkpoint.nothing_imported(request, error.reason)

    def _fetch(self, request: Import, image: _Image, file: Reader, number: int) -> str:
        packed, frame = bytearray(_BLOCK.size), request.frames[number]
        image.tokens.pop(frame, None)
        image.hashes.pop(frame, None)
        try:
            file.read(request.first + number, memoryview(packed))
        except Damaged as error:
            return str(error)
        count, *both = _BLOCK.unpack(packed)
        image.tokens[frame], image.hashes[frame] = both[:count], both[BLOCK_TOKENS:][:count]
        return ""

    # --- steps ------------------------------------------------------------------------------------------------------

    def step(self, request: Step) -> StepDone:
        self.steps += 1
        self._fail_as_asked(request)
        errors: dict[int, str] = {}  # index of a run -> why it failed
        unwritten = self._move_out(request)
        copied = self._copy(request)
        lost = self._move_in(request)
        writers: dict[tuple[int, int], int] = {}  # (image, frame) -> the run that writes it in this step
        for i, run in enumerate(request.runs):
            if run.ctx in lost:
                self._contexts.pop(run.ctx, None)
                continue
            try:
                self._write(run, i, writers)
            except _Fault as fault:
                errors[i] = self._fault(request, run, fault)
        results = []
        for i, run in enumerate(request.runs):
            if run.ctx in lost:
                results.append(RunResult(run.ctx, lost=lost[run.ctx]))
            elif i in errors:
                results.append(RunResult(run.ctx, error=errors[i]))
            elif self.spec.error_token in run.tokens:
                results.append(RunResult(run.ctx, error="a token of this run fails by option error_token"))
            else:
                try:
                    self._read(run, i, writers)
                    results.append(self._guess(run, i, writers, self._sample(run)))
                except _Fault as fault:
                    results.append(RunResult(run.ctx, error=self._fault(request, run, fault)))
            self._progress += 1
        costs = [
            (self._images[r.image].model, r.position, len(r.tokens)) for r in request.runs if r.image in self._images
        ]
        swapped = sum(
            self._images[move.image].model.frame_bytes
            for move in (*request.outs, *request.ins)
            if move.image in self._images
        )
        images = {r.image: self._images[r.image] for r in request.runs if r.image in self._images}
        streamed = sum(image.model.weight_bytes - image.weights for image in images.values())
        seconds, phases = roofline.step_seconds(self.spec, costs, copied, swapped, streamed)
        self._pass(seconds, lambda _: None)
        return StepDone(request.ref, results, seconds, phases, unwritten)

    def _move_out(self, request: Step) -> list[int]:
        unwritten = []
        for number, move in enumerate(request.outs):
            image = self._images.get(move.image)
            if image is None or move.frame not in image.hashes or move.tier != 1 or not 0 <= move.slot < image.slots:
                self.faults.append(f"step {request.ref}: cannot move out {move}")
                continue
            self._moved_out += 1
            if self.spec.unwritten_every and self._moved_out % self.spec.unwritten_every == 0:
                image.swapped.pop(move.slot, None)
                unwritten.append(number)
                continue
            image.swapped[move.slot] = _Swapped(move.ctx, list(image.tokens[move.frame]), list(image.hashes[move.frame]))
        return unwritten

    def _move_in(self, request: Step) -> dict[int, int]:
        """Returns, for contexts of which a frame could not be read back, how many could before it."""
        arrived: dict[int, int] = {}
        lost: dict[int, int] = {}
        for move in request.ins:
            image = self._images.get(move.image)
            if image is None or move.tier != 1 or not 0 <= move.frame < image.frames:
                self.faults.append(f"step {request.ref}: cannot move in {move}")
                continue
            self._moved_in += 1
            held = image.swapped.get(move.slot)
            broken = self.spec.lose_every and self._moved_in % self.spec.lose_every == 0
            if held is not None and held.ctx != move.ctx:
                self.faults.append(f"step {request.ref}: place {move.slot} is of context {held.ctx}: {move}")
            if held is None or held.ctx != move.ctx or broken:
                lost.setdefault(move.ctx, arrived.get(move.ctx, 0))
                continue
            arrived[move.ctx] = arrived.get(move.ctx, 0) + 1
            image.tokens[move.frame], image.hashes[move.frame] = list(held.tokens), list(held.hashes)
        return lost

    def _fault(self, request: Step, run: Run, fault: _Fault) -> str:
        self._contexts.pop(run.ctx, None)
        text = f"step {request.ref}, context {run.ctx}: {fault}"
        self.faults.append(text)
        return text

    def _copy(self, request: Step) -> int:
        copied = 0
        for copy in request.copies:
            image = self._images.get(copy.image)
            if image is None or copy.src not in image.hashes or not 0 <= copy.dst < image.frames:
                self.faults.append(f"step {request.ref}: cannot copy {copy}")
                continue
            image.tokens[copy.dst] = list(image.tokens[copy.src])
            image.hashes[copy.dst] = list(image.hashes[copy.src])
            copied += image.model.frame_bytes
        return copied

    def _write(self, run: Run, index: int, writers: dict[tuple[int, int], int]) -> None:
        """Bring the context up to `run.position`, then write the run's own slots."""
        image = self._images.get(run.image)
        if image is None:
            raise _Fault(f"image {run.image} is not loaded")
        if not image.weights:
            raise _Fault(f"the weights of image {run.image} are not in memory")
        end = run.position + len(run.tokens)
        context = self._contexts.get(run.ctx)
        table = (context.table[: run.keep] if context else []) + run.blocks
        if len(table) != run.keep + len(run.blocks):
            raise _Fault(f"keeps {run.keep} blocks of a table of {len(table) - len(run.blocks)}")
        if not run.tokens or end > image.model.context or end > BLOCK_TOKENS * len(table):
            raise _Fault(f"tokens {run.position}..{end} do not fit {len(table)} blocks and window {image.model.context}")
        if len(set(table)) != len(table) or not 0 <= min(table) <= max(table) < image.frames:
            raise _Fault(f"table {table} has a frame twice or one outside of {image.frames} frames")
        if not all(0 <= t < image.model.vocab for t in run.tokens):
            raise _Fault(f"a token outside of the vocabulary of {image.model.vocab}")
        context = self._begin(run, image, context, table)
        del context.log[run.position :], context.chain[run.position :]
        context.log.extend(run.tokens)
        tokens.extend_chain(context.chain, image.root, run.tokens)
        self._store(run, index, writers, run.position, end)

    def _store(self, run: Run, index: int, writers: dict[tuple[int, int], int], first: int, end: int) -> None:
        """Write the context's tokens at positions first .. end - 1 to their slots."""
        image, context = self._images[run.image], self._contexts[run.ctx]
        for block in range(first // BLOCK_TOKENS, (end - 1) // BLOCK_TOKENS + 1):
            frame = context.table[block]
            if writers.setdefault((run.image, frame), index) != index:
                raise _Fault(f"frame {frame} is written by two runs of the step")
            lo, hi = max(first, block * BLOCK_TOKENS), min(end, (block + 1) * BLOCK_TOKENS)
            slot = lo - block * BLOCK_TOKENS
            kept = image.tokens.get(frame, [])[:slot]
            if len(kept) != slot:
                raise _Fault(f"frame {frame} holds {len(kept)} tokens; slot {slot} cannot be next")
            image.tokens[frame] = kept + context.log[lo:hi]
            image.hashes[frame] = image.hashes.get(frame, [])[:slot] + context.chain[lo:hi]

    def _begin(self, run: Run, image: _Image, context: _Context | None, table: list[int]) -> _Context:
        """The run's context, its log known up to `run.position` and found in the frames of `table`."""
        if context is not None and context.image != run.image:
            raise _Fault(f"context was of image {context.image}; exec must drop it first")
        if run.history is not None:
            if len(run.history) != run.position:
                raise _Fault(f"history of {len(run.history)} tokens before position {run.position}")
            context = _Context(run.image, table, list(run.history), [], told=True)
            tokens.extend_chain(context.chain, image.root, context.log)
            self._contexts[run.ctx] = context
        elif context is None:
            context = _Context(run.image, table, [], [], told=run.position == 0)
            for block in range((run.position + BLOCK_TOKENS - 1) // BLOCK_TOKENS):
                context.log.extend(image.tokens.get(table[block], []))
            del context.log[run.position :]
            tokens.extend_chain(context.chain, image.root, context.log)
            self._contexts[run.ctx] = context
        if len(context.log) < run.position:
            raise _Fault(f"only {len(context.log)} tokens are known before position {run.position}")
        context.table = table
        return context

    def _read(self, run: Run, index: int, writers: dict[tuple[int, int], int]) -> None:
        """Attention: every slot up to the run's end must hold this prefix, and be nobody else's in this step."""
        image, context = self._images[run.image], self._contexts[run.ctx]
        chain, end = context.chain, run.position + len(run.tokens)
        for block, first in enumerate(range(0, end, BLOCK_TOKENS)):
            frame = context.table[block]
            held = image.hashes.get(frame, [])
            wanted = chain[first : first + BLOCK_TOKENS]
            if held[: len(wanted)] != wanted:
                slot = next((i for i, (a, b) in enumerate(zip(held, wanted, strict=False)) if a != b), len(held))
                raise _Fault(f"frame {frame} slot {slot} does not hold position {first + slot} of this context")
            if writers.get((run.image, frame), index) != index:
                raise _Fault(f"frame {frame} is written by another run of the step that reads it")

    def _sample(self, run: Run) -> RunResult:
        s, context, m = run.sample, self._contexts[run.ctx], self._images[run.image].model
        if s is None:
            return RunResult(run.ctx)
        if s.position != len(context.log):
            raise _Fault(f"samples for position {s.position}; the next one is {len(context.log)}")
        if s.sampler.repetition_penalty != 1.0 and not context.told:
            raise _Fault("a repetition penalty, and no history was sent")
        state = context.chain[-1]
        token = tokens.candidates(m, state)[0]
        if s.append:
            token = tokens.next_token(m, state, s.sampler, s.position, context.log)
        alternatives = tokens.logprobs(m, state, token, s.logprobs) if s.logprobs else None
        return RunResult(run.ctx, token if s.append else -1, alternatives)

    def _guess(self, run: Run, index: int, writers: dict[tuple[int, int], int], result: RunResult) -> RunResult:
        """Guess as far ahead as the run allows: right some times in a row, then wrong, which stays in its slot."""
        s = run.sample
        if s is None or not s.append or not run.ahead:
            return result
        image, context = self._images[run.image], self._contexts[run.ctx]
        held = [result.token]
        for position in range(len(context.log), len(context.log) + run.ahead):
            if position + 1 >= image.model.context:
                break
            right = tokens.mix(context.chain[-1], position) % _WRONG_EVERY > 0
            guess = held[-1] if right else (held[-1] + 1) % image.model.vocab
            context.log.append(guess)
            tokens.extend_chain(context.chain, image.root, [guess])
            self._store(run, index, writers, position, position + 1)
            if not right:
                del context.log[-1], context.chain[-1]
                break
            held.append(tokens.next_token(image.model, context.chain[-1], s.sampler, position + 1, context.log))
        return msgspec.structs.replace(result, more=held[1:])

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


def _packed(held: list[int], hashes: list[int]) -> bytes:
    """A frame as bytes."""
    rest = [0] * (BLOCK_TOKENS - len(held))
    return _BLOCK.pack(len(held), *held, *rest, *hashes, *rest)
