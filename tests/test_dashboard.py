"""The pages over HTTP: who sees them, what they say, and that they need nothing from elsewhere."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import http.client
import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest
import tools
import wire
from builders import GIB, a_job
from test_api import send
from test_previews import a_png

from dashboard import assets, cards, contents, figures, live, pages, render, work
from runner import words
from runner.box.auth import WHO
from runner.box.events import Events
from runner.model import After, Gpu, Notice, Principal, Process, Sample, Use

ROOT = Path(__file__).resolve().parent.parent
DASHBOARD = ROOT / "dashboard"
PAGES = ("/", "/jobs", "/queue", "/events", "/settings", "/part/work")
DASH = figures.NONE
HOSTILE = "<img src=x onerror=alert(1)>'\"&{{7*7}}"
JAVASCRIPT_BYTES = 60_000  # that a browser has to load, compressed


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: str


class Browser:
    """Somebody at the dashboard's own port, with or without a cookie."""

    def __init__(self, box: wire.Box) -> None:
        self.box = box
        self.port = int(box.post("/dashboard")["port"])
        self.cookie = ""

    def ask(self, method: str, path: str, body: str | None = None, **headers: str) -> Answer:
        said = {"Host": f"127.0.0.1:{self.port}", **({"Cookie": self.cookie} if self.cookie else {})}
        said |= {name.replace("_", "-"): value for name, value in headers.items()}
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            line.request(method, path, body, said)
            reply = line.getresponse()
            data = reply.read()
            return Answer(reply.status, {k.lower(): v for k, v in reply.getheaders()}, data.decode("utf-8", "replace"))
        finally:
            line.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def sign_in(self, code: str | None = None) -> Answer:
        code = self.box.post("/dashboard")["code"] if code is None else code
        reply = self.ask("POST", "/sign-in", code, Origin=f"http://127.0.0.1:{self.port}")
        if reply.status == 204:
            self.cookie = reply.headers["set-cookie"].partition(";")[0]
        return reply


class _Tags(HTMLParser):
    """What a strict policy would not let pass: handlers, styles and scripts within a page."""

    def __init__(self) -> None:
        super().__init__()
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag == "style" or (tag == "script" and "src" not in named):
            self.wrong.append(tag)
        self.wrong += [f"{tag} {name}" for name, value in attrs if name.startswith("on") or name == "style"]
        self.wrong += [
            f"{tag} {value}" for _, value in attrs if (value or "").strip().lower().startswith("javascript:")
        ]


@pytest.fixture(scope="module")
def box() -> Iterator[wire.Box]:
    """A daemon with a job that has ended, one that waits, and names that nobody should give."""
    with wire.place() as folder:
        ours = wire.Box(Path(folder))
        try:
            ours.start()
            first = ours.submit(["sh", "-c", "printf 'out\\n'"], name="first")
            ours.submit(["true", HOSTILE], name=HOSTILE, held=True)
            ours.submit(["true"], name="later", held=True, array=[0, 1, 2])
            ours.ended(first)
            yield ours
        finally:
            ours.end()


@pytest.fixture
def browser(box: wire.Box) -> Browser:
    return Browser(box)


@pytest.fixture
def signed_in(browser: Browser) -> Browser:
    assert browser.sign_in().status == 204
    return browser


# --- who sees them ---


@pytest.mark.parametrize("path", [*PAGES, "/jobs/1", "/part/jobs/1", "/gpus/0", "/live", "/nothing"])
def test_a_page_is_closed_to_who_did_not_sign_in(browser: Browser, path: str) -> None:
    for cookie in ("", f"gpubox-{browser.port}=guess", "gpubox=guess"):
        browser.cookie = cookie
        reply = browser.get(path)
        assert (reply.status, reply.headers["location"]) == (303, "/sign-in")
        assert reply.body == ""


@pytest.mark.parametrize(
    "path", ["/jobs", "/gpus", "/history", "/logs/1", "/hello", "/jobs/1/outputs", "/overview", "/live"]
)
def test_so_is_the_api_behind_it(browser: Browser, path: str) -> None:
    reply = browser.get(f"/api/v1{path}")
    assert (reply.status, json.loads(reply.body)["code"]) == (401, "not_trusted")


@pytest.mark.parametrize("asked", [{"HX_Request": "true"}, {"Sec_Fetch_Mode": "cors", "Sec_Fetch_Site": "same-origin"}])
def test_a_part_of_a_page_does_not_turn_into_the_way_in(browser: Browser, asked: dict[str, str]) -> None:
    for path in ("/part/work", "/live"):
        assert browser.get(path, **asked).status == 401
    assert browser.get("/", Sec_Fetch_Mode="navigate").status == 303


def test_a_code_opens_once(browser: Browser) -> None:
    code = browser.box.post("/dashboard")["code"]
    reply = browser.sign_in(code)
    kept = reply.headers["set-cookie"].lower()
    assert "httponly" in kept
    assert "samesite=strict" in kept
    assert "path=/" in kept
    assert browser.get("/").status == 200
    assert browser.sign_in(code).status == 401


