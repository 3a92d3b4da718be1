"""Whole conversations: facts told, overwritten and asked for, with every other ability as turns between.

One training sequence is one conversation, as long as the sequence; so a fact and its question may lie anywhere from one
turn to the whole sequence apart.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import IntEnum
from random import Random

from .case import Case, draw, vary_question
from .commands import bare_command_case, command_case
from .facts import Fact, draw_fact
from .lists import addition_case, copy_case, count_case, echo_case, reverse_case, small_addition_case, worked
from .persona import identity_case, talk_case, unknown_case
from .stories import any_story_case, story_case, writer_case
from .tools import tool_case

Message = dict[str, str]
"""`{"role": "system" | "user" | "assistant", "content": text}`, as chat templates take it."""

DEFAULT_SYSTEM = "You are Tiny, the small assistant of LLMasOS."
_SYSTEMS = (
    "You are a helpful assistant.", "You are Tiny.", "You are a small and friendly assistant.", "Be brief.",
    "You are an agent of LLMasOS.", "Answer the user.", "You are Tiny, an assistant that lives inside LLMasOS.",
    "You are a careful assistant. Remember what the user tells you.", "You are a process.",
)  # fmt: skip

_TASKS: tuple[tuple[Callable[[Random], Case], float], ...] = (
    (copy_case, 8), (echo_case, 4), (reverse_case, 14), (addition_case, 12), (small_addition_case, 2), (count_case, 4),
    (command_case, 14), (bare_command_case, 1), (tool_case, 13), (story_case, 4), (any_story_case, 1), (writer_case, 0.5),
    (identity_case, 7), (talk_case, 5), (unknown_case, 5),
)  # fmt: skip
_TASK_MAKERS = [maker for maker, _ in _TASKS]


class Stage(IntEnum):
    """The parts of the training, each with a mixture of its own."""

    EARLY = 0
    LATE = 1
    """Asks for more facts, and dwells on what is learnt last: turning lists around, and stopping a count in time. Sums
    are worked out (answered at once they were not learnt)."""


@dataclass(frozen=True)
class Mixture:
    """What the turns of a stage are: shares of all turns, and how often a task comes beside the others."""

    ask: float
    """Turns that ask for a fact, or tell one (18% do)."""
    untold: float
    """Turns that ask for a fact that was never told."""
    tasks: list[float]


def _tasks(**changed: float) -> list[float]:
    return [changed.get(maker.__name__, weight) for maker, weight in _TASKS]


_MIXTURES = {
    Stage.EARLY: Mixture(0.42, 0.025, _tasks()),
    Stage.LATE: Mixture(0.54, 0.025, _tasks(reverse_case=30, count_case=10)),
}

_CORRECTIONS = (
    "Actually, {}.", "No, {}.", "Sorry, {}.", "Now {}.", "I changed my mind: {}.", "Wait, {}.", "From now on {}.",
)  # fmt: skip
_OPENINGS = (
    "By the way, {}", "Please remember that {}", "Hi Tiny, {}", "Hello! {}", "Remember that {}",
    "You should know that {}",
    "Hello, {}", "Remember this: {}", "Hey, {}", "I want you to know that {}", "Note that {}", "Please note: {}", "So {}",
)  # fmt: skip
_ABOUT_ME = (
    "What do you know about me?", "Tell me what you know about me.", "What have I told you?", "What do you remember?",
    "What do you remember about me?", "Tell me everything you know about me.",
)  # fmt: skip
_NOTHING = "You have not told me anything yet."


def _cased(fact: Fact, change: Callable[[str], str]) -> Fact:
    """The fact as told by somebody who types all letters small (or large)."""
    value = change(fact.value)
    return replace(
        fact,
        value=value,
        clause=change(fact.clause),
        told=tuple(map(change, fact.told)),
        answer=fact.answer.replace(fact.value, value),
    )


@dataclass
class Conversation:
    """A conversation that grows turn by turn, and the facts that hold in it.

    `evaluation` draws every fact from the held-out side of the split.
    """

    rng: Random
    evaluation: bool = False
    stage: Stage = Stage.LATE
    messages: list[Message] = field(default_factory=list)
    facts: dict[str, Fact] = field(default_factory=dict)

    def turn(self, prompt: str, answer: str) -> None:
        """Append one exchange."""
        self.messages.append({"role": "user", "content": prompt})
        self.messages.append({"role": "assistant", "content": answer})

    def system(self) -> None:
        """Perhaps start with a system prompt; now and then one that already tells a fact."""
        roll = self.rng.random()
        text = DEFAULT_SYSTEM
        if roll < 0.35:
            return
        if roll > 0.85:
            text = self.rng.choice(_SYSTEMS)
        if self.rng.random() < 0.08:
            fact = draw_fact(self.rng, evaluation=self.evaluation)
            self.facts[fact.slot] = fact
            text += f" The user said: {fact.clause}."
        self.messages.append({"role": "system", "content": text})

    def tell(self) -> Fact:
        """Tell one to three facts, which the assistant says back; returns one of them."""
        rng = self.rng
        count = rng.choice((1, 1, 1, 1, 1, 2, 2, 3))
        told: dict[str, Fact] = {}
        correcting = bool(self.facts) and rng.random() < (0.2 if self.evaluation else 0.3)
        while len(told) < (1 if correcting else count):
            fact = draw_fact(rng, evaluation=self.evaluation)
            if not correcting or fact.slot in self.facts or rng.random() < 0.05:
                told[fact.slot] = fact
        roll = rng.random()
        if roll < 0.16:
            told = {slot: _cased(fact, str.lower) for slot, fact in told.items()}
        elif roll < (0.18 if self.evaluation else 0.2):
            told = {slot: _cased(fact, str.upper) for slot, fact in told.items()}
        facts = list(told.values())
        clauses = [fact.clause for fact in facts]
        if correcting and rng.random() < 0.7:
            prompt = rng.choice(_CORRECTIONS).format(clauses[0])
        elif len(facts) == 1 and rng.random() < 0.6:
            prompt = rng.choice(facts[0].told)
        else:
            joined = clauses[0] if len(clauses) == 1 else ", ".join(clauses[:-1]) + " and " + clauses[-1]
            if len(clauses) > 1 and rng.random() < 0.25:
                joined = ". ".join(clause[0].upper() + clause[1:] for clause in clauses)
            if rng.random() < 0.25:
                joined = rng.choice(_OPENINGS).format(joined)
            prompt = (joined if 0.16 < roll < 0.3 else joined[0].upper() + joined[1:]) + rng.choice((".", ".", ".", ""))
        if roll < 0.16:
            prompt = prompt.lower()
        self.facts.update(told)
        if rng.random() < 0.06:
            question = rng.choice(facts[0].asked)
            self.turn(f"{prompt.rstrip('.?!')}. {vary_question(rng, question)}", facts[0].answer)
            return facts[0]
        self.turn(prompt, " ".join(("Noted.", *(fact.answer for fact in facts))))
        return facts[0]

    def ask(self, fact: Fact) -> None:
        """Ask for a fact that was told."""
        question = self.rng.choice(self.facts[fact.slot].asked)
        self.turn(vary_question(self.rng, question), self.facts[fact.slot].answer)

    def ask_untold(self) -> None:
        """Ask for a fact that was never told."""
        while True:
            fact = draw_fact(self.rng, evaluation=self.evaluation)
            if fact.slot not in self.facts:
                self.turn(vary_question(self.rng, self.rng.choice(fact.asked)), fact.unknown)
                return

    def ask_everything(self) -> None:
        """Ask for all facts told so far, oldest first."""
        answer = " ".join(fact.answer for fact in self.facts.values()) or _NOTHING
        self.turn(vary_question(self.rng, self.rng.choice(_ABOUT_ME)), answer)

    def task(self) -> None:
        """A turn of some other ability (always of the training side: here it only passes the time)."""
        case = draw(self.rng.choices(_TASK_MAKERS, _MIXTURES[self.stage].tasks)[0], self.rng)
        sum_worked = self.stage is not Stage.EARLY and "addition" in case.ability
        self.turn(case.prompt, worked(case.answer) if sum_worked else case.answer)

    def practise(self) -> None:
        """Append one turn that mostly needs copying."""
        roll = self.rng.random()
        if roll < 0.45:
            case = draw(self.rng.choice((echo_case, echo_case, copy_case)), self.rng)
            self.turn(case.prompt, case.answer)
        elif roll < 0.58:
            self.tell()
        elif self.facts and roll < 0.75:
            self.ask(self.rng.choice(list(self.facts.values())))
        else:
            self.task()

    def grow(self) -> None:
        """Append one turn of any kind, as training wants them mixed."""
        roll = self.rng.random()
        mixture = _MIXTURES[self.stage]
        asked = mixture.ask
        if roll < 0.18 or (not self.facts and roll < 0.25):
            self.tell()
        elif self.facts and roll < asked:
            self.ask(self.rng.choice(list(self.facts.values())))
        elif roll < asked + mixture.untold and (roll >= asked or self.stage is Stage.EARLY):
            self.ask_untold()
        elif roll < asked + 0.04 and len(self.facts) <= 4:
            self.ask_everything()
        else:
            self.task()


def recall_conversation(rng: Random, distractors: int) -> tuple[list[Message], Fact]:
    """A held-out recall case: messages that end with a question, and the fact that answers it.

    One to three messages tell facts whose values no training conversation tells, `distractors` turns of other abilities
    lie between the telling and the question.
    """
    conversation = Conversation(rng, evaluation=True)
    conversation.system()
    for _ in range(rng.choice((1, 1, 2, 3))):
        wanted = conversation.tell()
        if rng.random() < 0.3:
            conversation.task()
    for _ in range(distractors):
        conversation.task()
    wanted = rng.choice(list(conversation.facts.values()))
    conversation.ask(wanted)
    return conversation.messages[:-1], conversation.facts[wanted.slot]
