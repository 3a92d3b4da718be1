"""Directories that somebody has made to do harm: refused by numbers, at once, in little memory, with words fit for a
terminal."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmasos.modelfiles import bounds, source, tensors
from llmasos.modelfiles.files import shown
from llmasos.syscalls.errno import Errno, SyscallError

SMALL = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def write_config(directory: Path, **more: object) -> None:
    (directory / "config.json").write_text(json.dumps(SMALL | more))


def refused(act: Callable[[], object]) -> SyscallError:
    with pytest.raises(SyscallError) as caught:
        act()
    assert caught.value.reason.isprintable()
    return caught.value


@pytest.mark.parametrize(
    "more",
    [
        {"eos_token_id": [10**30]},
        {"max_position_embeddings": 10**30},
        {"num_hidden_layers": 20_000},
        {"hidden_size": 10**6},
        {"vocab_size": 2**60},
        {"num_hidden_layers": -1},
        {"text_config": {"num_hidden_layers": 20_000}},
        {"num_attention_heads": 1e300},
        {"anything": {"at": ["all", 10**40]}},
        {"rope_scaling": {"rope_type": "linear", "factor": 1e-38}},
        {"rope_parameters": {"rope_type": "yarn", "factor": float("nan")}},
        {"rope_scaling": {"rope_type": "llama3", "low_freq_factor": -1.0}},
        {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0, float("inf")]}},
        {"rope_parameters": {"full_attention": {"rope_theta": 0.0}}},
        {"rope_theta": 1e300},
        {"rms_norm_eps": float("nan")},
        {"layer_norm_epsilon": -1e-5},
        {"final_logit_softcapping": float("inf")},
        {"attention_multiplier": 1e-38},
    ],
)
def test_numbers_out_of_bounds_are_refused_by_name(tmp_path: Path, more: dict[str, object]) -> None:
    write_config(tmp_path, **more)
    error = refused(lambda: source.read_config(tmp_path))
    assert error.errno is Errno.EIO
    name = next(iter(more))
    assert name in error.reason


def test_a_number_of_a_million_digits_is_not_printed(tmp_path: Path) -> None:
    sys.set_int_max_str_digits(0)
    try:
        error = refused(lambda: bounds.check({"hidden_size": 10**5000}, tmp_path))
    finally:
        sys.set_int_max_str_digits(4300)
    assert len(error.reason) < 300


@pytest.mark.parametrize(
    "published", [{"time_step_limit": [0.0, float("inf")]}, {"eos_token_id": None}, {"rope_theta": 1e7}]
)
def test_what_published_configurations_have_is_taken(tmp_path: Path, published: dict[str, object]) -> None:
    write_config(tmp_path, **published)
    assert source.read_config(tmp_path)["model_type"] == "llama"


@pytest.mark.parametrize("depth", [100, 100_000])
def test_a_configuration_nested_deep_is_refused(tmp_path: Path, depth: int) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "a": ' + "[" * depth + "]" * depth + "}")
    assert refused(lambda: source.read_config(tmp_path)).errno is Errno.EIO


def fifo(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("made", [fifo, endless, directory])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
def test_what_is_no_regular_file_is_refused_without_waiting_for_it(
    tmp_path: Path, made: Callable[[Path], None], name: str
) -> None:
    if name != "config.json":
        write_config(tmp_path)
    if name == "config.json":
        (tmp_path / "model.safetensors").write_bytes(b"")
    made(tmp_path / name)
    error = refused(lambda: (source.read_config(tmp_path), tensors.SafetensorsWeights(tmp_path)))
    assert error.errno is Errno.EIO
    assert name in error.reason


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_an_index_that_names_files_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    assert refused(lambda: source.read_headers(tmp_path)).errno is Errno.EIO


def header(directory: Path, entries: object, data: int = 0, *, claim: int | None = None) -> None:
    raw = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    (directory / "model.safetensors").write_bytes(
        struct.pack("<Q", len(raw) if claim is None else claim) + raw + bytes(data)
    )


@pytest.mark.parametrize(
    "entries",
    [
        {"w": {"dtype": "F32", "shape": [-1, -4], "data_offsets": [0, 16]}},
        {"w": {"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]}},
        {"w": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}},
        {"w": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 16]}},
        {"w": {"dtype": "F32", "shape": [10**30], "data_offsets": [0, 16]}},
        {"w": {"dtype": "F32", "shape": [1] * 100, "data_offsets": [0, 4]}},
        {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 10**30]}},
        {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0]}},
        {"w": [1, 2]},
        ["w"],
        b"{" * 50_000,
        b"\xff\xfe",
    ],
)
def test_headers_that_make_no_sense_are_refused(tmp_path: Path, entries: object) -> None:
    header(tmp_path, entries, 16)
    assert refused(lambda: source.read_headers(tmp_path)).errno is Errno.EIO


@pytest.mark.parametrize("claim", [2**63, 2**40, 10**9])
def test_a_header_that_claims_more_than_the_file_has_is_not_read(tmp_path: Path, claim: int) -> None:
    header(tmp_path, {}, claim=claim)
    assert refused(lambda: source.read_headers(tmp_path)).errno is Errno.EIO


def test_names_with_escape_sequences_are_shown_escaped(tmp_path: Path) -> None:
    header(tmp_path, {"w\x1b]0;title\x07": {"dtype": "F32", "shape": [4], "data_offsets": [0, 3]}}, 3)
    error = refused(lambda: source.read_headers(tmp_path))
    assert r"\x1b]0;title\x07" in error.reason
    assert shown("\x1b[2J\n\u202e") == r"\x1b[2J\x0a\u202e"
    assert shown("naïve 模型") == "naïve 模型"


COST = """
import resource, sys, time
from pathlib import Path
from llmasos.modelfiles import source
from llmasos.syscalls.errno import SyscallError
before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
try:
    source.read_config(Path(sys.argv[1])), source.read_headers(Path(sys.argv[1]))
