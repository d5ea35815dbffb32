"""The API as bytes on its socket, answered by a real daemon."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_nvml
import pytest
import tools
import wire
from fastapi import FastAPI

from runner import words
from runner.box import openapi
from runner.box.api import front
from runner.box.api.front import CONNECTIONS_MAX
from runner.errors import Problem, StateDamaged


@pytest.fixture(scope="module")
def daemon() -> Iterator[wire.Box]:
    """One daemon for all of these; jobs of others don't disturb."""
    with wire.place() as folder:
        box = wire.Box(Path(folder), cpus="4")
        try:
            box.start()
            yield box
        finally:
            box.end()


def refused(reply: wire.Reply, status: int, code: str) -> str:
    """The message of an error, which must have the shape that all errors have."""
    assert reply.status == status, reply
    said = reply.json()
    assert said.keys() == {"code", "message", "hint"}, said
    assert said["code"] == code, said
    assert reply.headers["x-gpubox-api"] == "1"
    return str(said["message"])


def snapshot(files: dict[str, bytes]) -> tuple[str, dict[str, Any], bytes]:
    """(id, offer, frames) of a project, as a laptop would send it."""
    entries = {path: [0o644, len(data), hashlib.sha256(data).hexdigest()] for path, data in files.items()}
    whole = {"version": 1, "files": entries, "links": {}, "dirs": []}
    data = json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    named = hashlib.sha256(data).hexdigest()
    frames = b"".join(f"{hashlib.sha256(d).hexdigest()} {len(d)}\n".encode() + d for d in files.values())
    return named, {"id": named, "base": None, "files": entries, "removed": [], "links": {}, "dirs": []}, frames


def send(daemon: wire.Box, files: dict[str, bytes]) -> str:
    named, offer, frames = snapshot(files)
    if daemon.post("/snapshots", offer)["missing"]:
        stored = daemon.ask("POST", "/blobs", frames, {"Content-Type": "application/octet-stream"})
        assert stored.json() == {"stored": len(set(files.values()))}, stored
        assert daemon.post("/snapshots", offer)["missing"] == []
    return named


# --- the contract ----------------------------------------------------------------------------------------------------


def test_the_description_is_what_the_code_says() -> None:
    written = Path(openapi.PATH).read_text()
    command = [sys.executable, "-m", "runner.box.openapi", "-"]
    described = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tools.ROOT).stdout
    assert written == described, "the API has changed: run `python -m runner.box.openapi` and look at it"


def test_every_reply_names_its_level_and_version(daemon: wire.Box) -> None:
    for reply in (daemon.ask("GET", "/hello"), daemon.ask("GET", "/nowhere")):
        assert reply.headers["x-gpubox-api"] == "1"
        assert reply.headers["x-gpubox-version"]
        assert not {"server", "date"} & reply.headers.keys()


def test_hello_says_who_is_there(daemon: wire.Box) -> None:
    said = daemon.get("/hello")
    assert daemon.daemon is not None
    assert (said["pid"], said["uid"], said["role"]) == (daemon.daemon.pid, os.getuid(), "admin")
    assert (said["state"], said["draining"], said["box"]) == (daemon.state, False, "local")


def test_no_header_changes_who_the_kernel_says_is_asking(daemon: wire.Box) -> None:
    forged = {"X-Forwarded-For": "uid:54321", "Forwarded": "for=uid:54321", "X-Forwarded-Proto": "https"}
    assert daemon.ask("GET", "/hello", headers=forged).json()["uid"] == os.getuid()


def test_the_box_tells_what_it_has(daemon: wire.Box) -> None:
    said = daemon.get("/box")
    assert said["capacity"]["cpus"] == 4
    assert said["disk"]["free_bytes"] > 0
    assert said["versions"]["base_python"]
    assert said["settings"]["idle_minutes"] == 15


# --- a job, from the first to the last -------------------------------------------------------------------------------


def test_a_job_runs_and_its_log_says_what_it_said(daemon: wire.Box) -> None:
    job_id = daemon.submit(wire.HELLO)
    job = daemon.ended(job_id)
    assert (job["state"], job["exit_code"]) == (words.SUCCEEDED, 0)
    log = daemon.ask("GET", f"/logs/{job_id}")
    assert (log.body, log.headers["x-gpubox-size"]) == (b"hi\n", "3")
    assert daemon.get(f"/jobs/{job_id}/why") == {"id": job_id, "state": "succeeded", "why": "it succeeded"}


def test_a_job_finds_the_files_that_were_sent(daemon: wire.Box) -> None:
    named = send(daemon, {"a.txt": b"one\n", "sub/b.txt": b"two\n"})
    job_id = daemon.submit(["cat", "a.txt", "sub/b.txt"], snapshot=named)
    assert daemon.ended(job_id)["state"] == words.SUCCEEDED
    assert daemon.ask("GET", f"/logs/{job_id}").body == b"one\ntwo\n"
    shown = daemon.get(f"/jobs/{job_id}")
    assert shown["files"] == {"count": 2, "bytes": 8}
    assert daemon.get(f"/jobs/{job_id}/files")["files"]["a.txt"][1] == 4
    one = hashlib.sha256(b"one\n").hexdigest()
    assert daemon.ask("GET", f"/blobs/{one}").body == b"one\n"


