"""A browser that comes over the network: the pages on the box's HTTPS port, with a typed code, and links for others."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wire


class Phone:
    """Somebody in the box's network, who has met its certificate."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.cookie = ""
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname, self.context.verify_mode = False, ssl.CERT_NONE

    def ask(self, method: str, path: str, body: str | None = None, **headers: str) -> tuple[int, dict[str, str], str]:
        line = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=20, context=self.context)
        said = {"Cookie": self.cookie} if self.cookie else {}
        try:
            line.request(method, path, body, said | {name.replace("_", "-"): text for name, text in headers.items()})
            reply = line.getresponse()
            return reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read().decode()
        finally:
            line.close()

    def sign_in(self, code: str) -> tuple[int, dict[str, str], str]:
        status, headers, body = self.ask("POST", "/sign-in", code, Origin=f"https://127.0.0.1:{self.port}")
        self.cookie = headers.get("set-cookie", "").partition(";")[0]
        return status, headers, body


@pytest.fixture(scope="module")
def box() -> Iterator[wire.Box]:
    with wire.place() as folder:
        ours = wire.Box(Path(folder), https="127.0.0.1:0")
        try:
            ours.start()
            yield ours
        finally:
            ours.end()


def invited(box: wire.Box, **wish: Any) -> tuple[Phone, Any]:
    made = box.post("/dashboard", {"network": True, **wish})
    return Phone(int(made["urls"][0].rpartition(":")[2])), made


def test_a_phone_signs_in_with_a_code_that_was_typed(box: wire.Box) -> None:
    phone, made = invited(box)
    assert made["port"] == 0
    assert all(url.startswith("https://") for url in made["urls"])
    assert phone.ask("GET", "/")[0] == 303
    status, headers, _ = phone.sign_in(made["code"].upper())
    assert status == 204
    assert "secure" in headers["set-cookie"].lower()
    status, headers, body = phone.ask("GET", "/")
    assert (status, "Overview" in body) == (200, True)
    assert "default-src 'none'" in headers["content-security-policy"]
    assert phone.sign_in(made["code"])[0] == 401, "once"


def test_the_way_in_says_which_certificate_the_box_has(box: wire.Box) -> None:
    phone, made = invited(box)
    shown = ":".join(made["fingerprint"][at : at + 2] for at in range(0, 64, 2)).upper()
    assert shown in phone.ask("GET", "/sign-in")[2]
    said = box.call("dashboard", "--phone")
    assert shown in said.stderr
    assert said.stdout.startswith("https://")
    assert "#" in said.stdout


def test_a_link_in_a_page_of_somebody_else_leads_to_the_way_in_and_no_further(box: wire.Box) -> None:
    phone, made = invited(box, share=True)
    led = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    assert phone.ask("GET", "/sign-in", **led)[0] == 200
    assert phone.ask("POST", "/sign-in", made["code"], **led)[0] == 403
    assert phone.sign_in(made["code"])[0] == 204
    assert phone.ask("GET", "/", **led)[0] == 403
    assert phone.ask("GET", "/sign-in", Host="evil.example")[0] == 421


def test_a_cookie_is_not_taken_from_another_site(box: wire.Box) -> None:
    phone, made = invited(box)
    assert phone.sign_in(made["code"])[0] == 204
    for headers in ({"Origin": "https://evil.example"}, {"Sec_Fetch_Site": "cross-site"}, {}):
        assert phone.ask("POST", "/api/v1/jobs/cancel", "{}", Content_Type="application/json", **headers)[0] == 403


def test_a_link_over_the_network_only_looks(box: wire.Box) -> None:
    printed = box.call("dashboard", "--share", "--for", "2h", "--label", "anna")
    link = printed.stdout.splitlines()[0]
    phone = Phone(int(link.partition("/sign-in")[0].rpartition(":")[2]))
    assert phone.sign_in(link.partition("#")[2])[0] == 204
    assert phone.ask("GET", "/")[0] == 200
    assert phone.ask("GET", "/jobs")[0] == 403
    listed = box.run("dashboard", "--shares")
    (line,) = [each for each in listed.splitlines() if each.endswith("anna")]
    named = line.split()[0]
    assert f"--unshare {named}" in printed.stderr
    assert box.call("dashboard", "--unshare", named).returncode == 0
    assert phone.ask("GET", "/")[0] == 303
    assert named not in box.run("dashboard", "--shares")


@pytest.mark.parametrize(
    "typed", [["--phone", "--share"], ["--for", "2h"], ["--label", "x"], ["--share", "--for", "1s"]]
)
def test_what_does_not_go_together_is_told(box: wire.Box, typed: list[str]) -> None:
    assert box.call("dashboard", *typed).returncode == 64
