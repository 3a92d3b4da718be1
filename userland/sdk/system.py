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
        """Start a process on a model (default: the system's). See `Options` for what it takes."""
        known_keywords("spawn", more, SpawnOptions.__annotations__)
        chosen = Options(model=model_name(model) or self.kernel.boot.default_model, prompt=prompt, **more)
        pid, info, heeds = self.run(options.spawn(chosen))
        return Process(self, pid, info, chosen.system, heeds)

    def process(self, pid: int) -> Process:
        """A handle on an LLM process that exists, whoever spawned it. Raises ESRCH, EINVAL."""
        info = self(Getinfo(pid))
        if not info.model:
            raise SyscallError(Errno.EINVAL, f"process {pid} ({info.name}) is a {info.kind.value}, not an LLM process")
        model = self.run(actions.model_in_memory(info.model, info.device))
        known = self.run(turns.known_of(pid)).dialogue
        return Process(self, pid, model, heeds=known.setup if known is not None else None)

    def ps(self) -> list[ProcessInfo]:
        """The whole process table."""
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
        """Start a process from an image that `Process.checkpoint` has written; it goes on where that one was. Empty: as
        before. Raises ENOENT, EPERM (the passphrase is wrong), EINVAL, EIO (the file is damaged)."""
        file = options.file_path(path)
        where = self.run(options.located(model)) if model else ""
        pid = self(Restore(file, name, device, detached, passphrase.encode(), where))
        return self.process(pid)

    def models(self) -> list[ModelInfo]:
        return self(Models())

    def load(self, model: Model, dtype: Dtype = "", device: str = "") -> ModelInfo:
        """Bring a model into memory."""
        path = self.run(options.located(model))
        return self(Pagein(path, device, dtype_name(dtype)))

    def estimate(self, model: Model, dtype: Dtype = "", device: str = "", context: int = 0) -> EstimateInfo:
        """What a model would take, with one context of so many tokens (0: as many as it can have there), and who would
        have to go for it. Nothing is loaded. Raises ENOENT, ENOEXEC, EIO, ENOTSUP as `load` does."""
        path = self.run(options.located(model))
        return self(Estimate(path, device, dtype_name(dtype), context))

    def evict(self, model: Model, dtype: Dtype = "", device: str = "", *, force: bool = False) -> None:
        """Take a model out of memory; with `force` even if processes use it, whose KV stays."""
        path = self.run(options.located(model))
        self(Evict(path, device, dtype_name(dtype), force))

    def advise(self, model: Model, advice: Advice, dtype: Dtype = "", device: str = "") -> None:
        """Say how a model will be used; see the system call."""
        path = self.run(options.located(model))
        self(Advise(path, advice, device, dtype_name(dtype)))

    def sched(self, policy: str = "", *, max_runs: int = 0, step_tokens: int = 0, device: str = "") -> SchedInfo:
        """Change, or only report, how a device is scheduled."""
        return self(Sched(device, policy, max_runs, step_tokens))

    def groups(self, path: str = "/") -> list[GroupInfo]:
        """A control group and all in it."""
        rows: list[GroupInfo] = []
        while page := self(GroupStat(path, below=True, start=len(rows))):
            rows.extend(page)
        return rows

    def group(self, path: str, **settings: Unpack[GroupChanges]) -> GroupInfo:
        """Change settings of a control group (the fields of GroupSettings), which is made if it is not there."""
        return self.run(options.group(path, settings))

    def remove_group(self, path: str) -> None:
        self(GroupRemove(path))

    def stats(self) -> Stats:
        return self(StatsCall())

    def wait(self, pid: int = 0, timeout: float | None = None) -> ExitInfo:
        """Wait for a child (0: any) to end, and reap it."""
        return self(Wait(pid, timeout))

    def language(self, model: ModelInfo) -> Language:
        """A model's tokenizer and chat format."""
        return language_of(model)


def _user(text: str) -> Message:
    return {"role": "user", "content": arguments.text(text)}


