"""Models that other programs have put on the disk: each store as its program lays it out, whole and broken."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from llmasos.modelfiles import cache, check, names, source, stores
from llmasos.modelfiles.called import called, called_in
from llmasos.modelfiles.stores import Found
from llmasos.syscalls.errno import Errno, SyscallError
from tests.modelfiles.ollama_store import blob, manifest

GGUF = b"GGUF\3" + bytes(59)  # version 3, without a tensor
pytestmark = pytest.mark.usefixtures("no_stores")


@pytest.fixture
def ollama(tmp_path: Path) -> Path:
    """A store with llama3.2:1b, whole, with params, system text and a Go template."""
    root = tmp_path / ".ollama" / "models"
    manifest(
        root,
        "registry.ollama.ai/library/llama3.2/1b",
        model=blob(root, GGUF),
        params=blob(root, b'{"stop": ["<|eot_id|>"], "temperature": 0.6}'),
        system=blob(root, b"You are kind."),
        template=blob(root, b"{{ range .Messages }}{{ .Content }}{{ end }}"),
    )
    return root


def by_name() -> dict[str, Found]:
    return {one.name: one for one in stores.found()}


# --- Ollama ---------------------------------------------------------------------------------------------------------


def test_an_ollama_model_is_its_blob_with_its_params_and_system_text(ollama: Path) -> None:
    (one,) = stores.found()
    assert (one.name, one.store, one.format, one.size, one.problem) == (
        "ollama:llama3.2:1b",
        "ollama",
        "gguf",
        len(GGUF),
        "",
    )
    assert one.path.read_bytes() == GGUF
    assert one.params == {"stop": ["<|eot_id|>"], "temperature": 0.6}
    assert one.system == "You are kind."


@pytest.mark.parametrize("name", ["ollama:llama3.2:1b", "llama3.2:1b"])
def test_an_ollama_model_runs_by_name_from_where_it_is(ollama: Path, name: str) -> None:
    (one,) = stores.found()
    assert names.locate(name) == str(one.path)
    assert source.find(name) == one.path


def test_ollama_models_of_other_owners_and_registries_and_latest(ollama: Path) -> None:
    digest = blob(ollama, GGUF)
    manifest(ollama, "registry.ollama.ai/someone/model/latest", model=digest)
    manifest(ollama, "hf.co/org/Name-GGUF/Q4_K_M", model=digest)
    assert set(by_name()) == {
        "ollama:llama3.2:1b",
        "ollama:someone/model:latest",
        "ollama:hf.co/org/Name-GGUF:Q4_K_M",
    }
    assert names.locate("ollama:someone/model") == names.locate("ollama:hf.co/org/Name-GGUF:Q4_K_M")


def test_a_store_elsewhere_is_named_by_ollamas_variable(
    ollama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "elsewhere"
    ollama.rename(moved)
    assert stores.found() == []
    monkeypatch.setenv("OLLAMA_MODELS", str(moved))
    assert list(by_name()) == ["ollama:llama3.2:1b"]


def test_an_ollama_model_that_is_not_there_is_said_with_a_near_one(ollama: Path) -> None:
    with pytest.raises(SyscallError, match=r"did you mean ollama:llama3\.2:1b") as caught:
        names.locate("ollama:llama3.2:2b")
    assert caught.value.errno is Errno.ENOENT


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ({"model": GGUF, "adapter": b"GGUFadapter"}, "adapter"),
        ({}, "no weights"),
        ({"model": b"PK\x03\x04 no gguf"}, "no GGUF"),
    ],
)
def test_ollama_models_that_cannot_be_run_say_why(tmp_path: Path, layers: dict[str, bytes], said: str) -> None:
    root = tmp_path / ".ollama" / "models"
    manifest(root, "registry.ollama.ai/library/m/x", **{kind: blob(root, data) for kind, data in layers.items()})
    (one,) = stores.found()
    assert said in one.problem
    with pytest.raises(SyscallError, match=said) as caught:
        names.locate("ollama:m:x")
    assert caught.value.errno is Errno.ENOEXEC


@pytest.mark.parametrize(
    "digest",
    [
        "sha256:../../../../etc/passwd",
        "../../x",
        "sha256:" + "0" * 63,
        "sha256-" + "0" * 64,
        "",
        "sha256:" + "G" * 64,
    ],
)
def test_a_digest_that_is_none_names_no_file(tmp_path: Path, digest: str) -> None:
    root = tmp_path / ".ollama" / "models"
    manifest(root, "registry.ollama.ai/library/m/x", model=digest)
    (one,) = stores.found()
    assert "digest" in one.problem


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b'{"layers": 3}', b'{"layers": [{"digest": 1}]}', b"\xff" * 50, b"[" * 9999]
)
def test_a_broken_manifest_breaks_one_model_only(ollama: Path, raw: bytes) -> None:
    file = ollama / "manifests/registry.ollama.ai/library/broken/x"
    file.parent.mkdir(parents=True)
    file.write_bytes(raw)
    found = by_name()
    assert "manifest" in found["ollama:broken:x"].problem
    assert found["ollama:llama3.2:1b"].problem == ""


def test_blobs_that_are_links_to_nothing_fifos_or_endless_are_no_models(ollama: Path) -> None:
    for number, make in enumerate(
        (lambda at: at.symlink_to("nothing"), os.mkfifo, lambda at: at.symlink_to("/dev/zero"))
    ):
        digest = f"{number:064x}"
        make(ollama / "blobs" / f"sha256-{digest}")
        manifest(ollama, f"registry.ollama.ai/library/odd/{number}", model=f"sha256:{digest}")
    odd = [one for one in stores.found() if ":odd:" in one.name]
    assert len(odd) == 3
    assert all(one.problem for one in odd)


def test_params_that_are_broken_are_left_out(tmp_path: Path) -> None:
    root = tmp_path / ".ollama" / "models"
    manifest(
        root,
        "registry.ollama.ai/library/m/x",
        model=blob(root, GGUF),
        params=blob(root, b"[1"),
        system=blob(root, b"\xff\xfe"),
    )
    (one,) = stores.found()
    assert (one.problem, one.params, one.system) == ("", {}, "")


# --- LM Studio, llama.cpp -------------------------------------------------------------------------------------------


def test_lm_studios_models_are_found_in_both_its_folders(tmp_path: Path) -> None:
    for place, file in (
        (".lmstudio/models", "org/repo/m-Q4_K_M.gguf"),
        (".cache/lm-studio/models", "old/repo/n.gguf"),
    ):
        path = tmp_path / place / file
        path.parent.mkdir(parents=True)
        path.write_bytes(GGUF)
    (tmp_path / ".lmstudio/models/org/repo/mmproj-m-F16.gguf").write_bytes(GGUF)
    assert set(by_name()) == {"lmstudio:org/repo/m-Q4_K_M", "lmstudio:old/repo/n"}
    for name in ("lmstudio:org/repo/m-Q4_K_M", "lmstudio:org/repo/m-Q4_K_M.gguf"):
        assert names.locate(name) == str(tmp_path / ".lmstudio/models/org/repo/m-Q4_K_M.gguf")


def test_lm_studios_moved_home_is_found(tmp_path: Path) -> None:
    (tmp_path / "disk/models/a/b").mkdir(parents=True)
    (tmp_path / "disk/models/a/b/c.gguf").write_bytes(GGUF)
    (tmp_path / ".lmstudio-home-pointer").write_text(str(tmp_path / "disk"))
    assert list(by_name()) == ["lmstudio:a/b/c"]


def test_llama_cpps_cache_is_found_with_split_files_as_one(tmp_path: Path) -> None:
    place = tmp_path / ".cache" / "llama.cpp"
    place.mkdir(parents=True)
    for part in (1, 2):
        (place / f"org_m-0000{part}-of-00002.gguf").write_bytes(GGUF)
    (place / "half-00001-of-00002.gguf").write_bytes(GGUF)
    (place / "org_n_n-Q8_0.gguf").write_bytes(GGUF)
    (place / "org_n_n-Q8_0.gguf.json").write_text("{}")
    (place / "x.gguf.downloadInProgress").write_bytes(GGUF)
    found = by_name()
    assert set(found) == {"llamacpp:org_m", "llamacpp:org_n_n-Q8_0"}
    assert found["llamacpp:org_m"].size == 2 * len(GGUF)
    assert found["llamacpp:org_m"].path.name.endswith("00001-of-00002.gguf")


def test_loops_of_links_and_folders_that_cannot_be_read_hide_nothing_else(tmp_path: Path) -> None:
    place = tmp_path / ".lmstudio" / "models" / "org" / "repo"
    place.mkdir(parents=True)
    (place / "m.gguf").write_bytes(GGUF)
    (place / "again").symlink_to(place.parent)
    (place / "self").symlink_to(place / "self")
    (place / "gone.gguf").symlink_to("nothing")
    closed = place.parent / "closed"
    closed.mkdir(mode=0)
    try:
        assert list(by_name()) == ["lmstudio:org/repo/m"]
    finally:
        closed.chmod(0o700)


# --- Hugging Face's cache, directories ------------------------------------------------------------------------------


def cached(tmp_path: Path, repo: str, files: dict[str, bytes], *, ref: str = "main", commit: str = "a" * 40) -> Path:
    """Lay a snapshot out as huggingface_hub does."""
    place = tmp_path / ".cache/huggingface/hub" / f"models--{repo.replace('/', '--')}"
    snapshot = place / "snapshots" / commit
    (place / "blobs").mkdir(parents=True, exist_ok=True)
    (place / "refs").mkdir(exist_ok=True)
    if ref:
        (place / "refs" / ref).write_text(commit)
    for path, data in files.items():
        etag = hashlib.sha256(data).hexdigest()
        (place / "blobs" / etag).write_bytes(data)
        (snapshot / path).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / path).symlink_to(os.path.relpath(place / "blobs" / etag, (snapshot / path).parent))
    return snapshot


MODEL = {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"\2\0\0\0\0\0\0\0{}"}


def test_the_hubs_cache_is_found_by_the_names_that_run_it(tmp_path: Path) -> None:
    cached(tmp_path, "org/whole", MODEL)
    cached(tmp_path, "org/whole", {**MODEL, "x.json": b"{}"}, ref="v1", commit="b" * 40)
    cached(tmp_path, "org/whole", {**MODEL, "y.json": b"{}"}, ref="", commit="c" * 40)
    cached(tmp_path, "org/gguf", {"m-Q4_K_M.gguf": GGUF, "m-Q8_0.gguf": GGUF + b"8"})
    cached(tmp_path, "org/folders", {f"sub/{path}": data for path, data in MODEL.items()})
    found = by_name()
    assert set(found) == {
        "org/whole", "org/whole@v1", f"org/whole@{'c' * 40}", "org/gguf:Q4_K_M", "org/gguf:Q8_0", "org/folders/sub",
    }  # fmt: skip
    for name, one in found.items():
        assert one.problem == ""
        assert source.find(name, weights=True) == one.path


def test_what_is_not_whole_in_the_cache_says_so(tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}}).encode()
    cached(tmp_path, "org/config", {"config.json": b"{}"})
    cached(tmp_path, "org/half", {"config.json": b"{}", "model.safetensors.index.json": index})
    cached(tmp_path, "org/pickle", {"config.json": b"{}", "pytorch_model.bin": b"p"})
    cached(tmp_path, "org/odd", {"config.json": b"{}", "model.safetensors.index.json": b"[]"})
    found = by_name()
    assert "pull" in found["org/config"].problem
    assert "model-00001" in found["org/half"].problem
    assert "pickle" in found["org/pickle"].problem
    assert "weight_map" in found["org/odd"].problem


def test_a_download_that_has_begun_has_the_name_that_goes_on_with_it(tmp_path: Path) -> None:
    cached(tmp_path, "org/begun", {"config.json": b"{}"}, ref="")
    cached(tmp_path, "org/newer", MODEL)
    cached(tmp_path, "org/newer", {"config.json": b"{}"}, ref="", commit="b" * 40)
    assert set(by_name()) == {"org/begun", "org/newer", f"org/newer@{'b' * 40}"}


def test_a_broken_ref_and_strange_files_in_the_cache_hide_nothing_else(tmp_path: Path) -> None:
    place = cached(tmp_path, "org/whole", MODEL).parents[1]
    (place / "refs" / "odd").write_bytes(b"\xff../../..")
    os.mkfifo(place / "refs" / "fifo")
    (place / "snapshots" / ("d" * 40)).symlink_to("nothing")
    (place.parent / "models--file").write_text("")
    (place.parent / "models--empty").mkdir()
    assert list(by_name()) == ["org/whole"]


def test_directories_that_the_variable_names_are_found_by_the_kernels_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path, data in MODEL.items():
        for name in ("one", "two"):
            (tmp_path / "mine" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "mine" / name / path).write_bytes(data)
    monkeypatch.setenv("LLMASOS_MODELS", f"{tmp_path}/mine:{tmp_path}/nothing:{tmp_path}/mine/one")
    assert {one.name for one in stores.found()} == {"one", "two"}


# --- what a path is called --------------------------------------------------------------------------------------------


def test_the_path_of_every_found_model_is_called_as_the_model_is(tmp_path: Path, ollama: Path) -> None:
    cached(tmp_path, "org/whole", MODEL)
    cached(tmp_path, "org/g", {"g-Q4_K_M.gguf": GGUF, "g-Q8_0.gguf": GGUF})
    for place in (".lmstudio/models/org/repo", ".cache/llama.cpp"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "m.Q8_0.gguf").write_bytes(GGUF)
    there = stores.found()
    assert len({one.store for one in there}) == 4
    assert {called(str(one.path)) for one in there} == {one.name for one in there}
    for one in there:
        assert called_in(f"cpu0: {one.path}: it is gone").split()[1] == f"{called(str(one.path))}:" or (
            one.store in ("lmstudio", "llamacpp")
        )
        assert str(one.path) in called_in(f"cpu0: loading x from {one.path}")


@pytest.mark.parametrize("text", ["tiny", "org/name", "/nowhere/blobs/sha256-" + "0" * 64, "/nowhere/m.gguf", ""])
def test_what_no_store_has_is_called_what_it_is(text: str) -> None:
    assert called(text) == text


# --- check ----------------------------------------------------------------------------------------------------------


def broken(place: Path, *statuses: str) -> dict[str, str]:
    said: dict[str, str] = {}
    for one in check.check(place):
        if one.status in (statuses or (check.BROKEN,)):
            said[one.what] = f"{said.get(one.what, '')} {one.found}"
    return said


def test_a_whole_model_has_nothing_broken_and_every_blob_is_read(tmp_path: Path) -> None:
    place = cached(tmp_path, "org/whole", {**MODEL, "tokenizer.json": b"{}"})
    read: list[str] = []
    findings = list(check.check(place, lambda what, done, size: read.append(what)))
    assert {one.status for one in findings} == {check.OK}
    assert set(read) == {"config.json", "model.safetensors", "tokenizer.json"}


def change(path: Path, data: bytes) -> None:
    path.resolve().write_bytes(data)


@pytest.mark.parametrize(
    ("file", "data", "said"),
    [
        ("model.safetensors", b"\2\0\0\0\0\0\0\0[]", "digest"),
        ("model.safetensors", b"\2\0\0", "header"),
        ("config.json", b"{", "JSON"),
        ("config.json", b"{}", "model_type"),
        ("tokenizer.json", b"[", "JSON"),
    ],
)
def test_what_is_broken_is_named(tmp_path: Path, file: str, data: bytes, said: str) -> None:
    place = cached(tmp_path, "org/whole", {**MODEL, "tokenizer.json": b"{}"})
    change(place / file, data)
    assert said in " ".join(broken(place, check.BROKEN, check.REFUSED).values())


def test_a_blob_that_is_gone_is_named(tmp_path: Path) -> None:
    place = cached(tmp_path, "org/whole", {**MODEL, "tokenizer.json": b"{}"})
    (place / "tokenizer.json").resolve().unlink()
    assert "link to nothing" in broken(place)["tokenizer.json"]


def test_an_ollama_blob_is_checked_by_its_digest(ollama: Path) -> None:
    (one,) = stores.found()
    assert broken(one.path) == {}
    one.path.write_bytes(GGUF[:-1] + b"!")
    assert "digest" in next(iter(broken(one.path).values()))


def test_a_gguf_file_that_stops_early_is_named(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(GGUF)
    assert broken(file) == {}
    file.write_bytes(GGUF[:8] + (21).to_bytes(8, "little") + GGUF[16:24])  # 21 tensors are announced
    assert "the file ends" in broken(file)["m.gguf"]


def test_a_file_that_no_engine_can_know_is_whole_and_refused(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(GGUF)
    assert broken(file) == {}
    assert "architecture" in broken(file, check.REFUSED)["configuration"]


# --- removal --------------------------------------------------------------------------------------------------------


def test_removing_follows_no_link_out_of_the_cache(tmp_path: Path) -> None:
    place = cached(tmp_path, "org/whole", MODEL).parents[1]
    precious: Any = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")
    (place / "snapshots" / "out").symlink_to(precious)
    assert cache.remove("org/whole") > 0
    assert (precious / "file").read_text() == "mine"
    assert not place.exists()
    place.symlink_to(precious)
    with pytest.raises(SyscallError, match=r"^EINVAL: .*link"):
        cache.remove("org/whole")
    assert (precious / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"x", "no GGUF file"),
        (b"", "no GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    ],
)
def test_a_file_that_only_has_a_models_name_says_what_it_is(tmp_path: Path, data: bytes, said: str) -> None:
    file = tmp_path / ".lmstudio/models/org/repo/m.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(data)
    assert said in by_name()["lmstudio:org/repo/m"].problem
    with pytest.raises(SyscallError, match=said):
        stores.lookup(names.parse("lmstudio:org/repo/m"))


@pytest.mark.parametrize("data", [b"x", b"\xff" * 8 + b"{}", (100).to_bytes(8, "little") + b"{}"])
def test_weights_that_are_cut_short_are_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    place = tmp_path / "mine"
    place.mkdir()
    (place / "config.json").write_text("{}")
    (place / "model.safetensors").write_bytes(data)
    monkeypatch.setenv("LLMASOS_MODELS", str(tmp_path))
    assert "no safetensors file" in by_name()["mine"].problem


# --- folders that cannot be listed -----------------------------------------------------------------------------------


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Folders that the operating system does not list: so it is with those of others, but root may list all."""
    found: set[str] = set()
    scandir, listdir = os.scandir, os.listdir

    def refusing(listed: Any) -> Any:
        def of(place: Any = ".") -> Any:
            if os.fspath(place) in found:
                raise PermissionError(errno.EACCES, "Permission denied", os.fspath(place))
            return listed(place)

        return of

    monkeypatch.setattr(os, "scandir", refusing(scandir))
    monkeypatch.setattr(os, "listdir", refusing(listdir))
    return found


