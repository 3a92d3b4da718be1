"""Tree of thought: a search for a story, sentence by sentence, among processes that fork, think again and are killed.

A node of the tree is a process, and its thoughts are its token log. Copies share all pages up to where they part (as Unix
processes do after fork), one truncate takes a thought back, and kill prunes. The idea is Yao et al., arXiv:2305.10601;
here a thought's value is its probability, less a penalty for each wanted word that is still missing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import llmasos
from llmasos.syscalls.table import Decode

BREADTH, KEPT, DEPTH, TRIES = 6, 2, 9, 2  # children of a node, nodes kept, sentences, tries at a thought
TEMPERATURE, MAX_TOKENS = 1.2, 24  # of a sentence


@dataclass(frozen=True)
class Node:
    process: llmasos.Process
    thoughts: tuple[str, ...] = ()
    logprob: float = 0.0
    tokens: int = 0
    done: bool = False

    def missing(self, words: Sequence[str]) -> int:
        return sum(word not in "".join(self.thoughts) for word in words)

    def value(self, words: Sequence[str]) -> float:
        """Log-probability per token, less one for each word that is still missing."""
        return self.logprob / max(1, self.tokens) - self.missing(words)


def think(full_stops: Sequence[int], node: Node) -> Node:
    """Add a sentence. One that does not end, or repeats another, is taken back; at last the node stays as it was."""
    process, language = node.process, node.process.language
    before = process.info()
    for attempt in range(TRIES):
        # What a process draws depends on (seed, position) only: to think again it needs another seed.
        sampler = llmasos.Sampler(temperature=TEMPERATURE, seed=before.seed + attempt)
        stop_ids = [*language.stop_ids, *full_stops]
        result = process.system(Decode(process.pid, MAX_TOKENS, stop_ids, sampler=sampler, logprobs=1))
        sentence = language.decode(result.tokens)
        if result.finish is llmasos.Finish.STOP and sentence not in node.thoughts:
            logprob = node.logprob + sum(token.logprob for token in result.logprobs)
            done, tokens = result.tokens[-1] in language.stop_ids, node.tokens + len(result.tokens)
            return Node(process, (*node.thoughts, sentence), logprob, tokens, done)
        process.truncate(before.length)
    return node


def search(root: Node, words: Sequence[str], pool: ThreadPoolExecutor) -> Node | None:
    """The first story found that has come to its end and has all the words; None if there is none."""
    language, vocab = root.process.language, root.process.model.vocab
    full_stops = [i for i in range(vocab) if language.decode([i]) in (".", '."')]
    kept = [root]
    for depth in range(1, DEPTH + 1):
        children = [replace(node, process=copy) for node in kept for copy in node.process.fork(BREADTH)]
        infos = [child.process.info() for child in children]
        pages, shared = sum(info.pages for info in infos), sum(info.shared_pages for info in infos)
        different = {node.thoughts: node for node in pool.map(partial(think, full_stops), children)}
        good = [n for n in different.values() if len(n.thoughts) == depth and not (n.done and n.missing(words))]
        best = sorted(good, key=lambda node: -node.value(words))[:KEPT]
        for node in (*kept, *children):
            if node.process not in [survivor.process for survivor in best]:
                node.process.end()
        kept = best
        print(f"depth {depth}: {len(children)} forked ({shared} of {pages} pages shared), {len(kept)} kept:")
        for node in kept:
            thought = node.thoughts[-1].strip() or "(end)"
            print(f"  {node.value(words):6.2f}  {node.process.pid:4}{'  ' * depth}{thought}")
        if found := next((node for node in kept if node.done), None):
            return found
    return None


def main() -> int:
    hero, *words = sys.argv[1:] or ("a robot", "rain", "happy")
    with llmasos.System.connect(boot=True, name="tree_of_thought") as system, ThreadPoolExecutor(64) as pool:
        question = [{"role": "user", "content": f"Tell me a story about {hero}."}]
        root = Node(system.spawn(prompt=question, temperature=TEMPERATURE, seed=1, name="thinker"))
        print(f"a story about {hero} with {' and '.join(words)} in it")
        found = search(root, words, pool)
    print(f"found: {''.join(found.thoughts).strip()}" if found else "not found; search wider or deeper")
    return 0 if found else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except llmasos.SyscallError as error:
        sys.exit(f"tree_of_thought: {error}")
