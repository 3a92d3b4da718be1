"""Makes the blocking face (system.py) from the asynchronous one (aio.py), so that it is written once.

    python -m llmasos.userland.sdk.mirror [--check]

As httpcore and the Elasticsearch client do it: the text is rewritten, token by token, and the outcome is committed, read
and typed like any other file. `--check` says whether it is fresh.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
SOURCE, MIRROR = HERE / "aio.py", HERE / "system.py"

HEAD = '''"""The blocking face of the SDK: a connected system and its processes, for plain scripts.

    with System.connect(boot=True) as system:
        agent = system.spawn(system="You are a poet.")
        for piece in agent.say("A line about rain, please."):
            print(piece, end="")

Made from aio.py by `python -m llmasos.userland.sdk.mirror`; change that file.
"""
'''

RULES = [
    (r'\A""".*?"""\n', HEAD),
    (r"import trio\n", ""),
    (r"\b(script|connection)_async\b", r"\1"),
    (r" +with trio\.CancelScope\(shield=True\):\n +(await .*)\n", r"        \1\n"),
    (r"AsyncConnection", "Connection"),
    (r"AsyncGenerator", "Generator"),
    (r"__a(enter|exit)__", r"__\1__"),
    (r"_async\(", "("),
    (r"\basync (def|with|for)\b", r"\1"),
    (r"\[(piece for piece in [^]]*)\]", r"\1"),
    (r"\bawait ", ""),
]  # fmt: skip


def mirrored() -> str:
    """The text of the blocking face."""
    text = SOURCE.read_text()
    for pattern, replacement in RULES:
        text = re.sub(pattern, replacement, text, flags=re.DOTALL if pattern.startswith(r"\A") else 0)
    return text


def main() -> int:
    if "--check" not in sys.argv:
        MIRROR.write_text(mirrored())
        return 0
    if MIRROR.read_text() == mirrored():
        return 0
    print("userland/sdk/system.py is not what aio.py makes of it: run `make docs`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
