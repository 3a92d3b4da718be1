"""The records that kernel and driver exchange; knows neither side.

MINIX 3 is the model: a driver is a process that answers typed messages in order, and may die at any moment. The kernel
owns every decision (which frames, which tokens, which processes run); the driver owns tensors. A driver caches what the
kernel has told it of a context; the kernel can tell it again, whole, at any time.

One message is one frame: a msgpack-encoded tagged union. Kernel to driver: `ToDriver`; driver to kernel: `FromDriver`.
Requests with a `ref` are answered by exactly one message with the same `ref`: its success record, or `Failed`.
"""

from __future__ import annotations

from typing import Annotated, dataclass_transform

import msgspec

from llmasos.syscalls import limits
from llmasos.syscalls.errno import Errno
from llmasos.syscalls.records import Sampler, SamplingDefaults, Tier, Token, TokenLogprobs

VERSION = 4  # of these records: another meaning or form of one is another version
BLOCK_TOKENS = 16  # tokens in a frame of KV
EX_UNUSABLE = 78  # a driver's exit status (EX_CONFIG of sysexits.h): its device cannot be opened, now or again
HEARTBEAT_SECONDS = 0.5
REQUEST_BYTES = 2 * limits.MAX_REPLY_BYTES  # the largest message to a driver
ANSWER_BYTES = limits.MAX_REPLY_BYTES  # the largest message from one
MAX_TEXT = 10_000  # characters of what a driver says for people to read; what is longer is cut there
_MOST_TIERS = 8

# What drivers say is checked where it is decoded, as far as a field tells by itself.
Amount = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]  # of bytes, tokens, parameters
Size = Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]  # of what there is
Part = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]  # of a whole
Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=1e9)]
OrNone = Annotated[int, msgspec.Meta(ge=-1, le=limits.MAX_TOKEN)]  # -1: none
Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]
Reason = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_TEXT)]
Word = Annotated[str, msgspec.Meta(min_length=1, max_length=limits.MAX_NAME)]
Words = Annotated[list[Word], msgspec.Meta(max_length=4096)]
OsPath = Annotated[str, msgspec.Meta(max_length=limits.MAX_PATH)]
FileId = Annotated[bytes, msgspec.Meta(max_length=256)]  # names one writing of a file, whatever path it has


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))  # mypy: subclasses are frozen too
class _Message(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=True):
    pass


# --- kernel to driver -----------------------------------------------------------------------------------------------


class Probe(_Message):
    """Read a model's configuration, not its weights, and report its needs. Answer: `Probed`.

    `path` is a directory or a hub name. Errors: ENOENT, ENOEXEC (the architecture is not supported; the reason names it),
    EIO (a broken file).
    """

    ref: int
    path: str
    dtype: str  # "" (the driver's default for the model), fp32, bf16, int8, int4


class Trust(msgspec.Struct, frozen=True):
    """Which models may be loaded: those with a digest that is known, or with a signature by one of the keys (PEM)."""

    digests: list[str] = []
    keys: list[str] = []


class Load(_Message):
    """Bring a model's weights into memory as `image`, with `frames` frames of KV, and `slots[i]` places for frames in
    tier i + 1 of those declared at the hello. Answer: `Loaded`; `Progress` messages with the same ref may come before.

    `again`: the image exists without its weights (DropWeights) and gets them back; its frames and contexts stay as they
    are. `room`, if not 0: bytes of memory for the weights, fewer than they have; the driver streams the rest in each step
    (Probed.stream_bytes). A driver reads one image at a time, and answers steps of other images meanwhile. `trust` says
    which models may be loaded; others are refused before their weights are read. Errors: EIO (a broken file), ENOMEM,
    EPERM (it is not trusted; the reason has its digest).
    """

    ref: int
    image: int
    path: str
    dtype: str
    frames: int
    slots: list[int] = []
    again: bool = False
    room: int = 0
    trust: Trust | None = None


class DropWeights(_Message):
    """Free the weights of an image; keep its frames, places and contexts. Until the image is loaded again no run is of
    it, but frames may be moved and copied. Answer: `Done`."""

    ref: int
    image: int


class Unload(_Message):
    """Free an image and its frames. Answer: `Done`."""

    ref: int
    image: int