def test_python_is_the_base_interpreter_of_a_job_that_declares_nothing(daemon: wire.Box) -> None:
    named = send(daemon, {"train.py": b"import sys; print(sys.prefix == sys.base_prefix)\n"})
    job_id = daemon.submit(["python", "train.py"], snapshot=named, script="train.py")
    assert daemon.ended(job_id)["state"] == words.SUCCEEDED
    assert daemon.ask("GET", f"/logs/{job_id}").body == b"True\n"


def test_outputs_are_listed_read_and_marked_as_fetched(daemon: wire.Box) -> None:
    odd = b"caf\xe9 \xff"  # not UTF-8
    script = b"import os\nfor n in (b'm.json', os.fsencode(os.environ['RUNNER_OUT']) + b'/' + b'caf\\xe9 \\xff'):\n"
    script += b"    open(os.path.join(os.fsencode(os.environ['RUNNER_OUT']), n), 'wb').write(b'x' * 300000)\n"
    named = send(daemon, {"out.py": script})
    job_id = daemon.submit(["python", "out.py"], snapshot=named)
    assert daemon.ended(job_id)["state"] == words.SUCCEEDED, daemon.ask("GET", f"/logs/{job_id}")
    listed = daemon.get(f"/jobs/{job_id}/outputs")
    assert [each["path"] for each in listed["outputs"]] == sorted(["m.json", os.fsdecode(odd)])
    quoted = "".join(f"%{byte:02X}" for byte in odd)
    assert daemon.ask("GET", f"/jobs/{job_id}/outputs/{quoted}").body == b"x" * 300_000
    assert daemon.ask("GET", f"/jobs/{job_id}/outputs/m.json?offset=299998").body == b"xx"
    refused(daemon.ask("GET", f"/jobs/{job_id}/outputs/..%2F1%2Flog"), 422, "bad_request")
    refused(daemon.ask("GET", f"/jobs/{job_id}/outputs/none"), 404, "not_found")
    right = hashlib.sha256(b"x" * 300_000).hexdigest()
    refused(daemon.ask("POST", f"/jobs/{job_id}/fetched", {"hashes": [right]}), 422, "bad_request")
    assert daemon.post(f"/jobs/{job_id}/fetched", {"hashes": [right, "0" * 64]}) == {"differ": ["m.json"]}
    assert daemon.get(f"/jobs/{job_id}")["job"]["fetched_at"] is None
    assert daemon.post(f"/jobs/{job_id}/fetched", {"hashes": [right, right]}) == {"differ": []}
    assert daemon.get(f"/jobs/{job_id}")["job"]["fetched_at"] is not None


def test_a_rerun_is_a_new_job_of_the_same_command(daemon: wire.Box) -> None:
    first = daemon.submit(wire.HELLO, name="greeting")
    daemon.ended(first)
    key = {"Idempotency-Key": os.urandom(8).hex()}
    again = daemon.ask("POST", f"/jobs/{first}/rerun", {}, key)
    twice = daemon.ask("POST", f"/jobs/{first}/rerun", {}, key)
    assert (again.status, twice.status) == (201, 200)
    assert again.json()["id"] == twice.json()["id"] > first
    assert daemon.ended(again.json()["id"])["name"] == "greeting"


# --- submit, in all its ways to be wrong ------------------------------------------------------------------------------


def test_a_repeated_submit_is_answered_and_not_repeated(daemon: wire.Box) -> None:
    body = {"spec": {"command": ["true"]}, "held": True}
    key = {"Idempotency-Key": os.urandom(8).hex()}
    first, second = (daemon.ask("POST", "/jobs", body, key) for _ in range(2))
    assert (first.status, second.status) == (201, 200)
    assert first.json()["id"] == second.json()["id"]
    other = daemon.ask("POST", "/jobs", {"spec": {"command": ["false"]}}, key)
    refused(other, 422, "key_reused")


def test_what_a_newer_client_says_is_ignored_where_it_is_not_known(daemon: wire.Box) -> None:
    reply = daemon.ask("POST", "/jobs", {"spec": {"command": ["true"], "colour": "red"}, "mood": 1, "held": True})
    assert reply.status == 201


