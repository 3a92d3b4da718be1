"""Train the embedded model from nothing: `python models/tiny/train.py --out DIR`.

Writes the text, fits the tokenizer, trains the network and saves all of it in ordinary transformers format. Two idle
cores do it in about an hour (README.md has what was measured). A run that is stopped goes on from its last checkpoint
when started again.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import torch
from transformers import GenerationConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from llmasos.models.tiny.recipe.batches import corpus
from llmasos.models.tiny.recipe.tokenizer import train_tokenizer
from llmasos.models.tiny.recipe.training import Plan, train

CORPUS_CONVERSATIONS = 20_000

# What torch and glibc read when they are loaded. Threads that spin while they wait waste a core that other programs may
# need. Memory handed back after every operation has to be cleared by the system before the next: kept, and in large
# pages, a step takes a quarter less time.
SURROUNDINGS = {
    "OMP_WAIT_POLICY": "passive",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
}


def main() -> None:
    """Read the command line, train, save."""
    if not os.environ.items() >= SURROUNDINGS.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **SURROUNDINGS})
    parser = argparse.ArgumentParser(description="Train the embedded model.")
    parser.add_argument("--out", type=Path, required=True, help="directory to write the model to")
    parser.add_argument("--steps", type=int, default=Plan.steps, help="training steps (default: %(default)s)")
    parser.add_argument("--muon-rate", type=float, default=Plan.muon_rate, help="peak rate for the matrices")
    parser.add_argument(
        "--processes",
        type=int,
        default=Plan.processes,
        help="that share the work (default: %(default)s)",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=Path(tempfile.gettempdir()) / "llmasos-tiny.pt",
        help="where a stopped run goes on from (default: %(default)s)",
    )
    options = parser.parse_args()
    plan = Plan(steps=options.steps, processes=options.processes, muon_rate=options.muon_rate)
    print("fitting the tokenizer", flush=True)
    tokenizer = train_tokenizer(corpus(plan.seed, CORPUS_CONVERSATIONS))
    model, cpu_seconds = train(plan, tokenizer, options.checkpoint, lambda line: print(line, flush=True))
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.to(torch.bfloat16).save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    (options.out / "model.safetensors").chmod(0o644)
    options.checkpoint.unlink(missing_ok=True)
    print(f"{model.num_parameters():,} parameters saved to {options.out} after {cpu_seconds:,.0f} CPU seconds")


if __name__ == "__main__":
    main()
