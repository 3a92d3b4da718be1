"""Models in GGUF files against transformers on the weights that they were made of: every family; integers as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llmasos.drivers.cpu import open_device
from llmasos.drivers.engine import digest
from llmasos.drivers.protocol import Load, Probe
from llmasos.modelfiles import gguf, source
from llmasos.modelfiles.gguf_config import config_of
from llmasos.modelfiles.gguf_weights import GGUFWeights
from llmasos.modelfiles.tensors import SafetensorsWeights
from llmasos.syscalls.errno import Errno, SyscallError
from tests import models_zoo
from tests.drivers.feeder import IMAGE, Feeder, engine
from tests.drivers.reference import DECODED, greedy, prompt
from tests.gguf_writer import convert
from tests.gguf_zoo import MORE

TOLERANCE = 1e-4  # of log-probabilities
_FROM_ZOO = (
    "llama",
    "llama3_rope",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "phi3",
    "phi3_longrope",
    "gpt2",
    "gpt_neox",
)


def build(name: str, directory: Path) -> Path:
    before = dict(models_zoo.ZOO)
    try:
        models_zoo.ZOO.update(MORE)
        return models_zoo.build(name, directory, changes={"tie_word_embeddings": True} if name == "gemma2" else None)
    finally:
        models_zoo.ZOO.clear()
        models_zoo.ZOO.update(before)


@pytest.mark.parametrize("name", [*_FROM_ZOO, *MORE])
def test_a_family_decodes_what_transformers_decodes_with_the_weights_the_file_was_made_of(
    name: str, tmp_path: Path
) -> None:
    directory = build(name, tmp_path / name)
    reference = greedy(directory, prompt())
    device = engine(convert(directory, tmp_path / f"{name}.gguf"))
    process = Feeder(device).spawn(reference.prompt)
    made = Feeder(device).generate([process], DECODED, 64, logprobs=1)
    device.unload(IMAGE)
    assert made == [reference.tokens]
    for ours, theirs in zip(process.logprobs, reference.logprobs, strict=True):
        assert ours.logprob == pytest.approx(float(theirs[ours.token]), abs=TOLERANCE)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "phi3", "gpt2", "gpt_neox"])
def test_weights_have_the_checkpoints_names_shapes_and_values(
    name: str, zoo: Callable[[str], Path], tmp_path: Path
) -> None:
    ours = GGUFWeights(gguf.read_header(convert(zoo(name), tmp_path / "model.gguf")))
    theirs = SafetensorsWeights(zoo(name))
    left_out = {"lm_head.weight"} if name == "gemma2" else set()
    assert set(ours.names()) == set(theirs.names()) - left_out
    for weight in ours.names():
        assert ours.shape(weight) == theirs.shape(weight)
        found, wanted = ours.get(weight).float32(), theirs.get(weight).float32()
        if "norm" in weight and name == "gemma2":  # 1 + w was rounded
            np.testing.assert_allclose(found, wanted, atol=2e-7)
        else:
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(("kind", "bits"), [("Q8_0", 8), ("Q4_0", 4)])
def test_integers_are_handed_on_as_they_are_and_say_what_the_dequantised_values_say(
    kind: str, bits: int, zoo: Callable[[str], Path], tmp_path: Path
) -> None:
    weights = GGUFWeights(gguf.read_header(convert(zoo("llama"), tmp_path / "model.gguf", kind)))
    matrices = [name for name in weights.names() if len(weights.shape(name)) == 2]
    for name in matrices:
        packed = weights.packed(name)
        assert packed is not None
        assert (packed.bits, packed.group) == (bits, 32)
        centred = np.asarray(packed.values).astype(np.float32) - (8 if bits == 4 else 0)
        values = centred.reshape(*packed.scale.shape, 32) * packed.scale[..., None]
        np.testing.assert_array_equal(values.reshape(weights.shape(name)), weights.get(name).float32())
    assert weights.packed("model.norm.weight") is None


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_1", "MXFP4"])
def test_a_file_of_any_items_decodes_what_transformers_decodes_with_its_dequantised_values(
    kind: str, zoo: Callable[[str], Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    file = convert(zoo("llama"), tmp_path / "model.gguf", kind)
    weights = GGUFWeights(gguf.read_header(file))
    model = AutoModelForCausalLM.from_pretrained(zoo("llama"), dtype=torch.float32)
    model.load_state_dict({name: torch.from_numpy(weights.get(name).float32().copy()) for name in weights.names()})
    model.save_pretrained(tmp_path / "dequantised")
    reference = greedy(tmp_path / "dequantised", prompt())
    device = engine(file)
    process = Feeder(device).spawn(reference.prompt)
    assert Feeder(device).generate([process], DECODED, 64, logprobs=1) == [reference.tokens]
    device.unload(IMAGE)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16"])
def test_loading_takes_no_more_than_was_said_before(kind: str, zoo: Callable[[str], Path], tmp_path: Path) -> None:
    file = convert(zoo("llama"), tmp_path / "model.gguf", kind)
    device = open_device({"threads": "1", "installed": "no"})
    said = device.probe(Probe(1, str(file), "")).weight_bytes
    assert device.fetch(Load(2, IMAGE, str(file), "", 4), lambda _: None)().weight_bytes <= said
    device.unload(IMAGE)


@pytest.mark.parametrize(("kind", "dtype"), [("Q8_0", "int8"), ("Q4_0", "int4"), ("Q4_0", "bf16")])
def test_quantised_files_run_in_native_forms(kind: str, dtype: str, zoo: Callable[[str], Path], tmp_path: Path) -> None:
    device = engine(convert(zoo("llama"), tmp_path / "model.gguf", kind), dtype)
    feeder = Feeder(device)
    alone = feeder.generate([feeder.spawn(prompt())], DECODED)
    assert len(set(alone[0])) > 4
    assert feeder.generate([feeder.spawn(prompt())], DECODED, 7) == alone
    device.unload(IMAGE)


def test_what_a_file_says_of_itself_is_told_when_it_is_probed(zoo: Callable[[str], Path], tmp_path: Path) -> None:
    file = convert(zoo("llama"), tmp_path / "model.gguf")
    device = engine(file)
    probed = device.probe(Probe(7, str(file), "fp32"))
    assert (probed.architecture, probed.vocab, probed.context) == (
        "llama",
        models_zoo.VOCAB,
        models_zoo.CONTEXT,
    )
    assert probed.eos_ids == [models_zoo.EOS]
    device.unload(IMAGE)


def test_a_file_is_known_by_its_content_and_alone_in_a_directory(zoo: Callable[[str], Path], tmp_path: Path) -> None:
    blob = convert(zoo("llama"), tmp_path / "sha256-0123")
    assert source.find(str(blob)) == blob
    (tmp_path / "dir").mkdir()
    other = convert(zoo("llama"), tmp_path / "dir" / "tiny-Q8_0.gguf", "Q8_0")
    assert source.find(str(tmp_path / "dir"), weights=True) == other


def test_the_digest_of_a_model_is_that_of_all_its_parts(zoo: Callable[[str], Path], tmp_path: Path) -> None:
    file = convert(zoo("llama"), tmp_path / "tiny.gguf")
    assert digest.files(file) == [file]
    parts = [tmp_path / f"tiny-0000{number}-of-00002.gguf" for number in (1, 2)]
    for part in parts:
        part.write_bytes(file.read_bytes())
    assert digest.files(parts[1]) == parts


def test_an_architecture_that_is_not_known_and_a_tensor_that_is_none_of_its_own_are_refused(
    zoo: Callable[[str], Path], tmp_path: Path
) -> None:
    file = convert(zoo("llama"), tmp_path / "model.gguf", tokens=False)
    whole = file.read_bytes()
    file.write_bytes(
        whole.replace(
            b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0llama",
            b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0lemma",
        )
    )
    with pytest.raises(SyscallError, match="architecture 'lemma'") as refused:
        source.read_config(file)
    assert refused.value.errno is Errno.ENOEXEC
    file.write_bytes(whole.replace(b"blk.0.attn_norm.weight", b"blk.0.attn_sink.weight"))
    with pytest.raises(SyscallError, match="attn_sink") as refused:
        GGUFWeights(gguf.read_header(file))
    assert refused.value.errno is Errno.ENOEXEC


def test_a_field_that_is_not_known_is_refused_by_name_unless_its_value_changes_nothing(
    zoo: Callable[[str], Path], tmp_path: Path
) -> None:
    header = gguf.read_header(convert(zoo("llama"), tmp_path / "model.gguf"))

    def with_field(name: str, value: object) -> gguf.Header:
        return replace(header, metadata={**header.metadata, name: value})

    for name, value in (
        ("llama.attention.clamp_kqv", 8.0),
        ("llama.expert_gating_func", 2),
        ("llama.new", "a"),
    ):
        with pytest.raises(SyscallError, match=name) as refused:
            config_of(with_field(name, value))
        assert refused.value.errno is Errno.ENOEXEC
    for name, value in (
        ("llama.attention.clamp_kqv", 0.0),
        ("llama.attention.causal", True),
        ("qwen2.new", 1),
    ):
        assert config_of(with_field(name, value)) == config_of(header)
