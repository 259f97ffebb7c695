"""A Hub on loopback: the endpoints that huggingface_hub asks, with the faults of real transfers."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LFS_FROM = 200
"""Bytes from which a file's ETag is its SHA-256, as for LFS files of the real Hub."""


@dataclass
class Hub:
    """What is served, and what goes wrong."""

    repos: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict[str, dict[str, dict[str, bytes]]])
    """`owner/name` (or `datasets/owner/name`) -> commit -> path -> content."""
    refs: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    gated: set[str] = field(default_factory=set[str])
    cut_after: int | None = None
    """Bytes after which each transfer is cut off."""
    corrupt: bool = False
    requests: list[tuple[str, str, str | None]] = field(default_factory=list[tuple[str, str, str | None]])
    """(method, path, Range) of everything that was asked."""
    tokens: list[str | None] = field(default_factory=list[str | None])
    url: str = ""

    def add(self, repo: str, files: dict[str, bytes], revision: str = "main") -> str:
        """Commit files; returns the commit."""
        digest = hashlib.sha1(repr(sorted(files.items())).encode())
        commit = digest.hexdigest()
        self.repos.setdefault(repo, {})[commit] = files
        self.refs.setdefault(repo, {})[revision] = commit
        return commit

    def transfers(self) -> list[tuple[str, str | None]]:
        """(path, Range) of every file that was asked for."""
        return [(path, span) for method, path, span in self.requests if method == "GET" and "/resolve/" in path]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        self.hub.tokens.append(self.headers.get("Authorization"))
        if path.startswith("api/"):
            self._api(path.removeprefix("api/"))
        else:
            self._resolve(path)

    def _api(self, path: str) -> None:
        if path.count("/") < 2:
            self._refuse(404, "EntryNotFound")
            return
        kind, owner, name, *rest = path.split("/")
        repo = f"{owner}/{name}" if kind == "models" else f"{kind}/{owner}/{name}"
        if (found := self._files(repo, rest[1] if len(rest) > 1 else "main")) is None:
            return
        commit, files = found
        if rest[:1] == ["tree"]:
            self._json([self._entry(path, content) for path, content in files.items()])
            return
        self._json({"id": repo, "modelId": repo, "sha": commit, "siblings": [{"rfilename": path} for path in files], "tags": []})

    def _entry(self, path: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        if len(content) >= LFS_FROM:
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return entry

    def _resolve(self, path: str) -> None:
        parts = path.split("/")
        start = 3 if parts[0] == "datasets" else 2
        repo, revision, name = "/".join(parts[:start]), parts[start + 1], "/".join(parts[start + 2 :])
        if (found := self._files(repo, revision)) is None:
            return
        commit, files = found
        if repo in self.hub.gated and not self.headers.get("Authorization"):
            self._refuse(401, "GatedRepo")
        elif name not in files:
            self._refuse(404, "EntryNotFound")
        else:
            self._send(commit, files[name])

    def _send(self, commit: str, content: bytes) -> None:
        digest = hashlib.sha256(content) if len(content) >= LFS_FROM else hashlib.sha1(content)
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        body = content[start:]
        if self.hub.corrupt:
            body = body[:-1] + bytes([body[-1] ^ 1])
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{digest.hexdigest()}"')
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            if self.hub.cut_after is not None and len(body) > self.hub.cut_after:
                self.wfile.write(body[: self.hub.cut_after])
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            self.wfile.write(body)

    def _files(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if repo not in self.hub.repos:
            self._refuse(401, "RepoNotFound")
            return None
        commit = self.hub.refs[repo].get(revision, revision)
        if commit not in self.hub.repos[repo]:
            self._refuse(404, "RevisionNotFound")
            return None
        return commit, self.hub.repos[repo][commit]

    def _json(self, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def serving() -> Generator[Hub]:
    """A running Hub with nothing in it."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