def test_a_folder_that_cannot_be_listed_is_said_and_hides_nothing_else(
    ollama: Path, tmp_path: Path, closed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    studio, mine = tmp_path / ".lmstudio" / "models", tmp_path / "mine"
    for name in ("ada", "bob"):
        (studio / name / "m").mkdir(parents=True)
        (studio / name / "m" / "m-q8_0.gguf").write_bytes(GGUF)
    mine.mkdir()
    monkeypatch.setattr(stores, "lm_studio_directories", lambda: [studio])
    monkeypatch.setenv("LLMASOS_MODELS", str(mine))
    before = by_name()
    assert len(before) == 3
    assert not any(one.problem for one in before.values())
    manifests = ollama / "manifests" / "registry.ollama.ai" / "library" / "llama3.2"
    closed |= {os.fspath(one) for one in (studio / "bob", manifests, mine)}
    after = stores.found()
    assert {one.name for one in after if not one.problem} == {name for name in before if "ada" in name}
    said = " ".join(one.problem for one in after)
    assert all(f"the folder {folder} cannot be listed: Permission denied" in said for folder in closed)


def test_a_snapshot_that_cannot_be_listed_is_no_model_that_is_not_there(tmp_path: Path, closed: set[str]) -> None:
    place = tmp_path / "snapshot"
    (place / "onnx").mkdir(parents=True)
    (place / "config.json").write_text("{}")
    assert cache.listing(place) == {"config.json"}
    closed.add(os.fspath(place / "onnx"))
    for look in (cache.listing, cache.disk_bytes):
        with pytest.raises(SyscallError, match="onnx cannot be listed: Permission denied") as caught:
            look(place)
        assert caught.value.errno is Errno.EIO
    (finding,) = check.check(place)
    assert (finding.status, "cannot be listed" in finding.found) == (check.BROKEN, True)
    assert "cannot be listed" in stores.directory("mine", stores.DIRECTORY, place).problem
    assert cache.listing(tmp_path / "nothing") == set()
