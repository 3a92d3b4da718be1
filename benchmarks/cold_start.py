"""What a person waits for: from starting a program to the first token of the embedded model, in seconds.

Each start is a process of its own; the time ends when its first line is read. In turns: a program of this system with
nothing running, and where a kernel runs (the model in memory, as it is after the first program); llama.cpp on a GGUF of
the same weights (`make peers`; two tokens, without a tokenizer); transformers. And the two commands that people
type most.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.report import Figure

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "models" / "tiny"
LLAMA = ROOT / ".peers" / "llama_cpp" / "bin" / "python"
ROUNDS = 7
NOTHING_SECONDS, HELP_SECONDS, PS_SECONDS = 1.5, 0.15, 0.3
LLAMA_RATIO = 1.2

AGENT = """
import llmasos
with llmasos.System.connect(boot=True) as system:
    for piece in system.spawn().say("My name is Ada."):
        print(repr(piece), flush=True)
        break
"""
TRANSFORMERS = f"""
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({str(TINY)!r}, dtype=torch.bfloat16)
tokenizer = AutoTokenizer.from_pretrained({str(TINY)!r})
asked = [{{"role": "user", "content": "My name is Ada."}}]
inputs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
token = model.generate(**inputs, max_new_tokens=1, do_sample=False)[0, -1]
print(repr(tokenizer.decode(token)), flush=True)
"""
CONVERT = """
import sys
from benchmarks.peers.workers.llama_cpp import LlamaCpp
LlamaCpp("q8_0").convert(sys.argv[1], sys.argv[2])
"""
LLAMA_CPP = """
import os, sys
from benchmarks.peers.workers.llama_cpp import LlamaCpp
engine = LlamaCpp("q8_0")
engine.load(sys.argv[1], len(os.sched_getaffinity(0)), 1, 256)
print(engine.measure([[int(word) for word in sys.argv[2].split(",")]], 2).tokens, flush=True)
"""


def first_line(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Seconds until a program has printed a line. Raises RuntimeError with what it said if it fails."""
    with tempfile.TemporaryFile() as said:
        began = time.perf_counter()
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, env=environment, cwd=ROOT
        ) as program:
            assert program.stdout is not None
            line = program.stdout.readline()
            seconds = time.perf_counter() - began
            program.stdout.read()
        if program.returncode or not line:
            said.seek(0)
            raise RuntimeError(f"{command[0]} ended with {program.returncode}: {said.read().decode()[-2000:]}")
    return seconds


def _prompt() -> list[int]:
    """The ids that the other engines are asked about."""
    from llmasos.userland.sdk.tokenizer_files import load_tokenizer

    return load_tokenizer(str(TINY)).encode("<|bos|><|user|>My name is Ada.<|end|><|assistant|>", control=True)


def run() -> list[Figure]:
    python = sys.executable
    with tempfile.TemporaryDirectory(prefix="llmasos-cold-") as place:
        alone = {**os.environ, "LLMASOS_RUNTIME": str(Path(place, "alone"))}
        shared = {**os.environ, "LLMASOS_RUNTIME": str(Path(place, "shared"))}
        llmasos = [python, "-m", "llmasos"]
        starts: dict[str, tuple[list[str], Mapping[str, str]]] = {
            "nothing": ([python, "-c", AGENT], alone),
            "kernel": ([python, "-c", AGENT], shared),
            "help": ([*llmasos, "--help"], shared),
            "ps": ([*llmasos, "ps"], shared),
            "transformers": ([python, "-c", TRANSFORMERS], dict(os.environ)),
        }
        if LLAMA.exists():
            file = str(Path(place, "tiny.gguf"))
            paths = {**os.environ, "PYTHONPATH": str(ROOT)}
            subprocess.run([LLAMA, "-c", CONVERT, TINY, file], env=paths, cwd=ROOT, check=True, capture_output=True)
            prompt = ",".join(map(str, _prompt()))
            starts["llama.cpp"] = ([str(LLAMA), "-c", LLAMA_CPP, file, prompt], paths)
        else:
            print("llama.cpp is not installed (make peers): left out", file=sys.stderr)
        seconds: dict[str, list[float]] = {name: [] for name in starts}
        subprocess.run([*llmasos, "boot", "--detach"], env=shared, check=True, capture_output=True)
        try:
            for count in range(ROUNDS + 1):
                for name, (command, environment) in starts.items():
                    taken = first_line(command, environment)
                    if count:  # the first fills the page cache, and the cache of installed models
                        seconds[name].append(taken)
        finally:
            subprocess.run([*llmasos, "halt"], env=shared, check=True, capture_output=True)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    other, called = median["transformers"], "transformers"
    figures = [
        Figure("first token, from nothing", median["nothing"], "s", target=NOTHING_SECONDS),
        Figure("first token, from nothing", median["nothing"], "s", other, called),
        Figure("first token, where a kernel runs", median["kernel"], "s", other, called),
        Figure("llmasos --help", median["help"], "s", target=HELP_SECONDS),
        Figure("llmasos ps", median["ps"], "s", target=PS_SECONDS),
    ]
    if "llama.cpp" in median:
        llama = median["llama.cpp"], "llama.cpp Q8_0"
        figures[2:2] = [
            Figure("first token, from nothing", median["nothing"], "s", *llama),
            Figure("first token, where a kernel runs", median["kernel"], "s", *llama, LLAMA_RATIO),
        ]
    return figures
