"""`python -m tests.mutation`: how many faults of the core its tests notice.

    python -m tests.mutation map           which tests run which lines (minutes; once, and after tests were added)
    python -m tests.mutation run           the sample; goes on where it was stopped (--sample 400 --seed 1 --workers 1)
    python -m tests.mutation again [FILES] those that survived, once more: after tests were added (in these files)
    python -m tests.mutation report        write tests/mutation/report.md
    python -m tests.mutation changed REV   the mutants of lines that differ from a revision of git's
    python -m tests.mutation show NUMBER FILE    what a mutant is

What is found is kept in build/mutation, a line for each mutant.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from tests.mutation import runner, sample
from tests.mutation.mutants import Mutant, mutated
from tests.mutation.runner import ROOT, SURVIVED, Map, Trial, Verdict

PLACE = ROOT / "build" / "mutation"
REPORT = Path(__file__).with_name("report.md")
REVIEWED = Path(__file__).with_name("reviewed.json")  # survivors that nobody can notice, and why


def known() -> Map:
    if not (PLACE / "map.json").exists():
        raise SystemExit("first: python -m tests.mutation map")
    return runner.read(PLACE / "map.json")


def results() -> dict[str, Verdict]:
    """What has been found of the core as it is, the last word of each mutant."""
    file = PLACE / f"{sample.digest()}.jsonl"
    lines = file.read_bytes().splitlines() if file.exists() else []
    verdicts = (msgspec.json.decode(line, type=Verdict) for line in lines if line.endswith(b"}"))
    return {verdict.name: verdict for verdict in verdicts}


def campaign(wanted: Iterable[Mutant], workers: int, files: Sequence[str] = ()) -> None:
    """Try each mutant, `workers` at a time; what is found is on the disk as soon as it is known. `files`: only the tests
    in these, all of them."""
    measured, waiting = known(), list(wanted)
    runner.preload()
    PLACE.mkdir(parents=True, exist_ok=True)
    running: dict[int, Trial] = {}
    done, total, alive = 0, len(waiting), 0
    waiting.reverse()
    with (PLACE / f"{sample.digest()}.jsonl").open("ab") as file:
        while waiting or running:
            while waiting and len(running) < workers:
                trial = Trial(waiting.pop(), measured, files)
                running[trial.pid] = trial
            pid, status = os.wait()
            if (ended := running.pop(pid, None)) is None:
                continue
            verdict = ended.verdict(status)
            file.write(msgspec.json.encode(verdict) + b"\n")
            file.flush()
            done, alive = done + 1, alive + (verdict.status == SURVIVED)
            print(
                f"{done}/{total} ({alive} survive) {verdict.name}: {verdict.status} {verdict.by}, {verdict.seconds} s",
                flush=True,
            )


def report(size: int, seed: int) -> None:
    everything = sample.population()
    chosen, found = sample.draw(everything, size, seed), results()
    tried = [mutant for mutant in chosen if mutant.name in found]
    alive = [mutant for mutant in tried if found[mutant.name].status == SURVIVED]
    noticed = len(tried) - len(alive)
    low, high = sample.wilson(noticed, len(tried))
    unfinished = (
        [] if len(tried) == len(chosen) else ["- **Not finished**: who is noticed is done sooner, so this is too high."]
    )
    reviewed: dict[str, str] = msgspec.json.decode(REVIEWED.read_bytes()) if REVIEWED.exists() else {}
    lines = [
        "# Mutation score of the kernel's core",
        "",
        "Made by `python -m tests.mutation report`. Each mutant is the core with one small fault; the score is the share",
        "that some test of `tests/kernel` notices, as `make quick` runs them. Texts are left out. Mutants that change",
        "nothing that anybody could see count as survivors.",
        "",
        f"- Mutants: {len(everything)}; sample: {len(chosen)}, stratified by folder, seed {seed}; tried: {len(tried)}.",
        f"- Noticed: {noticed} of {len(tried)}: **{noticed / max(1, len(tried)):.1%}**, "
        f"95 % interval {low:.1%} to {high:.1%} (Wilson).",
        *unfinished,
        f"- Survivors that were looked at and that nobody can notice: {sum(_key(one) in reviewed for one in alive)}.",
        f"- The core's digest: {sample.digest()}.",
        "",
        "| folder | tried | noticed |",
        "|---|---|---|",
    ]
    every, lived = (Counter(map(sample.stratum, part)) for part in (tried, alive))
    lines += [f"| {name} | {count} | {count - lived[name]} |" for name, count in sorted(every.items())]
    lines += [
        "",
        "## Survivors",
        "",
        "| where | function | operator | change | why nobody notices |",
        "|---|---|---|---|---|",
    ]
    for mutant in sorted(alive, key=lambda one: (one.path, one.number)):
        change = mutant.change.replace("|", "\\|")
        why = reviewed.get(_key(mutant), "")
        lines.append(f"| {mutant.path}:{mutant.line} | `{mutant.function}` | {mutant.operator} | `{change}` | {why} |")
    REPORT.write_text("\n".join(lines) + "\n")
    print("\n".join(lines[7:11]))


def _key(mutant: Mutant) -> str:
    """A survivor's name that other lines of its file do not change."""
    return f"{mutant.path} {mutant.function}: {mutant.change}"


def changed(revision: str) -> list[Mutant]:
    """The mutants of the core's lines that differ from a revision."""
    command = ["git", "diff", "--unified=0", revision, "--", "kernel"]
    path, lines = "", set[tuple[str, int]]()
    for line in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if line.startswith("+++ "):
            path = line.removeprefix("+++ b/")
        elif match := re.match(r"@@ -\S+ \+(\d+)(?:,(\d+))?", line):
            first = int(match[1])
            lines |= {(path, number) for number in range(first, first + int(match[2] or 1))}
    return [mutant for mutant in sample.population() if (mutant.path, mutant.line) in lines]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("what", choices=["map", "run", "again", "report", "changed", "show"])
    parser.add_argument("words", nargs="*")
    parser.add_argument("--sample", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_args()
    os.chdir(ROOT)
    os.environ.setdefault("LLMASOS_TEST_EXAMPLES", "3")
    match asked.what:
        case "map":
            runner.write(PLACE / "map.json", runner.measure())
        case "run":
            found = results()
            drawn = sample.draw(sample.population(), asked.sample, asked.seed)
            campaign([mutant for mutant in drawn if mutant.name not in found], asked.workers)
        case "again":
            found = {name: one for name, one in results().items() if one.status == SURVIVED}
            campaign([mutant for mutant in sample.population() if mutant.name in found], asked.workers, asked.words)
        case "report":
            report(asked.sample, asked.seed)
        case "changed":
            campaign(changed(asked.words[0]), asked.workers)
        case "show":
            import ast

            print(ast.unparse(mutated((ROOT / asked.words[1]).read_text(), int(asked.words[0]))))


if __name__ == "__main__":
    sys.exit(main())