@pytest.mark.parametrize("code", ["", "guess", "x" * 5000, "\N{SNOWMAN}"])
def test_what_is_no_code_opens_nothing(browser: Browser, code: str) -> None:
    reply = browser.ask("POST", "/sign-in", code.encode().decode("latin-1"), Origin=f"http://127.0.0.1:{browser.port}")
    assert reply.status in (400, 401)
    assert "set-cookie" not in reply.headers


def test_a_code_is_not_taken_from_a_page_of_somebody_else(browser: Browser) -> None:
    code = browser.box.post("/dashboard")["code"]
    for headers in ({}, {"Origin": "http://evil.example"}, {"Sec_Fetch_Site": "cross-site"}):
        assert browser.ask("POST", "/sign-in", code, **headers).status == 403
    assert browser.sign_in(code).status == 204


def test_a_link_elsewhere_leads_to_the_way_in_and_no_further(signed_in: Browser) -> None:
    led = {"Sec_Fetch_Site": "cross-site"}
    assert signed_in.get("/sign-in", **led).status == 200
    assert signed_in.get("/", **led).status == 403
    assert signed_in.get("/sign-in", Host="evil.example", **led).status == 421


def test_who_signs_out_is_out(signed_in: Browser) -> None:
    reply = signed_in.ask("POST", "/sign-out", Origin=f"http://127.0.0.1:{signed_in.port}")
    assert reply.status == 303
    assert signed_in.get("/").status == 303


def test_a_name_that_somebody_else_chose_leads_nowhere(signed_in: Browser) -> None:
    for host in ("evil.example", f"localhost:{signed_in.port}", f"evil.example:{signed_in.port}"):
        assert signed_in.get("/", Host=host).status == 421


def test_a_request_of_another_page_changes_nothing(signed_in: Browser) -> None:
    for headers in ({}, {"Origin": "http://127.0.0.1:1"}, {"Sec_Fetch_Site": "same-site"}):
        body = json.dumps({"ids": [2]})
        assert (
            signed_in.ask("POST", "/api/v1/jobs/cancel", body, Content_Type="application/json", **headers).status == 403
        )
    assert signed_in.box.state_of(2) == words.QUEUED


def test_it_changes_what_a_page_of_ours_asks(signed_in: Browser) -> None:
    made = signed_in.box.submit(["true"], held=True)
    reply = signed_in.ask(
        "POST",
        "/api/v1/jobs/cancel",
        json.dumps({"ids": [made]}),
        Content_Type="application/json",
        Origin=f"http://127.0.0.1:{signed_in.port}",
    )
    assert reply.status == 200
    assert signed_in.box.state_of(made) == words.CANCELLED


# --- what they say ---


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_whole_and_keeps_to_a_strict_policy(signed_in: Browser, path: str) -> None:
    reply = signed_in.get(path)
    assert reply.status == 200
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["cache-control"] == "no-store"
    tags = _Tags()
    tags.feed(reply.body)
    assert tags.wrong == []


@pytest.mark.parametrize("path", ["/", "/jobs", "/queue", "/jobs/2", "/part/jobs/2", "/part/work"])
def test_a_hostile_name_is_text(signed_in: Browser, path: str) -> None:
    body = signed_in.get(path).body
    assert "<img src=x" not in body
    assert "&lt;img src=x onerror=alert(1)&gt;" in body
    assert "{{7*7}}" in body


def test_without_a_driver_it_says_so_in_the_words_of_the_book(signed_in: Browser) -> None:
    body = signed_in.get("/").body
    assert "No NVIDIA driver found. Jobs without GPU still run. Check: <code>runner doctor</code>." in body
    assert "Nothing is running." in body


def test_the_overview_says_what_waits_and_what_ended(signed_in: Browser) -> None:
    body = signed_in.get("/").body
    assert "first" in body
    assert "succeeded" in body
    assert "3 jobs" in body, "an array is one line"


def test_jobs_are_filtered_and_sorted(signed_in: Browser) -> None:
    def ids(query: str) -> list[int]:
        return [
            int(each) for each in re.findall(r'<td class="lead"><a id="at-(\d+)"', signed_in.get(f"/jobs?{query}").body)
        ]

    for key in work.SORTS:
        assert sorted(ids(f"sort={key}")) == sorted(ids(f"sort={key}&up=1")) == sorted(ids("")), key
    assert ids("sort=name&q=first") == ids("q=first")

    assert ids("q=first") == [1]
    assert ids("state=succeeded") == [1]
    assert 1 not in ids("state=queued")
    assert ids("sort=id&up=1") == sorted(ids(""))
    assert ids("q=nobody+has+this+name") == []
    assert signed_in.get("/jobs?sort=nonsense").status == 422
    assert signed_in.get("/jobs?state=nonsense").status == 422


def test_a_job_has_a_page(signed_in: Browser) -> None:
    body = signed_in.get("/jobs/1").body
    assert "Ran for" in body
    assert 'data-finished="1"' in body


def test_why_a_job_failed_is_said_once(signed_in: Browser) -> None:
    box = signed_in.box
    failed = box.submit([sys.executable, "-c", "import nothing_of_that_name"], name="asks-for-more")
    box.ended(failed)
    said = re.search('<p class="why">(.*?)</p>', signed_in.get(f"/jobs/{failed}").body, re.S)
    assert said
    assert said[1].count("No module named") == 1


