"""What transformers itself makes of a model: greedy tokens and log-probabilities, with its own attention and cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from tests import models_zoo

PROMPT = 50  # tokens: longer than the zoo's windows
DECODED = 30


@dataclass
class Reference:
    prompt: list[int]
    tokens: list[int]  # greedy continuation
    logprobs: torch.Tensor  # [tokens, vocab]


def prompt(seed: int = 0, length: int = PROMPT) -> list[int]:
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randint(0, 256, (length,), generator=generator).tolist()


def greedy(directory: Path, tokens: list[int], count: int = DECODED) -> Reference:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32)
    with torch.inference_mode():
        out = model.generate(
            torch.tensor([tokens]),
            attention_mask=torch.ones(1, len(tokens), dtype=torch.long),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=models_zoo.PAD,
            output_logits=True,
            return_dict_in_generate=True,
        )
    logits = torch.stack([step[0] for step in out.logits]).float()
    return Reference(tokens, out.sequences[0, len(tokens) :].tolist(), torch.log_softmax(logits, -1))
