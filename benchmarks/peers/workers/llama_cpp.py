"""llama.cpp through the C interface that llama-cpp-python binds: one context, a sequence a prompt, the greatest logit.

Models are GGUF files, written with the gguf package and quantised by llama.cpp itself, as a user's are: Q4_0 has its tied
embedding and output matrix in Q6_K, or in Q8_0 if its rows are no multiple of 256, as the yardstick's are not.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from importlib import metadata

import llama_cpp as lib
import numpy as np

from benchmarks.peers.protocol import Engine, Timing, serve
from benchmarks.peers.workers.checkpoint import Checkpoint, Floats

FILE_TYPES = {"q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0", "q4_0": "LLAMA_FTYPE_MOSTLY_Q4_0"}
BATCH = 2048  # tokens of a prompt given at once: llama.cpp's default, like the 512 it computes at once
_PADDING = 256  # contexts are multiples of it

LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.bias": "attn_v.bias",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
OTHERS = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}


class LlamaCpp(Engine):
    def __init__(self, form: str) -> None:
        self._form = form
        lib.llama_backend_init()

    def convert(self, source: str, place: str) -> None:
        whole = f"{place}.f16"
        write_gguf(Checkpoint(source), whole)
        parameters = lib.llama_model_quantize_default_params()
        parameters.ftype = getattr(lib, FILE_TYPES[self._form])
        parameters.nthread = len(os.sched_getaffinity(0))
        if status := lib.llama_model_quantize(whole.encode(), place.encode(), ctypes.byref(parameters)):
            raise RuntimeError(f"llama_model_quantize failed with {status}")

    def load(self, model: str, threads: int, batch: int, context: int) -> str:
        loaded = lib.llama_model_load_from_file(model.encode(), lib.llama_model_default_params())
        if not loaded:
            raise RuntimeError(f"llama.cpp cannot load {model}")
        parameters = lib.llama_context_default_params()
        parameters.n_ctx = batch * -(-context // _PADDING) * _PADDING
        parameters.n_batch = BATCH
        parameters.n_seq_max = batch
        parameters.n_threads = parameters.n_threads_batch = threads
        self._context = lib.llama_init_from_model(loaded, parameters)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot make a context of {parameters.n_ctx} tokens")
        self._vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(loaded))
        self._batch = lib.llama_batch_init(BATCH, 0, 1)
        return f"llama-cpp-python {metadata.version('llama-cpp-python')}, {self._form.upper()}"

    def measure(self, prompts: list[list[int]], decode: int) -> Timing:
        lib.llama_memory_clear(lib.llama_get_memory(self._context), False)
        start = time.perf_counter()
        tokens = [[token] for token in self._prompts(prompts)]
        ends = [time.perf_counter()]
        for position in range(len(prompts[0]), len(prompts[0]) + decode - 1):
            rows = [(decoded[-1], position, sequence, True) for sequence, decoded in enumerate(tokens)]
            for sequence, token in self._decode(rows).items():
                tokens[sequence].append(token)
            ends.append(time.perf_counter())
        return Timing.of_steps(start, ends, tokens)

    def _prompts(self, prompts: list[list[int]]) -> list[int]:
        """The first token of each."""
        rows = [
            (token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        first: dict[int, int] = {}
        for begin in range(0, len(rows), BATCH):
            first |= self._decode(rows[begin : begin + BATCH])
        return [first[sequence] for sequence in range(len(prompts))]

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> dict[int, int]:
        """Compute (token, position, sequence, wanted) rows; the next token of each sequence that has a wanted row."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wanted
        if status := lib.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode failed with {status}")
        next_tokens = {}
        for i, (_, _, sequence, wanted) in enumerate(rows):
            if wanted:
                logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(self._context, i), (self._vocab,))
                next_tokens[sequence] = int(logits.argmax())
        return next_tokens


def write_gguf(checkpoint: Checkpoint, file: str) -> None:
    """Write a qwen2 or llama checkpoint without a vocabulary: matrices in fp16, vectors in fp32."""
    import gguf

    config = checkpoint.config
    writer = gguf.GGUFWriter(file, config["model_type"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(checkpoint.rope("rope_theta"))
    writer.add_rope_dimension_count(checkpoint.head_dim)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("no_vocab")
    for name in checkpoint.names():
        values = checkpoint.tensor(name)
        if config["model_type"] == "llama":
            values = _interleaved(values, name, checkpoint)
        writer.add_tensor(_gguf_name(name), values.astype(np.float16) if values.ndim > 1 else values)
    divisors = checkpoint.frequency_divisors()
    if (divisors != 1).any():
        writer.add_tensor("rope_freqs.weight", divisors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_name(name: str) -> str:
    if name in OTHERS:
        return OTHERS[name]
    _, layers, index, rest = name.split(".", 3)
    if layers != "layers" or rest not in LAYER:
        raise ValueError(f"no GGUF name is known for the tensor {name}")
    return f"blk.{index}.{LAYER[rest]}"


def _interleaved(values: Floats, name: str, checkpoint: Checkpoint) -> Floats:
    """GGUF's llama turns neighbouring dimensions of a head, transformers those half a head apart."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    for part, key in heads.items():
        if f".{part}.weight" in name:
            halves = values.reshape(checkpoint.config[key], 2, checkpoint.head_dim // 2, -1)
            return halves.swapaxes(1, 2).reshape(values.shape)
    return values


if __name__ == "__main__":
    serve(LlamaCpp(sys.argv[1]))