@pytest.mark.parametrize(
    "path", ["/jobs/99999", "/jobs/0", "/jobs/x", "/gpus/7", "/nothing", "/static/../pages.py", "/static/none.js"]
)
def test_what_is_not_there_is_told_on_a_page(signed_in: Browser, path: str) -> None:
    reply = signed_in.get(path)
    assert reply.status in (404, 422)
    assert "<h1>" in reply.body


def test_what_the_api_sends_to_a_browser_runs_nothing(signed_in: Browser) -> None:
    reply = signed_in.get("/api/v1/logs/1")
    assert reply.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert reply.headers["x-content-type-options"] == "nosniff"


# --- by a link for others ---

SECRETS = ("tell-argument", "tell_variable", "tell-value", "tell-log", "tell-file", "tell-output", "tell-parameter")


@pytest.fixture
def guest(box: wire.Box) -> Browser:
    browser = Browser(box)
    made = box.post("/dashboard", {"share": True, "label": "anna", "seconds": 3600})
    assert made["share"]["label"] == "anna"
    assert browser.sign_in(made["code"]).status == 204
    return browser


def open_routes(box: wire.Box) -> list[str]:
    """GET routes of the pages and of the API, as the application that answers has them."""
    pages = [*PAGES, "/gpus/1", "/jobs/1", "/part/jobs/1", "/part/jobs/1/outputs", "/jobs/1/outputs/x",
             "/jobs/1/picture/x", "/jobs/1/files", "/jobs/1/files/x", "/jobs/1/diff", "/jobs/1/log",
             "/live"]  # fmt: skip
    paths = json.loads((ROOT / "docs/openapi.json").read_text())["paths"]
    return [*pages, *(re.sub(r"{\w+}", "1", path) for path, ways in paths.items() if "get" in ways)]


def test_a_link_opens_hardly_any_route(guest: Browser) -> None:
    shown = set()
    for path in open_routes(guest.box):
        if path == "/live":
            continue
        status = guest.get(path).status
        assert status in (200, 403, 404), (path, status)
        shown |= {path} if status != 403 else set()
    gpu = {"/gpus/1", "/api/v1/gpus/1/traffic"}  # which there is none
    assert shown == {"/", "/part/work", "/queue", "/api/v1/history", *gpu}
    paths = json.loads((ROOT / "docs/openapi.json").read_text())["paths"]
    for path, ways in paths.items():
        for method in ways.keys() - {"get"}:
            assert changed(guest, method.upper(), re.sub(r"{\w+}", "1", path).removeprefix("/api/v1"), {}).status == 403


def test_what_a_link_shows_names_no_argument_variable_log_or_file(guest: Browser) -> None:
    box = guest.box
    said = "import os, pathlib; print('tell-log'); pathlib.Path(os.environ['RUNNER_OUT'], 'tell-output').touch()"
    command = [sys.executable, "-c", said, "tell-argument"]
    ran = box.submit(command, name="open-name", env={"tell_variable": "tell-value"})
    fails = box.submit(["tell-file", "tell-argument"], name="open-name")
    for number in (ran, fails):
        box.ended(number)
    held = box.submit(command, name="open-name", held=True, sweep={"p": ["tell-parameter", "b"]})
    command = [sys.executable, "-c", "import time; time.sleep(600)", "tell-argument"]
    long = box.submit(command, name="open-name", env={"tell_variable": "1"})
    tools.wait_until(lambda: box.state_of(long) == words.RUNNING, 20, box.story)
    stream = http.client.HTTPConnection("127.0.0.1", guest.port, timeout=20)
    stream.request("GET", "/live", headers={"Cookie": guest.cookie, "Host": f"127.0.0.1:{guest.port}"})
    told = stream.getresponse().read1(20_000).decode()
    stream.close()
    bodies = {path: guest.get(path).body for path in ("/", "/part/work", "/queue", "/api/v1/history", "/nothing")}
    for path, body in {**bodies, "/live": told}.items():
        assert [secret for secret in SECRETS if secret in body] == [], path
        assert 'href="/jobs' not in body, path
        assert "data-act" not in body, path
    assert "open-name" in bodies["/"]
    assert "runner release" not in bodies["/"], "why a group waits may name what is in its way, as of a job"
    for job in (held, held + 1, long):
        box.post("/jobs/cancel", {"ids": [job], "grace": 0})


def test_what_is_in_the_way_of_a_job_is_not_named_to_who_came_by_a_link() -> None:
    """It can be anybody's process, with its arguments."""
    why = "GPU 3 held by dan, python -m jupyter --token=x"
    for values in ({}, {"gpus": 2}, {"held": True}, {"after": [After(3)]}, {"adopts": [7, 1]}):
        job = a_job(why=why, **values)
        row = work.veiled(work.row(job, [], {}), job)
        assert "jupyter" not in repr(row)
    adopted = a_job(state=words.RUNNING, adopts=[7, 1])
    adopted.name = "python train.py --secret"
    assert "--secret" not in repr(work.veiled(work.row(adopted, [], {}), adopted))
    gpu = a_gpu()
    gpu.state, gpu.why, gpu.jobs = words.FOREIGN, why, [1]
    gpu.processes = [Process(7, 1, user="dan", command="python -m jupyter")]
    seen = cards.veiled(cards.card(gpu, {1: adopted}), {1: adopted})
    assert not {"jupyter", "--secret"} & set(re.findall(r"[-\w]+", repr(seen)))
    assert seen["others"] == "a process that is not the queue's"


