"""Train the embedded model from nothing: `python models/tiny/train.py --out DIR`.

Writes the text, fits the tokenizer, trains the network and saves all of it in ordinary transformers format. Two idle
cores do it in under an hour. A run that is stopped goes on from its last checkpoint when started again.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

# Threads that spin while they wait waste a core that other programs may need; torch reads this when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from transformers import GenerationConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models.tiny.recipe.batches import corpus
from models.tiny.recipe.tokenizer import train_tokenizer
from models.tiny.recipe.training import Plan, train

CORPUS_CONVERSATIONS = 20_000


def main() -> None:
    """Read the command line, train, save."""
    parser = argparse.ArgumentParser(description="Train the embedded model.")
    parser.add_argument("--out", type=Path, required=True, help="directory to write the model to")
    parser.add_argument("--steps", type=int, default=Plan.steps, help="training steps (default: %(default)s)")
    parser.add_argument("--muon-rate", type=float, default=Plan.muon_rate, help="peak rate for the matrices")
    parser.add_argument(
        "--threads", type=int, default=Plan.threads, help="CPU threads (default: %(default)s)"
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=Path(tempfile.gettempdir()) / "llmasos-tiny.pt",
        help="where a stopped run goes on from (default: %(default)s)",
    )
    options = parser.parse_args()
    plan = Plan(steps=options.steps, threads=options.threads, muon_rate=options.muon_rate)
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
    print(
        f"{model.num_parameters():,} parameters saved to {options.out} after {cpu_seconds:,.0f} CPU seconds"
    )


if __name__ == "__main__":
    main()
