"""The dashboard in a real browser: Debian's Chromium, driven by Playwright, over a demo and over a box of its own.

What it looked like is left in build/screenshots.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tools
import wire
from playwright.sync_api import Browser, BrowserContext, Page, Route, sync_playwright
from test_api import send
from test_previews import a_png

from runner import words

pytestmark = pytest.mark.browser
ROOT = Path(__file__).resolve().parent.parent
SHOTS = ROOT / "build" / "screenshots"
AXE = (ROOT / "tests/browser/axe-4.14.1.min.js").read_text()
SIZES = {390: 844, 1366: 768, 2560: 1440}
SCHEMES = ("light", "dark")
JUDGED = ((390, "dark"), (1366, "light"))  # by axe-core: both layouts, both schemes
PAGES = {"overview": "/", "jobs": "/jobs", "job": "/jobs/78", "queue": "/queue", "gpu": "/gpus/1", "events": "/events",
         "settings": "/settings", "lost": "/jobs/99999"}  # fmt: skip
PAINT_SECONDS, PIXEL_SECONDS, LOG_SECONDS = 0.3, 0.3, 0.5  # the bars, of an idle computer
BUSY = 4.0  # times longer may it take on a busy one
LOG_LINES = 1_000_000
LINES_KEPT = 5100
END = "(([log]) => log.scrollHeight - log.scrollTop - log.clientHeight)(document.querySelectorAll('#log'))"
HOSTILE = (
    "<script>window.pwned=1</script>", "<img src=x onerror=window.pwned=1>", "<svg onload=window.pwned=1>",
    "</p></div><script>window.pwned=1</script>", '\'"><img src=x onerror=window.pwned=1>',
    "<iframe srcdoc='<script>top.pwned=1</script>'>", "<a href='javascript:window.pwned=1' id=bait>press</a>",
    "<style>*{display:none}</style>", "<base href='//evil.example/'>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<form action=//evil.example><button>Stop</button></form>",
    "<object data='data:text/html,<script>top.pwned=1</script>'></object>",
    "<embed src='javascript:window.pwned=1'>", "<math><mi xlink:href='javascript:window.pwned=1'>",
    "<details open ontoggle=window.pwned=1>", "<video><source onerror=window.pwned=1>",
    "<body onload=window.pwned=1>", "<input autofocus onfocus=window.pwned=1>", "<marquee onstart=window.pwned=1>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<div hx-get='/api/v1/hello' hx-trigger=load hx-on:load='window.pwned=1'>", "<div data-act=cancel data-ids=1>",
    "<template><script>window.pwned=1</script></template>", "{{constructor.constructor('window.pwned=1')()}}",
    "${window.pwned=1}", "<%= 7*7 %>", "&lt;script&gt;window.pwned=1&lt;/script&gt;",
    "&#60;script&#62;window.pwned=1", "<!--><script>window.pwned=1</script>", "]]><script>window.pwned=1</script>",
    "\x1b]0;title\x07\x1b[31mred\x1b[0m", "\x1b]8;;javascript:window.pwned=1\x07link\x1b]8;;\x07",
    "\x1b[2J\x1b[Hgone", "\x1b[38;5;300mx", "\x1b[1;2;3;4;999m<b>", "\x1bP<script>\x1b\\", "\u202egnp.exe",
    "\u2066<i>\u2069", "\ufeff<script>", "%3Cscript%3Ewindow.pwned=1%3C/script%3E", "x" * 30000,
    "\rover\r<script>window.pwned=1</script>",
)  # fmt: skip


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=tools.need("chromium"), args=["--no-sandbox"])
        yield made
        made.close()


class Demo:
    """`runner serve --demo`, and the command that lets a browser in."""

    def __init__(self, folder: str) -> None:
        self.env = {**os.environ, "HOME": folder, "XDG_STATE_HOME": folder, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-P", "-m", "runner", "serve", "--demo"]
        self.process = subprocess.Popen(command, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def run(self, *args: str) -> str:
        command = [sys.executable, "-P", "-m", "runner", *args, "--box", "demo"]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, check=False).stdout.strip()

    def address(self) -> str:
        return tools.wait_until(lambda: self.run("dashboard", "--no-open"), 30)

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    with wire.place() as folder:
        made = Demo(folder)
        try:
            made.address()
            yield made
        finally:
            made.end()


@pytest.fixture(scope="module")
def box() -> Iterator[wire.Box]:
    """A daemon whose jobs print what nobody should trust."""
    with wire.place() as folder:
        ours = wire.Box(Path(folder))
        try:
            ours.start()
            yield ours
        finally:
            ours.end()


class Visit:
    """A page that is signed in, and what it complained about."""

    def __init__(self, chromium: Browser, address: str, **options: Any) -> None:
        self.context: BrowserContext = chromium.new_context(**options)
        self.context.add_init_script(
            "addEventListener('securitypolicyviolation',"
            " (e) => console.error('CSP ' + e.violatedDirective + ' ' + e.blockedURI))"
        )
        self.context.set_default_timeout(15_000)
        self.page: Page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address)
        self.page.wait_for_url(re.compile(r":\d+/$"))
        self.root = self.page.url.rstrip("/")

    def go(self, path: str) -> Page:
        self.page.goto(self.root + path)
        return self.page

    def until(self, expression: str) -> None:
        """Wait until it is true. Playwright's own way evaluates text within the page, which the policy forbids."""
        deadline = time.monotonic() + 15
        while not self.page.evaluate(expression):
            assert time.monotonic() < deadline, f"never: {expression}; the page said {self.said}"
            self.page.wait_for_timeout(25)

    def quiet(self) -> bool:
        return not self.said and all(url.startswith((self.root, "data:")) for url in self.asked)

    def trouble(self) -> list[str]:
        """What axe-core finds that is serious or worse."""
        self.page.evaluate(AXE)
        found = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{each['id']}: {[node['target'] for node in each['nodes']][:3]}"
            for each in found["violations"]
            if each["impact"] in ("serious", "critical")
        ]