def test_a_link_is_listed_and_ends_when_it_is_revoked(guest: Browser, signed_in: Browser) -> None:
    (share,) = [each for each in guest.box.get("/shares")["shares"] if each["opened_at"]][-1:]
    assert share["id"] in signed_in.get("/settings").body
    assert guest.get("/").status == 200
    assert changed(signed_in, "DELETE", f"/shares/{share['id']}").status == 200
    assert guest.get("/").status == 303
    assert changed(signed_in, "DELETE", f"/shares/{share['id']}").status == 404


def test_who_came_by_a_link_may_leave(guest: Browser) -> None:
    reply = guest.ask("POST", "/sign-out", Origin=f"http://127.0.0.1:{guest.port}")
    assert reply.status == 303
    assert guest.get("/").status == 303


# --- settings ---


def changed(browser: Browser, method: str, path: str, body: object = None) -> Answer:
    headers = {"Content_Type": "application/json", "Origin": f"http://127.0.0.1:{browser.port}"}
    return browser.ask(method, f"/api/v1{path}", None if body is None else json.dumps(body), **headers)


def test_a_setting_changes_at_once_and_is_said_to_be_set_here(signed_in: Browser) -> None:
    assert changed(signed_in, "PUT", "/settings/currency", {"value": "CHF"}).status == 200
    assert changed(signed_in, "PUT", "/settings/tariff", {"value": "0.25"}).status == 200
    body = signed_in.get("/settings").body
    assert 'value="CHF"' in body
    assert body.count("set here; usually") == 2
    assert signed_in.box.get("/settings")["settings"][0]["name"] == "name"
    for name, value in (("currency", ""), ("cpus", 3), ("tariff", "x"), ("none", 1)):
        assert changed(signed_in, "PUT", f"/settings/{name}", {"value": value}).status == 422, name
    for name in ("currency", "tariff"):
        assert changed(signed_in, "DELETE", f"/settings/{name}").status == 200
    assert "set here; usually" not in signed_in.get("/settings").body


def test_a_token_is_listed_and_revoked(signed_in: Browser) -> None:
    made = json.loads(changed(signed_in, "POST", "/tokens", {"label": HOSTILE, "scope": "read"}).body)
    body = signed_in.get("/settings").body
    assert made["made"]["id"] in body
    assert made["token"] not in body
    assert "<img src=x" not in body
    assert changed(signed_in, "DELETE", f"/tokens/{made['made']['id']}").status == 200
    assert made["made"]["id"] not in signed_in.get("/settings").body


# --- what a job was given and left ---

LEAVES = """
import os, pathlib
out = pathlib.Path(os.environ['RUNNER_OUT'])
for name, data in {files!r}.items():
    (out / os.fsdecode(name)).parent.mkdir(exist_ok=True)
    (out / os.fsdecode(name)).write_bytes(data)
"""
SCRIPT = b"<script>alert(1)</script>"


@pytest.fixture(scope="module")
def left(box: wire.Box) -> int:
    """A job that left pictures, texts and traps."""
    files = {
        b"plots/loss.png": a_png(8, 8), b"trap.png": SCRIPT, b"page.html": SCRIPT, b"drawing.svg": b"<svg onload=x>",
        b"notes.txt": SCRIPT + b"\n\x1b[31mred", b"model.bin": b"\0" * 64, b"odd \xff\n%2e?#&\".txt": b"odd",
    }  # fmt: skip
    job = box.submit([sys.executable, "-c", LEAVES.format(files=files)], name="leaves")
    assert box.ended(job)["state"] == words.SUCCEEDED
    return job


def test_outputs_are_listed_and_pictures_shown(signed_in: Browser, left: int) -> None:
    for path in (f"/jobs/{left}", f"/part/jobs/{left}/outputs"):
        body = signed_in.get(path).body
        shown = re.findall(r'<img src="([^"?]+)', body)
        assert shown == [f"/jobs/{left}/picture/plots/loss.png", f"/jobs/{left}/picture/trap.png"]
        assert f"/jobs/{left}/outputs/odd%20%FF%0A%252e%3F%23%26%22.txt" in body
        assert "<svg onload" not in body


def test_a_picture_is_sent_as_one_and_nothing_else_is(signed_in: Browser, left: int) -> None:
    reply = signed_in.get(f"/jobs/{left}/picture/plots/loss.png?v=1")
    assert (reply.status, reply.headers["content-type"]) == (200, "image/png")
    assert reply.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert reply.headers["x-content-type-options"] == "nosniff"
    for name in ("trap.png", "page.html", "drawing.svg", "notes.txt", "../log", "plots", "none.png"):
        assert signed_in.get(f"/jobs/{left}/picture/{name}").status in (404, 422), name


@pytest.mark.parametrize("name", ["page.html", "notes.txt", "drawing.svg", "trap.png"])
def test_a_text_is_previewed_as_text(signed_in: Browser, left: int, name: str) -> None:
    reply = signed_in.get(f"/jobs/{left}/outputs/{name}")
    assert reply.status == 200
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    tags = _Tags()
    tags.feed(reply.body)
    assert tags.wrong == []
    assert '<pre class="text"' in reply.body
    assert "<script>alert" not in reply.body
    assert "<svg onload" not in reply.body
    assert "\x1b" not in reply.body


