"""Tiny random models of every supported architecture, as directories that any transformers program can read.

Weights are random but large enough (see SPREAD) that greedy decoding wanders instead of repeating one token; a small
byte-level tokenizer with a chat template comes with each, so whole-system tests can use them too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

VOCAB = 272  # 256 bytes, and the special tokens
EOS, BOS, PAD = 256, 257, 258
CONTEXT = 512
_SPECIAL = {"<|end|>": EOS, "<|begin|>": BOS, "<|pad|>": PAD, "<|user|>": 259, "<|assistant|>": 260}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "eos_token_id": EOS,
    "bos_token_id": BOS,
    "pad_token_id": PAD,
}


def _plain(*without: str, **more: Any) -> dict[str, Any]:
    return {key: value for key, value in _COMMON.items() if key not in without} | more


# name -> (model_type, configuration). Windows are smaller than the prompts the tests use.
ZOO: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _plain()),
    "llama3_rope": (
        "llama",
        _plain(
            rope_scaling={
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            tie_word_embeddings=True,
        ),
    ),
    "mistral": ("mistral", _plain(sliding_window=24, head_dim=16)),
    "ministral": (
        "ministral",
        _plain(
            sliding_window=24, head_dim=16,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
    ),
    "seed_oss": ("seed_oss", _plain(head_dim=16, attention_out_bias=True)),
    "qwen2": ("qwen2", _plain(tie_word_embeddings=True)),
    "qwen2_window": ("qwen2", _plain(use_sliding_window=True, sliding_window=20, max_window_layers=1)),
    "qwen3": ("qwen3", _plain(head_dim=32)),
    "gemma2": (
        "gemma2",
        _plain(
            head_dim=16, sliding_window=24, query_pre_attn_scalar=16, attn_logit_softcapping=5.0,
            final_logit_softcapping=8.0, num_hidden_layers=4,
            tie_word_embeddings=False,
        ),
    ),
    "phi3": ("phi3", _plain()),
    "phi3_longrope": (
        "phi3",
        _plain(
            original_max_position_embeddings=256,
            rope_scaling={"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8},
        ),
    ),
    "gpt2": (
        "gpt2",
        {
            "vocab_size": VOCAB, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT,
            "eos_token_id": EOS, "bos_token_id": BOS, "pad_token_id": PAD,
        },
    ),
    "gpt_neo": (
        "gpt_neo",
        {
            "vocab_size": VOCAB, "hidden_size": 64, "num_layers": 4, "num_heads": 4, "window_size": 24,
            "attention_types": [[["global", "local"], 2]], "max_position_embeddings": CONTEXT,
            "eos_token_id": EOS, "bos_token_id": BOS, "pad_token_id": PAD,
        },
    ),
    "gpt_neox": ("gpt_neox", _plain("num_key_value_heads")),
}  # fmt: skip


SPREAD = {"gpt_neox": 0.5}  # standard deviation of the weights where 0.25 decodes too evenly


def build(name: str, directory: Path, *, seed: int = 0, changes: dict[str, Any] | None = None) -> Path:
    """Write model `name` of the zoo (fp32, safetensors, tokenizer) into `directory` and return it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, options = ZOO[name]
    config = AutoConfig.for_model(kind, **(options | (changes or {})))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * SPREAD.get(name, 0.25))
            else:  # biases and norms: near what training starts from, but not on it
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    save_tokenizer(directory)
    return directory


def save_tokenizer(directory: Path) -> None:
    """A byte-level tokenizer: token id = byte value, then the special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = _byte_letters()
    tokenizer = Tokenizer(models.BPE(vocab={letter: byte for byte, letter in letters.items()}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in _SPECIAL])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", bos_token="<|begin|>", pad_token="<|pad|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(directory)


def _byte_letters() -> dict[int, str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (byte for byte in range(256) if byte not in printable)
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    return {byte: letters[byte] for byte in range(256)}


def rewrite_config(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Edit a built model's config.json in place."""
    file = directory / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))
