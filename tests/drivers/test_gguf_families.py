"""Every family of GGUF files in F32: logits are transformers' on the directory that the file was made of.

Where llama.cpp is, its own converter writes the files, and logits are its own too where it loads so small a model (KNOWN
says where not, and why): a few by default, LLMASOS_WHOLE=1 takes all. Elsewhere the tests' writer has to do.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llmasos.modelfiles import gguf
from llmasos.modelfiles.gguf_weights import GGUFWeights
from tests import gguf_zoo, llama_cpp_peer
from tests.drivers.divergence import EXACT, TOLERANCE, differing, divergence, logits
from tests.gguf_writer import convert

POSITIONS = 200
UNCONVERTED = {"stablelm_norms"}  # this converter loses its norms
KNOWN = {
    "cohere_norms": "llama.cpp wants 64 layers where there are norms of heads",
    "minimax_m2": "llama.cpp gives up on heads that are partly rotated and so small",
    "exaone4": "llama.cpp takes windows where there are 64 layers, and rotates all otherwise",
}
UNWRITTEN = {"glm4_moe", "granitemoe", "ernie4_5_moe", "minimax_m2"}  # by the tests' writer
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


def _ids() -> list[int]:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (POSITIONS,), generator=generator).tolist()


def _transformers(directory: Path, ids: list[int]) -> np.ndarray:
    """[tokens, vocab]"""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        found: np.ndarray = model(torch.tensor([ids])).logits[0].numpy()
        return found


@pytest.mark.skipif(not llama_cpp_peer.HERE, reason=llama_cpp_peer.WHY)
@pytest.mark.timeout(300)  # the first makes all files
@pytest.mark.parametrize("name", NAMES)
def test_a_family_says_what_transformers_and_llama_cpp_say(name: str, made: Path, tmp_path: Path) -> None:
    ids, file = _ids(), made / f"{name}.gguf"
    ours = logits(file, "fp32", ids)
    np.testing.assert_allclose(ours, _transformers(made / name, ids), rtol=0, atol=TOLERANCE)
    if name not in KNOWN:
        [theirs] = llama_cpp_peer.logits([file], ids, tmp_path, exact=True)
        assert divergence(theirs, ours) <= EXACT
        assert differing(theirs, ours) == 0


@pytest.mark.parametrize("name", [name for name in gguf_zoo.FAMILIES if name not in UNWRITTEN])
def test_a_family_written_here_says_what_transformers_says(name: str, tmp_path: Path) -> None:
    directory, ids = gguf_zoo.build(name, tmp_path / name), _ids()
    file = convert(directory, tmp_path / f"{name}.gguf", tokens=False)
    np.testing.assert_allclose(logits(file, "fp32", ids), _transformers(directory, ids), rtol=0, atol=TOLERANCE)


def test_a_matrix_of_one_row_is_one_also_where_a_quantiser_left_that_dimension_out(tmp_path: Path) -> None:
    directory = gguf_zoo.build("qwen2_moe", tmp_path / "model")
    header = gguf.read_header(convert(directory, tmp_path / "model.gguf", tokens=False))
    stored, name = "blk.0.ffn_gate_inp_shexp.weight", "model.layers.0.mlp.shared_expert_gate.weight"
    entry = header.tensors[stored]
    flat = {**header.tensors, stored: replace(entry, shape=(entry.shape[-1],))}
    whole, left_out = GGUFWeights(header), GGUFWeights(replace(header, tensors=flat))
    assert left_out.shape(name) == whole.shape(name) == (1, 64)
    np.testing.assert_array_equal(left_out.get(name).float32(), whole.get(name).float32())