def test_what_cannot_be_shown_is_downloaded_and_never_run(signed_in: Browser, left: int) -> None:
    assert "no text and no picture" in signed_in.get(f"/jobs/{left}/outputs/model.bin").body
    odd = "odd%20%FF%0A%252e%3F%23%26%22.txt"
    assert ">odd</pre>" in signed_in.get(f"/jobs/{left}/outputs/{odd}").body
    for name in ("page.html", "drawing.svg", odd):
        reply = signed_in.get(f"/api/v1/jobs/{left}/outputs/{name}")
        assert (reply.status, reply.headers["content-type"]) == (200, "application/octet-stream")
        assert reply.headers["content-disposition"] == "attachment"
        assert reply.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert signed_in.get(f"/jobs/{left}/outputs/none").status == 404


def test_a_log_is_downloaded_whole_however_long_it_is(signed_in: Browser) -> None:
    count = 20 << 20
    job = signed_in.box.submit(["sh", "-c", f"yes | head -c {count}; echo the end"])
    signed_in.box.ended(job)
    (path,) = re.findall(r'href="([^"]+)" download="\d+.log"', signed_in.get(f"/jobs/{job}").body)
    reply = signed_in.get(path)
    assert (len(reply.body), reply.body[-8:]) == (count + 8, "the end\n")
    assert reply.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert reply.headers["content-disposition"] == "attachment"
    assert signed_in.get("/jobs/99999/log").status == 404


def test_what_was_dropped_of_a_log_is_told_in_the_download(tmp_path: Path) -> None:
    block = 1 << 20
    with open(tmp_path / "log", "wb") as file:
        file.write(b"head")
        file.seek(8 * block)
        file.write(b"tail")

    async def call(work: Any) -> Any:
        return work()

    async def whole() -> bytes:
        log, size = f"{tmp_path}/log", 8 * block + 4
        return b"".join([each async for each in contents.Contents(house, cast(Any, None))._printed(log, size)])

    house: Any = SimpleNamespace(call=call)
    text = asyncio.run(whole())
    assert (text[:4], text[-4:]) == (b"head", b"tail")
    assert re.search(rb"\n\[\d{7} bytes in the middle were dropped\]\ntail", text)


def test_files_and_what_changed_since_the_run_before(signed_in: Browser) -> None:
    box = signed_in.box
    once = {"main.py": b"print('<b>one')\n", "pic": b"\0\1", "gone.txt": b"x\n"}
    later = {"main.py": b"print('<b>two')\n", "pic": b"\0\2", "new.txt": b"y\n"}
    given: dict[str, Any] = {"script": "main.py", "project": "/p", "environment": "base"}
    one, two = (
        box.submit(["python", "main.py", str(number)], name="differs", snapshot=send(box, files), **given)
        for number, files in enumerate((once, later), 1)
    )
    box.ended(one)
    assert f'/jobs/{two}/diff"' in signed_in.get(f"/jobs/{two}").body
    body = signed_in.get(f"/jobs/{two}/diff").body
    assert f"#{one}" in body
    for said in ("python main.py 1", "-print(&#39;&lt;b&gt;one&#39;)", "+print(&#39;&lt;b&gt;two&#39;)", "gone.txt",
                 "pic differ (binary", "+y"):  # fmt: skip
        assert said in body, said
    assert body.count('class="badge" title="changed"') == 2
    assert "Nothing: the same files" in signed_in.get(f"/jobs/{two}/diff?to={two}").body
    assert signed_in.get(f"/jobs/{one}/diff").status == 404
    assert f'/jobs/{one}/diff"' not in signed_in.get(f"/jobs/{one}").body
    body = signed_in.get(f"/jobs/{two}/files").body
    assert re.findall(r"/files/([\w.]+)\"", body) == ["main.py", "new.txt", "pic"]
    assert "print(&#39;&lt;b&gt;two&#39;)" in signed_in.get(f"/jobs/{two}/files/main.py").body
    assert signed_in.get(f"/jobs/{two}/files/gone.txt").status == 404
    assert "without files" in signed_in.get("/jobs/1/files").body


@contextmanager
def stream(browser: Browser, path: str = "/live", **headers: str) -> Iterator[http.client.HTTPResponse]:
    line = http.client.HTTPConnection("127.0.0.1", browser.port, timeout=20)
    try:
        line.request("GET", path, headers={"Cookie": browser.cookie, "Host": f"127.0.0.1:{browser.port}", **headers})
        reply = line.getresponse()
        assert reply.getheader("content-type", "").startswith("text/event-stream")
        assert reply.readline() == b"retry: 1000\n"
        yield reply
    finally:
        line.close()


def test_the_stream_tells_of_changes(signed_in: Browser) -> None:
    with stream(signed_in) as reply:
        signed_in.box.submit(["true"], held=True)
        tools.wait_until(lambda: reply.readline() == b"event: changed\n")