class Sample(_Message):
    """How to use the logits of a run's last token.

    If `append`, choose the next token with `sampler`; `position` is the log position that the token will have, and
    `(sampler.seed, position)` selects the random number. If `logprobs > 0`, report the log-probability of the chosen
    token (of the greedy one if not `append`) and of the `logprobs` most probable alternatives.
    """

    sampler: Sampler
    position: int
    append: bool
    logprobs: int = 0


class Run(_Message):
    """One process's part of a step: compute `tokens`, which stand in its log from `position`.

    The context's block table becomes `table[:keep] + blocks`; its first `position` tokens are in KV already. The first
    run of a context (or after Drop, or a restart) has keep=0 and lists all its blocks. If `history` is not None, it holds
    the tokens before `position`, which the driver lacks and the repetition penalty needs. If it is None, the driver cuts
    its own log of the context to `position` and appends `tokens`.

    `ahead`: the number of further tokens for which the blocks have room. The driver may guess them, compute them with the
    run, and keep those that it would have sampled (RunResult.more); guessing must not change any token.
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
    """Move a frame of a context to place `slot` of a lower tier, or back. Only the context that a frame was moved out for
    can have it back, until Drop; a place keeps its frame until it is written again."""

    image: int
    ctx: int
    frame: int
    tier: int
    slot: int


class Step(_Message):
    """Work for the device: move `outs` out, make the copies, move `ins` in, then compute the runs as one batch. In this
    order a frame may be moved out and then copied to, or copied and then moved into. Before `ins` the frames `wipes`
    (image, frame), which another owner had, are zeroed. Answer: `StepDone`."""

    ref: int
    runs: list[Run]
    copies: list[Copy] = []
    outs: list[Move] = []
    ins: list[Move] = []
    wipes: list[tuple[int, int]] = []


class Drop(_Message):
    """Forget contexts (block tables and token logs). Not answered. Unknown ones are ignored."""

    ctxs: list[int]


class Wipe(_Message):
    """Zero `frames` of an image, and `places` (tier, slot), all of which nobody has; in order with steps. Answer:
    `Done`."""

    ref: int
    image: int
    frames: list[int]
    places: list[tuple[int, int]] = []


class Export(_Message):
    """Write the image of a process to the file `path`, whole or not at all; if `path` is empty, to a file in memory for
    another driver, which is kept until `Release`. Answer: `Exported`.

    `head` is the kernel's, and `Inspect` returns it as it is. The KV is that of the first `tokens` tokens, in `frames`
    and then in `places` (tier, slot) of the context; the driver leaves out what it cannot read. The frames count as they
    are after the requests before this one and before those after it. `key`: a passphrase to encrypt with; `seal`: a key
    of the kernel's user instead, as drivers/seals.py has it. `sound`: of how many leading tokens the KV is what this
    kernel's drivers have computed. Errors: EIO (also when there is no space), ENOENT, EPERM, EINVAL, ENOMEM.
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
    sound: int = 0
    seal: bytes = b""
    owner: str = ""  # whose process it is; empty: the kernel's user's. The kernel's edge reads that


class Inspect(_Message):
    """Read the head of a process image's file. Answer: `Inspected`; it may come before answers to earlier requests.

    Errors: ENOENT, EPERM (no access, no passphrase or a wrong one; with `Failed.sealed`, it needs a `seal`), EINVAL (no
    process image), EIO (a damaged one)."""

    ref: int
    path: str
    key: bytes = b""
    seal: bytes = b""
    owner: str = ""  # who asks, as in `Export`


class Import(_Message):
    """Read the KV in a process image's file into `frames`: blocks `first`, `first + 1`, ..., up to token `tokens`.
    Answer: `Imported`. `id` is that of `Inspected`; the driver reads nothing of another file. Before that the frames
    `wipes` of the image, which another owner had, are zeroed."""

    ref: int
    image: int
    path: str
    id: FileId
    first: int
    frames: list[int]
    tokens: int
    key: bytes = b""
    wipes: list[int] = []
    seal: bytes = b""


class Release(_Message):
    """Forget the file in memory whose path `Exported` gave. Not answered; an unknown path is ignored."""

    path: str


class Abandon(_Message):
    """Nobody waits for that Probe or Load any more: the driver may give it up, and then answers it by Failed(EINTR). Not
    answered itself."""

    ref: int


class Quit(_Message):
    """End in good order."""


