"""Client, Image, Instance: load an image, create an instance of it, predict.

Made from client_async.py by `python -m llmasos.userland.sdk.mirror`; change that file.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import overload

from llmasos.syscalls.calls import CONNECT_SECONDS
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import ModelInfo
from llmasos.userland.sdk.actions import MAX_TOKENS
from llmasos.userland.sdk.arguments import Dtype, Model
from llmasos.userland.sdk.arriving import arriving
from llmasos.userland.sdk.public import public
from llmasos.userland.sdk.script import countdown
from llmasos.userland.sdk.system import Process, System


class Image:
    """A model in memory; `Client.load_image` makes one."""

    info: ModelInfo
    """The model's row."""

    def __init__(self, info: ModelInfo) -> None:
        self.info = info

    def __repr__(self) -> str:
        return f"<Image {self.info.name} ({self.info.dtype} on {self.info.device})>"


class Instance:
    """A process that runs an image; `Client.create_instance` makes one. A model with a chat template holds a
    conversation, any other continues text."""

    process: Process
    """The handle on it."""

    def __init__(self, process: Process) -> None:
        self.process = process

    def __repr__(self) -> str:
        return f"<Instance {self.process.pid} of {self.process.model.name}>"

    @public
    def predict(self, text: str, max_tokens: int = MAX_TOKENS, *, timeout: float | None = None) -> str:
        """The model's answer to `text` as the next turn of the conversation; of a model without a chat template, its
        continuation of the text. Errors are those of `Process.ask`.

        Example:
            answer = instance.predict("My lucky number is 42.")
        """
        if self.process.language.chat is not None:
            return self.process.ask(text, max_tokens, timeout=timeout)
        left = countdown(timeout)
        self.process.feed(text, timeout=left())
        return self.process.generate(max_tokens, timeout=left())

    @public
    def close(self) -> None:
        """End the process.

        Example:
            instance.close()
        """
        self.process.end()


class Client:
    """A connection to the kernel that runs, or to a private one that it boots: `with Client() as client`."""

    system: System
    """The system that it is connected to."""

    @public
    def __init__(self, where: str | os.PathLike[str] | None = None, *, timeout: float = CONNECT_SECONDS) -> None:
        """`where`: the runtime directory of a kernel; None for the usual one. It answers within `timeout` seconds, or
        ETIME is raised."""
        self.system = System.connect(where, boot=True, name="client", timeout=timeout)
        self._instance: Instance | None = None

    def __repr__(self) -> str:
        return f"<Client on {self.system!r}>"

    def __enter__(self) -> Client:
        self.system.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @public
    def close(self) -> None:
        """Disconnect. Its instances end, and a private kernel halts.

        Example:
            client.close()
        """
        self.system.close()

    @public
    def load_image(
        self, name: Model, *, dtype: Dtype = "", device: str = "", timeout: float | None = None
    ) -> Image:
        """Bring a model into memory. The parameters and errors are those of `System.load`.

        Example:
            image = client.load_image("tiny")
        """
        with arriving(self.system, name):
            return Image(self.system.load(name, dtype, device, timeout=timeout))

    @public
    def create_instance(self, image: Image, *, name: str = "", timeout: float | None = None) -> Instance:
        """Start a process on an image. Errors are those of `System.spawn`.

        Example:
            instance = client.create_instance(image)
        """
        info = image.info
        process = self.system.spawn(info.path, name=name, dtype=info.dtype, device=info.device, timeout=timeout)
        self._instance = Instance(process)
        return self._instance

    @overload
    def predict(self, text: str, /, *, max_tokens: int = MAX_TOKENS, timeout: float | None = None) -> str: ...

    @overload
    def predict(
        self, instance: Instance, text: str, /, *, max_tokens: int = MAX_TOKENS, timeout: float | None = None
    ) -> str: ...

    @public
    def predict(
        self,
        what: Instance | str,
        text: str | None = None,
        /,
        *,
        max_tokens: int = MAX_TOKENS,
        timeout: float | None = None,
    ) -> str:
        """`predict(instance, text)` is `instance.predict(text)`. `predict(text)` asks the instance that was created last,
        or a new one of the system's default model if there is none. Raises EINVAL without a text.

        Example:
            answer = client.predict("What is my lucky number?")
        """
        if isinstance(what, Instance):
            if text is None:
                raise SyscallError(Errno.EINVAL, "predict(instance) has no text; call predict(instance, text)")
            return what.predict(text, max_tokens, timeout=timeout)
        if text is not None:
            raise SyscallError(
                Errno.EINVAL,
                f"predict was given {what!r} where an instance belongs; call predict(text), or predict(instance, text)",
            )
        instance = self._instance or self.create_instance(
            self.load_image(self.system.kernel.boot.default_model)
        )
        return instance.predict(what, max_tokens, timeout=timeout)
