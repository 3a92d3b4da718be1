"""`python -m tests.mutation`: how many faults of the core its tests notice.

    python -m tests.mutation run [FILES]   the sample; goes on where it was stopped (--sample 400 --seed 1 --workers 1)
    python -m tests.mutation again [FILES] those that survived, once more: after tests were added (in these files)
    python -m tests.mutation report        write tests/mutation/report.md; of the sample of the next seed, too, as far as
                                           that was tried: whoever writes tests for survivors fits them to a sample
    python -m tests.mutation changed REV   of lines that differ from a revision of git's: 30 mutants, each for 20 s of
                                           processor time at most; fails if surely fewer than 80 % are noticed
    python -m tests.mutation map           only measure which tests run the sample's statements
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
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tests.mutation import runner, sample
from tests.mutation.mutants import Mutant, mutated
from tests.mutation.runner import ROOT, Map
from tests.mutation.trials import SURVIVED, Asked, Servers, Verdict

PLACE = ROOT / "build" / "mutation"
REPORT = Path(__file__).with_name("report.md")
LEAST, CHANGED, CHANGED_SECONDS = 0.8, 30, 20.0  # share noticed; of changed lines: mutants tried, processor time of each
REVIEWED = Path(__file__).with_name("reviewed.json")  # survivors that nobody can notice, and why


def known(wanted: Sequence[Mutant], workers: int) -> Map:
    """Which tests run these mutants: as it was measured for this core, else it is measured now."""
    file = PLACE / f"{sample.digest()}.map.json"
    if file.exists() and all(map((found := runner.read(file)).has, wanted)):
        return found
    found = runner.measure(wanted, workers)
    runner.write(file, found)
    return found


def tried() -> list[Verdict]:
    """What has been found of the core as it is, in the order in which it was."""
    file = PLACE / f"{sample.digest()}.jsonl"
    lines = file.read_bytes().splitlines() if file.exists() else []
    return [msgspec.json.decode(line, type=Verdict) for line in lines if line.endswith(b"}")]


def results() -> dict[str, Verdict]:
    """The last word of each mutant."""
    return {verdict.name: verdict for verdict in tried()}


def campaign(
    wanted: Sequence[Mutant], known: Map, workers: int, seconds: float = 0.0, files: Sequence[str] = ()
) -> list[Verdict]:
    """Try each mutant, `workers` at a time; what is found is on the disk as soon as it is known.

    `files`: by all the tests in these; else by the map's, each mutant for `seconds` of processor time (0: as long as it
    takes)."""
    PLACE.mkdir(parents=True, exist_ok=True)
    verdicts, waiting = list[Verdict](), list(reversed(wanted))
    with Servers(known) as servers, (PLACE / f"{sample.digest()}.jsonl").open("ab") as file:
        for _ in range(min(workers, len(waiting))):
            servers.ask(Asked(waiting.pop(), list(files), seconds))
        while len(verdicts) < len(wanted):
            verdict = servers.answer()
            if waiting:
                servers.ask(Asked(waiting.pop(), list(files), seconds))
            file.write(msgspec.json.encode(verdict) + b"\n")
            file.flush()
            verdicts.append(verdict)
            alive = sum(one.status == SURVIVED for one in verdicts)
            told = f"{verdict.name}: {verdict.status} {verdict.by}, {verdict.seconds} s"
            print(f"{len(verdicts)}/{len(wanted)} ({alive} survive) {told}", flush=True)
    return verdicts


def report(size: int, seed: int) -> None:
    everything = sample.population()
    chosen, found = sample.draw(everything, size, seed), results()
    done = [mutant for mutant in chosen if mutant.name in found]
    alive = [mutant for mutant in done if found[mutant.name].status == SURVIVED]
    first = {verdict.name: verdict.status != SURVIVED for verdict in reversed(tried())}
    others = [mutant for mutant in sample.draw(everything, size, seed + 1) if mutant not in chosen]
    others = others[: next((at for at, one in enumerate(others) if one.name not in found), len(others))]
    told = _share(sum(first[one.name] for one in others), len(others))
    fresh = [f"- Of another sample (seed {seed + 1}), for whose survivors no test was written: {told}."] if others else []
    unfinished = (
        [] if len(done) == len(chosen) else ["- **Not finished**: who is noticed is done sooner, so this is too high."]
    )
    reviewed: dict[str, str] = msgspec.json.decode(REVIEWED.read_bytes()) if REVIEWED.exists() else {}
    lines = [
        "# Mutation score of the kernel's core",
        "",
        "Made by `python -m tests.mutation report`. Each mutant is the core with one small fault; the score is the share",
        "that some test of `tests/kernel` notices, of those that start no OS process. Texts are left out. Mutants that",
        "change nothing that anybody could see count as survivors, and so do those that no test noticed in the processor",
        "time that each was given.",
        "",
        f"- Mutants: {len(everything)}; sample: {len(chosen)}, stratified by folder, seed {seed}; tried: {len(done)}.",
        f"- Noticed: {_share(len(done) - len(alive), len(done))} (Wilson).",
        f"- Before tests were written for survivors: {_share(sum(first[one.name] for one in done), len(done))}.",
        *fresh,
        *unfinished,
        f"- Survivors that were looked at and that nobody can notice: {sum(_key(one) in reviewed for one in alive)}.",
        f"- The core's digest: {sample.digest()}.",
        "",
        "| folder | tried | noticed |",
        "|---|---|---|",
    ]
    every, lived = (Counter(map(sample.stratum, part)) for part in (done, alive))
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
    print("\n".join(lines[7:12]))


def _share(found: int, of: int) -> str:
    low, high = sample.wilson(found, of)
    return f"{found} of {of}: **{found / max(1, of):.1%}**, 95 % interval {low:.1%} to {high:.1%}"


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


def fit(touched: list[Mutant], asked: argparse.Namespace) -> int:
    """Whether the tests of changed lines are good enough: exit status 1 if surely fewer than `LEAST` are noticed."""
    drawn = sample.draw(touched, min(asked.sample, CHANGED), asked.seed)
    if not drawn:
        print("no changed line of the core can be mutated")
        return 0
    verdicts = campaign(drawn, known(drawn, asked.workers), asked.workers, asked.seconds or CHANGED_SECONDS)
    noticed = sum(one.status != SURVIVED for one in verdicts)
    low, high = sample.wilson(noticed, len(drawn))
    print(
        f"{noticed} of {len(drawn)} are noticed ({len(touched)} mutants of changed lines); {low:.0%} to {high:.0%} of all"
    )
    for verdict, mutant in ((one, mutant) for one in verdicts for mutant in drawn if one.name == mutant.name):
        if verdict.status == SURVIVED:
            print(f"nobody notices {mutant.path}:{mutant.line} {mutant.function}: {mutant.change}")
    return int(high < LEAST)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("what", choices=["map", "run", "again", "report", "changed", "show"])
    parser.add_argument("words", nargs="*")
    parser.add_argument("--sample", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.0, help="of processor time, for each mutant")
    asked = parser.parse_args()
    os.chdir(ROOT)
    os.environ.setdefault("LLMASOS_TEST_EXAMPLES", "3")
    match asked.what:
        case "map":
            known(sample.draw(sample.population(), asked.sample, asked.seed), asked.workers)
        case "run" | "again":
            found, drawn = results(), sample.draw(sample.population(), asked.sample, asked.seed)
            if asked.what == "run":
                left = [one for one in drawn if one.name not in found]
            else:
                left = [one for one in drawn if one.name in found and found[one.name].status == SURVIVED]
            measured = Map() if asked.words else known(drawn, asked.workers)
            campaign(left, measured, asked.workers, asked.seconds, asked.words)
        case "report":
            report(asked.sample, asked.seed)
        case "changed":
            return fit(changed(asked.words[0]), asked)
        case "show":
            import ast

            print(ast.unparse(mutated((ROOT / asked.words[1]).read_text(), int(asked.words[0]))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
