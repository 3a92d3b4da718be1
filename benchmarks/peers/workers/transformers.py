"""transformers' `generate` in bf16, with its own cache and attention (sdpa)."""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

from benchmarks.peers.protocol import Engine, Timing, serve


class Transformers(Engine):
    def load(self, model: str, threads: int, batch: int, context: int) -> str:
        torch.set_num_threads(threads)
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
        return f"transformers {transformers.__version__}, torch {torch.__version__}, bf16"

    def measure(self, prompts: list[list[int]], decode: int) -> Timing:
        ends: list[float] = []

        class Clock(StoppingCriteria):  # type: ignore[misc]
            def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
                ends.append(time.perf_counter())
                return torch.zeros(input_ids.shape[0], dtype=torch.bool)

        ids = torch.tensor(prompts)
        start = time.perf_counter()
        with torch.inference_mode():
            sequences = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=decode,
                min_new_tokens=decode,
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([Clock()]),
            )
        return Timing.of_steps(start, ends, sequences[:, ids.shape[1] :].tolist())


if __name__ == "__main__":
    serve(Transformers())
