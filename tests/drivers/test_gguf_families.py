"""Every family of GGUF files as llama.cpp's own converter writes it, in F32: logits are transformers' on the directory
that the file was made of, and llama.cpp's own where it loads so small a model (KNOWN says where not, and why).

A few by default; LLMASOS_WHOLE=1 takes all.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import gguf_zoo, llama_cpp_peer
from tests.drivers.test_gguf_peer import EXACT, TOLERANCE, _differing, _divergence, _logits

pytestmark = [
    pytest.mark.skipif(not llama_cpp_peer.HERE, reason=llama_cpp_peer.WHY),
    pytest.mark.timeout(300),  # the first makes all files
]

POSITIONS = 200
UNCONVERTED = {"stablelm_norms"}  # this converter loses its norms
KNOWN = {
    "cohere_norms": "llama.cpp wants 64 layers where there are norms of heads",
    "minimax_m2": "llama.cpp gives up on heads that are partly rotated and so small",
    "exaone4": "llama.cpp takes windows where there are 64 layers, and rotates all otherwise",
}
NAMES = (
    [name for name in gguf_zoo.FAMILIES if name not in UNCONVERTED]
    if os.environ.get("LLMASOS_WHOLE") == "1"
    else ["glm4", "cohere2", "qwen2_moe", "granitemoe", "apertus", "ministral3"]
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NAME/ and NAME.gguf of each."""
    place = tmp_path_factory.mktemp("families")
    jobs = [(gguf_zoo.build(name, place / name), place / f"{name}.gguf", "F32") for name in NAMES]
    llama_cpp_peer.convert(jobs)
    return place


@pytest.mark.parametrize("name", NAMES)
def test_a_family_says_what_transformers_and_llama_cpp_say(name: str, made: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    ids = torch.randint(0, 256, (POSITIONS,), generator=torch.Generator().manual_seed(5)).tolist()
    file = made / f"{name}.gguf"
    ours = _logits(file, "fp32", ids)
    model = AutoModelForCausalLM.from_pretrained(
        made / name, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.inference_mode():
        wanted = model(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=TOLERANCE)
    if name not in KNOWN:
        [theirs] = llama_cpp_peer.logits([file], ids, tmp_path, exact=True)
        assert _divergence(theirs, ours) <= EXACT
        assert _differing(theirs, ours) == 0
