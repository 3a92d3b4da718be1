"""What the CPU driver makes of every form of file in every dtype: `python -m tests.file_matrix` makes it a table in
docs/models.md, `--check` says whether that is fresh.

A small model is written in each form and a driver is asked about it (a probe, as `llmasos models --estimate` makes it),
so the page says what the code does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gguf as package
import torch
from safetensors.torch import load_file, save_file

from llmasos.drivers.cpu import open_device
from llmasos.drivers.engine import files
from llmasos.drivers.engine.engine import Engine
from llmasos.drivers.protocol import Probe
from llmasos.modelfiles import gguf_items
from llmasos.syscalls.errno import SyscallError
from tests import models_zoo
from tests.drivers.quantised.methods import METHODS, quantised
from tests.gguf_writer import convert

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- made by python -m tests.file_matrix -->", "<!-- end -->"
DTYPES = ("", "fp32", "bf16", "int8", "int4")
PLAIN = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WRITTEN = (
    "F32",
    "F16",
    "BF16",
    "Q8_0",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "MXFP4",
)  # what the gguf package quantises
_INTEGERS = ("I8", "I16", "I32", "I64", "F64")
NAMES = {
    "gptq": "GPTQ, 4 bits, groups of 32", "awq": "AWQ, 4 bits, groups of 32",
    "W4A16": "compressed-tensors W4A16, groups of 32", "W8A8": "compressed-tensors W8A8",
    "fp8": "FP8 by block", "nf4": "bitsandbytes nf4",
}  # fmt: skip


def forms(model: Path, place: Path) -> Iterator[tuple[str, Path]]:
    """The model in every form that is written here: what it is called, and where it is."""
    for name, dtype in PLAIN.items():
        there = place / name
        there.mkdir()
        for file in model.glob("*.json"):
            (there / file.name).write_bytes(file.read_bytes())
        tensors = load_file(model / "model.safetensors")
        save_file(
            {key: value.to(dtype) for key, value in tensors.items()},
            there / "model.safetensors",
            {"format": "pt"},
        )
        yield f"safetensors, {name}", there
    for method in METHODS:
        (place / method).mkdir()
        yield NAMES[method], quantised(model, method, place / method)[0]
    for kind in WRITTEN:
        yield f"GGUF {kind}", convert(model, place / f"{kind}.gguf", kind)


def cell(device: Engine, path: Path, dtype: str) -> str:
    """What a driver makes of a file: the engine (and dtype, where none was asked for), and whether integers stay."""
    try:
        probed = device.probe(Probe(1, str(path), dtype))
    except SyscallError:
        return "-"
    kind = device._models._kind(files.read_config(path), probed.dtype).name
    words = [kind if dtype else f"{probed.dtype}, {kind}"]
    return ", ".join(words + ["as it is"] * probed.stored.endswith("as it is"))


def table(model: Path, place: Path, device: Engine) -> list[str]:
    place.mkdir()
    rows = ["| file | no dtype asked | fp32 | bf16 | int8 | int4 |", "|---|---|---|---|---|---|"]
    for name, path in forms(model, place):
        rows.append(f"| {name} | " + " | ".join(cell(device, path, dtype) for dtype in DTYPES) + " |")
    return rows


def page() -> str:
    with tempfile.TemporaryDirectory() as base:
        device = open_device({"threads": "1", "installed": "no"})
        assert isinstance(device, Engine)
        # As on a CPU that multiplies bf16, whichever this is.
        device._models._dtypes = replace(device._models._dtypes, default="bf16")
        llama = models_zoo.build("llama", Path(base, "llama"))
        other = models_zoo.build("gpt2", Path(base, "gpt2"))
        lines = ["A llama (which the native decoder knows):", "", *table(llama, Path(base, "a"), device), ""]
        lines += ["A gpt2 (which only the torch engine runs):", "", *table(other, Path(base, "b"), device)]
    names = [kind.name for kind in package.GGMLQuantizationType if kind.name not in (*WRITTEN, *_INTEGERS)]
    kinds = sorted(name for name in names if gguf_items.known(name))
    lines += ["", f"GGUF items of {', '.join(kinds)} are dequantised likewise."]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.file_matrix", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the page is fresh")
    check = parser.parse_args().check
    before = PAGE.read_text()
    head, _, rest = before.partition(BEGIN)
    fresh = f"{head}{BEGIN}\n\n{page()}\n\n{END}{rest.partition(END)[2]}"
    if not check:
        PAGE.write_text(fresh)
    elif fresh != before:
        print("docs/models.md is stale: python -m tests.file_matrix", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
