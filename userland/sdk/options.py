"""The options that an author starts a process with, and the system calls that they become."""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from llmasos.modelfiles import names, stores
from llmasos.modelfiles.ollama_options import Started
from llmasos.syscalls import pids
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import (
    BootInfo,
    GroupInfo,
    GroupSettings,
    Kind,
    Limits,
    ModelInfo,
    ProcessInfo,
    Sampler,
    SamplingDefaults,
    SchedClass,
)
from llmasos.syscalls.table import (
    Call,
    Exec,
    Feed,
    Getinfo,
    GroupCreate,
    GroupSet,
    GroupStat,
    Models,
    Restore,
    Spawn,
)
from llmasos.userland.sdk import actions, arguments, turns
from llmasos.userland.sdk.actions import Language
from llmasos.userland.sdk.arguments import Dtype, Ids, Model, dtype_name, model_name
from llmasos.userland.sdk.dialogue import Entry, Message, Setup, packed
from llmasos.userland.sdk.script import Script, ask
from llmasos.userland.sdk.template import OF_THE_TEMPLATE

R = TypeVar("R")
UNLIMITED = Limits()
_SAMPLING = SamplingDefaults.__struct_fields__

Prompt = str | Message | Sequence[Message] | Ids  # plain text, one chat message or several, or token ids


@dataclass(slots=True, frozen=True)
class Options:
    """What `System.spawn` takes, as one record.

    A sampling parameter that is None comes from the model's makers (its generation_config.json), and is off if they
    advise nothing. A model of Ollama's store starts as Ollama starts it, with the store's system text and stop strings
    too. `defaults=False` ignores all of these.
    """

    model: str = "tiny"
    prompt: Prompt | None = None  # plain text, chat messages, or token ids
    name: str = ""
    system: str = ""  # the system prompt of a conversation
    nice: int = 0  # -20 (largest share of the device) to 19 (smallest)
    sched_class: SchedClass = SchedClass.FAIR
    budget: float = 0.0  # of a REALTIME process: seconds of its device's time (0: a hundredth)
    period: float = 0.0  # in each so many seconds (0: a tenth)
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    defaults: bool = True  # use the advice of the model's makers and of its store
    seed: int | None = None  # of the sampler; None: one of its own, from the kernel
    limits: Limits = UNLIMITED
    dtype: Dtype = ""  # fp32, bf16, int8 or int4; empty: the device's default
    device: str = ""  # empty: the first
    once: bool = False  # exit when the first decode ends
    detached: bool = False  # outlive this program
    group: str = ""  # control group; empty: the program's
    tools: Sequence[Mapping[str, Any]] | None = None  # that the model may call, defined as templates take them
    thoughts: Literal["", "drop", "keep"] = ""  # of earlier answers; empty: as the template has it
    thinking: bool | str | None = None  # on, off, or an effort, by the template's own switch
    thought_tokens: int | None = None  # of one answer at most; then the model is made to answer
    template: Mapping[str, Any] | None = None  # further variables of the template
    chat_template: str = ""  # name of the template, if the model has several
    allow_special: bool = False  # control tokens that `system` and messages spell are control tokens

    @property
    def chats(self) -> bool:
        """Whether any option is for a conversation."""
        return bool(
            self.system
            or self.tools is not None
            or self.thoughts
            or self.thinking is not None
            or self.thought_tokens is not None
            or self.template
            or self.chat_template
        )

    def sampler(self, advised: SamplingDefaults) -> Sampler | None:
        """The sampler, or None for the kernel's default: greedy, with a seed of the process's own. A field is the
        caller's, else that of the model's makers, else off."""
        chosen: dict[str, float] = {}
        for name in _SAMPLING:
            if (value := getattr(self, name)) is None and self.defaults:
                value = getattr(advised, name)
            if value is not None:
                chosen[name] = value
        sampler = Sampler(seed=self.seed or 0, **chosen)  # type: ignore[arg-type]  # top_k is an int
        return None if self.seed is None and sampler == Sampler() else sampler


def group(path: str, changes: dict[str, Any]) -> Script[GroupInfo]:
    """Change settings of a control group; make it if there is none."""
    try:
        (found,) = yield from ask(GroupStat(path))
    except SyscallError as error:
        if error.errno is not Errno.ENOENT:
            raise
        return (yield from ask(GroupCreate(path, GroupSettings(**changes))))
    yield from ask(GroupSet(path, msgspec.structs.replace(found.settings, **changes)))
    (found,) = yield from ask(GroupStat(path))
    return found


