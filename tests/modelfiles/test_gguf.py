"""GGUF headers: what is read equals what the `gguf` package wrote, and no file, however crafted, does harm.

The campaign of 100,000 mutations: LLMASOS_GGUF_MUTATIONS=100000 pytest tests/modelfiles -k mutation --timeout 0
"""

from __future__ import annotations

import dataclasses
import os
import random
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf as package
import numpy as np
import pytest

from llmasos.modelfiles import gguf, gguf_items, source
from llmasos.modelfiles.gguf_config import config_of
from llmasos.modelfiles.gguf_weights import GGUFWeights
from llmasos.syscalls.errno import Errno, SyscallError

MUTATIONS = int(os.environ.get("LLMASOS_GGUF_MUTATIONS", "2000"))
_MEMORY = 200 << 20  # bytes
_FIELDS = {
    "llama.block_count": 1,
    "llama.context_length": 64,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 32,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
}
_SHAPES = {
    "token_embd.weight": (6, 32), "output_norm.weight": (32,), "blk.0.attn_norm.weight": (32,),
    "blk.0.attn_q.weight": (32, 32), "blk.0.attn_k.weight": (16, 32), "blk.0.attn_v.weight": (16, 32),
    "blk.0.attn_output.weight": (32, 32), "blk.0.ffn_norm.weight": (32,), "blk.0.ffn_gate.weight": (32, 32),
    "blk.0.ffn_up.weight": (32, 32), "blk.0.ffn_down.weight": (32, 32), "rope_freqs.weight": (4,),
}  # fmt: skip


def write(target: Path, part: tuple[int, int] | None = None) -> Path:
    """A small valid file with values of every type; `part`: number and count of the parts, tensors dealt round."""
    writer = package.GGUFWriter(target, "llama")
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    for name, value in _FIELDS.items():
        writer.add_uint32(name, value)
    for kind, number in (("uint8", 200), ("int8", -3), ("uint16", 60000), ("int16", -300), ("int32", -70000),
                         ("uint64", 1 << 60), ("int64", -(1 << 60)), ("float64", 0.1), ("bool", True)):  # fmt: skip
        getattr(writer, f"add_{kind}")(f"test.{kind}", number)
    writer.add_array("test.numbers", [1, 2, 3])
    writer.add_array("test.floats", [0.5, 2.0])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "ab", "é", "", "<|end|>"])
    writer.add_token_types([1, 1, 1, 1, 1, 3])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(5)
    if part is not None:
        writer.add_uint16("split.no", part[0])
        writer.add_uint16("split.count", part[1])
        writer.add_int32("split.tensors.count", len(_SHAPES))
    random_ = np.random.default_rng(1)
    for i, (name, shape) in enumerate(_SHAPES.items()):
        if part is None or i % part[1] == part[0]:
            values = random_.random(shape, dtype=np.float32) + 1
            form = package.GGMLQuantizationType.Q8_0 if i in (3, 4) else package.GGMLQuantizationType.F32
            writer.add_tensor(name, package.quants.quantize(values, form), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / "small.gguf")


def test_what_is_read_is_what_the_packages_own_reader_reads(file: Path) -> None:
    ours, theirs = gguf.read_header(file), package.GGUFReader(file)
    assert set(ours.metadata) == {name for name in theirs.fields if not name.startswith("GGUF.")}
    for name, value in ours.metadata.items():
        wanted: Any = theirs.fields[name].contents()
        assert (list(value) if not isinstance(value, str | int | float) else value) == wanted, name
    assert {name: (entry.kind, entry.shape, entry.offset, entry.size) for name, entry in ours.tensors.items()} == {
        tensor.name: (
            tensor.tensor_type.name,
            tuple(int(dim) for dim in reversed(tensor.shape)),
            tensor.data_offset,
            tensor.n_bytes,
        )
        for tensor in theirs.tensors
    }


def test_the_table_of_items_is_the_packages() -> None:
    assert {
        kind.value: (kind.name, *package.GGML_QUANT_SIZES[kind]) for kind in package.GGMLQuantizationType
    } == gguf.ITEMS


@pytest.mark.parametrize("kind", [kind.name for kind in package.GGMLQuantizationType])
def test_items_are_dequantised_to_the_packages_bits_or_refused_by_name(kind: str) -> None:
    number = package.GGMLQuantizationType[kind]
    _, size = package.GGML_QUANT_SIZES[number]
    raw = np.random.default_rng(2).integers(0, 256, (40, 3 * size), dtype=np.uint8)
    try:
        with np.errstate(all="ignore"):
            wanted = package.quants.dequantize(raw, number)
    except NotImplementedError:
        assert not gguf_items.known(kind)
        with pytest.raises(SyscallError, match=kind) as refused:
            gguf_items.float32(kind, raw)
        assert refused.value.errno is Errno.ENOTSUP
        return
    assert gguf_items.known(kind)
    if kind not in gguf_items.PLAIN:
        with np.errstate(all="ignore"):
            found = gguf_items.float32(kind, raw)
        np.testing.assert_array_equal(found.view(np.uint32), wanted.astype(np.float32).view(np.uint32))


