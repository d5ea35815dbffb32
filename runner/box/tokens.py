"""Tokens: who may come in over the network. Their secrets have 256 bits and are told once; the box keeps their hashes.

A token acts as its owner, with the lesser of its scope and what its owner may at that moment.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from contextlib import suppress
from dataclasses import replace

from runner import words
from runner.box.store import Store
from runner.errors import BadRequest, Busy, DiskFull, NotFound, NotTrusted, Refused
from runner.model import Principal, Token

MARK = "gpubox"  # begins every token, so that whoever finds one knows what it opens
SECRET_BYTES = 32
LABEL_MAX = 100
TOKENS_MAX = 100  # of one owner
USED_SECONDS = 300.0  # "last used" is written when it is so much behind, not at each request
KEEP_SECONDS = 90 * 86400.0  # of a token that is over
ADD_HINT = "`runner box add me@host` gives this computer a new one"
_NOBODYS = b"\0" * 32


class Tokens:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._tokens = {token.id: (token, digest) for token, digest in store.tokens()}
        self._written = {token.id: token.used_at or 0.0 for token, _ in self._tokens.values()}

    def holder(self, text: str, now: float) -> Token:
        """The token that a request shows. NotTrusted: it is none of ours, or it is over."""
        _, _, rest = text.partition("_")
        named, _, secret = rest.partition("_")
        token, digest = self._tokens.get(named, (None, _NOBODYS))
        if not hmac.compare_digest(_digest(secret), digest) or token is None:
            raise NotTrusted("this box does not know this token", ADD_HINT)
        return self._good(token, now)

    def good(self, named: str, now: float) -> Token:
        """The token of an id, for who has shown it before. NotTrusted: it is over."""
        if named not in self._tokens:
            raise NotTrusted("this box does not know this token", ADD_HINT)
        return self._good(self._tokens[named][0], now)

    def _good(self, token: Token, now: float) -> Token:
        if token.revoked_at is not None:
            raise NotTrusted(f"this token ({_called(token)}) was revoked", ADD_HINT)
        if token.expires_at is not None and token.expires_at <= now:
            raise NotTrusted(f"this token ({_called(token)}) has expired", ADD_HINT)
        self._used(token, now)
        return token

    def mint(self, who: Principal, scope: str, label: str, seconds: float | None, now: float) -> tuple[str, Token]:
        """A new token as text, which nobody can ask for again, and what is known of it. seconds: until it expires.

        With a token nobody gets one that may more, or for longer."""
        if scope not in words.ROLES:
            raise BadRequest(f"there is no scope {scope[:40]!a}", f"one of: {', '.join(words.ROLES)}")
        if words.ROLES.index(scope) > words.ROLES.index(who.role):
            raise Refused(f"{who.user} has {who.role} here, and can't give {scope}", f"--scope {who.role}")
        if len(label) > LABEL_MAX or not label.isprintable():
            raise BadRequest(f"a label is one line of at most {LABEL_MAX} letters", "--label laptop")
        if seconds is not None and not 0 < seconds < 1e10:
            raise BadRequest("a token lasts for more than no time, and for less than 300 years")
        if sum(token.uid == who.uid for token in self._live(now)) >= TOKENS_MAX:
            raise Refused(f"{who.user} has {TOKENS_MAX} tokens already", "`runner token revoke` what is not used")
        ends = None if seconds is None else now + seconds
        if who.token:
            parent = self._tokens[who.token][0]
            ends = min((each for each in (ends, parent.expires_at) if each is not None), default=None)
        named, secret = secrets.token_hex(6), secrets.token_urlsafe(SECRET_BYTES)
        token = Token(named, scope, label, who.user, who.uid, now, ends, parent=who.token)
        self._forget(now)
        self._store.add_token(token, _digest(secret))
        self._tokens[named], self._written[named] = (token, _digest(secret)), 0.0
        return f"{MARK}_{named}_{secret}", token

    def listed(self, who: Principal, now: float) -> list[Token]:
        """Those that still open: one's own, to an administrator all."""
        return [token for token in self._live(now) if who.role == "admin" or token.uid == who.uid]

    def revoke(self, who: Principal, named: str, now: float) -> list[str]:
        """The ids of what opens nothing from now on: the token, and those that were made with it.

        Who came with a token, and is no administrator, ends no other than that one and those that were made with it."""
        token = next((token for token in self.listed(who, now) if token.id == named), None)
        if token is None:
            raise NotFound(f"there is no token {named[:40]!a} of yours", "`runner token list` shows them")
        if who.token and who.role != "admin" and token.id not in self._with_children(who.token, now):
            hint = f"on the box, or with a token that has --scope admin: runner token revoke {token.id}"
            raise Refused("a token ends only itself and what was made with it", hint)
        over = self._with_children(token.id, now)
        self._store.revoke_tokens(over, now)
        for each in over:
            known, digest = self._tokens[each]
            self._tokens[each] = (replace(known, revoked_at=now), digest)
        return over

    def _with_children(self, named: str, now: float) -> list[str]:
        """A token, and those that were made with it, or with one of these."""
        found = [named]
        for parent in found:  # which grows while it is read
            found += [each.id for each in self._live(now) if each.parent == parent and each.id not in found]
        return found

    def _live(self, now: float) -> list[Token]:
        known = (token for token, _ in self._tokens.values())
        return [each for each in known if each.revoked_at is None and (each.expires_at or now + 1) > now]

    def _used(self, token: Token, now: float) -> None:
        token.used_at = now
        if abs(now - self._written[token.id]) > USED_SECONDS:
            self._written[token.id] = now
            with suppress(DiskFull, Busy):  # who looks at the box, to make room perhaps, need not be remembered for it
                self._store.use_tokens({token.id: now})

    def _forget(self, now: float) -> None:
        before = now - KEEP_SECONDS
        self._store.forget_tokens(before)
        for token, _ in list(self._tokens.values()):
            if (token.revoked_at or now) < before or (token.expires_at or now) < before:
                del self._tokens[token.id], self._written[token.id]


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode(errors="replace")).digest()


def _called(token: Token) -> str:
    return token.label or token.id
