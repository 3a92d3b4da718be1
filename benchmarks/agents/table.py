"""The results of the comparison of agents for people: a table, what each engine does with a context that has no room, and
the aims as figures."""

from __future__ import annotations

from benchmarks.agents.comparison import OURS, Results, Row, roomy, without_swap
from benchmarks.peers.table import threads
from benchmarks.report import Figure

SPEED, WAIT, GAP = 3.0, 0.1, 2.0
NOT_SLOWER = 0.97  # what rounds of the same differ by

HEAD = (
    "engine",
    "turns/s",
    "first token, median",
    "p95",
    "tokens/s",
    "urgent agent's tokens, median",
    "p99",
    "",
)
NOTES = {
    OURS: "KV that does not fit goes to a file, encrypted, and comes back when its agent runs",
    "transformers": "batches of equally long contexts without padding, the last batches' caches kept, else recomputed",
    "llama.cpp-q8_0": "continuous batching over a slot for each place, states saved to and restored from memory",
    "vllm-int8": "prefix caching on; what was evicted is recomputed",
}


def table(results: Results) -> str:
    """Markdown: a line an engine and setting; below it what was measured and how each engine was set up."""
    rows = [HEAD, tuple("---" for _ in HEAD), *(_cells(row) for row in results.rows)]
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join([*lines, "", *_notes(results)])


def _cells(row: Row) -> tuple[str, ...]:
    if row.missing:
        return (row.name, *[""] * (len(HEAD) - 2), f"missing: {row.missing}")
    tokens = row.speed * len(row.outcomes[0].tokens[0]) / _turns_of_one(row)
    gaps = (_ms(row.gap(0.5)), _ms(row.gap(0.99))) if row.urgent else ("", "")
    return (
        row.name,
        f"{row.speed:.2f}",
        _ms(row.wait()),
        _ms(row.wait(0.95)),
        f"{tokens:.0f}",
        *gaps,
        row.version,
    )


def _turns_of_one(row: Row) -> int:
    return sum(turn.agent == 0 for turn in row.outcomes[0].turns)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms"


def _notes(results: Results) -> list[str]:
    work = results.workload
    lines = [
        f"{work.agents} agents, {results.shape.name}, {threads(results.threads)}; contexts of {work.context:,} tokens, "
        f"all different, computed before the clock starts; {work.turns} turns each of {work.fed} tokens fed and "
        f"{work.decoded} decoded, in round-robin order, {work.outstanding} outstanding at any time; KV memory for "
        f"{work.places} contexts of {work.final:,} tokens ({work.places * work.final:,} tokens) where nothing else is "
        f"said. Medians of {results.rounds} rounds of this system, {results.peer_rounds} of the others.",
        "",
    ]
    keys = dict.fromkeys(row.engine.key for row in results.rows)
    names = {row.engine.key: row.engine.name for row in results.rows}
    lines += [f"- {names[key]}: {NOTES[key]}." for key in keys if key in NOTES]
    for row in results.rows:
        if row.counts:
            counts = ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in row.counts.items())
            lines.append(f"- {row.name}, the last round: {counts}.")
    if results.compared:
        same = results.compared - len(results.differing)
        told = f": not {'; '.join(results.differing)}" if results.differing else ""
        lines.append(
            f"- Tokens: {same} of {results.compared} runs of this system decode just those of uninterrupted runs{told}."
        )
    return lines


def figures(results: Results) -> list[Figure]:
    """This system beside the engines that were measured. One that is missing leaves out what is measured against it."""
    ours = results.row(OURS)
    found: list[Figure] = []
    if ours is None:
        return found
    for row in results.rows:
        if row.engine.key == OURS or row.missing:
            continue
        name = row.engine.name
        found.append(Figure("agents: completed turns", ours.speed, "turns/s", row.speed, name, SPEED, "higher"))
        found.append(Figure("agents: first token, median", ours.wait() * 1e3, "ms", row.wait() * 1e3, name, WAIT))
        found.append(Figure("agents: first token, p95", ours.wait(0.95) * 1e3, "ms", row.wait(0.95) * 1e3, name))
    ample = results.row(OURS, roomy(results.workload).name)
    bare = results.row(OURS, without_swap(results.workload).name)
    if ample and bare:
        found.append(
            Figure(
                "agents: memory for all",
                ample.speed,
                "turns/s",
                bare.speed,
                "without swap",
                NOT_SLOWER,
                "higher",
            )
        )
    if ample:
        found.append(Figure("agents: pressed", ours.speed, "turns/s", ample.speed, "memory for all", None, "higher"))
        found.append(
            Figure(
                "agents: urgent one's tokens, p99",
                ours.gap(0.99) * 1e3,
                "ms",
                ample.gap(0.99) * 1e3,
                "memory for all",
                GAP,
            )
        )
    return found
