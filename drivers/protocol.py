"""The records that kernel and driver exchange; knows neither side.

MINIX 3 is the model: a driver is a process that answers typed messages in order, and may die at any moment. The kernel
owns every decision (which frames, which tokens, who runs); the driver owns tensors. What the driver keeps of a context is
a cache of what the kernel told it: it can be told again, whole, at any time.

One message is one frame: a msgpack-encoded tagged union. Kernel to driver: `ToDriver`; driver to kernel: `FromDriver`.
Requests with a `ref` are answered by exactly one message with the same `ref`: its success record, or `Failed`.
"""

from __future__ import annotations

from typing import dataclass_transform

import msgspec

from llmasos.syscalls import limits
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import Sampler, SamplingDefaults, Tier, TokenLogprobs

VERSION = 2  # of these records: another meaning or form of one is another version
BLOCK_TOKENS = 16  # tokens in a frame of KV
HEARTBEAT_SECONDS = 0.5
REQUEST_BYTES = 2 * limits.MAX_REPLY_BYTES  # the largest message to a driver
ANSWER_BYTES = limits.MAX_REPLY_BYTES  # the largest message from one
FileId = bytes  # of one writing of a file: what it is called matters less


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))  # mypy: subclasses are frozen too
class _Message(msgspec.Struct, array_like=True, frozen=True, tag=True):
    pass


# --- kernel to driver -----------------------------------------------------------------------------------------------


class Probe(_Message):
    """Read a model's configuration (not its weights) and say what it would need. Answer: `Probed`.

    `path` is a directory or a hub name. ENOENT, ENOEXEC (architecture not supported: named), EIO (broken file).
    """

    ref: int
    path: str
    dtype: str  # "" (the driver's default for the model), fp32, bf16, int8, int4


class Load(_Message):
    """Bring a model's weights into memory as `image`, with `frames` frames of KV of its own, and `slots[i]` places for
    frames in tier i + 1 of those declared at the hello. Answer: `Loaded`.

    `kept`: the image is there without its weights (Shed), and gets them back; its frames and contexts stay as they are.
    `room`, if not 0: the weights may take only so many bytes, less than they have; the rest is streamed in each step
    (Probed.stream_bytes). Steps may be asked for and answered meanwhile, of other images; the weights of one image are
    brought in after the other. `Progress` messages with the same ref may come before. EIO (broken file), ENOMEM.
    """

    ref: int
    image: int
    path: str
    dtype: str
    frames: int
    slots: list[int] = []
    kept: bool = False
    room: int = 0


class Shed(_Message):
    """Free the weights of an image, and keep its frames, its places and its contexts. Until it is loaded again it is in
    no run; frames may be moved and copied. Answer: `Done`."""

    ref: int
    image: int


class Unload(_Message):
    """Free an image and its frames. Answer: `Done`."""

    ref: int
    image: int


class Sample(_Message):
    """What to do with the logits of a run's last token.

    If `append`, choose the next token with `sampler`, whose random number is that of `(sampler.seed, position)`, where
    `position` is the log position the chosen token will have. Report the chosen (if not `append`: the greedy) token's
    log-probability and the `logprobs` most probable alternatives if `logprobs > 0`.
    """

    sampler: Sampler
    position: int
    append: bool
    logprobs: int = 0


class Run(_Message):
    """One process's part of a step: compute `tokens`, which stand in its log from `position`.

    The context's block table becomes `table[:keep] + blocks`; its first `position` tokens are in KV already. The first
    run of a context (or after Drop, or a restart) has keep=0 and lists all its blocks. `history` holds the tokens before
    `position` where the driver does not have them (needed for repetition penalty); else None, and the driver's own log of
    the context is cut to `position` and extended by `tokens`.

    `ahead`: the blocks have room for so many tokens more. The driver may guess them, compute them with the run, and keep
    those that turn out to be what it would have sampled (RunResult.more); that must not change any token.
    """

    ctx: int
    image: int
    position: int
    tokens: list[int]
    keep: int
    blocks: list[int]
    sample: Sample | None = None
    history: list[int] | None = None
    ahead: int = 0


class Copy(_Message):
    """Copy frame `src` to frame `dst` of an image: copy-on-write, before the step's runs."""

    image: int
    src: int
    dst: int


class Move(_Message):
    """A frame of a context to place `slot` of a lower tier, or from there. What was moved out can be moved in for the
    same context only, until Drop; a place keeps what it holds until it is written again."""

    image: int
    ctx: int
    frame: int
    tier: int
    slot: int


class Step(_Message):
    """Work for the device: first `outs` are moved out, then the copies, then `ins` are moved in, then the runs, as one
    batch (a frame may be moved out and then copied to, or copied and then moved into). Answer: `StepDone`."""

    ref: int
    runs: list[Run]
    copies: list[Copy] = []
    outs: list[Move] = []
    ins: list[Move] = []


