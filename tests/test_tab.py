"""A tab that stays open: a large box painted at once; a log of a thousand lines a second that costs no more memory."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tools
import wire
from fake_nvml import FakeNvml
from playwright.sync_api import Browser, sync_playwright
from test_chromium import BUSY, PAINT_SECONDS, address_of, visit_of

from runner import words

pytestmark = pytest.mark.slow
GPUS, JOBS = 8, 200
MINUTES = float(os.environ.get("TAB_MINUTES", "10"))
LINES_A_SECOND = 1000
PRINTS = f"""
import sys, time
began, line = time.monotonic(), 0
while True:
    until = int((time.monotonic() - began) * {LINES_A_SECOND})
    said = "loss 0.123456  accuracy 0.9134  some more words"
    for n in range(line, until):
        print(f"step {{n}}  {{said}}")
    sys.stdout.flush()
    line = until
    time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=tools.need("chromium"), args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def box() -> Iterator[wire.Box]:
    """Eight GPUs that a fake library pretends, and jobs that hold them."""
    with wire.place() as folder, tempfile.TemporaryDirectory() as script:
        fake = FakeNvml(Path(script), calls=False)
        for _ in range(GPUS):
            fake.add("3090")
        ours = wire.Box(Path(folder), cpus="64")
        ours.env |= fake.env
        try:
            ours.start()
            yield ours
        finally:
            ours.end()


def test_a_large_box_is_painted_at_once(chromium: Browser, box: wire.Box, figure: Callable[[str], None]) -> None:
    tools.wait_until(lambda: len(box.get("/gpus")["gpus"]) == GPUS, 20, box.story)
    ended = [box.submit(["true"], name=f"ended-{number}") for number in range(60)]
    running = [box.submit(["sleep", "600"], name=f"runs-{number}", gpus=1) for number in range(GPUS)]
    for number in range(JOBS - len(ended) - GPUS):
        box.submit(["sleep", "600"], name=f"waits-{number}", gpus=1 + number % 4)
    for job in ended:
        box.ended(job)
    tools.wait_until(lambda: all(box.state_of(job) == words.RUNNING for job in running), 60, box.story)
    visit = visit_of(chromium, address_of(box))
    for path, name in (("/", "Overview"), ("/jobs", "Jobs"), ("/queue", "Queue")):
        paints, answers = [], []
        for _ in range(5):
            page = visit.go(path)
            visit.until("performance.getEntriesByName('first-contentful-paint').length > 0")
            paints.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000)
            answers.append(page.evaluate("performance.getEntriesByType('navigation')[0].responseEnd") / 1000)
        figure(
            f"dashboard: {name} of {GPUS} GPUs and {JOBS} jobs painted after {min(paints) * 1000:.0f} to "
            f"{max(paints) * 1000:.0f} ms (at most {PAINT_SECONDS * 1000:.0f}), answered in {min(answers) * 1000:.0f}"
        )
        assert min(paints) < PAINT_SECONDS * BUSY, name
    assert page.locator("#queue-rows tbody tr").count() > 100
    visit.go("/")
    assert page.locator(".card").count() == GPUS
    assert visit.quiet(), visit.said
    visit.context.close()


def test_a_log_of_a_thousand_lines_a_second_fills_no_memory(
    chromium: Browser, box: wire.Box, figure: Callable[[str], None]
) -> None:
    job = box.submit([sys.executable, "-c", PRINTS], name="fast")
    tools.wait_until(lambda: box.state_of(job) == words.RUNNING, 20, box.story)
    visit = visit_of(chromium, address_of(box))
    page = visit.go(f"/jobs/{job}")
    inspector = visit.context.new_cdp_session(page)
    last = "[...document.querySelectorAll('#log p')].findLast((p) => /^step \\d+ /.test(p.textContent))?.textContent"

    def measured() -> tuple[float, int, int]:
        """(MB of the heap after a collection, nodes, the last line that is shown)"""
        inspector.send("HeapProfiler.collectGarbage")
        heap = inspector.send("Runtime.getHeapUsage")["usedSize"] / 1e6
        nodes = inspector.send("Memory.getDOMCounters")["nodes"]
        return heap, nodes, int(str(page.evaluate(last)).split()[1])

    visit.until("document.querySelectorAll('#log p').length > 4900")
    page.wait_for_timeout(20_000)
    first, began = measured(), time.monotonic()
    seen = [first]
    while time.monotonic() - began < MINUTES * 60:
        page.wait_for_timeout(15_000)
        seen.append(measured())
    took = time.monotonic() - began
    rate = (seen[-1][2] - first[2]) / took
    half = len(seen) // 2
    early, late = (max(each[0] for each in part) for part in (seen[:half], seen[half:]))
    figure(
        f"dashboard: a tab that follows {rate:.0f} lines a second for {took / 60:.1f} min: {early:.1f} MB at most in "
        f"the first half, {late:.1f} in the second; {seen[0][1]} nodes, then {seen[-1][1]}"
    )
    assert rate > LINES_A_SECOND / 2
    assert late < early * 1.1 + 1
    assert seen[-1][1] < first[1] * 1.2 + 1000
    assert visit.quiet(), visit.said
    visit.context.close()