def visit_of(chromium: Browser, address: str, width: int = 1366, scheme: str = "light", **options: Any) -> Visit:
    size: Any = {"width": width, "height": SIZES[width]}
    return Visit(chromium, address, viewport=size, color_scheme=scheme, **options)


def address_of(box: wire.Box) -> str:
    made = box.post("/dashboard")
    return f"http://127.0.0.1:{made['port']}/sign-in#{made['code']}"


# --- what it looks like ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", SIZES)
def test_each_page_fits_and_has_no_serious_fault(chromium: Browser, demo: Demo, width: int, scheme: str) -> None:
    visit = visit_of(chromium, demo.address(), width, scheme)
    SHOTS.mkdir(parents=True, exist_ok=True)
    for name, path in PAGES.items():
        page = visit.go(path)
        if name in ("gpu", "job"):
            page.wait_for_selector(".chart canvas")
        if name == "lost":
            visit.said.clear()  # that it is not there, the console says, too
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, (
            f"{name} is wider than {width} px"
        )
        page.screenshot(path=SHOTS / f"{name}-{width}-{scheme}.png", full_page=True)
        if (width, scheme) in JUDGED:
            assert visit.trouble() == [], name
    assert visit.said == []
    assert visit.quiet()
    visit.context.close()


def test_the_narrowest_phone_has_room_for_it(chromium: Browser, demo: Demo) -> None:
    visit = visit_of(chromium, demo.address(), 390)
    visit.page.set_viewport_size({"width": 320, "height": 640})
    for name, path in PAGES.items():
        page = visit.go(path)
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, name
    visit.context.close()


def test_without_javascript_a_page_is_a_snapshot(chromium: Browser, demo: Demo) -> None:
    visit = visit_of(chromium, demo.address())
    plain = chromium.new_context(storage_state=visit.context.storage_state(), java_script_enabled=False)
    page = plain.new_page()
    page.goto(visit.root)
    assert page.locator(".card").count() == 4
    assert "%" in (page.locator("[data-part=util]").first.text_content() or "")
    plain.close()
    visit.context.close()


# --- that it lives ---------------------------------------------------------------------------------------------------


def test_the_overview_is_painted_at_once_and_lives(
    chromium: Browser, demo: Demo, figure: Callable[[str], None]
) -> None:
    visit = visit_of(chromium, demo.address())
    paints = []
    for _ in range(3):
        page = visit.go("/")
        visit.until("performance.getEntriesByName('first-contentful-paint').length > 0")
        paints.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000)
    late = page.evaluate(
        """() => new Promise((done) => {
            const seen = [];
            document.addEventListener('frame', (event) => requestAnimationFrame(() => {
                seen.push(Date.now() / 1000 - event.detail.read_at);
                if (seen.length === 4) done(seen);
            }));
        })"""
    )
    middle = sorted(late)[1]
    figure(f"dashboard: Overview painted after {min(paints) * 1000:.0f} ms (at most {PAINT_SECONDS * 1000:.0f})")
    figure(f"dashboard: from a reading to the page {middle * 1000:.0f} ms (at most {PIXEL_SECONDS * 1000:.0f})")
    assert min(paints) < PAINT_SECONDS * BUSY
    assert middle < PIXEL_SECONDS * BUSY
    streams = "performance.getEntriesByType('resource').filter((each) => each.name.endsWith('/live')).length"
    assert page.evaluate(streams) <= 1
    assert visit.quiet(), visit.said
    visit.context.close()


