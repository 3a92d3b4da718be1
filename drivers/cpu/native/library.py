"""The native decoder as Python sees it: the compiled library and its structures, by ctypes.

It is a plain shared library and no Python module: ctypes releases the interpreter's lock during a call, and the same file
serves every version of Python. Installing the package builds it, where there is a C compiler; `load` gives the reason
where it cannot be used. The structures repeat those of native.h, which says what the fields mean.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.machinery
import os
from ctypes import POINTER, c_char_p, c_float, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

from llmasos.drivers.engine.early import Stopped

ABI = 6
LANES = 16  # columns of a packed block, tokens of a frame
ITEM = 32  # columns are padded to a multiple of it
GROUP = 32  # inputs that share a scale, where not all of a column do
BFLOAT16, FLOAT16, FLOAT32, OWN = 1, 2, 3, 4  # the kinds of groups' scales (Matrix.group_kind); 0: there are none
SWITCH = "LLMASOS_NATIVE"  # "0": do without; or the name of an instruction set, for comparing them

INSTRUCTION_SETS = ("avx512bf16", "avx512vnni", "avxvnni", "avx2", "generic")  # the best first

SILU, GELU_TANH = 0, 1


class Matrix(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p), ("scale", c_void_p), ("correction", c_void_p), ("group_scale", c_void_p),
        ("group_zero", c_void_p), ("bias", c_void_p), ("columns", c_int64), ("inputs", c_int64), ("bits", c_int64),
        ("group_kind", c_int64),
    ]  # fmt: skip


class Layer(ctypes.Structure):
    _fields_ = [
        ("qkv", Matrix), ("out", Matrix), ("gate_up", Matrix), ("down", Matrix),
        ("before_attention", c_void_p), ("after_attention", c_void_p), ("before_mlp", c_void_p), ("after_mlp", c_void_p),
        ("query_norm", c_void_p), ("key_norm", c_void_p), ("window", c_int64),
    ]  # fmt: skip


class Model(ctypes.Structure):
    _fields_ = [
        ("hidden", c_int64), ("layers", c_int64), ("heads", c_int64), ("kv_heads", c_int64), ("head_dim", c_int64),
        ("padded_head_dim", c_int64), ("intermediate", c_int64), ("vocabulary", c_int64), ("context", c_int64),
        ("activation", c_int64), ("embedding_bits", c_int64), ("embedding", c_void_p), ("cosine", c_void_p),
        ("sine", c_void_p), ("rotated", c_int64),
        ("layer", POINTER(Layer)), ("last_norm", c_void_p), ("head", Matrix), ("norm_epsilon", c_float),
        ("embedding_scale", c_float), ("attention_scale", c_float), ("attention_softcap", c_float),
        ("logit_softcap", c_float),
    ]  # fmt: skip


class Batch(ctypes.Structure):
    _fields_ = [
        ("rows", c_int64), ("outputs", c_int64), ("token", c_void_p), ("position", c_void_p), ("table", c_void_p),
        ("slab", c_void_p), ("frame_size", c_int64), ("kv_bits", c_int64), ("output", c_void_p), ("logits", c_void_p),
        ("logits_stride", c_int64), ("best", c_void_p), ("stop", c_void_p), ("layer", c_void_p),
        ("ready", c_void_p),
    ]  # fmt: skip


class Library:
    """The loaded library and the instruction set that it will use."""

    def __init__(self, path: Path, isa: str) -> None:
        self.path = path
        library = ctypes.CDLL(os.fspath(path))
        library.native_abi.restype = c_int64
        if (found := library.native_abi()) != ABI:
            raise OSError(f"{path} is of version {found}, {ABI} is wanted: install LLMasOS again")
        library.native_isa.argtypes = [c_char_p]
        library.native_isa.restype = c_char_p
        library.native_open.argtypes = [POINTER(Model), c_int64, c_char_p]
        library.native_open.restype = c_void_p
        library.native_step.argtypes = [c_void_p, POINTER(Batch)]
        library.native_step.restype = c_int
        library.native_close.argtypes = [c_void_p]
        library.native_close.restype = None
        library.native_product.argtypes = [POINTER(Matrix), c_void_p, c_int64, c_int64, c_void_p, c_char_p]
        library.native_product.restype = c_int
        self._library: Any = library
        chosen = library.native_isa(isa.encode())
        if chosen is None:
            here = [one for one in INSTRUCTION_SETS if library.native_isa(one.encode()) is not None]
            raise OSError(f"{SWITCH} is 0 or one of {', '.join(here)} on this CPU, as it was built; found {isa!r}")
        self.isa: str = chosen.decode()

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the library."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def open(self, model: Model, threads: int) -> int:
        """A decoder. `model` and what it points to must stay where they are until it is closed. Raises MemoryError."""
        handle: int | None = self._library.native_open(ctypes.byref(model), threads, self.isa.encode())
        if not handle:
            raise MemoryError("no memory for the buffers of the native decoder")
        return handle

    def step(self, decoder: int, batch: Batch) -> None:
        """Raises MemoryError, and nothing was computed then; Stopped if it was (`batch.stop`)."""
        match self._library.native_step(decoder, ctypes.byref(batch)):
            case 1:
                raise Stopped
            case -1:
                raise MemoryError(f"no memory for a step of {batch.rows} rows")

    def product(self, matrix: Matrix, x: int, rows: int, size: int, out: int, isa: str) -> None:
        """One product by itself: x [rows, size] and out [rows, matrix.columns] are addresses of fp32."""
        if self._library.native_product(ctypes.byref(matrix), x, rows, size, out, isa.encode()):
            raise OSError(f"no memory for a product, or no instruction set {isa}")

    def has(self, isa: str) -> bool:
        """Can the instruction set of that name be used here?"""
        return self._library.native_isa(isa.encode()) is not None

    def close(self, decoder: int) -> None:
        self._library.native_close(decoder)


def named() -> bool:
    """Whether the environment names an instruction set: then no other one, and nothing else, will do."""
    return os.environ.get(SWITCH, "") not in ("", "0")


@functools.cache
def load() -> Library | str:
    """The library, or why there is none."""
    wanted = os.environ.get(SWITCH, "")
    if wanted == "0":
        return f"it is switched off ({SWITCH}=0)"
    here = Path(__file__).parent
    built = [path for suffix in importlib.machinery.EXTENSION_SUFFIXES if (path := here / f"_native{suffix}").exists()]
    if not built:
        return "it was not built when LLMasOS was installed: install a C compiler (gcc or clang), then LLMasOS again"
    try:
        return Library(built[0], wanted)
    except (OSError, AttributeError) as error:
        return str(error)
