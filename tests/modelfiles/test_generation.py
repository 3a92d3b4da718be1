"""generation_config.json, read as transformers' GenerationConfig reads it, but for what is stated to differ."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig, LlamaConfig

from llmasos.modelfiles import generation
from llmasos.modelfiles.generation import Generation
from llmasos.syscalls.errno import Errno, SyscallError

FIELDS = ("top_k", "top_p", "min_p", "repetition_penalty")


def written(directory: Path, fields: object) -> Path:
    (directory / generation.FILE).write_text(fields if isinstance(fields, str) else json.dumps(fields))
    return directory


def ends(value: int | list[int] | None) -> list[int]:
    return value if isinstance(value, list) else [] if value is None else [value]


# --- against transformers -------------------------------------------------------------------------------------------

fields = st.fixed_dictionaries(
    {},
    optional={
        "do_sample": st.booleans(),
        "temperature": st.floats(0.01, 5.0),
        "top_k": st.integers(1, 1000),
        "top_p": st.floats(0.05, 1.0),
        "min_p": st.floats(0.0, 1.0),
        "repetition_penalty": st.floats(0.5, 2.0),
        "eos_token_id": st.integers(0, 200_000) | st.lists(st.integers(0, 200_000), min_size=1, max_size=5, unique=True),
        "bos_token_id": st.just(1),
        "transformers_version": st.just("4.40.0"),
    },
)


@given(
    fields=fields,
    config_eos=st.none() | st.integers(0, 9) | st.lists(st.integers(0, 9), min_size=1, unique=True),
)
def test_what_the_file_says_is_what_transformers_reads(fields: dict[str, Any], config_eos: Any) -> None:
    with tempfile.TemporaryDirectory() as place:
        directory = written(Path(place), fields)
        theirs = GenerationConfig.from_pretrained(directory)
        ours = generation.read(directory, {"eos_token_id": config_eos})
    for name in FIELDS:
        assert getattr(ours, name) == (getattr(theirs, name) if name in fields else None), name
    assert ours.eos_ids == (ends(theirs.eos_token_id) or ends(config_eos))
    if "do_sample" in fields:
        assert (ours.temperature == 0.0) == (not theirs.do_sample)
    if fields.get("do_sample") or "temperature" in fields or "top_p" in fields:
        if fields.get("do_sample") is not False:
            assert ours.temperature == fields.get("temperature", 1.0)
    elif "do_sample" not in fields:
        assert ours.temperature is None


@pytest.mark.parametrize("eos", [None, 7, [7, 8]], ids=str)
def test_what_transformers_saves_is_read_back(tmp_path: Path, eos: Any) -> None:
    GenerationConfig(
        do_sample=True, temperature=0.6, top_p=0.9, top_k=20, repetition_penalty=1.05, eos_token_id=eos
    ).save_pretrained(tmp_path)
    assert generation.read(tmp_path, {}) == Generation(ends(eos), 0.6, 20, 0.9, None, 1.05)


def test_the_ends_of_a_config_are_those_transformers_takes_from_it(tmp_path: Path) -> None:
    for raw in ({}, {"eos_token_id": 5}, {"eos_token_id": [5, 6]}, {"eos_token_id": None}):
        config = LlamaConfig(**raw)
        theirs = GenerationConfig.from_model_config(config)
        ours = generation.read(tmp_path, raw, LlamaConfig().eos_token_id)
        assert ours.eos_ids == ends(theirs.eos_token_id), raw


# --- ends -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "config", "default", "wanted"),
    [
        ({"eos_token_id": [2, 7]}, {"eos_token_id": 2}, 3, [2, 7]),
        ({"eos_token_id": 7}, {"eos_token_id": 2}, 3, [7]),
        ({"eos_token_id": None}, {"eos_token_id": 2}, 3, [2]),
        ({"eos_token_id": []}, {"eos_token_id": 2}, 3, [2]),
        ({}, {"eos_token_id": [2, 2, 4]}, 3, [2, 4]),
        ({}, {"text_config": {"eos_token_id": 106}}, 3, [106]),
        ({}, {"eos_token_id": 1, "text_config": {"eos_token_id": 106}}, 3, [1]),
        ({}, {"eos_token_id": None, "text_config": {"eos_token_id": 106}}, 3, [106]),
        ({}, {"eos_token_id": None}, 3, []),
        ({}, {"text_config": {}}, [3], [3]),
        ({}, {}, None, []),
        ({"eos_token_id": -1}, {}, None, []),
        ({"eos_token_id": [-1, 7, 1 << 31, (1 << 31) - 1]}, {}, None, [7, (1 << 31) - 1]),
    ],
    ids=str,
)
def test_ends_are_the_files_else_the_configs_else_those_of_its_class(
    tmp_path: Path, file: dict[str, Any], config: dict[str, Any], default: object, wanted: list[int]
) -> None:
    assert generation.read(written(tmp_path, file), config, default).eos_ids == wanted


# --- what differs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        ({}, Generation()),
        ({"do_sample": False}, Generation(temperature=0.0)),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.9}, Generation(temperature=0.0, top_p=0.9)),
        ({"do_sample": None, "temperature": 0.7}, Generation(temperature=0.7)),
        ({"top_p": 0.9}, Generation(temperature=1.0, top_p=0.9)),
        ({"top_k": 40}, Generation(top_k=40)),
        ({"do_sample": True}, Generation(temperature=1.0)),
        ({"do_sample": True, "temperature": 0.0}, Generation(temperature=0.0)),
        ({"do_sample": True, "top_k": -1}, Generation(temperature=1.0, top_k=0)),
        ({"top_k": 0, "temperature": 1}, Generation(temperature=1.0, top_k=0)),
        ({"do_sample": True, "top_p": 0}, Generation(temperature=1.0, top_p=1e-9)),
        ({"temperature": None, "top_p": None, "top_k": None}, Generation()),
    ],
    ids=str,
)
def test_what_is_absent_is_off_and_a_temperature_alone_samples(
    tmp_path: Path, file: dict[str, Any], wanted: Generation
) -> None:
    assert generation.read(written(tmp_path, file), {}) == wanted


def test_a_model_without_the_file_has_no_defaults(tmp_path: Path) -> None:
    assert generation.read(tmp_path, {"eos_token_id": 2}) == Generation([2])


# --- what cannot be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
        ({"eos_token_id": True}, "eos_token_id is True"),
        ({"eos_token_id": [2, 2.5]}, "eos_token_id is 2.5"),
        ({"eos_token_id": list(range(65))}, "lists 65 ids, at most 64"),
        ({"eos_token_id": [10**30]}, r"eos_token_id\[0\] is 10+, which is out of all bounds"),
        ({"temperature": 10**30}, "temperature is 10+"),
        ({"temperature": -0.5}, "temperature is -0.5, and 0 to 100 was wanted"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ('{"temperature": NaN}', "temperature is nan"),
        ('{"temperature": Infinity}', "temperature is inf"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"min_p": -1}, "min_p is -1"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"do_sample": "yes"}, "do_sample is 'yes'"),
        ({"temperature": "\x1b[2J"}, r"temperature is '\\x1b\[2J'"),
        ("[]", "holds a JSON list"),
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ('{"eos_token_id": ' + "9" * 5000 + "}", "cannot be read as JSON"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_is_refused_by_name(tmp_path: Path, file: object, name: str) -> None:
    with pytest.raises(SyscallError, match=name) as caught:
        generation.read(written(tmp_path, file), {"eos_token_id": 2})
    assert caught.value.errno is Errno.EIO
    assert "generation_config.json" in caught.value.reason
    assert caught.value.reason.isprintable()


def test_what_a_config_names_as_its_ends_is_refused_with_its_own_name(tmp_path: Path) -> None:
    with pytest.raises(SyscallError, match=r"^EIO: .*config\.json.*eos_token_id.*'x'"):
        generation.read(tmp_path, {"eos_token_id": "x"})


def test_a_fifo_or_a_huge_file_of_that_name_is_not_read(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / generation.FILE)
    with pytest.raises(SyscallError, match=r"^EIO: .*fifo"):
        generation.read(tmp_path, {})
    (tmp_path / generation.FILE).unlink()
    with (tmp_path / generation.FILE).open("wb") as file:
        file.truncate(300 << 20)
    with pytest.raises(SyscallError, match=r"^EIO: .*16777216"):
        generation.read(tmp_path, {})