def test_parts_are_read_together_whichever_is_named(tmp_path: Path, file: Path) -> None:
    parts = [write(tmp_path / f"m-0000{i + 1}-of-00003.gguf", (i, 3)) for i in range(3)]
    for part in parts:
        header = gguf.read_header(part)
        assert header.files == tuple(parts)
        assert header.tensors.keys() == gguf.read_header(file).tensors.keys()
        assert header.metadata["split.no"] == 0
    parts[1].unlink()
    with pytest.raises(SyscallError, match="m-00002-of-00003") as missing:
        gguf.read_header(parts[0])
    assert missing.value.errno is Errno.ENOENT


def test_a_header_is_read_again_when_its_file_has_changed(tmp_path: Path) -> None:
    file = write(tmp_path / "m.gguf")
    assert gguf.read_header(file) is gguf.read_header(file)
    before = gguf.read_header(file)
    file.write_bytes(file.read_bytes() + b"\0")
    assert gguf.read_header(file) is not before


def test_eps_is_the_number_that_was_meant_and_ends_are_found_by_name(file: Path) -> None:
    config = config_of(gguf.read_header(file))
    assert config["rms_norm_eps"] == 1e-05
    assert config["eos_token_id"] == [5]


def _crafted(**changes: bytes) -> bytes:
    head = {
        "magic": b"GGUF",
        "version": struct.pack("<I", 3),
        "tensors": bytes(8),
        "fields": bytes(8),
        "rest": b"",
    }
    return b"".join((head | changes).values())