# --- driver to kernel -----------------------------------------------------------------------------------------------


class Sizes(msgspec.Struct, frozen=True):
    """Sizes that both sides count on and that nothing else would show. Each side has its own, and all must be equal. 0
    means not declared, and equals none (decoding fills in 0 where a driver declares no size)."""

    block_tokens: int = 0  # tokens in a frame of KV: page tables, prefixes and the driver's kernels are cut by it
    heartbeat_seconds: float = 0.0  # between two heartbeats: a driver that is silent for long is taken for hung
    request_bytes: int = 0  # the largest message that a driver takes; ZeroMQ cuts the connection over it
    answer_bytes: int = 0  # the largest message that the kernel takes


SIZES = Sizes(BLOCK_TOKENS, HEARTBEAT_SECONDS, REQUEST_BYTES, ANSWER_BYTES)


class Hello(_Message):
    """The first message of a driver: what it is and what it can do. The kernel refuses requests for anything else.

    In every version of the protocol the version comes first, so that a kernel can read it and refuse by name.
    """

    version: int
    kind: Word
    os_pid: Annotated[int, msgspec.Meta(ge=1, le=(1 << 31) - 1)]
    description: Text
    tiers: Annotated[list[Tier], msgspec.Meta(max_length=_MOST_TIERS)]
    architectures: Words  # transformers' model_type values
    dtypes: Words
    features: Words  # LOGPROBS, IMAGES
    sizes: Sizes
    max_runs: Size = 16  # a good number of processes per step
    step_tokens: Size = 256  # a good number of tokens per step
    stream_tokens: Amount = 0  # the prompts' share of these beside processes that decode; 0: no limit
    guess_rows: Amount = 0  # a step of fewer tokens than this may guess up to it (Run.ahead); 0: this driver does not
    # Native libraries of ours that it has loaded: path -> SHA-256.
    libraries: Annotated[dict[OsPath, Word], msgspec.Meta(max_length=64)] = {}


class Probed(_Message):
    ref: Amount
    architecture: Word
    dtype: Word
    parameters: Amount
    weight_bytes: Size
    vocab: Annotated[int, msgspec.Meta(ge=1, le=limits.MAX_TOKEN + 1)]
    context: Size
    layers: Amount
    block_bytes: Size
    eos_ids: Annotated[list[Token], msgspec.Meta(max_length=4096)]
    stream_bytes: Amount = 0  # the least memory for weights that lets the driver stream it; 0: it cannot
    sampling: SamplingDefaults = SamplingDefaults()
    stored: Text = ""  # how its files hold quantised weights, and how they are run; "": they are not quantised


class Progress(_Message):
    ref: Amount
    fraction: Part


class Loaded(_Message):
    ref: Amount
    weight_bytes: Amount  # as measured
    guesses: bool = False  # may guess (Run.ahead): its tokens do not depend on what is computed beside them
    resident_bytes: Amount = 0  # of the weights, in memory; 0: all
    changed: bool = False  # the files have changed: the KV in the frames is of other weights


class Measured(_Message):
    """The SHA-256 of the files of a model that was loaded, as they were then; `trusted`: why it may be. Sent once it is
    known, which may be long after `Loaded`."""

    image: Amount
    digest: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    trusted: Text = ""


class RunResult(_Message):
    """`token` is the sampled token, or -1 if the run did not ask for one. `error` is empty, or the reason why this run
    failed: its KV from `position` on is then undefined, while the other runs of the step stand. `more` are the tokens
    sampled after `token`, by guessing: `token` and all of `more` but the last are in KV. `unread`, if not -1: the run was
    not computed because a frame to be moved in for it could not be read; `unread` of its frames came before that one, in
    the order of the step's `ins`."""

    ctx: Amount
    token: OrNone = -1
    logprobs: TokenLogprobs | None = None
    error: Text = ""
    more: list[Token] = []
    unread: OrNone = -1


class StepDone(_Message):
    """The results in the order of the step's runs; `phases` are seconds by name (prepare, swap, copy, model, sample).
    `unwritten` are indices of `outs` that could not be written (no space, an error of the disk). `changed` are images of
    whose files, while they are used, something is not what was loaded: their runs have failed."""

    ref: Amount
    results: list[RunResult]
    seconds: Seconds
    phases: Annotated[dict[Word, Seconds], msgspec.Meta(max_length=64)] = {}
    unwritten: list[Amount] = []
    changed: list[Amount] = []