def test_who_pauses_sees_it_stand_still(chromium: Browser, demo: Demo) -> None:
    visit = visit_of(chromium, demo.address())
    page = visit.page
    visit.until("document.querySelector('#live-word').textContent === 'live' && document.querySelector('.live.fresh')")
    page.keyboard.press("p")
    assert "paused" in (page.text_content("#live-word") or "")
    page.evaluate("window.frames_seen = 0; document.addEventListener('frame', () => { window.frames_seen += 1; })")
    page.wait_for_timeout(1500)
    assert page.evaluate("window.frames_seen") == 0
    page.keyboard.press("p")
    visit.until("window.frames_seen > 0")
    visit.context.close()


def test_keys_lead_where_they_say(chromium: Browser, demo: Demo) -> None:
    visit = visit_of(chromium, demo.address())
    page = visit.page
    icons = set()
    for keys, path in (("gj", "/jobs"), ("gq", "/queue"), ("ge", "/events"), ("2", "/gpus/1"), ("go", "/")):
        for key in keys:
            page.keyboard.press(key)
        page.wait_for_url(visit.root + path)
        page.wait_for_load_state("load")
        icons.add(page.get_attribute("link[rel=icon]", "href"))
    assert icons <= {f"/static/icon{kind}.svg" for kind in ("-run", "-amber", "-red")}, "jobs run in the demo"
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    page.wait_for_selector("#help", state="hidden")
    page.keyboard.press("j")
    visit.until("document.activeElement.closest('td.lead') !== null")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"/jobs/\d+$"))
    visit.context.close()


def test_a_key_counts_at_once_when_a_dialog_was_closed(chromium: Browser, demo: Demo) -> None:
    """Its checkbox has the focus until the next frame, which a busy computer draws late."""
    visit = visit_of(chromium, demo.address())
    visit.until("document.querySelector('.live.fresh') !== null")
    closed = """() => {
        const help = document.getElementById('help');
        help.showModal();
        help.close();
        const held = document.activeElement;
        held.dispatchEvent(new KeyboardEvent('keydown', {key: 'j', bubbles: true, cancelable: true}));
        return [held.id, document.activeElement.closest('td.lead') !== null];
    }"""
    assert visit.page.evaluate(closed) == ["keys-on", True]
    visit.context.close()


def test_the_focus_stays_when_cards_are_drawn_anew(chromium: Browser, demo: Demo) -> None:
    visit = visit_of(chromium, demo.address())
    page = visit.page
    visit.until("document.querySelector('#cards .spark canvas') !== null")
    page.evaluate("window.old = document.querySelector('#cards'); document.querySelector('.card h2 a').focus()")
    page.evaluate("document.body.dispatchEvent(new Event('cards'))")
    visit.until("!window.old.isConnected && document.querySelector('#cards .spark canvas') !== null")
    assert page.evaluate("document.activeElement.closest('.card h2') !== null")
    assert visit.quiet(), visit.said
    visit.context.close()


def test_a_charts_table_and_ranges(chromium: Browser, demo: Demo) -> None:
    visit = visit_of(chromium, demo.address())
    page = visit.go("/gpus/0")
    page.wait_for_selector(".chart canvas")
    assert page.locator(".chart").count() == 6
    page.click("[data-range='600']")
    visit.until("document.querySelector('[data-range=\"600\"]').getAttribute('aria-pressed') === 'true'")
    page.locator(".chart details summary").first.click()
    page.wait_for_selector(".chart details table")
    assert "%" in (page.locator(".chart details td").first.text_content() or "")
    assert visit.quiet(), visit.said
    visit.context.close()


# --- that it does what is asked, and asks before ---------------------------------------------------------------------


def test_a_job_is_ended_after_a_question(chromium: Browser, box: wire.Box) -> None:
    job = box.submit(["sleep", "600"], name="long")
    tools.wait_until(lambda: box.state_of(job) == words.RUNNING, 20, box.story)
    visit = visit_of(chromium, address_of(box))
    page = visit.go(f"/jobs/{job}")
    page.click(f"#cancel-{job}")
    assert f"Stop job {job} (long)?" in (page.text_content("#ask-text") or "")
    page.click("#ask button[value=no]")
    page.wait_for_timeout(200)
    assert box.state_of(job) == words.RUNNING
    page.click(f"#kill-{job}")
    page.click("#ask-yes")
    page.wait_for_selector("text=cancelled")
    assert box.ended(job)["state"] == words.CANCELLED
    page.click(f"#rerun-{job}")
    page.wait_for_url(lambda url: url != f"{visit.root}/jobs/{job}")
    again = int(page.url.rpartition("/")[2])
    box.post("/jobs/cancel", {"ids": [again], "grace": 0})
    page.wait_for_selector("text=cancelled")
    assert visit.quiet(), visit.said
    visit.context.close()


def test_jobs_are_found_while_one_types(chromium: Browser, box: wire.Box) -> None:
    box.submit(["true"], name="needle", held=True)
    box.submit(["true"], name="straw", held=True)
    visit = visit_of(chromium, address_of(box))
    page = visit.go("/jobs")
    page.keyboard.press("/")
    page.keyboard.type("needle")
    visit.until("document.querySelectorAll('#jobs tbody tr').length === 1")
    assert "q=needle" in page.url
    assert "needle" in (page.text_content("#jobs td.lead") or "")
    assert page.evaluate("document.activeElement.id") == "filter"
    assert visit.quiet(), visit.said
    visit.context.close()


