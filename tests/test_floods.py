"""Jobs that print far too much, on a real box: the disk, the daemon and everybody who reads stay unharmed."""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tools

from runner.box.settings import Settings
from runner.laptop import boxes

pytestmark = pytest.mark.slow

MB = 1_000_000
FLOOD_BYTES = 10_000 * MB
LINES = 1_000_000
DISK_OVER_CAP_BYTES = 300 * MB
DAEMON_GROWTH_BYTES = 20 * MB
TAIL_SECONDS = 0.050
TAIL_BYTES = 64 << 10
PAUSE_SECONDS = 0.02  # between looks: somebody who reads, not a second flood

LAST_LINE = "that was all"
FLOOD = f"yes {'0123456789' * 10} | head -c {FLOOD_BYTES}; echo; echo {LAST_LINE}"
BURST = f"for number in range({LINES}): print(number)"


def _resident(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def test_ten_gigabytes_do_no_harm(
    box: tools.Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: Callable[[str], None]
) -> None:
    """Sampled while the flood lasts, with one follower who reads along."""
    assert box.daemon is not None
    monkeypatch.setenv("GPUBOX_STATE", str(box.state))
    client = boxes.open_box(start=False)
    log = Path(box.state.job(1).attempt(1).log)
    resident = _resident(box.daemon.pid)
    box.run("submit", "-d", "--", "sh", "-c", FLOOD, cwd=tmp_path)
    disk, grown, tails = 0, 0, []
    follower = subprocess.Popen(
        [*tools.CLI, "logs", "-f", "1"], env=box.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        tools.wait_until(log.exists)
        while client.get("/jobs/1")["job"]["ended_at"] is None:
            disk = max(disk, log.stat().st_blocks * 512)
            grown = max(grown, _resident(box.daemon.pid) - resident)
            asked = time.perf_counter()
            read = sum(map(len, client.stream("GET", f"/logs/1?offset=-{TAIL_BYTES}&limit={TAIL_BYTES}")))
            tails.append(time.perf_counter() - asked)
            assert read <= TAIL_BYTES  # less only at the very start
            time.sleep(PAUSE_SECONDS)
        assert follower.wait(120) == 0
    finally:
        follower.kill()
        follower.wait()
    cap = Settings.log_head_bytes + Settings.log_tail_bytes
    left = log.stat()
    usually = statistics.quantiles(tails, n=100)[98]
    figure(
        f"a flood of {left.st_size / 1e9:.1f} GB: at most {disk / MB:.0f} MB on disk, "
        f"{left.st_blocks * 512 / MB:.0f} MB afterwards (cap {cap / MB:.0f}); "
        f"the daemon grew by {grown / MB:.1f} MB; a tail took "
        f"{statistics.median(tails) * 1e3:.1f} ms, 99 % at most {usually * 1e3:.1f} ms, all {max(tails) * 1e3:.1f} ms"
    )
    assert left.st_size == FLOOD_BYTES + 1 + len(LAST_LINE) + 1
    assert b"".join(client.stream("GET", "/logs/1?offset=-100")).endswith(f"\n{LAST_LINE}\n".encode())
    assert disk <= cap + DISK_OVER_CAP_BYTES
    assert grown <= DAEMON_GROWTH_BYTES
    assert usually <= TAIL_SECONDS  # the odd one meets another process's turn


@pytest.mark.parametrize("command", [["logs", "1"], ["logs", "-f", "1"]], ids=" ".join)
def test_a_million_lines_at_once_all_arrive(
    box: tools.Box, tmp_path: Path, figure: Callable[[str], None], command: list[str]
) -> None:
    box.run("submit", "-d", "--", sys.executable, "-c", BURST, cwd=tmp_path)
    if "-f" not in command:
        box.run("wait", "1")
    with (tmp_path / "read").open("wb") as out:
        asked = time.perf_counter()
        subprocess.run([*tools.CLI, *command], env=box.env, stdout=out, stderr=subprocess.DEVNULL, check=True)
        took = time.perf_counter() - asked
    with (tmp_path / "read").open("rb") as lines:
        pairs = itertools.zip_longest(lines, range(LINES))
        wrong = sum(line is None or number is None or line != b"%d\n" % number for line, number in pairs)
    figure(f"`runner {' '.join(command)}` of a burst of {LINES:,} lines: {wrong} lost or changed, {took:.1f} s")
    assert wrong == 0
