"""A server on 127.0.0.1 that plays the model hub, with a second one for the storage behind it.

Large files are answered with a redirect to the storage host, under a link that can expire; everything that
goes wrong on a network can be switched on.
"""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_LARGE = (".safetensors", ".bin")


@dataclass
class Seen:
    """One request as a server saw it."""

    host: str
    path: str
    authorization: str | None
    range: str | None


@dataclass
class FakeHub:
    """What the hub holds, how it misbehaves, and what it saw."""

    models: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    renamed: dict[str, str] = field(default_factory=dict)
    """Old names, from which the hub sends on to the new ones."""
    said_size: int | None = None
    """What the storage calls the size of a file when more than one byte is asked for; None for the truth."""
    token: str = "secret"
    ranges: bool = True
    break_after_bytes: list[int] = field(default_factory=list)
    """Of each coming long answer (over 100 kB), the bytes after which the connection is cut."""
    link_uses: int | None = None
    """How often a link to the storage works; None for ever."""
    storage_down: bool = False
    seen: list[Seen] = field(default_factory=list)
    bytes_sent: int = 0
    endpoint: str = ""
    storage: str = ""
    links: dict[str, int] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def paths(self, host: str) -> list[str]:
        return [one.path for one in self.seen if one.host == host]


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    servers = [
        _QuietServer(("127.0.0.1", 0), type(name, (_Handler,), {"hub": hub, "host_name": name}))
        for name in ("hub", "storage")
    ]
    hub.endpoint, hub.storage = (f"http://127.0.0.1:{one.server_address[1]}" for one in servers)
    threads = [Thread(target=one.serve_forever, args=(0.01,), daemon=True) for one in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for one in servers:
            one.shutdown()
            one.server_close()


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up in the middle is part of the play."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub
    host_name: str

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        hub = self.hub
        with hub.lock:
            hub.seen.append(
                Seen(self.host_name, self.path, self.headers.get("authorization"), self.headers.get("range"))
            )
        if self.host_name == "hub":
            self._as_hub()
        else:
            self._as_storage()

    def _as_hub(self) -> None:
        hub = self.hub
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^/]+)", self.path)
        if match is not None and match.group(1) in hub.renamed:
            new = self.path.replace(match.group(1), hub.renamed[match.group(1)], 1)
            return self._answer(307, {"location": new})
        if match is None or match.group(1) not in hub.models:
            return self._answer(401, {"x-error-code": "RepoNotFound"})
        hub_id, revision, name = match.groups()
        if hub_id in hub.gated and self.headers.get("authorization") != f"Bearer {hub.token}":
            status = 403 if "authorization" in self.headers else 401
            return self._answer(status, {"x-error-code": "GatedRepo"})
        if revision not in ("main", COMMIT):
            return self._answer(404, {"x-error-code": "RevisionNotFound"})
        path = hub.models[hub_id] / name
        if not path.is_file():
            return self._answer(404, {"x-error-code": "EntryNotFound"})
        headers = {"x-repo-commit": COMMIT}
        if not name.endswith(_LARGE):
            return self._answer(200, headers, path.read_bytes())
        with hub.lock:
            link = f"/{hub_id}/{name}?link={len(hub.links)}"
            hub.links[link] = 0
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        headers |= {"location": hub.storage + link, "x-linked-etag": f'"{sha256}"'}
        return self._answer(302, headers)

    def _as_storage(self) -> None:
        hub = self.hub
        with hub.lock:
            hub.links[self.path] = hub.links.get(self.path, 0) + 1
            expired = hub.link_uses is not None and hub.links[self.path] > hub.link_uses
        if hub.storage_down:
            return self._answer(503, {})
        if expired or "authorization" in self.headers:  # as storage hosts do with a second authorisation
            return self._answer(403, {})
        owner, model, name = self.path.partition("?")[0].strip("/").split("/")
        content = (hub.models[f"{owner}/{model}"] / name).read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        if wanted is None or not hub.ranges:
            return self._answer(200, {}, content, may_break=True)
        start, last = int(wanted.group(1)), min(int(wanted.group(2)), len(content) - 1)
        if start >= len(content):
            return self._answer(416, {})
        size = hub.said_size if hub.said_size is not None and last > start else len(content)
        headers = {"content-range": f"bytes {start}-{last}/{size}"}
        return self._answer(206, headers, content[start : last + 1], may_break=True)

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"", *, may_break: bool = False) -> None:
        self.send_response(status)
        for key, value in (headers | {"content-length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        with self.hub.lock:
            breaks = may_break and len(body) > 100_000 and self.hub.break_after_bytes
            cut = self.hub.break_after_bytes.pop(0) if breaks else len(body)
        try:
            for start in range(0, min(cut, len(body)), 1 << 16):
                piece = body[start : min(start + (1 << 16), cut)]
                self.wfile.write(piece)
                with self.hub.lock:
                    self.hub.bytes_sent += len(piece)
        except OSError:
            self.close_connection = True
        if cut < len(body):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_WR)
