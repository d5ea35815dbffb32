"""What happens is told elsewhere: once, in few words, and by nobody whom the queue waits for."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from builders import a_hall, a_job
from tools import wait_until
from wire import Box

from runner import words
from runner.box.notify import messages, outbox, ways
from runner.box.notify.outbox import Outbox
from runner.box.notify.ways import Way
from runner.box.settings import Settings, load, public
from runner.box.store import Store
from runner.errors import BadSettings
from runner.model import Notice
from runner.paths import StateDir

TOKEN, TOPIC = "tk_canary", "attic-canary-7d1f"
NOW = 1_000_000.0


def settings(**values: Any) -> Settings:
    return Settings(StateDir("/nowhere"), "", **{"name": "attic", **values})


def a_notice(kind: str = "hot", text: str = "GPU 0 is at 91 °C", **values: Any) -> Notice:
    return Notice(0, time.time(), kind, "warning", text, "clean filters", "GPU-0000", **values)


# --- words ---


def test_of_a_job_the_name_and_the_end_are_told_and_nothing_that_it_was_given() -> None:
    job = a_job(
        42, words.FAILED, reason="exit_code", exit_code=3, started_at=NOW, ended_at=NOW + 4000,
        detail="KeyError: canary", params={"key": "canary"}, project="/srv/canary",
    )  # fmt: skip
    job.name, job.command = "train.py\x1b[2J", ["python", "train.py", "--key", "canary"]
    told = messages.of_end(job, "attic", NOW)
    assert told is not None
    assert told.text == "job 42 (train.py [2J) failed, after 66 min: exit code 3"
    assert (told.title, told.hint, told.kind) == ("attic: job 42 failed", "`runner logs 42`", "failed")
    assert "canary" not in json.dumps(ways.fields(told, "attic"))
    job.adopts, job.name = [7, 1], "python train.py --key canary"
    told = messages.of_end(job, "attic", NOW)
    assert told is not None
    assert told.text == "job 42 failed, after 66 min: exit code 3", "an adopted process is called after its command"
    assert messages.of_end(a_job(1, words.CANCELLED), "attic", NOW) is None, "who cancelled it knows"


def test_every_kind_of_notice_has_a_title() -> None:
    source = "".join(path.read_text() for path in Path("runner/box/gpus").glob("*.py"))
    told = {kind for kind in messages.TITLES if f'"{kind}"' in source}
    assert told == set(messages.TITLES) - set(messages.OF_JOBS)


def test_the_ends_of_a_sweep_are_one_message_and_notices_stay_as_they_are() -> None:
    ends = [a_job(id, words.SUCCEEDED if id % 2 else words.FAILED) for id in range(1, 8)]
    told = [each for job in ends if (each := messages.of_end(job, "attic", NOW)) is not None]
    hot = messages.of_notice(a_notice(), "attic")
    assert messages.merged(told[:4], "attic") == told[:4]
    one, other = messages.merged([*told[:5], hot], "attic")
    assert (one.text, one.kind, other) == ("5 jobs have ended: 3 finished, 2 failed", "failed", hot)
    (again,) = messages.merged([one, *told[5:], *told[:2]], "attic")[:1]
    assert again.text == "9 jobs have ended: 5 finished, 4 failed"


# --- settings ---


@pytest.mark.parametrize(("values", "said"), [
    ({"notify_ntfy": "ntfy.sh/x"}, "notify_ntfy is not an address"),
    ({"notify_ntfy": "https://ntfy.sh"}, "notify_ntfy names no topic"),
    ({"notify_ntfy": "https://ntfy.sh/canary?auth=x"}, "notify_ntfy names no topic"),
    ({"notify_ntfy": "https://ann:canary@ntfy.sh/x"}, "holds a user's name or password"),
    ({"notify_ntfy": "https://[::1/canary"}, "notify_ntfy is not an address"),
    ({"notify_webhook": "file:///etc/canary"}, "notify_webhook is not an address"),
    ({"notify_webhook": "https://example.org/\r\ncanary"}, "notify_webhook is not an address"),
    ({"notify_webhook": "https://example.org:99999/canary"}, "notify_webhook is not an address"),
    ({"notify_token": "canary"}, "notify_token is set, and notify_ntfy is not"),
    ({"notify_ntfy": "https://ntfy.sh/x", "notify_token": "can ary"}, "notify_token is not a token"),
    ({"notify_ntfy": "http://ntfy.sh/x", "notify_token": "canary"}, "would be sent to notify_ntfy unencrypted"),
    ({"notify_command": "tell 'canary"}, "notify_command can't be read"),
    ({"notify_command": "tell canary"}, "does not begin with a whole path"),
])  # fmt: skip
def test_what_can_not_be_is_refused_and_not_shown(values: dict[str, str], said: str) -> None:
    with pytest.raises(BadSettings, match=said) as refusal:
        ways.chosen(settings(**values))
    assert "canary" not in refusal.value.message + refusal.value.hint
    assert refusal.value.hint


def test_what_is_told_can_be_chosen() -> None:
    usual = ways.kinds(settings())
    assert {"failed", "idle", "gpu_lost"} <= usual
    assert not {"finished", "pcie"} & usual
    assert ways.kinds(settings(notify_about="finished, hot")) == {"finished", "hot"}
    assert ways.kinds(settings(notify_about="all")) == set(messages.TITLES)
    with pytest.raises(BadSettings, match="names 'idel', which is never told, did you mean \"idle\""):
        ways.kinds(settings(notify_about="idel"))


def test_a_token_is_for_its_owners_eyes_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GPUBOX_CONFIG", str(tmp_path))
    file = tmp_path / "box.toml"
    file.write_text(f'notify_ntfy = "https://ntfy.sh/{TOPIC}"\nnotify_token = "{TOKEN}"\n')
    file.chmod(0o644)
    with pytest.raises(BadSettings, match="holds notify_token, and others may read it") as refusal:
        load({})
    assert refusal.value.hint == f"`chmod 600 {file}`"
    file.chmod(0o600)
    chosen = load({})
    shown = f"{chosen!r} {public(chosen)} {ways.chosen(chosen)}"
    assert "canary" not in shown
    assert public(chosen)["notify_token"] == "(set)"
    assert public(chosen)["notify_webhook"] == ""


def test_ntfy_gets_topic_title_and_urgency_in_the_body_and_the_token_in_its_header() -> None:
    (way,) = ways.chosen(settings(notify_ntfy=f"https://ntfy.home/sub/{TOPIC}", notify_token=TOKEN))
    asked: Any = ways.request(way, messages.of_notice(a_notice(), "attic"), "attic")
    assert asked["url"] == "https://ntfy.home/sub"
    assert asked["headers"]["Authorization"] == f"Bearer {TOKEN}"
    assert json.loads(asked["body"]) == {
        "topic": TOPIC, "title": "attic: GPU too hot", "message": "GPU 0 is at 91 °C\nclean filters", "priority": 4,
        "tags": ["warning"],
    }  # fmt: skip


# --- over the wire ---


class Service:
    """Somebody who is told, and answers as it is bidden."""

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, str], Any]] = []
        self.answers: list[int] = []
        self.elsewhere = ""
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                service.got.append((self.path, dict(self.headers), json.loads(body)))
                self.send_response(service.answers.pop(0) if service.answers else 200)
                if service.elsewhere:
                    self.send_header("Location", service.elsewhere)
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.block_on_close = False
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.close()


def tried(way: Way) -> ways.Outcome:
    return asyncio.run(outbox.tell(way, messages.a_test("attic", time.time()), "attic"))


def test_a_webhook_gets_json(service: Service) -> None:
    outcome = tried(Way("webhook", f"{service.url}/hook"))
    assert (outcome.ok, outcome.said) == (True, "webhook: 127.0.0.1 took it")
    ((path, headers, body),) = service.got
    assert (path, headers["Content-Type"]) == ("/hook", "application/json")
    assert {"box": "attic", "kind": "test", "job": None}.items() <= body.items()


@pytest.mark.parametrize(("answer", "said", "again"), [
    (401, "answered 401: it does not let the box in", False),
    (404, "answered 404: it does not take this", False),
    (429, "answered 429: it can't just now", True),
    (500, "answered 500: it can't just now", True),
    (302, "answered 302: it sends elsewhere, which is not followed", False),
    (307, "answered 307: it sends elsewhere, which is not followed", False),
])  # fmt: skip
def test_every_refusal_is_said_and_nothing_is_followed(service: Service, answer: int, said: str, again: bool) -> None:
    other = Service()
    try:
        service.answers, service.elsewhere = [answer], f"{other.url}/caught"
        outcome = tried(Way("ntfy", service.url, TOPIC, TOKEN))
        assert (outcome.ok, outcome.said, outcome.again) == (False, f"ntfy: 127.0.0.1 {said}", again)
        assert outcome.hint
        assert service.got[0][1]["Authorization"] == f"Bearer {TOKEN}"
        assert other.got == [], "the token is for one address"
    finally:
        other.close()


def test_nobody_there_is_said_without_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = tried(Way("webhook", "http://127.0.0.1:1/canary"))
    assert (outcome.said, outcome.again) == ("webhook: 127.0.0.1: Connection refused", True)
    monkeypatch.setattr(outbox, "SECONDS", 2.3)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        outcome = tried(Way("webhook", f"http://127.0.0.1:{deaf.getsockname()[1]}/canary"))
    assert outcome.said == "webhook: 127.0.0.1: no answer in time"


# --- a command ---


def program(folder: Path, text: str) -> Way:
    file = folder / "tell"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o700)
    return ways.chosen(settings(notify_command=f"{file} --loud 'two words'"))[0]


def test_a_command_gets_the_notice_on_its_input_and_in_variables_and_no_shell(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("GPUBOX_NOTIFY_TOKEN", TOKEN)
    way = program(tmp_path, f'cat > {tmp_path}/in; env > {tmp_path}/env; printf "%s|" "$@" > {tmp_path}/args')
    message = messages.of_notice(a_notice(text="`reboot`; $(reboot)", job=7), "attic")
    assert asyncio.run(outbox.tell(way, message, "attic")).ok
    assert json.loads((tmp_path / "in").read_text())["text"] == "`reboot`; $(reboot)"
    assert (tmp_path / "args").read_text() == "--loud|two words|"
    env = (tmp_path / "env").read_text()
    assert "GPUBOX_NOTICE_TEXT=`reboot`; $(reboot)\n" in env
    assert "GPUBOX_NOTICE_JOB=7\n" in env
    assert TOKEN not in env


def test_a_command_that_fails_is_missing_or_hangs_is_told_apart(tmp_path: Path, monkeypatch: Any) -> None:
    outcome = tried(program(tmp_path, "echo no such channel >&2; yes | head -c 1000000; exit 3"))
    assert outcome.said == f"command: {tmp_path}/tell ended with code 3: no such channel"
    assert tried(Way("command", argv=("/nowhere/tell",))).said.endswith("can't be started: No such file or directory")
    monkeypatch.setattr(outbox, "SECONDS", 0.3)
    outcome = tried(program(tmp_path, f"sleep 1000 & echo $! > {tmp_path}/pid; sleep 1000"))
    assert outcome.said == f"command: {tmp_path}/tell was ended after 0 s"
    assert outcome.again
    assert not os.path.exists(f"/proc/{(tmp_path / 'pid').read_text().strip()}/exe"), "and all that it had started"
    assert tried(program(tmp_path, "sleep 1000 & exit 0")).ok, "what it leaves behind is no failure of its own"


# --- the outbox ---


def played(store: Store, scene: Callable[[Outbox], Coroutine[Any, Any, None]], **values: Any) -> list[str]:
    """An outbox at work while the scene goes on; what it reported."""
    said: list[str] = []

    async def main() -> None:
        box = Outbox(settings(**values), store, said.append)
        box.pauses = (0.01,)
        work = asyncio.create_task(box.run())
        try:
            await asyncio.wait_for(scene(box), 10)
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    asyncio.run(main())
    return said


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(f"{tmp_path}/db.sqlite")
    yield made
    made.close()


def test_a_service_that_is_away_is_tried_again_and_told_once(service: Service, store: Store) -> None:
    service.answers = [500, 503]

    async def scene(box: Outbox) -> None:
        box.noticed([a_notice(), a_notice("pcie")])
        await until(lambda: not box.waiting["webhook"])

    said = played(store, scene, notify_webhook=f"{service.url}/canary")
    assert [body["kind"] for _, _, body in service.got] == ["hot"] * 3, "pcie is not among the usual"
    assert said == ["not told yet: webhook: 127.0.0.1 answered 500: it can't just now; 1 wait"], "once"


def test_one_that_refuses_is_in_no_others_way(service: Service, store: Store, tmp_path: Path) -> None:
    service.answers = [403]
    way = program(tmp_path, f"cat > {tmp_path}/told")

    async def scene(box: Outbox) -> None:
        box.ended([a_job(7, words.FAILED, reason="signal"), a_job(8, words.SUCCEEDED), a_job(9, words.CANCELLED)])
        await until(lambda: not any(box.waiting.values()))

    said = played(store, scene, notify_ntfy=f"{service.url}/{TOPIC}", notify_command=way.argv[0])
    assert json.loads((tmp_path / "told").read_text())["job"] == 7
    assert len(service.got) == 1
    assert said == [
        "not told: attic: job 7 failed: ntfy: 127.0.0.1 answered 403: it does not let the box in; "
        "check notify_token, and what it may write to"
    ]


def test_what_a_killed_daemon_did_not_tell_is_told_by_the_next_one(service: Service, store: Store) -> None:
    async def killed(box: Outbox) -> None:
        box.noticed([a_notice()])  # and nothing of it was sent

    played(store, killed, notify_webhook=service.url, notify_about="all")
    assert service.got == []

    async def scene(box: Outbox) -> None:
        await until(lambda: not box.waiting["webhook"])

    played(store, scene, notify_webhook=service.url)
    played(store, lambda box: asyncio.sleep(0), notify_webhook=service.url)
    assert [body["text"] for _, _, body in service.got] == ["GPU 0 is at 91 °C"]
    store.remember(outbox.KEY, '{"webhook": [{"unknown": 1}]}')
    assert Outbox(settings(notify_webhook=service.url), store, lambda said: None).waiting == {"webhook": []}


def test_what_goes_wrong_within_ends_no_way_for_good(
    service: Service, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, faults = outbox._run, iter([OSError(11, "Resource temporarily unavailable"), KeyError("canary")])

    async def run(*given: Any) -> tuple[int | None, bytes]:
        for fault in faults:
            raise fault
        return await real(*given)

    monkeypatch.setattr(outbox, "_run", run)

    async def scene(box: Outbox) -> None:
        box.noticed([a_notice()])
        await until(lambda: not box.waiting["webhook"])

    said = played(store, scene, notify_webhook=service.url)
    assert len(service.got) == 1
    assert [line.partition(";")[0] for line in said] == [
        "not told yet: webhook: no process for it: Resource temporarily unavailable", "webhook: KeyError",
    ]  # fmt: skip


def test_what_waits_is_bounded_and_what_is_old_is_told_to_nobody(store: Store) -> None:
    said: list[str] = []
    box = Outbox(settings(notify_webhook="http://127.0.0.1:1/"), store, said.append)
    old = a_notice()
    old.at -= 2 * outbox.OLD
    box.noticed([old])
    assert box._next(box.ways[0]) is None
    box.noticed([a_notice(text=str(number)) for number in range(outbox.WAITING_MAX + 5)])
    assert [len(box.waiting["webhook"]), box.waiting["webhook"][0].text] == [outbox.WAITING_MAX, "5"]
    box.ended([a_job(id, words.FAILED) for id in range(1, 1001)])
    assert len(box.waiting["webhook"]) == outbox.WAITING_MAX
    assert box.waiting["webhook"][0].failed == 1000 or said[-1].startswith("webhook: ")
    assert said[0] == "webhook: 1 notifications could not be sent within a day"


def test_an_end_is_told_when_it_is_durable_and_not_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with a_hall(tmp_path) as hall:
        told: list[tuple[int, str]] = []
        hall.daemon.ended = lambda jobs: told.extend((job.id, hall.read(job).state) for job in jobs)
        first, second = hall.submit("true"), hall.submit("true")
        hall.turn()
        hall.engine.runs(first, second)
        hall.turn()
        hall.engine.ends(first)
        apply = hall.store.apply
        monkeypatch.setattr(hall.store, "apply", lambda *given: apply(*given) - {first.id})
        with pytest.raises(Exception, match="disagreed"):
            hall.turn()
        assert told == []
        monkeypatch.undo()
        hall.engine.ends(second, reason="exit_code")
        hall.turn()
        assert (second.id, words.FAILED) in told


def test_a_flood_does_not_carry_away_what_is_critical(store: Store) -> None:
    """As of a sweep each of whose jobs has the same fault."""
    box = Outbox(settings(notify_webhook="http://127.0.0.1:1"), store, lambda said: None)
    box.noticed([replace(a_notice("gpu_lost"), severity="critical")])
    box.noticed([a_notice("xid", str(number)) for number in range(3 * outbox.WAITING_MAX)])
    kept = [each.text for each in box.waiting["webhook"]]
    assert kept == ["GPU 0 is at 91 °C", *map(str, range(2 * outbox.WAITING_MAX + 1, 3 * outbox.WAITING_MAX))]
    assert [
        each.text for each in Outbox(settings(notify_webhook="http://127.0.0.1:1"), store, print).waiting["webhook"]
    ] == kept


def test_what_is_recorded_is_in_the_outbox_whenever_the_daemon_is_killed(tmp_path: Path) -> None:
    """Between the transaction that records an end, or a notice, and the moment in which somebody hears of it."""
    chosen = settings(notify_webhook="http://127.0.0.1:1", notify_about="all")
    with a_hall(tmp_path) as hall:
        ours = Outbox(chosen, hall.store, print)
        hall.daemon.ending, hall.daemon.gpus.noticing = ours.ending, ours.noticing
        hall.daemon.ended = hall.daemon.gpus.noticed = lambda found: None  # who was killed hears nothing
        job = hall.submit("true")
        hall.turn()
        hall.engine.runs(job)
        hall.turn()
        hall.engine.ends(job)
        hall.turn()
        (told,) = Outbox(chosen, hall.store, print).waiting["webhook"]
        assert (told.kind, told.job) == ("finished", job.id)
        hall.daemon.gpus.notify([a_notice("disk")])
        assert [each.kind for each in Outbox(chosen, hall.store, print).waiting["webhook"]] == ["disk"], (
            "of this outbox"
        )
        ours.noticed([a_notice("hot"), a_notice("xid")])
        kinds = [each.kind for each in Outbox(chosen, hall.store, print).waiting["webhook"]]
        assert kinds == ["hot", "xid"], "what was not handed to a transaction is kept, too"


def test_an_end_is_written_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    box = Outbox(settings(notify_webhook="http://127.0.0.1:1"), store, print)
    job = a_job(7, words.FAILED, ended_at=NOW)
    facts = box.ending([job])
    monkeypatch.setattr(box, "_save", lambda: pytest.fail("the transaction of the end had it"))
    box.ended([job])
    assert facts == {outbox.KEY: box._dumped(box.waiting)}


# --- the whole ---


def test_the_daemon_tells_and_tests(service: Service, tmp_path: Path) -> None:
    chosen = {"notify_token": TOKEN, "notify_about": "all", "notify_webhook": "http://127.0.0.1:1/canary"}
    box = Box(tmp_path, notify_ntfy=f"{service.url}/{TOPIC}", **chosen)
    box.start()
    try:
        tested = box.call("notices", "test")
        assert tested.returncode == 1
        assert tested.stdout.splitlines() == [
            "sent  ntfy: 127.0.0.1 took it",
            "not sent  webhook: 127.0.0.1: Connection refused",
            "          is notify_webhook right, and may the box reach it?",
        ]
        box.submit(["sh", "-c", "exit 4"])
        wait_until(lambda: len(service.got) > 1, 15, box.story)
        assert re.match(r"job 1 failed, after \d s: exit code 4", service.got[1][2]["message"])
        assert "canary" not in box.story() + json.dumps(box.get("/box"))
    finally:
        box.end()


@pytest.mark.long
def test_what_a_killed_daemon_could_not_tell_the_next_one_tells_once(service: Service, tmp_path: Path) -> None:
    service.answers = [503]
    box = Box(tmp_path, notify_webhook=f"{service.url}/hook", notify_about="finished")
    box.start()
    try:
        box.ended(box.submit(["true"], name="train.py"))
        wait_until(lambda: service.got, 15, box.story)  # it was asked, and could not just then
        box.stop(signal.SIGKILL)
        box.start()
        wait_until(lambda: len(service.got) > 1, 15, box.story)
        box.ended(box.submit(["true"], name="later"))
        wait_until(lambda: len(service.got) > 2, 15, box.story)
        assert [body["job"] for _, _, body in service.got] == [1, 1, 2]
    finally:
        box.end()