except SyscallError as error:
    spent = time.process_time() - began
    print(error.errno.name, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, spent)
"""


def big_config(directory: Path) -> None:
    with (directory / "config.json").open("wb") as file:
        file.write(b'{"model_type": "llama", "filler": "' + b"x" * (300 << 20) + b'"}')


def many_tensors(directory: Path) -> None:
    write_config(directory)
    names = {f"model.layers.{i}.weight": "model.safetensors" for i in range(300_000)}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    header(directory, {name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for name in names})


@pytest.mark.parametrize("made", [big_config, many_tensors])
def test_what_is_refused_costs_little(tmp_path: Path, made: Callable[[Path], None]) -> None:
    made(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", COST, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    errno, kilobytes, seconds = done.stdout.split()
    assert errno == "EIO"
    assert int(kilobytes) < 200 << 10
    assert float(seconds) < 10


def test_a_file_given_for_a_model_is_told_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    error = refused(lambda: source.find(str(tmp_path / "model.safetensors")))
    assert error.errno is Errno.ENOENT
    assert "its directory" in error.reason
    fifo(tmp_path / "pipe")
    assert "neither" in refused(lambda: source.find(str(tmp_path / "pipe"))).reason
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert "link to nothing" in refused(lambda: source.find(str(tmp_path / "dangling"))).reason


def test_a_directory_with_an_adapter_is_told_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "adapter" in refused(lambda: source.find(str(tmp_path))).reason


def test_what_a_file_says_reaches_no_terminal_unescaped_whoever_raises_it() -> None:
    """Errors of drivers, kernel and clients are of one class."""
    error = SyscallError(Errno.EIO, "its quant_method is \x1b]0;title\x07\r\n[2026] forged line")
    assert error.reason.isprintable()
    assert str(error).isprintable()
    assert r"\x1b]0;title\x07\x0d\x0a[2026]" in error.reason


def test_what_transformers_own_configurations_say_is_within_bounds(tmp_path: Path) -> None:
    """The defaults of a class are mostly those of a published model."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            config = CONFIG_MAPPING[kind]()
        except Exception:  # classes without defaults that go together
            continue
        bounds.check(json.loads(config.to_json_string(use_diff=False)), tmp_path)
