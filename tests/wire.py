"""A daemon of one's own, asked over its socket with plain bytes: what the API says, not what a client makes of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tools

from runner import paths, words

HELLO = ["sh", "-c", "echo hi"]


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """One connection, one request at a time."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        try:
            self.socket.connect(path)
        except OSError:
            self.socket.close()
            raise
        self.file = self.socket.makefile("rb")

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()

    def send(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        said = {"Host": "box", "Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
        lines = "".join(f"{name}: {value}\r\n" for name, value in said.items())
        self.socket.sendall(f"{method} /api/v1{path} HTTP/1.1\r\n{lines}\r\n".encode() + body)

    def head(self) -> tuple[int, dict[str, str]]:
        status = int(self.file.readline().split()[1])
        headers = {}
        while (line := self.file.readline().decode().strip()) != "":
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return status, headers

    def pieces(self) -> Iterator[bytes]:
        """The chunks of a streamed body."""
        while size := int(self.file.readline(), 16):
            yield self.file.read(size)
            self.file.readline()
        self.file.readline()

    def reply(self) -> Reply:
        status, headers = self.head()
        if "chunked" in headers.get("transfer-encoding", ""):
            return Reply(status, headers, b"".join(self.pieces()))
        return Reply(status, headers, self.file.read(int(headers.get("content-length", 0))))


class Box(tools.Box):
    """`python -m runner.box` with settings of its own, of no interest to the person who runs the tests."""

    def __init__(self, place: Path, *options: str, **settings: str) -> None:
        super().__init__(place / "state")
        self.options = options
        kept = {name: os.environ[name] for name in ("PATH", "TMPDIR", "LANG") if name in os.environ}
        own = {"HOME": str(place), "GPUBOX_STATE": str(self.state), "PYTHONPATH": str(tools.ROOT)}
        self.env = {**kept, **own, **{f"GPUBOX_{name.upper()}": value for name, value in settings.items()}}
        self.socket = paths.api_socket(self.state)

    def start(self) -> None:
        self.begin()
        tools.wait_until(self.listens, 20, self.story)

    def begin(self) -> subprocess.Popen[bytes]:
        """Start it, and don't wait until it is ready."""
        with open(f"{self.state}.out", "ab") as out:
            command = [sys.executable, "-P", "-m", "runner.box", *self.options]
            self.daemon = subprocess.Popen(command, env=self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        return self.daemon

    def listens(self) -> bool:
        assert self.daemon is not None, "it is started first"
        if self.daemon.poll() is not None:
            raise AssertionError(f"the daemon ended with {self.daemon.returncode}\n{self.story()}")
        try:
            return self.ask("GET", "/hello").status == 200
        except (FileNotFoundError, ConnectionError, IndexError):
            return False

    def ask(self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> Reply:
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        with Wire(self.socket) as wire:
            wire.send(method, path, data, headers)
            return wire.reply()

    def get(self, path: str) -> Any:
        reply = self.ask("GET", path)
        assert reply.status == 200, reply
        return reply.json()

    def post(self, path: str, body: object = None, **headers: str) -> Any:
        reply = self.ask("POST", path, {} if body is None else body, headers)
        assert reply.status in (200, 201), reply
        return reply.json()

    def submit(self, command: list[str], **more: Any) -> int:
        """`held` and `array` are the submission's, the rest the spec's."""
        outer = {name: more.pop(name) for name in ("held", "array", "sweep") if name in more}
        return int(self.post("/jobs", {"spec": {"command": command, **more}, **outer})["id"])

    def state_of(self, job_id: int) -> str:
        return str(self.get(f"/jobs/{job_id}")["job"]["state"])

    def ended(self, job_id: int) -> Any:
        tools.wait_until(lambda: self.state_of(job_id) in words.FINISHED, 20, self.story)
        return self.get(f"/jobs/{job_id}")["job"]


def place() -> tempfile.TemporaryDirectory[str]:
    """A folder with a short name: a socket's path may be 100 bytes long."""
    return tempfile.TemporaryDirectory(prefix="box-", ignore_cleanup_errors=True)
