"""A stratified sample of mutants, and what it tells of all.

A stratum is a folder of the core; each gives as many as its share of all mutants (by largest remainders): the first in an
order that a hash of the seed and a mutant's name gives, so a population that changes a little changes the sample a
little. The score of all is the share of the sample that some test noticed; Wilson's interval says how far it may be off.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from pathlib import Path

from tests.mutation.mutants import Mutant, mutants
from tests.mutation.runner import ROOT

Z = 1.959963984540054  # of the 95 % interval


def core() -> list[str]:
    """The files of the pure core: kernel/ without its edge."""
    files = (path.relative_to(ROOT).as_posix() for path in (ROOT / "kernel").rglob("*.py"))
    return sorted(file for file in files if not file.startswith("kernel/edge/"))


def population() -> list[Mutant]:
    return [mutant for file in core() for mutant in mutants(file, (ROOT / file).read_text())]


def digest() -> str:
    """Of the core's text: a campaign is of one."""
    whole = hashlib.sha256()
    for file in core():
        whole.update(file.encode() + b"\0" + Path(ROOT / file).read_bytes())
    return whole.hexdigest()[:16]


def stratum(mutant: Mutant) -> str:
    folder = mutant.path.removeprefix("kernel/").rpartition("/")[0]
    return folder or "(top)"


def draw(everything: list[Mutant], size: int, seed: int) -> list[Mutant]:
    """`size` mutants, in an order such that what has been tried when a campaign is stopped is a sample too."""
    strata: dict[str, list[Mutant]] = defaultdict(list)
    for mutant in everything:
        strata[stratum(mutant)].append(mutant)
    size = min(size, len(everything))
    exact = {name: size * len(members) / len(everything) for name, members in strata.items()}
    counts = {name: math.floor(share) for name, share in exact.items()}
    by_remainder = sorted(strata, key=lambda name: (counts[name] - exact[name], name))
    for name in by_remainder[: size - sum(counts.values())]:
        counts[name] += 1

    def place(mutant: Mutant) -> bytes:
        return hashlib.sha256(f"{seed} {mutant.name}".encode()).digest()

    return sorted((one for name in strata for one in sorted(strata[name], key=place)[: counts[name]]), key=place)


def wilson(found: int, tried: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927)."""
    if not tried:
        return 0.0, 1.0
    share, spread = found / tried, Z * Z / tried
    middle = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(share * (1 - share) / tried + spread / (4 * tried))
    return middle - half, middle + half
