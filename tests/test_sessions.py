"""A browser's way in: codes, cookies, and what they open; time is an argument."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import ADMIN, ANN, a_hall

from runner import errors
from runner.box import auth, sessions
from runner.box.auth import Members, browser, visitor
from runner.box.sessions import Sessions, cookie_name, shown
from runner.box.tokens import Tokens
from runner.model import Principal

HOST = (b"host", b"127.0.0.1:7480")
SITE = (b"sec-fetch-site", b"same-origin")


def test_a_code_works_once() -> None:
    known = Sessions()
    code = known.invite(ANN, 7480, now=0.0)
    cookie = known.enter(code, now=1.0)
    assert known.holder(cookie, now=2.0) == ANN
    with pytest.raises(errors.NotTrusted):
        known.enter(code, now=1.0)


def test_a_code_works_for_a_minute() -> None:
    known = Sessions()
    code = known.invite(ANN, 7480, now=0.0)
    with pytest.raises(errors.NotTrusted, match="older than a minute"):
        known.enter(code, now=60.0)


def test_a_session_ends_after_a_week_or_when_somebody_signs_out() -> None:
    known = Sessions()
    one, other = (known.enter(known.invite(ANN, 0, now=0.0), now=0.0) for _ in range(2))
    known.leave(other)
    assert known.holder(one, now=sessions.SESSION_SECONDS - 1) == ANN
    for cookie, now in ((one, sessions.SESSION_SECONDS), (other, 1.0), ("", 1.0), (one[:-1], 1.0)):
        with pytest.raises(errors.NotTrusted):
            known.holder(cookie, now)


def test_what_nobody_uses_makes_room() -> None:
    known = Sessions()
    codes = [known.invite(ANN, 0, now=0.0) for _ in range(sessions.CODES_MAX + 1)]
    with pytest.raises(errors.NotTrusted):
        known.enter(codes[0], now=1.0)
    assert known.enter(codes[-1], now=1.0)


def test_ports_count_while_somebody_may_come_from_them() -> None:
    known = Sessions()
    code = known.invite(ANN, 40123, now=0.0)
    assert known.ports(now=59.0) == {40123}
    assert known.ports(now=61.0) == set()
    known.enter(known.invite(ANN, 40124, now=0.0), now=1.0)
    assert known.ports(now=61.0) == {40124}
    assert code


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([HOST, (b"cookie", b"gpubox-7480=abc")], "abc"),
        ([HOST, (b"cookie", b"a=b; gpubox-7480=abc; c=d")], "abc"),
        ([HOST, (b"cookie", b"gpubox-7481=abc")], ""),
        ([HOST, (b"cookie", b"gpubox-7480=abc; gpubox-7480=def")], ""),
        ([HOST, (b"cookie", b"gpubox-7480=abc"), (b"cookie", b"gpubox-7480=def")], ""),
        ([HOST], ""),
        ([(b"cookie", b"gpubox=abc")], "abc"),
    ],
)
def test_a_cookie_is_that_of_the_port(headers: list[tuple[bytes, bytes]], found: str) -> None:
    assert shown(headers) == found


def test_two_boxes_at_once_have_two_cookies() -> None:
    assert cookie_name([HOST]) != cookie_name([(b"host", b"127.0.0.1:7481")])


# --- at the gate ---


def at_the_gate(gate: Members, cookie: str, method: str = "GET", *more: tuple[bytes, bytes]) -> Principal:
    headers = [HOST, (b"cookie", f"gpubox-7480={cookie}".encode()), *more]
    return gate.admit({"client": browser(("127.0.0.1", 5)), "method": method, "headers": headers})


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Members]:
    monkeypatch.setattr(auth, "_groups", lambda uid: {"gpubox"} if uid == ANN.uid else set())
    monkeypatch.setattr(auth, "user_name", lambda uid: {ANN.uid: "ann", 0: "root"}.get(uid, str(uid)))
    with a_hall(tmp_path / "state") as hall:
        yield Members(Tokens(hall.store))


def signed_in(gate: Members, who: Principal = ANN) -> str:
    return gate.sessions.enter(gate.sessions.invite(who, 7480, time.time()), time.time())


def test_who_shows_a_cookie_acts_as_who_asked_for_the_code(gate: Members) -> None:
    who = at_the_gate(gate, signed_in(gate))
    assert (who.uid, who.role) == (ANN.uid, "submit")


def test_a_session_gives_no_more_than_its_owner_has_now(gate: Members, monkeypatch: pytest.MonkeyPatch) -> None:
    assert at_the_gate(gate, signed_in(gate, Principal(ANN.uid, "ann", "admin"))).role == "submit"
    cookie = signed_in(gate)
    monkeypatch.setattr(auth, "_groups", lambda uid: set())
    with pytest.raises(errors.Refused):
        at_the_gate(gate, cookie)


def test_a_session_is_not_inherited_by_who_gets_the_number_of_its_owner(
    gate: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    cookie = signed_in(gate)
    monkeypatch.setattr(auth, "user_name", lambda uid: "bert")
    with pytest.raises(errors.NotTrusted, match="is not there any more"):
        at_the_gate(gate, cookie)


def test_a_browser_has_to_say_from_which_page_it_changes_something(gate: Members) -> None:
    cookie = signed_in(gate)
    with pytest.raises(errors.Refused, match="from which page"):
        at_the_gate(gate, cookie, "POST")
    assert at_the_gate(gate, cookie, "POST", SITE).role == "submit"
    assert at_the_gate(gate, cookie, "POST", (b"origin", b"http://127.0.0.1:7480")).role == "submit"


def test_a_session_ends_with_the_token_that_asked_for_it(gate: Members) -> None:
    assert gate.tokens is not None
    text, token = gate.tokens.mint(ANN, "submit", "", None, time.time())
    cookie = signed_in(gate, Principal(ANN.uid, "ann", "submit", token.id))
    assert at_the_gate(gate, cookie).token == token.id
    gate.tokens.revoke(ADMIN, token.id, time.time())
    with pytest.raises(errors.NotTrusted, match="revoked"):
        at_the_gate(gate, cookie)
    assert text


def test_over_the_network_a_cookie_does_as_well_as_a_token(gate: Members) -> None:
    cookie = signed_in(gate)
    headers = [HOST, (b"cookie", f"gpubox-7480={cookie}".encode())]
    scope = {"client": visitor(("192.0.2.7", 5)), "method": "GET", "headers": headers}
    assert gate.admit(scope).uid == ANN.uid
    with pytest.raises(errors.NotTrusted):  # who shows a token is judged by that
        gate.admit({**scope, "headers": [*headers, (b"authorization", b"Bearer gpubox_x_y")]})


def test_the_dashboards_own_port_takes_no_tokens(gate: Members) -> None:
    assert gate.tokens is not None
    text, _ = gate.tokens.mint(ANN, "submit", "", None, time.time())
    headers = [HOST, (b"authorization", f"Bearer {text}".encode())]
    with pytest.raises(errors.NotTrusted):
        gate.admit({"client": browser(("127.0.0.1", 5)), "method": "GET", "headers": headers})
