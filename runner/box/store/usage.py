"""What jobs used of the GPUs, and notices: kept for ever."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from sqlmodel import delete, insert, select, update

from runner.box.store import statements
from runner.box.store.cards import Cards
from runner.box.store.tables import META, NOTICES, USES
from runner.model import Notice, Use

NOTICES_MAX = 1000  # in one answer
NO_COUNTS: Mapping[str, str] = {}
NO_FACTS: Mapping[str, str] = {}


class Usage(Cards):
    def save_uses(self, uses: Iterable[Use], counts: Mapping[str, str] = NO_COUNTS) -> None:
        """Sums as they are now. counts: UUID of a GPU -> JSON of the driver's counters at `until`."""
        with self._write():
            self._use(uses, counts)

    def _use(self, uses: Iterable[Use], counts: Mapping[str, str] = NO_COUNTS) -> None:
        rows = [
            {**asdict(use), "job_id": use.job, "xids": json.dumps(use.xids), "counted": counts.get(use.gpu, "")}
            for use in uses
        ]
        if rows:
            self._connection.execute(statements.SAVE_USE, rows)

    def uses(self, job_ids: Iterable[int]) -> list[tuple[Use, str]]:
        """Of all attempts of some jobs, with the counters as they were; in order."""
        with self._read():
            rows = self._connection.execute(
                select(USES).where(USES.c.job_id.in_(list(job_ids))).order_by(USES.c.job_id, USES.c.attempt, USES.c.gpu)
            )
            return [_use_of(row._asdict()) for row in rows]

    def _keep(self, facts: Mapping[str, str]) -> None:
        for key, value in facts.items():
            self._connection.execute(delete(META).where(META.c.key == key))
            self._connection.execute(insert(META).values(key=key, value=value))

    def notify(self, notices: Iterable[Notice], facts: Mapping[str, str] = NO_FACTS) -> None:
        """They have their numbers from here; those that they were given mean nothing. facts: remembered with them."""
        with self._write():
            self._keep(facts)
            for notice in notices:
                values = asdict(notice)
                del values["id"]
                notice.id = int(self._connection.execute(insert(NOTICES).values(**values)).lastrowid)

    def notices(self, before: int | None = None, limit: int = 100, unseen: bool = False) -> list[Notice]:
        """The newest first. before: only those with a lower number. unseen: only those that nobody said to know."""
        query = select(NOTICES).order_by(NOTICES.c.id.desc()).limit(min(limit, NOTICES_MAX))
        if before is not None:
            query = query.where(NOTICES.c.id < before)
        if unseen:
            query = query.where(NOTICES.c.seen_at.is_(None))
        with self._read():
            return [Notice(**row._asdict()) for row in self._connection.execute(query)]

    def see_notices(self, up_to: int, now: float) -> int:
        """Somebody knows of all of them up to a number; how many that were new."""
        seen = update(NOTICES).where(NOTICES.c.id <= up_to, NOTICES.c.seen_at.is_(None)).values(seen_at=now)
        with self._write():
            return int(self._connection.execute(seen).rowcount)


def _use_of(row: Mapping[str, Any]) -> tuple[Use, str]:
    values = {**row, "job": row["job_id"], "xids": json.loads(row["xids"])}
    counted = values.pop("counted")
    del values["job_id"]
    return Use(**values), counted
