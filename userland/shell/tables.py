"""The columns of the commands that print tables, as -o and --sort take them."""

from __future__ import annotations

from llmasos.userland.programs import groups, ps, system
from llmasos.userland.shell import jobs_table


def columns(command: str, word: str) -> list[str]:
    """The values of `-o` or `--sort` that begin as `word` does: columns behind its last comma, or its sign."""
    known = {
        "ps": ps.LISTING.words,
        "groups": groups.LISTING.words,
        "devices": system.DEVICES.words,
        "jobs": jobs_table.LISTING.words,
    }
    before, comma, _ = word.rpartition(",")
    sign = word[0] if word[:1] in ("+", "-") and not comma else ""
    made = [before + comma + sign + one for one in known.get(command, system.MODELS.words)]
    return [one for one in made if one.startswith(word)]
