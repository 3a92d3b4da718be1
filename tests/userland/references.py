"""What transformers says to a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PROMPT = "The kernel decides, drivers do"


def reference_ids(directory: Path, prompt: str, **options: Any) -> list[int]:
    """The tokens transformers generates after the prompt."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ids = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**ids, do_sample=False, **options)
    return [int(i) for i in out[0][ids.input_ids.shape[1] :]]


def reference(directory: Path, prompt: str, **options: Any) -> str:
    """What transformers generates after the prompt, as text."""
    from transformers import AutoTokenizer

    ids = reference_ids(directory, prompt, **options)
    return str(AutoTokenizer.from_pretrained(directory).decode(ids, skip_special_tokens=True))
