"""The keys: what each does, in words for people, and which action of the app it is. Those that move the cursor are the
table's own."""

from __future__ import annotations

from textual.binding import Binding, BindingType

KEYS: tuple[tuple[str, str], ...] = (
    ("q, Ctrl-C", "leaves"),
    ("arrows, PgUp, PgDn", "move; the mouse does, too"),
    ("Enter, double click", "details: what it waits for, limits, KV"),
    ("left, right, Space", "fold, unfold"),
    ("/", "filter by pid, name, state, model, group; Escape: all"),
    ("s, < and >", "sort by a column; a click on its title"),
    ("r", "reverse the order"),
    ("t", "tree, or processes only"),
    ("k", "signal; of a group: to all in it, and asks before it ends or stops more than one"),
    ("z", "stop, or let go on; of a group: asks, if it stops more than one"),
    ("n, + and -", "nice"),
    ("d", "devices, memory and models"),
    ("e", "the kernel's events, while shown"),
    ("p", "pause: no calls meanwhile"),
    ("T", "dark, or light"),
    ("Ctrl-Z", "suspend"),
)
PLAYED: tuple[tuple[str, str], ...] = (
    ("p", "pause, play"),
    (", and .", "a sample back, further"),
    ("[ and ]", "ten seconds back, further"),
    ("{ and }", "slower, faster"),
    ("0 to 9", "to that tenth; a click on the line of time"),
)

# In the last line of the screen, the most important first; of a key that is no letter, textual's name for it.
FOOT = (
    ("q", "leaves"), ("question_mark", "help"), ("slash", "filter"), ("k", "signal"), ("enter", "details"),
    ("z", "stop/cont"), ("n", "nice"), ("s", "sort"), ("t", "tree"), ("d", "devices"), ("p", "pause"), ("e", "events"),
)  # fmt: skip
PLAYED_FOOT = (
    ("q", "leaves"), ("question_mark", "help"), ("p", "play/pause"), ("comma", "back"), ("full_stop", "further"),
    ("right_curly_bracket", "faster"), ("slash", "filter"), ("enter", "details"), ("s", "sort"), ("t", "tree"),
    ("e", "events"),
)  # fmt: skip

BINDINGS: list[BindingType] = [
    Binding("q", "leave", show=False),
    Binding("ctrl+c,ctrl+d,ctrl+q", "leave", show=False, priority=True),
    Binding("ctrl+z", "suspend_process", show=False),
    Binding("slash", "filter", show=False, priority=True),  # at once: what is typed behind it is the filter's
    Binding("question_mark,h,f1", "help", show=False),
    Binding("space", "fold", show=False),
    Binding("left", "fold(True)", show=False),
    Binding("right", "fold(False)", show=False),
    Binding("s", "sort", show=False),
    Binding("less_than_sign", "sort_by(-1)", show=False),
    Binding("greater_than_sign", "sort_by(1)", show=False),
    Binding("r", "reverse", show=False),
    Binding("t", "tree", show=False),
    Binding("k", "signal", show=False),
    Binding("z", "stop", show=False),
    Binding("n", "nice", show=False),
    Binding("plus", "nicer(1)", show=False),
    Binding("minus", "nicer(-1)", show=False),
    Binding("d", "devices", show=False),
    Binding("e", "events", show=False),
    Binding("p", "pause", show=False),
    Binding("T", "theme", show=False),
    Binding("comma", "step(-1)", show=False),
    Binding("full_stop", "step(1)", show=False),
    Binding("left_square_bracket", "jump(-10)", show=False),
    Binding("right_square_bracket", "jump(10)", show=False),
    Binding("left_curly_bracket", "speed(-1)", show=False),
    Binding("right_curly_bracket", "speed(1)", show=False),
    *(Binding(str(tenth), f"tenth({tenth})", show=False) for tenth in range(10)),
]
