"""What rounding costs: perplexity and top-1 agreement of bf16, int8 and int4 weights, and of int8 keys and values,
against fp32, on the embedded model and held-out conversations.

Counted are the tokens that the assistant writes, the ones the model was trained for, given all that stands before them.
All go through the CPU driver's own images, as they would in a step. The perplexities are compared as ratios to fp32's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.report import Figure

CONVERSATIONS = 150
CHARACTERS = 1500  # of a conversation, some 400 tokens
SEED = 31_000
BLOCKS = 128  # frames of KV: the model's whole window
SMALL_KV = "int8, int8 KV"
MOST_LOST = {"int8": 1.005, SMALL_KV: 1.005, "int4": 1.05}  # times the perplexity of fp32
TINY = Path(__file__).resolve().parents[1] / "models" / "tiny"


def conversations(tokenizer: Any, count: int = CONVERSATIONS) -> Iterator[tuple[list[int], list[bool]]]:
    """Token ids of held-out conversations, and which of them the assistant writes."""
    from models.tiny.recipe.batches import render
    from models.tiny.recipe.conversation import Conversation

    roles = {tokenizer.convert_tokens_to_ids(f"<|{role}|>"): role for role in ("system", "user", "assistant")}
    for index in range(count):
        conversation = Conversation(Random(f"{SEED}:{index}"), evaluation=True)
        conversation.system()
        while sum(len(message["content"]) for message in conversation.messages) < CHARACTERS:
            conversation.grow()
        ids = tokenizer(render(conversation.messages), add_special_tokens=False)["input_ids"][: BLOCKS * 16]
        speaker, written = "", []
        for token in ids:
            written.append(speaker == "assistant" and token not in roles)
            speaker = roles.get(token, speaker)
        yield ids, written


def logits_by_dtype() -> Iterator[tuple[str, list[Any]]]:
    """For each dtype the logits [tokens - 1, vocab] before each token of each conversation; in fp32 by torch."""
    import torch
    from transformers import AutoTokenizer

    from drivers.cpu.native import library
    from drivers.cpu.native.image import NativeKind
    from drivers.engine import files
    from drivers.engine.contexts import Context
    from drivers.engine.image import ImageKind
    from drivers.engine.torch_kind import TorchKind
    from drivers.protocol import Run

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    native = library.load()
    kinds: dict[str, ImageKind] = {"fp32": TorchKind(), "bf16": TorchKind()}
    if isinstance(native, library.Library):
        kinds |= dict.fromkeys(("bf16", "int8", "int4"), NativeKind(native, 2))
        kinds[SMALL_KV] = NativeKind(native, 2, kv="int8")
    raw = files.read_config(TINY)
    for name, kind in kinds.items():
        dtype = name.partition(",")[0]
        config, layout = kind.examine(TINY, raw, lambda: None)
        image = kind.build(
            TINY, lambda: files.open_weights(TINY, raw), config, layout, dtype, BLOCKS, lambda fraction: None
        )
        logits = []
        for ids, _ in conversations(tokenizer):
            run, context = Run(0, 0, 0, ids[:-1], 0, list(range(BLOCKS))), Context(0)
            if fault := image.check(run) or context.follow(run):
                raise RuntimeError(fault)
            rows = image.forward(image.prepare([run], [context]), list(range(len(ids) - 1)))
            logits.append(torch.from_numpy(rows))
        image.close()
        yield name, logits


def run() -> list[Figure]:
    import torch
    from transformers import AutoTokenizer

    asked = list(conversations(AutoTokenizer.from_pretrained(TINY)))
    figures: list[Figure] = []
    plain = 0.0
    best: list[torch.Tensor] = []
    for dtype, logits in logits_by_dtype():
        lost, agreed, count = 0.0, 0, 0
        for index, ((ids, written), rows) in enumerate(zip(asked, logits, strict=True)):
            chosen = torch.tensor(written[1:])
            wanted = torch.tensor(ids[1:])[chosen]
            lost += float(torch.nn.functional.cross_entropy(rows[chosen].double(), wanted, reduction="sum"))
            greatest = rows[chosen].argmax(1)
            if dtype == "fp32":
                best.append(greatest)
            agreed += int((greatest == best[index]).sum())
            count += len(wanted)
        perplexity = math.exp(lost / count)
        plain = plain or perplexity
        if dtype == "fp32":
            continue
        figures.append(
            Figure(
                f"perplexity, {dtype}, {count:,} tokens", perplexity, "", plain, "fp32", MOST_LOST.get(dtype)
            )
        )
        figures.append(
            Figure(f"top-1 agreement with fp32, {dtype}", agreed / count, "", None, "", None, "higher")
        )
    return figures


if __name__ == "__main__":
    from benchmarks.report import table

    print(table(run()))
