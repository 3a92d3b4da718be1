"""The torch engine: the Device (drivers/device.py) that the CPU and CUDA drivers share.

It answers the kernel's requests and nothing else: which frames, which tokens and who runs have been decided. vLLM's model
runner is the counterpart; here a step names everything it needs, so the engine can be killed and told again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from drivers.engine import architecture, loading, source, verify
from drivers.engine.contexts import Context
from drivers.engine.image import Frames, ImageKind
from drivers.engine.sampler import is_plain, plain_choice, sample
from drivers.protocol import Hello, Load, Loaded, Probe, Probed, Run, RunResult, Step, StepDone
from syscalls.errno import Errno, SyscallError


class Engine:
    """A Device. `kinds` are its ways to run a model, the first that can is used; `refusals` maps a dtype this device does
    not do to the reason; `memory` tells the bytes available."""

    def __init__(
        self, device: torch.device, hello: Hello, default_dtype: str, refusals: dict[str, str], memory: Callable[[], int],
        kinds: Sequence[ImageKind],
    ) -> None:  # fmt: skip
        loading.quiet_transformers()
        self.progress = 0
        self._device = device
        self._hello = hello
        self._default_dtype = default_dtype
        self._refusals = refusals
        self._memory = memory
        self._kinds = kinds
        self._images: dict[int, Frames] = {}
        self._contexts: dict[int, Context] = {}
        self._layouts: dict[str, tuple[Any, architecture.Layout]] = {}  # by what was read

    def hello(self) -> Hello:
        return self._hello

    # --- models -----------------------------------------------------------------------------------------------------

    def probe(self, request: Probe) -> Probed:
        dtype = self._dtype(request.dtype)
        config, layout = self._examine(source.find(request.path))
        kind = self._kind(config, dtype)
        eos = config.eos_token_id
        return Probed(
            ref=request.ref,
            architecture=config.model_type,
            dtype=dtype,
            parameters=layout.parameters,
            weight_bytes=kind.weight_bytes(config, layout, dtype),
            vocab=layout.vocab,
            context=layout.context,
            layers=layout.layers,
            block_bytes=kind.kv_shape(layout, dtype).block_bytes,
            eos_ids=eos if isinstance(eos, list) else [] if eos is None else [eos],
        )

    def load(self, request: Load, report: Callable[[float], None]) -> Loaded:
        if request.image in self._images:
            raise SyscallError(Errno.EINVAL, f"image {request.image} is loaded already")
        dtype = self._dtype(request.dtype)
        directory = source.find(request.path, weights=True)
        config, layout = self._examine(directory)
        kind = self._kind(config, dtype)
        frame_bytes = kind.kv_shape(layout, dtype).block_bytes
        wanted = kind.weight_bytes(config, layout, dtype) + request.frames * frame_bytes
        available = self._memory()
        if wanted > available:
            raise SyscallError(
                Errno.ENOMEM,
                f"{request.path} in {dtype} with {request.frames} KV frames needs {wanted >> 20} MiB, "
                f"{available >> 20} MiB are available; evict a model, ask for less KV, or use a smaller dtype",
            )
        moved = [0.0]

        def progress(fraction: float) -> None:
            self._tick()
            if fraction - moved[0] >= 0.01:
                moved[0] = fraction
                report(fraction)

        def read(told: Callable[[float], None]) -> Any:
            weights = torch.float32 if dtype == "fp32" else torch.bfloat16
            model = loading.load_model(directory, config, weights, told)
            if config.model_type not in architecture.TESTED:
                verify.check(model, config, layout, self._tick)
            return model

        try:
            image = kind.build(directory, read, config, layout, dtype, request.frames, progress)
        except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            raise SyscallError(Errno.ENOMEM, f"no memory for {request.path} in {dtype}: {error}") from None
        self._images[request.image] = image
        return Loaded(request.ref, request.image, image.weight_bytes)

    def unload(self, image: int) -> None:
        gone = self._images.pop(image, None)
        if gone is None:
            raise SyscallError(Errno.EINVAL, f"no image {image} is loaded")
        gone.close()
        self._contexts = {ctx: context for ctx, context in self._contexts.items() if context.image != image}

    def _tick(self) -> None:
        self.progress += 1

    def _dtype(self, name: str) -> str:
        dtype = name or self._default_dtype
        if dtype in self._refusals:
            raise SyscallError(Errno.ENOTSUP, f"dtype {dtype}: {self._refusals[dtype]}")
        if dtype not in self._hello.dtypes:
            raise SyscallError(
                Errno.ENOTSUP, f"dtype {dtype!r}: this driver offers {', '.join(self._hello.dtypes)}"
            )
        return dtype

    def _kind(self, config: Any, dtype: str) -> ImageKind:
        reasons = []
        for kind in self._kinds:
            if not (reason := kind.why_not(config, dtype)):
                return kind
            reasons.append(reason)
        raise SyscallError(Errno.ENOTSUP, f"dtype {dtype}: {'; '.join(reasons)}")

    def _examine(self, directory: Path) -> tuple[Any, architecture.Layout]:
        raw = source.read_config(directory)
        key = f"{directory}:{raw}"
        if key not in self._layouts:
            config = architecture.open_config(raw, str(directory))
            self._tick()
            layout = architecture.examine(architecture.build_meta(config), config)
            self._layouts = {key: (config, layout)}  # a load follows its probe: the last one is enough
        return self._layouts[key]

    # --- steps ------------------------------------------------------------------------------------------------------

    def drop(self, ctxs: Sequence[int]) -> None:
        for ctx in ctxs:
            self._contexts.pop(ctx, None)

    def step(self, request: Step) -> StepDone:
        began = time.perf_counter()
        phases = dict.fromkeys(("prepare", "copy", "model", "sample"), 0.0)
        with torch.inference_mode():
            for image, copies in groupby(request.copies, key=lambda copy: copy.image):
                self._image(image).slab.copy([(copy.src, copy.dst) for copy in copies])
            phases["copy"] = time.perf_counter() - began
            results: list[RunResult | None] = [None] * len(request.runs)
            order = sorted(range(len(request.runs)), key=lambda i: request.runs[i].image)
            for image, members in groupby(order, key=lambda i: request.runs[i].image):
                self._step_image(image, list(members), request.runs, results, phases)
        self._tick()
        return StepDone(
            request.ref,
            [result for result in results if result is not None],
            time.perf_counter() - began,
            phases,
        )

    def _image(self, number: int) -> Frames:
        if number not in self._images:
            raise SyscallError(Errno.EINVAL, f"no image {number} is loaded")
        return self._images[number]

    def _step_image(
        self, number: int, members: list[int], all_runs: list[Run], results: list[RunResult | None],
        phases: dict[str, float],
    ) -> None:  # fmt: skip
        """Compute one image's runs; `members` says which of the step's they are."""
        start = time.perf_counter()
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
        batch = image.prepare(runs, contexts)
        sampled = [j for j, run in enumerate(runs) if run.sample is not None]
        prepared = time.perf_counter()
        rows = [batch.last_row[j] for j in sampled]
        wanted = [want for run in runs if (want := run.sample) is not None]
        if all(map(is_plain, wanted)):
            choices = [
                plain_choice(token, w) for token, w in zip(image.greatest(batch, rows), wanted, strict=True)
            ]
            computed = time.perf_counter()
        else:
            logits = image.forward(batch, rows)
            computed = time.perf_counter()
            logs = [self._log(runs[j], contexts[j]) for j in sampled]
            choices = sample(logits, wanted, logs)
        chosen = dict(zip(sampled, choices, strict=True))
        for j, i in enumerate(good):
            choice = chosen.get(j)
            if choice is None:
                results[i] = RunResult(runs[j].ctx)
            else:
                results[i] = RunResult(runs[j].ctx, choice.token, choice.logprobs, choice.error)
        phases["prepare"] += prepared - start
        phases["model"] += computed - prepared
        phases["sample"] += time.perf_counter() - computed

    def _log(self, run: Run, context: Context) -> torch.Tensor | None:
        """The ids of a context's log where the sampler needs them."""
        if run.sample is None or run.sample.sampler.repetition_penalty == 1.0 or not context.complete:
            return None
        return torch.tensor(context.log, device=self._device)