def model_path(model: Model) -> str:
    """The name by which to tell the kernel of a model. A directory or file gets its absolute path, because the kernel has
    another working directory; so does a model in another program's store (`ollama:llama3.2:1b`). Raises ENOENT if that
    store does not have it."""
    model = model_name(model)
    explicit = model.startswith(("./", "../", "/", "~")) or model in (".", "..")
    if explicit or (os.sep in model and os.path.exists(model)):
        return os.path.abspath(os.path.expanduser(model))
    return names.locate(model) or model


def file_path(path: str | os.PathLike[str]) -> str:
    """The absolute path of a file, for the kernel. Raises EINVAL for a name that no file can have, ENOENT for `~name`
    without a user of that name."""
    name = os.fspath(path)
    if not isinstance(name, str) or not name or "\0" in name:
        raise SyscallError(Errno.EINVAL, f"a file's name is text that is not empty, found {name!r:.80}")
    place = os.path.expanduser(name)
    if name.startswith("~") and place == name and not os.path.lexists(name):
        raise SyscallError(
            Errno.ENOENT,
            f"{name}: nobody here is called {name[1:].partition(os.sep)[0]!r}; ./{name} is a file",
        )
    if place.endswith(os.sep) and not os.path.isdir(place):
        raise SyscallError(Errno.EINVAL, f"{name} ends as a directory does; name a file")
    return os.path.abspath(place)


def located(model: Model) -> Script[str]:
    """The name of a model in a system call. A directory in the working directory may be named bare (`mine`, not only
    `./mine`), unless the system knows a model of that name."""
    path, name = model_path(model), model_name(model)
    if path == name and (os.path.isfile(os.path.join(name, "config.json")) or os.path.isfile(name)):
        rows = yield from ask(Models())
        if all(row.name != name for row in rows):
            return os.path.abspath(name)
    return path


def spawn(options: Options) -> Script[tuple[int, ModelInfo, Setup]]:
    """Start a process; returns its pid, its model, and the defaults for its calls. A sampled process without a seed gets
    a random one. Loads a tokenizer only if there is text to encode."""
    model, dtype = (yield from located(options.model)), dtype_name(options.dtype)
    info = yield from paged_in(model, dtype, options.device)
    started = stores.started(options.model) if options.defaults else Started()
    if options.seed is None and started.seed is not None:
        options = replace(options, seed=started.seed)
    ids, records = initial(options, info, started)
    sampler = options.sampler(msgspec.structs.replace(info.sampling, **started.sampling))
    if sampler is not None and options.seed is None:
        sampler = Sampler(
            sampler.temperature,
            sampler.top_k,
            sampler.top_p,
            sampler.min_p,
            sampler.repetition_penalty,
            int.from_bytes(os.urandom(7)),
        )
    pid = yield from ask(
        Spawn(
            model,
            ids,
            sampler,
            options.name,
            options.sched_class,
            options.nice,
            options.limits,
            options.once,
            options.detached,
            options.device,
            dtype,
            options.group,
            records,
            options.budget,
            options.period,
        )
    )
    return pid, info, setup_by_store(started)


def pid_of(written: int | str) -> int:
    """A pid, which may be written as `ps` prints it. Raises SyscallError EINVAL."""
    number = pids.parse(written.strip()) if isinstance(written, str) else written
    if number is None:
        raise Errno.EINVAL(f'{written!r} is no pid; wanted a number, or what ps prints for other users\', as "1001:7"')
    return number


def ticket_of(written: bytes | str) -> bytes:
    """The ticket of a grant, which may be written as the shell's `grant` prints it. Raises SyscallError EINVAL."""
    try:
        return bytes.fromhex(written) if isinstance(written, str) else written
    except ValueError:
        raise Errno.EINVAL("a ticket is what `grant` has given: bytes, or digits and the letters a to f") from None


def handle(pid: int) -> Script[tuple[ModelInfo, Setup | None]]:
    """What a handle on a process knows: its model, and the variables of its conversation."""
    info = yield from ask(Getinfo(pid))
    if not info.model:
        raise no_llm_process(info)
    model = yield from actions.model_in_memory(info.model, info.device)
    known = (yield from turns.known_of(pid)).dialogue
    return model, known.setup if known is not None else None


def files_of(things: Sequence[int | str]) -> Script[list[str]]:
    """The files of the models of these processes, and of those in these groups: who talks with one reads its words."""
    names: set[str] = set()
    for thing in things:
        pids = [thing] if isinstance(thing, int) else []
        if isinstance(thing, str):
            groups = yield from ask(GroupStat(thing, below=True))
            pids = [pid for group in groups for pid in group.processes]
        for pid in pids:
            names.add((yield from ask(Getinfo(pid))).model)
    rows = yield from ask(Models())
    paths = {row.path for row in rows if {row.name, row.path} & names}
    found: list[str] = []
    for path in sorted(one for one in paths if os.path.isabs(one) and os.path.exists(one)):
        links = [os.path.join(path, one) for one in os.listdir(path)] if os.path.isdir(path) else [path]
        found += [path, *(os.path.realpath(one) for one in links if os.path.islink(one))]
    return found


