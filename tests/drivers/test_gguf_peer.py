"""GGUF files against llama.cpp itself: its converter and quantiser made them of models of every family, and its logits
are those to be near. So what the converter does to weights is undone, and what files leave out is put back.

A few families go through a few types; LLMASOS_WHOLE=1 takes all. llama.cpp rounds activations where weights are rounded
(to halves, to 8 bits by 32 or, in K types, by 256), so logits are equal in F32 and near in the others.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import llama_cpp_peer, models_zoo
from tests.drivers.divergence import EXACT, TOLERANCE, differing, divergence, logits
from tests.gguf_zoo import MORE

_log = logging.getLogger(__name__)
pytestmark = [
    pytest.mark.skipif(not llama_cpp_peer.HERE, reason=llama_cpp_peer.WHY),
    pytest.mark.timeout(600),  # the first makes all files
]

POSITIONS = 1000
MOST = 1e-3  # mean KL of the others, in the dtype that is usual for the type
_CONVERTED = ("F32", "F16", "BF16", "Q8_0")
_FAMILIES = (
    "llama", "llama3_rope", "mistral", "qwen2", "qwen3", "gemma2", "phi3", "phi3_longrope", "gpt2", "gpt_neox", *MORE,
)  # fmt: skip
_WHOLE = os.environ.get("LLMASOS_WHOLE") == "1"
FAMILIES = _FAMILIES if _WHOLE else ("llama3_rope", "gemma3", "phi3_longrope", "gpt2")
TYPES = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_K_M", "Q6_K") if _WHOLE else ("F16", "Q8_0", "Q4_K_M")
ROUTED = ("qwen3_moe",)  # rounding may choose other experts, so only F32 is compared
_WIDE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "max_position_embeddings": 1024,
}  # rows of whole K blocks
_CHANGES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},  # the converter leaves the window out
    "gemma2": {"tie_word_embeddings": True},
    "gemma3": {"vocab_size": 261},  # the converter leaves rows without a token out
    "phi3_longrope": {
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 1024,
        "rope_scaling": {"rope_type": "longrope", "short_factor": [1.0, 1.5] * 16, "long_factor": [4.0] * 32},
    },
    "qwen3_moe": {"moe_intermediate_size": 256},
}


@pytest.fixture(scope="module")
def ids() -> list[int]:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (POSITIONS,), generator=generator).tolist()


def _model(name: str, directory: Path) -> Path:
    """A model whose logits are spread by 1 (KL grows with their square), more by its layers than by the last token."""
    wide = {"n_embd": 256, "n_positions": 1024} if name == "gpt2" else _WIDE
    models_zoo.ZOO.update(MORE)
    try:
        models_zoo.build(name, directory, changes=wide | _CHANGES.get(name, {}))
    finally:
        for added in MORE:
            del models_zoo.ZOO[added]
    models_zoo.rewrite_config(directory, _as_published)
    file = directory / "model.safetensors"
    tensors = load_file(file)
    scaled = name.startswith("gemma")  # these multiply what they look up by the root of the width, 16
    for key, values in tensors.items():
        if any(part in key for part in ("embed", "wte", "lm_head")):
            tensors[key] = values * (1 / 64 if scaled else 0.25)
        elif values.ndim > 1:
            tensors[key] = values * (0.25 * 0.25 / models_zoo.SPREAD.get(name, 0.25))
        elif scaled and key == "model.norm.weight":
            tensors[key] = 16 * (1 + values) - 1
    file.unlink()
    save_file(tensors, file, {"format": "pt"})
    return directory


def _as_published(config: dict[str, Any]) -> None:
    """Fields that published configurations have and transformers writes no more."""
    if config["model_type"] == "gpt2":
        config["n_ctx"] = config["n_positions"]
    if config["model_type"] == "gpt_neox":
        config["rotary_pct"] = config["rope_parameters"]["partial_rotary_factor"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NAME/ and NAME.TYPE.gguf of every family and type."""
    place = tmp_path_factory.mktemp("gguf")
    for name in FAMILIES:
        _model(name, place / name)
    wanted = [(name, kind) for name in FAMILIES for kind in ("F32", *(() if name in ROUTED else TYPES))]
    llama_cpp_peer.convert(
        [(place / name, place / f"{name}.{kind}.gguf", kind) for name, kind in wanted if kind in _CONVERTED]
    )
    llama_cpp_peer.quantise(
        [
            (place / f"{name}.F32.gguf", place / f"{name}.{kind}.gguf", kind)
            for name, kind in wanted
            if kind not in _CONVERTED
        ]
    )
    return place


@pytest.mark.parametrize("name", FAMILIES)
def test_in_fp32_a_file_says_what_transformers_and_llama_cpp_say(
    name: str, made: Path, ids: list[int], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    file = made / f"{name}.F32.gguf"
    ours = logits(file, "fp32", ids)
    model = AutoModelForCausalLM.from_pretrained(made / name, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        np.testing.assert_allclose(ours, model(torch.tensor([ids])).logits[0].numpy(), rtol=0, atol=TOLERANCE)
    [theirs] = llama_cpp_peer.logits([file], ids, tmp_path, exact=True)
    assert divergence(theirs, ours) <= EXACT
    assert differing(theirs, ours) == 0


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ROUTED])
def test_answers_are_llama_cpps_wherever_it_is_sure_in_every_type(
    name: str, made: Path, ids: list[int], tmp_path: Path
) -> None:
    files = {kind: made / f"{name}.{kind}.gguf" for kind in TYPES}
    for (kind, file), theirs in zip(
        files.items(), llama_cpp_peer.logits(list(files.values()), ids, tmp_path), strict=True
    ):
        ours = logits(file, "", ids)
        kl = divergence(theirs, ours)
        _log.info("%s %s: mean KL %.1e", name, kind, kl)
        assert differing(theirs, ours) == 0, kind
        assert kl <= MOST, kind
