"""The engine called directly, without kernel or sockets, against transformers' `generate`, on the yardstick model.

Decoding is measured at 1, 4 and 16 processes in bf16, int8 and int4, prompts at 256 tokens a step; the reference is
transformers in bf16 with as many sequences in one batch. All take turns, several rounds over; a speed is that of the
median step.
"""

from __future__ import annotations

import os
import statistics
import time
from itertools import pairwise
from typing import Any

from benchmarks.report import Figure
from benchmarks.yardstick import DECODED_TOKENS, PROMPT_TOKENS, ensure_yardstick, prompts

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

ROUNDS = 3
BATCHES = (1, 4, 16)
TARGET = 1.5  # times transformers, for 16 processes in int8
_FRAMES = 16 * (PROMPT_TOKENS + DECODED_TOKENS) // 16 + 16


class EngineBench:
    """The CPU driver's engine with the yardstick model in one dtype. `whole` is the speed of the last measurement over
    all its steps, not the median one."""

    whole = 0.0

    def __init__(self, dtype: str) -> None:
        from llmasos.drivers.cpu import open_device
        from llmasos.drivers.protocol import Load

        self._device = open_device({"dtype": dtype})
        self._device.fetch(Load(1, 1, str(ensure_yardstick()), dtype, _FRAMES), lambda fraction: None)()

    def measure(self, batch: int) -> tuple[float, float]:
        """(prompt tokens/s, decoded tokens/s of all together)."""
        from llmasos.drivers.protocol import BLOCK_TOKENS, Run, Sample, Step
        from llmasos.syscalls.records import Sampler

        logs = dict(enumerate(prompts(batch), 1))
        frames = (PROMPT_TOKENS + DECODED_TOKENS) // BLOCK_TOKENS
        tables = {ctx: list(range((ctx - 1) * frames, ctx * frames)) for ctx in logs}
        greedy = Sampler()

        def step(ctxs: list[int], first: bool) -> float:
            runs = []
            for ctx in ctxs:
                position = 0 if first else len(logs[ctx]) - 1
                end = len(logs[ctx])
                sample = Sample(greedy, end, True)
                keep = 0 if first else frames
                runs.append(Run(ctx, 1, position, logs[ctx][position:], keep, tables[ctx][keep:], sample))
            start = time.perf_counter()
            done = self._device.step(Step(1, runs))
            elapsed = time.perf_counter() - start
            for result in done.results:
                if result.error:
                    raise RuntimeError(result.error)
                logs[result.ctx].append(result.token)
            return elapsed

        ctxs = list(logs)
        groups = [ctxs[i : i + 4] for i in range(0, batch, 4)]  # 256 tokens a step
        prefill = sum(step(group, True) for group in groups)
        steps = [step(ctxs, False) for _ in range(DECODED_TOKENS - 1)]
        decode = statistics.median(steps)
        self.whole = batch * len(steps) / sum(steps)
        self._device.drop(ctxs)
        return batch * PROMPT_TOKENS / prefill, batch / decode


class TransformersBench:
    """transformers' generate in bf16 with its own cache and attention (sdpa)."""

    def __init__(self) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(ensure_yardstick(), dtype=torch.bfloat16).eval()

    def measure(self, batch: int) -> tuple[float, float]:
        import torch
        from transformers import StoppingCriteria, StoppingCriteriaList

        times: list[float] = []

        class Clock(StoppingCriteria):  # type: ignore[misc]
            def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
                times.append(time.perf_counter())
                return torch.zeros(input_ids.shape[0], dtype=torch.bool)

        ids = torch.tensor(prompts(batch))
        start = time.perf_counter()
        with torch.inference_mode():
            self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=DECODED_TOKENS,
                min_new_tokens=DECODED_TOKENS,
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([Clock()]),
            )
        steps = [after - before for before, after in pairwise(times)]
        return batch * PROMPT_TOKENS / (times[0] - start), batch / statistics.median(steps)


def run(rounds: int = ROUNDS) -> list[Figure]:
    """Decode and prompt speeds, each beside transformers' own of the same batch."""
    from llmasos.drivers.cpu import open_device, share_cores

    share_cores()  # both sides alike: torch reads it when it is first imported
    engines: dict[str, EngineBench | TransformersBench] = {"transformers": TransformersBench()}
    for dtype in open_device({}).hello().dtypes:
        if dtype != "fp32":
            engines[dtype] = EngineBench(dtype)
    measured: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for name in engines:
        engines[name].measure(1)  # warm
    for _ in range(rounds):
        for batch in BATCHES:
            for name, bench in engines.items():
                measured.setdefault((name, batch), []).append(bench.measure(batch))

    def speed(name: str, batch: int, which: int) -> float:
        return statistics.median(figures[which] for figures in measured[name, batch])

    figures = []
    for name in engines:
        if name == "transformers":
            continue
        for batch in BATCHES:
            target = TARGET if (name, batch) == ("int8", 16) else None
            figures.append(
                Figure(
                    f"engine decode, {name}, {batch} processes",
                    speed(name, batch, 1),
                    "tok/s",
                    speed("transformers", batch, 1),
                    "transformers bf16",
                    target,
                    "higher",
                )
            )
        figures.append(
            Figure(
                f"engine prompt, {name}, 256 tokens a step",
                speed(name, 16, 0),
                "tok/s",
                speed("transformers", 16, 0),
                "transformers bf16",
                None,
                "higher",
            )
        )
    return figures


if __name__ == "__main__":
    from benchmarks.report import table

    print(table(run()))
