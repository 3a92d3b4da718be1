"""What the engine does not run is refused at once, with the errno that fits and the reason in words."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llmasos.drivers.cpu import open_device
from llmasos.drivers.cpu.native import config as native
from llmasos.drivers.cpu.native.image import NativeImage
from llmasos.drivers.cpu.native.packing import PAGE
from llmasos.drivers.device import Device
from llmasos.drivers.engine import architecture
from llmasos.drivers.engine.layout import REFUSED, refused_unseen
from llmasos.drivers.protocol import Load, Probe, Run, Sample, Step
from llmasos.syscalls.errno import Errno, SyscallError
from llmasos.syscalls.records import Sampler
from tests import models_zoo
from tests.drivers.feeder import IMAGE, Feeder, engine


@pytest.fixture(scope="module")
def device() -> Device:
    return open_device({"threads": "1", "dtype": "fp32"})


def refusal(act: Callable[[], object]) -> SyscallError:
    with pytest.raises(SyscallError) as raised:
        act()
    return raised.value


def load(device: Device, path: Path | str, frames: int = 4, dtype: str = "") -> None:
    device.fetch(Load(1, 50, str(path), dtype, frames), lambda fraction: None)()


def write_config(directory: Path, **config: Any) -> Path:
    (directory / "config.json").write_text(json.dumps(config))
    return directory


_SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


@pytest.mark.parametrize(
    ("kind", "more", "words"),
    [
        ("mamba", {}, "mamba"),
        ("t5", {"is_encoder_decoder": True}, "encoder-decoder"),
        ("bert", {"is_decoder": False}, "'bert'"),
        (
            "deepseek_v3",
            {"n_routed_experts": 4, "first_k_dense_replace": 2, "max_position_embeddings": 64},
            "deepseek_v3",
        ),
        ("gpt_oss", {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 16}, "gpt_oss"),
        ("bloom", {}, "bloom"),
        ("qwen3_next", {}, "qwen3_next"),
        ("no_such_architecture", {}, "no_such_architecture"),
    ],
)
def test_an_architecture_that_is_not_supported_is_named(
    device: Device, tmp_path: Path, kind: str, more: dict[str, Any], words: str
) -> None:
    write_config(tmp_path, model_type=kind, **(_SMALL | more))
    error = refusal(lambda: device.probe(Probe(1, str(tmp_path), "")))
    assert error.errno == Errno.ENOEXEC
    assert words in error.reason


_MIXTURE = {"n_routed_experts": 4, "first_k_dense_replace": 2, "max_position_embeddings": 64}
_TO_BUILD: dict[str, dict[str, Any]] = {
    "gpt_oss": {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 16},
    "deepseek_v2": _MIXTURE,
    "deepseek_v3": _MIXTURE,
    "bert": {"is_decoder": False},
}


@pytest.mark.parametrize("kind", sorted((*REFUSED, "deepseek_v2", "deepseek_v3")))
def test_what_is_refused_without_a_trial_is_refused_by_it_in_the_same_words(
    device: Device, tmp_path: Path, kind: str
) -> None:
    config = {"model_type": kind, **_SMALL, **_TO_BUILD.get(kind, {})}
    write_config(tmp_path, **config)
    error = refusal(lambda: device.probe(Probe(1, str(tmp_path), "")))
    assert error.errno == Errno.ENOEXEC
    assert refused_unseen(config)
    assert f"architecture {kind!r} is not supported: {refused_unseen(config)}; " in error.reason


def test_remote_code_is_not_run(device: Device, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    write_config(tmp_path, model_type="my_own", auto_map={"AutoConfig": "evil.Config"})
    error = refusal(lambda: device.probe(Probe(1, str(tmp_path), "")))
    assert (error.errno, "remote code" in error.reason) == (Errno.ENOEXEC, True)


def test_a_quantisation_that_is_not_read_is_refused_naming_the_method(device: Device, tmp_path: Path) -> None:
    write_config(tmp_path, model_type="llama", quantization_config={"quant_method": "hqq"}, **_SMALL)
    error = refusal(lambda: device.probe(Probe(1, str(tmp_path), "")))
    assert (error.errno, "hqq" in error.reason) == (Errno.ENOTSUP, True)


def test_an_argument_of_attention_that_would_be_ignored_is_refused(zoo: Callable[[str], Path]) -> None:
    """Sinks, biases and the like reach the attention function by name; none may be dropped silently."""
    config = architecture.open_config(json.loads((zoo("llama") / "config.json").read_text()), zoo("llama"))
    model = architecture.build_meta(config)
    attention = model.get_submodule("model.layers.1.self_attn")
    plain = attention.forward
    attention.forward = lambda *args, **kwargs: plain(*args, s_aux=torch.zeros(1), **kwargs)
    error = refusal(lambda: architecture.examine(model, config))
    assert error.errno == Errno.ENOEXEC
    assert "s_aux" in error.reason


def test_a_window_that_only_a_mask_would_know_is_refused(zoo: Callable[[str], Path]) -> None:
    config = architecture.open_config(json.loads((zoo("mistral") / "config.json").read_text()), zoo("mistral"))
    model = architecture.build_meta(config)
    config.sliding_window = 99
    attention = model.get_submodule("model.layers.0.self_attn")
    attention.config = type(config)(**config.to_dict() | {"sliding_window": None})
    error = refusal(lambda: architecture.examine(model, config))
    assert error.errno == Errno.ENOEXEC
    assert "window" in error.reason


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 4), (6, 4)])
def test_query_heads_that_cannot_share_evenly_are_refused(
    device: Device, tmp_path: Path, heads: int, kv_heads: int
) -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 96,
        "head_dim": 16,
        "num_hidden_layers": 1,
        "vocab_size": 99,
    }
    config |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "intermediate_size": 32}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SyscallError, match="cannot share") as caught:
        device.probe(Probe(1, str(tmp_path), ""))
    assert caught.value.errno is Errno.ENOEXEC


@pytest.mark.parametrize("path", ["/no/such/directory", "./nor/here", "~/nor/there"])
def test_a_directory_that_is_not_there_is_enoent(device: Device, path: str) -> None:
    error = refusal(lambda: device.probe(Probe(1, path, "")))
    assert error.errno == Errno.ENOENT
    assert path in error.reason


def test_a_hub_name_that_cannot_be_had_says_what_was_tried(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    error = refusal(lambda: device.probe(Probe(1, "nobody/has-such-a-model", "")))
    assert error.errno == Errno.ENOENT
    assert "nobody/has-such-a-model" in error.reason
    assert "cache" in error.reason
    assert "hub" in error.reason


def test_a_directory_without_a_model_is_enoent(device: Device, tmp_path: Path) -> None:
    error = refusal(lambda: device.probe(Probe(1, str(tmp_path), "")))
    assert (error.errno, "config.json" in error.reason) == (Errno.ENOENT, True)


@pytest.mark.parametrize("text", ["{not json", "[1, 2]", "\xff\xfe"])
def test_a_config_that_is_not_json_is_eio(device: Device, tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    error = refusal(lambda: device.probe(Probe(1, str(tmp_path), "")))
    assert (error.errno, "config.json" in error.reason) == (Errno.EIO, True)


def test_a_config_without_sense_is_eio(device: Device, tmp_path: Path) -> None:
    write_config(tmp_path, model_type="llama", **_SMALL | {"hidden_size": "wide"})
    assert refusal(lambda: device.probe(Probe(1, str(tmp_path), ""))).errno == Errno.EIO


@pytest.fixture
def copied(zoo: Callable[[str], Path], tmp_path: Path) -> Path:
    """A llama that may be broken."""
    for file in zoo("llama").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.mark.parametrize("left", [0, 4, 100, -1])
def test_truncated_weights_are_eio_naming_the_file(device: Device, copied: Path, left: int) -> None:
    file = copied / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:left])
    error = refusal(lambda: load(device, copied))
    assert error.errno == Errno.EIO
    assert "model.safetensors" in error.reason
    assert "again" in error.reason
    file.write_bytes(whole)
    load(device, copied)  # whole again, and the failures left nothing behind
    device.unload(50)


def test_a_header_that_is_garbage_is_eio(device: Device, copied: Path) -> None:
    file = copied / "model.safetensors"
    whole = bytearray(file.read_bytes())
    whole[8:40] = b"#" * 32
    file.write_bytes(whole)
    assert refusal(lambda: load(device, copied)).errno == Errno.EIO


def test_weights_that_lack_a_tensor_are_eio_naming_it(device: Device, copied: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copied / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    error = refusal(lambda: load(device, copied))
    assert error.errno == Errno.EIO
    assert "up_proj" in error.reason


def test_weights_of_another_shape_are_eio(device: Device, copied: Path) -> None:
    models_zoo.rewrite_config(copied, lambda config: config.update(intermediate_size=128))
    assert refusal(lambda: load(device, copied)).errno == Errno.EIO


def test_a_shard_that_is_missing_is_eio_naming_it(device: Device, copied: Path) -> None:
    (copied / "model.safetensors").rename(copied / "model-00001-of-00002.safetensors")
    (copied / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}})
    )
    error = refusal(lambda: load(device, copied))
    assert (error.errno, "model-00002" in error.reason) == (Errno.EIO, True)


def test_a_model_without_safetensors_is_enoent(device: Device, copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    device.probe(Probe(1, str(copied), ""))
    error = refusal(lambda: load(device, copied))
    assert (error.errno, "safetensors" in error.reason) == (Errno.ENOENT, True)


def test_more_than_the_memory_is_enomem_with_the_sizes(device: Device, copied: Path) -> None:
    error = refusal(lambda: load(device, copied, frames=1 << 40))
    assert error.errno == Errno.ENOMEM
    assert "MiB" in error.reason


def test_an_unknown_dtype_is_enotsup(device: Device, copied: Path) -> None:
    error = refusal(lambda: device.probe(Probe(1, str(copied), "int3")))
    assert (error.errno, "int3" in error.reason) == (Errno.ENOTSUP, True)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_probe_says_what_a_load_then_takes(device: Device, zoo: Callable[[str], Path], dtype: str) -> None:
    for name in ("llama", "qwen2", "gpt2"):
        probed = device.probe(Probe(1, str(zoo(name)), dtype))
        loaded = device.fetch(Load(2, 50, str(zoo(name)), dtype, 4), lambda fraction: None)()
        native = isinstance(device._images[50], NativeImage)  # type: ignore[attr-defined]
        device.unload(50)
        # The native decoder's weights lie on pages of memory, of which the probe says the most that they may take.
        more = (probed.layers + 2) * 3 * PAGE + 8 * models_zoo.CONTEXT * 32 if native else 0
        assert loaded.weight_bytes <= probed.weight_bytes <= loaded.weight_bytes + more
        assert probed.eos_ids == [models_zoo.EOS]
        assert probed.context == models_zoo.CONTEXT


def test_a_model_of_longrope_serves_its_original_context(device: Device, zoo: Callable[[str], Path]) -> None:
    assert device.probe(Probe(1, str(zoo("phi3_longrope")), "")).context == 256


def _run(position: int = 0, tokens: list[int] | None = None, keep: int = 0, blocks: list[int] | None = None) -> Run:
    tokens = [1, 2] if tokens is None else tokens
    return Run(9, IMAGE, position, tokens, keep, [0] if blocks is None else blocks)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (_run(tokens=[]), "without tokens"),
        (_run(tokens=[models_zoo.VOCAB]), "vocabulary"),
        (_run(blocks=[4]), "frame"),
        (_run(blocks=[-1]), "frame"),
        (_run(position=15), "do not hold"),
        (_run(keep=1, blocks=[]), "send it whole"),
        (_run(position=models_zoo.CONTEXT - 1, blocks=[0] * 40), "window"),
        (Run(9, IMAGE, 4, [1], 0, [0], history=[1, 2]), "history"),
    ],
)
def test_a_run_that_cannot_be_is_its_own_error_and_no_others(zoo: Callable[[str], Path], run: Run, words: str) -> None:
    device = engine(zoo("llama"), frames=4)
    good = Run(8, IMAGE, 0, [5, 6], 0, [1], Sample(Sampler(), 2, True))
    results = device.step(Step(1, [run, good])).results
    assert words in results[0].error
    assert results[1].error == ""
    assert results[1].token >= 0


def test_a_context_poisoned_with_nan_does_not_reach_the_next_user_of_its_frames(
    zoo: Callable[[str], Path],
) -> None:
    device = engine(zoo("llama"), frames=4)
    run = Run(1, IMAGE, 0, [5, 6, 7], 0, [2], Sample(Sampler(), 3, True))
    clean = device.step(Step(1, [run])).results[0]
    device._images[IMAGE].slab.raw[2] = 0xFF  # type: ignore[attr-defined]
    device.drop([1])
    assert device.step(Step(2, [run])).results[0] == clean


@pytest.mark.parametrize("name", ["model.safetensors", "extra.safetensors", "quantize_config.json"])
def test_a_link_to_nothing_among_the_files_is_eio_naming_it(device: Device, copied: Path, name: str) -> None:
    (copied / name).unlink(missing_ok=True)
    (copied / name).symlink_to("nowhere")
    error = refusal(lambda: load(device, copied))
    assert error.errno is Errno.EIO
    assert name in error.reason


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("llama", "partial_rotary_factor", {"a": {}}),  # a field that gpt_neox does not have
        *(
            (kind, field, value)
            for kind in ("llama", "gpt_neox")
            for field, value in [
                ("hidden_act", []),
                ("hidden_act", {"a": 1}),
                ("hidden_act", "x"),
                ("eos_token_id", float("inf")),
            ]
        ),
    ],
)
def test_values_that_no_class_takes_are_eio(
    device: Device, zoo: Callable[[str], Path], tmp_path: Path, kind: str, field: str, value: object
) -> None:
    there = shutil.copytree(zoo(kind), tmp_path / "model")
    models_zoo.rewrite_config(there, lambda config: config.update({field: value}))
    assert refusal(lambda: load(device, there)).errno is Errno.EIO


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
@pytest.mark.parametrize(
    ("scaling", "said"),
    [
        ({"rope_type": "zz"}, "those that are known are default, dynamic, linear, llama3, longrope"),
        ({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}, "factor"),
        ({"rope_type": "linear", "factor": 1e-38}, "rope_scaling.factor is 1e-38; numbers from"),
        ({"rope_type": ["linear"], "factor": 2.0}, "rope_type is ['linear'], a word was wanted"),
    ],
)
def test_rotary_positions_that_make_no_sense_are_refused_by_name(
    device: Device, zoo: Callable[[str], Path], tmp_path: Path, kind: str, scaling: dict[str, Any], said: str
) -> None:
    there = shutil.copytree(zoo(kind), tmp_path / "model")

    def change(config: dict[str, Any]) -> None:
        config.pop("rope_parameters", None)
        config["rope_scaling"] = scaling

    models_zoo.rewrite_config(there, change)
    refused = refusal(lambda: device.probe(Probe(1, str(there), "")))
    assert refused.errno in (Errno.EIO, Errno.ENOEXEC)
    assert said in refused.reason


@pytest.mark.parametrize(
    "more",
    [
        {"model_type": "ministral", "layer_types": 0.5},
        {"model_type": "phi3", "rope_parameters": {"rope_type": "default", "partial_rotary_factor": [1]}},
    ],
)
def test_fields_of_another_type_are_eio_where_the_native_decoder_reads_them(more: dict[str, Any]) -> None:
    assert native.why_not(more) == ""
    assert refusal(lambda: native.read(more, "config.json")).errno is Errno.EIO


def test_weights_of_another_shape_are_named_where_torch_loads_them_too(
    device: Device, zoo: Callable[[str], Path], tmp_path: Path
) -> None:
    there = shutil.copytree(zoo("gpt_neox"), tmp_path / "model")
    models_zoo.rewrite_config(there, lambda config: config.update(vocab_size=300))
    error = refusal(lambda: load(device, there))
    assert error.errno is Errno.EIO
    assert "lm_head.weight (272, 64) for (300, 64)" in error.reason
    assert "ignore_mismatched_sizes" not in error.reason


def test_files_that_change_while_they_are_read_are_not_loaded(device: Device, copied: Path) -> None:
    def change(_: float) -> None:
        with (copied / "model.safetensors").open("r+b") as file:
            file.seek(-4, os.SEEK_END)
            file.write(bytes(4))

    error = refusal(lambda: device.fetch(Load(1, 50, str(copied), "bf16", 4), change)())
    assert error.errno is Errno.EIO
    assert "changed while" in error.reason


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_what_is_loaded_does_not_change_with_its_files(zoo: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    there = shutil.copytree(zoo(kind), tmp_path / "model")
    device = engine(there)
    before = Feeder(device).generate([Feeder(device).spawn([1, 2, 3])], 8, 64)
    weights = there / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(weights.stat().st_size // 4)
        file.write(b"\x11" * (weights.stat().st_size // 2))
    assert Feeder(device).generate([Feeder(device).spawn([1, 2, 3])], 8, 64) == before
    device.unload(IMAGE)


@pytest.mark.parametrize(("name", "dtype"), [("llama", "int8"), ("llama", "bf16"), ("gpt_neox", "fp32")])
def test_a_file_cut_short_while_it_is_read_fails_that_load_and_ends_no_driver(
    name: str, dtype: str, zoo: Callable[[str], Path], tmp_path: Path
) -> None:
    """Who had it mapped would be killed by a signal (SIGBUS)."""
    model = shutil.copytree(zoo(name), tmp_path / "model")
    code = f"""if True:
        import os
        from llmasos.drivers.cpu import open_device
        from llmasos.drivers.engine import files
        from llmasos.drivers.protocol import Load
        from llmasos.modelfiles.files import Broken
        whole = files.open_weights
        def cut(*arguments):
            opened = whole(*arguments)
            os.truncate({str(model / "model.safetensors")!r}, 9000)
            return opened
        files.open_weights = cut
        device = open_device({{"threads": "1", "installed": "no"}})
        try:
            device.fetch(Load(1, 1, {str(model)!r}, {dtype!r}, 4), lambda fraction: None)()
        except Broken as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "model.safetensors ends at 9000" in done.stdout
