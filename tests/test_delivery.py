"""Code on its way to a real daemon: what travels, and what becomes of it when the way is cut."""

from __future__ import annotations

import errno
import json
import os
import random
import select
import socket
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import tools
import wire

from runner import errors
from runner.laptop import client, delivery, snapshot, upload

pytestmark = pytest.mark.long
NOISE = random.Random(5)


class Relay:
    """Carries bytes to a daemon, counts them, and cuts a connection after so many."""

    def __init__(self, path: str, target: str) -> None:
        self.path, self.target = path, target
        self.limit: Callable[[], int] | None = None  # to the box, for the next connection
        self.slow: threading.Event | None = None  # until it is set, the box is still at work on an upload
        self.carried = self.cuts = 0
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def connect(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        made.connect(self.path)
        return made

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            limit = self.limit() if self.limit is not None else None
            threading.Thread(target=self._carry, args=(near, limit), daemon=True).start()

    def _carry(self, near: socket.socket, limit: int | None) -> None:
        with near, socket.socket(socket.AF_UNIX) as far:
            far.connect(self.target)
            while True:
                for sock in select.select([near, far], [], [])[0]:
                    try:
                        data = sock.recv(65536)
                        if sock is near:
                            data = data if limit is None else data[:limit]
                            self.carried += len(data)
                        if sock is far and self.slow is not None and data.endswith(b'{"stored":40}'):
                            self.slow.wait(20)
                        (far if sock is near else near).sendall(data)
                    except OSError:
                        return
                    if not data:
                        return
                    if sock is near and limit is not None:
                        limit -= len(data)
                        if limit <= 0:
                            self.cuts += 1
                            return

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(10)


@pytest.fixture(scope="module")
def box() -> Iterator[wire.Box]:
    with wire.place() as folder:
        made = wire.Box(Path(folder))
        made.start()
        made.post("/box/drain", {"on": True})
        try:
            yield made
        finally:
            made.end()


@pytest.fixture
def relay(box: wire.Box, tmp_path: Path) -> Iterator[Relay]:
    with wire.place() as folder:
        made = Relay(f"{folder}/relay", box.socket)
        try:
            yield made
        finally:
            made.close()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "project"
    root.mkdir()
    for number in range(40):
        put(root, f"package{number % 4}/module{number}.py", NOISE.randbytes(1000 * number))
    return root


def put(root: Path, name: str, data: bytes) -> None:
    path = root / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


def spec() -> dict[str, Any]:
    return {"spec": {"command": ["true"], "name": "train.py", "environment": "base", "project": "/srv/project"}}


def deliver(relay: Relay, project: Path, key: str | None = None, far: str = "far") -> tuple[int, snapshot.Snapshot]:
    """(the job, its snapshot)."""
    taken = snapshot.begin(str(project)).finish()
    api = client.Client(relay.connect, far)
    try:
        answer, sent = delivery.deliver(api, spec(), taken, key or client.new_key())
    finally:
        api.close()
    return int(answer["id"]), sent


def held_whole(box: wire.Box, sent: snapshot.Snapshot, root: Path) -> None:
    """The box has every file as it is here."""
    blobs = Path(box.env["GPUBOX_STATE"]) / "blobs"
    for path, (_, _, sha) in sent.parts["files"].items():
        data = (blobs / sha[:2] / sha[2:]).read_bytes()
        assert sha256(data).hexdigest() == sha
        assert data == (root / path).read_bytes()


def arriving(box: wire.Box, sha: str) -> list[Path]:
    return [*(Path(box.env["GPUBOX_STATE"]) / "blobs").glob(f"incoming/*/{sha}")]


def tidy(box: wire.Box) -> None:
    blobs = Path(box.env["GPUBOX_STATE"]) / "blobs"
    assert list((blobs / "incoming").iterdir()) == list((blobs / "partial").iterdir()) == []


def test_after_a_small_edit_one_request_travels_and_little_beside_the_file(
    box: wire.Box, relay: Relay, project: Path
) -> None:
    deliver(relay, project)
    edited = project / "package0" / "module20.py"
    edited.write_bytes(edited.read_bytes() + b"# one more line\n")
    before, relay.carried = relay.carried, 0
    _, sent = deliver(relay, project)
    assert sent.sent == 1
    beside = relay.carried - edited.stat().st_size
    assert 0 < beside <= 2000, f"{beside} bytes, heads of requests and all; {before} at first"
    held_whole(box, sent, project)


def test_what_shrinks_is_packed_on_the_way_and_whole_at_the_box(box: wire.Box, relay: Relay, project: Path) -> None:
    text = "".join(f"line {number % 977}\n" for number in range(300_000)).encode()
    put(project, "big.txt", text)
    put(project, "small.txt", text[:20_000])
    _, sent = deliver(relay, project)
    noise = sum(path.stat().st_size for path in project.rglob("module*"))
    assert relay.carried - noise < 0.7 * len(text)
    held_whole(box, sent, project)
    relay.carried = 0
    put(project, "small.txt", text[:21_000])
    _, sent = deliver(relay, project)
    assert relay.carried < 10_000
    held_whole(box, sent, project)


def test_an_upload_that_is_cut_a_hundred_times_arrives_whole_and_once(
    box: wire.Box, relay: Relay, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "PAUSES", (0.0,) * 20)
    monkeypatch.setattr(client, "PAUSES", (0.0,) * 20)
    text = b"".join(b"%d\n" % NOISE.randrange(10**12) for _ in range(200_000))
    put(project, "noise", NOISE.randbytes(7_000_000))
    put(project, "text", text)
    chance = random.Random(11)
    relay.limit = lambda: chance.randrange(1, 220_000)
    count = len(box.get("/jobs?finished=1000")["jobs"])
    total = sum(path.stat().st_size for path in project.rglob("*") if path.is_file())
    job, sent = deliver(relay, project)
    assert relay.cuts >= 60
    cuts = relay.cuts
    while relay.cuts < 100:  # the rest of them hits requests that are small
        relay.limit = lambda: chance.randrange(1, 3_000)
        put(project, "package0/module4.py", b"%d\n" % relay.cuts)
        job, sent = deliver(relay, project)
        count += 1
    assert len(box.get("/jobs?finished=1000")["jobs"]) == count + 1
    assert box.get(f"/jobs/{job}")["spec"]["snapshot"] == sent.id
    held_whole(box, sent, project)
    assert relay.carried < 1.6 * total, f"{relay.carried} for {total} with {cuts} cuts: what arrived was not sent again"
    tidy(box)


def test_a_disk_that_takes_long_to_make_an_upload_durable_is_waited_for(
    box: wire.Box, relay: Relay, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "REPLY_SECONDS", 1.0)
    monkeypatch.setattr(delivery, "DURABLE_BYTES", 10_000)  # 780 kB: some 80 s
    for number in range(40):
        put(project, f"package{number % 4}/module{number}.py", NOISE.randbytes(1000 * number + 1))
    relay.slow = threading.Event()
    threading.Timer(1.5, relay.slow.set).start()
    job, taken = deliver(relay, project)
    assert (taken.sent, relay.slow.is_set()) == (40, True)
    assert box.get(f"/jobs/{job}")["spec"]["snapshot"] == taken.id


def test_a_connection_that_hangs_is_taken_over_by_the_next(box: wire.Box, relay: Relay, project: Path) -> None:
    """The box does not know yet that the first is lost, and has to say all the same what came over it."""
    put(project, "noise", NOISE.randbytes(4_000_000))
    taken = snapshot.begin(str(project)).finish()
    api = client.Client(relay.connect, "far")
    one = delivery.Delivery(api, {**spec(), "spec": {**spec()["spec"], "snapshot": taken.id}}, taken, client.new_key())
    lacks = one._bundle(taken.offer(whole=True), {})
    assert lacks["missing"]
    (noise,) = (entry[2] for path, entry in taken.parts["files"].items() if path == "noise")
    stream = b"".join(upload.Stream(taken, [noise], {}, False, False))
    headers = {"Content-Length": str(len(stream)), "Upload-Key": one.key["Idempotency-Key"]}
    with wire.Wire(box.socket) as hangs:
        hangs.send("POST", "/blobs", stream[:3_500_000], headers)
        tools.wait_until(lambda: any(path.stat().st_size > 2_000_000 for path in arriving(box, noise)))
        found = one._known()
        assert found["held"][noise] > 2_000_000
        answer = one._complete(found)
        api.close()
    assert relay.carried < 2_200_000 + sum(path.stat().st_size for path in project.rglob("module*"))
    assert box.get(f"/jobs/{answer['id']}")["spec"]["snapshot"] == taken.id
    held_whole(box, taken, project)
    tidy(box)


def test_a_daemon_that_is_killed_in_an_upload_goes_on_where_it_was(tmp_path: Path, project: Path) -> None:
    with wire.place() as folder:
        box = wire.Box(Path(folder))
        box.start()
        put(project, "noise", NOISE.randbytes(3_000_000))
        taken = snapshot.begin(str(project)).finish()
        (noise,) = (entry[2] for path, entry in taken.parts["files"].items() if path == "noise")
        stream = b"".join(upload.Stream(taken, [noise], {}, False, False))
        with wire.Wire(box.socket) as hangs:
            hangs.send("POST", "/blobs", stream[:2_500_000], {"Content-Length": str(len(stream))})
            tools.wait_until(lambda: any(path.stat().st_size > 2_000_000 for path in arriving(box, noise)))
            assert box.daemon is not None
            box.daemon.kill()
            box.daemon.wait()
        box.start()
        relay = Relay(f"{folder}/relay", box.socket)
        try:
            relay_sent = sum(path.stat().st_size for path in project.rglob("module*"))
            _, sent = deliver(relay, project)
            assert relay.carried - relay_sent < 1_500_000
            held_whole(box, sent, project)
            tidy(box)
        finally:
            relay.close()
            box.end()


def test_a_beginning_that_went_bad_is_sent_again(box: wire.Box, relay: Relay, project: Path) -> None:
    data = NOISE.randbytes(900_000)
    put(project, "noise", data)
    name = sha256(data).hexdigest()
    partial = Path(box.env["GPUBOX_STATE"]) / "blobs" / "partial" / name
    partial.write_bytes(b"\0" * 800_000)
    _, sent = deliver(relay, project)
    held_whole(box, sent, project)
    tidy(box)


def test_a_beginning_longer_than_its_content_is_no_obstacle(box: wire.Box, relay: Relay, project: Path) -> None:
    data = NOISE.randbytes(100_000)
    put(project, "noise", data)
    partial = Path(box.env["GPUBOX_STATE"]) / "blobs" / "partial" / sha256(data).hexdigest()
    partial.write_bytes(data + b"more")
    _, sent = deliver(relay, project)
    held_whole(box, sent, project)
    tidy(box)


def test_contents_that_are_not_what_they_say_are_refused_and_make_no_job(box: wire.Box, project: Path) -> None:
    taken = snapshot.begin(str(project)).finish()
    count = len(box.get("/jobs?finished=1000")["jobs"])
    said = {**spec(), "spec": {**spec()["spec"], "snapshot": taken.id}}
    reply = send(box, said, taken.offer(whole=True), f"{'0' * 64} 3\nabc".encode())
    assert (reply.status, reply.json()["code"]) == (400, "bad_data")
    for body, code in (
        (b"", "bad_data"),
        (b"5 5\n{}", "bad_data"),
        (b"x y\n", "bad_data"),
        (b"2 2\n{}{}", "bad_request"),
        (b"2 2\n[[[[", "bad_data"),
    ):
        reply = box.ask("POST", "/bundles", body)
        assert (reply.status, reply.json()["code"]) == ({"bad_data": 400, "bad_request": 422}[code], code), body
    other = {**said, "spec": {**said["spec"], "snapshot": "0" * 64}}
    assert send(box, other, taken.offer(whole=True)).json()["code"] == "bad_request"
    assert send(box, said, {**taken.offer(whole=True), "base": "0" * 64}).json()["code"] == "snapshot_unknown"
    assert len(box.get("/jobs?finished=1000")["jobs"]) == count
    tidy(box)


def send(box: wire.Box, said: object, changes: object, frames: bytes = b"") -> wire.Reply:
    first, second = json.dumps(said).encode(), json.dumps(changes).encode()
    bundle = b"%d %d\n%b%b%b" % (len(first), len(second), first, second, frames)
    return box.ask("POST", "/bundles", bundle, {"Content-Type": "application/octet-stream", "Idempotency-Key": "k"})


def test_the_same_key_makes_one_job_however_the_code_travelled(box: wire.Box, relay: Relay, project: Path) -> None:
    key = client.new_key()
    put(project, "new", NOISE.randbytes(300))
    job, sent = deliver(relay, project, key)
    put(project, "package0/module4.py", b"")
    again, _ = deliver(relay, project, client.new_key())
    (project / "package0" / "module4.py").write_bytes((project / "package0" / "module4.py").read_bytes())
    said = {**spec(), "spec": {**spec()["spec"], "snapshot": sent.id}}
    plain = box.ask("POST", "/jobs", client.dumps(said).encode(), {"Idempotency-Key": key})
    assert (plain.status, plain.json()["id"]) == (200, job)
    assert again != job


def test_a_disk_that_is_full_stops_an_upload_and_leaves_room(
    box: wire.Box, relay: Relay, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the box says reaches the person, and is not tried again."""
    asked = []

    def full(self: client.Client, method: str, path: str, **more: Any) -> Any:
        asked.append(path)
        if path == "/blobs":
            raise errors.from_json(errors.DiskFull(os.strerror(errno.ENOSPC), "runner clean").as_json(), 507)
        return plainly(self, method, path, **more)

    plainly = client.Client.request
    monkeypatch.setattr(client.Client, "request", full)
    put(project, "big", NOISE.randbytes(200_000))
    with pytest.raises(errors.DiskFull, match="No space"):
        deliver(relay, project)
    assert asked == ["/bundles", "/blobs"]
