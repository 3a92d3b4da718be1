"""What rounding costs: perplexity and top-1 agreement of bf16, int8 and int4 weights, of int8 keys and values, and of the
integers of quantised files as they are, against fp32, on the embedded model and held-out conversations.

Counted are the tokens that the assistant writes, the ones the model was trained for, given all that stands before them.
All go through the CPU driver's own images, as they would in a step. The perplexities are compared as ratios to fp32's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from benchmarks.report import Figure
from llmasos.modelfiles import gguf_items
from llmasos.modelfiles.tensors import Packed, Tensor, Weights

CONVERSATIONS = 150
CHARACTERS = 1500  # of a conversation, some 400 tokens
SEED = 31_000
BLOCKS = 128  # frames of KV: the model's whole window
SMALL_KV = "int8, int8 KV"
Q8_0, Q4_0 = "int8, GGUF Q8_0 as it is", "int4, GGUF Q4_0 as it is"
INT8_GROUPS, INT4_GROUPS, INT4_ZEROS = (
    "int8, groups of 128 (compressed-tensors)",
    "int4, groups of 32 (compressed-tensors)",
    "int4, groups of 128 with zeros (GPTQ, AWQ)",
)
MOST_LOST = {  # times the perplexity of fp32; groups of 128 are coarser than what int4 is aimed at
    "int8": 1.005, SMALL_KV: 1.005, "int4": 1.05, Q8_0: 1.005, Q4_0: 1.05, INT8_GROUPS: 1.005, INT4_GROUPS: 1.05,
}  # fmt: skip
TINY = Path(__file__).resolve().parents[1] / "models" / "tiny"


def conversations(tokenizer: Any, count: int = CONVERSATIONS) -> Iterator[tuple[list[int], list[bool]]]:
    """Token ids of held-out conversations, and which of them the assistant writes."""
    from llmasos.models.tiny.recipe.batches import render
    from llmasos.models.tiny.recipe.conversation import Conversation

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


@dataclass(frozen=True)
class Requantised:
    """Weights (modelfiles.tensors.Weights) whose matrices are integers, as a quantised file has them: rounded to the
    nearest, with none of a quantiser's care."""

    plain: Weights
    quantise: Callable[[str, np.ndarray], Packed | None]  # name, weights [columns, inputs]

    def names(self) -> Collection[str]:
        return self.plain.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.plain.shape(name)

    def get(self, name: str) -> Tensor:
        packed = self.packed(name)
        if packed is None:
            return self.plain.get(name)
        zero: Any = packed.zero if packed.zero is not None else 8 if packed.bits == 4 else 0
        zeros = np.broadcast_to(zero, packed.scale.shape).astype(np.float32)
        columns, inputs = packed.values.shape
        values = np.asarray(packed.values).reshape(columns, -1, packed.group).astype(np.float32)
        return Tensor("F32", ((values - zeros[..., None]) * packed.scale[..., None]).reshape(columns, inputs))

    def by_rows(self, name: str) -> Tensor:
        return self.get(name)

    def packed(self, name: str) -> Packed | None:
        return self.quantise(name, self.plain.get(name).float32()) if len(self.shape(name)) == 2 else None


def of_gguf(kind: str) -> Callable[[str, np.ndarray], Packed | None]:
    """As the gguf package quantises to `kind`; embeddings to 8 bits, since files of 4 bits keep them finer."""

    def quantise(name: str, weights: np.ndarray) -> Packed | None:
        from gguf import GGMLQuantizationType, quants

        chosen = "Q8_0" if "embed_tokens" in name else kind
        return gguf_items.packed(chosen, quants.quantize(weights, GGMLQuantizationType[chosen]))

    return quantise


def in_groups(bits: int, group: int, zeros: bool) -> Callable[[str, np.ndarray], Packed | None]:
    """As GPTQ, AWQ and compressed-tensors store the layers' matrices, without what they do to choose the integers."""

    def quantise(name: str, weights: np.ndarray) -> Packed | None:
        if "embed_tokens" in name:
            return None
        least, most = (0, 15) if bits == 4 else (-128, 127)
        groups = weights.reshape(len(weights), -1, group)
        low, high = groups.min(2), groups.max(2)
        zero = None
        if zeros:
            scale = ((high - low) / (most - least)).astype(np.float16).astype(np.float32)
            zero = np.clip(np.rint(least - low / scale), least, most)
        else:
            scale = (np.maximum(-low, high) / ((most - least) / 2)).astype(np.float16).astype(np.float32)
        middle = zero if zero is not None else np.full(scale.shape, 8.0 if bits == 4 else 0.0)
        values = np.clip(np.rint(groups / scale[..., None] + middle[..., None]), least, most)
        of = np.uint8 if bits == 4 else np.int8
        return Packed(
            bits,
            group,
            values.reshape(weights.shape).astype(of),
            scale,
            None if zero is None else zero.astype(np.int8),
        )

    return quantise


FORMS = {
    Q8_0: of_gguf("Q8_0"),
    Q4_0: of_gguf("Q4_0"),
    INT8_GROUPS: in_groups(8, 128, zeros=False),
    INT4_GROUPS: in_groups(4, 32, zeros=False),
    INT4_ZEROS: in_groups(4, 128, zeros=True),
}


def logits_by_dtype() -> Iterator[tuple[str, list[Any]]]:
    """For each dtype the logits [tokens - 1, vocab] before each token of each conversation; in fp32 by torch."""
    import torch
    from transformers import AutoTokenizer

    from llmasos.drivers.cpu.native import library
    from llmasos.drivers.cpu.native.image import NativeKind
    from llmasos.drivers.engine import files
    from llmasos.drivers.engine.contexts import Context
    from llmasos.drivers.engine.image import Examined, ImageKind
    from llmasos.drivers.engine.torch_kind import TorchKind
    from llmasos.drivers.protocol import Run

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    native = library.load()
    kinds: dict[str, ImageKind] = {"fp32": TorchKind(), "bf16": TorchKind()}
    if isinstance(native, library.Library):
        kinds |= dict.fromkeys(("bf16", "int8", "int4"), NativeKind(native, 2))
        kinds[SMALL_KV] = NativeKind(native, 2, kv="int8")
        kinds |= dict.fromkeys(FORMS, kinds["int8"])
    raw = files.read_config(TINY)
    for name, kind in kinds.items():
        dtype = name.partition(",")[0]
        config, layout = kind.examine(TINY, raw, lambda: None)

        def weights(form: str = name, dtype: str = dtype) -> Weights:
            plain = files.open_weights(TINY, raw, dtype)
            return Requantised(plain, FORMS[form]) if form in FORMS else plain

        image = kind.build(Examined(TINY, config, layout, dtype, weights), BLOCKS, lambda fraction: None)
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
            Figure(f"perplexity, {dtype}, {count:,} tokens", perplexity, "", plain, "fp32", MOST_LOST.get(dtype))
        )
        figures.append(Figure(f"top-1 agreement with fp32, {dtype}", agreed / count, "", None, "", None, "higher"))
    return figures


if __name__ == "__main__":
    from benchmarks.report import table

    print(table(run()))
