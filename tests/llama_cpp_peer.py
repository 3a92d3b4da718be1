"""llama.cpp as a peer of the tests: its converter makes GGUF files of model directories, its quantiser others of these,
and it says its logits. A reader and a writer by one author may err alike; here all but the reader are somebody else's.

`make peers` installs it (llama-cpp-python and its source); LLMASOS_LLAMA_CPP names another place of the source, and
LLMASOS_LLAMA_CPP_PYTHON another interpreter that has llama_cpp. Tests are skipped where it is not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.llama_cpp_source import PLACE

_ROOT = Path(__file__).parents[1]
PYTHON = Path(os.environ.get("LLMASOS_LLAMA_CPP_PYTHON") or _ROOT / ".peers" / "llama_cpp" / "bin" / "python")
SOURCES = sorted(PLACE.glob("**/vendor/llama.cpp/convert_hf_to_gguf.py"))
HERE = bool(SOURCES) and PYTHON.exists()
WHY = f"llama.cpp is not here: its source in {PLACE} and {PYTHON} (make peers)"
_TIMEOUT = 300  # seconds for one process


def convert(jobs: Sequence[tuple[Path, Path, str]]) -> None:
    """Have the converter write each directory's model as a file of F32, F16, BF16 or Q8_0, without its vocabulary."""
    _run(
        [sys.executable, str(_ROOT / "tests" / "llama_cpp_convert.py"), str(SOURCES[0].parent)],
        [[str(directory), str(file), kind] for directory, file, kind in jobs],
    )


def quantise(jobs: Sequence[tuple[Path, Path, str]]) -> None:
    """Have the quantiser write each file of F32 as one of another type (Q4_0, Q4_K_M, ...)."""
    _ask([{"from": str(whole), "file": str(file), "type": kind} for whole, file, kind in jobs])


def logits(files: Sequence[Path], ids: Sequence[int], place: Path, *, exact: bool = False) -> list[np.ndarray]:
    """For each file the logits [tokens, vocab] behind each of the tokens; keys and values in fp32 if `exact`."""
    outs = [place / f"{number}.npy" for number in range(len(files))]
    _ask(
        [
            {"file": str(file), "ids": list(ids), "out": str(out), "exact": exact}
            for file, out in zip(files, outs, strict=True)
        ]
    )
    return [np.load(out) for out in outs]


def _ask(jobs: list[dict[str, Any]]) -> None:
    said = _run([str(PYTHON), str(_ROOT / "tests" / "llama_cpp_decode.py")], jobs)
    failed = [line for line in said.splitlines() if line]
    assert not failed, failed


def _run(command: list[str], jobs: Sequence[Any]) -> str:
    done = subprocess.run(
        command,
        input="".join(f"{json.dumps(job)}\n" for job in jobs),
        text=True,
        capture_output=True,
        timeout=_TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