class Exported(_Message):
    """`tokens`: the number of tokens whose KV is in the file. `reason`: why there are fewer than were asked for, or
    empty. For a file in memory, `path` is where another driver of the same user opens it, and `id` is that of
    `Inspected`."""

    ref: Amount
    bytes: Amount
    tokens: Amount
    reason: Text = ""
    path: OsPath = ""
    id: FileId = b""


class Inspected(_Message):
    """`head` is that of `Export`; `tokens` is the number of tokens whose KV is there, though some may prove damaged.
    `sound`: of how many leading tokens a kernel of this user has said that its drivers computed the KV."""

    ref: Amount
    id: FileId
    head: bytes
    tokens: Amount
    sound: Amount = 0


class Imported(_Message):
    """The KV of the first `tokens` tokens is in frames, including those before the first block that was asked for; the
    contents of the other frames are undefined. `reason`: why there are fewer tokens than asked for, or empty."""

    ref: Amount
    tokens: Amount
    reason: Text = ""


class Done(_Message):
    ref: Amount


class Failed(_Message):
    """A request failed; the driver goes on."""

    ref: Amount
    errno: Errno  # one of FAILURES
    reason: Reason
    broken: bool = False  # the files are: trying again finds the same
    sealed: Annotated[bytes, msgspec.Meta(max_length=256)] = b""  # the name of the key that the file is under


class Heartbeat(_Message):
    """The message loop sends one every HEARTBEAT_SECONDS. `progress` grows while the device gets on; `busy` heartbeats
    whose progress stands still show a hang."""

    progress: Amount
    busy: bool


class Note(_Message):
    """A line for the kernel log."""

    level: Word
    text: Text


# Kinds of devices: `python -m llmasos.drivers.host KIND`, one package of drivers each.
KINDS = ("cpu", "cuda", "sim")

# The errors that requests fail with; what else goes wrong in a driver is EIO.
FAILURES = frozenset(
    {Errno.EPERM, Errno.ENOENT, Errno.EINTR, Errno.EIO, Errno.ENOEXEC, Errno.ENOMEM, Errno.EINVAL, Errno.ENOTSUP}
)

# Features, which a driver may lack.
LOGPROBS = "logprobs"  # it reports log-probabilities (Sample.logprobs)
IMAGES = "images"  # it does Export, Inspect and Import

# Messages with a `ref`, each answered by a record of one type or by Failed. (A Step has answers of its own.)
Query = Probe | Load | DropWeights | Unload | Wipe | Export | Inspect | Import
ToDriver = Probe | Load | DropWeights | Unload | Step | Drop | Wipe | Export | Inspect | Import | Release | Abandon | Quit
FromDriver = (
    Hello
    | Probed
    | Progress
    | Loaded
    | Measured
    | StepDone
    | Exported
    | Inspected
    | Imported
    | Done
    | Failed
    | Heartbeat
    | Note
)

encode = msgspec.msgpack.Encoder().encode
decode_to_driver = msgspec.msgpack.Decoder(ToDriver).decode
_from_driver: msgspec.msgpack.Decoder[FromDriver] = msgspec.msgpack.Decoder(FromDriver)
_ONE = "start both from one installation of LLMasOS"
_MOST_BANDWIDTH = 1e18  # bytes/s
_OFFERS = ("max_runs", "step_tokens", "stream_tokens", "guess_rows")


def decode_from_driver(body: bytes | bytearray) -> FromDriver:
    """Raises msgspec.DecodeError; for the hello of another version, whatever form it has, one that names the version."""
    try:
        return _from_driver.decode(body)
    except msgspec.DecodeError:
        if (version := _version(body)) not in (None, VERSION):
            raise msgspec.DecodeError(_other_version(version)) from None
        raise


def _version(body: bytes | bytearray) -> object:
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
    for tier in hello.tiers:
        if not (
            0 <= tier.size < 1 << 63 and 0 <= tier.bandwidth <= _MOST_BANDWIDTH and len(tier.name) <= limits.MAX_NAME
        ):
            return (
                f"the driver has memory that cannot be: {tier.name[: limits.MAX_NAME]!r} of {tier.size} bytes with "
                f"{tier.bandwidth} bytes/s"
            )
    return ""
