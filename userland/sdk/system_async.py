"""The asynchronous face of the SDK, for programs under trio or asyncio: System, and (process_async.py) Process. The
blocking face, system.py, is made from this file (mirror.py) and has the same names and meanings.

    from llmasos import aio

    async with aio.System.connect(boot=True) as system:
        agent = await system.spawn(system="You are a poet.")
        async for piece in agent.say("A line about rain, please."):
            print(piece, end="")

To talk to many processes at once, talk to each in a task of its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from llmasos.syscalls.calls import Overdue
from llmasos.syscalls.policy_file import located_policy
from llmasos.syscalls.records import (
    Advice,
    EstimateInfo,
    ExitInfo,
    GrantInfo,
    GroupInfo,
    KvAction,
    Limits,
    ModelInfo,
    ProcessInfo,
    SchedClass,
    SchedInfo,
    Stats,
)
from llmasos.syscalls.rights_words import rights_of
from llmasos.syscalls.table import (
    Accept,
    Advise,
    Attach,
    Estimate,
    Evict,
    Grant,
    Grants,
    GroupRemove,
    GroupStat,
    Models,
    Ps,
    Restore,
    Revoke,
    SandboxClose,
    SandboxOpen,
    Sched,
    StatsCall,
    Wait,
)
from llmasos.userland.programs import bubblewrap
from llmasos.userland.sdk import options
from llmasos.userland.sdk.actions import Language, language_of
from llmasos.userland.sdk.arguments import (
    AdviceName,
    Dtype,
    KvActionName,
    Model,
    SchedClassName,
    Strings,
    dtype_name,
    member,
    model_name,
)
from llmasos.userland.sdk.connection_async import AsyncConnection, from_threads, in_a_thread
from llmasos.userland.sdk.notebook import Table
from llmasos.userland.sdk.options import UNLIMITED, Options, Prompt
from llmasos.userland.sdk.process_async import Process
from llmasos.userland.sdk.public import public
from llmasos.userland.sdk.sandboxed_async import Sandboxed
from llmasos.userland.sdk.script import GRACE_SECONDS, seconds


class System(AsyncConnection):
    """A connection to a kernel: `async with System.connect() as system`. Its `kernel` makes the system calls;
    `kernel.boot` is what the kernel told of itself, `kernel.runtime` its directory, `kernel.pid` this program's own pid.

    After `timeout` seconds a call is taken back, and ETIME raised; None: no bound.
    """

    # --- processes ---

    @public
    async def spawn(
        self,
        model: Model = "",
        prompt: Prompt | None = None,
        *,
        name: str = "",
        system: str = "",
        nice: int = 0,
        sched_class: SchedClass | SchedClassName = SchedClass.FAIR,
        budget: float = 0.0,
        period: float = 0.0,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        defaults: bool = True,
        seed: int | None = None,
        limits: Limits = UNLIMITED,
        dtype: Dtype = "",
        device: str = "",
        once: bool = False,
        detached: bool = False,
        group: str = "",
        tools: Sequence[Mapping[str, Any]] | None = None,
        thoughts: Literal["", "drop", "keep"] = "",
        thinking: bool | str | None = None,
        thought_tokens: int | None = None,
        template: Mapping[str, Any] | None = None,
        chat_template: str = "",
        allow_special: bool = False,
        timeout: float | None = None,
    ) -> Process:
        """Start a process on a model (empty: the system's default) and return a handle on it.

        `prompt`: plain text, chat messages, or token ids. `name`: in the process table. `system`: the instructions of a
        conversation. `nice`: -20 (largest share of the device) to 19 (smallest); `sched_class`: above all of that;
        a "realtime" one has `budget` seconds of the device's time in each `period` seconds (0: 0.01 in 0.1).
        `temperature` (0: greedy), `top_k`, `top_p`, `min_p`, `repetition_penalty`: None is what the model's makers advise
        (its generation_config.json), and off if they advise nothing; a model of Ollama's store starts as Ollama starts
        it; `defaults=False` ignores all of these. `seed` of the sampler (None: one of its own). `limits`: tokens of its
        context and life, pages. `dtype`: fp32, bf16, int8 or int4 (empty: the device's default); `device`: empty for the
        first. `once`: exit when the first decode ends; `detached`: outlive this program. `group`: control group (empty:
        this program's).

        Of a conversation: `tools`, as templates take their definitions; `thoughts` of earlier answers, kept or dropped
        (empty: as the template has it); `thinking`: on, off, or an effort, by the template's own switch; `thought_tokens`
        of one answer at most, then the model is made to answer; `template`: further variables of the template;
        `chat_template`: its name, if the model has several; `allow_special`: control tokens that `system` and messages
        spell are control tokens.

        Raises SyscallError: ENOENT, ENOEXEC, EIO, ENOMEM or ENOTSUP if the model cannot be used, EINVAL for an option
        that cannot be, E2BIG for a prompt longer than the context, EDQUOT where a control group's limit is reached,
        ETIME.

        Example:
            poet = await system.spawn("tiny", name="poet", system="You are a poet.", temperature=0.7, seed=1)
        """
        chosen = Options(
            model=model_name(model) or self.kernel.boot.default_model,
            prompt=prompt,
            name=name,
            system=system,
            nice=nice,
            sched_class=member(SchedClass, sched_class),
            budget=budget,
            period=period,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            defaults=defaults,
            seed=seed,
            limits=limits,
            dtype=dtype,
            device=device,
            once=once,
            detached=detached,
            group=group,
            tools=tools,
            thoughts=thoughts,
            thinking=thinking,
            thought_tokens=thought_tokens,
            template=template,
            chat_template=chat_template,
            allow_special=allow_special,
        )
        pid, info, setup = await self.run(options.spawn(chosen), timeout)
        return Process(self, pid, info, chosen.system, setup)

    @public
    async def process(self, pid: int | str, *, timeout: float | None = None) -> Process:
        """A handle on a running LLM process of any program. `pid` may be written as `ps` prints it: "1001:7" is process
        7 of user 1001. Raises ESRCH if there is none, EINVAL for a program or driver, and for what is no pid.

        Example:
            same = await system.process(agent.pid)
        """
        number = options.pid_of(pid)
        model, setup = await self.run(options.handle(number), timeout)
        return Process(self, number, model, setup=setup)

    @public
    async def grant_group(
        self,
        path: str,
        to: int | str,
        rights: Strings = "read",
        *,
        seconds: float = 0.0,
        timeout: float | None = None,
    ) -> GrantInfo:
        """Hand rights on all agents of a control group to a program of another owner: those that are in it, or in a group
        in it, at the time of each call. Else as `Process.grant`. Raises EINVAL, ENOENT, EPERM, EDQUOT.

        Example:
            await system.group("team")
            made = await system.grant_group("team", 1002, ["read", "control"], seconds=3600)
        """
        bits = rights_of([rights] if isinstance(rights, str) else rights)
        return await self(Grant(0, str(to), bits, path, seconds), timeout=timeout)

    @public
    async def accept(self, ticket: bytes | str, *, timeout: float | None = None) -> Process:
        """A handle on the process on which the ticket of a grant (`Process.grant`) gives rights; it may be written as the
        shell's `grant` prints it. They end with this program, or when the grant is taken back. Raises ESRCH: the ticket
        was used, taken back, or is not for this user; EINVAL: it is none; EPERM: the rights are not enough to read it,
        which a handle does (it is granted nevertheless).

        Example:
            print((await system.grants())[:1])
        """
        taken = await self(Accept(options.ticket_of(ticket)), timeout=timeout)
        return await self.process(taken.pid, timeout=timeout)

    @public
    async def grants(self, *, timeout: float | None = None) -> Table[GrantInfo]:
        """The grants that this program holds or may take back.

        Example:
            for grant in await system.grants():
                print(grant.handle, grant.pid, grant.to)
        """
        return Table(await self.run(options.pages(lambda rows: Grants(rows[-1].handle if rows else 0)), timeout))

    @public
    async def revoke(self, handle: int, *, timeout: float | None = None) -> int:
        """Take back a grant and all that was made of it; returns how many these were. Calls that wait by it fail at once.
        What was read is not reached. Raises ESRCH.

        Example:
            grant = await agent.grant(1002)
            await system.revoke(grant.handle)
        """
        return await self(Revoke(handle), timeout=timeout)

    @public
    async def sandbox(
        self,
        command: Sequence[str],
        *,
        grants: Mapping[int | str | Process, Strings] | None = None,
        read: Sequence[str | os.PathLike[str]] = (),
        write: Sequence[str | os.PathLike[str]] = (),
        network: bool = False,
        directory: str | os.PathLike[str] = "",
        environment: Mapping[str, str] | None = None,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        timeout: float | None = None,
    ) -> Sandboxed:
        """Start a program of this machine that is held by the operating system (bubblewrap), and can reach of the kernel
        what `grants` names, and nothing else: agents, or the paths of groups, each with the rights that it is to have
        ("read", "control", ...). Whatever it starts is held with it, connects as usual (`System.connect()`), and finds
        these by `grants()` or `ps()`.

        It sees the system's programs, this Python, the files of the models that it was granted, and `read`; it may change
        an empty /tmp and `write`. It starts in `directory`, which must be in one of these, with few variables of the
        environment and those of `environment`. Without `network` it has none. `stdin`, `stdout` and `stderr` are as
        subprocess.Popen has them. All of it ends with this program, however that ends.

        Raises ENOTSUP where this machine cannot do that (no Linux, no bubblewrap, no user namespaces), and starts nothing
        then; ENOENT or EINVAL for a path that cannot be bound; EPERM, ESRCH for what cannot be granted.

        Example:
            may = {agent: ["read", "control"]}  # talking takes both
            async with await system.sandbox(["ls"], grants=may, read=[folder], directory=folder) as tool:
                print(await tool.wait())
        """
        named = [(thing.pid if isinstance(thing, Process) else thing, rights) for thing, rights in (grants or {}).items()]
        given = [(thing, rights_of([one] if isinstance(one, str) else one)) for thing, one in named]
        opened = await self(SandboxOpen(), timeout=timeout)
        try:
            for thing, bits in given:
                pid, group = (thing, "") if isinstance(thing, int) else (0, thing)
                await self(Grant(pid, "", bits, group, sandbox=opened.sandbox), timeout=timeout)
            files = [*read, *await self.run(options.files_of([thing for thing, _ in given]), timeout)]
            view = bubblewrap.View(files, write, network, directory, environment or {})
            hidden = options.hidden(self.kernel.boot)
            found, arguments = await in_a_thread(bubblewrap.check, command, view, opened.directory, hidden)
            soon, close = from_threads(), partial(self.kernel.post, SandboxClose(opened.sandbox))
            streams = stdin, stdout, stderr
            child = await in_a_thread(bubblewrap.start, found, arguments, command, partial(soon, close), streams)
        except BaseException:
            self.kernel.post(SandboxClose(opened.sandbox))
            raise
        return Sandboxed(child, opened.sandbox)

    @public
    async def confine(self, *, timeout: float | None = None) -> None:
        """Give up everything but what this program was granted, for good: it sees itself and those processes, and starts
        none. That keeps it from accidents; whoever can start another program is not held by it (`sandbox` holds).

        Example:
            await system.confine()
        """
        await self(Attach(confined=True), timeout=timeout)

    @public
    async def ps(self, *, timeout: float | None = None) -> Table[ProcessInfo]:
        """The process table: a row for each program, driver and LLM process. A list, which a notebook shows as a table.

        Example:
            for row in await system.ps():
                print(row.pid, row.name, row.state)
        """
        return Table(await self.run(options.pages(lambda rows: Ps(after=rows[-1].pid if rows else 0)), timeout))

    @public
    async def restore(
        self,
        path: str | os.PathLike[str],
        *,
        name: str = "",
        device: str = "",
        detached: bool = False,
        passphrase: str | None = None,
        model: Model = "",
        timeout: float | None = None,
    ) -> Process:
        """Start a process from an image that `Process.checkpoint` wrote; it goes on where that process was.

        An empty `name`, `device` or `model` means the one in the image. A `detached` process outlives this program.
        Raises SyscallError: ENOENT, EPERM (wrong passphrase), EINVAL, EIO (damaged), ETIME.

        Example:
            await agent.checkpoint(folder / "agent.image")
            twin = await system.restore(folder / "agent.image", name="twin")
        """
        image = Restore(options.file_path(path), name, device, detached, options.passphrase(passphrase))
        pid, info, setup = await self.run(options.restore(image, model), timeout)
        return Process(self, pid, info, setup=setup)

    # --- models ---

    @public
    async def models(self, *, timeout: float | None = None) -> Table[ModelInfo]:
        """The models that the system knows: those in memory, and those that it can load by name.

        Example:
            names = [row.name for row in await system.models()]
        """
        rows: list[ModelInfo] = await self(Models(), timeout=timeout)
        return Table(rows)

    @public
    async def load(self, model: Model, dtype: Dtype = "", device: str = "", *, timeout: float | None = None) -> ModelInfo:
        """Bring a model into memory.

        `dtype`: fp32, bf16, int8 or int4 (empty: the device's default); `device`: empty for the first. Raises
        SyscallError: ENOENT (no such model), ENOEXEC (unsupported architecture), EIO (broken files), ENOMEM, ENOTSUP
        (unsupported dtype), ETIME.

        Example:
            row = await system.load("tiny", "fp32")
            print(row.weight_bytes, "bytes", row.context, "tokens")
        """
        return await self.run(options.load(model, dtype_name(dtype), device), timeout)

    @public
    async def estimate(
        self,
        model: Model,
        dtype: Dtype = "",
        device: str = "",
        context: int = 0,
        *,
        timeout: float | None = None,
    ) -> EstimateInfo:
        """The memory (bytes) that a model would take with one context of `context` tokens (0: the longest that it can
        have there), and the models that would have to make room. Loads nothing. Raises ENOENT, ENOEXEC, EIO, ENOTSUP
        as `load` does.

        Example:
            print((await system.estimate("tiny", context=512)).total_bytes)
        """
        return await self.run(
            options.of_model(model, lambda path: Estimate(path, device, dtype_name(dtype), context)), timeout
        )

    @public
    async def evict(
        self,
        model: Model,
        dtype: Dtype = "",
        device: str = "",
        *,
        force: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Take a model's weights out of memory. A model that processes use raises EBUSY, unless `force`: its processes
        then keep their KV, and the weights come back when one of them wants to run.

        Example:
            await system.evict("tiny", force=True)
        """
        await self.run(options.of_model(model, lambda path: Evict(path, device, dtype_name(dtype), force)), timeout)

    @public
    async def advise(
        self,
        model: Model,
        advice: Advice | AdviceName,
        dtype: Dtype = "",
        device: str = "",
        *,
        timeout: float | None = None,
    ) -> None:
        """Say how a model will be used: WILLNEED loads it in the background, DONTNEED lets it go first, PIN loads it and
        keeps it, NORMAL takes the advice back. Raises ENOENT, ENOMEM (PIN) and the errors of `load`.

        Example:
            await system.advise("tiny", llmasos.Advice.PIN)
            await system.advise("tiny", "normal")
        """
        wanted = member(Advice, advice)
        await self.run(options.of_model(model, lambda path: Advise(path, wanted, device, dtype_name(dtype))), timeout)

    # --- the system ---

    @public
    async def sched(
        self,
        policy: str = "",
        *,
        max_runs: int = 0,
        step_tokens: int = 0,
        device: str = "",
        victims: str = "",
        evictions: str = "",
        timeout: float | None = None,
    ) -> SchedInfo:
        """Set how a device (empty: the first) is scheduled, and return the settings in force. What is empty or 0 stays.

        `policy`: fair, fcfs, round_robin, mlfq or lottery; `max_runs`: processes in one step at most; `step_tokens`:
        tokens in one step at most; `victims`, which process loses its pages first: cost, lru, fifo or clock; `evictions`,
        which model's weights go first: lru or cost. Each policy may be one of your own, `FILE.py:CLASS`
        (docs/policies.md). Raises EINVAL and ENOENT for a policy that is none, ENODEV, EPERM (without the right ADMIN).

        Example:
            print((await system.sched("fair", max_runs=8)).policy)
        """
        own = (located_policy(name) for name in (victims, evictions))
        return await self(Sched(device, located_policy(policy), max_runs, step_tokens, *own), timeout=timeout)

    @public
    async def groups(self, path: str = "/", *, timeout: float | None = None) -> Table[GroupInfo]:
        """A control group and the groups below it. Raises ENOENT.

        Example:
            for row in await system.groups():
                print(row.path, row.kv, "bytes of KV")
        """
        return Table(await self.run(options.pages(lambda rows: GroupStat(path, below=True, start=len(rows))), timeout))

    @public
    async def group(
        self,
        path: str,
        *,
        kv_max: int | None = None,
        kv_high: int | None = None,
        swap_max: int | None = None,
        weights_max: int | None = None,
        tokens_max: float | None = None,
        tokens_total: int | None = None,
        pids_max: int | None = None,
        cpu_weight: int | None = None,
        kv_action: KvAction | KvActionName | None = None,
        share_prefixes: bool | None = None,
        timeout: float | None = None,
    ) -> GroupInfo:
        """Change settings of a control group, and make the group if there is none. A `path` without a leading slash is
        below this program's own group. None leaves a setting as it is, 0 takes a limit away.

        `kv_max`: bytes of KV in a device's memory, and `kv_action` what happens there (spill, wait, fail or kill);
        `kv_high`: bytes above which its sleeping processes lose pages first; `swap_max`: bytes in lower tiers;
        `weights_max`: bytes of the weights that its processes run; `tokens_max`: tokens a second; `tokens_total`: tokens
        in its life; `pids_max`: processes and programs; `cpu_weight`: 1 to 10,000 beside its siblings (100);
        `share_prefixes`: processes that begin here share KV of equal beginnings with other owners whose groups say so
        too. Raises EINVAL, EPERM, ENOENT (the group above it).

        Example:
            await system.group("guests", kv_max=64 << 20, tokens_max=50, cpu_weight=50)
        """
        given = {
            "kv_max": kv_max,
            "kv_high": kv_high,
            "swap_max": swap_max,
            "weights_max": weights_max,
            "tokens_max": tokens_max,
            "tokens_total": tokens_total,
            "pids_max": pids_max,
            "cpu_weight": cpu_weight,
            "kv_action": None if kv_action is None else member(KvAction, kv_action),
            "share_prefixes": share_prefixes,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        return await self.run(options.group(path, changes), timeout)

    @public
    async def remove_group(self, path: str, *, timeout: float | None = None) -> None:
        """Remove a control group. Raises EBUSY unless it is empty, ENOENT.

        Example:
            await system.group("passing")
            await system.remove_group("passing")
        """
        await self(GroupRemove(path), timeout=timeout)

    @public
    async def stats(self, *, timeout: float | None = None) -> Stats:
        """The kernel's counters since it was booted.

        Example:
            print((await system.stats()).uptime)
        """
        return await self(StatsCall(), timeout=timeout)

    @public
    async def wait(self, pid: int | str = 0, timeout: float | None = None) -> ExitInfo:
        """Wait until a child of this program (`pid` 0: any), or a detached process, has ended, and reap it. `pid` may be
        written as `ps` prints it. Raises ECHILD if there is none, ETIME after `timeout` seconds (None: never).

        Example:
            await agent.kill()
            print((await system.wait(agent.pid)).status)
        """
        number = options.pid_of(pid)
        if timeout is None:
            return await self(Wait(number))
        limit = seconds(timeout)
        try:
            return await self(Wait(number, limit), timeout=limit + GRACE_SECONDS)
        except Overdue:
            raise options.not_ended(number, limit) from None

    @public
    def language(self, model: ModelInfo) -> Language:
        """The tokenizer and chat format of a model. Raises ENOENT or EIO if its files have none.

        Example:
            words = system.language(agent.model)
            assert words.decode(words.encode("a fox")) == "a fox"
        """
        return language_of(model)


__all__ = ["Process", "System"]