@pytest.mark.parametrize(
    ("body", "status", "code", "says"),
    [
        pytest.param({"spec": {"command": "ls"}}, 422, "bad_request", "spec.command should be a valid list", id="type"),
        pytest.param({"spec": {}}, 422, "bad_request", "spec.command", id="missing"),
        pytest.param({"spec": {"command": []}}, 422, "bad_request", "the command is empty", id="empty"),
        pytest.param({"spec": {"command": ["x"], "cpus": 99}}, 422, "too_much", "asks for 99 cpus", id="too much"),
        pytest.param([], 422, "bad_request", "the body", id="a list"),
        pytest.param(b"{", 400, "bad_data", "not JSON", id="no JSON"),
        pytest.param(b"[" * 100_000, 400, "bad_data", "nested too deeply", id="a bomb of depth"),
        pytest.param(b"\xff\xfe", 400, "bad_data", "", id="no text"),
        pytest.param(b'{"spec":{"command":["x"],"time_limit":NaN}}', 422, "bad_request", "time limit", id="NaN"),
        pytest.param(b'{"spec":{"command":["x"],"cpus":1e400}}', 422, "bad_request", "spec.cpus", id="infinite"),
        pytest.param({"spec": {"command": ["x"], "after": [{"job": 10**9}]}}, 422, "bad_request", "no job", id="after"),
        pytest.param({"spec": {"command": ["x"], "after": [{"job": 2**70}]}}, 422, "bad_request", "", id="huge after"),
        pytest.param({"spec": {"command": ["x"], "snapshot": "0" * 64}}, 404, "snapshot_unknown", "", id="snapshot"),
        pytest.param({"spec": {"command": ["x"], "snapshot": "../x"}}, 422, "bad_request", "", id="hostile snapshot"),
        pytest.param({"spec": {"command": ["x"], "priority": 2**80}}, 422, "bad_request", "priority", id="priority"),
        pytest.param({"spec": {"command": ["x"], "name": "a\udcff"}}, 422, "bad_request", "name", id="name"),
    ],
)
def test_a_submit_that_can_not_be_is_refused_in_words(
    daemon: wire.Box, body: object, status: int, code: str, says: str
) -> None:
    before = daemon.get("/box")["counts"]
    assert says in refused(daemon.ask("POST", "/jobs", body), status, code)
    after = daemon.get("/box")["counts"]
    assert sum(before.values()) == sum(after.values())


def test_a_script_that_was_not_sent_is_named(daemon: wire.Box) -> None:
    named = send(daemon, {"a.py": b"1\n"})
    body = {"spec": {"command": ["python", "b.py"], "snapshot": named, "script": "b.py"}}
    assert "'b.py' is not among the files sent" in refused(daemon.ask("POST", "/jobs", body), 422, "bad_request")


def test_a_body_over_the_limit_is_refused_before_it_is_read(daemon: wire.Box) -> None:
    with wire.Wire(daemon.socket) as connection:
        connection.send("POST", "/jobs", b"", {"Content-Length": str(9 << 20)})
        assert "8 MiB" in refused(connection.reply(), 413, "too_large")


def test_a_body_that_does_not_say_how_long_it_is_stops_at_the_limit(daemon: wire.Box) -> None:
    with wire.Wire(daemon.socket) as connection:
        head = "POST /api/v1/jobs HTTP/1.1\r\nHost: box\r\nContent-Type: application/json\r\n"
        connection.socket.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        try:
            for _ in range(9):
                connection.socket.sendall(b"100000\r\n" + b" " * (1 << 20) + b"\r\n")
        except OSError:
            pass  # it has answered and hung up
        refused(connection.reply(), 413, "too_large")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("DELETE", "/jobs", 405, "bad_request"),
        ("GET", "/jobs/abc", 404, "not_found"),
        ("GET", "/jobs/0", 422, "bad_request"),
        ("GET", "/jobs/99999999", 404, "not_found"),
        ("GET", f"/jobs/{2**70}", 422, "bad_request"),
        ("GET", "/jobs?ids=1-99999999999", 422, "bad_request"),
        ("GET", "/jobs?ids=x", 422, "bad_request"),
        ("GET", f"/jobs?ids={2**70}", 422, "bad_request"),
        ("GET", "/jobs?state=quued", 422, "bad_request"),
        ("GET", "/jobs?all=1&state=a')--", 422, "bad_request"),
        ("GET", "/groups/g99999999", 404, "not_found"),
        ("GET", "/groups/x", 422, "bad_request"),
        ("GET", "/blobs/abc", 400, "bad_data"),
        ("GET", f"/blobs/{'0' * 64}", 404, "not_found"),
        ("GET", "/logs/99999999/follow", 404, "not_found"),
    ],
)
def test_what_is_not_there_is_said_so(daemon: wire.Box, method: str, path: str, status: int, code: str) -> None:
    refused(daemon.ask(method, path), status, code)


def test_contents_that_do_not_match_their_name_are_refused(daemon: wire.Box) -> None:
    frame = f"{hashlib.sha256(b'right').hexdigest()} 5\nwrong".encode()
    refused(daemon.ask("POST", "/blobs", frame, {"Content-Type": "application/octet-stream"}), 400, "bad_data")
    refused(daemon.ask("POST", "/blobs", frame[:-2], {"Content-Type": "application/octet-stream"}), 400, "bad_data")


