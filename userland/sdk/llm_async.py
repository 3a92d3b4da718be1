"""The asynchronous LLM: a model to generate text with, under trio or asyncio; the names and meanings of `llm`, awaited.

Every prompt is a process of its own; a list of prompts is computed as one batch by the scheduler, beside whatever else
runs.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import TracebackType
from typing import overload

from llmasos.modelfiles import stores
from llmasos.modelfiles.ollama_options import Started
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import ModelInfo
from llmasos.userland.sdk import arguments, options, script_async
from llmasos.userland.sdk.actions import Language
from llmasos.userland.sdk.arguments import Dtype, Model, Strings, count, model_name, stop_strings, strings
from llmasos.userland.sdk.arriving_async import arriving
from llmasos.userland.sdk.beams import EarlyStopping, beam_search
from llmasos.userland.sdk.public import public
from llmasos.userland.sdk.script import Clock, countdown
from llmasos.userland.sdk.streams_async import AsyncStream
from llmasos.userland.sdk.system_async import Process, System

NEW_TOKENS = 128  # where neither max_length nor max_new_tokens is given


class LLM:
    """A model in memory: `await LLM.from_pretrained(NAME_OR_DIRECTORY)`; `close` it, or enter it by `async with`."""

    system: System
    """The system that it runs on."""
    model: ModelInfo
    """The model's row, in memory."""

    @public
    def __init__(self, system: System, model: ModelInfo, *, owns_system: bool, name: str = "") -> None:
        """A model that `system` has in memory; `from_pretrained` makes one. `owns_system`: `close` closes the system
        too."""
        self.system = system
        self.model = model
        self._name = name if stores.started(name) != Started() else model.path  # a store's name says more
        self._owns_system = owns_system

    @classmethod
    @public
    async def from_pretrained(
        cls,
        model: Model,
        *,
        dtype: Dtype = "",
        device: str = "",
        system: System | None = None,
        timeout: float | None = None,
    ) -> LLM:
        """Bring a model into memory: a name that the system knows, a directory, a GGUF file, or a name of the hub.

        `dtype`: fp32, bf16, int8, int4 (or torch's names of them); empty for the device's default. Without `system`, uses
        the kernel that runs, or boots a private one. Progress that takes more than a second goes to the logger `llmasos`,
        and to stderr where that is a terminal. Raises SyscallError: ENOENT (no such model; names those that are known),
        ENOEXEC (unsupported architecture), EIO (broken files), ENOMEM, ENOTSUP (unsupported dtype), ETIME after `timeout`
        seconds.

        Example:
            model = await llmasos.aio.LLM.from_pretrained("tiny", system=system)
        """
        name = model_name(model)
        connected = system or await System.connect(boot=True, name="llm")
        try:
            async with arriving(connected, name):
                info = await connected.load(name, dtype, device, timeout=timeout)
        except SyscallError as error:
            if error.errno is Errno.ENOENT:
                known = ", ".join(sorted({row.name for row in await connected.models()}))
                error = SyscallError(Errno.ENOENT, f"{error.reason}; models known by name: {known or 'none'}")
            if system is None:
                await connected.close()
            raise error from None
        return cls(connected, info, owns_system=system is None, name=name)

    def __repr__(self) -> str:
        return f"<LLM {self.model.name} ({self.model.dtype} on {self.model.device})>"

    async def __aenter__(self) -> LLM:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @public
    async def close(self) -> None:
        """Close the system, unless the caller gave one; a private kernel halts.

        Example:
            await llm.close()
        """
        if self._owns_system:
            await self.system.close()

    @property
    def language(self) -> Language:
        """The tokenizer and chat format of the model.

        Example:
            ids = llm.language.encode("a fox")
        """
        return self.system.language(self.model)

    @overload
    async def generate(
        self,
        prompt: str,
        max_length: int | None = None,
        *,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int = 0,
        stop: Strings = (),
        length_penalty: float = 1.0,
        early_stopping: EarlyStopping = False,
        return_full_text: bool = False,
        defaults: bool = True,
        timeout: float | None = None,
    ) -> str: ...

    @overload
    async def generate(
        self,
        prompt: list[str] | tuple[str, ...],
        max_length: int | None = None,
        *,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int = 0,
        stop: Strings = (),
        length_penalty: float = 1.0,
        early_stopping: EarlyStopping = False,
        return_full_text: bool = False,
        defaults: bool = True,
        timeout: float | None = None,
    ) -> list[str]: ...

    @public
    async def generate(
        self,
        prompt: Strings,
        max_length: int | None = None,
        *,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int = 0,
        stop: Strings = (),
        length_penalty: float = 1.0,
        early_stopping: EarlyStopping = False,
        return_full_text: bool = False,
        defaults: bool = True,
        timeout: float | None = None,
    ) -> str | list[str]:
        """The continuation of a prompt, or those of a list of prompts, which are computed as one batch.

        `max_length` counts the prompt's tokens, as in transformers; `max_new_tokens` does not. `num_beams` above 1 is
        beam search, which is deterministic: no temperature, no stop strings. `length_penalty` and `early_stopping` are
        those of transformers' beam search. A sampling parameter that is None comes from the model's
        generation_config.json, unless `defaults` is False; beam search ignores that file. `return_full_text` puts the
        prompt before its continuation. Raises SyscallError: EINVAL, E2BIG (the prompt is longer than the context), ETIME
        where one of the prompts takes more than `timeout` seconds.

        Example:
            text = await llm.generate("Once upon a time", max_new_tokens=10)
            several = await llm.generate(["One day", "Once there was"], max_new_tokens=8, temperature=0.8, seed=1)
        """
        num_beams = count(num_beams, "num_beams")
        if num_beams < 1:
            raise SyscallError(Errno.EINVAL, f"num_beams is {num_beams}; it must be 1 or more")
        if num_beams > 1 and (temperature or stop or repetition_penalty not in (None, 1.0)):
            raise SyscallError(
                Errno.EINVAL,
                "beam search takes no temperature, repetition_penalty or stop strings",
            )

        stops = stop_strings(stop)

        clocks: dict[int, Clock] = {}  # by pid: what is left of its `timeout`

        async def begin(task: tuple[str, list[int], int]) -> Process:
            left = countdown(timeout)
            process = await self.system.spawn(
                self._name,
                task[1],
                name="generate",
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                repetition_penalty=repetition_penalty,
                defaults=defaults and num_beams == 1,
                seed=seed,
                dtype=self.model.dtype,
                device=self.model.device,
                timeout=left(),
            )
            clocks[process.pid] = left
            return process

        async def finish(process: Process, task: tuple[str, list[int], int]) -> str:
            text, ids, most = task
            left = clocks[process.pid]
            if num_beams == 1:
                answer = await process.generate(most, stop=stops, timeout=left())
            else:
                search = beam_search(process.pid, most, num_beams, self.model.eos_ids, length_penalty, early_stopping)
                best = await self.system.run(search, left())
                answer = self.language.decode_after(ids, best[0].tokens)
            return text + answer if return_full_text else answer

        tasks: list[tuple[str, list[int], int]] = []
        for text in strings(prompt, "a prompt"):
            ids = self.language.encode(text, begin=True, control=True)
            tasks.append((text, ids, self._room(len(ids), max_length, max_new_tokens, defaults=defaults)))
        answers = await script_async.each(self.system.kernel, begin, finish, tasks)
        return answers[0] if isinstance(prompt, str) else answers

    @public
    def stream(
        self,
        prompt: str,
        max_new_tokens: int | None = None,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int = 0,
        stop: Strings = (),
        defaults: bool = True,
        timeout: float | None = None,
    ) -> AsyncGenerator[str, None]:
        """The continuation of a prompt, piece by piece. The parameters and errors are those of `generate`.

        Example:
            async for piece in llm.stream("Once upon a time", 10):
                print(piece, end="")
        """
        stops = stop_strings(stop)
        tokens = self._new_tokens(defaults) if max_new_tokens is None else max_new_tokens
        ids = self.language.encode(arguments.text(prompt), begin=True, control=True)

        async def streamed() -> AsyncGenerator[str, None]:
            left = countdown(timeout)
            async with (
                await self.system.spawn(
                    self._name,
                    ids,
                    name="generate",
                    temperature=temperature,
                    top_k=top_k,
                    top_p=top_p,
                    min_p=min_p,
                    repetition_penalty=repetition_penalty,
                    defaults=defaults,
                    seed=seed,
                    dtype=self.model.dtype,
                    device=self.model.device,
                    timeout=left(),
                ) as process,
                aclosing(process.stream(tokens, stop=stops, timeout=left())) as pieces,
            ):
                async for piece in pieces:
                    yield piece

        return AsyncStream(streamed())

    def _room(self, prompt: int, max_length: int | None, max_new_tokens: int | None, *, defaults: bool) -> int:
        if max_new_tokens is not None:
            if max_length is not None:
                raise SyscallError(Errno.EINVAL, "give max_length or max_new_tokens, not both")
            left = count(max_new_tokens, "max_new_tokens")
        else:
            left = self._new_tokens(defaults) if max_length is None else count(max_length, "max_length") - prompt
        if left < 1:
            raise SyscallError(
                Errno.EINVAL,
                f"the prompt has {prompt} tokens, max_length={max_length} leaves none to generate; raise it",
            )
        return min(left, max(1, self.model.context - prompt))

    def _new_tokens(self, defaults: bool) -> int:
        """The tokens to generate where the caller does not say."""
        setup = options.setup_by_store(stores.started(self._name) if defaults else Started())
        return setup.tokens(None, NEW_TOKENS, self.model.context)
