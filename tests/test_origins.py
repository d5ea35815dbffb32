"""Host and Origin: under which name, and from which page. A row is a request; the table says what becomes of it."""

from __future__ import annotations

import pytest

from runner.box.origins import check, check_page, own_names, said_same_site
from runner.errors import Misdirected, Refused

NAMES = ["gpubox", "gpubox.local", "attic", "attic.local", "box.example.org"]


def ask(*headers: tuple[str, str], address: str = "192.168.1.5", port: int = 7443) -> None:
    check([(name.encode(), value.encode()) for name, value in headers], NAMES, address, port)


@pytest.mark.parametrize(
    "host",
    [
        "gpubox:7443", "gpubox.local:7443", "GPUBOX.Local:7443", "attic:7443", "box.example.org:7443",
        "192.168.1.5:7443", "localhost:7443", "127.0.0.1:7443", "[::1]:7443",
    ],
)  # fmt: skip
def test_the_box_answers_to_its_names(host: str) -> None:
    ask(("host", host))


@pytest.mark.parametrize(
    "host",
    [
        "evil.com", "evil.com:7443", "gpubox.evil.com:7443", "evil-gpubox:7443", "localhost.evil.com:7443",
        "127.0.0.1.nip.io:7443", "192.168.1.5.nip.io:7443", "192.168.1.6:7443", "gpubox.local.:7443", "gpubox.:7443",
        "gpubox", "gpubox:", "gpubox:443", "gpubox:7444", "gpubox:07443", "gpubox:7443:7443", "gpubox:7443x", "",
        ":7443",
        "gpubox:7443, evil.com", "gpubox:7443 ", "me@gpubox:7443", "gpubox:7443/..", "[::2]:7443", "::1:7443",
        "[::1]", "[gpubox]:7443", "[gpubox:7443", "*:7443", "0.0.0.0:7443", "0x7f.1:7443", "127.1:7443",
        "2130706433:7443",
    ],
)  # fmt: skip
def test_and_to_no_other(host: str) -> None:
    with pytest.raises(Misdirected):
        ask(("host", host))


def test_a_request_names_exactly_one_host() -> None:
    with pytest.raises(Misdirected):
        ask()
    with pytest.raises(Misdirected):
        ask(("host", "gpubox:7443"), ("host", "gpubox:7443"))


def test_the_usual_port_need_not_be_said() -> None:
    ask(("host", "gpubox"), port=443)
    ask(("host", "gpubox:443"), port=443)
    with pytest.raises(Misdirected):
        ask(("host", "gpubox:"), port=443)


def test_an_address_is_right_where_the_connection_came_in() -> None:
    ask(("host", "[fd00::5]:7443"), address="fd00::5")
    ask(("host", "[fe80::5]:7443"), address="fe80::5%eth0")
    ask(("host", "10.0.0.1:7443"), address="::ffff:10.0.0.1")
    with pytest.raises(Misdirected):
        ask(("host", "10.0.0.1:7443"), address="::ffff:10.0.0.2")


OURS = "https://gpubox:7443"


@pytest.mark.parametrize(
    ("origin", "site", "right"),
    [
        (None, None, True), (None, "none", True), (None, "same-origin", True), (None, "same-site", False),
        (None, "cross-site", False), (None, "", False), (None, "same-origin, none", False),
        (OURS, None, True), (OURS, "none", True), (OURS, "same-origin", True), (OURS, "same-site", False),
        (OURS, "cross-site", False), ("https://GPUBOX:7443", "same-origin", True),
        ("null", None, False), ("null", "same-origin", False), ("", None, False), ("https://evil.com", None, False),
        ("https://evil.com", "same-origin", False), ("http://gpubox:7443", None, False),
        ("https://gpubox", None, False),
        ("https://gpubox:7444", None, False), ("https://gpubox:7443.evil.com", None, False),
        ("https://gpubox:7443/", None, False), ("https://attic:7443", None, False), ("file://", None, False),
    ],
)  # fmt: skip
def test_pages_of_other_sites_are_refused(origin: str | None, site: str | None, right: bool) -> None:
    sent = [("host", "gpubox:7443")]
    sent += [("origin", origin)] if origin is not None else []
    sent += [("sec-fetch-site", site)] if site is not None else []
    if right:
        ask(*sent)
    else:
        with pytest.raises(Refused, match="a page of another site"):
            ask(*sent)


def test_two_origins_are_none() -> None:
    with pytest.raises(Refused):
        ask(("host", "gpubox:7443"), ("origin", OURS), ("origin", OURS))


def test_the_names_are_the_hosts_own_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Tower.example.org")
    names = own_names("attic", "box.example.org, 203.0.113.7,, b*d ,")
    assert names == [
        "tower", "tower.local", "tower.example.org", "attic", "attic.local", "box.example.org", "203.0.113.7",
    ]  # fmt: skip


# --- a browser's own port ---


def page(*headers: tuple[str, str], port: int = 7480) -> None:
    check_page([(name.encode(), value.encode()) for name, value in headers], port)


def test_a_page_is_at_its_own_address_and_nowhere_else() -> None:
    page(("host", "127.0.0.1:7480"))
    page(("host", "127.0.0.1:7480"), ("origin", "http://127.0.0.1:7480"), ("sec-fetch-site", "same-origin"))
    for host in ("evil.example:7480", "localhost:7480", "127.0.0.1:7481", "127.0.0.1", "[::1]:7480", ""):
        with pytest.raises(Misdirected):
            page(("host", host))
    with pytest.raises(Misdirected):
        page()


@pytest.mark.parametrize("origin", ["https://127.0.0.1:7480", "http://127.0.0.1:7481", "http://evil.example", "null"])
def test_another_page_of_the_same_computer_is_another_page(origin: str) -> None:
    with pytest.raises(Refused):
        page(("host", "127.0.0.1:7480"), ("origin", origin))
    for site in ("same-site", "cross-site"):
        with pytest.raises(Refused):
            page(("host", "127.0.0.1:7480"), ("sec-fetch-site", site))


def test_over_the_network_only_ports_that_were_told_lead_here() -> None:
    def over(host: str, origin: str) -> None:
        headers = [(b"host", host.encode()), (b"origin", origin.encode())]
        check(headers, NAMES, "192.168.1.5", 7443, {40123})

    over("127.0.0.1:40123", "http://127.0.0.1:40123")
    over("gpubox:7443", "https://gpubox:7443")
    with pytest.raises(Misdirected):
        over("127.0.0.1:40124", "http://127.0.0.1:40124")
    with pytest.raises(Misdirected):
        over("evil.example:40123", "http://evil.example:40123")
    with pytest.raises(Refused):
        over("127.0.0.1:40123", "https://gpubox:7443")
    with pytest.raises(Refused):
        over("gpubox:7443", "http://127.0.0.1:40123")


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ([], False),
        ([(b"sec-fetch-site", b"none")], False),
        ([(b"sec-fetch-site", b"same-origin")], True),
        ([(b"origin", b"http://127.0.0.1:7480")], True),
    ],
)
def test_what_changes_something_says_from_which_page_it_comes(headers: list[tuple[bytes, bytes]], said: bool) -> None:
    assert said_same_site(headers) is said
