"""The results of a comparison for people: a table, the aims as figures, and what is missing."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.peers.comparison import Results, Row
from benchmarks.report import Figure

OURS_8, OURS_4 = "llmasos-int8", "llmasos-int4"
LLAMA_8, LLAMA_4 = "llama.cpp-q8_0", "llama.cpp-q4_0"
VLLM_8, OPENVINO_8 = "vllm-int8", "openvino-int8"


def table(results: Results) -> str:
    """A line an engine: decoded tokens/s by batch, prompt tokens/s of the largest batch, memory."""
    workload = results.workload
    kinds = sorted({row.memory_kind for row in results.rows if row.memory_kind})
    head = ("engine", *map(str, workload.batches), "prompt", f"memory ({', '.join(kinds) or 'PSS'})", "")
    rows = [head, *(_cells(row, results) for row in results.rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [_line(row, widths) for row in rows]
    title = (
        f"{workload.name}: {workload.title}; {threads(results.threads)}; tokens/s of all processes together, "
        f"medians of {workload.rounds} {'round' if workload.rounds == 1 else 'rounds'}"
    )
    return "\n".join([title, *lines])


def _cells(row: Row, results: Results) -> tuple[str, ...]:
    batches = results.workload.batches
    if row.missing:
        return (row.engine.name, *[""] * (len(batches) + 2), f"missing: {row.missing}")
    speeds = [_speed(row.decoded(batch)) for batch in batches]
    return (
        row.engine.name,
        *speeds,
        _speed(row.prompted(max(batches))),
        f"{row.memory / 1e9:.2f} GB",
        row.version,
    )


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    name, *numbers, note = (cell for cell in cells)
    aligned = [number.rjust(width) for number, width in zip(numbers, widths[1:-1], strict=True)]
    return "  ".join([name.ljust(widths[0]), *aligned, note]).rstrip()


def _speed(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def figures(results: Results) -> list[Figure]:
    """This system beside the peers that were measured; the aims of the comparison are targets. A peer that is missing
    leaves out what is measured against it: the table says so."""
    workload = results.workload
    name, most = workload.name, max(workload.batches)
    found: list[Figure | None] = []
    if name == "long":
        peers = [row.engine.key for row in results.rows if row.engine.key not in (OURS_8, OURS_4)]
        for batch in workload.batches:
            target = 1.5 if batch == most else None
            found.append(_decode(results, OURS_8, peers, batch, target))
    else:
        aims = name == "short"
        found.append(_decode(results, OURS_8, [LLAMA_8], 1, 1.2 if aims else None))
        many = 1.5 if aims else None
        found += [_decode(results, OURS_8, [VLLM_8, OPENVINO_8], n, many) for n in workload.batches[1:]]
        found.append(_prompt(results, OURS_8, VLLM_8, most, 1.2 if aims else None))
        found.append(_decode(results, OURS_4, [LLAMA_4], 1, 1.05 if aims else None))
        found += [_memory(results, OURS_8, peer, 1.0 if aims else None) for peer in (VLLM_8, OPENVINO_8)]
    return [figure for figure in found if figure]


def _decode(results: Results, ours: str, peers: Iterable[str], batch: int, aim: float | None) -> Figure | None:
    """Against the fastest of these peers."""
    row = results.row(ours)
    rivals = [rival for peer in peers if (rival := results.row(peer))]
    if not row or not rivals:
        return None
    best = max(rivals, key=lambda rival: rival.decoded(batch) or 0.0)
    what = f"{results.workload.name}: decode, {row.engine.form}, {processes(batch)}"
    return _higher(what, row.decoded(batch), best.decoded(batch), best.engine.name, aim)


def _prompt(results: Results, ours: str, peer: str, batch: int, aim: float | None) -> Figure | None:
    row, rival = results.row(ours), results.row(peer)
    if not row or not rival:
        return None
    what = f"{results.workload.name}: prompt, {row.engine.form}, {processes(batch)}"
    return _higher(what, row.prompted(batch), rival.prompted(batch), rival.engine.name, aim)


def _higher(what: str, value: float | None, reference: float | None, name: str, aim: float | None) -> Figure | None:
    if value is None or reference is None:
        return None
    return Figure(what, value, "tok/s", reference, name, aim, "higher")


def _memory(results: Results, ours: str, peer: str, aim: float | None) -> Figure | None:
    row, rival = results.row(ours), results.row(peer)
    if not row or not rival:
        return None
    what = f"{results.workload.name}: memory of all processes, {row.engine.form}, {row.memory_kind}"
    return Figure(what, row.memory / 1e9, "GB", rival.memory / 1e9, rival.engine.name, aim)


def processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