def test_the_queue_is_put_in_another_order(chromium: Browser, box: wire.Box) -> None:
    jobs = [box.submit(["true"], name=f"turn-{number}", held=True) for number in range(3)]
    visit = visit_of(chromium, address_of(box))
    page = visit.go("/queue")

    def stands(*order: int) -> None:
        wanted = ",".join(f"at-{job}" for job in order)
        ours = "[...document.querySelectorAll('#queue-rows td.lead > a')].filter((a) => /turn/.test(a.textContent))"
        shown = f"{ours}.map((a) => a.id).join()"
        visit.until(f"{shown} === '{wanted}'")

    first, second, third = jobs
    stands(*jobs)
    page.click(f"#up-{third}")
    stands(third, first, second)
    page.focus(f"#at-{second}")
    page.keyboard.press("t")
    stands(second, third, first)
    assert page.evaluate("document.activeElement.id") == f"at-{second}"
    page.keyboard.press("d")
    stands(third, first, second)
    page.keyboard.press("h")
    assert box.ended(second)["state"] == words.SUCCEEDED, "it was released"
    for job in (first, third):
        page.click(f"#cancel-{job}")
        page.click("#ask-yes")
        visit.until(f"!document.querySelector('#cancel-{job}')")
        assert box.state_of(job) == words.CANCELLED
    assert visit.quiet(), visit.said
    visit.context.close()


def test_light_and_dark_are_chosen(chromium: Browser, demo: Demo) -> None:
    visit = visit_of(chromium, demo.address())
    page = visit.page
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    for theme in ("light", "dark"):
        with page.expect_navigation():
            page.click("#theme")
        page.wait_for_selector(f"html[data-theme={theme}]")
    assert page.evaluate(ground) != light
    assert visit.trouble() == []
    visit.go("/jobs")
    assert page.evaluate(ground) != light
    with page.expect_navigation():
        page.click("#theme")
    page.wait_for_selector("html:not([data-theme])")
    assert visit.quiet(), visit.said
    visit.context.close()


def test_the_keyboard_keeps_its_place_in_a_list_that_changes(chromium: Browser, box: wire.Box) -> None:
    jobs = [box.submit(["true"], name=f"row-{number}", held=True) for number in range(3)]
    visit = visit_of(chromium, address_of(box))
    page = visit.go("/queue")
    visit.until("document.querySelector('.live.fresh, .live') !== null")

    def focus(selector: str) -> None:
        page.evaluate(f"document.querySelector('{selector}').focus()")

    focus(f"#at-{jobs[0]}")
    box.submit(["true"], name="row-more", held=True)
    page.wait_for_selector("text=row-more")
    assert page.evaluate("document.activeElement.id") == f"at-{jobs[0]}", "the same row"
    focus(f"#release-{jobs[2]}")
    box.post("/jobs/cancel", {"ids": [jobs[0]]})
    page.wait_for_selector(f"#at-{jobs[0]}", state="detached")
    assert page.evaluate("document.activeElement.id") == f"release-{jobs[2]}", "the same button"
    box.post("/jobs/cancel", {"ids": [jobs[2]]})
    page.wait_for_selector(f"#at-{jobs[2]}", state="detached")
    assert "row-more" in page.evaluate("document.activeElement.textContent"), "the row that is there now"
    assert page.evaluate("document.activeElement.closest('td.lead') !== null"), "and none of its buttons"
    for left in page.evaluate("[...document.querySelectorAll('#queue-rows td.lead > a')].map((a) => a.id)"):
        box.post("/jobs/cancel", {"ids": [int(left.removeprefix("at-"))]})
    page.wait_for_selector("text=Queue is empty.")
    assert page.evaluate("document.activeElement.id") == "main"
    assert visit.quiet(), visit.said
    visit.context.close()


