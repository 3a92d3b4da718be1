"""The declared properties of a simulated device and its models, read from driver options and from model names.

An option is `key=value` (drivers/options.py); sizes and rates take the suffixes k, m, g, t (powers of 1000) and ki, mi,
gi, ti (of 1024). Options of the device are the fields of `DeviceSpec`; those of a model, the fields of `ModelSpec`, may
be given to the device (for every model) or in a model's name: `sim`, `sim:7b`,
`sim:1.5b,vocab=1000,context=512,eos_every=40`. The first word after the colon may be a number of parameters. A name that
does not begin with `sim` does not exist.
"""

from __future__ import annotations

import dataclasses
import hashlib
import zlib
from collections.abc import Mapping
from pathlib import Path

from llmasos.drivers import options
from llmasos.drivers.options import no_option
from llmasos.drivers.protocol import BLOCK_TOKENS
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.limits import MAX_TOKEN

_WHO = "the sim driver"
SCRIPT_ROWS = 256  # `guess_rows` of a device with a script, unless said otherwise
DTYPES = {"fp32": (4, 4), "bf16": (2, 2), "int8": (1, 2)}  # bytes of a parameter, bytes of an element of KV


@dataclasses.dataclass(slots=True, frozen=True)
class DeviceSpec:
    """A device: what it has, how fast it is, and how it fails when a test asks it to.

    The failure options count from the driver's start, or name a token of a prompt ("poison"); 0 and -1 are off.
    """

    memory: int = 64 * 2**30  # bytes, for weights and KV together
    swap: int = 0  # bytes of a second tier behind the link; 0: there is none
    flops: float = 1e14  # peak floating-point operations a second
    bandwidth: float = 1e12  # bytes a second between memory and arithmetic
    link: float = 2e10  # bytes a second from storage to memory: the speed of loading
    overhead: float = 2e-4  # seconds a step costs before any work
    time_scale: float = 1.0  # seconds slept for each modelled second; 0 does not sleep
    max_runs: int = 16  # declared: a good number of processes in a step
    step_tokens: int = 256  # declared: a good number of tokens in a step
    stream_tokens: int = 0  # declared: of those, a prompt's beside processes that decode; 0: no fewer
    guess_rows: int = 0  # declared: a step of fewer tokens may guess up to it; 0: it never does
    streams: int = 0  # models can run with 1/streams of their weights in memory; 0: only with all
    crash_after: int = 0  # dies (as by abort) in step number crash_after
    hang_after: int = 0  # never comes back from step number hang_after
    crash_token: int = -1  # dies when a run computes this token
    hang_token: int = -1  # never comes back when a run computes this token
    lose_every: int = 0  # every lose_every-th frame that is moved in cannot be read back; 0: none
    unwritten_every: int = 0  # every unwritten_every-th frame that is moved out cannot be written; 0: none
    crash_import: int = 0  # 1: dies when it is asked to read KV from the file of a process image
    arithmetic: str = "sim"  # names its way to compute: it takes no KV of another way
    error_token: int = -1  # a run that computes this token fails, alone
    fail_load: str = ""  # the errno with which every load fails: EIO, ENOMEM, ...
    fail_load_every: int = 0  # every fail_load_every-th load fails with EIO; 0: none does


@dataclasses.dataclass(slots=True, frozen=True)
class ModelSpec:
    """A model of declared shape. Defaults are those of a 7-billion-parameter llama with grouped KV heads."""

    name: str = no_option("sim")
    dtype: str = "bf16"  # fp32, bf16 or int8: where none is asked for
    arch: str = "sim"  # its architecture, as it says; another than sim is refused
    params: float = 7e9  # parameters; the first word of a model's name may say them: sim:7b
    layers: int = 32  # of each, K and V are kept
    kv_dim: int = 1024  # elements of K (and of V) a token has in one layer
    block_bytes: int = 0  # bytes of a frame; 0: 16 tokens x 2 x layers x kv_dim x element
    vocab: int = 32_000  # the last id is the end-of-sequence token
    context: int = 4096  # tokens
    eos_every: int = 0  # one prefix in eos_every is followed by the end-of-sequence token; 0: none is
    script: str = ""  # a file of answers that the model gives (script.py); empty: it says what chance says
    fail: str = ""  # the errno with which probing this model fails: EIO, ...

    @property
    def eos(self) -> int:
        return self.vocab - 1

    @property
    def digest(self) -> str:
        """The SHA-256 of what makes it another model: it has no files but its script."""
        said = Path(self.script).read_bytes() if self.script else b""
        return hashlib.sha256(repr(self).encode() + said).hexdigest()

    @property
    def root(self) -> int:
        """The hash of the empty context: the same tokens mean something else to every other model and precision."""
        return zlib.crc32(f"{self.name} {self.dtype}".encode())

    @property
    def weight_bytes(self) -> int:
        return int(self.params * DTYPES[self.dtype][0])

    @property
    def frame_bytes(self) -> int:
        return self.block_bytes or BLOCK_TOKENS * 2 * self.layers * self.kv_dim * DTYPES[self.dtype][1]