class Drop(_Message):
    """Forget contexts (block tables and token logs). Not answered. Unknown ones are ignored."""

    ctxs: list[int]


class Export(_Message):
    """Write the image of a process to the file `path`, whole or not at all; or, if that is empty, to a file in memory
    for another driver, until `Release`. Answer: `Exported`.

    `head` is the kernel's, to be given back as it is. The KV to go with it is that of the first `tokens` tokens, in
    `frames` and after those in `places` (tier, slot) of the context; what cannot be had of it is left out. The frames are
    as they are between the requests before this one and those after it. `key`: a passphrase to encrypt with. EIO (also
    for want of space), ENOENT, EPERM, EINVAL, ENOMEM.
    """

    ref: int
    image: int  # 0: without KV
    ctx: int
    path: str
    head: bytes
    tokens: int
    frames: list[int]
    places: list[tuple[int, int]] = []
    key: bytes = b""


class Inspect(_Message):
    """Say what is in the file of a process image. Answer: `Inspected`; it may come before answers to earlier requests.

    ENOENT, EPERM (no access, no passphrase or a wrong one), EINVAL (no process image), EIO (a damaged one)."""

    ref: int
    path: str
    key: bytes = b""


class Import(_Message):
    """Read the KV in a process image's file into `frames`: blocks `first`, `first + 1`, ..., up to token `tokens`.
    Answer: `Imported`. `id` is what `Inspected` called the file; nothing is read of another."""

    ref: int
    image: int
    path: str
    id: bytes
    first: int
    frames: list[int]
    tokens: int
    key: bytes = b""


class Release(_Message):
    """Forget the file in memory that an export has called `path`. Not answered; an unknown one is ignored."""

    path: str


class Abandon(_Message):
    """Nobody wants the answer to that Probe or Load any more: it may be given up, and is then answered by Failed(EINTR).
    Not answered itself."""

    ref: int


class Quit(_Message):
    """End in good order."""


# --- driver to kernel -----------------------------------------------------------------------------------------------


class Sizes(msgspec.Struct, frozen=True):
    """What both sides count on and nothing else would show: each declares its own, and all must be the same. 0: not
    declared, which is never the same (the wire does not fill in what a driver leaves out)."""

    block_tokens: int = 0  # tokens in a frame of KV: page tables, prefixes and the driver's kernels are cut by it
    heartbeat_seconds: float = 0.0  # between two heartbeats: a driver that is silent for long is taken for hung
    request_bytes: int = 0  # the largest message that a driver takes; ZeroMQ cuts the connection over it
    answer_bytes: int = 0  # the largest message that the kernel takes


SIZES = Sizes(BLOCK_TOKENS, HEARTBEAT_SECONDS, REQUEST_BYTES, ANSWER_BYTES)


class Hello(_Message):
    """The first message of a driver: what it is and what it can do. The kernel refuses what is not declared here.

    The version comes first, and the kind next, in every version: so that one of another can be read and refused by name.
    """

    version: int
    kind: str
    os_pid: int
    description: str
    tiers: list[Tier]
    architectures: list[str]  # transformers' model_type values
    dtypes: list[str]
    features: list[str]  # LOGPROBS, IMAGES
    sizes: Sizes
    max_runs: int = 16  # a good number of processes per step
    step_tokens: int = 256  # a good number of tokens per step
    stream_tokens: int = 0  # of them, those of prompts beside processes that get one each; 0: no fewer
    guess_rows: int = 0  # a step of fewer tokens than this may guess up to it (Run.ahead); 0: this driver does not


class Probed(_Message):
    ref: int
    architecture: str
    dtype: str
    parameters: int
    weight_bytes: int
    vocab: int
    context: int
    layers: int
    block_bytes: int
    eos_ids: list[int]
    stream_bytes: int = 0  # the least memory for weights with which it can be streamed; 0: it cannot
    sampling: SamplingDefaults = SamplingDefaults()
    stored: str = ""  # how its files hold quantised weights, and what becomes of them; "": they are not quantised


class Progress(_Message):
    ref: int
    fraction: float


class Loaded(_Message):
    ref: int
    weight_bytes: int  # as measured
    guesses: bool = False  # may guess (Run.ahead): the tokens are the same whatever is computed with them
    resident_bytes: int = 0  # of the weights, in memory; 0: all
    changed: bool = False  # these are other weights than the KV that was kept was computed with


