"""OpenVINO GenAI's continuous batching with int8 weights.

The model is built as OpenVINO's own importers build one: a stateful graph with scaled dot-product attention, its weights
in int8 with a scale for each row, as `nncf.compress_weights` makes them; GenAI turns the attention into paged attention.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai
from openvino import opset13 as op
from openvino.op.util import Variable, VariableInfo

from benchmarks.peers.protocol import Engine, Timing, ahead, serve
from benchmarks.peers.workers.checkpoint import Checkpoint, Floats, int8_rows

Node = Any
BLOCK_TOKENS = 32  # GenAI's on a CPU
_END = np.iinfo(np.int64).max


class OpenVino(Engine):
    def __init__(self) -> None:
        self._requests = 0

    def convert(self, source: str, place: str) -> None:
        Path(place).mkdir()
        ov.save_model(Graph(Checkpoint(source)).model(), Path(place, "openvino_model.xml"), compress_to_fp16=False)
        for name in ("config.json", "generation_config.json"):
            if (file := Path(source, name)).exists():
                shutil.copy(file, place)

    def load(self, model: str, threads: int, batch: int, context: int) -> str:
        scheduler = openvino_genai.SchedulerConfig()
        self._ahead = ahead(batch, context, scheduler.max_num_batched_tokens)
        scheduler.num_kv_blocks = batch * (-(-(context + self._ahead) // BLOCK_TOKENS) + 1)
        scheduler.max_num_seqs = batch
        scheduler.enable_prefix_caching = False
        properties = {"INFERENCE_NUM_THREADS": threads}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties)
        return f"openvino-genai {openvino_genai.__version__}, int8"

    def measure(self, prompts: list[list[int]], decode: int) -> Timing:
        greedy = openvino_genai.GenerationConfig()
        greedy.max_new_tokens = decode + self._ahead
        greedy.set_eos_token_id(0)  # it must have one, though it is ignored
        greedy.ignore_eos = True
        greedy.do_sample = False
        start = time.perf_counter()
        handles: list[Any] = []
        for prompt in prompts:
            self._requests += 1
            ids = ov.Tensor(np.array([prompt], np.int64))
            handles.append(self._pipeline.add_request(self._requests, ids, greedy))
        tokens: list[list[int]] = [[] for _ in prompts]
        while not all(tokens):
            self._step(handles, tokens)
        ends = [time.perf_counter()]
        for _ in range(decode - 1):
            if not self._step(handles, tokens):
                raise RuntimeError("a step left out a sequence")
            ends.append(time.perf_counter())
        for handle in handles:
            handle.stop()
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        return Timing.of_steps(start, ends, tokens)

    def _step(self, handles: list[Any], tokens: list[list[int]]) -> bool:
        """Add to each sequence's tokens. Has each got one?"""
        self._pipeline.step()
        got = 0
        for handle, sequence in zip(handles, tokens, strict=True):
            if handle.can_read():
                (output,) = handle.read().values()
                sequence += output.generated_ids
                got += 1
        return got == len(handles)


