"""The blocking face of the SDK: a connected system and its processes, for plain scripts.

    import llmasos

    with llmasos.System.connect(boot=True) as system:
        agent = system.spawn(system="You are a poet.")
        for piece in agent.say("A line about rain, please."):
            print(piece, end="")

Made from system_async.py by `python -m llmasos.userland.sdk.mirror`; change that file.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import msgspec

from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.policy_file import located_policy
from llmasos.syscalls.records import (
    Advice,
    CheckpointInfo,
    EstimateInfo,
    ExitInfo,
    Finish,
    GroupInfo,
    Limits,
    ModelInfo,
    ProcessInfo,
    Sampler,
    SchedClass,
    SchedInfo,
    Signal,
    Stats,
)
from llmasos.syscalls.table import (
    Advise,
    Checkpoint,
    Detach,
    Estimate,
    Evict,
    Feed,
    Fork,
    Getinfo,
    GroupMove,
    GroupRemove,
    GroupStat,
    Kill,
    Models,
    Pagein,
    Ps,
    Rename,
    Restore,
    Sched,
    Setlimits,
    Setsched,
    StatsCall,
    Wait,
)
from llmasos.userland.sdk import actions, answers, arguments, call_choice, options, script, turns
from llmasos.userland.sdk.actions import MAX_TOKENS, Language, language_of
from llmasos.userland.sdk.arguments import (
    Dtype,
    Ids,
    Model,
    Strings,
    dtype_name,
    known_keywords,
    model_name,
    stop_strings,
)
from llmasos.userland.sdk.connection import Connection
from llmasos.userland.sdk.dialogue import Message, Setup
from llmasos.userland.sdk.options import GroupChanges, Options, SpawnOptions
from llmasos.userland.sdk.script import Piece, Stream
from llmasos.userland.sdk.tool_calls import ToolCall
from llmasos.userland.sdk.turns import Answer


class System(Connection):
    """A connection to a kernel: `with System.connect() as system`."""

    # --- processes ---

    def spawn(
        self, model: Model = "", prompt: options.Prompt | None = None, **more: Unpack[SpawnOptions]
    ) -> Process:
        """Start a process on a model (empty: the system's default) and return a handle on it.

        The keywords are the fields of `Options`. Raises SyscallError: ENOENT, ENOEXEC, EIO, ENOMEM or ENOTSUP if the
        model cannot be used, EINVAL for an option that cannot be, E2BIG for a prompt longer than the context, EDQUOT
        where a control group's limit is reached.
        """
        known_keywords("spawn", more, SpawnOptions.__annotations__)
        chosen = Options(model=model_name(model) or self.kernel.boot.default_model, prompt=prompt, **more)
        pid, info, setup = self.run(options.spawn(chosen))
        return Process(self, pid, info, chosen.system, setup)

    def process(self, pid: int) -> Process:
        """A handle on a running LLM process of any program. Raises ESRCH if there is none, EINVAL for a program or
        driver."""
        info = self(Getinfo(pid))
        if not info.model:
            raise SyscallError(Errno.EINVAL, f"process {pid} ({info.name}) is a {info.kind.value}, not an LLM process")
        model = self.run(actions.model_in_memory(info.model, info.device))
        known = self.run(turns.known_of(pid)).dialogue
        return Process(self, pid, model, setup=known.setup if known is not None else None)

    def ps(self) -> list[ProcessInfo]:
        """The process table: a row for each program, driver and LLM process."""
        rows: list[ProcessInfo] = []
        while page := self(Ps(after=rows[-1].pid if rows else 0)):
            rows.extend(page)
        return rows

    def restore(
        self,
        path: str | os.PathLike[str],
        *,
        name: str = "",
        device: str = "",
        detached: bool = False,
        passphrase: str = "",
        model: Model = "",
    ) -> Process:
        """Start a process from an image that `Process.checkpoint` wrote; it goes on where that process was.

        An empty `name`, `device` or `model` means the one in the image. A `detached` process outlives this program.
        Raises SyscallError: ENOENT, EPERM (wrong passphrase), EINVAL, EIO (damaged).
        """
        file = options.file_path(path)
        where = self.run(options.located(model)) if model else ""
        pid = self(Restore(file, name, device, detached, passphrase.encode(), where))
        return self.process(pid)

    def models(self) -> list[ModelInfo]:
        """The models that the system knows: those in memory, and those that it can load by name."""
        return self(Models())

    def load(self, model: Model, dtype: Dtype = "", device: str = "") -> ModelInfo:
        """Bring a model into memory.

        `dtype`: fp32, bf16, int8 or int4 (empty: the device's default); `device`: empty for the first. Raises
        SyscallError: ENOENT (no such model), ENOEXEC (unsupported architecture), EIO (broken files), ENOMEM, ENOTSUP
        (unsupported dtype).
        """
        path = self.run(options.located(model))
        return self(Pagein(path, device, dtype_name(dtype)))

    def estimate(self, model: Model, dtype: Dtype = "", device: str = "", context: int = 0) -> EstimateInfo:
        """The memory that a model would take with one context of `context` tokens (0: the longest that it can have
        there), and the models that would have to make room. Loads nothing. Raises ENOENT, ENOEXEC, EIO, ENOTSUP as `load`
        does."""
        path = self.run(options.located(model))
        return self(Estimate(path, device, dtype_name(dtype), context))

    def evict(self, model: Model, dtype: Dtype = "", device: str = "", *, force: bool = False) -> None:
        """Take a model's weights out of memory. A model that processes use raises EBUSY, unless `force`: its processes
        then keep their KV, and the weights come back when one of them wants to run."""
        path = self.run(options.located(model))
        self(Evict(path, device, dtype_name(dtype), force))

    def advise(self, model: Model, advice: Advice, dtype: Dtype = "", device: str = "") -> None:
        """Say how a model will be used: WILLNEED loads it in the background, DONTNEED lets it go first, PIN loads it and
        keeps it, NORMAL takes the advice back."""
        path = self.run(options.located(model))
        self(Advise(path, advice, device, dtype_name(dtype)))

    def sched(
        self,
        policy: str = "",
        *,
        max_runs: int = 0,
        step_tokens: int = 0,
        device: str = "",
        victims: str = "",
        evictions: str = "",
    ) -> SchedInfo:
        """Set how a device (empty: the first) is scheduled, and return the settings in force. What is empty or 0 stays.

        `policy`: fair, fcfs, round_robin, mlfq or lottery; `max_runs`: processes in one step at most; `step_tokens`:
        tokens in one step at most; `victims`, which process loses its pages first: cost, lru, fifo or clock; `evictions`,
        which model's weights go first: lru or cost. Each policy may be one of your own, `FILE.py:CLASS`
        (docs/policies.md). Raises EINVAL and ENOENT for one that is none, EPERM without the right ADMIN.
        """
        places = (located_policy(name) for name in (victims, evictions))
        return self(Sched(device, located_policy(policy), max_runs, step_tokens, *places))

    def groups(self, path: str = "/") -> list[GroupInfo]:
        """A control group and the groups below it. Raises ENOENT."""
        rows: list[GroupInfo] = []
        while page := self(GroupStat(path, below=True, start=len(rows))):
            rows.extend(page)
        return rows

    def group(self, path: str, **settings: Unpack[GroupChanges]) -> GroupInfo:
        """Change settings of a control group, the fields of `GroupChanges`, and make the group if there is none. A `path`
        without a leading slash is below this program's own group."""
        return self.run(options.group(path, settings))

    def remove_group(self, path: str) -> None:
        """Remove a control group. Raises EBUSY unless it is empty, ENOENT."""
        self(GroupRemove(path))

    def stats(self) -> Stats:
        """The kernel's counters since it was booted."""
        return self(StatsCall())

    def wait(self, pid: int = 0, timeout: float | None = None) -> ExitInfo:
        """Wait until a child of this program (`pid` 0: any), or a detached process, has ended, and reap it. Raises ECHILD
        if there is none, ETIME after `timeout` seconds (None: never)."""
        return self(Wait(pid, timeout))

    def language(self, model: ModelInfo) -> Language:
        """The tokenizer and chat format of a model. Raises ENOENT or EIO if its files have none."""
        return language_of(model)


def _user(text: str) -> Message:
    return {"role": "user", "content": arguments.text(text)}


class Process:
    """A handle on an LLM process: text in, text out. Entered by `with`, it ends the process when it is left.

    A process answers one question at a time: a second one raises EBUSY and changes nothing while this program still hears
    the answer to the first.

    Of every answer: `max_tokens` bounds its tokens (None: what the model's store says, as Ollama's `num_predict` does,
    else 256); it ends before the first of the stop strings `stop` (none given: those of the model's store); after
    `deadline` seconds it ends with what there is by then.
    """

    system: System
    """The system that it runs on."""
    pid: int
    """Its number in the process table."""
    model: ModelInfo
    """The model that it runs, in memory; `move` and `exec` change it."""

    def __init__(
        self,
        system: System,
        pid: int,
        model: ModelInfo,
        instructions: str = "",
        setup: Setup | None = None,
    ) -> None:
        """A handle on process `pid`; `System.spawn` and `System.process` make them."""
        self.system = system
        self.pid = pid
        self.model = model
        self._instructions = instructions
        self._setup = setup or Setup()  # holds where a call does not say

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def __repr__(self) -> str:
        return f"<Process {self.pid} on {self.model.name}>"

    @property
    def language(self) -> Language:
        """The tokenizer and chat format of its model."""
        return self.system.language(self.model)

    # --- text ---

    def say(
        self,
        text: str,
        max_tokens: int | None = None,
        *,
        stop: Strings = (),
        deadline: float | None = None,
        allow_special: bool = False,
    ) -> Generator[str, None]:
        """Say `text` as the user, and stream the answer without its thoughts. Leaving the loop early interrupts the
        answer.

        A control token that the text spells (`<|im_end|>`) stays text, unless `allow_special`. Raises SyscallError:
        ENOTSUP (a model without a chat template), EINVAL, E2BIG (longer than the context), EBUSY, EDQUOT (a limit is
        reached).
        """
        turn = self._said([_user(text)], max_tokens, stop, deadline, allow_special)
        return script.stream(self.system.kernel, turn, self.pid)

    def pieces(
        self,
        text: str,
        max_tokens: int | None = None,
        *,
        stop: Strings = (),
        deadline: float | None = None,
        allow_special: bool = False,
    ) -> Generator[Piece, None]:
        """Say `text` as the user, and stream all of the answer: the `kind` of a piece is "thought", "answer" or "call".
        The rest is as for `say`."""
        turn = self._said([_user(text)], max_tokens, stop, deadline, allow_special)
        return script.pieces(self.system.kernel, turn, self.pid)

    def turn(
        self,
        said: str | Message | Sequence[Message],
        max_tokens: int | None = None,
        *,
        stop: Strings = (),
        deadline: float | None = None,
        allow_special: bool = False,
    ) -> Answer:
        """Say something, a text or messages of any roles, and return the whole answer: its text, thought and calls of
        tools. The rest is as for `say`."""
        messages = [_user(said)] if isinstance(said, str) else arguments.messages(said, "what is said is text")
        return self.system.run(
            turns.answered(self._said(messages, max_tokens, stop, deadline, allow_special), self.pid)
        )

    def reply_tool(
        self, call: ToolCall, result: str, max_tokens: int | None = None, *, stop: Strings = ()
    ) -> Answer:
        """Tell the model the result of the one tool that it called, and return its answer."""
        return self.reply_tools([(call, result)], max_tokens, stop=stop)

    def reply_tools(
        self, results: Sequence[tuple[ToolCall, str]], max_tokens: int | None = None, *, stop: Strings = ()
    ) -> Answer:
        """Tell the model the results of the tools that it called, in the order of the calls, and return its answer."""
        return self.turn(turns.results_of(results), max_tokens, stop=stop)

    def call_grammar(
        self,
        tools: Sequence[dict[str, Any]] | None = None,
        choice: str = "required",
        *,
        parallel: bool = True,
    ) -> str:
        """A grammar of exactly the calls of tools that its model can make: Lark, as llguidance reads it, for engines and
        servers that constrain a decoder by one. This system does not constrain its own decodes yet.

        `tools`: their definitions (None: the process's own). `choice`: "required" (calls and nothing else), "auto" (text,
        calls, or both) or the name of a tool (one call of it); without `parallel` one call at most. Raises EINVAL without
        tools or for an unknown choice; ENOTSUP for a model whose template shows no form of calls, and for a schema that
        its form cannot express.
        """
        return self.system.run(call_choice.grammar_of(self.language, self.pid, tools, choice, parallel=parallel))

    def _said(
        self,
        messages: Sequence[Message],
        max_tokens: int | None,
        stop: Strings,
        deadline: float | None,
        allow_special: bool,
    ) -> Stream[Finish]:
        said = turns.say(
            self.language,
            self.pid,
            messages,
            max_tokens,
            stop_strings(stop),
            None,
            self._instructions,
            deadline,
            allow_special=allow_special,
        )
        return turns.alone(self.system.talking, self.pid, said)

    def ask(
        self, text: str, max_tokens: int | None = None, *, stop: Strings = (), allow_special: bool = False
    ) -> str:
        """Say `text` as the user and return the whole answer without its thoughts. The rest is as for `say`."""
        pieces = self.say(text, max_tokens, stop=stop, allow_special=allow_special)
        return "".join(piece for piece in pieces)

    def feed(self, text: str, *, allow_special: bool = False) -> int:
        """Append plain text to the log, and return the log's new length in tokens. A control token that the text spells
        stays text, unless `allow_special`. Raises EBUSY while it decodes, E2BIG, EINVAL."""
        return self.system.run(options.feed_text(self.language, self.pid, text, allow_special=allow_special))

    def feed_ids(self, ids: Ids) -> int:
        """Append token ids (a sequence of integers, an array or a tensor) to the log, and return the log's new length.
        Raises EBUSY while it decodes, E2BIG, EINVAL."""
        return self.system(Feed(self.pid, arguments.ids(ids)))

    def generate(
        self,
        max_tokens: int | None = None,
        *,
        stop: Strings = (),
        sampler: Sampler | None = None,
        deadline: float | None = None,
    ) -> str:
        """Let it continue its log, and return the text. A stop string ends the text before it, and the log is cut there
        too. `sampler` replaces the process's own from here on (None: keeps it)."""
        going = answers.generate(self.language, self.pid, self._tokens(max_tokens), self._stops(stop), sampler, deadline)
        return self.system.run(turns.alone(self.system.talking, self.pid, going))

    def stream(
        self,
        max_tokens: int | None = None,
        *,
        stop: Strings = (),
        sampler: Sampler | None = None,
        deadline: float | None = None,
    ) -> Generator[str, None]:
        """Let it continue its log, and stream the text. Leaving the loop early interrupts it. The rest is as for
        `generate`."""
        going = answers.stream(self.language, self.pid, self._tokens(max_tokens), self._stops(stop), sampler, deadline)
        alone = turns.alone(self.system.talking, self.pid, going)
        return script.stream(self.system.kernel, alone, self.pid)

    def _tokens(self, given: int | None) -> int:
        return self._setup.tokens(given, MAX_TOKENS, self.model.context)

    def _stops(self, given: Strings) -> list[str]:
        return stop_strings(given) or self._setup.stop

    def follow(self, position: int = 0) -> Generator[str, None]:
        """Stream the text from a position of the log (in tokens) to the end of the decode under way. Leaving the loop
        early interrupts the decode."""
        return script.stream(self.system.kernel, turns.follow_at(self.language, self.pid, position), self.pid)

    def tokens(self) -> list[int]:
        """Its token log: the ids of its whole context."""
        return self.system.run(actions.log_of(self.pid))

    def text(self) -> str:
        """Its token log as text, without special tokens."""
        return self.language.decode(self.tokens())

    def truncate(self, length: int) -> int:
        """Cut the log down to `length` tokens, and return its length. Raises EBUSY while it decodes, EINVAL beyond its
        end."""
        return self.system.run(turns.cut(self.pid, length))

    # --- process ---

    def info(self) -> ProcessInfo:
        """Its row of the process table. Raises ESRCH once it has ended."""
        return self.system(Getinfo(self.pid))

    def fork(
        self, count: int = 1, *, same_seed: bool = False, detached: bool = False, name: str = ""
    ) -> list[Process]:
        """Make `count` copies of it, which share its pages until one of them writes. Each samples with a seed of its own,
        unless `same_seed`; a `detached` one outlives this program. `name` is theirs (empty: its own); several are called
        NAME-1, NAME-2 and so on."""
        pids = self.system(Fork(self.pid, count, same_seed, detached, name))
        return [Process(self.system, pid, self.model, self._instructions, self._setup) for pid in pids]

    def checkpoint(self, path: str | os.PathLike[str], *, kv: bool = True, passphrase: str = "") -> CheckpointInfo:
        """Write its image to a file, from which `System.restore` starts it again; the process itself goes on. Without
        `kv` the file is small, and restoring computes the context again. A `passphrase` encrypts the file."""
        return self.system(Checkpoint(self.pid, options.file_path(path), kv, passphrase.encode()))

    def signal(self, signal: Signal) -> None:
        """Send it a signal. Raises ESRCH once it has ended."""
        self.system(Kill(self.pid, signal))

    def stop(self) -> None:
        """Stop it, also in the midst of an answer. Its context stays."""
        self.signal(Signal.STOP)

    def cont(self) -> None:
        """Let it go on after `stop`."""
        self.signal(Signal.CONT)

    def interrupt(self) -> None:
        """Interrupt the decode under way; what it has said so far stays in the log."""
        self.signal(Signal.INT)

    def kill(self) -> None:
        """End it at once. `wait` reaps it."""
        self.signal(Signal.KILL)

    def nice(self, value: int, sched_class: SchedClass | None = None) -> None:
        """Set its share of the device, from -20 (largest) to 19 (smallest), and its scheduling class (None: keeps it)."""
        self.system(Setsched(self.pid, value, sched_class))

    def detach(self) -> None:
        """Let it live on when this program ends. Any program of the kernel may `wait` for it then."""
        self.system(Detach(self.pid))

    def rename(self, name: str) -> str:
        """Give it another name, and return the old one. Several processes may have the same."""
        return self.system(Rename(self.pid, name))

    def move(self, device: str) -> None:
        """Move it to another device while it runs. Its answer goes on, and its readers notice nothing. Returns when it
        has arrived. After an error it is where it was: ENODEV, EBUSY, ENOMEM, E2BIG, ENOTSUP, ERESTART (the driver there
        is down).
        """
        self.system(Setsched(self.pid, device=device))
        self.model = msgspec.structs.replace(self.model, device=device)

    def exec(self, model: Model, *, dtype: Dtype = "", tokens: Ids | None = None) -> int:
        """Give it another model while it is idle, and return the length of its log in tokens. Its pid, limits, group,
        sampler and nice value stay.

        Its context goes with it. A model with the same vocabulary takes the tokens as they are; for another one they
        become text and then its tokens, a conversation by the chat templates of both. `tokens` replaces the context
        instead. After an error the process is as it was: EBUSY, E2BIG (too long for that model), EAGAIN (another program
        changed its log).
        """
        self.model, length = self.system.run(options.change_model(self.pid, model, dtype, tokens))
        return length

    def join(self, group: str) -> None:
        """Move it into another control group."""
        self.system(GroupMove(self.pid, group))

    def limits(self, limits: Limits | None = None) -> Limits:
        """Set its limits (None: none are changed), and return those that were in force before."""
        return self.system(Setlimits(self.pid, limits))

    def wait(self, timeout: float | None = None) -> ExitInfo:
        """Wait until it has ended, and reap it. Raises ECHILD if it is neither a child of this program nor detached,
        ETIME after `timeout` seconds (None: never)."""
        return self.system.wait(self.pid, timeout)

    def end(self) -> None:
        """Kill and reap it. Does nothing if it has ended already."""
        self.system.run(actions.end([self.pid]))
