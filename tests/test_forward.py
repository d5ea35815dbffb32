"""`runner dashboard` for a box elsewhere: a browser's bytes over the pinned link, and nobody else's."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tools
import wire
from test_https import Box, ask

from runner.laptop import addresses
from runner.laptop.addresses import Address

pytestmark = pytest.mark.long


class Laptop:
    """A computer that has added the box, with the command that carries its pages."""

    def __init__(self, home: Path, minted: dict[str, Any], **changed: Any) -> None:
        https = minted["https"]
        values = {
            "ssh": "nobody@box.invalid", "host": "127.0.0.1", "port": https["port"], "called": https["host"],
            "address": https["address"], "fingerprint": https["fingerprint"], "token": minted["token"],
            "token_id": minted["made"]["id"], **changed,
        }  # fmt: skip
        addresses.write(Address("tower", values))
        command = [sys.executable, "-P", "-m", "runner", "dashboard", "--no-open", "--box", "tower"]
        env = {**os.environ, "GPUBOX_WAY": "direct", "PYTHONPATH": str(tools.ROOT), "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()

    def ask(self, method: str, path: str, body: str | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        where = self.url.split("/")[2]
        line = http.client.HTTPConnection(where, timeout=20)
        try:
            line.request(method, path, body, headers)
            reply = line.getresponse()
            return reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read()
        finally:
            line.close()

    def sign_in(self) -> str:
        origin, _, code = self.url.replace("/sign-in", "").partition("#")
        status, headers, said = self.ask("POST", "/sign-in", code, Origin=origin)
        assert status == 204, said
        return headers["set-cookie"].partition(";")[0]

    def end(self) -> str:
        self.process.kill()
        said = self.process.communicate(timeout=20)[1]
        return said or ""


@pytest.fixture
def box() -> Iterator[tuple[Box, dict[str, Any]]]:
    with wire.place() as folder:
        made = Box(Path(folder))
        try:
            yield made, made.begin_and_mint()
        finally:
            made.end()


def test_a_box_elsewhere_is_seen_at_127_0_0_1(box: tuple[Box, dict[str, Any]], home: Path) -> None:
    laptop = Laptop(home, box[1])
    try:
        assert laptop.ask("GET", "/")[0] == 303
        cookie = laptop.sign_in()
        status, _, body = laptop.ask("GET", "/", Cookie=cookie)
        assert status == 200
        assert b"No NVIDIA driver found" in body
        assert laptop.ask("GET", "/api/v1/hello", Cookie=cookie)[0] == 200
        assert laptop.ask("GET", "/static/style.css")[0] == 200
        assert laptop.ask("GET", "/", Cookie=cookie, Host="evil.example")[0] == 421
        assert laptop.ask("GET", "/", Cookie=cookie, Host="127.0.0.1:1")[0] == 421
        assert ask(box[1], "DELETE", f"/tokens/{box[1]['made']['id']}")[0] == 200
        assert laptop.ask("GET", "/", Cookie=cookie)[0] == 303, "the session ends with its token"
    finally:
        laptop.end()


def test_what_shows_another_certificate_gets_nothing(box: tuple[Box, dict[str, Any]], home: Path) -> None:
    laptop = Laptop(home, box[1], fingerprint="0" * 64)
    assert laptop.process.wait(20) != 0
    assert laptop.url == ""
    assert "another certificate" in laptop.end()
