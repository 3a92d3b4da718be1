"""Best of n: n processes answer one question at random, and the model itself says which answer is the likeliest.

This is what fork is for: the model reads the question once, and all copies share its pages. Each copy draws with a seed
of its own, derived from its parent's, so a run can be repeated. The copies decode side by side in the same steps of the
device.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import llmasos
from llmasos.syscalls.table import Decode

QUESTION = "Reverse this list: plum, banana, lemon, fig"
MAX_TOKENS = 80


@dataclass(frozen=True)
class Answer:
    pid: int
    text: str
    logprob: float  # of the whole answer, its end included, before temperature


def sample(process: llmasos.Process) -> Answer:
    """Let a process answer; each token comes with the model's log-probability of it."""
    language = process.language
    result = process.system(Decode(process.pid, MAX_TOKENS, language.stop_ids, logprobs=1))
    return Answer(process.pid, language.decode(result.tokens), sum(token.logprob for token in result.logprobs))


def main() -> int:
    parser = argparse.ArgumentParser(description="Answer a question n times and keep the likeliest answer.")
    parser.add_argument("question", nargs="?", default=QUESTION)
    parser.add_argument("-n", type=int, default=8, help="answers to choose from (default 8)")
    parser.add_argument("--temperature", type=float, default=1.5)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    with llmasos.System.connect(boot=True, name="best_of_n") as system:
        asker = system.spawn(
            prompt=[{"role": "user", "content": args.question}],
            temperature=args.temperature,
            seed=args.seed,
            name="asker",
        )
        system(Decode(asker.pid, 0))  # decodes nothing, but reads the question, once for all copies
        copies = asker.fork(args.n)
        shared = sum(copy.info().shared_pages for copy in copies)
        print(f"{args.question}  ({len(copies)} copies of process {asker.pid}, {shared} pages shared, 0 copied)")
        with ThreadPoolExecutor(len(copies)) as pool:  # a thread each, so that the kernel can batch them
            answers = sorted(pool.map(sample, copies), key=lambda answer: -answer.logprob)
        for answer in answers:
            print(f"  {answer.logprob:9.3f}  process {answer.pid}: {answer.text}")
        print(f"best of {len(answers)}: {answers[0].text}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except llmasos.SyscallError as error:
        sys.exit(f"best_of_n: {error}")
