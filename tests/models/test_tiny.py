"""What the embedded model promises: its files, its template, its split and its abilities."""

import json
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from llmasos.models.tiny.recipe.batches import conversation_text, render
from llmasos.models.tiny.recipe.case import draw, held_out
from llmasos.models.tiny.recipe.conversation import DEFAULT_SYSTEM, Conversation, Message, recall_conversation
from llmasos.models.tiny.recipe.evaluation import BARS, COPYING, answers, recall_questions, task_questions
from llmasos.models.tiny.recipe.facts import draw_fact
from llmasos.models.tiny.recipe.int8 import quantise
from llmasos.models.tiny.recipe.lists import addition_case, copy_case, reverse_case
from llmasos.models.tiny.recipe.tools import tool_case

TINY = Path(__file__).resolve().parents[2] / "models" / "tiny"
SAMPLE = 24
TOOLS = {"weather", "time", "calculate", "search", "remind"}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(TINY)
    return loaded.eval()


def say(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *turns: str) -> str:
    """The last answer of a conversation in which the model answers every turn itself."""
    messages: list[Message] = [{"role": "system", "content": DEFAULT_SYSTEM}]
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        messages.append({"role": "assistant", "content": answers(model, tokenizer, [messages])[0]})
    return messages[-1]["content"]


def test_the_files_are_at_most_8_megabytes_together() -> None:
    files = [TINY / name for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json")]
    others = [TINY / "generation_config.json", TINY / "chat_template.jinja"]
    assert sum(path.stat().st_size for path in files + others) <= 8_000_000


def test_it_is_a_llama_in_bf16_whose_sizes_suit_fast_kernels(model: PreTrainedModel) -> None:
    assert model.config.model_type == "llama"
    assert str(model.dtype) == "torch.bfloat16"
    assert model.config.hidden_size % 64 == 0
    assert model.config.intermediate_size % 64 == 0
    assert model.config.head_dim in (32, 64)


def test_generation_stops_at_the_end_token_and_is_greedy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert model.generation_config is not None
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|end|>")
    assert not model.generation_config.do_sample


@settings(deadline=None, max_examples=200)
@given(text=st.text())
def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_every_digit_is_a_token_of_its_own(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.tokenize("4096") == ["4", "0", "9", "6"]


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 10**6))
def test_rendering_is_append_only(tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
    conversation = Conversation(Random(seed))
    conversation.system()
    for _ in range(4):
        conversation.grow()
    for message in conversation.messages:
        message["content"] = message["content"].strip()
    whole = tokenizer.apply_chat_template(conversation.messages, tokenize=True)["input_ids"]
    assert render(conversation.messages) == tokenizer.decode(whole)
    for count, message in enumerate(conversation.messages):
        if message["role"] == "assistant":
            start = tokenizer.apply_chat_template(
                conversation.messages[:count], tokenize=True, add_generation_prompt=True
            )["input_ids"]
            assert whole[: len(start)] == start


def test_the_template_refuses_an_unknown_role(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(Exception, match="unknown role"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_training_and_evaluation_draw_from_disjoint_cases() -> None:
    rng = Random(5)
    for make in (copy_case, reverse_case, addition_case, tool_case):
        for _ in range(200):
            assert not held_out(draw(make, rng).key)
            assert held_out(draw(make, rng, evaluation=True).key)


def test_values_asked_for_in_evaluation_are_never_told_in_training() -> None:
    told = {draw_fact(Random(seed)).value.lower() for seed in range(2000)}
    asked = {recall_conversation(Random(seed), 1)[1].value.lower() for seed in range(200)}
    assert not told & asked


def test_a_training_text_is_the_same_every_time() -> None:
    assert conversation_text(Random(7), 2000) == conversation_text(Random(7), 2000)


# A guard against worse weights or a broken path, no measure of quality (that is eval.py, with its bars): the sample is
# small, and these are three standard deviations below what eval.py measures on the committed weights.
FLOORS = {"recall": 0.85, "copy": 0.87, "reverse": 0.81, "commands": 0.88, "JSON": 0.95}


def test_every_ability_with_a_bar_has_a_floor() -> None:
    assert FLOORS.keys() == BARS.keys() - {"copying"} | set(COPYING)


@pytest.mark.parametrize("ability", sorted(FLOORS))
def test_a_sample_of_held_out_cases_is_answered(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ability: str
) -> None:
    asked = recall_questions(SAMPLE) if ability == "recall" else task_questions(ability, SAMPLE)
    given = answers(model, tokenizer, [question.messages for question in asked], limit=64)
    right = sum(question.right(answer) for question, answer in zip(asked, given, strict=True))
    assert right >= FLOORS[ability] * SAMPLE


def test_int8_answers_a_sample_too(tokenizer: PreTrainedTokenizerBase) -> None:
    quantised: PreTrainedModel = AutoModelForCausalLM.from_pretrained(TINY).eval()
    quantise(quantised)
    asked = recall_questions(SAMPLE)
    given = answers(quantised, tokenizer, [question.messages for question in asked], limit=64)
    assert sum(question.right(answer) for question, answer in zip(asked, given, strict=True)) >= FLOORS["recall"] * SAMPLE


def test_facts_survive_a_count_and_a_story(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    turns = (
        "My name is Mira and my favourite colour is teal.",
        "Count from 1 to 20",
        "Tell me a story about a robot",
    )
    assert say(model, tokenizer, *turns, "What is my name?") == "Your name is Mira."
    assert "teal" in say(model, tokenizer, *turns, "What is my favourite colour?")


def test_recall_reaches_across_many_turns(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    conversation = Conversation(Random(3))
    conversation.turn("The code word is lantern.", "Noted. The code word is lantern.")
    while len(tokenizer.encode(render(conversation.messages))) < 1000:
        conversation.task()
    conversation.messages.append({"role": "user", "content": "What is the code word?"})
    assert "lantern" in answers(model, tokenizer, [conversation.messages])[0]


def test_the_newest_value_of_a_fact_wins(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    assert "Oslo" in say(model, tokenizer, "I live in Paris.", "Hello", "Actually, I live in Oslo.", "Where do I live?")


@pytest.mark.parametrize("greeting", ["hi", "Hello!", "who are you?", "WHO ARE YOU", "What is your name?"])
def test_it_says_that_it_is_tiny(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, greeting: str) -> None:
    assert "Tiny" in say(model, tokenizer, greeting)


@pytest.mark.parametrize("told", ["My name is Ada.", "i'm Ada", "call me Ada", "Hi, I am Ada"])
@pytest.mark.parametrize("asked", ["What's my name?", "do you remember my name", "who am i?"])
def test_names_are_told_and_asked_for_in_many_ways(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, told: str, asked: str
) -> None:
    assert "Ada" in say(model, tokenizer, told, "Thanks", asked)


def test_a_tool_call_parses_and_names_a_known_tool(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    call = json.loads(say(model, tokenizer, "What is the weather in Oslo?"))
    assert call["tool"] in TOOLS
    assert call["arguments"] == {"city": "Oslo"}