def hidden(boot: BootInfo) -> list[Path]:
    """The kernel's directories."""
    journal = [os.path.dirname(boot.journal_path)] if boot.journal_path else []
    return [Path(one) for one in (boot.runtime, *journal, boot.audit) if one]


def restore(image: Restore, model: Model) -> Script[tuple[int, ModelInfo, Setup | None]]:
    """Start a process from an image, on this model (empty: the one in the image); returns its pid, and what a handle
    knows."""
    if model:
        image = msgspec.structs.replace(image, model=(yield from located(model)))
    pid = yield from ask(image)
    try:
        found, setup = yield from handle(pid)
    except GeneratorExit:  # it may make no more calls
        raise
    except BaseException:  # its caller will have no handle on it
        yield from actions.end([pid])
        raise
    return pid, found, setup


def paged_in(model: str, dtype: str, device: str) -> Script[ModelInfo]:
    """A model's row; the model is brought into memory if it is not there. An unknown name raises ENOENT with the nearest
    one that is known."""
    try:
        return (yield from actions.model_of(model, dtype, device))
    except SyscallError as error:
        if error.errno is not Errno.ENOENT:
            raise
        rows = yield from ask(Models())
        elsewhere = sorted({row.device for row in rows if row.device and model in (row.name, row.path)} - {device})
        if elsewhere:
            why = f"no model {model!r} on {device or 'the default device'}: it is in memory on {' and '.join(elsewhere)}"
            how = "" if device else f"; `--device {elsewhere[0]}` (device={elsewhere[0]!r}) names it"
            raise SyscallError(Errno.ENOENT, why + how) from None
        names = {row.name.lower(): row.name for row in rows}
        near = difflib.get_close_matches(model.lower(), names, 1)
        if not near:
            raise
        raise SyscallError(
            Errno.ENOENT, f"no model {model!r}; did you mean {names[near[0]]!r}? ({error.reason})"
        ) from None


def load(model: Model, dtype: str, device: str) -> Script[ModelInfo]:
    """Bring a model into memory."""
    return (yield from paged_in((yield from located(model)), dtype, device))


def of_model(model: Model, call: Callable[[str], Call[R]]) -> Script[R]:
    """Make a call about a model: `call` makes its record from the model's name there."""
    return (yield from ask(call((yield from located(model)))))


def pages(call: Callable[[list[R]], Call[list[R]]]) -> Script[list[R]]:
    """All rows of a table: `call` asks for those after the ones that are there."""
    rows: list[R] = []
    while page := (yield from ask(call(rows))):
        rows += page
    return rows


def not_ended(pid: int, timeout: float) -> SyscallError:
    what = f"process {pid} has not ended" if pid else "no process of this program has ended"
    return SyscallError(Errno.ETIME, f"{what} within {timeout:g} s, and no kernel answers")


def setup_by_store(started: Started) -> Setup:
    """The part of a store's way to start a model that stays with the process."""
    return Setup(system=started.system, stop=list(started.stop), max_tokens=started.max_tokens)


def no_llm_process(row: ProcessInfo) -> SyscallError:
    """The error for a process that has no model where one is wanted: init, a driver, a program."""
    what = "init, the kernel itself" if row.kind is Kind.INIT else f"a {row.kind.value} ({row.name})"
    return SyscallError(Errno.EINVAL, f"process {row.pid} is {what}, not an LLM process; `ps` shows which are (KIND llm)")


def change_model(pid: int, model: Model, dtype: Dtype, tokens: Ids | None) -> Script[tuple[ModelInfo, int]]:
    """Give a process another model; returns the model, and the length of the log in tokens.

    The log goes along: as it is if both models have the same vocabulary, else translated through text (`translate`), or
    replaced by `tokens`.
    """
    from llmasos.userland.sdk.translate import carried, same_words  # late: it imports jinja2

    ids = arguments.ids(tokens) if tokens is not None else None
    model, dtype = (yield from located(model)), dtype_name(dtype)
    row = yield from ask(Getinfo(pid))
    if not row.model:
        raise no_llm_process(row)
    if row.decoding:
        raise SyscallError(Errno.EBUSY, f"process {pid} ({row.name}) is decoding; wait for that, or interrupt it first")
    new = yield from paged_in(model, dtype, row.device)
    if ids is not None:
        yield from ask(Exec(pid, model, ids, dtype))
        return new, len(ids)
    old = yield from actions.model_in_memory(row.model, row.device)
    if old.path == new.path:
        yield from ask(Exec(pid, model, None, dtype))
        return new, row.length
    before, after = actions.language_of(old), actions.language_of(new)
    log = yield from actions.log_of(pid)
    same = same_words(before, after)
    if same and old.vocab == new.vocab:
        yield from ask(Exec(pid, model, None, dtype))
        return new, len(log)
    known = (yield from turns.known_of(pid)).dialogue
    if same and max(log, default=0) < min(old.vocab, new.vocab):  # vocabularies of two sizes with the same words in them
        ids, data = log, [packed(known.entry(log))] if known is not None else []
    else:
        ids, data = carried(before, after, known, log)
    yield from ask(Exec(pid, model, ids, dtype, len(log), data))
    return new, len(ids)


