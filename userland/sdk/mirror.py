"""Makes the blocking face from the asynchronous one, so that it is written once: system.py from system_async.py,
process.py, talk.py, llm.py and client.py likewise.

    python -m llmasos.userland.sdk.mirror [--check]

As httpcore and the Elasticsearch client do it: the text is rewritten, token by token, and the outcome is committed, read
and typed like any other file. `--check` says whether it is fresh.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent

HEADS = {
    "system": """The blocking face of the SDK: a connected system and its processes, for plain scripts.

    import llmasos

    with llmasos.System.connect(boot=True) as system:
        agent = system.spawn(system="You are a poet.")
        for piece in agent.say("A line about rain, please."):
            print(piece, end="")
""",
    "process": """The blocking face of the SDK: Process, a handle on an LLM process.
""",
    "talk": """The blocking face of the SDK: what a process says and is told.
""",
    "llm": """LLM: a model to generate text with, as in transformers and vLLM, on processes of the system.

Every prompt is a process of its own; a list of prompts is computed as one batch by the scheduler, beside whatever else
runs. Uses the kernel that runs, or boots a private one.
""",
    "sandboxed": """The blocking face of the SDK: Sandboxed, a program that runs confined.
""",
    "client": """Client, Image, Instance: load an image, create an instance of it, predict.
""",
}

RULES = [
    (r"\b(script|connection|system|process|talk|llm|client|arriving|streams|sandboxed)_async\b", r"\1"),
    (r"\bllmasos\.aio\.", "llmasos."),
    (r"\bAsyncStream\b", "TextStream"),
    (r"AsyncConnection", "Connection"),
    (r"AsyncGenerator", "Generator"),
    (r"\baclosing\b", "closing"),
    (r"async for (\w+) in (\w+):\n +yield \1\n", r"yield from \2\n"),
    (r"__a(enter|exit)__", r"__\1__"),
    (r"_async\(", "("),
    (r"\basync (def|with|for)\b", r"\1"),
    (r"\[(piece for piece in [^]]*)\]", r"\1"),
    (r"(?<!\w)\(await ([\w.]+\((?:[^()]|\([^()]*\))*\))\)", r"\1"),
    (r"\bawait ", ""),
]  # fmt: skip


def mirrored(name: str) -> str:
    """The text of a blocking face."""
    text = re.sub(r'\A""".*?"""\n', "", (HERE / f"{name}_async.py").read_text(), flags=re.DOTALL)
    for pattern, replacement in RULES:
        text = re.sub(pattern, replacement, text)
    made = f"Made from {name}_async.py by `python -m llmasos.userland.sdk.mirror`; change that file."
    return f'"""{HEADS[name]}\n{made}\n"""\n{text}'


def main() -> int:
    stale = []
    for name in HEADS:
        place = HERE / f"{name}.py"
        if "--check" not in sys.argv:
            place.write_text(mirrored(name))
        elif place.read_text() != mirrored(name):
            stale.append(place.name)
    if stale:
        files = ", ".join(f"userland/sdk/{name}" for name in stale)
        print(f"{files}: not what the asynchronous face makes of it; run `make docs`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
