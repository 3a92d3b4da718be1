"""Fetching models: from a hub on loopback into a cache that huggingface_hub reads, through every trouble of a network."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from llmasos.modelfiles import cache, download, hub, hub_api, names, source, web
from llmasos.modelfiles.download import Progress
from llmasos.syscalls.errno import Errno, SyscallError
from tests import leftovers
from tests.hub_server import Hub, Trouble, digest, served

CONFIG = json.dumps({"model_type": "llama", "vocab_size": 50, "hidden_size": 32}).encode()
WEIGHTS = save({"a": np.arange(300_000, dtype=np.float32)})
SIDE = {
    "config.json": CONFIG,
    "tokenizer.json": b"{}",
    "generation_config.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "additional_chat_templates/tool.jinja": b"{{ tools }}",
}
WHOLE = {**SIDE, "model.safetensors": WEIGHTS}
NEVER = {
    "README.md": b"# words",
    "pytorch_model.bin": b"\x80\x04pickle",
    "pytorch_model.bin.index.json": b"{}",
    "model.fp16.safetensors": b"variant",
    "consolidated.safetensors": b"another layout",
    "onnx/model.onnx": b"another engine",
    "onnx/config.json": b"{}",
    "training_args.bin": b"pickle",
    "modeling_own.py": b"import os",
}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub, and an empty home whose programs ask it."""
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(hub_api, "pause", lambda *_: None)
    monkeypatch.setattr(download, "pause", lambda *_: None)
    with served() as made:
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        yield made


def sharded() -> dict[str, bytes]:
    shards = {f"model-0000{n}-of-00002.safetensors": save({f"t{n}": np.full(1000, n, dtype=np.float16)}) for n in (1, 2)}
    index = {"metadata": {}, "weight_map": {f"t{n}": f"model-0000{n}-of-00002.safetensors" for n in (1, 2)}}
    return {**SIDE, "model.safetensors.index.json": json.dumps(index).encode(), **shards}


def refused(errno: Errno, act: Callable[[], object]) -> str:
    with pytest.raises(SyscallError) as caught:
        act()
    assert caught.value.errno is errno, caught.value
    assert caught.value.reason.isprintable()
    return caught.value.reason


def held(place: Path) -> set[str]:
    return cache.listing(place)


# --- what is fetched ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", [WHOLE, sharded()], ids=["one file", "shards"])
def test_a_model_is_fetched_with_what_transformers_would_read_and_nothing_else(
    server: Hub, files: dict[str, bytes]
) -> None:
    commit = server.repository("org/name").commit({**files, **NEVER})
    place = source.find("org/name", weights=True)
    assert place == cache.snapshot("org/name", commit)
    assert {path: (place / path).read_bytes() for path in held(place)} == files
    assert source.check_weights(place) > 0
    server.asked.clear()
    assert source.find("org/name", weights=True) == place
    assert not server.asked, "what is whole in the cache is asked of nobody"


