"""The asynchronous face of the SDK: Process, a handle on an LLM process. The blocking face, process.py, is made from this
file (mirror.py).
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

import msgspec

from llmasos.syscalls.records import (
    CheckpointInfo,
    ExitInfo,
    GrantInfo,
    Limits,
    ProcessInfo,
    SchedClass,
    Signal,
)
from llmasos.syscalls.rights_words import rights_of
from llmasos.syscalls.table import (
    Checkpoint,
    Detach,
    Fork,
    Getinfo,
    Grant,
    GroupMove,
    Kill,
    Rename,
    Setlimits,
    Setsched,
)
from llmasos.userland.sdk import actions, notebook, options, script_async
from llmasos.userland.sdk.arguments import Dtype, Ids, Model, SchedClassName, SignalName, Strings, member
from llmasos.userland.sdk.public import public
from llmasos.userland.sdk.talk_async import Talk


class Process(Talk):
    """A handle on an LLM process: text in, text out. Entered by `async with`, it ends the process when it is left. It has
    its `pid`, the `model` that it runs, its `system`, and after an answer the `hint` on what to do near the window's end.

    A process answers one question at a time: a second one raises EBUSY and changes nothing while this program still hears
    the answer to the first.

    Of every answer: `max_tokens` bounds its tokens (None: what the model's store says, as Ollama's `num_predict` does,
    else 256); it ends before the first of the stop strings `stop` (none given: those of the model's store); after
    `deadline` seconds it ends with what there is by then. After `timeout` seconds without its end ETIME is raised
    instead, and the decode is interrupted; what it has said by then stays in the log. None: no bound. Every method
    that asks the kernel takes a `timeout`.
    """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await script_async.end(self.system.kernel, actions.end([self.pid]))

    def __eq__(self, other: object) -> bool:
        """Handles of one process are alike, whichever connection they have."""
        if not isinstance(other, Process):
            return NotImplemented
        return self._who == other._who

    def __hash__(self) -> int:
        return hash(self._who)

    @property
    def _who(self) -> tuple[int, str]:
        return self.pid, self.system.kernel.boot.runtime

    def __repr__(self) -> str:
        return f"<Process {self.pid} on {self.model.name}>"

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        """The process in a notebook, as it is now; under an event loop, as `info` has found it last."""
        pairs: list[tuple[str, object]] = [("pid", self.pid), ("model", self.model.name), ("device", self.model.device)]
        pairs += notebook.row_now(self.system.kernel, self.pid, self._found)
        if self.hint:
            pairs.append(("hint", self.hint))
        return notebook.bundle(repr(self), pairs)

    @public
    async def info(self, *, timeout: float | None = None) -> ProcessInfo:
        """Its row of the process table. Raises ESRCH once it has ended.

        Example:
            row = await agent.info()
            print(row.state, row.length, row.usage.decoded)
        """
        self._found = await self.system(Getinfo(self.pid), timeout=timeout)
        return self._found

    @public
    async def fork(
        self,
        count: int = 1,
        *,
        same_seed: bool = False,
        detached: bool = False,
        name: str = "",
        timeout: float | None = None,
    ) -> list[Process]:
        """Make `count` copies of it, which share its pages until one of them writes. Each samples with a seed of its own,
        unless `same_seed`; a `detached` one outlives this program. They are in this program's control group, wherever the
        original is (`join` moves them). `name` is theirs (empty: its own); several are called
        NAME-1, NAME-2 and so on. Raises ESRCH, EBUSY, ENOMEM, EDQUOT.

        Example:
            first, second = await agent.fork(2, name="twin")
        """
        pids = await self.system(Fork(self.pid, count, same_seed, detached, name), timeout=timeout)
        return [Process(self.system, pid, self.model, self._instructions, self._setup) for pid in pids]

    @public
    async def checkpoint(
        self,
        path: str | os.PathLike[str],
        *,
        kv: bool = True,
        passphrase: str | None = None,
        timeout: float | None = None,
    ) -> CheckpointInfo:
        """Write its image to a file, from which `System.restore` starts it again; the process itself goes on. Without
        `kv` the file is small, and restoring computes the context again. A `passphrase` encrypts the file. Raises EPERM,
        ENOENT, EIO where the file cannot be written.

        Example:
            info = await agent.checkpoint(folder / "agent.image", passphrase="open sesame")
            print(info.bytes, "bytes,", info.kv_tokens, "tokens with KV")
        """
        call = Checkpoint(self.pid, options.file_path(path), kv, options.passphrase(passphrase))
        return await self.system(call, timeout=timeout)

    @public
    async def signal(self, signal: Signal | SignalName, *, timeout: float | None = None) -> None:
        """Send it a signal. Raises ESRCH once it has ended.

        Example:
            await agent.signal("TERM")  # or llmasos.Signal.TERM
        """
        await self.system(Kill(self.pid, member(Signal, signal)), timeout=timeout)

    @public
    async def stop(self, *, timeout: float | None = None) -> None:
        """Stop it, also in the midst of an answer. Its context stays. Raises ESRCH.

        Example:
            await agent.stop()
        """
        await self.signal(Signal.STOP, timeout=timeout)

    @public
    async def cont(self, *, timeout: float | None = None) -> None:
        """Let it go on after `stop`. Raises ESRCH.

        Example:
            await agent.cont()
        """
        await self.signal(Signal.CONT, timeout=timeout)

    @public
    async def interrupt(self, *, timeout: float | None = None) -> None:
        """Interrupt the decode under way; what it has said so far stays in the log. Raises ESRCH.

        Example:
            await agent.interrupt()
        """
        await self.signal(Signal.INT, timeout=timeout)

    @public
    async def kill(self, *, timeout: float | None = None) -> None:
        """End it at once. `wait` reaps it. Raises ESRCH.

        Example:
            await agent.kill()
            print((await agent.wait()).reason)
        """
        await self.signal(Signal.KILL, timeout=timeout)

    @public
    async def nice(
        self,
        value: int,
        sched_class: SchedClass | SchedClassName | None = None,
        *,
        budget: float = 0.0,
        period: float = 0.0,
        timeout: float | None = None,
    ) -> None:
        """Set its share of the device, from -20 (largest) to 19 (smallest), and its scheduling class (None: keeps it). A
        "realtime" process may use `budget` seconds of the device's time in each `period` seconds before all others (0: as
        before, or 0.01 in 0.1); beyond that it is "fair" until the next period. Values below 0 and "realtime" need the
        right PRIORITY. Raises EINVAL, ESRCH, EPERM, EBUSY (too much of the device's time is reserved).

        Example:
            await agent.nice(5, "batch")  # or llmasos.SchedClass.BATCH
            await agent.nice(0, "realtime", budget=0.02, period=0.1)
        """
        chosen = None if sched_class is None else member(SchedClass, sched_class)
        await self.system(Setsched(self.pid, value, chosen, "", budget, period), timeout=timeout)

    @public
    async def detach(self, *, timeout: float | None = None) -> None:
        """Let it live on when this program ends. Any program of the kernel may `wait` for it then. Raises ESRCH.

        Example:
            await agent.detach()
        """
        await self.system(Detach(self.pid), timeout=timeout)

    @public
    async def rename(self, name: str, *, timeout: float | None = None) -> str:
        """Give it another name, and return the old one. Several processes may have the same. Raises EINVAL, ESRCH.

        Example:
            old = await agent.rename("clerk")
        """
        return await self.system(Rename(self.pid, name), timeout=timeout)

    @public
    async def grant(
        self, to: int | str, rights: Strings = "read", *, seconds: float = 0.0, timeout: float | None = None
    ) -> GrantInfo:
        """Hand rights on it to a program of another owner: `to` is a user id, or `uid/tenant`; rights are "see", "read",
        "control", "limits", of which one must have each oneself. It ends after `seconds`, if they are not 0: time goes on
        while no kernel runs. The answer's `ticket` is good once, for `System.accept` there; `System.revoke` takes back
        its `handle`. Raises EINVAL, ESRCH, EPERM, EDQUOT.

        Example:
            ticket = (await agent.grant(1002, ["read", "control"])).ticket
        """
        bits = rights_of([rights] if isinstance(rights, str) else rights)
        return await self.system(Grant(self.pid, str(to), bits, seconds=seconds), timeout=timeout)

    @public
    async def move(self, device: str, *, timeout: float | None = None) -> None:
        """Move it to another device while it runs. Its answer goes on, and its readers notice nothing. Returns when it
        has arrived. After an error it is where it was: ENODEV, EBUSY, ENOMEM, E2BIG, ENOTSUP, ERESTART (the driver there
        is down), ETIME.

        Example:
            await agent.move((await agent.info()).device)
        """
        await self.system(Setsched(self.pid, device=device), timeout=timeout)
        self.model = msgspec.structs.replace(self.model, device=device)

    @public
    async def exec(
        self, model: Model, *, dtype: Dtype = "", tokens: Ids | None = None, timeout: float | None = None
    ) -> int:
        """Give it another model while it is idle, and return the length of its log in tokens. Its pid, limits, group,
        sampler and nice value stay.

        Its context goes with it. A model with the same vocabulary takes the tokens as they are; for another one they
        become text and then its tokens, a conversation by the chat templates of both. `tokens` replaces the context
        instead. After an error the process is as it was: EBUSY, E2BIG (too long for that model), EAGAIN (another program
        changed its log), ETIME.

        Example:
            length = await agent.exec("tiny", tokens=[1, 2, 3])
        """
        change = options.change_model(self.pid, model, dtype, tokens)
        self.model, length = await self.system.run(change, timeout)
        return length

    @public
    async def join(self, group: str, *, timeout: float | None = None) -> None:
        """Move it into another control group. Raises ENOENT, ESRCH, EAGAIN (the group is full).

        Example:
            await system.group("quiet", cpu_weight=10)
            await agent.join("quiet")
        """
        await self.system(GroupMove(self.pid, group), timeout=timeout)

    @public
    async def limits(self, limits: Limits | None = None, *, timeout: float | None = None) -> Limits:
        """Set its limits, all of them (None: none are changed; a field that is 0 is no limit), and return those that were
        in force before. To change one, replace it in those. Raises EINVAL, ESRCH.

        Example:
            import msgspec
            before = await agent.limits()
            await agent.limits(msgspec.structs.replace(before, tokens=1000))
        """
        return await self.system(Setlimits(self.pid, limits), timeout=timeout)

    @public
    async def wait(self, timeout: float | None = None) -> ExitInfo:
        """Wait until it has ended, and reap it. Raises ECHILD if it is neither a child of this program nor detached,
        ETIME after `timeout` seconds (None: never).

        Example:
            await agent.signal(llmasos.Signal.TERM)
            status = (await agent.wait(timeout=60)).status
        """
        return await self.system.wait(self.pid, timeout)

    @public
    async def idle(self, *, timeout: float | None = None) -> None:
        """Wait until it has no answer under way, whichever program asked for it. (Another may ask next: `ask` raises
        EBUSY then.) Raises ESRCH once it has ended, ETIME.

        Example:
            await agent.idle(timeout=60)
            answer = await agent.ask("What is my name?")
        """
        await self.system.run(actions.idle(self.pid), timeout)

    @public
    async def end(self, *, timeout: float | None = None) -> None:
        """Kill and reap it. Does nothing if it has ended already.

        Example:
            await agent.end()
        """
        await self.system.run(actions.end([self.pid]), timeout)
