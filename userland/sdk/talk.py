"""The blocking face of the SDK: what a process says and is told.

Made from talk_async.py by `python -m llmasos.userland.sdk.mirror`; change that file.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

from llmasos.syscalls.records import ModelInfo, ProcessInfo, Sampler
from llmasos.syscalls.table import Feed
from llmasos.userland.sdk import (
    actions,
    answers,
    arguments,
    call_choice,
    compact,
    options,
    script,
    turns,
)
from llmasos.userland.sdk.actions import MAX_TOKENS, Language
from llmasos.userland.sdk.answers import Ended
from llmasos.userland.sdk.arguments import Ids, Strings, stop_strings
from llmasos.userland.sdk.dialogue import Message, Setup
from llmasos.userland.sdk.public import public
from llmasos.userland.sdk.script import Piece, Stream
from llmasos.userland.sdk.tool_calls import ToolCall
from llmasos.userland.sdk.turns import Answer

if TYPE_CHECKING:
    from llmasos.userland.sdk.system import System


def _user(text: str) -> Message:
    return {"role": "user", "content": arguments.text(text)}


class Talk:
    """The part of a `Process` that deals in text and tokens."""

    system: System
    """The system that it runs on."""
    pid: int
    """Its number in the process table."""
    model: ModelInfo
    """The model that it runs, in memory; `move` and `exec` change it."""
    hint: str
    """After an answer that has left little room in its window: what to do; else empty."""

    @public
    def __init__(
        self,
        system: System,
        pid: int,
        model: ModelInfo,
        instructions: str = "",
        setup: Setup | None = None,
    ) -> None:
        """A handle on process `pid`; `System.spawn` and `System.process` make them."""
        self.system = system
        self.pid = pid
        self.model = model
        self.hint = ""
        self._found: ProcessInfo | None = None  # its row when `info` looked last
        self._instructions = instructions
        self._setup = setup or Setup()  # holds where a call does not say

    @property
    def language(self) -> Language:
        """The tokenizer and chat format of its model.

        Example:
            ids = agent.language.encode("a fox")
        """
        return self.system.language(self.model)

    # --- text ---

    @public
    def say(
        self,
        text: str,
        max_tokens: int | None = None,
        *,
        stop: Strings = (),
        deadline: float | None = None,
        timeout: float | None = None,
        allow_special: bool = False,
    ) -> Generator[str, None]:
        """Say `text` as the user, and stream the answer without its thoughts. Leaving the loop early interrupts the
        answer; who keeps the stream in a variable closes it.

        A control token that the text spells (`<|im_end|>`) stays text, unless `allow_special`. Raises SyscallError:
        ENOTSUP (a model without a chat template), EINVAL, E2BIG (longer than the context), EBUSY, EDQUOT (a limit is
        reached), ETIME.

        Example:
            for piece in agent.say("Tell me a story.", max_tokens=20):
                print(piece, end="", flush=True)
        """
        turn = self._said([_user(text)], max_tokens, stop, deadline, allow_special)
        return script.stream(self.system.kernel, turn, self.pid, timeout, self)

    @public
    def pieces(
        self,
        text: str,
        max_tokens: int | None = None,
        *,
        stop: Strings = (),
        deadline: float | None = None,
        timeout: float | None = None,
        allow_special: bool = False,
    ) -> Generator[Piece, None]:
        """Say `text` as the user, and stream all of the answer: the `kind` of a piece is "thought", "answer" or "call".
        The rest is as for `say`.

        Example:
            for piece in agent.pieces("What is my name?"):
                print(piece.kind, piece.text)
        """
        turn = self._said([_user(text)], max_tokens, stop, deadline, allow_special)
        return script.pieces(self.system.kernel, turn, self.pid, timeout, self)

    @public
    def turn(
        self,
        said: str | Message | Sequence[Message],
        max_tokens: int | None = None,
        *,
        stop: Strings = (),
        deadline: float | None = None,
        timeout: float | None = None,
        allow_special: bool = False,
    ) -> Answer:
        """Say something, a text or messages of any roles, and return the whole answer: its text, thought, calls of tools,
        a hint when its window is nearly full, why it ended and how many tokens it has. Without messages it answers what
        its conversation holds. The rest is as for `say`.

        Example:
            answer = agent.turn({"role": "user", "content": "Tell me a story."}, max_tokens=5)
            if answer.finish is llmasos.Finish.LENGTH:
                print(answer.text, "... was cut after", answer.tokens, "tokens")
        """
        messages = [_user(said)] if isinstance(said, str) else arguments.messages(said, "what is said is text")
        turn = self._said(messages, max_tokens, stop, deadline, allow_special)
        answer = self.system.run(turns.answered(turn), timeout)
        answer.hint = self.hint
        return answer

    @public
    def reply_tool(
        self,
        call: ToolCall,
        result: str,
        max_tokens: int | None = None,
        *,
        stop: Strings = (),
        timeout: float | None = None,
    ) -> Answer:
        """Tell the model the result of the one tool that it called, and return its answer. Errors are those of `turn`.

        Example:
            answer = agent.turn("What is the weather?")
            for call in answer.calls:
                answer = agent.reply_tool(call, "sunny")
        """
        return self.reply_tools([(call, result)], max_tokens, stop=stop, timeout=timeout)

    @public
    def reply_tools(
        self,
        results: Sequence[tuple[ToolCall, str]],
        max_tokens: int | None = None,
        *,
        stop: Strings = (),
        timeout: float | None = None,
    ) -> Answer:
        """Tell the model the results of the tools that it called, in the order of the calls, and return its answer.
        Errors are those of `turn`.

        Example:
            answer = agent.turn("What is the weather?")
            if answer.calls:
                answer = agent.reply_tools([(call, "sunny") for call in answer.calls])
        """
        return self.turn(turns.results_of(results), max_tokens, stop=stop, timeout=timeout)

    @public
    def call_grammar(
        self,
        tools: Sequence[dict[str, Any]] | None = None,
        choice: str = "required",
        *,
        parallel: bool = True,
        timeout: float | None = None,
    ) -> str:
        """A grammar of exactly the calls of tools that its model can make: Lark, as llguidance reads it, for engines and
        servers that constrain a decoder by one. This system does not constrain its own decodes yet.

        `tools`: their definitions (None: the process's own). `choice`: "required" (calls and nothing else), "auto" (text,
        calls, or both) or the name of a tool (one call of it); without `parallel` one call at most. Raises EINVAL without
        tools or for an unknown choice; ENOTSUP for a model whose template shows no form of calls, and for a schema that
        its form cannot express.

        Example:
            tool = {"name": "now", "parameters": {"type": "object", "properties": {}}}
            try:
                grammar = agent.call_grammar([tool])
            except llmasos.SyscallError as error:
                assert error.errno is llmasos.Errno.ENOTSUP  # this model's template has no form of calls
        """
        grammar = call_choice.grammar_of(self.language, self.pid, tools, choice, parallel=parallel)
        return self.system.run(grammar, timeout)

    def _said(
        self,
        messages: Sequence[Message],
        max_tokens: int | None,
        stop: Strings,
        deadline: float | None,
        allow_special: bool,
    ) -> Stream[Ended]:
        said = turns.say(
            self.language,
            self.pid,
            messages,
            max_tokens,
            stop_strings(stop),
            None,
            self._instructions,
            deadline,
            allow_special=allow_special,
        )
        return turns.alone(self.system.talking, self.pid, compact.hinting(said, self.pid, self._hinted))

    def _hinted(self, hint: str) -> None:
        self.hint = hint

    @public
    def ask(
        self,
        text: str,
        max_tokens: int | None = None,
        *,
        stop: Strings = (),
        deadline: float | None = None,
        timeout: float | None = None,
        allow_special: bool = False,
    ) -> str:
        """Say `text` as the user and return the whole answer without its thoughts. The rest is as for `say`.

        Example:
            answer = agent.ask("My name is Mira.", timeout=60)
        """
        pieces = self.say(text, max_tokens, stop=stop, deadline=deadline, timeout=timeout, allow_special=allow_special)
        return "".join(piece for piece in pieces)

    @public
    def compact(self, drop: bool | int = False, keep: int = 2, *, timeout: float | None = None) -> int:
        """Make room in a conversation near its window, and return the log's new length in tokens.

        Its instructions and the last `keep` turns (a question with what answers it) stay. The older ones give way to the
        model's own summary of them, as one more turn; with `drop=True` to nothing; with a number only that many of the
        oldest are dropped. After an error the conversation is as it was: EINVAL (nothing to compact), EBUSY, ENOTSUP (no
        chat template), EIO (the model made no summary), E2BIG, EAGAIN (another program changed the log), ETIME.

        Example:
            for question in ("Copy this list: red, green", "Reverse this list: red, green"):
                agent.ask(question)
            length = agent.compact(drop=True, keep=1)
        """
        work = compact.compacted(self.language, self.pid, drop, keep)
        length = self.system.run(turns.alone(self.system.talking, self.pid, work), timeout)
        self.hint = compact.hint_of(length, self.model.context)
        return length

    @public
    def feed(self, text: str, *, allow_special: bool = False, timeout: float | None = None) -> int:
        """Append plain text to the log, and return the log's new length in tokens. A control token that the text spells
        stays text, unless `allow_special`. Raises EBUSY while it decodes, E2BIG, EINVAL, ETIME.

        Example:
            length = agent.feed("Once upon a time")
        """
        feed = options.feed_text(self.language, self.pid, text, allow_special=allow_special)
        return self.system.run(feed, timeout)

    @public
    def feed_ids(self, ids: Ids, *, timeout: float | None = None) -> int:
        """Append token ids (a sequence of integers, an array or a tensor) to the log, and return the log's new length.
        Raises EBUSY while it decodes, E2BIG, EINVAL, ETIME.

        Example:
            length = agent.feed_ids(agent.language.encode("Once upon a time"))
        """
        return self.system(Feed(self.pid, arguments.ids(ids)), timeout=timeout)

    @public
    def generate(
        self,
        max_tokens: int | None = None,
        *,
        stop: Strings = (),
        sampler: Sampler | None = None,
        deadline: float | None = None,
        timeout: float | None = None,
    ) -> str:
        """Let it continue its log, and return the text. A stop string ends the text before it, and the log is cut there
        too. `sampler` replaces the process's own from here on (None: keeps it). Raises EBUSY, EINVAL for an empty log,
        EDQUOT, ETIME.

        Example:
            agent.feed("Once upon a time")
            text = agent.generate(20, stop=".", sampler=llmasos.Sampler(temperature=0.8, seed=1))
        """
        tokens, stops = self._tokens(max_tokens), self._stops(stop)
        going = answers.generate(self.language, self.pid, tokens, stops, sampler, deadline)
        return self.system.run(turns.alone(self.system.talking, self.pid, going), timeout)

    @public
    def stream(
        self,
        max_tokens: int | None = None,
        *,
        stop: Strings = (),
        sampler: Sampler | None = None,
        deadline: float | None = None,
        timeout: float | None = None,
    ) -> Generator[str, None]:
        """Let it continue its log, and stream the text. Leaving the loop early interrupts it. The rest is as for
        `generate`.

        Example:
            agent.feed("Once upon a time")
            for piece in agent.stream(20):
                print(piece, end="", flush=True)
        """
        going = answers.stream(self.language, self.pid, self._tokens(max_tokens), self._stops(stop), sampler, deadline)
        alone = turns.alone(self.system.talking, self.pid, going)
        return script.stream(self.system.kernel, alone, self.pid, timeout, self)

    def _tokens(self, given: int | None) -> int:
        return self._setup.tokens(given, MAX_TOKENS, self.model.context)

    def _stops(self, given: Strings) -> list[str]:
        return stop_strings(given) or self._setup.stop

    @public
    def follow(self, position: int = 0, *, timeout: float | None = None) -> Generator[str, None]:
        """Stream the text from a position of the log (in tokens) to the end of the decode under way. Leaving the loop
        early interrupts the decode, and so does ETIME.

        Example:
            agent.feed("Once upon a time")
            for piece in agent.follow():
                print(piece, end="")
        """
        following = turns.follow_at(self.language, self.pid, position)
        return script.stream(self.system.kernel, following, self.pid, timeout, self)

    @public
    def tokens(self, *, timeout: float | None = None) -> list[int]:
        """Its token log: the ids of its whole context.

        Example:
            ids = agent.tokens()
        """
        return self.system.run(actions.log_of(self.pid), timeout)

    @public
    def messages(self, *, timeout: float | None = None) -> list[Message]:
        """Its conversation so far as chat messages, oldest first; the answers are as its template would take them. Empty
        where it holds none.

        Example:
            for message in agent.messages():
                print(message["role"], message.get("content", ""))
        """
        return self.system.run(turns.messages(self.language, self.pid), timeout)

    @public
    def text(self, *, timeout: float | None = None) -> str:
        """Its token log as text, without special tokens.

        Example:
            print(agent.text())
        """
        return self.language.decode(self.tokens(timeout=timeout))

    @public
    def truncate(self, length: int, *, timeout: float | None = None) -> int:
        """Cut the log down to `length` tokens, and return its length. Raises EBUSY while it decodes, EINVAL beyond its
        end.

        Example:
            length = agent.feed("Once upon a time")
            agent.truncate(length - 1)
        """
        return self.system.run(turns.cut(self.pid, length), timeout)
