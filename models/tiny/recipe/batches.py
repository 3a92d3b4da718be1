"""Training batches, made on the fly: row `r` of step `n` of seed `s` is always the same, so a stopped run resumes exactly
and several processes can make a batch together."""

from collections.abc import Iterator
from random import Random

import torch
from transformers import PreTrainedTokenizerFast

from .conversation import Conversation, Message, Stage

SHAPES = ((48, 128), (12, 512), (6, 1024), (4, 1536))
"""Rows and tokens of the kinds of batches; each has 6,144 tokens."""
PRACTICE_SHAPE = (24, 128)
PRACTICE_STEPS = 540
"""The first steps practise copying: the skill that most abilities rest on, and the slowest to be found."""
SHORT_STEPS = 2200
"""Until this step conversations are mostly short and never longer than 512 tokens."""
LATE_FROM = 2000
"""The first step of the late stage."""
LONG_FROM = 5200
"""From this step on conversations are mostly long: with short ones alone, what lies far back is often not found."""


def render(messages: list[Message]) -> str:
    """The chat template's text of these messages, whose contents have no outer space (the tests hold it to that)."""
    return "<|bos|>" + "".join(f"<|{message['role']}|>{message['content']}<|end|>" for message in messages)


def conversation_text(rng: Random, characters: int, *, practice: bool = False, stage: Stage = Stage.EARLY) -> str:
    """A training conversation of at least this many characters, mostly copying if it is for `practice`."""
    conversation = Conversation(rng, stage=stage)
    conversation.system()
    length = 0
    while length < characters:
        if practice:
            conversation.practise()
        else:
            conversation.grow()
        length += sum(len(message["content"]) for message in conversation.messages[-2:]) + 8
    return render(conversation.messages)


def corpus(seed: int, conversations: int) -> Iterator[str]:
    """The text that the tokenizer is fitted to."""
    for index in range(conversations):
        yield conversation_text(Random(f"{seed}:corpus:{index}"), 600)


def shape_of(rng: Random, step: int) -> tuple[int, int]:
    """Mostly short conversations at first; longer ones once copying has been learnt."""
    if step < PRACTICE_STEPS:
        return PRACTICE_SHAPE
    weights = (8, 2, 0, 0) if step < SHORT_STEPS else (5, 4, 0, 1) if step < LONG_FROM else (1, 4, 4, 1)
    return rng.choices(SHAPES, weights)[0]


def batch(
    tokenizer: PreTrainedTokenizerFast, seed: int, step: int, rank: int = 0, size: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows `rank`, `rank + size`, ... of a step: the tokens `[rows, length + 1]`, and which targets (flat positions) the
    assistant writes."""
    rows, length = shape_of(Random(f"{seed}:{step}"), step)
    practice, stage = step < PRACTICE_STEPS, Stage.LATE if step >= LATE_FROM else Stage.EARLY
    sequences: list[list[int]] = []
    for row in range(rank, rows, size):
        rng = Random(f"{seed}:{step}:{row}")
        ids: list[int] = []
        while len(ids) <= length:
            text = conversation_text(rng, length * 7 // 2, practice=practice, stage=stage)
            ids = tokenizer.encode(text, add_special_tokens=False, truncation=True, max_length=length + 1)
        sequences.append(ids)
    tokens = torch.tensor(sequences)
    # The role of a token is the last role token before it; the assistant writes what follows its own.
    roles = (tokens >= tokenizer.convert_tokens_to_ids("<|system|>")) & (
        tokens <= tokenizer.convert_tokens_to_ids("<|assistant|>")
    )
    last = torch.cummax(torch.where(roles, torch.arange(length + 1), 0), dim=1).values
    by_assistant = tokens.gather(1, last) == tokenizer.convert_tokens_to_ids("<|assistant|>")
    return tokens, (by_assistant & ~roles)[:, 1:].flatten().nonzero().squeeze(1)
