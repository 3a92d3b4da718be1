"""A small Hugging Face hub on loopback, for tests: repositories in memory, with commits, tokens, and troubles to order.

It answers what clients ask of the real one (the listing of a commit with digests, HEAD and GET of `resolve`, ranges,
redirects of large files to a second origin, as to a CDN) and keeps a record of every request. huggingface_hub's own
client downloads from it too (test_hub.py), which shows that it speaks the hub's language.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Repository:
    """One model: commits (by their id, the files' bytes) and what branches are. Files in `large` are told by SHA-256."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    token: str = ""  # who has it may read; empty: everybody
    gated: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Add a commit of these files."""
        told = json.dumps({name: hashlib.sha1(data).hexdigest() for name, data in files.items()}) + branch
        commit = hashlib.sha1(told.encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.refs[branch] = commit
        return commit


@dataclass
class Asked:
    """A request that came."""

    method: str
    path: str
    headers: dict[str, str]
    host: str
    sent: int = 0  # bytes of the body that went out


@dataclass
class Trouble:
    """What goes wrong with the next `times` requests of files whose path contains `where`."""

    where: str
    status: int = 0  # answered instead
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int = -1  # bytes of the body, then the connection ends
    hold: threading.Event | None = None  # what is waited for before it ends
    times: int = 1


class Hub:
    """The server's state. `url` is its address, `cdn` the second one, which large files are redirected to."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.asked: list[Asked] = []
        self.troubles: list[Trouble] = []
        self.redirect_to = ""  # where large files are, if not at the hub itself
        self.listing_changes: dict[str, Any] = {}  # over the fields of a listing
        self.bare_listing = False  # without sizes and digests, as some mirrors have it
        self.url = self.cdn = ""
        self.most_at_once = 1 << 60  # bytes of one answer
        self.meet: threading.Barrier | None = None  # requests for files that wait for each other
        self.lock = threading.Lock()  # guards the following
        self.serving = self.most_served = 0  # files that are being given at the same time

    def repository(self, name: str) -> Repository:
        return self.repositories.setdefault(name, Repository())

    def fetched(self, name: str) -> list[Asked]:
        """The requests that brought bytes of a file."""
        return [one for one in self.asked if one.method == "GET" and one.path.endswith(name)]


def digest(name: str, data: bytes) -> tuple[str, bool]:
    """The etag of a file, and whether it is a large one."""
    if name.endswith((".safetensors", ".gguf", ".bin")):
        return hashlib.sha256(data).hexdigest(), True
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), False


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        at = urlsplit(self.path)
        self._this = Asked(self.command, at.path, dict(self.headers), self.headers.get("Host", ""))
        self.hub.asked.append(self._this)
        parts = [unquote(part) for part in at.path.strip("/").split("/")]
        if parts[:2] == ["api", "models"] and "revision" in parts:
            split = parts.index("revision")
            self._listing("/".join(parts[2:split]), "/".join(parts[split + 1 :]), parse_qs(at.query))
        elif parts[:2] == ["api", "models"] and "tree" in parts:
            split = parts.index("tree")
            self._tree("/".join(parts[2:split]), "/".join(parts[split + 1 :]))
        elif "resolve" in parts:
            split = parts.index("resolve")
            self._file("/".join(parts[:split]), parts[split + 1], "/".join(parts[split + 2 :]))
        elif parts[0] == "cdn":
            self._file("/".join(parts[1:-2]), parts[-2], parts[-1], cdn=True)
        else:
            self._say(404, b"")

    def _say(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, trouble: Trouble | None = None
    ) -> None:
        cut = trouble.cut_after if trouble is not None else -1
        self.send_response(status)
        more = headers or {}
        for name, value in more.items():
            self.send_header(name, value)
        if "Content-Length" not in more:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self._this.sent = len(body) if cut < 0 else min(cut, len(body))
        self.wfile.write(body[: self._this.sent])
        if 0 <= cut < len(body):
            self.wfile.flush()
            if trouble is not None and trouble.hold is not None:
                trouble.hold.wait(30.0)
            self.close_connection = True

    def _repository(self, name: str, revision: str) -> tuple[Repository, str] | None:
        """The repository and the commit, if they may be read; else the refusal is sent."""
        repository = self.hub.repositories.get(name)
        held = self.headers.get("Authorization", "")
        if held and repository is not None and repository.token and held != f"Bearer {repository.token}":
            message = {"X-Error-Message": "Invalid credentials in Authorization header"}
            self._say(401, b"", message)
            return None
        if repository is None or (repository.token and not held):
            if repository is not None and repository.gated:
                self._say(401, b"", {"X-Error-Code": "GatedRepo"})
            else:
                self._say(401 if not held else 404, b"", {"X-Error-Code": "RepoNotFound"})
            return None
        if repository.gated:
            self._say(403, b"", {"X-Error-Code": "GatedRepo"})
            return None
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            self._say(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return None
        return repository, commit

    def _troubled(self, path: str) -> Trouble | None:
        for trouble in self.hub.troubles:
            if trouble.where in path and trouble.times:
                trouble.times -= 1
                return trouble
        return None

    def _listing(self, name: str, revision: str, query: dict[str, list[str]]) -> None:
        trouble = self._troubled(self.path)
        if trouble is not None:
            self._say(trouble.status, b"", trouble.headers)
            return
        found = self._repository(name, revision)
        if found is None:
            return
        repository, commit = found
        siblings = []
        for path, data in repository.commits[commit].items():
            one: dict[str, Any] = {"rfilename": path}
            if "blobs" in query and not self.hub.bare_listing:
                etag, large = digest(path, data)
                one |= {"size": len(data), "blobId": etag[:40]}
                if large:
                    one["lfs"] = {"sha256": etag, "size": len(data), "pointerSize": 134}
            siblings.append(one)
        told = {"id": name, "modelId": name, "sha": commit, "private": False, "siblings": siblings, "tags": [],
                "downloads": 0, "likes": 0} | self.hub.listing_changes  # fmt: skip
        self._say(200, json.dumps(told).encode(), {"Content-Type": "application/json"})

    def _tree(self, name: str, revision: str) -> None:
        """The listing that huggingface_hub asks for."""
        found = self._repository(name, revision)
        if found is None:
            return
        entries = []
        for path, data in found[0].commits[found[1]].items():
            etag, large = digest(path, data)
            one: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": etag[:40]}
            if large:
                one["lfs"] = {"oid": etag, "size": len(data), "pointerSize": 134}
            entries.append(one)
        self._say(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str, revision: str, path: str, *, cdn: bool = False) -> None:
        if cdn:
            repository = self.hub.repositories[name]
            commit = revision
        else:
            found = self._repository(name, revision)
            if found is None:
                return
            repository, commit = found
        data = repository.commits[commit].get(path)
        if data is None:
            self._say(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        etag, large = digest(path, data)
        told = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        trouble = self._troubled(path) if self.command == "GET" else None
        if trouble is not None and trouble.status:
            self._say(trouble.status, b"", trouble.headers)
            return
        if large and self.hub.redirect_to and not cdn:
            told |= {
                "Location": f"{self.hub.redirect_to}/cdn/{name}/{commit}/{path}",
                "X-Linked-Etag": f'"{etag}"',
                "X-Linked-Size": str(len(data)),
            }
            self._say(302, b"", told)
            return
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes=") and self.command == "GET":
            begin, last = wanted.removeprefix("bytes=").split("-")
            first, end = int(begin), min(int(last) + 1, len(data)) if last else len(data)
            if first >= len(data):
                self._say(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            told["Content-Range"] = f"bytes {first}-{end - 1}/{len(data)}"
            if not self._too_large(end - first):
                self._say(206, data[first:end], told, trouble)
            return
        if self.command == "HEAD":
            told["Content-Length"] = str(len(data))
        elif self._too_large(len(data)):
            return
        with self._counted():
            self._say(200, data, told, trouble)

    def _too_large(self, size: int) -> bool:
        """The bridge of the Xet storage refuses what it would have to give in one large answer."""
        if size > self.hub.most_at_once:
            self._say(400, b"")
        return size > self.hub.most_at_once

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """While a body goes out; with `meet`, not before so many are under way."""
        with self.hub.lock:
            self.hub.serving += 1
            self.hub.most_served = max(self.hub.most_served, self.hub.serving)
        try:
            if self.command == "GET" and self.hub.meet is not None:
                self.hub.meet.wait(60.0)
            yield
        finally:
            with self.hub.lock:
                self.hub.serving -= 1


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes in mid-answer is what some tests are about; anything else is told."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextmanager
def served() -> Iterator[Hub]:
    """A hub that answers at `url` (127.0.0.1) and at `cdn` (another port) until the block ends."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    servers = [_Server(("127.0.0.1", 0), handler) for _ in range(2)]
    threads = [threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}) for server in servers]
    for server, thread in zip(servers, threads, strict=True):
        server.daemon_threads = True
        thread.start()
    hub.url, hub.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    try:
        yield hub
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()