def test_an_upload_that_breaks_off_leaves_nothing_behind(daemon: wire.Box) -> None:
    with wire.Wire(daemon.socket) as connection:
        begun = f"{'a' * 64} 5000000\n".encode() + b"x" * 3_000_000
        connection.send("POST", "/blobs", begun, {"Content-Length": "5000073"})
    tools.wait_until(lambda: os.listdir(f"{daemon.state.blobs}/incoming") == [])


# --- wishes ----------------------------------------------------------------------------------------------------------


def test_wishes_reach_the_queue(daemon: wire.Box) -> None:
    job_id = daemon.submit(wire.HELLO, held=True)
    assert "held" in daemon.get(f"/jobs/{job_id}/why")["why"]
    (job,) = daemon.post("/jobs/priority", {"ids": [job_id], "priority": 7})["jobs"]
    assert job["priority"] == 7
    assert daemon.post("/jobs/release", {"ids": [str(job_id)]})["jobs"][0]["held"] is False
    assert daemon.ended(job_id)["state"] == words.SUCCEEDED
    refused(daemon.ask("POST", "/jobs/hold", {"ids": [job_id]}), 409, "busy")


def test_a_running_job_is_cancelled_with_all_that_it_started(daemon: wire.Box) -> None:
    job_id = daemon.submit(["sh", "-c", "sleep 600 & sleep 600"])
    tools.wait_until(lambda: daemon.state_of(job_id) == words.RUNNING)
    daemon.post("/jobs/cancel", {"ids": [job_id], "grace": 5})
    assert daemon.ended(job_id)["state"] == words.CANCELLED


def test_a_group_is_counted_and_cancelled_by_its_name(daemon: wire.Box) -> None:
    made = daemon.post("/jobs", {"spec": {"command": ["true"]}, "array": [1, 2, 3], "held": True})
    assert daemon.get(f"/groups/{made['group']}") == {"group": made["group"], "jobs": {"queued": 3}}
    assert len(daemon.post("/jobs/cancel", {"ids": [made["group"]]})["jobs"]) == 3
    assert daemon.get(f"/groups/{made['group']}")["jobs"] == {"cancelled": 3}


def test_of_some_jobs_those_that_nobody_brought_home_can_be_asked_for(daemon: wire.Box) -> None:
    made = daemon.post("/jobs", {"spec": {"command": ["true"]}, "array": [0, 1, 2], "held": True})
    first, group = made["id"], made["group"]
    daemon.post("/jobs/cancel", {"ids": [first, first + 1]})
    asked = lambda: [job["id"] for job in daemon.get(f"/jobs?ids={group}&unfetched=1")["jobs"]]  # noqa: E731
    assert asked() == [first, first + 1]
    daemon.post(f"/jobs/{first}/fetched", {"hashes": []})
    assert asked() == [first + 1]
    daemon.post("/jobs/cancel", {"ids": [group]})
    assert asked() == [first + 1, first + 2]
    refused(daemon.ask("GET", "/jobs?ids=g99999999&unfetched=1"), 404, "not_found")


@pytest.mark.parametrize("ids", [[], ["x"], [-1], [2**70], ["g"], ["1-2"], [None], [[1]], "1"], ids=str)
def test_ids_that_are_none_are_refused(daemon: wire.Box, ids: object) -> None:
    refused(daemon.ask("POST", "/jobs/cancel", {"ids": ids}), 422, "bad_request")


def test_draining_is_told_and_ended(daemon: wire.Box) -> None:
    assert daemon.post("/box/drain", {"on": True}) == {"on": True}
    made = daemon.post("/jobs", {"spec": {"command": ["true"]}})
    assert "draining" in made["warnings"][0]
    assert daemon.get("/hello")["draining"] is True
    daemon.post("/box/drain", {"on": False})
    assert daemon.ended(made["id"])["state"] == words.SUCCEEDED


# --- GPUs ------------------------------------------------------------------------------------------------------------


@contextmanager
def beside(*models: str) -> Iterator[tuple[wire.Box, fake_nvml.FakeNvml]]:
    """A daemon that has just begun, on a machine with these GPUs; without any there is no driver either."""
    with wire.place() as folder:
        driver = fake_nvml.FakeNvml(Path(folder))
        for model in models:
            driver.add(model)
        driver.driver_not_loaded(not models)
        box = wire.Box(Path(folder), cpus="4")
        box.env.update(driver.env)
        try:
            box.start()
            yield box, driver
        finally:
            box.end()


@pytest.fixture(scope="module")
def equipped() -> Iterator[tuple[wire.Box, fake_nvml.FakeNvml]]:
    with beside("3090", "4090") as both:
        yield both


