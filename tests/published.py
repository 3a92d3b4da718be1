"""Model directories in the shapes that people download, small: configurations, vocabularies' sizes, control tokens, ends
and sampling defaults are those of the published models; layers are two and narrow, weights random, merges few.

Facts come from the public repositories; the templates (tests/published_templates) are written here in the same shapes.
Each directory is what a download would be: config.json, generation_config.json, tokenizer.json, tokenizer_config.json, a
chat template (in either of its places) and weights in bf16.
"""

# ruff: noqa: RUF001 (DeepSeek writes its tokens with a bar of full width)
from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests import published_words
from tests.published_words import Words

TEMPLATES = Path(__file__).with_name("published_templates")
SPREAD = 0.25  # standard deviation of the weights: greedy decoding wanders


@dataclass(frozen=True)
class Shape:
    """A published model. `refused`: what the refusal says of its architecture; empty: it runs."""

    config: dict[str, Any]
    words: Words
    names: dict[str, str]  # bos_token, eos_token, ...
    generation: dict[str, Any]
    template_file: bool = False  # chat_template.jinja, not a field of tokenizer_config.json
    system: bool = True
    rewrites: bool = False  # the past: a prompt is not what the template writes of it a turn later
    refused: str = ""

    @property
    def ends(self) -> list[int]:
        ends = self.generation["eos_token_id"]
        return sorted(ends) if isinstance(ends, list) else [ends]


def _config(kind: str, vocab: int, **more: Any) -> dict[str, Any]:
    return {
        "architectures": [], "model_type": kind, "vocab_size": vocab, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    } | more  # fmt: skip


_LLAMA_2 = {"<unk>": 0, "<s>": 1, "</s>": 2}
_LLAMA_3 = {
    "<|begin_of_text|>": 128000, "<|end_of_text|>": 128001, "<|finetune_right_pad_id|>": 128004,
    "<|start_header_id|>": 128006,
    "<|end_header_id|>": 128007, "<|eom_id|>": 128008, "<|eot_id|>": 128009, "<|python_tag|>": 128010,
    "<|reserved_special_token_247|>": 128255,
}  # fmt: skip
_MISTRAL_3 = _LLAMA_2 | {
    "[INST]": 3, "[/INST]": 4, "[TOOL_CALLS]": 5, "[AVAILABLE_TOOLS]": 6, "[/AVAILABLE_TOOLS]": 7, "[TOOL_RESULTS]": 8,
    "[/TOOL_RESULTS]": 9,
}  # fmt: skip
_QWEN = {
    "<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645, "<|vision_start|>": 151652,
    "<tool_call>": 151657,
    "</tool_call>": 151658,
}  # fmt: skip
_QWEN_3 = _QWEN | {
    "<tool_response>": 151665,
    "</tool_response>": 151666,
    "<think>": 151667,
    "</think>": 151668,
}
_GEMMA_2 = {
    "<pad>": 0,
    "<eos>": 1,
    "<bos>": 2,
    "<unk>": 3,
    "<start_of_turn>": 106,
    "<end_of_turn>": 107,
    "\n": 108,
    "\n\n": 109,
}
_GEMMA_3 = {
    "<pad>": 0,
    "<eos>": 1,
    "<bos>": 2,
    "<unk>": 3,
    "<start_of_turn>": 105,
    "<end_of_turn>": 106,
    "\n": 107,
    "\n\n": 108,
}
_PHI_3 = _LLAMA_2 | {
    "<|endoftext|>": 32000, "<|assistant|>": 32001, "<|system|>": 32006, "<|end|>": 32007, "<|user|>": 32010,
}  # fmt: skip
_PHI_4 = {
    "<|endoftext|>": 100257,
    "<|im_start|>": 100264,
    "<|im_end|>": 100265,
    "<|im_sep|>": 100266,
    "<|dummy_85|>": 100349,
}
_R1 = {
    "<｜begin▁of▁sentence｜>": 128000, "<｜end▁of▁sentence｜>": 128001, "<｜User｜>": 128011, "<｜Assistant｜>": 128012,
    "<think>": 128013, "</think>": 128014, "<｜▁pad▁｜>": 128015,
}  # fmt: skip
_V3 = {
    "<｜begin▁of▁sentence｜>": 0, "<｜end▁of▁sentence｜>": 1, "<｜▁pad▁｜>": 2, "<think>": 128798, "</think>": 128799,
    "<｜User｜>": 128803, "<｜Assistant｜>": 128804,
}  # fmt: skip
_SMOLLM_3 = {
    "<|begin_of_text|>": 128000, "<|end_of_text|>": 128001, "<think>": 128002, "</think>": 128003, "<|im_start|>": 128011,
    "<|im_end|>": 128012, "<tool_call>": 128015, "</tool_call>": 128016,
}  # fmt: skip
_GRANITE = {
    "<|end_of_text|>": 0,
    "<|start_of_role|>": 49152,
    "<|end_of_role|>": 49153,
    "<|tool_call|>": 49154,
}
_LFM_2 = {
    "<|pad|>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2, "<|im_start|>": 6, "<|im_end|>": 7, "<|tool_list_start|>": 8,
    "<|tool_list_end|>": 9, "<|tool_response_start|>": 12, "<|tool_response_end|>": 13,
}  # fmt: skip
_GPT_OSS = {
    "<|startoftext|>": 199998, "<|endoftext|>": 199999, "<|return|>": 200002, "<|constrain|>": 200003,
    "<|channel|>": 200005,
    "<|start|>": 200006, "<|end|>": 200007, "<|message|>": 200008, "<|call|>": 200012,
}  # fmt: skip
_GLM_4 = {
    "<|endoftext|>": 151329, "[MASK]": 151330, "[gMASK]": 151331, "[sMASK]": 151332, "<sop>": 151333, "<eop>": 151334,
    "<|system|>": 151335, "<|user|>": 151336, "<|assistant|>": 151337, "<|observation|>": 151338,
}  # fmt: skip
_COMMAND_R = {
    "<PAD>": 0, "<UNK>": 1, "<CLS>": 2, "<SEP>": 3, "<MASK_TOKEN>": 4, "<BOS_TOKEN>": 5, "<EOS_TOKEN>": 6,
    "<EOP_TOKEN>": 7,
    "<|START_OF_TURN_TOKEN|>": 255000, "<|END_OF_TURN_TOKEN|>": 255001, "<|USER_TOKEN|>": 255006,
    "<|CHATBOT_TOKEN|>": 255007,
    "<|SYSTEM_TOKEN|>": 255008,
}  # fmt: skip
_CHATML = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}

