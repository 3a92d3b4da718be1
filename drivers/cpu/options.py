"""The options of the CPU driver."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from llmasos.drivers import places
from llmasos.drivers.options import DIRECTORY, SIZE, WORD, YES_OR_NO, Form, number, one_of, option

GUESS_ROWS = 8  # one tile of rows: as many as are computed while the weights are read once
MOST_GUESS_ROWS = 256
MOST_THREADS = 4096


def _directory_or_no(text: str) -> Path | None:
    return None if text in ("", "no") else Path(text)


_DIRECTORY_OR_NO = Form("a directory, or no", _directory_or_no, takes_empty=True)


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """What a person may choose; None, and an empty `dtype`: the driver chooses."""

    # Threads of both decoders; by default one for each core.
    threads: int | None = option(number(1, MOST_THREADS), None)
    # Of models for which no dtype is asked: fp32, bf16, int8 or int4. Default: bf16 where the CPU multiplies it, else
    # fp32.
    dtype: str = option(WORD, "")
    # The directory of installed models (native/installed.py); `no` or empty: they are not kept.
    installed: Path | None = option(_DIRECTORY_OR_NO, places.installed_directory)
    # Rows of a small step that may be guesses (engine/guess.py); 0: none.
    guess: int = option(number(0, MOST_GUESS_ROWS), GUESS_ROWS)
    # What the native decoder keeps keys and values in, but for models in fp32. int8 takes little more than half the
    # memory. torch keeps them in the dtype of the activations.
    kv: str = option(one_of("bf16", "int8"), "bf16")
    # Does the native decoder begin the next step before it is asked for (engine/early.py)? Default: yes where `threads`
    # leave a core to the kernel and the programs; with one to spare decoding gets a tenth faster, with none no faster.
    early: bool | None = option(YES_OR_NO, None)
    # Bytes of the swap file at most (engine/swap_file.py); 0: there is none. Default: 4 GiB, or a quarter of the free
    # disk if that is less.
    swap: int | None = option(SIZE, None)
    # The directory of the swap file, which has no name there.
    swapdir: Path | None = option(DIRECTORY, None)
