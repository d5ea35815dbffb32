"""The GPUs that this box has seen: what is known of each while it is away, and what outlives the daemon."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict

from sqlmodel import delete, select, update

from runner.box.store import statements
from runner.box.store.database import Database
from runner.box.store.rows import KnownGpu, Stuck, dump_stuck, gpu_of
from runner.box.store.tables import GPUS
from runner.errors import NotFound


class Cards(Database):
    def gpus(self) -> list[KnownGpu]:
        """Every GPU ever seen and not forgotten, by its place on the bus."""
        with self._read():
            rows = self._connection.execute(select(GPUS).order_by(GPUS.c.bus_id, GPUS.c.uuid))
            return [gpu_of(row._asdict()) for row in rows]

    def see_gpus(self, seen: Iterable[KnownGpu]) -> None:
        """These are there. New ones begin neither drained nor stuck; of known ones both stay, and `first_seen_at`."""
        rows = [asdict(gpu) | {"drained": False, "stuck": None} for gpu in seen]
        if rows:
            with self._write():
                self._connection.execute(statements.SEE_GPU, rows)

    def drain_gpu(self, uuid: str, on: bool) -> None:
        """A wish: nothing new on it. NotFound if this box has never seen it."""
        with self._write():
            wished = update(GPUS).where(GPUS.c.uuid == uuid).values(drained=on)
            self._must(uuid, self._connection.execute(wished).rowcount)

    def forget_gpu(self, uuid: str) -> None:
        """It will not come back. NotFound if this box has never seen it."""
        with self._write():
            self._must(uuid, self._connection.execute(delete(GPUS).where(GPUS.c.uuid == uuid)).rowcount)

    def stuck_gpu(self, uuids: Iterable[str], stuck: Stuck | None) -> None:
        """Who left them stuck; None: they are free again. One that this box has never seen is left out."""
        with self._write():
            self._stick(dict.fromkeys(uuids, stuck))

    def _stick(self, stuck: Mapping[str, Stuck | None]) -> None:
        if stuck:
            marks = [{"the_uuid": uuid, "who": dump_stuck(who)} for uuid, who in stuck.items()]
            self._connection.execute(statements.STICK_GPU, marks)

    def _must(self, uuid: str, found: int) -> None:
        if not found:
            raise NotFound(f"this box has no GPU {uuid}", "`runner gpus` lists them")