def test_without_a_driver_there_are_no_gpus_and_a_reason() -> None:
    with beside() as (box, _):
        said = box.get("/gpus")
        assert said["gpus"] == []
        assert said["silent"]
        assert box.get("/box")["capacity"]["gpus"] == 0
        none = box.ask("POST", "/jobs", {"spec": {"command": ["x"], "gpus": 1}})
        assert "the box has none" in refused(none, 422, "too_much")
        refused(box.ask("POST", "/gpus/0/drain", {"on": True}), 404, "not_found")
        assert box.ended(box.submit(["true"]))["state"] == words.SUCCEEDED


def test_a_daemon_that_has_just_begun_knows_its_gpus(equipped: tuple[wire.Box, fake_nvml.FakeNvml]) -> None:
    box, driver = equipped
    said = box.get("/gpus")
    assert said["silent"] is None
    assert [(gpu["index"], gpu["uuid"]) for gpu in said["gpus"]] == [(n, gpu.uuid) for n, gpu in enumerate(driver.gpus)]
    assert {gpu["state"] for gpu in said["gpus"]} == {words.FREE}
    assert all(gpu["sample"]["temperature_celsius"] > 0 and gpu["memory_bytes"] > 23 << 30 for gpu in said["gpus"])
    about = box.get("/box")
    assert (about["capacity"]["gpus"], about["free"]["gpus"]) == (2, 2)


def test_a_gpu_is_drained_by_any_of_its_names(equipped: tuple[wire.Box, fake_nvml.FakeNvml]) -> None:
    box, driver = equipped
    for name in ("1", driver.gpus[1].uuid, driver.gpus[1].uuid[:12]):
        gpu = box.post(f"/gpus/{name}/drain", {"on": True})["gpu"]
        assert (gpu["uuid"], gpu["state"], gpu["drained"]) == (driver.gpus[1].uuid, words.DRAINING, True)
        assert box.post(f"/gpus/{name}/drain", {"on": False})["gpu"]["state"] == words.FREE
    for name in ("2", "GPU-ffffffff", "GPU-", "%20", "x" * 101):
        assert box.ask("POST", f"/gpus/{name}/drain", {"on": True}).status in (404, 422), name
    refused(box.ask("POST", "/gpus/0/drain", {}), 422, "bad_request")


def test_a_job_says_which_gpus_it_was_given(equipped: tuple[wire.Box, fake_nvml.FakeNvml]) -> None:
    box, driver = equipped
    job_id = box.submit(["sleep", "600"], gpus=1, gpu_type="3090")
    try:
        tools.wait_until(lambda: box.state_of(job_id) == words.RUNNING, 20, box.story)
        wanted = driver.gpus[0].uuid
        for path in (f"/jobs?ids={job_id}", "/jobs?grouped=1"):
            listed = box.get(path)
            assert [job["allotted"] for job in listed["jobs"]] == [[wanted]]
            assert listed["gpus"][wanted] == 0
        shown = box.get(f"/jobs/{job_id}")
        assert shown["attempts"][0]["allotted"] == [wanted]
        assert shown["gpus"].keys() == {wanted}
        assert shown["gpus"][wanted]["index"] == 0
        assert box.get("/gpus")["gpus"][0]["jobs"] == [job_id]
    finally:
        box.post("/jobs/cancel", {"ids": [job_id], "grace": 0})
        box.ended(job_id)


def test_more_than_the_gpus_are_is_refused_in_words(equipped: tuple[wire.Box, fake_nvml.FakeNvml]) -> None:
    box, _ = equipped
    for wish, code, says in (
        ({"gpus": 3}, "too_much", "3 GPUs, the box has 2"),
        ({"gpu_type": "5090"}, "too_much", "1 RTX 3090"),
        ({"gpu_memory_bytes": 900 << 30}, "too_much", "900 GiB"),
        ({"gpus": -1}, "bad_request", "gpus is -1"),
    ):
        body = {"spec": {"command": ["true"], **wish}}
        assert says in refused(box.ask("POST", "/jobs", body), 422, code)


def test_a_process_is_adopted_and_only_let_go(equipped: tuple[wire.Box, fake_nvml.FakeNvml]) -> None:
    box, driver = equipped
    with subprocess.Popen(["sleep", "600"]) as process:
        driver.gpus[1].process(process.pid, 8 << 30)
        try:
            tools.wait_until(lambda: box.get("/gpus")["gpus"][1]["state"] == words.FOREIGN, 20, box.story)
            (found,) = box.get("/gpus")["gpus"][1]["processes"]
            assert (found["pid"], found["job"], found["command"]) == (process.pid, None, "sleep 600")
            made = box.ask("POST", "/jobs/adopt", {"pid": process.pid})
            assert made.status == 201, made
            job_id = made.json()["id"]
            refused(box.ask("POST", "/jobs/adopt", {"pid": process.pid}), 409, "busy")
            assert box.get(f"/jobs/{job_id}")["gpus"][driver.gpus[1].uuid]["index"] == 1
            tools.wait_until(lambda: box.state_of(job_id) == words.RUNNING, 20, box.story)
            box.post("/jobs/cancel", {"ids": [job_id]})
            box.ended(job_id)
            assert process.poll() is None
        finally:
            process.kill()
            driver.gpus[1].ends(process.pid)
    for pid in (0, -1, 2**70):
        assert box.ask("POST", "/jobs/adopt", {"pid": pid}).status in (404, 422), pid