class RunResult(_Message):
    """`token` is the sampled token, or -1 if the run did not ask for one. `error` is empty, or why this run failed
    (its KV from `position` on is then undefined); the others of the step stand. `more` are the tokens sampled after
    `token`, by guessing: `token` and all of `more` but the last are in KV. `lost`, if not -1: the run was not computed,
    since of the frames to be moved in for it (in the order of the step's `ins`) only so many could be read back."""

    ctx: int
    token: int = -1
    logprobs: TokenLogprobs | None = None
    error: str = ""
    more: list[int] = []
    lost: int = -1


class StepDone(_Message):
    """The results in the order of the step's runs; `phases` are seconds by name (prepare, swap, copy, model, sample).
    `unwritten` are indices of `outs` that could not be written (no space, an error of the disk)."""

    ref: int
    results: list[RunResult]
    seconds: float
    phases: dict[str, float] = {}
    unwritten: list[int] = []


class Exported(_Message):
    """`tokens`: those whose KV is in the file. `reason`: why it is not of all that were asked for, or empty. Of a file in
    memory `path` is where another driver of the same user opens it, and `id` what `Inspect` would call it."""

    ref: int
    bytes: int
    tokens: int
    reason: str = ""
    path: str = ""
    id: FileId = b""


class Inspected(_Message):
    """`head` is what `Export` was given, `tokens` those whose KV is there (which may yet turn out damaged)."""

    ref: int
    id: bytes
    head: bytes
    tokens: int


class Imported(_Message):
    """The KV of the first `tokens` tokens is in the frames (those before the first block were asked for count); the other
    frames hold anything. `reason`: why it is not of all that were asked for, or empty."""

    ref: int
    tokens: int
    reason: str = ""


class Done(_Message):
    ref: int


class Failed(_Message):
    """A request failed; the driver goes on."""

    ref: int
    errno: Errno
    reason: str
    broken: bool = False  # the files are: trying again finds the same


class Heartbeat(_Message):
    """Sent every HEARTBEAT_SECONDS by the message loop. `progress` grows while the work thread gets on, so a heartbeat
    with `busy` whose progress stands still tells of a hang."""

    progress: int
    busy: bool


class Note(_Message):
    """A line for the kernel log."""

    level: str
    text: str


# Kinds of devices: `python -m llmasos.drivers.host KIND`, one package of drivers each.
KINDS = ("cpu", "cuda", "sim")

# Features, which a driver may lack.
LOGPROBS = "logprobs"  # it reports log-probabilities (Sample.logprobs)
IMAGES = "images"  # it does Export, Inspect and Import

ToDriver = Probe | Load | Shed | Unload | Step | Drop | Export | Inspect | Import | Release | Abandon | Quit
FromDriver = (
    Hello | Probed | Progress | Loaded | StepDone | Exported | Inspected | Imported | Done | Failed | Heartbeat | Note
)

encode = msgspec.msgpack.Encoder().encode
decode_to_driver = msgspec.msgpack.Decoder(ToDriver).decode
_from_driver: msgspec.msgpack.Decoder[FromDriver] = msgspec.msgpack.Decoder(FromDriver)
_ONE = "start both from one installation of LLMasOS"
_OFFERS = ("max_runs", "step_tokens", "stream_tokens", "guess_rows")


def decode_from_driver(body: bytes) -> FromDriver:
    """Raises msgspec.DecodeError; for the hello of another version, whatever form it has, one that names the version."""
    try:
        return _from_driver.decode(body)
    except msgspec.DecodeError:
        if (version := _version(body)) not in (None, VERSION):
            raise msgspec.DecodeError(_other_version(version)) from None
        raise


def _version(body: bytes) -> object:
    """The version in the beginning of a hello; None where the message is no hello."""
    match msgspec.msgpack.decode(body):
        case ["Hello", int(version), *_]:
            return version
    return None


def _other_version(version: object) -> str:
    return f"the driver speaks version {version} of the protocol, the kernel version {VERSION}; {_ONE}"


def disagreement(hello: Hello) -> str:
    """Why a driver that says this hello cannot be used by a kernel that has this file, or ""."""
    if hello.version != VERSION:
        return _other_version(hello.version)
    different = []
    for name in SIZES.__struct_fields__:
        theirs, ours = getattr(hello.sizes, name), getattr(SIZES, name)
        if theirs != ours:
            different.append(f"{name} is {theirs or 'not declared'} there, {ours} here")
    if different:
        return f"the driver counts on other sizes than the kernel: {', '.join(different)}; {_ONE}"
    if min(hello.max_runs, hello.step_tokens) < 1 or min(hello.stream_tokens, hello.guess_rows) < 0:
        offer = ", ".join(f"{name}={getattr(hello, name)}" for name in _OFFERS)
        return f"the driver offers steps that cannot be: {offer}; the first two must be above zero, none below"
    return ""