def test_the_stream_tells_what_changed_since_the_page_was_made(signed_in: Browser) -> None:
    known = re.findall(r'data-seq="(\d+)"', signed_in.get("/").body)[0]
    signed_in.box.submit(["true"], held=True)
    with stream(signed_in, f"/live?after={known}") as reply:
        line = tools.wait_until(lambda: re.fullmatch(rb"id: (\d+)\n", reply.readline()))
    with stream(signed_in, f"/live?after={known}", **{"Last-Event-ID": line[1].decode()}) as reply:
        signed_in.box.submit(["true"], held=True)  # nothing else is told anew
        assert int(tools.wait_until(lambda: re.fullmatch(rb"id: (\d+)\n", reply.readline()))[1]) > int(line[1])


def test_where_nothing_is_read_the_stream_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A box without GPUs is no box that is away; and a reader of GPUs that died is told in tabs that are open."""
    monkeypatch.setattr(live, "QUIET_SECONDS", 0.02)
    gpus = SimpleNamespace(silence=lambda now: "nobody reads them", view=lambda now: [], hint=lambda: "")
    daemon = SimpleNamespace(
        gpus=gpus, events=Events(), book=SimpleNamespace(active={}), store=SimpleNamespace(notices=lambda *asked: [])
    )
    house: Any = SimpleNamespace(
        frame=0, closing=False, daemon=daemon, stream=lambda frames: nullcontext(asyncio.Event())
    )

    async def heard() -> list[bytes]:
        events = live.Live(house).events()
        return [await anext(events) for _ in range(4)]

    async def ended() -> list[bytes]:
        return [each async for each in live.Live(house).events(admitted=lambda: False)]

    told = asyncio.run(heard())
    assert all(each.startswith(b"event: frame\n") for each in told[1:])
    assert b"nobody reads them" in told[-1]
    monkeypatch.setattr(live, "ASK_SECONDS", 0.01)
    assert len(asyncio.run(ended())) == 2, "who may look no longer hears no more"


# --- what they are drawn with ---


def test_what_others_wrote_is_as_it_was_recorded() -> None:
    for folder in (DASHBOARD / "static/vendor", ROOT / "tests/browser"):
        rows = re.findall(r"^\| `([^`]+)` \| .* \| `([0-9a-f]{64})` \|$", (folder / "README.md").read_text(), re.M)
        files = {path.name for path in folder.iterdir() if path.suffix in (".js", ".css")}
        assert {name for name, _ in rows} == files
        for name, digest in rows:
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
            assert list(folder.glob(f"{re.sub(r'(.min)?.(js|css)$', '', name)}*LICENSE")), f"{name} has no licence"


def test_nothing_comes_from_elsewhere() -> None:
    elsewhere = re.compile(
        r"""(?:src|href|action|hx-\w+)\s*=\s*["']?(?:https?:)?//|url\(\s*["']?(?:https?:)?//|@import|import\s.*["']https?:"""
    )
    for path in [*DASHBOARD.glob("templates/*"), *DASHBOARD.glob("static/*.*")]:
        assert not elsewhere.search(path.read_text()), path


def test_our_modules_put_nothing_on_a_page_as_markup() -> None:
    markup = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|\.style\b|DOMParser"
    )
    for path in DASHBOARD.glob("static/*.js"):
        assert not markup.search(path.read_text()), path
    for path in DASHBOARD.glob("templates/*"):
        assert "|safe" not in path.read_text().replace(" ", ""), path


def test_a_browser_loads_little_javascript(figure: Any) -> None:
    scripts = {name: asset for name, asset in assets.assets().items() if name.endswith(".js")}
    size = sum(len(asset.packed) for asset in scripts.values())
    figure(f"dashboard: {size / 1000:.1f} kB of JavaScript, compressed, of {len(scripts)} files (at most 60)")
    assert size <= JAVASCRIPT_BYTES


def test_a_file_is_sent_compressed_and_once(browser: Browser) -> None:
    name = next(name for name in assets.assets() if name.startswith("vendor/uplot") and name.endswith(".js"))
    line = http.client.HTTPConnection("127.0.0.1", browser.port, timeout=20)
    try:
        line.request("GET", f"/static/{name}", headers={"Accept-Encoding": "gzip"})
        reply = line.getresponse()
        assert gzip.decompress(reply.read()) == (DASHBOARD / "static" / name).read_bytes()
        assert "immutable" in reply.getheader("cache-control", "")
        line.request("GET", f"/static/{name}", headers={"If-None-Match": reply.getheader("etag", "")})
        reply = line.getresponse()
        assert (reply.status, reply.read()) == (304, b"")
    finally:
        line.close()


# --- figures, cards, receipts ---


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (59.9, "59 s"),
        (60, "1 min 00 s"),
        (600, "10 min"),
        (3660, "1 h 01 min"),
        (90000, "1 d 1 h"),
        (None, DASH),
    ],
)
def test_a_span_is_short(seconds: float | None, said: str) -> None:
    assert figures.span(seconds) == said


def test_clocks_are_the_boxs_also_when_they_are_put_forward_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A browser draws charts by it, wherever it is."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        found = figures.zone.__wrapped__(20_600)  # 27 May 2026
        assert found[0][0] == 0
        assert found[-2:] == [(1761440400, 3600), (1774746000, 7200)], "26 October 2025, 29 March 2026, at 1:00 UTC"
        monkeypatch.setenv("TZ", "Asia/Kathmandu")
        time.tzset()
        assert figures.zone.__wrapped__(20_600) == [(0, 20700)]
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("joules", "said"), [(None, DASH), (0, "0.0 Wh"), (36, "< 0.1 Wh"), (36000, "10 Wh"), (3.6e6, "1.00 kWh")]
)
def test_energy_has_a_unit_that_suits_it(joules: float | None, said: str) -> None:
    assert figures.energy(joules) == said


def a_gpu(**sample: Any) -> Gpu:
    return Gpu(
        "GPU-1", "NVIDIA GeForce RTX 3090", 0, memory_bytes=24 * GIB, state=words.BUSY, sample=Sample(0.0, **sample)
    )


@pytest.mark.parametrize(
    ("degrees", "limit", "held", "tone"),
    [
        (70, 95, [], ""), (80, 95, [], "amber"), (90, 95, [], "red"), (79, None, [], ""), (80, None, [], "amber"),
        (88, None, [], "red"), (60, 95, ["hw_thermal"], "red"), (None, None, [], ""),
    ],
)  # fmt: skip
def test_heat_is_judged_by_the_cards_own_limit(degrees: Any, limit: Any, held: list[str], tone: str) -> None:
    gpu = a_gpu(temperature_celsius=degrees, slowdown_celsius=limit, throttled_by=held)
    assert cards.card(gpu, {})["temperature_tone"] == tone


@pytest.mark.parametrize(("used", "tone"), [(10, ""), (21.7, "amber"), (23.5, "red"), (None, "")])
def test_full_memory_is_told_late(used: float | None, tone: str) -> None:
    gpu = a_gpu(memory_used_bytes=None if used is None else int(used * GIB))
    assert cards.card(gpu, {})["memory_tone"] == tone


def test_zero_is_zero_and_unknown_is_a_dash() -> None:
    assert cards.card(a_gpu(utilization=0.0), {})["util"] == "0 %"
    assert cards.card(a_gpu(), {})["util"] == DASH
    assert cards.card(a_gpu(), {})["power"] == f"{DASH} W"


def test_a_card_at_its_power_limit_is_no_trouble() -> None:
    card = cards.card(a_gpu(throttled_by=["power_cap"]), {})
    assert (card["badges"], card["capped"]) == ([], "at its power limit")
    (badge,) = cards.card(a_gpu(throttled_by=["power_brake"]), {})["badges"]
    assert badge["tone"] == "red"


def test_a_process_that_the_queue_did_not_start_is_named() -> None:
    gpu = a_gpu()
    gpu.state, gpu.processes = words.FOREIGN, [Process(7, 1, user="dan", command="python -m jupyter")]
    assert cards.card(gpu, {})["others"] == "not of the queue: dan python -m jupyter"


def test_a_receipt_says_what_it_cost_and_what_was_left() -> None:
    job = a_job(state=words.SUCCEEDED, started_at=100.0, ended_at=3700.0)
    use = Use(
        1, 1, "GPU-1", 100.0, 3700.0, seen_seconds=3600, measured_seconds=3600, busy_seconds=1800, idle_seconds=1400,
        peak_bytes=9 * GIB, energy_joules=3.6e6, cost=0.32, currency="EUR", hottest_celsius=81.0, heat_seconds=60,
        xids={"31": 2},
    )  # fmt: skip
    told = {line["name"]: line["value"] for line in work.receipt(job, [use], 24 * GIB, 5000.0)}
    assert told == {
        "Ran for": "1 h 00 min", "Energy": "1.00 kWh", "Cost": "0.32 EUR", "GPU busy": "50 %", "GPU idle": "23 min",
        "Peak memory": "9.0 GiB", "Hottest": "81 °C", "Held back by heat": "1 min 00 s", "Xid 31": "2 times",
    }  # fmt: skip
    first, second = work.advice(job, [use], 24 * GIB)
    assert "39 % of the time" in first
    assert "--gpu-mem 10G" in second
    use = replace(use, peak_bytes=int(1.3 * GIB), xids={"31": 1})
    assert "--gpu-mem 2G" in work.advice(job, [use], 24 * GIB)[1], "no less than it held"
    assert {line["name"]: line["value"] for line in work.receipt(job, [use], None, 0.0)}["Xid 31"] == "1 time"


def test_what_nobody_tells_is_no_zero_and_what_left_has_no_number(signed_in: Browser) -> None:
    assert f'<strong id="watts">{DASH}</strong>' in signed_in.get("/").body
    assert "of 0 GPUs" not in signed_in.get("/queue").body
    gone = a_gpu()
    gone.index = None
    assert pages._labels([a_gpu(), gone]) == {"GPU-1": "GPU 0"}
    assert pages._labels([gone]) == {}


def test_moving_in_the_queue_is_a_priority() -> None:
    queue = [a_job(9, priority=2), a_job(3), a_job(5), a_job(7)]
    order = lambda jobs: [job.id for job in sorted(jobs, key=lambda job: (-job.priority, job.id))]  # noqa: E731
    assert work.moves(queue, 0) == {"top": None, "up": None, "down": 0}, "behind its equals, too"
    assert work.moves(queue, 1) == {"top": 2, "up": 2, "down": -1}
    assert work.moves(queue, 2) == {"top": 2, "up": 1, "down": -1}
    assert work.moves(queue, 3)["down"] is None
    for at in range(1, 4):
        moved = [replace(job, priority=work.moves(queue, at)["up"]) if n == at else job for n, job in enumerate(queue)]
        assert order(moved).index(queue[at].id) < at
        top = [replace(job, priority=work.moves(queue, at)["top"]) if n == at else job for n, job in enumerate(queue)]
        assert order(top)[0] == queue[at].id
    full = [a_job(1, priority=1000), a_job(2)]
    assert work.moves(full, 1) == {"top": None, "up": None, "down": None}


@pytest.mark.parametrize(
    ("values", "can"),
    [
        ({}, ["cancel", "hold"]),
        ({"held": True}, ["cancel", "release"]),
        ({"state": words.RUNNING}, ["cancel", "kill"]),
        ({"state": words.FAILED}, ["rerun"]),
        ({"state": words.SUCCEEDED, "adopts": [7, 1]}, []),
    ],
)
def test_what_can_be_done_with_a_job(values: dict[str, Any], can: list[str]) -> None:
    assert work.can(a_job(**values)) == can
    assert work.can(a_job(**values), mine=False) == [each for each in can if each == "rerun"]


@pytest.mark.parametrize(
    ("role", "uid", "buttons"),
    [("admin", 5, True), ("submit", 1001, True), ("submit", 5, False), ("read", 1001, False)],
)
def test_a_button_is_there_for_who_may_press_it(role: str, uid: int, buttons: bool) -> None:
    """Who submits may end their own jobs, and nobody else's."""
    scope = {WHO: Principal(uid, "somebody", role)}
    waits, runs = a_job(7), a_job(8, words.RUNNING, started_at=1.0)
    rows = [work.row(job, [], {}, pages.mine(scope, job)) for job in (waits, runs)]
    moves = {"moves": dict.fromkeys(("top", "up", "down")), "count": 0, "starts_at": None}
    told = {
        "totals": SimpleNamespace(
            joules=None,
            cost=None,
            currency="",
            cpu=None,
            memory_used_bytes=None,
            memory_bytes=0,
            disk_tone="",
            disk_free_bytes=0,
            disk_bytes=0,
        ),
        "counts": dict.fromkeys(words.UNFINISHED, 1),
    }
    values = {
        **told, "running": rows[1:], "queue": [], "queue_more": 0, "finished": [], "gpu_count": 0, "free": 0,
        "rows": [{**rows[0], **moves}], "whole": True, "may": pages.may(scope), "shared": False, "box": "attic",
        "now": 2.0, "watts": None, "row": rows[1], "job": runs, "previous": None, "why": "", "receipt": [], "had": [],
        "gpus": {}, "attempts": [], "advice": [],
    }  # fmt: skip
    adopted = a_job(9, words.SUCCEEDED, adopts=[7, 1])
    over = {**values, "job": adopted, "row": work.row(adopted, [], {})}
    assert "data-act" not in bytes(render.page("receipt.html", over).body).decode(), "it only waited for a process"
    for name in ("queue_rows.html", "receipt.html", "work.html"):
        body = bytes(render.page(name, values).body).decode()
        assert ("data-act" in body) is buttons, name


