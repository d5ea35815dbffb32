"""A browser's way in: codes, cookies, and what they open; time is an argument."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import ADMIN, ANN, BOB, a_hall

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
    with pytest.raises(errors.NotTrusted, match="too old"):
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


# --- phones, and links for others ---


def test_a_code_for_a_phone_can_be_typed() -> None:
    known = Sessions()
    code = known.invite_phone(ANN, now=0.0)
    assert re.fullmatch(r"([2-9a-z]{4}-){2}[2-9a-z]{4}", code)
    assert not set(code) & set("01ilo")
    assert known.holder(known.enter(code.upper(), now=299.0), now=300.0) == ANN
    late = known.invite_phone(ANN, now=0.0)
    with pytest.raises(errors.NotTrusted):
        known.enter(late, now=300.0)


def test_a_link_only_looks_until_it_is_over_or_revoked() -> None:
    known = Sessions()
    (one, share), (other, gone) = (known.share(ADMIN, 0, "anna", 7200.0, now=0.0) for _ in range(2))
    cookie, lost = known.enter(one, now=10.0), known.enter(other, now=10.0)
    who = known.holder(cookie, now=11.0)
    assert (who.uid, who.role, who.share) == (ADMIN.uid, "read", share.id)
    assert [(each.id, each.opened_at) for each in known.shares(ADMIN, now=20.0)] == [(share.id, 10.0), (gone.id, 10.0)]
    assert known.shares(BOB, now=20.0) == []
    with pytest.raises(errors.NotFound):
        known.unshare(BOB, gone.id, now=20.0)
    known.unshare(ADMIN, gone.id, now=20.0)
    for shown_, now in ((lost, 21.0), (cookie, 7200.0)):
        with pytest.raises(errors.NotTrusted):
            known.holder(shown_, now)
    assert known.seconds(cookie, now=200.0) == 7000.0
    assert known.shares(ADMIN, now=7200.0) == []


def test_a_link_that_was_revoked_is_not_opened_any_more() -> None:
    known = Sessions()
    code, share = known.share(ANN, 0, "", 7200.0, now=0.0)
    known.unshare(ANN, share.id, now=1.0)
    with pytest.raises(errors.NotTrusted):
        known.enter(code, now=2.0)
    late, _ = known.share(ANN, 0, "", 9 * 86400.0, now=0.0)
    with pytest.raises(errors.NotTrusted):
        known.enter(late, now=sessions.LINK_SECONDS)


@pytest.mark.parametrize(
    ("label", "seconds"), [("", 1.0), ("", 1e9), ("", float("nan")), ("x" * 101, 60.0), ("\n", 60.0)]
)
def test_a_link_has_an_end_and_a_short_label(label: str, seconds: float) -> None:
    with pytest.raises(errors.BadRequest):
        Sessions().share(ANN, 0, label, seconds, now=0.0)


def test_there_are_not_endless_links() -> None:
    known = Sessions()
    for _ in range(sessions.SHARES_MAX):
        known.share(ANN, 0, "", 60.0, now=0.0)
    with pytest.raises(errors.Refused):
        known.share(ANN, 0, "", 60.0, now=1.0)
    assert known.share(ANN, 0, "", 60.0, now=61.0)


# --- at the gate ---


def at_the_gate(
    gate: Members, cookie: str, method: str = "GET", *more: tuple[bytes, bytes], path: str = "/"
) -> Principal:
    headers = [HOST, (b"cookie", f"gpubox-7480={cookie}".encode()), *more]
    return gate.admit({"client": browser(("127.0.0.1", 5)), "method": method, "headers": headers, "path": path})


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


OF_A_GPU_PAGE = ("/api/v1/history", "/api/v1/gpus/0/traffic")  # what its scripts ask for


def test_who_came_by_a_link_sees_little_and_changes_nothing(gate: Members) -> None:
    code, _ = gate.sessions.share(ANN, 7480, "", 3600.0, time.time())
    cookie = gate.sessions.enter(code, time.time())
    for path in ("/", "/part/work", "/queue", "/live", "/gpus/0", *OF_A_GPU_PAGE, auth.SIGN_OUT):
        assert at_the_gate(gate, cookie, path=path).role == "read"
        if path != auth.SIGN_OUT:
            with pytest.raises(errors.Refused):
                at_the_gate(gate, cookie, "POST", SITE, path=path)
    assert at_the_gate(gate, cookie, "POST", SITE, path=auth.SIGN_OUT).share
    for path in (
        "/jobs",
        "/jobs/1",
        "/events",
        "/settings",
        "/api/v1/jobs",
        "/api/v1/logs/1",
        "/api/v1/gpus",
        "/api/v1/gpus/0/processes",
        "/api/v1/gpus/0/drain/traffic",
        "/gpus/0/",
        "/\n",
        "//",
        "/x",
    ):
        with pytest.raises(errors.Refused, match="does not show"):
            at_the_gate(gate, cookie, path=path)
