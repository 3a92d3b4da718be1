"""The names of models, as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmasos.modelfiles import names
from llmasos.modelfiles.names import Kind, Name, parse
from llmasos.syscalls.errno import Errno, SyscallError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "repo", "folder", "revision", "quant"),
    [
        ("org/name", "org/name", "", "main", ""),
        ("gpt2", "gpt2", "", "main", ""),
        ("org/name-1.5_b", "org/name-1.5_b", "", "main", ""),
        ("org/name/a/b", "org/name", "a/b", "main", ""),
        ("org/name@v1.0", "org/name", "", "v1.0", ""),
        ("org/name@refs/pr/7", "org/name", "", "refs/pr/7", ""),
        (f"org/name/a@{COMMIT}", "org/name", "a", COMMIT, ""),
        ("org/name:Q4_K_M", "org/name", "", "main", "Q4_K_M"),
        ("org/name@v1:Q8_0", "org/name", "", "v1", "Q8_0"),
        ("hf.co/org/name:UD-Q4_K_XL", "org/name", "", "main", "UD-Q4_K_XL"),
        ("https://huggingface.co/org/name", "org/name", "", "main", ""),
        ("https://huggingface.co/org/name/", "org/name", "", "main", ""),
        ("https://huggingface.co/org/name/tree/v2/sub", "org/name", "sub", "v2", ""),
        ("HTTPS://HF.CO/Org/Name", "Org/Name", "", "main", ""),
        ("https://hf.co/org/name?library=transformers", "org/name", "", "main", ""),
        ("huggingface.co/org/name/tree/v2#files", "org/name", "", "v2", ""),
        ("hf://org/name@v1", "org/name", "", "v1", ""),
        ("Org/Name//", "Org/Name", "", "main", ""),
        ("org/name:q4_k_m", "org/name", "", "main", "q4_k_m"),
    ],
)
def test_a_name_of_the_hub(text: str, repo: str, folder: str, revision: str, quant: str) -> None:
    name = parse(text)
    assert name == Name(Kind.HUB, text, repo=repo, folder=folder, revision=revision, quant=quant)
    again = parse(name.canonical())
    assert (again.repo, again.folder, again.revision, again.quant) == (repo, folder, revision, quant)


@pytest.mark.parametrize(
    ("text", "store", "path"),
    [
        ("ollama:llama3.2:1b", "ollama", "llama3.2:1b"),
        ("llama3.2:1b", "ollama", "llama3.2:1b"),
        ("ollama:llama3.2", "ollama", "llama3.2"),
        ("ollama:llama3.2:latest", "ollama", "llama3.2"),
        ("Ollama:hf.co/org/name:Q4_0", "ollama", "hf.co/org/name:Q4_0"),
        ("lmstudio:org/repo/file-Q4_0", "lmstudio", "org/repo/file-Q4_0"),
        ("llamacpp:org_repo_file", "llamacpp", "org_repo_file"),
    ],
)
def test_a_name_of_a_store(text: str, store: str, path: str) -> None:
    assert parse(text) == Name(Kind.STORE, text, store=store, path=path)


@pytest.mark.parametrize("text", [" org/name", "org/name ", "  hf.co/org/name/ "])
def test_a_space_that_was_copied_along_is_no_part_of_a_name(text: str) -> None:
    assert (parse(text).repo, parse(text).canonical()) == ("org/name", "org/name")


def test_a_path_may_have_spaces_and_all_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("my möd el", " 模型 ", "a:b c"):
        (tmp_path / name).mkdir()
        assert (parse(name).kind, parse(name).path) == (Kind.PATH, name)


def test_a_path_is_what_looks_like_one_or_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert parse("org/name").kind is Kind.PATH
    assert parse("org/name@v1").kind is Kind.HUB
    assert parse("~/m").path == f"{tmp_path}/m"
    assert {parse(text).kind for text in ("./m", "../m", "/m", "~/m.gguf")} == {Kind.PATH}


@pytest.mark.parametrize("text", ["https://example.org/org/name", "s3://bucket/name", "file:///tmp/m.gguf"])
def test_an_address_of_elsewhere_is_refused_as_such(text: str) -> None:
    with pytest.raises(SyscallError, match=r"EINVAL.*an address that is not the hub's") as caught:
        parse(text)
    assert text in caught.value.reason


@pytest.mark.parametrize(
    "text",
    ["", "a" * 2000, "org/na me", "org/../name", "org//name", "org/name/../x", "org/name/./x", "org/name/a\\b",
     "-org/name", "org/.name", "org/name.git", "org/a--b", "org/name@", "org/name@../x", "org/name@a..b/../c",
     "org/name@.hidden", "org/name@a/.b", "org/name:", "org/name:Q4/0", "org/name:../x", "o\x1b[2J/n", "org/n\nm",
     "nothing.gguf", "org/nothing.gguf", "hf.co/", "https://hf.co/a/b/tree/../c"],
)  # fmt: skip
def test_what_can_be_no_name_is_refused(text: str) -> None:
    with pytest.raises(SyscallError) as caught:
        parse(text)
    assert caught.value.errno in (Errno.EINVAL, Errno.ENOENT)
    assert caught.value.reason.isprintable()


@example("0:A/")
@given(st.text(max_size=60) | st.from_regex(r"[a-z./:@~-]{0,30}", fullmatch=True))
def test_whatever_is_written_is_a_name_or_refused_and_never_lies_outside(text: str) -> None:
    try:
        name = parse(text)
    except SyscallError:
        return
    if name.kind is Kind.HUB:
        for part in (*name.repo.split("/"), *name.revision.split("/"), *filter(None, name.folder.split("/"))):
            assert part not in ("", ".", "..")
        assert parse(name.canonical()).canonical() == name.canonical()


def test_a_near_name_is_offered() -> None:
    known = ["org/Llama-3.2-1B-Instruct", "tiny"]
    assert names.near("llama-3.2-1b-instruct", known) == "; did you mean org/Llama-3.2-1B-Instruct?"
    assert names.near("org/Llama-3.2-1B-Instuct", known) == "; did you mean org/Llama-3.2-1B-Instruct?"
    assert names.near("something else", known) == ""


@pytest.mark.parametrize("text", ["tiny", "org/name", "sim:context=256,vocab=100", "sim:x", "./dir", "llama3:8b", ""])
def test_what_no_store_has_is_the_kernels_to_look_up(text: str, no_stores: None) -> None:
    assert names.locate(text) is None


def test_addresses_of_the_hub_are_told_to_the_kernel_in_one_way(no_stores: None) -> None:
    assert names.locate("hf.co/org/name") == "org/name"
    assert names.locate("https://huggingface.co/org/name/tree/v2") == "org/name@v2"