def test_a_gpu_that_is_gone_for_good_is_forgotten(equipped: tuple[wire.Box, fake_nvml.FakeNvml]) -> None:
    box, driver = equipped
    refused(box.ask("POST", "/gpus/0/forget", {}), 409, "busy")
    lent = driver.add("2080s")
    tools.wait_until(lambda: len(box.get("/gpus")["gpus"]) == 3, 20, box.story)
    driver.drop(lent)
    tools.wait_until(lambda: box.get("/gpus")["gpus"][2]["state"] == words.GONE, 20, box.story)
    assert box.get("/box")["capacity"]["gpus"] == 2
    assert box.post(f"/gpus/{lent.uuid}/forget") == {}
    assert [gpu["uuid"] for gpu in box.get("/gpus")["gpus"]] == [gpu.uuid for gpu in driver.gpus[:2]]


# --- lists -----------------------------------------------------------------------------------------------------------


def test_jobs_are_listed_by_state_and_id(daemon: wire.Box) -> None:
    made = daemon.post("/jobs", {"spec": {"command": ["true"]}, "array": [0, 1, 2], "held": True})
    first = made["id"]
    assert [job["id"] for job in daemon.get(f"/jobs?ids={first}-{first + 2}")["jobs"]] == [first, first + 1, first + 2]
    assert [job["id"] for job in daemon.get(f"/jobs?ids={made['group']}&last=1")["jobs"]] == [first + 2]
    assert all(job["state"] == "queued" for job in daemon.get("/jobs?state=queued")["jobs"])
    assert all(job["why"] for job in daemon.get("/jobs?state=queued")["jobs"])
    daemon.post("/jobs/cancel", {"ids": [first]})
    found = daemon.get("/jobs?state=cancelled,queued")["jobs"]
    assert {"cancelled", "queued"} == {job["state"] for job in found}
    daemon.post("/jobs/cancel", {"ids": [made["group"]]})


def test_a_group_is_listed_as_a_whole_with_the_reason_of_its_first_that_waits(daemon: wire.Box) -> None:
    made = daemon.post("/jobs", {"spec": {"command": ["true"], "name": "many"}, "array": [*range(40)], "held": True})
    first, name = made["id"], made["group"]
    alone = daemon.submit(["true"], held=True)
    listed = daemon.get("/jobs?grouped=1&state=queued")
    assert listed["jobs"][-1]["id"] == alone
    assert not [job for job in listed["jobs"] if job["group"] == name]
    assert "held" in listed["jobs"][-1]["why"]
    (group,) = listed["groups"]
    assert (group["group"], group["name"], group["counts"]) == (name, "many", {"queued": 40})
    assert (group["first_id"], group["last_id"]) == (first, first + 39)
    assert group["why"] == f"held; `runner release {name}` lets them go"
    chosen = daemon.get(f"/jobs?grouped=1&ids={name},{first},{alone}")
    assert ([job["id"] for job in chosen["jobs"]], len(chosen["groups"])) == ([first, alone], 1)
    refused(daemon.ask("GET", "/jobs?grouped=1&ids=g99999999"), 404, "not_found")
    gone = daemon.post("/jobs/cancel?brief=1", {"ids": [name, alone]})["jobs"]
    assert gone[0] == {"id": first, "state": "cancelled", "priority": 0}
    assert len(gone) == 41
    assert daemon.get("/jobs?grouped=1&state=queued")["groups"] == []
    assert name in [group["group"] for group in daemon.get("/jobs?grouped=1")["groups"]], "it has just ended"


def test_grouped_reasons_are_those_of_each_job_alone(daemon: wire.Box) -> None:
    cpus = daemon.get("/box")["capacity"]["cpus"]
    blocker = daemon.submit(["sleep", "600"], cpus=cpus)
    tools.wait_until(lambda: daemon.state_of(blocker) == words.RUNNING)
    many = daemon.post("/jobs", {"spec": {"command": ["true"]}, "array": [*range(50)]})
    behind = daemon.submit(["true"])
    try:
        one_by_one = {job["id"]: job["why"] for job in daemon.get("/jobs?state=queued")["jobs"]}
        listed = daemon.get("/jobs?grouped=1&state=queued")
    finally:
        daemon.post("/jobs/cancel", {"ids": [blocker, many["group"], behind], "grace": 0})
        daemon.ended(blocker)
    assert {job["why"] for job in listed["jobs"] if job["id"] == behind} == {one_by_one[behind]}
    assert [group["why"] for group in listed["groups"]] == [one_by_one[many["id"]]]