def _field(kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", 1) + b"a" + struct.pack("<I", kind) + value


_ONE = struct.pack("<Q", 1)
_HUGE = struct.pack("<Q", (1 << 64) - 1)
HOSTILE = {
    "nothing": b"",
    "another magic": _crafted(magic=b"GGML"),
    "version 1": _crafted(version=struct.pack("<I", 1)),
    "big-endian": _crafted(version=struct.pack(">I", 3)),
    "2^64 fields": _crafted(fields=_HUGE),
    "2^64 tensors": _crafted(tensors=_HUGE),
    "fields that are not there": _crafted(fields=struct.pack("<Q", 1000)),
    "a name of 2^64 bytes": _crafted(fields=_ONE, rest=_HUGE + bytes(64)),
    "a text of 2^64 bytes": _crafted(fields=_ONE, rest=_field(8, _HUGE + bytes(64))),
    "an array of 2^64 numbers": _crafted(fields=_ONE, rest=_field(9, struct.pack("<I", 4) + _HUGE + bytes(64))),
    "an array of 2^64 texts": _crafted(fields=_ONE, rest=_field(9, struct.pack("<I", 8) + _HUGE + bytes(64))),
    "ten million texts": _crafted(
        fields=_ONE, rest=_field(9, struct.pack("<IQ", 8, 10_000_000) + bytes(80_000_000))
    ),
    "arrays in arrays": _crafted(fields=_ONE, rest=_field(9, struct.pack("<IQ", 9, 1) * 1000 + bytes(64))),
    "a million arrays in an array": _crafted(
        fields=_ONE, rest=_field(9, struct.pack("<IQ", 9, 3_000_000) + struct.pack("<IQ", 0, 0) * 3_000_000)
    ),
    "a type that is none": _crafted(fields=_ONE, rest=_field(99, bytes(64))),
    "alignment 0": _crafted(
        fields=_ONE, rest=struct.pack("<Q", 17) + b"general.alignment" + struct.pack("<II", 4, 0) + bytes(64)
    ),
    "2^192 items": _crafted(
        tensors=_ONE, rest=_ONE + b"t" + struct.pack("<IQQQQ", 4, *[1 << 48] * 4) + struct.pack("<IQ", 0, 0)
    ),
    "behind the end": _crafted(tensors=_ONE, rest=_ONE + b"t" + struct.pack("<IQIQ", 1, 8, 0, 1 << 62)),
    "an unknown item type": _crafted(tensors=_ONE, rest=_ONE + b"t" + struct.pack("<IQIQ", 1, 8, 77, 0)),
    "one of 65535 parts": _crafted(
        fields=_ONE, rest=struct.pack("<Q", 11) + b"split.count" + struct.pack("<IH", 2, 65535) + bytes(64)
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_headers_are_refused_without_being_believed(what: str, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(HOSTILE[what])
    tracemalloc.start()
    try:
        with pytest.raises(SyscallError) as refused:
            gguf.read_header(file)
        assert tracemalloc.get_traced_memory()[1] < _MEMORY
    finally:
        tracemalloc.stop()
    assert refused.value.errno in (Errno.EIO, Errno.ENOEXEC)
    assert "x.gguf" in refused.value.reason


@pytest.mark.parametrize("name", ["blk.00", "blk.\u0660", "blk.0000000", "blk.1000000"])
def test_a_layers_number_has_one_spelling(name: str, file: Path, tmp_path: Path) -> None:
    """`blk.00.` would stand for another tensor, `blk.0.`, and take its place."""
    header = gguf.read_header(file)
    entry = header.tensors["blk.0.attn_norm.weight"]
    more = {**header.tensors, f"{name}.attn_norm.weight": entry}
    with pytest.raises(SyscallError, match="which this architecture has not") as refused:
        GGUFWeights(dataclasses.replace(header, tensors=more))
    assert refused.value.errno is Errno.ENOEXEC


def test_a_file_cut_short_while_its_header_is_read_is_broken(file: Path, tmp_path: Path) -> None:
    """Who had it mapped would be killed by a signal (SIGBUS)."""
    copy = tmp_path / "x.gguf"
    copy.write_bytes(file.read_bytes())
    whole = os.pread

    def cut(descriptor: int, *where: int) -> bytes:
        os.truncate(copy, 100)
        return whole(descriptor, *where)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pread", cut)
        with pytest.raises(SyscallError, match="become shorter") as refused:
            gguf.read_header(copy)
    assert refused.value.errno is Errno.EIO


@pytest.mark.parametrize("factor", [1e-38, 0.0, -1.0, float("inf"), float("nan")])
def test_factors_that_make_no_frequencies_are_refused(factor: float, file: Path, tmp_path: Path) -> None:
    entry = gguf.read_header(file).tensors["rope_freqs.weight"]
    changed = bytearray(file.read_bytes())
    changed[entry.offset : entry.offset + 4] = struct.pack("<f", factor)
    copy = tmp_path / "x.gguf"
    copy.write_bytes(changed)
    with pytest.raises(SyscallError, match=r"^EIO: .*rope_freqs\.weight"):
        config_of(gguf.read_header(copy))


def test_a_small_file_of_a_million_experts_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "experts.gguf"
    writer = package.GGUFWriter(file, "qwen3moe")
    for name, value in _FIELDS.items():
        writer.add_uint32(name.replace("llama", "qwen3moe"), value)
    writer.add_tensor("blk.0.ffn_up_exps.weight", np.zeros((1 << 20, 1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tracemalloc.start()
    try:
        with pytest.raises(SyscallError, match="experts") as refused:
            GGUFWeights(gguf.read_header(file))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert refused.value.errno is Errno.EIO


def test_a_fifo_and_a_directory_are_no_gguf_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.gguf")
    assert not gguf.is_gguf(tmp_path / "fifo.gguf")
    assert not gguf.is_gguf(tmp_path)
    for path in (tmp_path / "fifo.gguf", tmp_path):
        with pytest.raises(SyscallError):
            gguf.read_header(path)


def _spots(whole: bytes) -> list[tuple[int, int]]:
    """Where the header's numbers are, and how long: counts, lengths, types, dimensions, offsets."""
    spots, at = [(4, 4), (8, 8), (16, 8)], 24
    tensors, fields = struct.unpack_from("<QQ", whole, 8)

    def number(size: int) -> int:
        nonlocal at
        spots.append((at, size))
        at += size
        return int.from_bytes(whole[at - size : at], "little")

    def text() -> None:
        nonlocal at
        at += number(8)

    def value(kind: int) -> None:
        nonlocal at
        if kind == 8:
            text()
        elif kind == 9:
            inner, count = number(4), number(8)
            for _ in range(count):
                value(inner)
        else:
            number({0: 1, 1: 1, 2: 2, 3: 2, 7: 1, 10: 8, 11: 8, 12: 8}.get(kind, 4))

    for _ in range(fields):
        text()
        value(number(4))
    for _ in range(tensors):
        text()
        for _ in range(number(4)):
            number(8)
        number(4)
        number(8)
    return spots


def _mutated(whole: bytes, spots: list[tuple[int, int]], chance: random.Random) -> bytes:
    changed = bytearray(whole)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        act = chance.random()
        at, size = chance.choice(spots)
        if act < 0.55:  # a number of the header
            old = int.from_bytes(whole[at : at + size], "little")
            new = chance.choice(
                (0, 1, old + 1, old - 1, old * 2, 1 << (8 * size - 1), (1 << 8 * size) - 1, chance.getrandbits(8 * size),
                 len(whole), len(whole) - at, 1 << chance.randrange(8 * size))
            )  # fmt: skip
            changed[at : at + size] = (new % (1 << 8 * size)).to_bytes(size, "little")
        elif act < 0.7:  # a bit of anything
            place = chance.randrange(len(changed))
            changed[place] ^= 1 << chance.randrange(8)
        elif act < 0.8:  # cut short
            del changed[chance.randrange(len(changed)) :]
        elif act < 0.9:  # something put in
            changed[at:at] = chance.randbytes(chance.choice((1, 4, 8)))
        else:  # something taken from elsewhere
            start = chance.randrange(len(whole))
            changed[at : at + 8] = whole[start : start + 8]
        if not changed:
            break
    return bytes(changed)


def test_a_number_of_the_metadata_is_bounded_before_anything_has_its_size(tmp_path: Path) -> None:
    file = write(tmp_path / "m.gguf")
    whole = file.read_bytes()
    file.write_bytes(
        whole.replace(b"llama.embedding_length\x04\0\0\0\x20\0\0\0", b"llama.embedding_length\x04\0\0\0\0\0\0\x7f")
    )
    assert file.read_bytes() != whole
    with pytest.raises(SyscallError, match="rotated") as refused:
        config_of(gguf.read_header(file))
    assert refused.value.errno is Errno.EIO


def test_a_mutation_of_a_header_is_refused_with_an_errno_or_read_within_its_file(file: Path, tmp_path: Path) -> None:
    """Everything is done with the mutant that a driver does: configuration, names, every weight's values."""
    whole = file.read_bytes()
    spots = _spots(whole)
    refused = read = 0
    for seed in range(MUTATIONS):
        mutant = tmp_path / f"{seed}.gguf"
        mutant.write_bytes(_mutated(whole, spots, random.Random(seed)))
        try:
            header = gguf.read_header(mutant)
            size = mutant.stat().st_size
            assert all(0 <= entry.offset <= entry.offset + entry.size <= size for entry in header.tensors.values())
            config_of(header)
            weights = GGUFWeights(header)
            for name in weights.names():
                assert weights.get(name).shape == weights.shape(name)
                weights.packed(name)
            read += 1
        except SyscallError as error:
            if error.errno not in (Errno.EIO, Errno.ENOEXEC, Errno.ENOTSUP, Errno.ENOENT):
                raise AssertionError(f"mutation {seed}: {error!r}") from error
            refused += 1
        except Exception as error:
            raise AssertionError(f"mutation {seed}: {error!r}") from error
        mutant.unlink()
    assert refused > MUTATIONS // 8
    assert read > MUTATIONS // 20


@pytest.mark.parametrize(
    ("architecture", "kind", "said"),
    [
        ("clip", "mmproj", "a vision or audio tower"),
        ("clip", None, "a vision or audio tower"),
        ("llama", "adapter", "LoRA"),
        ("imatrix", "imatrix", "an importance matrix"),
        ("controlvector", None, "a control vector"),
        ("llama", "dataset", "'dataset'"),
    ],
)
def test_a_file_that_holds_no_language_model_is_refused_with_what_it_holds(
    file: Path, architecture: str, kind: str | None, said: str
) -> None:
    header = gguf.read_header(file)
    metadata = {**header.metadata, "general.architecture": architecture}
    if kind is not None:
        metadata["general.type"] = kind
    with pytest.raises(SyscallError, match=said) as refused:
        config_of(dataclasses.replace(header, metadata=metadata))
    assert refused.value.errno is Errno.ENOEXEC


def test_a_file_of_a_vocabulary_alone_says_so(file: Path) -> None:
    with pytest.raises(SyscallError, match="no weights") as refused:
        config_of(dataclasses.replace(gguf.read_header(file), tensors={}))
    assert refused.value.errno is Errno.ENOEXEC


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a-00001-of-00003.gguf", "a-00003-of-00003.gguf"], "a-00001-of-00003.gguf is one of 3 parts"),
        (["mmproj-model-f16.gguf"], "only mmproj-model-f16.gguf, which goes with a model"),
    ],
)
def test_a_directory_without_a_whole_model_says_what_is_there(
    names: list[str], said: str, file: Path, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).write_bytes(file.read_bytes())
    with pytest.raises(SyscallError, match=said) as refused:
        source.find(str(tmp_path), weights=True)
    assert refused.value.errno is Errno.ENOENT