def test_many_jobs_are_changed_at_once(chromium: Browser, box: wire.Box) -> None:
    waiting = [box.submit(["true"], name=f"bulk-{number}", held=True) for number in range(3)]
    running = box.submit(["sleep", "600"], name="bulk-run")
    tools.wait_until(lambda: box.state_of(running) == words.RUNNING, 20, box.story)
    visit = visit_of(chromium, address_of(box))
    page = visit.go("/jobs?q=bulk-")
    assert page.locator("#bulk").is_hidden()
    page.keyboard.press("j")
    page.keyboard.press("x")
    page.click("#pick-all")
    visit.until("document.querySelector('#bulk [data-part=count]').textContent === '4 selected'")
    assert page.text_content("#bulk-cancel") == "Stop 4"
    assert page.text_content("#bulk-kill") == "Kill 1"
    assert page.locator("#bulk-hold").is_hidden()
    page.click(f"#pick-{running}")
    page.click("#bulk-release")
    for job in waiting:
        box.ended(job)
    page.wait_for_selector("#bulk", state="hidden")
    visit.until(
        "[...document.querySelectorAll('#jobs .badge')].filter((b) => /succeeded/.test(b.textContent)).length === 3"
    )
    page.click("#pick-all")
    page.click("#bulk-kill")
    assert page.text_content("#ask-text") == f"Kill job {running} at once? Nothing can be saved any more."
    page.click("#ask button[value=no]")
    assert box.state_of(running) == words.RUNNING
    page.click("#bulk-cancel")
    page.click("#ask-yes")
    assert box.ended(running)["state"] == words.CANCELLED
    page.wait_for_selector("#bulk", state="hidden")
    for job in waiting[:2]:
        page.check(f"#pick-{job}")
    page.click("#bulk-rerun")
    assert page.text_content("#ask-text") == "Submit 2 jobs once more?"
    page.click("#ask-yes")
    visit.until("document.querySelectorAll('#jobs tbody tr').length === 6")
    page.keyboard.press("Escape")
    assert visit.quiet(), visit.said
    page.click("#pick-all")
    page.screenshot(path=SHOTS / "bulk-1366-light.png")
    assert visit.trouble() == []
    visit.context.close()


def test_settings_and_tokens_are_changed_on_their_page(chromium: Browser, box: wire.Box) -> None:
    visit = visit_of(chromium, address_of(box))
    page = visit.go("/settings")
    page.fill("#set-keep_logs_bytes", "2,5")
    page.press("#set-keep_logs_bytes", "Enter")
    page.wait_for_selector("#undo-keep_logs_bytes")
    told = {each["name"]: each["value"] for each in box.get("/settings")["settings"]}
    assert told["keep_logs_bytes"] == 2.5 * 2**30
    page.fill("#set-keep_logs_days", "soon")
    page.press("#set-keep_logs_days", "Enter")
    page.wait_for_selector("text=soon is no number")
    page.click("#undo-keep_logs_bytes")
    page.wait_for_selector("#undo-keep_logs_bytes", state="detached")
    page.fill("#token-new [name=label]", "phone")
    page.click("#token-new .primary")
    page.wait_for_selector("#token-shown:not([hidden])")
    assert (page.text_content("#token-shown code") or "").startswith("gpubox_")
    page.wait_for_selector("#tokens-rows")
    page.click("#tokens-rows .danger")
    assert "(phone)" in (page.text_content("#ask-text") or "")
    page.click("#ask-yes")
    page.wait_for_selector("#tokens-rows", state="detached")
    assert visit.quiet(), visit.said
    visit.context.close()


# --- that nothing of a job's is more than text -----------------------------------------------------------------------


def test_hostile_logs_and_names_are_text(chromium: Browser, box: wire.Box) -> None:
    assert len(HOSTILE) >= 40
    told = "\n".join(HOSTILE) + "\n"
    job = box.submit([sys.executable, "-c", f"import sys; sys.stdout.write({told!a})"], name=HOSTILE[0])
    for name in HOSTILE[:24]:
        box.submit(["true", name], name=name[:60], held=True)
    box.ended(job)
    visit = visit_of(chromium, address_of(box))
    for path in ("/", "/jobs", "/queue", f"/jobs/{job}", f"/jobs/{job + 1}"):
        page = visit.go(path)
        page.wait_for_timeout(200)
        assert page.evaluate("window.pwned") is None
        assert (
            page.locator("script:not([src]), iframe, object, embed, #bait, base, main form[action^='//']").count() == 0
        )
        assert page.locator("main").is_visible()
    page = visit.go(f"/jobs/{job}")
    page.wait_for_selector("#log p")
    shown = page.text_content("#log") or ""
    assert HOSTILE[0] in shown
    assert not set(shown) & {"\x1b", "\x07", "\u202e", "\u2066", "\r"}
    assert page.locator("#log *:not(p):not(span)").count() == 0
    assert "red" in (page.locator("#log .c1").first.text_content() or "")
    assert visit.quiet(), visit.said
    visit.context.close()