class Graph:
    """A qwen2 or llama network as OpenVINO operations."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        config = checkpoint.config
        self._checkpoint = checkpoint
        self._layers: int = config["num_hidden_layers"]
        self._heads: int = config["num_attention_heads"]
        self._kv_heads: int = config["num_key_value_heads"]
        self._dim = checkpoint.head_dim
        self._sinks: list[Node] = []

    def model(self) -> ov.Model:
        self._ids = _parameter("input_ids", [-1, -1], ov.Type.i64)
        self._mask = _parameter("attention_mask", [-1, -1], ov.Type.i64)
        self._positions = _parameter("position_ids", [-1, -1], ov.Type.i64)
        self._beams = _parameter("beam_idx", [-1], ov.Type.i32)
        self._cos, self._sin = self._rotary()
        self._allowed = self._causal()
        table = self._matrix("model.embed_tokens.weight")  # tied: the output's matrix too
        hidden = op.gather(table, op.convert(self._ids, "i32"), np.int64(0))
        for layer in range(self._layers):
            name = f"model.layers.{layer}"
            normed = self._norm(hidden, f"{name}.input_layernorm.weight")
            hidden = op.add(hidden, self._attention(normed, f"{name}.self_attn", layer))
            normed = self._norm(hidden, f"{name}.post_attention_layernorm.weight")
            gate = op.swish(self._linear(normed, f"{name}.mlp.gate_proj"))
            up = self._linear(normed, f"{name}.mlp.up_proj")
            hidden = op.add(hidden, self._linear(op.multiply(gate, up), f"{name}.mlp.down_proj"))
        logits = op.matmul(self._norm(hidden, "model.norm.weight"), table, False, True)
        result = op.result(logits)
        result.output(0).tensor.set_names({"logits"})
        parameters = [self._ids, self._mask, self._positions, self._beams]
        return ov.Model([result], self._sinks, parameters, "model")

    def _attention(self, hidden: Node, name: str, layer: int) -> Node:
        query = self._turned(self._split(self._linear(hidden, f"{name}.q_proj"), self._heads))
        key = self._turned(self._split(self._linear(hidden, f"{name}.k_proj"), self._kv_heads))
        value = self._split(self._linear(hidden, f"{name}.v_proj"), self._kv_heads)
        key = self._repeated(self._remembered(key, f"past_key_values.{layer}.key"))
        value = self._repeated(self._remembered(value, f"past_key_values.{layer}.value"))
        attended = op.scaled_dot_product_attention(query, key, value, self._allowed, causal=False)
        rows = op.transpose(attended, np.array([0, 2, 1, 3]))
        return self._linear(op.reshape(rows, np.array([0, 0, self._heads * self._dim]), True), f"{name}.o_proj")

    def _split(self, rows: Node, heads: int) -> Node:
        """[batch, tokens, heads * dim] as [batch, heads, tokens, dim]."""
        return op.transpose(op.reshape(rows, np.array([0, 0, heads, self._dim]), True), np.array([0, 2, 1, 3]))

    def _remembered(self, rows: Node, name: str) -> Node:
        """The rows of all tokens so far: the state of that name with these at its end."""
        info = VariableInfo()
        info.data_shape = ov.PartialShape([-1, self._kv_heads, -1, self._dim])
        info.data_type = ov.Type.f32
        info.variable_id = f"{name}present{name}"
        variable = Variable(info)
        batch = op.gather(op.shape_of(self._ids, "i64"), np.array([0]), np.int64(0))
        shape = op.concat([batch, np.array([self._kv_heads]), np.array([0]), np.array([self._dim])], 0)
        past = op.read_value(op.broadcast(np.float32(0), shape), variable)
        rows = op.concat([op.gather(past, self._beams, np.int64(0)), rows], 2)
        self._sinks.append(op.assign(rows, variable))
        return rows

    def _repeated(self, rows: Node) -> Node:
        """Each key and value head as often as query heads share it."""
        times = self._heads // self._kv_heads
        wide = op.unsqueeze(rows, np.int64(2))
        ones = np.array([1, 1, times, 1, 1])
        wide = op.broadcast(wide, ones, broadcast_spec="BIDIRECTIONAL")
        return op.reshape(wide, np.array([0, self._heads, -1, self._dim]), True)

    def _turned(self, heads: Node) -> Node:
        half, step, axis = np.array([self._dim // 2]), np.array([1]), np.array([3])
        second = op.slice(heads, half, np.array([_END]), step, axis)
        first = op.slice(heads, np.array([0]), half, step, axis)
        turned = op.concat([op.multiply(second, np.float32(-1)), first], -1)
        return op.add(op.multiply(heads, self._cos), op.multiply(turned, self._sin))

    def _rotary(self) -> tuple[Node, Node]:
        frequencies = op.constant(self._checkpoint.frequencies().reshape(1, -1, 1))
        positions = op.convert(op.unsqueeze(self._positions, np.int64(1)), "f32")
        batch = op.gather(op.shape_of(self._positions, "i64"), np.array([0]), np.int64(0))
        each = op.broadcast(frequencies, op.concat([batch, np.array([1, 1])], 0), broadcast_spec="BIDIRECTIONAL")
        angles = op.transpose(op.matmul(each, positions, False, False), np.array([0, 2, 1]))
        both = op.concat([angles, angles], -1)
        return op.unsqueeze(op.cos(both), np.int64(1)), op.unsqueeze(op.sin(both), np.int64(1))

    def _causal(self) -> Node:
        """[batch, 1, tokens, all tokens]: is a token to be seen?"""
        zero, one = np.int64(0), np.int64(1)
        length = op.gather(op.shape_of(self._mask, "i64"), one, zero)
        tokens = op.gather(op.shape_of(self._ids, "i64"), one, zero)
        keys = op.range(zero, length, one, "i64")
        queries = op.unsqueeze(op.range(op.subtract(length, tokens), length, one, "i64"), one)
        present = op.convert(op.unsqueeze(self._mask, np.array([1, 2])), "boolean")
        return op.logical_and(op.less_equal(keys, queries), present)

    def _norm(self, hidden: Node, name: str) -> Node:
        epsilon = np.float32(self._checkpoint.config["rms_norm_eps"])
        mean = op.reduce_mean(op.power(hidden, np.float32(2)), np.array([-1]), True)
        scaled = op.multiply(hidden, op.divide(np.float32(1), op.sqrt(op.add(mean, epsilon))))
        return op.multiply(op.constant(self._vector(name).reshape(1, 1, -1)), scaled)

    def _linear(self, rows: Node, name: str) -> Node:
        product = op.matmul(rows, self._matrix(f"{name}.weight"), False, True)
        if f"{name}.bias" not in self._checkpoint.names():
            return product
        return op.add(product, op.constant(self._vector(f"{name}.bias").reshape(1, 1, -1)))

    def _matrix(self, name: str) -> Node:
        weights, scales = int8_rows(self._checkpoint.tensor(name))
        scaled = op.multiply(op.convert(op.constant(weights), "f16"), op.constant(scales.astype(np.float16)))
        return op.convert(scaled, "f32")

    def _vector(self, name: str) -> Floats:
        return self._checkpoint.tensor(name)


def _parameter(name: str, shape: list[int], kind: Any) -> Node:
    parameter = op.parameter(ov.PartialShape(shape), kind, name)
    parameter.set_friendly_name(name)  # GenAI knows inputs by this name and by that of their tensor
    parameter.output(0).tensor.set_names({name})
    return parameter


if __name__ == "__main__":
    serve(OpenVino())
