"""A real MLflow server on loopback, and a proxy before it that behaves as bad networks do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

ANSWER_503 = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbusy"


def free_port() -> int:
    """A port on which nobody listens at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(folder: Path, database: Path) -> Generator[str]:
    """Run `mlflow server` with its database and artifacts in `folder`; gives its URI."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", str(folder / "artifacts"), "--serve-artifacts"]
    log = folder / "server.log"
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output, env=environment) as process:
        try:
            _await(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _await(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 90
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text(errors="replace")[-2000:]
        with suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return
        time.sleep(0.2)
    raise AssertionError(f"no server after 90 s:\n{log.read_text(errors='replace')[-2000:]}")


class Proxy:
    """Forwards bytes to a server, until it is told to `hang`, to answer `503`, or to `cut` answers in the middle."""

    def __init__(self, uri: str) -> None:
        self.upstream = ("127.0.0.1", int(uri.rpartition(":")[2]))
        self.mode = "pass"
        self.good_connections = 10**9
        """After so many it behaves as `mode` says."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[str] = []
        """What was asked, such as `POST /api/2.0/mlflow/runs/log-batch`."""
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop listening and drop every connection."""
        for connection in [self._listener, *self._open]:
            with suppress(OSError):
                connection.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """One request per connection, so that each is counted."""
        self.good_connections -= 1
        mode = self.mode if self.good_connections < 0 else "pass"
        with suppress(OSError):
            request = _read_request(client)
            self.requests.append(" ".join(request.partition(b"\r\n")[0].decode().split(" ")[:2]))
            if mode == "hang":
                return
            if mode == "503":
                client.sendall(ANSWER_503)
            else:
                answer = self._ask(request)
                client.sendall(answer[: len(answer) // 2] if mode == "cut" else answer)
            client.shutdown(socket.SHUT_RDWR)
            client.close()

    def _ask(self, request: bytes) -> bytes:
        head, _, body = request.partition(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
        with socket.create_connection(self.upstream) as server:
            server.sendall(b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n" + body)
            return b"".join(iter(lambda: server.recv(65536), b""))


def _read_request(client: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += client.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    left = int(headers.get(b"content-length", b"0")) - len(body)
    while left > 0:
        chunk = client.recv(65536)
        data, left = data + chunk, left - len(chunk)
    return data