def test_outputs_are_shown_and_run_nothing(chromium: Browser, box: wire.Box) -> None:
    trap = b"<script>window.pwned=1</script><svg xmlns='http://www.w3.org/2000/svg' onload='window.pwned=1'></svg>"
    files = {"loss.png": a_png(320, 200), "trap.png": trap, "page.html": trap, "notes.txt": trap + b"\n"}
    said = "import os, sys\nos.chdir(os.environ['RUNNER_OUT'])\n"
    said += f"for name, data in {files!r}.items(): open(name, 'wb').write(data)"
    job = box.submit([sys.executable, "-c", said], name="leaves")
    box.ended(job)
    visit = visit_of(chromium, address_of(box))
    page = visit.go(f"/jobs/{job}")
    page.locator(".pictures").scroll_into_view_if_needed()
    visit.until("[...document.querySelectorAll('.pictures img')].some((each) => each.naturalWidth === 320)")
    visit.said.clear()  # that one picture is none, the console says, too
    assert visit.trouble() == []
    page.screenshot(path=SHOTS / "outputs-1366-light.png", full_page=True)
    for name in files:
        visit.go(f"/jobs/{job}/outputs/{name}")
        assert page.evaluate("window.pwned") is None, name
    assert "<script>" in (page.text_content("pre.text") or "")
    assert visit.trouble() == []
    for name in ("trap.png", "page.html"):
        reply = page.request.get(f"{visit.root}/jobs/{job}/picture/{name}")
        assert reply.status == 404, name
    assert visit.quiet(), visit.said
    visit.context.close()


def test_what_changed_is_shown_as_text(chromium: Browser, box: wire.Box) -> None:
    given: dict[str, Any] = {"script": "main.py", "project": "/p", "environment": "base", "name": "changes"}
    for number in (1, 2):
        lines = "".join(f"# line {line}\n" for line in range(60))
        code = f"{lines}print('{HOSTILE[0]}', {number}, '{'long ' * 60}')\n"
        job = box.submit(["python", "main.py", str(number)], snapshot=send(box, {"main.py": code.encode()}), **given)
        box.ended(job)
    visit = visit_of(chromium, address_of(box), 390, "dark")
    page = visit.go(f"/jobs/{job}")
    page.click(f"a[href='/jobs/{job}/diff']")
    page.wait_for_url(f"**/jobs/{job}/diff")
    assert page.locator(".diff .ins").count() == page.locator(".diff .del").count() == 1
    assert HOSTILE[0] in (page.text_content(".diff .ins") or "")
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert page.evaluate("window.pwned") is None
    page.screenshot(path=SHOTS / "diff-390-dark.png")
    assert visit.trouble() == []
    visit.go(f"/jobs/{job}/files")
    assert visit.trouble() == []
    page.click("text=main.py")
    page.wait_for_selector("pre.text")
    assert visit.quiet(), visit.said
    visit.context.close()


def test_a_long_log_opens_at_its_end_and_is_kept_in_bounds(
    chromium: Browser, box: wire.Box, figure: Callable[[str], None]
) -> None:
    job = box.submit(
        [sys.executable, "-c", f"print('\\n'.join(f'line {{n}}' for n in range({LOG_LINES})))"], name="long-log"
    )
    box.ended(job)
    visit = visit_of(chromium, address_of(box))
    page = visit.go("/settings")
    began = time.monotonic()
    page = visit.go(f"/jobs/{job}")
    visit.until(f"document.querySelector('#log')?.lastElementChild?.textContent === 'line {LOG_LINES - 1}'")
    took = time.monotonic() - began
    figure(f"dashboard: a log of {LOG_LINES:,} lines is open at its end after {took * 1000:.0f} ms (at most 500)")
    assert took < LOG_SECONDS * BUSY
    assert page.evaluate("document.querySelector('#log').childElementCount") <= LINES_KEPT
    assert page.evaluate(END) < 40
    last = page.locator("#log p").nth(1).text_content() or ""
    page.click("#log .gap button")
    visit.until(f"![...document.querySelectorAll('#log p')].slice(0, 2).some((p) => p.textContent === '{last}')")
    numbers = page.evaluate(
        "[...document.querySelectorAll('#log p:not(.gap)')].map((p) => Number(p.textContent.slice(5)))"
    )
    assert numbers == list(range(numbers[0], LOG_LINES)), "what is above joins without a gap"
    assert visit.quiet(), visit.said
    visit.context.close()


def test_a_log_is_followed_and_rests_where_one_reads(chromium: Browser, box: wire.Box) -> None:
    said = "import time\nfor n in range(100000):\n print('tick', n, flush=True)\n time.sleep(0.005)"
    job = box.submit([sys.executable, "-c", said], name="ticks")
    visit = visit_of(chromium, address_of(box))
    page = visit.go(f"/jobs/{job}")
    visit.until("document.querySelectorAll('#log p').length > 120")
    page.evaluate("document.querySelector('#log').scrollTop = 0")
    page.wait_for_selector("#log-end:not([hidden])")
    assert page.evaluate("document.querySelector('#log').scrollTop") == 0
    assert re.search(r"\(\d+ new\)", page.text_content("#log-end") or "")
    page.click("#log-end")
    page.wait_for_selector("#log-end", state="hidden")
    page.fill("#log-filter", "tick 77")
    assert set(page.locator("#log p:not(.filtered)").all_text_contents()) >= {"tick 77"}
    box.post("/jobs/cancel", {"ids": [job], "grace": 0})
    page.wait_for_selector("text=cancelled")
    assert visit.quiet(), visit.said
    visit.context.close()


