"""Held-out cases by ability, and the rule that says whether an answer to one is right."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .case import Maker, draw
from .commands import command_case
from .conversation import Conversation, Message, recall_conversation
from .lists import addition_case, copy_case, count_case, reverse_case, worked
from .persona import identity_case
from .stories import story_case
from .tokenizer import END
from .tools import tool_case

BARS = {"recall": 0.95, "copying": 0.95, "commands": 0.95, "JSON": 0.95}
"""The least accuracy that the model may have; what is not named here is reported only."""
COPYING = ("copy", "reverse")
"""The abilities whose mean is *copying*."""
LONGEST_ANSWER = {"counting": 160, "stories": 300}
"""Tokens after which an answer is cut off; `ANSWER_LIMIT` for abilities not named here."""
ANSWER_LIMIT = 90
ALONE = "recall alone"
"""Recall where the model has given all the answers before the question itself, instead of reading right ones."""
EVALUATION_SEED = 20_000
MOST_DISTRACTORS = 12
_AGAIN = 2000
"""Cases in a row that were had before, after which an ability is taken to have no more."""


@dataclass(frozen=True)
class Question:
    """Messages that end with the user's, and the answer wanted."""

    messages: list[Message]
    answer: str
    right: Callable[[str], bool]


def _same(answer: str) -> Callable[[str], bool]:
    return lambda given: given.strip() == answer


def _same_json(answer: str) -> Callable[[str], bool]:
    def right(given: str) -> bool:
        try:
            return bool(json.loads(given) == json.loads(answer))
        except ValueError:
            return False

    return right


def _says(value: str) -> Callable[[str], bool]:
    """The value stands in the answer as a word of its own."""
    return lambda given: re.search(rf"(?<!\w){re.escape(value)}(?!\w)", given) is not None


def _is_story(hero: str) -> Callable[[str], bool]:
    """Mentions the hero, has three sentences or more, ends with a full stop (or its quotation mark)."""

    def right(given: str) -> bool:
        sentences = re.findall(r"[.!?]\"?(?= |$)", given)
        return hero.lower() in given.lower() and len(sentences) >= 3 and re.search(r"\.\"?$", given) is not None

    return right


_MAKERS: dict[str, Maker] = {
    "copy": copy_case, "reverse": reverse_case, "commands": command_case, "JSON": tool_case, "addition": addition_case,
    "counting": count_case, "stories": story_case, "identity": identity_case,
}  # fmt: skip


def recall_questions(count: int, seed: int = EVALUATION_SEED) -> list[Question]:
    """Recall after none to `MOST_DISTRACTORS` other turns."""
    questions = []
    for index in range(count):
        rng = Random(f"{seed}:recall:{index}")
        messages, fact = recall_conversation(rng, rng.randrange(MOST_DISTRACTORS + 1))
        questions.append(Question(messages, fact.answer, _says(fact.value)))
    return questions


def task_questions(ability: str, count: int, seed: int = EVALUATION_SEED) -> list[Question]:
    """Held-out cases of an ability, no two alike (fewer than `count` if there are no more): half at the start of a
    conversation, half after some turns."""
    questions: list[Question] = []
    used: set[str] = set()
    rng = Random(f"{seed}:{ability}")
    again = 0
    while len(questions) < count and again < _AGAIN:
        case = draw(_MAKERS[ability], rng, evaluation=True)
        if case.key in used:
            if len(used) >= 40 and ability == "identity":
                used.clear()
            again += 1
            continue
        again = 0
        used.add(case.key)
        conversation = Conversation(rng)
        conversation.system()
        if len(questions) % 2:
            for _ in range(rng.randrange(1, 5)):
                conversation.grow()
        right = _same(worked(case.answer) if ability == "addition" else case.answer)
        if ability == "JSON":
            right = _same_json(case.answer)
        if ability == "stories":
            right = _is_story(case.key.removeprefix("story:").split()[-1])
        questions.append(Question([*conversation.messages, {"role": "user", "content": case.prompt}], case.answer, right))
    return questions


def questions_by_ability(count: int) -> dict[str, list[Question]]:
    """`count` held-out questions for each ability."""
    recall = recall_questions(count)
    return {"recall": recall, ALONE: recall} | {ability: task_questions(ability, count) for ability in _MAKERS}


def marks(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ability: str, questions: list[Question]
) -> list[tuple[str, bool]]:
    """The model's answers, each with whether it is right."""
    conversations = [question.messages for question in questions]
    if ability == ALONE:
        conversations = _spoken(model, tokenizer, conversations)
    limit = LONGEST_ANSWER.get(ability, ANSWER_LIMIT)
    given = answers(model, tokenizer, conversations, limit=limit)
    return [(answer, question.right(answer)) for question, answer in zip(questions, given, strict=True)]


def _spoken(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, conversations: list[list[Message]]
) -> list[list[Message]]:
    """The conversations with the model's own answers in them."""
    spoken = [list(messages) for messages in conversations]
    for at in range(max(map(len, spoken))):
        due = [messages for messages in spoken if at < len(messages) and messages[at]["role"] == "assistant"]
        if due:
            own = answers(model, tokenizer, [messages[:at] for messages in due])
            for messages, answer in zip(due, own, strict=True):
                messages[at] = {"role": "assistant", "content": answer.strip()}
    return spoken


@torch.inference_mode()
def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: list[list[Message]],
    *,
    limit: int = 300,
    rows: int = 50,
) -> list[str]:
    """The model's greedy answers, decoded in batches of `rows` conversations of like length."""
    texts = [
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) for messages in conversations
    ]
    found = [""] * len(texts)
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    end = tokenizer.convert_tokens_to_ids(END)
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        batch = tokenizer(
            [texts[index] for index in chosen],
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
        )
        output = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=limit,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=tokenizer.pad_token_id,
        )
        for index, ids in zip(chosen, output[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
            found[index] = tokenizer.decode(ids, skip_special_tokens=True)
    return found
