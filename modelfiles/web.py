"""One HTTP request to the hub, with the care that its answer deserves: which server is asked, which one gets the token,
for how long.

A redirect is followed by hand: the token goes to the hub's own scheme, host and port and nowhere else; from https only to
https; and a hub on the internet cannot send us to an address of this machine or of its network (SSRF), which is checked
on the address of the connection itself. The environment's proxies are used as urllib does (then the proxy connects, and
its address is not checked).
"""

from __future__ import annotations

import http.client
import importlib
import ipaddress
import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from email.message import Message
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import SplitResult, urljoin, urlsplit
from urllib.request import (
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    Request,
    build_opener,
    getproxies,
    proxy_bypass,
)

from llmasos.modelfiles.files import shown
from llmasos.syscalls.errno import Errno, SyscallError

STALL_SECONDS = 10.0  # without a byte, or to connect
_MOST_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_AGENT = "llmasos"


class Cut(Exception):
    """The connection could not be made, or ended early; another try may do better."""


class Reply:
    """A response: its status, headers and bytes."""

    def __init__(self, url: str, status: int, headers: Message, body: IO[bytes], line: socket.socket | None) -> None:
        self.url, self.status, self.headers, self._body, self._line = url, status, headers, body, line

    def read(self, most: int) -> bytes:
        """Up to `most` bytes; empty at the end. Raises Cut."""
        try:
            return self._body.read(most)
        except (http.client.HTTPException, OSError, ValueError) as error:
            raise Cut(_said(error)) from None

    def cut(self) -> None:
        """End the connection, from any thread: a reader gets its end."""
        if self._line is not None:
            with suppress(OSError):  # it has ended by itself; and of TLS only the line is cut, which a reader holds
                socket.socket.shutdown(self._line, socket.SHUT_RDWR)

    def header(self, name: str) -> str:
        return str(self.headers.get(name) or "").strip()


@contextmanager
def request(
    url: str,
    *,
    method: str = "GET",
    token: str = "",
    headers: Mapping[str, str] | None = None,
    redirects: bool = True,
) -> Iterator[Reply]:
    """Send a request. Any status is a reply. Raises Cut, EPERM for a redirect that is not followed."""
    home = _origin(urlsplit(url))
    outer: bool | None = None  # whether the hub itself is on the internet; None: unknown, behind a proxy
    for _ in range(_MOST_REDIRECTS + 1):
        sent = {"User-Agent": _AGENT, "Accept-Encoding": "identity", **(headers or {})}
        at = _origin(urlsplit(url))
        if token and at == home:
            sent["Authorization"] = f"Bearer {token}"
        peers: list[str] = []
        reply = _open(Request(url, headers=sent, method=method), peers, outer is True and at != home)
        if outer is None and peers:
            outer = _is_global(peers[0])
        target = reply.header("Location")
        if not redirects or reply.status not in _REDIRECTS or not target:
            try:
                yield reply
            finally:
                reply._body.close()
            return
        reply._body.close()
        url = _followed(url, target)
    raise SyscallError(Errno.EIO, f"{home[1]} redirects more than {_MOST_REDIRECTS} times; try again later")


def _followed(url: str, target: str) -> str:
    then = urlsplit(url)
    try:
        now = urlsplit(urljoin(url, target))
        _origin(now)
    except ValueError:
        raise SyscallError(Errno.EPERM, f"{then.hostname} redirects to {target[:80]!r}, no address") from None
    if now.scheme not in ("http", "https") or (then.scheme == "https" and now.scheme != "https"):
        raise SyscallError(
            Errno.EPERM, f"{then.hostname} redirects to {now.scheme}: after {then.scheme}:, which is refused"
        )
    if now.username or not now.hostname:
        raise SyscallError(Errno.EPERM, f"{then.hostname} redirects to an address with no host or with a user")
    return now.geturl()


def _origin(url: SplitResult) -> tuple[str, str, int]:
    return url.scheme, url.hostname or "", url.port or (443 if url.scheme == "https" else 80)


def _is_global(address: str) -> bool:
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None)
    return bool((mapped or found).is_global)


def _open(asked: Request, peers: list[str], guarded: bool) -> Reply:
    """One request without redirects. Adds the peer's address to `peers`; with `guarded` it must be a global one."""
    scheme = asked.type  # a proxy's takes its place
    proxied = scheme in getproxies() and not proxy_bypass(asked.host)
    lines: list[socket.socket] = []

    def made(connection: http.client.HTTPConnection) -> None:
        if not isinstance(connection.sock, socket.socket):
            return
        lines.append(connection.sock)
        if proxied:
            return
        peers.append(str(connection.sock.getpeername()[0]))
        if guarded and not _is_global(peers[-1]):
            connection.close()
            raise SyscallError(
                Errno.EPERM,
                f"the hub redirects to {connection.host} ({peers[-1]}), an address inside this network; refused",
            )

    try:
        opened = _opener(made).open(asked, timeout=STALL_SECONDS)
    except HTTPError as error:
        return Reply(asked.full_url, error.code, error.headers, error, lines[-1] if lines else None)
    except (URLError, http.client.HTTPException, OSError, ValueError) as error:
        said = _said(getattr(error, "reason", None) or error)
        raise Cut(f"{said}{_through(scheme) if proxied else ''}") from None
    return Reply(asked.full_url, opened.status, opened.headers, opened, lines[-1] if lines else None)


def _through(scheme: str) -> str:
    """The proxy that the environment names, without the password that its address may contain."""
    address = getproxies()[scheme]
    with suppress(ValueError):
        apart = urlsplit(address if "://" in address else f"http://{address}")
        address = f"{apart.scheme}://{apart.netloc.rpartition('@')[2]}"
        if apart.scheme not in ("http", "https"):
            return f"; {scheme.upper()}_PROXY names {shown(address)}, and only proxies of HTTP are spoken to"
        return f", through the proxy {shown(address)} that {scheme.upper()}_PROXY names"
    return f", through the proxy that {scheme.upper()}_PROXY names, which is no address"


def _said(error: object) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing came for {STALL_SECONDS:g} s"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection ended early"
    if isinstance(error, socket.gaierror):
        return "the name of the hub is not known here; is there a network?"
    return str(error).splitlines()[0] if str(error).strip() else type(error).__name__


class _Stay(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _opener(made: Any) -> OpenerDirector:
    class Plain(http.client.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            made(self)

    class Secure(http.client.HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            made(self)

    class PlainHandler(HTTPHandler):
        def http_open(self, req: Request) -> Any:
            return self.do_open(Plain, req)

    class SecureHandler(HTTPSHandler):
        def https_open(self, req: Request) -> Any:
            return self.do_open(Secure, req, context=_trust())

    return build_opener(_Stay, PlainHandler, SecureHandler)


def _trust() -> ssl.SSLContext:
    """The trusted certificates: those that the environment names, the system's, else certifi's if it is installed."""
    named = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    context = ssl.create_default_context(cafile=named or None)
    if not named and not context.cert_store_stats()["x509_ca"] and not os.environ.get("SSL_CERT_DIR"):
        try:
            certifi = importlib.import_module("certifi")  # comes with other packages, and is not required
        except ImportError:
            return context
        context.load_verify_locations(certifi.where())
    return context