# --- who is let in ---------------------------------------------------------------------------------------------------


def test_a_code_that_was_used_is_told(chromium: Browser, box: wire.Box) -> None:
    address = address_of(box)
    visit = visit_of(chromium, address)
    other = chromium.new_context().new_page()
    other.goto(address)
    other.wait_for_selector("text=was used")
    assert "#" not in other.url
    other.goto(f"{visit.root}/jobs")
    assert other.url.endswith("/sign-in")
    other.context.close()
    visit.page.click("footer button")
    visit.page.wait_for_url("**/sign-in")
    visit.context.close()


def test_who_came_by_a_link_sees_pages_without_doors(chromium: Browser, demo: Demo) -> None:
    visit = visit_of(chromium, demo.run("dashboard", "--share", "--for", "1h").splitlines()[0], 390, "dark")
    page = visit.page
    for path in ("/", "/queue", "/gpus/1"):
        visit.go(path)
        visit.until("document.querySelector('.live.fresh') !== null")
        assert page.locator("main a[href^='/jobs'], [data-act], .acts").count() == 0, path
        assert "jupyter" not in page.content(), "what somebody runs beside the queue"
        assert visit.trouble() == [], path
        page.screenshot(path=SHOTS / f"shared-{path.strip('/').replace('/', '-') or 'overview'}-390-dark.png")
    page.wait_for_selector(".chart canvas")
    visit.until("document.querySelector('[data-traffic]').textContent.endsWith('MB/s')")
    assert visit.quiet(), visit.said
    visit.go("/jobs/78")
    assert "does not show that" in (page.text_content("main") or "")
    visit.context.close()


# --- tabs that are kept open -----------------------------------------------------------------------------------------

HIDDEN = "Object.defineProperty(document, 'hidden', {configurable: true, get: () => window.away !== false})"
LOOK = "(away) => { window.away = away; document.dispatchEvent(new Event('visibilitychange')); }"


def test_more_tabs_than_a_browser_has_connections(chromium: Browser, box: wire.Box) -> None:
    """It opens six to one box: those of tabs that nobody looks at are left to the others."""
    job = box.submit(["sh", "-c", "echo begun; exec sleep 600"])
    visit = visit_of(chromium, address_of(box))
    visit.context.add_init_script(HIDDEN)
    tabs = [visit.context.new_page() for _ in range(7)]
    for number, tab in enumerate(tabs):
        tab.goto(f"{visit.root}/jobs/{job}" if number % 2 else visit.root)
    for tab in tabs:
        tab.evaluate(LOOK, False)  # somebody looks
        tab.wait_for_selector("#log >> text=begun" if "/jobs/" in tab.url else ".live.fresh")
        tab.evaluate(LOOK, True)  # and goes on to the next
    tabs[0].evaluate(LOOK, False)
    tabs[0].goto(f"{visit.root}/jobs")
    box.post("/jobs/cancel", {"ids": [job], "grace": 0})
    tabs[1].evaluate(LOOK, False)
    tabs[1].wait_for_selector("text=cancelled")
    visit.context.close()


def test_a_chart_has_the_boxs_clock_wherever_the_browser_is(chromium: Browser, demo: Demo) -> None:
    visit = visit_of(chromium, demo.address(), timezone_id="Asia/Kathmandu")
    page = visit.go("/gpus/1")
    page.click("[data-range='600']")
    page.click(".chart >> nth=0 >> summary")
    last = page.locator(".chart >> nth=0 >> tbody th").last.text_content() or ""
    lately = [time.localtime(time.time() - ago) for ago in (0, 600)]
    assert last[:-3] in [f"{each.tm_mday} {time.strftime('%b %H', each)}" for each in lately]
    assert visit.quiet(), visit.said
    visit.context.close()


def test_back_from_a_filtered_list_the_page_still_lives(chromium: Browser, box: wire.Box) -> None:
    job = box.submit(["true"], name="go-back", held=True)
    visit = visit_of(chromium, address_of(box))
    page = visit.go("/jobs")
    page.fill("#filter", "go-back")
    page.wait_for_url("**q=go-back*")
    page.go_back()
    page.wait_for_url(re.compile(r"/jobs$"))
    page.wait_for_selector("#pause:not([hidden])")
    page.check(f"#pick-{job}")
    page.wait_for_selector("#bulk >> text=1 selected")
    box.post("/jobs/cancel", {"ids": [job], "grace": 0})
    visit.context.close()