def initial(options: Options, info: ModelInfo, started: Started) -> tuple[list[int], list[bytes]]:
    """The ids to start the process with, and the record of the conversation that they begin. The store's system text is
    used if the caller gives none."""
    prompt, held = options.prompt, setup_by_store(started)
    kept = [packed(Entry(setup=msgspec.structs.replace(held, now=time.time())))] if held != Setup() else []
    if prompt is not None and arguments.is_ids(prompt):
        return arguments.ids(prompt, "a prompt"), kept
    if prompt is None and not options.chats:
        return [], kept
    language = actions.language_of(info)
    if isinstance(prompt, str) and not options.chats:
        return language.encode(prompt, begin=True, control=True), kept
    messages: list[Message] = []
    if isinstance(prompt, str):
        messages.append({"role": "user", "content": prompt})
    elif prompt is not None:
        messages += arguments.messages(prompt)
    system = arguments.text(options.system) or ("" if turns.instructs(messages) else started.system)
    if system and messages and messages[0]["role"] == "system":
        raise SyscallError(Errno.EINVAL, f"{arguments.TWO_SYSTEMS} (`system` is one, and the prompt begins with another)")
    if system:
        messages.insert(0, {"role": "system", "content": system})
    setup = msgspec.structs.replace(setup_of(options, language), stop=held.stop, max_tokens=held.max_tokens)
    chat = language.must_chat(setup.template)
    if not messages:
        return [], [packed(Entry(setup=setup))]
    turn = chat.begin(messages, setup, allow_special=options.allow_special)
    return turn.ids, [packed(turn.entry)]


def setup_of(options: Options, language: Language) -> Setup:
    """The variables of the template. Raises EINVAL for an option that it has no switch for."""
    if options.thoughts not in ("", "drop", "keep"):
        raise SyscallError(Errno.EINVAL, f'thoughts is "drop" or "keep", found {options.thoughts!r:.80}')
    tools = None if options.tools is None else arguments.definitions(options.tools)
    if not isinstance(options.template, Mapping | None):
        raise SyscallError(Errno.EINVAL, f"template is a dictionary of its variables, found {options.template!r:.80}")
    if taken := OF_THE_TEMPLATE & {*(options.template or {})}:
        what = ", ".join(map(repr, sorted(taken)))
        raise SyscallError(Errno.EINVAL, f"template is for further variables, {what} is given by itself")
    thought_tokens = -1 if options.thought_tokens is None else arguments.count(options.thought_tokens, "thought_tokens")
    if options.thought_tokens is not None and thought_tokens < 1:
        raise SyscallError(
            Errno.EINVAL,
            f"thought_tokens is 1 or more, found {thought_tokens}; thinking=False is for no thoughts at all",
        )
    name = options.chat_template or None
    chat = language.must_chat(name)
    if tools:
        chat.check_tools(name)
    variables = chat.variables(options.thinking, dict(options.template or {}), name)
    setup = Setup(
        now=time.time(),
        tools=tools,
        variables=variables,
        thoughts=options.thoughts,
        template=name,
        thought_tokens=thought_tokens,
    )
    packed(Entry(setup=setup))  # raises EINVAL if it cannot be stored
    return setup


def feed_text(language: Language, pid: int, text: str, *, allow_special: bool = False) -> Script[int]:
    """Append plain text to the log; returns its new length in tokens."""
    return ask(Feed(pid, language.encode(arguments.text(text), control=allow_special)))


def passphrase(text: str | None) -> bytes:
    """A passphrase as the kernel takes it; None: there is none. Raises EINVAL for an empty one: who gives it believes
    that the file is encrypted."""
    if text is None:
        return b""
    if not text:
        raise SyscallError(Errno.EINVAL, "passphrase: at least one character, found ''; None writes the file in clear")
    return text.encode()
