"""Tokens as rows: who was given one, for what and until when. Their secrets are not here, only the SHA-256 of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict

from sqlmodel import bindparam, delete, insert, select, update

from runner.box.store.cards import Cards
from runner.box.store.tables import TOKENS
from runner.model import Token

_USED = update(TOKENS).where(TOKENS.c.id == bindparam("the_id")).values(used_at=bindparam("at"))


class Tokens(Cards):
    def tokens(self) -> list[tuple[Token, bytes]]:
        """Every token with the digest of its secret, oldest first; also those that are over."""
        with self._read():
            rows = self._connection.execute(select(TOKENS).order_by(TOKENS.c.created_at, TOKENS.c.id))
            found = [row._asdict() for row in rows]
        digests = [bytes.fromhex(values.pop("digest")) for values in found]
        return [(Token(**values), digest) for values, digest in zip(found, digests, strict=True)]

    def add_token(self, token: Token, digest: bytes) -> None:
        with self._write():
            self._connection.execute(insert(TOKENS).values(digest=digest.hex(), **asdict(token)))

    def revoke_tokens(self, ids: Iterable[str], now: float) -> None:
        with self._write():
            where = TOKENS.c.id.in_(list(ids)) & TOKENS.c.revoked_at.is_(None)
            self._connection.execute(update(TOKENS).where(where).values(revoked_at=now))

    def use_tokens(self, used: Mapping[str, float]) -> None:
        """When each was used last."""
        with self._write():
            self._connection.execute(_USED, [{"the_id": each, "at": at} for each, at in used.items()])

    def forget_tokens(self, before: float) -> None:
        """Those that were revoked or expired before a time."""
        with self._write():
            gone = (TOKENS.c.revoked_at < before) | (TOKENS.c.expires_at < before)
            self._connection.execute(delete(TOKENS).where(gone))