def test_what_is_fetched_is_a_cache_that_huggingface_hub_reads(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.repository("org/name").commit(WHOLE)
    place = source.find("org/name", weights=True)
    program = (
        "import huggingface_hub as h, sys\n"
        "print(h.snapshot_download('org/name', local_files_only=True))\n"
        "for repo in h.scan_cache_dir().repos:\n"
        "    for one in repo.revisions: print(repo.repo_id, one.commit_hash, *one.refs, len(one.files))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert not done.returncode, done.stderr
    assert done.stdout.splitlines() == [str(place), f"org/name {place.name} main {len(WHOLE)}"]


def test_what_huggingface_hub_has_fetched_is_found(server: Hub) -> None:
    server.repository("org/name").commit(WHOLE)
    program = "import huggingface_hub as h; print(h.snapshot_download('org/name', max_workers=1))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert not done.returncode, done.stderr
    server.asked.clear()
    assert source.find("org/name", weights=True) == Path(done.stdout.strip())
    assert not server.asked


def test_without_weights_only_what_is_small_is_fetched_and_the_weights_come_of_the_same_commit(
    server: Hub,
) -> None:
    repository = server.repository("org/name")
    first = repository.commit(WHOLE)
    assert held(source.find("org/name")) == set(SIDE)
    repository.commit({**WHOLE, "config.json": CONFIG + b" "})  # the branch has moved on since
    place = source.find("org/name", weights=True)
    assert place.name == first
    assert held(place) == set(WHOLE)


def test_pull_takes_what_the_hub_has_now_and_fetches_only_what_has_changed(server: Hub) -> None:
    repository = server.repository("org/name")
    repository.commit(WHOLE)
    hub.pull(names.parse("org/name"))
    second = repository.commit({**WHOLE, "config.json": CONFIG + b"\n"})
    server.asked.clear()
    assert hub.pull(names.parse("org/name")).name == second
    assert [one.path.rpartition("/")[2] for one in server.asked if "resolve" in one.path] == ["config.json"]
    assert source.find("org/name", weights=True).name == second


def test_every_file_of_a_download_is_of_one_commit_even_if_the_branch_moves_meanwhile(server: Hub) -> None:
    repository = server.repository("org/name")
    commit = repository.commit(sharded())

    def moves(_: Progress) -> None:
        repository.commit({**sharded(), "tokenizer.json": b'{"another": 1}'})

    place = hub.pull(names.parse("org/name"), moves)
    assert place.name == commit
    assert (place / "tokenizer.json").read_bytes() == b"{}"
    assert all(f"/{commit}/" in one.path for one in server.asked if "resolve" in one.path)


@pytest.mark.parametrize("how", ["branch", "tag/with/slash", "commit"])
def test_a_revision_is_a_branch_a_tag_or_a_commit(server: Hub, how: str) -> None:
    repository = server.repository("org/name")
    repository.commit(WHOLE)
    other = {**WHOLE, "tokenizer.json": b'{"old": 1}'}
    commit = repository.commit(other, "branch" if how == "commit" else how)
    revision = commit if how == "commit" else how
    place = source.find(f"org/name@{revision}", weights=True)
    assert place.name == commit
    assert (place / "tokenizer.json").read_bytes() == b'{"old": 1}'
    assert cache.find(names.parse(f"org/name@{revision}"), weights=True) == place


def test_a_folder_of_a_repository_is_a_model_of_its_own(server: Hub) -> None:
    below = {f"inner/model/{path}": data for path, data in WHOLE.items()}
    server.repository("org/name").commit({**SIDE, **below, "other/model.safetensors": b"x"})
    place = source.find("org/name/inner/model", weights=True)
    assert held(place) == set(WHOLE)
    assert place.parent.name == "inner"
    reason = refused(Errno.ENOENT, lambda: source.find("org/name", weights=True))
    assert "inner/model" in reason


def test_a_gguf_repository_gives_one_quantisation_with_all_its_parts(server: Hub) -> None:
    files = {f"m-{quant}.gguf": b"GGUF" + quant.encode() for quant in ("Q8_0", "Q4_K_M", "IQ3_XS")}
    parts = {f"big/m-F16-0000{n}-of-00002.gguf": b"GGUF%d" % n for n in (1, 2)}
    server.repository("org/name").commit({**files, **parts, "mmproj-F16.gguf": b"GGUFp", "config.json": CONFIG})
    assert source.find("org/name", weights=True).name == "m-Q4_K_M.gguf"
    assert source.find("hf.co/org/name:iq3_xs").name == "m-IQ3_XS.gguf"
    place = source.find("org/name:F16")
    assert {one.name for one in place.parent.iterdir()} == {path.rpartition("/")[2] for path in parts}
    assert place.name.endswith("00001-of-00002.gguf")
    assert "IQ3_XS" in refused(Errno.ENOENT, lambda: source.find("org/name:Q5_K_M"))
    assert not server.fetched("mmproj-F16.gguf")


# --- several at once ------------------------------------------------------------------------------------------------


def shards(count: int, floats: int = 1000) -> dict[str, bytes]:
    """A model in so many files, each of other bytes."""
    names = [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    index = {"weight_map": {f"t{n}": name for n, name in enumerate(names)}}
    return {
        "config.json": CONFIG,
        "model.safetensors.index.json": json.dumps(index).encode(),
        **{name: save({f"t{n}": np.full(floats, n, np.float32)}) for n, name in enumerate(names)},
    }


def test_four_files_are_fetched_at_once_and_no_more(server: Hub) -> None:
    files = shards(8)
    server.repository("org/name").commit(files)
    hub.pull(names.parse("org/name@main"))  # all of it, to see that more than four are never served
    assert server.most_served <= download.AT_ONCE == 4
    shutil.rmtree(cache.folder("org/name"))
    for name in ("config.json", "model.safetensors.index.json"):
        del files[name]
    server.repository("org/gguf").commit(
        {f"m-Q8_0-0000{n}-of-00004.gguf": data for n, data in enumerate(list(files.values())[:4], 1)}
    )
    server.meet = threading.Barrier(4)  # one after the other, the first would wait for ever
    place = source.find("org/gguf")
    assert [one.read_bytes() for one in sorted(place.parent.iterdir())] == list(files.values())[:4]
    assert not server.meet.broken


def test_progress_is_of_the_whole_and_says_how_many_files_are_under_way(server: Hub) -> None:
    files = shards(6, 600_000)
    server.repository("org/name").commit(files)
    told: list[Progress] = []
    hub.pull(names.parse("org/name"), told.append)
    assert [one.done for one in told] == sorted(one.done for one in told)
    assert told[-1].done == told[-1].total == sum(map(len, files.values())) + len(files["model.safetensors.index.json"])
    assert max(one.others for one in told) == 3
    assert {one for one in files if one.endswith(".safetensors")} <= {one.file for one in told} <= set(files)
    assert told[-1].others == 0


def test_the_error_of_one_file_ends_the_others_which_are_gone_on_with(server: Hub) -> None:
    files = shards(4, 800_000)
    server.repository("org/name").commit(files)
    hold = threading.Event()
    server.troubles = [Trouble(f"model-0000{n}", cut_after=1_500_000, hold=hold) for n in (1, 3, 4)]  # hang in mid-file
    server.troubles.append(Trouble("model-00002", 404, {"X-Error-Code": "EntryNotFound"}))
    assert "such file" in refused(Errno.ENOENT, lambda: hub.pull(names.parse("org/name"), lambda _: None))
    hold.set()
    whole = {digest(name, data)[0]: data for name, data in files.items()}
    for part in (cache.folder("org/name") / "blobs").glob("*.incomplete"):
        assert whole[part.stem].startswith(part.read_bytes()), "what was cut off is a beginning"
    server.asked.clear()
    place = hub.pull(names.parse("org/name"))
    assert {path: (place / path).read_bytes() for path in held(place)} == files


def test_a_server_that_hangs_in_several_files_does_not_hold_back_ctrl_c(server: Hub) -> None:
    files = shards(4, 800_000)
    server.repository("org/name").commit(files)
    hold = threading.Event()
    server.troubles = [Trouble("model-0", cut_after=1_500_000, hold=hold, times=4)]

    def interrupts(progress: Progress) -> None:
        if progress.done >= 4 << 20:
            raise KeyboardInterrupt

    others = leftovers.threads("llmasos-fetch")
    with pytest.raises(KeyboardInterrupt):
        hub.pull(names.parse("org/name"), interrupts)
    assert not leftovers.threads("llmasos-fetch") - others, "nobody is left behind"
    hold.set()
    server.troubles.clear()
    server.asked.clear()
    place = hub.pull(names.parse("org/name"))
    assert {path: (place / path).read_bytes() for path in held(place)} == files
    resumed = [one for one in server.asked if "Range" in one.headers and "model-0" in one.path]
    assert len(resumed) == 4


def test_a_disk_without_room_for_all_shards_is_said_before_the_first(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.repository("org/name").commit(shards(4, 800_000))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 40, 0, download.SPARE + 9_000_000))
    refused(Errno.EDQUOT, lambda: hub.pull(names.parse("org/name")))
    assert not server.fetched(".safetensors")


def test_a_large_file_is_asked_for_in_parts_as_the_hubs_storage_wants_it(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.repository("org/name").commit(WHOLE)
    server.redirect_to, server.most_at_once = server.cdn, 500_000
    monkeypatch.setattr(download, "PART", 500_000)
    server.troubles = [Trouble("model.safetensors", cut_after=200_000, times=2)]  # of hub and CDN, one each
    told: list[Progress] = []
    place = hub.pull(names.parse("org/name"), told.append)
    assert (place / "model.safetensors").read_bytes() == WEIGHTS
    asked = [one.headers["Range"] for one in server.fetched("model.safetensors") if one.sent]
    assert asked == ["bytes=0-499999", "bytes=200000-699999", "bytes=700000-1199999", "bytes=1200000-"][: len(asked)]
    assert len(asked) >= 3
    assert not any(one.waits for one in told if one.done > 700_000), "a part that has come is no trouble"


def test_a_file_that_plain_http_cannot_have_says_who_can(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.repository("org/name").commit(WHOLE)
    server.redirect_to, server.most_at_once = server.cdn, 1000
    monkeypatch.setattr(download, "MOST_PLAIN", 500_000)
    reason = refused(Errno.ENOTSUP, lambda: hub.pull(names.parse("org/name")))
    assert "hf download org/name model.safetensors" in reason


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "errno", "said"),
    [
        ({"config.json": CONFIG, "pytorch_model.bin": b"p"}, Errno.ENOEXEC, "pickle"),
        ({"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}, Errno.ENOEXEC, "adapter"),
        ({"config.json": CONFIG, "consolidated.safetensors": b"x"}, Errno.ENOENT, "consolidated"),
        ({"config.json": CONFIG}, Errno.ENOENT, "no weights"),
        ({"model.safetensors": WEIGHTS}, Errno.ENOENT, "config.json"),
        ({**WHOLE, "../../../evil.json": b"{}"}, Errno.EIO, "../../../evil.json"),
        ({**WHOLE, "/etc/evil.json": b"{}"}, Errno.EIO, "outside"),
        ({**WHOLE, "a\\..\\evil.json": b"{}"}, Errno.EIO, "outside"),
        ({**WHOLE, "\x1b[2Jevil.json": b"{}"}, Errno.EIO, "outside"),
    ],
)
def test_repositories_that_cannot_or_must_not_be_run_are_refused_before_anything_is_fetched(
    server: Hub, tmp_path: Path, files: dict[str, bytes], errno: Errno, said: str
) -> None:
    server.repository("org/name").commit(files)
    assert said in refused(errno, lambda: source.find("org/name", weights=True))
    assert not [one for one in server.asked if "resolve" in one.path]
    assert not list(tmp_path.rglob("*evil*"))


def test_an_index_that_names_a_file_elsewhere_is_refused(server: Hub) -> None:
    index = json.dumps({"weight_map": {"t": "../../../../evil.safetensors"}}).encode()
    server.repository("org/name").commit({**SIDE, "model.safetensors.index.json": index})
    assert "outside" in refused(Errno.EIO, lambda: source.find("org/name", weights=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"sha": "../../../../etc"},
        {"sha": "main"},
        {"siblings": [{"rfilename": "config.json", "size": -5, "blobId": "a" * 40}]},
        {"siblings": "many"},
        {"siblings": [{"rfilename": "config.json", "size": 3, "blobId": "../../evil"},
                      {"rfilename": "model.safetensors", "size": 3, "blobId": "b" * 40}]},
    ],
)  # fmt: skip
def test_a_listing_that_lies_is_refused(server: Hub, tmp_path: Path, changes: dict[str, object]) -> None:
    server.repository("org/name").commit(WHOLE)
    server.listing_changes = changes
    with pytest.raises(SyscallError):
        source.find("org/name", weights=True)
    assert not list(tmp_path.rglob("*evil*"))


def test_bytes_that_do_not_fit_their_digest_are_thrown_away(server: Hub) -> None:
    commit = server.repository("org/name").commit(WHOLE)
    etag = hashlib.sha256(b"something else").hexdigest()
    server.listing_changes = {
        "siblings": [
            {"rfilename": "config.json", "size": len(CONFIG), "blobId": digest("config.json", CONFIG)[0]},
            {"rfilename": "model.safetensors", "lfs": {"sha256": etag, "size": len(WEIGHTS)}},
        ]
    }
    assert "digest" in refused(Errno.EIO, lambda: source.find("org/name", weights=True))
    assert not (cache.snapshot("org/name", commit) / "model.safetensors").exists()
    assert not list((cache.folder("org/name") / "blobs").glob(f"{etag}*"))


# --- tokens ---------------------------------------------------------------------------------------------------------


def test_a_private_model_wants_the_token(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = server.repository("org/private")
    repository.commit(WHOLE)
    repository.token = "hf_right"
    assert "HF_TOKEN" in refused(Errno.ENOENT, lambda: source.find("org/private", weights=True))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    reason = refused(Errno.EPERM, lambda: source.find("org/private", weights=True))
    assert "HF_TOKEN" in reason
    assert "hf_wrong" not in reason
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text("hf_right\n")
    assert held(source.find("org/private", weights=True)) == set(WHOLE)


def test_terms_that_must_be_accepted_are_said_with_the_address(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = server.repository("org/gated")
    repository.commit(WHOLE)
    repository.gated, repository.token = True, "hf_right"
    assert f"{server.url}/org/gated" in refused(Errno.EPERM, lambda: source.find("org/gated", weights=True))
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert "terms" in refused(Errno.EPERM, lambda: source.find("org/gated", weights=True))


def test_what_is_not_there_is_said(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.repository("org/name").commit(WHOLE)
    assert "org/nothing" in refused(Errno.ENOENT, lambda: source.find("org/nothing", weights=True))
    assert "'v9'" in refused(Errno.ENOENT, lambda: source.find("org/name@v9", weights=True))
    assert "'no/where'" in refused(Errno.ENOENT, lambda: source.find("org/name/no/where", weights=True))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    server.asked.clear()
    assert "HF_HUB_OFFLINE" in refused(Errno.ENOENT, lambda: source.find("org/name", weights=True))
    assert not server.asked


def test_the_token_goes_to_the_hub_and_to_nobody_it_redirects_to(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = server.repository("org/name")
    repository.commit(WHOLE)
    repository.token = "hf_right"
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    server.redirect_to = server.cdn
    assert held(source.find("org/name", weights=True)) == set(WHOLE)
    told = {one.path.split("/")[1]: one.headers.get("Authorization") for one in server.asked}
    assert told == {"api": "Bearer hf_right", "org": "Bearer hf_right", "cdn": None}


@pytest.mark.parametrize("target", ["file:///etc", "ftp://127.0.0.1", "http://user:word@127.0.0.1"])
def test_redirects_to_what_is_no_hub_are_refused(server: Hub, target: str) -> None:
    server.repository("org/name").commit(WHOLE)
    server.redirect_to = target
    refused(Errno.EPERM, lambda: source.find("org/name", weights=True))


@pytest.mark.parametrize("inside", [True, False])
def test_a_hub_on_the_internet_cannot_send_us_into_our_own_network(
    server: Hub, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    commit = server.repository("org/name").commit(WHOLE)
    server.redirect_to = server.cdn
    answers = iter([True, not inside])  # the hub's own address passes for one on the internet, then its target's
    monkeypatch.setattr(web, "_is_global", lambda _: next(answers))

    def ask() -> int:
        with web.request(f"{server.url}/org/name/resolve/{commit}/model.safetensors") as reply:
            return reply.status

    if inside:
        assert "inside this network" in refused(Errno.EPERM, ask)
    else:
        assert ask() == 200
    assert any(one.path.startswith("/cdn") for one in server.asked) is not inside


@pytest.mark.parametrize(
    ("address", "expected"),
    [("93.184.216.34", True), ("127.0.0.1", False), ("10.0.0.1", False), ("169.254.169.254", False), ("::1", False),
     ("::ffff:127.0.0.1", False), ("fe80::1%eth0", False), ("2606:2800:220:1::1", True), ("192.168.1.1", False)],
)  # fmt: skip
def test_which_addresses_are_on_the_internet(address: str, expected: bool) -> None:
    assert web._is_global(address) is expected


# --- troubles -------------------------------------------------------------------------------------------------------


def test_a_cut_connection_is_gone_on_with_and_no_byte_is_fetched_twice(server: Hub) -> None:
    server.repository("org/name").commit(WHOLE)
    server.troubles = [
        Trouble("model.safetensors", cut_after=400_000, times=1),
        Trouble("model.safetensors", cut_after=100_000),
    ]
    place = source.find("org/name", weights=True)
    assert (place / "model.safetensors").read_bytes() == WEIGHTS
    fetched = server.fetched("model.safetensors")
    assert len(fetched) == 3
    assert sum(one.sent for one in fetched) == len(WEIGHTS)


def test_an_interrupted_download_is_gone_on_with_by_the_next_one(server: Hub) -> None:
    server.repository("org/name").commit(WHOLE)

    def interrupts(progress: Progress) -> None:
        if progress.file == "model.safetensors" and progress.done > 300_000:
            raise KeyboardInterrupt

    server.troubles = [Trouble("model.safetensors", cut_after=500_000)]
    with pytest.raises(KeyboardInterrupt):
        hub.pull(names.parse("org/name"), interrupts)
    assert cache.find(names.parse("org/name"), weights=True) is None
    told: list[Progress] = []
    place = hub.pull(names.parse("org/name"), told.append)
    assert (place / "model.safetensors").read_bytes() == WEIGHTS
    last = server.fetched("model.safetensors")[-1]
    assert last.headers["Range"] == "bytes=500000-"
    assert last.sent == len(WEIGHTS) - 500_000
    assert told[-1].done == told[-1].total == sum(map(len, WHOLE.values()))
    assert [one.done for one in told] == sorted(one.done for one in told)


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_hub_in_trouble_is_tried_again(server: Hub, status: int) -> None:
    server.repository("org/name").commit(WHOLE)
    server.troubles = [Trouble("model.safetensors", status, times=2), Trouble("/api/", status, times=2)]
    assert held(source.find("org/name", weights=True)) == set(WHOLE)


@pytest.mark.parametrize("where", ["/api/", "model.safetensors"])
def test_a_hub_that_stays_in_trouble_is_given_up_with_its_reason(server: Hub, where: str) -> None:
    server.repository("org/name").commit(WHOLE)
    server.troubles = [Trouble(where, 503, times=1000)]
    assert "503" in refused(Errno.EAGAIN, lambda: source.find("org/name", weights=True))
    assert len(server.asked) < 20


def test_a_hub_that_wants_a_long_pause_is_not_waited_for(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(hub_api, "pause", waited.append)
    server.repository("org/name").commit(WHOLE)
    server.troubles = [
        Trouble("/api/", 429, {"Retry-After": "7"}),
        Trouble("/api/", 429, {"Retry-After": "86400"}),
    ]
    assert "86400" in refused(Errno.EAGAIN, lambda: source.find("org/name", weights=True))
    assert waited == [7.0]


def test_without_a_hub_the_answer_is_there_at_once(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(hub_api, "pause", lambda _: pytest.fail("there is nothing to wait for"))
    reason = refused(Errno.ENOENT, lambda: source.find("org/name", weights=True))
    assert "127.0.0.1:1" in reason


def test_a_full_disk_is_said_before_anything_is_fetched(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.repository("org/name").commit(WHOLE)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 40, 0, download.SPARE + 1_000_000))
    reason = refused(Errno.EDQUOT, lambda: source.find("org/name", weights=True))
    assert "HF_HOME" in reason
    assert not [one for one in server.asked if "resolve" in one.path]


def test_a_cache_that_cannot_be_written_is_said(server: Hub, tmp_path: Path) -> None:
    server.repository("org/name").commit(WHOLE)
    (tmp_path / "hf").write_text("a file where a directory was wanted")
    assert "HF_HOME" in refused(Errno.EIO, lambda: source.find("org/name", weights=True))


def test_a_link_in_the_place_of_an_unfinished_file_is_not_followed(server: Hub, tmp_path: Path) -> None:
    server.repository("org/name").commit(WHOLE)
    precious = tmp_path / "precious"
    precious.write_text("mine")
    blobs = cache.folder("org/name") / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{digest('model.safetensors', WEIGHTS)[0]}.incomplete").symlink_to(precious)
    refused(Errno.EIO, lambda: source.find("org/name", weights=True))
    assert precious.read_text() == "mine"


def test_a_mirror_without_digests_is_asked_file_by_file(server: Hub) -> None:
    server.repository("org/name").commit(WHOLE)
    server.bare_listing = True
    server.redirect_to = server.cdn
    place = source.find("org/name", weights=True)
    assert (place / "model.safetensors").read_bytes() == WEIGHTS
    assert len([one for one in server.asked if one.method == "HEAD"]) == len(WHOLE)


def test_a_part_that_is_longer_than_the_file_is_thrown_away(server: Hub) -> None:
    server.repository("org/name").commit(WHOLE)
    blobs = cache.folder("org/name") / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{digest('model.safetensors', WEIGHTS)[0]}.incomplete").write_bytes(b"x" * (len(WEIGHTS) + 1))
    assert held(source.find("org/name", weights=True)) == set(WHOLE)


def test_fetching_imports_neither_torch_nor_transformers_nor_huggingface_hub() -> None:
    program = (
        "import sys, modelfiles.source, modelfiles.hub, modelfiles.stores\n"
        "print([n for n in ('torch', 'transformers', 'huggingface_hub') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_transformers_loads_what_was_fetched_and_reads_the_same_weights(server: Hub) -> None:
    tiny = Path(__file__).resolve().parents[2] / "models" / "tiny"
    files = {
        path.name: path.read_bytes() for path in tiny.iterdir() if path.suffix in (".json", ".safetensors", ".jinja")
    }
    both = json.dumps({"weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}).encode()
    server.repository("org/tiny").commit({**NEVER, **files, "model.safetensors.index.json": both})
    place = source.find("org/tiny", weights=True)
    program = (
        "import transformers as t\n"
        "model = t.AutoModelForCausalLM.from_pretrained('org/tiny', dtype='auto')\n"
        "words = t.AutoTokenizer.from_pretrained('org/tiny')\n"
        "ids = words.apply_chat_template([{'role': 'user', 'content': 'hi'}], return_dict=False)\n"
        "print(sorted((name, list(value.shape)) for name, value in model.state_dict().items()), len(ids) > 2)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (_, entries), *more = source.read_headers(place)
    assert not more
    told = sorted((name, list(entry.shape)) for name, entry in entries.items())
    shown, chats = done.stdout.strip().rsplit(" ", 1)
    assert chats == "True"
    assert {str(one) for one in told} <= {str(one) for one in ast.literal_eval(shown)}


# --- the surroundings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["nonsense", "ftp://hub", "http://", "http://hub:port", "//hub", "http://a\x1b[1m"])
def test_an_address_of_a_hub_that_is_none_is_refused_by_its_name(
    server: Hub, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    for act in (lambda: source.find("org/name"), lambda: hub.pull(names.parse("org/name"))):
        said = refused(Errno.EINVAL, act)
        assert said.startswith("HF_ENDPOINT is ")
        assert "\x1b" not in said


@pytest.mark.parametrize(
    ("proxy", "told"),
    [
        ("http://user:secret@127.0.0.1:9", "through the proxy http://127.0.0.1:9 that HTTP_PROXY names"),
        ("127.0.0.1:9", "through the proxy http://127.0.0.1:9 that HTTP_PROXY names"),
        (
            "socks5://127.0.0.1:9",
            "HTTP_PROXY names socks5://127.0.0.1:9, and only proxies of HTTP are spoken to",
        ),
    ],
)
def test_a_proxy_that_does_not_answer_is_named_without_its_password(
    server: Hub, monkeypatch: pytest.MonkeyPatch, proxy: str, told: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    said = refused(Errno.EAGAIN, lambda: hub.pull(names.parse("org/name")))
    assert told in said
    assert "secret" not in said


def test_a_cache_that_cannot_be_written_names_the_variable_that_moves_it(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.repository("org/name").commit({**SIDE, "model.safetensors": save({"a": np.zeros(9, np.float32)})})
    (tmp_path / "file").touch()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "file"))
    assert "HF_HUB_CACHE names another place" in refused(Errno.EIO, lambda: hub.pull(names.parse("org/name")))
    assert (tmp_path / "file").read_bytes() == b""