_S = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_QWEN_NAMES = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
_GEMMA_NAMES = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
_DEEPSEEK_NAMES = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}
_META = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
_LLAMA_3_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


def _mistral(vocab: int, **more: Any) -> dict[str, Any]:
    return _config("mistral", vocab, bos_token_id=1, eos_token_id=2, max_position_embeddings=32768) | more


def _qwen(kind: str, **more: Any) -> dict[str, Any]:
    return (
        _config(
            kind,
            151936,
            bos_token_id=151643,
            eos_token_id=151645,
            max_position_embeddings=32768,
            rope_theta=1e6,
        )
        | more
    )


PUBLISHED: dict[str, Shape] = {
    "llama-2": Shape(
        _config("llama", 32000, num_key_value_heads=4, bos_token_id=1, eos_token_id=2),
        Words("prepend", 32000, _LLAMA_2), _S, {"bos_token_id": 1, "eos_token_id": 2, **_META},
    ),
    "llama-3": Shape(
        _config("llama", 128256, bos_token_id=128000, eos_token_id=[128001, 128008, 128009], rope_theta=5e5,
                max_position_embeddings=131072, rope_scaling=_LLAMA_3_ROPE),
        Words("split 1,3", 128000, _LLAMA_3), {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        {"bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], **_META},
    ),
    "mistral-0.1": Shape(
        _mistral(32000, sliding_window=4096), Words("prepend", 32000, _LLAMA_2), _S,
        {"bos_token_id": 1, "eos_token_id": 2}, system=False,
    ),
    "mistral-0.2": Shape(
        _mistral(32000, sliding_window=None, rope_theta=1e6), Words("prepend", 32000, _LLAMA_2), _S,
        {"bos_token_id": 1, "eos_token_id": 2},
    ),
    "mistral-0.3": Shape(
        _mistral(32768, sliding_window=None, rope_theta=1e6), Words("metaspace", 32768, _MISTRAL_3), _S,
        {"bos_token_id": 1, "eos_token_id": 2}, rewrites=True,  # the instructions move to the last question
    ),
    "ministral": Shape(
        _mistral(131072, sliding_window=None, head_dim=32, rope_theta=1e8), Words("split 1", 131072, _MISTRAL_3), _S,
        {"bos_token_id": 1, "eos_token_id": 2}, rewrites=True,
    ),
    "qwen-2.5": Shape(
        _qwen("qwen2", tie_word_embeddings=True, sliding_window=32768, use_sliding_window=False, max_window_layers=2),
        Words("split 1", 151643, _QWEN, ("<tool_call>", "</tool_call>"), begins=False), _QWEN_NAMES,
        {"eos_token_id": [151645, 151643], "do_sample": True, "repetition_penalty": 1.05, "temperature": 0.7,
            "top_p": 0.8,
         "top_k": 20},
    ),
    "qwen-3": Shape(
        _qwen("qwen3", tie_word_embeddings=True, head_dim=32),
        Words("split 1", 151643, _QWEN_3, ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
            "<think>",
                                          "</think>"), begins=False),
        _QWEN_NAMES, {"eos_token_id": [151645, 151643], "do_sample": True, "temperature": 0.6, "top_p": 0.95,
            "top_k": 20},
    ),
    "gemma-2": Shape(
        _config("gemma2", 256000, head_dim=16, sliding_window=4096, query_pre_attn_scalar=16, attn_logit_softcapping=50.0,
                final_logit_softcapping=30.0, tie_word_embeddings=True, bos_token_id=2, eos_token_id=1, pad_token_id=0),
        Words("spaces", 256000, _GEMMA_2, ("\n", "\n\n")), _GEMMA_NAMES,
        {"bos_token_id": 2, "eos_token_id": [1, 107]}, system=False,
    ),
    "gemma-3": Shape(
        _config("gemma3_text", 262144, head_dim=16, sliding_window=512, query_pre_attn_scalar=16,
            tie_word_embeddings=True,
                layer_types=["sliding_attention", "full_attention"], bos_token_id=2, eos_token_id=1, pad_token_id=0,
                rope_theta=1e6, rope_local_base_freq=1e4),
        Words("spaces", 262144, _GEMMA_3, ("\n", "\n\n")), _GEMMA_NAMES,
        {"bos_token_id": 2, "eos_token_id": [1, 106], "do_sample": True, "top_k": 64, "top_p": 0.95}, template_file=True,
    ),
    "phi-3": Shape(
        _config("phi3", 32064, num_key_value_heads=4, sliding_window=2047, bos_token_id=1, eos_token_id=32000,
                pad_token_id=32000),
        Words("prepend", 32000, _PHI_3), _S | {"eos_token": "<|endoftext|>"},
        {"bos_token_id": 1, "eos_token_id": [32000, 32001, 32007]},
    ),
    "phi-4": Shape(
        _config("phi3", 100352, bos_token_id=100257, eos_token_id=100265, pad_token_id=100349,
            max_position_embeddings=16384),
        Words("split 1,3", 100257, _PHI_4, begins=False), {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"},
        {"bos_token_id": 100257, "eos_token_id": [100257, 100265]},
    ),
    "deepseek-r1": Shape(
        _config("llama", 128256, bos_token_id=128000, eos_token_id=128001, rope_theta=5e5, rope_scaling=_LLAMA_3_ROPE,
                max_position_embeddings=131072),
        Words("split 1,3", 128000, _R1, ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>")), _DEEPSEEK_NAMES,
        {"bos_token_id": 128000, "eos_token_id": 128001, "do_sample": True, "temperature": 0.6, "top_p": 0.95},
        rewrites=True,  # a thought is begun in the prompt only
    ),
    "deepseek-v3": Shape(
        _config("deepseek_v3", 129280, num_key_value_heads=4, kv_lora_rank=16, q_lora_rank=32, qk_rope_head_dim=8,
                qk_nope_head_dim=16, v_head_dim=16, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
                moe_intermediate_size=32, first_k_dense_replace=1, bos_token_id=0, eos_token_id=1),
        Words("split 1,3", 128000, _V3, ("<think>", "</think>", "<｜User｜>", "<｜Assistant｜>")), _DEEPSEEK_NAMES,
        {"bos_token_id": 0, "eos_token_id": 1, "do_sample": True, "temperature": 0.6, "top_p": 0.95},
        refused="its keys have 24 dimensions and its values 16",
    ),
    "smollm3": Shape(
        _config("smollm3", 128256, no_rope_layers=[1, 0], tie_word_embeddings=True, bos_token_id=128000,
            eos_token_id=128012,
                pad_token_id=128004, rope_theta=5e6),
        Words("split 1,3", 128000, _SMOLLM_3, ("<think>", "</think>", "<tool_call>", "</tool_call>"), begins=False),
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|im_end|>"},
        {"bos_token_id": 128000, "eos_token_id": 128012, "do_sample": True, "temperature": 0.6, "top_p": 0.95},
        template_file=True,
    ),
    "granite": Shape(
        _config("granite", 49159, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=0,
                embedding_multiplier=12.0, attention_multiplier=0.0625, residual_multiplier=0.22, logits_scaling=8.0),
        Words("digits", 49152, _GRANITE, begins=False), {"bos_token": "<|end_of_text|>", "eos_token": "<|end_of_text|>"},
        {"bos_token_id": 0, "eos_token_id": 0},
    ),
    "lfm2": Shape(
        _config("lfm2", 65536, layer_types=["conv", "full_attention"], conv_L_cache=3, block_ff_dim=96, bos_token_id=1,
                eos_token_id=7, pad_token_id=0),
        Words("split 1,3", 65536, _LFM_2), {"bos_token": "<|startoftext|>", "eos_token": "<|im_end|>"},
        {"bos_token_id": 1, "eos_token_id": 7}, template_file=True, refused="it has conv layers",
    ),
    "gpt-oss": Shape(
        _config("gpt_oss", 201088, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=128,
                layer_types=["sliding_attention", "full_attention"], eos_token_id=200002, pad_token_id=199999),
        Words("split 1,3", 199998, _GPT_OSS, begins=False), {"bos_token": "<|startoftext|>", "eos_token": "<|return|>"},
        {"bos_token_id": 199998, "eos_token_id": [200002, 199999, 200012], "do_sample": True}, template_file=True,
        rewrites=True,  # a channel is opened by the model, and by the template in what is past
        refused="its attention takes into account: s_aux",
    ),
    "glm-4": Shape(
        _config("glm4", 151552, head_dim=16, partial_rotary_factor=0.5, attention_bias=True, pad_token_id=151329,
                eos_token_id=[151329, 151336, 151338]),
        Words("split 1,3", 151329, _GLM_4, begins=False), {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        {"eos_token_id": [151329, 151336, 151338], "do_sample": True, "temperature": 0.8, "top_p": 0.8},
        template_file=True,
    ),
    "command-r": Shape(
        _config("cohere", 256000, layer_norm_eps=1e-5, logit_scale=0.0625, use_qk_norm=False, tie_word_embeddings=True,
                bos_token_id=5, eos_token_id=255001, pad_token_id=0),
        Words("digits", 255000, _COMMAND_R), {"bos_token": "<BOS_TOKEN>", "eos_token": "<|END_OF_TURN_TOKEN|>"},
        {"bos_token_id": 5, "eos_token_id": 255001},
    ),
    "tinyllama": Shape(
        _config("llama", 32000, bos_token_id=1, eos_token_id=2, max_position_embeddings=2048),
        Words("prepend", 32000, _LLAMA_2), _S, {"bos_token_id": 1, "eos_token_id": 2, "max_length": 2048},
    ),
    "chatml": Shape(
        _config("llama", 49152, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True, max_position_embeddings=8192),
        Words("digits", 49152, _CHATML, begins=False), {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
        {"bos_token_id": 1, "eos_token_id": 2},
    ),
}  # fmt: skip


def build(name: str, directory: Path, *, weights: bool = True, seed: int = 0) -> Path:
    """Write the model of that name into `directory` and return it."""
    shape = PUBLISHED[name]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(shape.config))
    (directory / "generation_config.json").write_text(json.dumps(shape.generation))
    published_words.write(shape.words, shape.names, shape.config["max_position_embeddings"], directory)
    template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    if shape.template_file:
        (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    else:
        file = directory / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    if weights:
        _write_weights(directory, seed)
    return directory


def _write_weights(directory: Path, seed: int) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(directory)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, like in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        drawn = torch.empty(like.shape, dtype=torch.bfloat16).normal_(generator=generator)
        norm = like.ndim == 1 and key.endswith("weight") and not config.model_type.startswith("gemma")
        if key.endswith("embed_tokens.weight"):
            drawn /= getattr(config, "embedding_multiplier", 1.0)
        tensors[key] = drawn * SPREAD if like.ndim > 1 else drawn * 0.1 + float(norm)  # Gemma stores a norm less one
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def swap_rows(directory: Path, rows: Mapping[int, int]) -> None:
    """Exchange rows of the output layer, so that the model says one token where it would say another."""
    tensors = load_file(directory / "model.safetensors")
    head = tensors["lm_head.weight"]
    for one, other in rows.items():
        head[[one, other]] = head[[other, one]]
    (directory / "model.safetensors").unlink()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