def test_all_jobs_come_as_lines(daemon: wire.Box) -> None:
    job_id = daemon.submit(["true"], held=True)
    reply = daemon.ask("GET", "/jobs?all=1")
    assert reply.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in reply.body.splitlines()]
    assert lines[-1]["id"] == job_id
    assert sum(daemon.get("/box")["counts"].values()) == len(lines)
    queued = daemon.ask("GET", "/jobs?all=1&state=queued").body.splitlines()
    assert {json.loads(line)["state"] for line in queued} == {"queued"}


# --- streams ---------------------------------------------------------------------------------------------------------


def frames(pieces: Iterator[bytes]) -> Iterator[tuple[dict[str, Any], bytes]]:
    rest = b""
    for piece in pieces:
        rest += piece
        while (end := rest.find(b"\n")) >= 0:
            head = json.loads(rest[:end])
            if len(rest) < end + 1 + head["bytes"]:
                break
            yield head, rest[end + 1 : end + 1 + head["bytes"]]
            rest = rest[end + 1 + head["bytes"] :]


def test_a_follower_sees_the_log_and_the_end(daemon: wire.Box) -> None:
    job_id = daemon.submit(wire.HELLO, held=True)
    with wire.Wire(daemon.socket) as connection:
        connection.send("GET", f"/logs/{job_id}/follow")
        assert connection.head()[1]["content-type"] == "application/x-gpubox-frames"
        coming = frames(connection.pieces())
        head, _ = next(coming)
        assert (head["kind"], head["state"]) == ("state", "queued")
        assert "held" in head["why"]
        daemon.post("/jobs/release", {"ids": [job_id]})
        rest = list(coming)
    assert b"".join(body for head, body in rest if head["kind"] == "log") == b"hi\n"
    assert rest[-1][0]["kind"] == "end"
    assert rest[-1][0]["job"]["state"] == words.SUCCEEDED


def test_a_log_is_read_by_offset(daemon: wire.Box) -> None:
    job_id = daemon.submit(["sh", "-c", "printf 0123456789"])
    daemon.ended(job_id)
    assert daemon.ask("GET", f"/logs/{job_id}?offset=2&limit=3").body == b"234"
    assert daemon.ask("GET", f"/logs/{job_id}?offset=-2").body == b"89"
    refused(daemon.ask("GET", f"/logs/{job_id}?attempt=9"), 404, "not_found")


def events(pieces: Iterator[bytes]) -> Iterator[dict[str, str]]:
    rest = b""
    for piece in pieces:
        rest += piece
        while (end := rest.find(b"\n\n")) >= 0:
            lines = rest[:end].decode().split("\n")
            rest = rest[end + 2 :]
            yield dict(line.split(": ", 1) for line in lines if not line.startswith(":"))


def test_events_tell_what_changes_and_can_be_resumed(daemon: wire.Box) -> None:
    with wire.Wire(daemon.socket) as connection:
        connection.send("GET", "/events")
        assert connection.head()[1]["content-type"].startswith("text/event-stream")
        coming = events(connection.pieces())
        assert "retry" in next(coming)
        job_id = daemon.submit(wire.HELLO)
        seen = []
        for event in coming:
            seen.append(event)
            told = json.loads(event["data"])
            if told["id"] == job_id and told["state"] == words.SUCCEEDED:
                break
    first = int(seen[0]["id"])
    with wire.Wire(daemon.socket) as connection:
        connection.send("GET", "/events", headers={"Last-Event-ID": str(first)})
        connection.head()
        again = events(connection.pieces())
        next(again)
        assert int(next(again)["id"]) == first + 1


def test_who_missed_too_much_is_told_to_look_afresh(daemon: wire.Box) -> None:
    with wire.Wire(daemon.socket) as connection:
        connection.send("GET", "/events?after=1")
        connection.head()
        coming = events(connection.pieces())
        next(coming)
        assert next(coming)["event"] == "resync"


