"""A data set on its way to a box: what the box lacks, in streams that go on where a cut left them.

PUT /data/NAME      the list of files, as changes to the last one: done, or what is missing
POST /data/blobs    some of it (the whole list, too, is a content). Durable when answered
"""

from __future__ import annotations

from runner import errors
from runner.laptop import hashes, upload
from runner.laptop.addresses import DEMO, LOCAL
from runner.laptop.client import new_key, segment
from runner.laptop.folder import Folder
from runner.laptop.git import shown
from runner.laptop.upload import Changed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from runner.laptop.client import Client
    from runner.laptop.folder import Told

BATCH_BYTES, BATCH_FILES = 1 << 30, 20_000  # of one stream: so much a crash of the box may lose
PATIENCE = 900.0  # seconds for a reply: a box reads again what it has of a long file, and lays out what is new
LIST = 1 << 60  # more than any set: while its list is missing, all of it is


def push(api: Client, root: str, name: str, reading: Told, sending: Told) -> tuple[dict[str, Any], Folder, int]:
    """(the set as the box has it now, what was pushed, the bytes of contents that the box lacked). Files that change
    meanwhile are looked at again."""
    changed = ""
    for _ in range(hashes.TRIES):
        folder = Folder(root, reading)
        try:
            going = Push(api, name, folder, sending)
            return going.run(), folder, going.sent
        except Changed as broken:
            changed = broken.path
    raise errors.BadData(
        f"{shown(changed)} changed each of the {hashes.TRIES} times it was sent",
        "wait until nothing writes there; what was sent is kept on the box for a day",
    )


class Push:
    """Of one state of a folder."""

    def __init__(self, api: Client, name: str, folder: Folder, told: Told) -> None:
        self.api, self.folder, self.told = api, folder, told
        api.patience = PATIENCE
        self.path = f"/data/{segment(name)}"
        self.key = new_key()
        self.packs = api.box not in (LOCAL, DEMO)  # nothing is gained on one computer
        self.sizes = {sha: size for _, size, sha in folder.parts["files"].values()}
        self.sent = 0  # bytes of what the box lacked when it was asked first

    def run(self) -> dict[str, Any]:
        answer = self._ask(self.folder.changes())
        tries = upload.Tries()
        while "missing" in answer:
            left = LIST if answer["missing"] == [self.folder.id] else upload.left(self.sizes, answer)
            if not self.sent and left < LIST:
                self.sent = left - len(answer["missing"])
            tries.go(left, answer, self._send)
            answer = self._ask(None)
        self.folder.remember()
        return answer

    def _ask(self, changes: dict[str, Any] | None) -> dict[str, Any]:
        headers = {"Idempotency-Key": self.key}
        try:
            answer: dict[str, Any] = self.api.request(
                "PUT", self.path, json=changes or {"id": self.folder.id}, headers=headers
            )[2]
        except errors.SnapshotUnknown:
            if changes is None:
                raise
            return self._ask(None)
        return answer

    def _send(self, missing: list[str], held: dict[str, int]) -> None:
        if missing == [self.folder.id]:
            self._post(_frames(self.folder.id, self.folder.list, held.get(self.folder.id, 0), self.packs))
            return
        whole, done = sum(self.sizes[sha] for sha in missing), 0
        for batch in self._batches(sorted(missing, key=lambda sha: sha not in held)):
            stream = upload.Stream(self.folder, batch, held, self.packs, plain=False)
            try:
                self._post(self._watched(stream, done, whole))
            except Exception:  # whatever the client makes of it: did we break off?
                if stream.changed is None:
                    raise
                raise Changed(stream.changed) from None
            done += stream.read
        self.told(whole, whole)

    def _batches(self, missing: list[str]) -> Iterator[list[str]]:
        batch: list[str] = []
        weight = 0
        for sha in missing:
            batch.append(sha)
            weight += self.sizes[sha]
            if weight >= BATCH_BYTES or len(batch) >= BATCH_FILES:
                yield batch
                batch, weight = [], 0
        if batch:
            yield batch

    def _watched(self, stream: upload.Stream, done: int, whole: int) -> Iterator[bytes]:
        for piece in stream:
            self.told(done + stream.read, whole)
            yield piece

    def _post(self, body: Iterator[bytes]) -> None:
        headers = {"Content-Type": "application/octet-stream", "Upload-Key": self.key}
        self.api.request("POST", "/data/blobs", body=body, headers=headers)


def _frames(sha: str, data: bytes, start: int, packs: bool) -> Iterator[bytes]:
    """A content of our own in parts, from `start` on."""
    size = len(data)
    if start >= size:
        yield b"%b %d %d 0 0\n" % (sha.encode(), size, size)
    for at in range(min(start, size), size, upload.PART):
        part = data[at : at + upload.PART]
        sent = upload.packed(part) if packs else part
        yield b"%b %d %d %d %d\n%b" % (sha.encode(), size, at, len(part), len(sent), sent)