def test_six_gpus_in_a_chart_are_told_apart(chromium: Browser, demo: Demo) -> None:
    """By colours and dashes, and in the table; over days a time has its date."""
    visit = visit_of(chromium, demo.address())
    page, now = visit.page, int(time.time())
    job = page.get_attribute("#cards .who a", "href") or ""  # it has a GPU
    at = list(range(now - 3 * 86400, now, 3600))
    line = {"mean": [0.5] * len(at), "least": [0.4] * len(at), "most": [0.6] * len(at), "sum": [], "last": []}
    series = [
        {"subject": f"GPU-{number:02d}", "kind": "gpu", "lines": {"utilization": line}, "gaps": []}
        for number in range(6)
    ]
    drawn = {"since": at[0], "until": now, "step": 3600, "bucket": 3600, "at": at, "recorded_from": None, "trouble": ""}
    page.route("**/api/v1/history?*", lambda route: route.fulfill(json={**drawn, "series": series}))
    visit.go(job)
    page.wait_for_selector(".legend svg")
    looks = page.locator(".legend svg").evaluate_all(
        "(all) => all.map((each) => each.getAttribute('class') + each.firstChild.getAttribute('stroke-dasharray'))"
    )
    assert len(set(looks)) == 6
    page.click(".chart summary")
    page.wait_for_selector(".chart thead")
    assert page.locator(".chart thead th").all_text_contents() == ["", *(f"GPU-{number:02d}" for number in range(6))]
    assert page.locator(".chart tbody tr >> nth=0 >> td").all_text_contents() == ["50 %"] * 6
    page.hover(".chart .u-over")
    assert re.match(r"\d+ \w{3} \d\d:\d\d  50 %", page.text_content(".chart output") or "")
    assert visit.trouble() == []
    assert visit.quiet(), visit.said
    visit.context.close()


def test_the_page_of_a_job_that_waits_gets_its_charts_when_it_runs(chromium: Browser, demo: Demo) -> None:
    visit = visit_of(chromium, demo.address())
    job = visit.page.get_attribute("#cards .who a", "href") or ""  # it has a GPU

    def as_before(route: Route) -> None:
        page = route.fetch().text()
        route.fulfill(body=page.replace('id="charts"', 'id="charts" hidden'), content_type="text/html")

    visit.page.route(f"**{job}", as_before)
    visit.go(job)
    visit.page.wait_for_selector("#charts .chart canvas")
    assert visit.quiet(), visit.said
    visit.context.close()


def test_what_was_printed_while_nobody_looked_is_not_read_line_by_line(
    chromium: Browser, box: wire.Box, tmp_path: Path
) -> None:
    script = (
        f"echo begun; until [ -e {tmp_path}/go ]; do sleep 0.05; done; seq 1000000; touch {tmp_path}/said; sleep 600"
    )
    job = box.submit(["sh", "-c", script])
    visit = visit_of(chromium, address_of(box))
    visit.context.add_init_script(HIDDEN)
    ours, other = visit.context.new_page(), visit.context.new_page()
    ours.goto(f"{visit.root}/jobs/{job}")
    ours.evaluate(LOOK, False)
    ours.wait_for_selector("#log >> text=begun")
    ours.evaluate(LOOK, True)
    other.goto(visit.root)
    other.evaluate(LOOK, False)  # that one gets the connections
    (tmp_path / "go").touch()
    tools.wait_until(lambda: (tmp_path / "said").exists(), 20)
    heard: list[str] = []
    ours.on("request", lambda request: heard.append(request.url))
    ours.evaluate(LOOK, False)
    ours.wait_for_selector("#log >> text=1000000")
    ours.wait_for_selector("#log button >> text=Show what is above")
    follows = [url for url in heard if "/follow?" in url]
    assert all(int(url.rpartition("offset=")[2]) > 6_000_000 for url in follows), follows
    box.post("/jobs/cancel", {"ids": [job], "grace": 0})
    visit.context.close()


def test_figures_move_though_nothing_has_happened(chromium: Browser, box: wire.Box) -> None:
    visit = visit_of(chromium, address_of(box))
    visit.until("document.querySelector('.live.fresh') !== null")
    before = len(visit.asked)
    visit.page.evaluate("(now => { performance.now = () => now.call(performance) + 16000; })(performance.now)")
    visit.until("document.querySelector('.live.fresh') !== null")
    tools.wait_until(
        lambda: visit.page.wait_for_timeout(20) or any("/part/work" in url for url in visit.asked[before:])
    )
    visit.context.close()


def test_a_tab_whose_session_is_over_shows_the_way_in(chromium: Browser, box: wire.Box) -> None:
    """It is not put in the place of a part, and a stream that the box refuses is not waited for."""
    visit = visit_of(chromium, address_of(box))
    visit.context.add_init_script(HIDDEN)
    listening, asking = visit.context.new_page(), visit.context.new_page()
    for tab in (listening, asking):
        tab.goto(visit.root)
        tab.evaluate(LOOK, False)
        tab.wait_for_selector(".live.fresh")
        tab.evaluate(LOOK, True)
    visit.page.click("footer button")
    visit.page.wait_for_url("**/sign-in")
    asking.evaluate("document.body.dispatchEvent(new Event('changed'))")
    asking.wait_for_url("**/sign-in")
    listening.evaluate(LOOK, False)
    listening.wait_for_url("**/sign-in")
    visit.context.close()
