"""How much memory a load takes on its way: what was said before (`Probed.weight_bytes`, which is what `models --estimate`
shows and the kernel reserves), and some megabytes to work in, whatever form the files have. Counted is what the operating
system has seen of a driver's process at the most."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from llmasos.drivers.cpu.native import library

ROOT = Path(__file__).parents[2]
VOCAB, HIDDEN, MIDDLE, LAYERS, GROUP = 32_000, 512, 1024, 4, 128
WORK = 48 << 20  # bytes: a layer's matrices before they are packed, pieces in two threads, modules imported on the way
CONFIG: dict[str, Any] = {
    "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": MIDDLE,
    "num_hidden_layers": LAYERS, "num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
_LAYER = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (HIDDEN, HIDDEN), "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (MIDDLE, HIDDEN), "mlp.up_proj": (MIDDLE, HIDDEN),
    "mlp.down_proj": (HIDDEN, MIDDLE),
}  # fmt: skip
_NAMES = {
    "model.embed_tokens": "token_embd", "lm_head": "output", "model.norm": "output_norm",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def _weights() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens", (VOCAB, HIDDEN)
    yield "lm_head", (VOCAB, HIDDEN)
    yield "model.norm", (HIDDEN,)
    for number in range(LAYERS):
        before = f"model.layers.{number}."
        yield from ((before + name, shape) for name, shape in _LAYER.items())
        yield from ((before + name, (HIDDEN,)) for name in ("input_layernorm", "post_attention_layernorm"))


def _safetensors(place: Path, dtype: torch.dtype) -> Path:
    place.mkdir()
    (place / "config.json").write_text(json.dumps(CONFIG))
    save_file(
        {f"{name}.weight": (torch.rand(shape) - 0.5).to(dtype) for name, shape in _weights()},
        place / "model.safetensors",
    )
    return place


def _compressed(place: Path) -> Path:
    """As llm-compressor writes W4A16."""
    place.mkdir()
    scheme = {"num_bits": 4, "type": "int", "symmetric": True, "group_size": GROUP, "strategy": "group"}
    settings = {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": scheme}},
    }  # fmt: skip
    (place / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": settings}))
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in _weights():
        if "_proj" not in name:
            tensors[f"{name}.weight"] = (torch.rand(shape) - 0.5).to(torch.bfloat16)
            continue
        rows, inputs = shape
        tensors[f"{name}.weight_packed"] = torch.randint(-(1 << 31), 1 << 31, (rows, inputs // 8)).to(torch.int32)
        tensors[f"{name}.weight_scale"] = torch.full((rows, inputs // GROUP), 0.01, dtype=torch.bfloat16)
        tensors[f"{name}.weight_shape"] = torch.tensor(shape)
    save_file(tensors, place / "model.safetensors")
    return place


def _gguf(file: Path, kind: str) -> Path:
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(MIDDLE)
    writer.add_head_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    items = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[items]
    random = np.random.default_rng(0)
    for name, shape in _weights():
        parts = name.removeprefix("model.layers.").split(".", 1)
        new = f"blk.{parts[0]}.{_NAMES[parts[1]]}" if parts[0].isdigit() else _NAMES[name]
        if len(shape) == 1:
            writer.add_tensor(f"{new}.weight", np.ones(shape, np.float32))
        else:  # bytes below 64: floats among them are small
            data = random.integers(0, 64, (shape[0], shape[1] // block * size), np.uint8)
            writer.add_tensor(f"{new}.weight", data, raw_dtype=items)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


_LOADER = """
import re, sys
sys.path.insert(0, {root!r})
from llmasos.drivers.cpu import open_device
from llmasos.drivers.protocol import Load, Probe
import numpy, xxhash, filelock, gguf
import llmasos.modelfiles.gguf_weights, drivers.engine.quantised.compressed_tensors, drivers.cpu.native.packing
device = open_device({{"threads": "2", "installed": {store!r}}})
said = device.probe(Probe(1, {model!r}, {dtype!r}))
def memory(which): return int(re.search(which + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) << 10
before = memory("VmRSS")
device.fetch(Load(2, 1, {model!r}, {dtype!r}, 4), lambda fraction: None)()
print(said.weight_bytes + 4 * said.block_bytes, memory("VmHWM") - before)
"""


def took(model: Path, dtype: str, store: str) -> tuple[int, int]:
    """What was said, and what it took."""
    code = _LOADER.format(root=str(ROOT), store=store, model=str(model), dtype=dtype)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    said, most = out.stdout.split()
    return int(said), int(most)


FORMS = {
    "bf16": lambda at: _safetensors(at / "model", torch.bfloat16),
    "fp32": lambda at: _safetensors(at / "model", torch.float32),
    "compressed-tensors": lambda at: _compressed(at / "model"),
    "Q8_0": lambda at: _gguf(at / "model.gguf", "Q8_0"),
    "Q4_0": lambda at: _gguf(at / "model.gguf", "Q4_0"),
    "Q4_K": lambda at: _gguf(at / "model.gguf", "Q4_K"),
}


@pytest.mark.skipif(isinstance(library.load(), str), reason="there is no native decoder")
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells how much memory there was")
@pytest.mark.parametrize(
    ("form", "dtype", "kept"),
    [
        ("fp32", "fp32", False),
        ("bf16", "int8", True),
        ("compressed-tensors", "", True),
        ("Q8_0", "", True),
        ("Q4_0", "", False),
        ("Q4_K", "int4", True),
    ],
)
def test_a_load_takes_what_was_said_and_no_more(form: str, dtype: str, kept: bool, tmp_path: Path) -> None:
    said, most = took(FORMS[form](tmp_path), dtype, str(tmp_path / "store") if kept else "no")
    assert most <= said + WORK