class Process:
    """A handle on an LLM process: text in, text out. An `with` ends the process where it ends itself.

    A process answers one question at a time: a second one is refused with EBUSY while this program still hears the answer
    to the first, and changes nothing.

    `max_tokens` bounds an answer; left out, the model's store says how many (Ollama's `num_predict`), else it is 256. An
    answer also ends at a stop string: those of the call, else the store's.
    """

    def __init__(
        self,
        system: System,
        pid: int,
        model: ModelInfo,
        instructions: str = "",
        heeds: Setup | None = None,
    ) -> None:
        self.system = system
        self.pid = pid
        self.model = model
        self._instructions = instructions
        self._heeds = heeds or Setup()  # where a call does not say

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
        """Say something and stream the answer. Leaving the loop early interrupts it. What it spells stays text, control
        tokens (`<|im_end|>`) too, unless `allow_special`."""
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
        """Say something and stream all of the answer: each piece has a `kind`, which is "thought", "answer" or "call"."""
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
        """Say something (a text, or messages of any roles) and return the whole answer: its text, thought and calls."""
        messages = [_user(said)] if isinstance(said, str) else arguments.messages(said, "what is said is text")
        return self.system.run(
            turns.answered(self._said(messages, max_tokens, stop, deadline, allow_special), self.pid)
        )

    def reply_tool(
        self, call: ToolCall, result: str, max_tokens: int | None = None, *, stop: Strings = ()
    ) -> Answer:
        """Give what came of the one call that it made; returns what it says to that."""
        return self.reply_tools([(call, result)], max_tokens, stop=stop)

    def reply_tools(
        self, results: Sequence[tuple[ToolCall, str]], max_tokens: int | None = None, *, stop: Strings = ()
    ) -> Answer:
        """Give what came of the calls that it made, in their order; returns what it says to that."""
        return self.turn(turns.results_of(results), max_tokens, stop=stop)

    def call_grammar(
        self,
        tools: Sequence[dict[str, Any]] | None = None,
        choice: str = "required",
        *,
        parallel: bool = True,
    ) -> str:
        """A grammar (Lark, as llguidance reads it) of just the calls that its model's form has for its tools, or for
        `tools`: for engines and servers that hold a decoder to one. No decode of this system is held to it yet.

        `choice`: "required" (calls and nothing else), "auto" (text, calls, or both) or the name of a tool (one call of
        it); without `parallel` one call at most. Raises EINVAL without tools or for an unknown choice, ENOTSUP for a
        model that shows no form, and for schemas that a form without JSON cannot be held to.
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
        """Say something and return the whole answer."""
        pieces = self.say(text, max_tokens, stop=stop, allow_special=allow_special)
        return "".join(piece for piece in pieces)

    def feed(self, text: str, *, allow_special: bool = False) -> int:
        """Append plain text to the context; returns its length in tokens. Control tokens that it spells stay text, unless
        `allow_special`."""
        return self.system.run(options.feed_text(self.language, self.pid, text, allow_special=allow_special))

    def feed_ids(self, ids: Ids) -> int:
        """Append token ids (any sequence of integers, an array or a tensor too) to the context; returns its length."""
        return self.system(Feed(self.pid, arguments.ids(ids)))

    def generate(
        self,
        max_tokens: int | None = None,
        *,
        stop: Strings = (),
        sampler: Sampler | None = None,
        deadline: float | None = None,
    ) -> str:
        """Let it go on; returns the text. A stop string ends the text before it, and the log with it."""
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
        """Let it go on, giving the text as it comes. Leaving the loop early interrupts it."""
        going = answers.stream(self.language, self.pid, self._tokens(max_tokens), self._stops(stop), sampler, deadline)
        alone = turns.alone(self.system.talking, self.pid, going)
        return script.stream(self.system.kernel, alone, self.pid)

    def _tokens(self, given: int | None) -> int:
        return self._heeds.tokens(given, MAX_TOKENS, self.model.context)

    def _stops(self, given: Strings) -> list[str]:
        return stop_strings(given) or self._heeds.stop

    def follow(self, position: int = 0) -> Generator[str, None]:
        """The text from a position of the log to the end of the decode under way; leaving early interrupts it."""
        return script.stream(self.system.kernel, turns.follow_at(self.language, self.pid, position), self.pid)

    def tokens(self) -> list[int]:
        """Its token log."""
        return self.system.run(actions.log_of(self.pid))

    def text(self) -> str:
        """Its token log as text, special tokens left out."""
        return self.language.decode(self.tokens())

    def truncate(self, length: int) -> int:
        """Cut the log down to `length` tokens."""
        return self.system.run(turns.cut(self.pid, length))

    # --- process ---

    def info(self) -> ProcessInfo:
        return self.system(Getinfo(self.pid))

    def fork(self, count: int = 1, *, same_seed: bool = False, detached: bool = False) -> list[Process]:
        """Copies of it; pages are shared until one of them writes."""
        pids = self.system(Fork(self.pid, count, same_seed, detached))
        return [Process(self.system, pid, self.model, self._instructions, self._heeds) for pid in pids]

    def checkpoint(self, path: str | os.PathLike[str], *, kv: bool = True, passphrase: str = "") -> CheckpointInfo:
        """Write its image to a file, from which `System.restore` starts it again; it goes on meanwhile. Without `kv` the
        file is small, and the context is computed again. With a passphrase it is encrypted."""
        return self.system(Checkpoint(self.pid, options.file_path(path), kv, passphrase.encode()))

    def signal(self, signal: Signal) -> None:
        self.system(Kill(self.pid, signal))

    def stop(self) -> None:
        self.signal(Signal.STOP)

    def cont(self) -> None:
        self.signal(Signal.CONT)

    def interrupt(self) -> None:
        self.signal(Signal.INT)

    def kill(self) -> None:
        self.signal(Signal.KILL)

    def nice(self, value: int, sched_class: SchedClass | None = None) -> None:
        self.system(Setsched(self.pid, value, sched_class))

    def move(self, device: str) -> None:
        """Move it to another device, as it runs: its answer goes on, and whoever reads it notices nothing. Returns once
        it lives there. On any error it is where it was: ENODEV, EBUSY, ENOMEM, E2BIG, ENOTSUP, ERESTART (the driver there
        is down)."""
        self.system(Setsched(self.pid, device=device))
        self.model = msgspec.structs.replace(self.model, device=device)

    def exec(self, model: Model, *, dtype: Dtype = "", tokens: Ids | None = None) -> int:
        """Give it another model while it is idle; pid, limits, group, sampler and nice value stay. Returns the length of
        its log in tokens.

        Its context goes with it: a model with the same words takes the tokens as they are, for another one they are
        turned into text and back, a conversation by the chat templates of the two. Or pass `tokens`. On any error it is
        as it was: EBUSY, E2BIG (too long for that model), EAGAIN (others have changed its log meanwhile).
        """
        self.model, length = self.system.run(options.change_model(self.pid, model, dtype, tokens))
        return length

    def join(self, group: str) -> None:
        """Move it into another control group."""
        self.system(GroupMove(self.pid, group))

    def limits(self, limits: Limits | None = None) -> Limits:
        """Replace its limits and return the old ones; None only reports."""
        return self.system(Setlimits(self.pid, limits))

    def wait(self, timeout: float | None = None) -> ExitInfo:
        """Wait until it has ended, and reap it."""
        return self.system.wait(self.pid, timeout)

    def end(self) -> None:
        """Kill and reap it; harmless if it has gone already."""
        self.system.run(actions.end([self.pid]))