def test_every_state_of_a_job_and_of_a_gpu_has_a_sign() -> None:
    assert set(work.SIGNS) == set(words.STATES)
    assert set(cards.STATES) == set(words.GPU_STATES)
    assert len({sign for sign, _ in work.SIGNS.values()}) == len(words.STATES), "never colour alone"


def test_older_events_are_a_page_away() -> None:
    known = [Notice(number, 100.0, "hot", "warning", f"event {number}") for number in range(250, 0, -1)]
    after = lambda before, limit, unseen: [each for each in known if not before or each.id < before][:limit]  # noqa: E731
    daemon = SimpleNamespace(
        store=SimpleNamespace(notices=after), gpus=SimpleNamespace(view=lambda now: []), events=Events(),
        settings=SimpleNamespace(name="attic"), book=SimpleNamespace(active={}),
    )  # fmt: skip
    ours, asked = pages.Pages(cast(Any, SimpleNamespace(daemon=daemon))), {WHO: Principal(1, "ann", "submit")}
    before, seen = None, 0
    for _ in range(3):
        body = bytes(asyncio.run(ours.events(cast(Any, SimpleNamespace(scope=asked)), before)).body).decode()
        seen += len(re.findall(r"<bdi>event \d+</bdi>", body))
        older = re.search(r"/events\?before=(\d+)\">older", body)
        before = int(older[1]) if older else None
    assert (seen, before) == (250, None)


def test_of_an_array_of_hundreds_a_page_shows_a_part(signed_in: Browser) -> None:
    first = signed_in.box.submit(["true"], held=True, name="many", array=list(range(pages.SHOWN_MAX + 20)))
    body = signed_in.get("/jobs?q=many").body
    assert body.count('class="lead"') == pages.SHOWN_MAX
    assert f"{pages.SHOWN_MAX + 20} fit" in body
    assert f'id="at-{first}"' in signed_in.get("/jobs?q=many&up=1").body