def parse(texts: Mapping[str, str]) -> tuple[DeviceSpec, ModelSpec]:
    """Driver options -> the device, and its models unless their names say otherwise. Raises EINVAL."""
    options.refuse_unknown(texts, _WHO, DeviceSpec, ModelSpec)
    spec = options.replace(DeviceSpec(), {k: v for k, v in texts.items() if k in options.forms(DeviceSpec)}, _WHO)
    models = options.replace(ModelSpec(), {k: v for k, v in texts.items() if k in options.forms(ModelSpec)}, _WHO)
    for name in ("memory", "flops", "bandwidth", "link", "max_runs", "step_tokens"):
        if getattr(spec, name) <= 0:
            raise SyscallError(Errno.EINVAL, f"{_WHO}: {name} must be above zero, found {getattr(spec, name):g}")
    _at_least(spec, _WHO, 0, "overhead", "time_scale")
    _errno(spec.fail_load)
    if models.script and "guess_rows" not in texts:  # a word of a script is given by one step, as if guessed
        spec = dataclasses.replace(spec, guess_rows=SCRIPT_ROWS)
    return spec, models


def model(path: str, dtype: str, defaults: ModelSpec) -> ModelSpec:
    """A model by its name. Raises ENOENT (not a simulated one), EINVAL (bad traits), or the errno that the name
    declares."""
    head, _, traits = path.partition(":")
    if not head.startswith("sim"):
        raise SyscallError(
            Errno.ENOENT,
            f"no model {path!r}: this driver simulates models whose name begins with 'sim', such as sim:7b",
        )
    words = [w for w in traits.split(",") if w]
    if words and "=" not in words[0]:
        words[0] = f"params={words[0]}"
    if bad := [w for w in words if "=" not in w]:
        raise SyscallError(Errno.EINVAL, f"model {path!r}: wanted key=value, found {bad[0]!r}")
    given = dict(w.split("=", 1) for w in words)
    options.refuse_unknown(given, f"model {path!r}", ModelSpec)
    spec = options.replace(defaults, given, f"model {path!r}")
    dtype = dtype or spec.dtype
    if dtype not in DTYPES:
        raise SyscallError(Errno.ENOTSUP, f"dtype {dtype!r}: the sim driver has {', '.join(DTYPES)}")
    who = f"model {path!r}"
    _at_least(spec, who, 2, "vocab", "context", "layers", "kv_dim")
    _at_least(spec, who, 1, "params")
    _at_least(spec, who, 0, "block_bytes", "eos_every")
    if spec.vocab > MAX_TOKEN:
        raise SyscallError(Errno.EINVAL, f"{who}: vocab is at most {MAX_TOKEN}, found {spec.vocab}")
    if spec.fail:
        raise SyscallError(_errno(spec.fail), f"model {path!r} is declared to fail with {spec.fail}")
    return dataclasses.replace(spec, name=path, dtype=dtype)


def _at_least(spec: DeviceSpec | ModelSpec, who: str, least: int, *names: str) -> None:
    for name in names:
        if getattr(spec, name) < least:
            raise SyscallError(Errno.EINVAL, f"{who}: {name} is at least {least}, found {getattr(spec, name):g}")


def _errno(name: str) -> Errno:
    if name and name not in Errno.__members__:
        raise SyscallError(Errno.EINVAL, f"{_WHO}: no error {name!r}; there are {', '.join(Errno.__members__)}")
    return Errno[name] if name else Errno.OK
