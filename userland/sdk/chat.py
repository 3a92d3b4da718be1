"""Chat: what to feed a process for the next turn, by its model's chat template.

A template that only ever appends (the rendering of n turns begins the rendering of n+1) needs no history: the pieces
around a turn are found once, by rendering a probe, and each turn feeds only what is new. So a conversation goes on
after a fork, in another program, or after a reconnect, from the token log alone. A template that rewrites its past is
refused.
"""

from __future__ import annotations

from collections.abc import Sequence

from syscalls.errno import Errno, SyscallError
from userland.sdk.template import ChatTemplate
from userland.sdk.text import checked
from userland.sdk.tokenizer import Tokenizer

Message = dict[str, str]

_USER, _ANSWER, _NEXT = "alpha", "beta", "gamma"


class ChatFormat:
    """The chat template of one tokenizer. Raises ENOTSUP on construction if it rewrites its past.

    `window` is the model's context in tokens (0: unknown); a text too long for it is refused (see `text.checked`).
    """

    def __init__(self, tokenizer: Tokenizer, model: str, window: int = 0) -> None:
        self._tokenizer = tokenizer
        self._window = window
        self._template = ChatTemplate(tokenizer, window)
        if not tokenizer.settings.templates:
            raise SyscallError(
                Errno.ENOTSUP, f"{model} has no chat template; feed and generate plain text instead"
            )
        asked: list[Message] = [{"role": "user", "content": _USER}]
        answered: list[Message] = [*asked, {"role": "assistant", "content": _ANSWER}]
        before = self._render(asked, prompt=True) + _ANSWER
        after = self._render(answered)
        again = self._render([*answered, {"role": "user", "content": _NEXT}], prompt=True)
        if not after.startswith(before) or not again.startswith(after):
            raise SyscallError(
                Errno.ENOTSUP,
                f"the chat template of {model} rewrites earlier turns; render and feed it yourself",
            )
        self._close = after[len(before) :]  # what ends an answer
        self._history = answered

    def _render(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        return self._template.render(messages, prompt=prompt, allow_special=True).plain

    def first(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the beginning of a conversation, ready for the model's answer."""
        return self._encode(self._render(messages, prompt=messages[-1]["role"] != "assistant"))

    def whole(self, messages: Sequence[Message], answer: str | None) -> list[int]:
        """Ids of a conversation whose last message has been answered as far as `answer`; None: it is no question."""
        text = self._render(messages, prompt=answer is not None)
        return self._encode(text + (answer or ""))

    def opening(self, system: str) -> list[int]:
        """Ids of a conversation that has only been told how to behave; empty if the template cannot begin so."""
        whole = self._render(
            [{"role": "system", "content": system}, {"role": "user", "content": _USER}], prompt=True
        )
        alone = self._render([{"role": "system", "content": system}])
        return self._encode(alone) if whole.startswith(alone) else []

    def after_opening(self, system: str, text: str) -> list[int]:
        """Ids of the first question after `opening(system)`."""
        alone = self._render([{"role": "system", "content": system}])
        whole = self._render(
            [{"role": "system", "content": system}, {"role": "user", "content": text}], prompt=True
        )
        return self._encode(whole[len(alone) :])

    def next(self, text: str, log_end: Sequence[int]) -> list[int]:
        """Ids that carry a conversation on with a user's `text`, after a log that ends in the ids `log_end`."""
        before = self._render(self._history)
        after = self._render([*self._history, {"role": "user", "content": text}], prompt=True)
        turn = self._encode(after[len(before) :])
        close = self._encode(self._close)
        for overlap in range(
            min(len(close), len(log_end)), 0, -1
        ):  # the model has written (some of) the closing itself
            if list(log_end[-overlap:]) == close[:overlap]:
                return close[overlap:] + turn
        return close + turn

    @property
    def close_length(self) -> int:
        """Tokens of the log's end that `next` needs to see."""
        return len(self._encode(self._close))

    def stop_ids(self) -> list[int]:
        """Ids that end an answer: the first of the closing, if it is a special token."""
        first = self._encode(self._close)[:1]
        return [i for i in first if i in self._tokenizer.special_ids]

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(checked(text, self._window), control=True)
