"""Tokens: made, shown, limited, over; and never kept in a form that opens anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import ADMIN, ANN, BOB

from runner import words
from runner.box import tokens
from runner.box.store import Store
from runner.box.tokens import TOKENS_MAX, Tokens
from runner.errors import BadRequest, NotFound, NotTrusted, Refused
from runner.model import Principal

DAY = 86400.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(str(tmp_path / "runner.db"))
    yield made
    made.close()


@pytest.fixture
def kept(store: Store) -> Tokens:
    return Tokens(store)


def test_a_token_is_known_again_also_by_the_next_daemon(store: Store, kept: Tokens) -> None:
    text, made = kept.mint(ANN, "submit", "laptop", 30 * DAY, 100.0)
    assert text.startswith(f"gpubox_{made.id}_")
    assert len(text.partition(made.id)[2]) == 1 + 43  # 256 bits
    for each in (kept, Tokens(store)):
        found = each.holder(text, 101.0)
        assert (found.uid, found.user, found.scope, found.label) == (ANN.uid, ANN.user, "submit", "laptop")
        assert (found.created_at, found.expires_at) == (100.0, 100.0 + 30 * DAY)


def test_no_two_tokens_are_alike(kept: Tokens) -> None:
    made = {kept.mint(ANN, "read", "", None, 1.0)[0] for _ in range(50)}
    assert len(made) == 50


def test_what_the_database_holds_opens_nothing(tmp_path: Path, store: Store, kept: Tokens) -> None:
    text, made = kept.mint(ANN, "submit", "laptop", None, 100.0)
    secret = text.rpartition(made.id)[2][1:]
    (digest,) = [digest for _, digest in store.tokens()]
    store.close()
    everything = b"".join(path.read_bytes() for path in tmp_path.glob("runner.db*"))
    assert secret.encode() not in everything
    for guess in (digest.hex(), digest.decode("latin-1")):
        with pytest.raises(NotTrusted, match="does not know this token"):
            kept.holder(f"gpubox_{made.id}_{guess}", 101.0)


@pytest.mark.parametrize("text", ["", "_", "__", "gpubox", "gpubox__", "gpubox_x_y", "a" * 10_000, "gpubox_é_ü\udcff"])
def test_what_is_no_token_is_told_nothing(kept: Tokens, text: str) -> None:
    with pytest.raises(NotTrusted, match="does not know this token"):
        kept.holder(text, 1.0)


def test_only_the_whole_secret_opens(kept: Tokens) -> None:
    text, made = kept.mint(ANN, "submit", "", None, 1.0)
    other, _ = kept.mint(BOB, "submit", "", None, 1.0)
    swapped = f"gpubox_{made.id}_{other.split('_', 2)[2]}"
    for wrong in (text[:-1], text + "A", text.swapcase(), swapped, text.replace(made.id, "0" * 12)):
        with pytest.raises(NotTrusted):
            kept.holder(wrong, 2.0)


def test_a_token_expires(kept: Tokens) -> None:
    text, _ = kept.mint(ANN, "submit", "laptop", 10.0, 100.0)
    assert kept.holder(text, 109.9)
    with pytest.raises(NotTrusted, match=r"\(laptop\) has expired") as refusal:
        kept.holder(text, 110.0)
    assert "runner box add" in refusal.value.hint
    assert kept.listed(ANN, 110.0) == []


def test_a_revoked_token_opens_nothing_not_even_for_the_next_daemon(store: Store, kept: Tokens) -> None:
    text, made = kept.mint(ANN, "submit", "laptop", None, 100.0)
    assert kept.revoke(ANN, made.id, 101.0) == [made.id]
    for each in (kept, Tokens(store)):
        with pytest.raises(NotTrusted, match="was revoked"):
            each.holder(text, 102.0)
        assert each.listed(ANN, 102.0) == []
    with pytest.raises(NotFound):
        kept.revoke(ANN, made.id, 103.0)


@pytest.mark.parametrize("role", words.ROLES)
@pytest.mark.parametrize("scope", words.ROLES)
def test_nobody_gives_more_than_they_have(kept: Tokens, role: str, scope: str) -> None:
    who = Principal(1001, "ann", role)
    if words.ROLES.index(scope) > words.ROLES.index(role):
        with pytest.raises(Refused, match=f"has {role} here, and can't give {scope}"):
            kept.mint(who, scope, "", None, 1.0)
    else:
        assert kept.mint(who, scope, "", None, 1.0)[1].scope == scope


def test_a_token_made_with_a_token_ends_with_it(kept: Tokens) -> None:
    _, first = kept.mint(ANN, "submit", "laptop", 100.0, 0.0)
    through = Principal(ANN.uid, ANN.user, "submit", first.id)
    text, second = kept.mint(through, "submit", "", None, 1.0)
    third_text, third = kept.mint(Principal(ANN.uid, ANN.user, "submit", second.id), "read", "", 10.0, 1.0)
    _, apart = kept.mint(ANN, "submit", "", None, 1.0)
    assert (second.expires_at, third.expires_at, apart.expires_at) == (100.0, 11.0, None)
    assert set(kept.revoke(ANN, first.id, 2.0)) == {first.id, second.id, third.id}
    for over in (text, third_text):
        with pytest.raises(NotTrusted):
            kept.holder(over, 3.0)
    assert [each.id for each in kept.listed(ANN, 3.0)] == [apart.id]


def test_a_token_ends_itself_and_its_children_alone_unless_it_is_an_admins(kept: Tokens) -> None:
    _, admins = kept.mint(Principal(ANN.uid, ANN.user, "admin"), "admin", "", None, 0.0)
    _, other = kept.mint(ANN, "submit", "", None, 0.0)
    _, mine = kept.mint(ANN, "submit", "laptop", None, 0.0)
    through = Principal(ANN.uid, ANN.user, "submit", mine.id)
    _, child = kept.mint(through, "read", "", None, 1.0)
    _, grandchild = kept.mint(Principal(ANN.uid, ANN.user, "submit", child.id), "read", "", None, 1.0)
    for each in (admins, other):
        with pytest.raises(Refused, match="only itself and what was made with it"):
            kept.revoke(through, each.id, 2.0)
    assert kept.revoke(through, grandchild.id, 2.0) == [grandchild.id]
    assert kept.revoke(through, mine.id, 2.0) == [mine.id, child.id]
    with_admins = Principal(ANN.uid, ANN.user, "admin", admins.id)
    assert kept.revoke(with_admins, other.id, 3.0) == [other.id]
    assert kept.revoke(ANN, admins.id, 3.0) == [admins.id], "on the box itself all of one's own"


def test_tokens_of_others_are_not_there(kept: Tokens) -> None:
    _, made = kept.mint(ANN, "submit", "", None, 1.0)
    assert kept.listed(BOB, 2.0) == []
    with pytest.raises(NotFound):
        kept.revoke(BOB, made.id, 2.0)
    assert [each.id for each in kept.listed(ADMIN, 2.0)] == [made.id]
    assert kept.revoke(ADMIN, made.id, 2.0) == [made.id]


@pytest.mark.parametrize(
    ("scope", "label", "seconds", "said"),
    [
        ("root", "", None, "no scope 'root'"),
        ("", "", None, "no scope ''"),
        ("read", "a\nb", None, "a label is one line"),
        ("read", "a" * 101, None, "a label is one line"),
        ("read", "", 0.0, "more than no time"),
        ("read", "", -1.0, "more than no time"),
        ("read", "", float("nan"), "more than no time"),
        ("read", "", float("inf"), "more than no time"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused(
    kept: Tokens, scope: str, label: str, seconds: float | None, said: str
) -> None:
    with pytest.raises(BadRequest, match=said):
        kept.mint(ANN, scope, label, seconds, 1.0)


def test_one_person_has_so_many_at_most(kept: Tokens) -> None:
    made = [kept.mint(ANN, "read", "", 10.0, 1.0)[1] for _ in range(TOKENS_MAX)]
    with pytest.raises(Refused, match="100 tokens already"):
        kept.mint(ANN, "read", "", None, 2.0)
    assert kept.mint(BOB, "read", "", None, 2.0)
    kept.revoke(ANN, made[0].id, 2.0)
    assert kept.mint(ANN, "read", "", None, 2.0)
    assert kept.mint(ANN, "read", "", None, 12.0)  # the others have expired


def test_when_it_was_used_is_written_now_and_then(store: Store, kept: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    text, made = kept.mint(ANN, "submit", "", None, 1000.0)
    writes = []
    monkeypatch.setattr(store, "use_tokens", lambda used: writes.append(used))
    for second in range(700):
        kept.holder(text, 1000.0 + second)
    assert writes == [{made.id: 1000.0}, {made.id: 1301.0}, {made.id: 1602.0}]
    assert kept.listed(ANN, 1699.0)[0].used_at == 1699.0


def test_what_is_long_over_is_forgotten(store: Store, kept: Tokens) -> None:
    text, made = kept.mint(ANN, "submit", "", 10.0, 0.0)
    kept.mint(ANN, "submit", "", None, tokens.KEEP_SECONDS + 11.0)
    assert len(store.tokens()) == 1
    with pytest.raises(NotTrusted, match="does not know"):
        kept.holder(text, tokens.KEEP_SECONDS + 12.0)
    assert made.id not in {token.id for token, _ in store.tokens()}
    assert len(Tokens(store).listed(ANN, tokens.KEEP_SECONDS + 12.0)) == 1
