"""A submission and its code on their way to a box: what changed and small contents in one request, and only where that
is not enough an upload, which goes on where a cut left it.

    POST /bundles   submission, changes to a snapshot that the box knows, small contents: a job, or what is missing
    POST /blobs     what is missing, in one stream (upload.py)
    POST /jobs      the submission alone, whose code the box has by now: a job

A box that has no /bundles yet is asked as its time did: POST /snapshots, /blobs, /jobs.
"""

from __future__ import annotations

import os

from runner import errors
from runner.laptop import hashes, snapshot, upload
from runner.laptop.addresses import DEMO, LOCAL
from runner.laptop.git import shown
from runner.laptop.light import dumps
from runner.laptop.upload import Changed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runner.laptop.client import Client
    from runner.laptop.snapshot import Snapshot

TRIES = hashes.TRIES
DURABLE_BYTES = 4 << 20  # a second, that a slow disk of a box makes durable of what arrived, before it answers
INLINE_BYTES = 64 << 10  # contents up to here go along unasked: less than a question costs on most ways


def deliver(api: Client, body: dict[str, Any], snap: Snapshot, key: str) -> tuple[dict[str, Any], Snapshot]:
    """(the box's answer to the submission, the snapshot that it runs: a newer one if files changed meanwhile).
    body: as for POST /jobs; key: its idempotency key. Sending the same twice makes one job."""
    changed = ""
    for attempt in range(TRIES):
        if attempt:
            snap = snapshot.begin(snap.root, snap.seen.include, *snap.limits, known=False).finish()
        body["spec"]["snapshot"] = snap.id
        try:
            return Delivery(api, body, snap, key).run(), snap
        except Changed as broken:
            changed = broken.path
        finally:
            snap.remember()
    raise errors.BadData(
        f"{shown(changed)} changed each of the {TRIES} times it was sent",
        "wait until it is complete, or leave it out with a line in .runnerignore",
    )


class Delivery:
    """Of one snapshot."""

    def __init__(self, api: Client, body: dict[str, Any], snap: Snapshot, key: str) -> None:
        self.api, self.body, self.snapshot = api, body, snap
        self.key = {"Idempotency-Key": key}
        self.packs = api.box not in (LOCAL, DEMO)  # nothing is gained on one computer

    def run(self) -> dict[str, Any]:
        news = self.snapshot.offer(whole=self.snapshot.id == self.snapshot.base)
        try:
            try:
                answer = self._bundle(news, self._small(news))
            except errors.SnapshotUnknown:
                if news["base"] is None:
                    raise
                answer = self._bundle(self.snapshot.offer(whole=True), self._small(news))
        except errors.NotFound as unknown:
            if isinstance(unknown, errors.SnapshotUnknown):
                raise
            return self._as_before()
        return self._complete(answer) if "missing" in answer else answer

    @property
    def sizes(self) -> dict[str, int]:
        """Of all contents, by their hashes."""
        return {sha: size for _, size, sha in self.snapshot.parts["files"].values()}

    # --- requests ---

    def _submit(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.api.request("POST", "/jobs", json=self.body, headers=self.key)[2]
        return answer

    def _bundle(self, news: dict[str, Any], contents: dict[str, bytes]) -> dict[str, Any]:
        """A job, or {missing, held}."""
        said, changes = dumps(self.body).encode(), dumps(news).encode()
        frames = b"".join(upload.frame(sha, data, self.packs) for sha, data in contents.items())
        bundle = b"%d %d\n%b%b%b" % (len(said), len(changes), said, changes, frames)
        self.api.meanwhile = self.snapshot.remember
        headers = {**self.key, "Content-Type": "application/octet-stream"}
        answer: dict[str, Any] = self.api.request("POST", "/bundles", body=bundle, headers=headers)[2]
        self.snapshot.sent += len(contents)
        return answer

    def _known(self) -> dict[str, Any]:
        """The bundle for a box that has the list of files by now."""
        return self._bundle(
            {"id": self.snapshot.id, "base": self.snapshot.id, "files": {}, "removed": [], "links": None, "dirs": None},
            {},
        )

    def _small(self, news: dict[str, Any]) -> dict[str, bytes]:
        """The contents of files that are new since the base, if they are small altogether."""
        sizes = {sha: (size, path) for path, (_, size, sha) in news["files"].items()}
        if news["base"] is None or sum(size for size, _ in sizes.values()) > INLINE_BYTES:
            return {}
        return {sha: _read(self.snapshot.root, path, size, sha) for sha, (size, path) in sizes.items()}

    # --- uploads ---

    def _complete(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Upload what is missing, however often the connection is cut, and submit."""
        tries, patience = upload.Tries(), self.api.patience
        try:
            while "missing" in answer:
                left = upload.left(self.sizes, answer)
                self.api.patience = max(self.api.patience, patience + left / DURABLE_BYTES)  # also for who asks again
                answer = tries.go(left, answer, self._send) or self._known()
        finally:
            self.api.patience = patience
        return answer

    def _send(self, missing: list[str], held: dict[str, int]) -> dict[str, Any]:
        self._upload(missing, held)
        return self._submit()

    def _upload(self, missing: list[str], held: dict[str, int], plain: bool = False) -> None:
        stream = upload.Stream(self.snapshot, missing, held, self.packs and not plain, plain)
        headers = {"Content-Type": "application/octet-stream", "Upload-Key": self.key["Idempotency-Key"]}
        try:
            self.api.request("POST", "/blobs", body=stream, headers=headers)
        except Exception:  # whatever the client makes of it: did we break off?
            if stream.changed is None:
                raise
            raise Changed(stream.changed) from None
        finally:
            self.snapshot.sent += stream.complete

    def _as_before(self) -> dict[str, Any]:
        """With a box of before /bundles."""
        parts = self.snapshot.parts
        for _ in range(TRIES):
            news = {**self.snapshot.offer(whole=False), "links": parts["links"], "dirs": parts["dirs"]}
            try:
                reply = self.api.request("POST", "/snapshots", json=news, headers=self.key)[2]
            except errors.SnapshotUnknown:
                whole = self.snapshot.offer(whole=True)
                reply = self.api.request("POST", "/snapshots", json=whole, headers=self.key)[2]
            if not upload.left(self.sizes, {"held": {}, **reply}):
                return self._submit()
            self._upload(reply["missing"], {}, plain=True)
        raise errors.BadData("the box still asks for files after they were sent", "see `runner doctor`")


def _read(root: str, path: str, size: int, sha: str) -> bytes:
    """A small file, if it still is what the snapshot says."""
    try:
        fd = hashes.open_file(root, path)
        try:
            data = os.read(fd, size + 1)
        finally:
            os.close(fd)
    except (OSError, errors.BadData):
        raise Changed(path) from None
    if hashes.sha256(len(data))(data).hexdigest() != sha:
        raise Changed(path)
    return data
