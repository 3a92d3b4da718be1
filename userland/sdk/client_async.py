"""The asynchronous Client, Image and Instance, for trio programs: the names and meanings of `client`, awaited."""

from __future__ import annotations

import os
from types import TracebackType
from typing import overload

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import ModelInfo
from llmasos.userland.sdk.actions import MAX_TOKENS
from llmasos.userland.sdk.arguments import Dtype, Model
from llmasos.userland.sdk.arriving_async import arriving
from llmasos.userland.sdk.system_async import Process, System


class Image:
    """A model in memory."""

    def __init__(self, info: ModelInfo) -> None:
        self.info = info

    def __repr__(self) -> str:
        return f"<Image {self.info.name} ({self.info.dtype} on {self.info.device})>"


class Instance:
    """A process that runs an image. A model with a chat template remembers what was said; others continue text."""

    def __init__(self, process: Process) -> None:
        self.process = process

    async def predict(self, text: str, max_tokens: int = MAX_TOKENS) -> str:
        """The model's answer to a text (chat models, as the next turn), or its continuation of it."""
        if self.process.language.chat is not None:
            return await self.process.ask(text, max_tokens)
        await self.process.feed(text)
        return await self.process.generate(max_tokens)

    async def close(self) -> None:
        """End the process."""
        await self.process.end()


class Client:
    """A connection to the kernel that runs (`where`: its runtime directory), or to a private one that is booted if none
    does: `async with Client() as client`."""

    def __init__(self, where: str | os.PathLike[str] | None = None) -> None:
        self.system = System.connect(where, boot=True, name="client")
        self._instance: Instance | None = None

    async def __aenter__(self) -> Client:
        await self.system.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self.system.close()

    async def load_image(self, name: Model, *, dtype: Dtype = "", device: str = "") -> Image:
        """Bring a model into memory: a known name, a directory, or a hub name. Raises as LLM.from_pretrained does."""
        async with arriving(self.system, name):
            return Image(await self.system.load(name, dtype, device))

    async def create_instance(self, image: Image, *, name: str = "") -> Instance:
        """A process on an image."""
        info = image.info
        process = await self.system.spawn(info.path, name=name, dtype=info.dtype, device=info.device)
        self._instance = Instance(process)
        return self._instance

    @overload
    async def predict(self, text: str, /, *, max_tokens: int = MAX_TOKENS) -> str: ...

    @overload
    async def predict(self, instance: Instance, text: str, /, *, max_tokens: int = MAX_TOKENS) -> str: ...

    async def predict(self, what: Instance | str, text: str | None = None, /, *, max_tokens: int = MAX_TOKENS) -> str:
        """`predict(instance, text)` is `instance.predict(text)`; `predict(text)` asks the instance created last, or, if
        there is none yet, one of the system's default model. Raises EINVAL if there is no text."""
        if isinstance(what, Instance):
            if text is None:
                raise SyscallError(Errno.EINVAL, "predict(instance) has no text; call predict(instance, text)")
            return await what.predict(text, max_tokens)
        if text is not None:
            raise SyscallError(
                Errno.EINVAL,
                f"predict was given {what!r} where an instance belongs; call predict(text), or predict(instance, text)",
            )
        instance = self._instance or await self.create_instance(
            await self.load_image(self.system.kernel.boot.default_model)
        )
        return await instance.predict(what, max_tokens)