def test_a_broken_request_disturbs_nobody(daemon: wire.Box) -> None:
    for nonsense in (b"\x00\x01\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"A" * 200_000):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(daemon.socket)
            try:
                sock.sendall(nonsense)
                sock.shutdown(socket.SHUT_WR)
                sock.recv(4096)
            except OSError:
                continue
    assert daemon.get("/hello")["api"] == 1
    assert "Traceback" not in Path(daemon.state.daemon_log).read_text()


def test_over_too_many_connections_the_answer_is_a_refusal_like_any_other(daemon: wire.Box) -> None:
    waiting = [wire.Wire(daemon.socket) for _ in range(CONNECTIONS_MAX)]
    try:
        with wire.Wire(daemon.socket) as late:
            late.send("GET", "/hello")
            reply = late.reply()
        assert "connections open" in refused(reply, 503, "unreachable")
        assert reply.headers["connection"] == "close"
    finally:
        for each in waiting:
            each.__exit__()
    tools.wait_until(lambda: daemon.ask("GET", "/hello").status == 200)


def answered(house: Any, error: Exception) -> tuple[int, dict[str, str]]:
    """What the outermost layer makes of an error that a route raised."""
    app = FastAPI()
    app.state.house = house
    app.add_middleware(front.Front, house=house)
    front.set_words(app)

    @app.get("/")
    async def fail() -> None:
        raise error

    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b"", "app": app}
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        pytest.param(StateDamaged("the database failed"), True, id="the database"),
        pytest.param(OSError(errno.EIO, "Input/output error"), True, id="the disk"),
        pytest.param(StateDamaged("a content was damaged"), False, id="one content"),
        pytest.param(OSError(errno.ENOENT, "no such file"), False, id="one file"),
    ],
)
def test_a_state_that_fails_under_a_request_ends_the_daemon(error: Exception, ends: bool) -> None:
    doomed: list[Problem] = []
    damage = error if ends else None
    daemon = SimpleNamespace(store=SimpleNamespace(damage=damage), report=lambda said: None)
    house = SimpleNamespace(
        daemon=daemon, doomed=doomed.append, requests=0, connections=(), touch=lambda: None, closing=False,
        network=None, pages=None, gate=SimpleNamespace(admit=lambda scope: SimpleNamespace(token="", share="")),
    )  # fmt: skip
    status, said = answered(house, error)
    assert (status, set(said)) == (500, {"code", "message", "hint"})
    assert [problem.exit_code for problem in doomed] == [74] * ends


# --- what the GPUs and the host did ----------------------------------------------------------------------------------


def test_the_host_has_a_history_on_a_box_without_a_gpu(daemon: wire.Box) -> None:
    def told() -> Any:
        said = daemon.get("/history?of=host&last=60&points=60")
        (series,) = said["series"] or [{"lines": {}}]
        memory = series["lines"].get("memory_used_bytes", {"mean": []})["mean"]
        return said if any(memory) else None

    said = tools.wait_until(told)
    assert (said["step"], said["bucket"], len(said["at"]), said["trouble"]) == (1, 1, 60, "")
    assert said["at"][0] == said["since"]
    (series,) = said["series"]
    assert (series["subject"], series["kind"]) == ("host", "host")
    line = series["lines"]["memory_used_bytes"]
    assert len(line["mean"]) == len(line["least"]) == 60
    assert "sum" not in line


def test_the_history_is_a_table_too(daemon: wire.Box) -> None:
    tools.wait_until(lambda: daemon.get("/history?of=host")["series"])
    reply = daemon.ask("GET", "/history/table?of=host&columns=memory_used_bytes,cpu&step=1&last=100000")
    assert reply.headers["content-type"].startswith("text/csv")
    heading, *lines = reply.body.decode().splitlines()
    assert heading == "at,subject,memory_used_bytes,cpu"
    assert lines
    assert lines[0].split(",")[1] == "host"
    assert float(lines[0].split(",")[2]) > 1 << 20


@pytest.mark.parametrize(("asked", "status"), [
    ("/history?points=0", 422), ("/history?points=1001", 422), ("/history?since=5&until=4", 422),
    ("/history?columns=nonsense", 422), ("/history?of=GPU-77", 404), ("/history?job=999", 404),
    ("/history?since=nan", 422), ("/history?last=-1", 422), ("/history/table?step=7", 422), ("/notices?limit=0", 422),
])  # fmt: skip
def test_a_question_that_has_no_answer_is_refused_in_words(daemon: wire.Box, asked: str, status: int) -> None:
    reply = daemon.ask("GET", asked)
    assert reply.status == status
    assert reply.json()["message"]


def test_a_job_that_has_not_run_has_no_history(daemon: wire.Box) -> None:
    job_id = daemon.post("/jobs", {"spec": {"command": ["true"]}, "held": True})["id"]
    reply = daemon.ask("GET", f"/history?job={job_id}")
    assert (reply.status, reply.json()["code"]) == (422, "bad_request")
    daemon.post("/jobs/cancel", {"ids": [job_id]})


def test_what_the_history_takes_is_told(daemon: wire.Box) -> None:
    said = daemon.get("/history/kept")
    assert said["bytes"] > 0
    assert said["keep_seconds_days"] == 14


def test_prometheus_is_told_of_the_box(daemon: wire.Box) -> None:
    reply = daemon.ask("GET", "/metrics")
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert b"\ngpubox_disk_free_bytes " in reply.body
    assert b"gpubox_gpus_known 0" in reply.body


def test_there_is_nothing_to_notice(daemon: wire.Box) -> None:
    found = daemon.get("/notices?unseen=true")["notices"]
    assert [notice for notice in found if notice["kind"] != "disk"] == [], "the disk is a real one"
    assert daemon.post("/notices/seen", {"up_to": 10**30}) == {"up_to": 10**30}
