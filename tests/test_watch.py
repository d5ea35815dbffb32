"""The watch over the collector: it may hang, lie, die or be killed; there is never a second one, and never a wait."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_frames import a_card, a_line

from runner.box.gpus import watch as module
from runner.box.gpus.collectors import Door, spawner
from runner.box.gpus.frames import LINE_MAX, Frame, Probe, Trouble
from runner.box.gpus.watch import NO_DRIVER, Silence, Times, Watch, driver_there

pytestmark = pytest.mark.long

SHORT = Times(
    silence=0.15, patience=0.3, first=5.0, stuck=0.1, leave=0.1, pause=0.01, pause_max=0.08,
    late_pause=0.02, late=60.0, absent=0.02,
)  # fmt: skip
CALM = replace(SHORT, silence=20.0, patience=40.0)  # where silence is not what is tested

# A collector that does as it is told: these verbs, and an act written with them.
VERBS = f"""
import os, select, signal, sys, time

FRAME = {a_line()!r} + b"\\n"
TROUBLE = {a_line("trouble", code="driver_not_loaded", message="the driver is not loaded", hint="modprobe nvidia")!r}
PROBE = {a_line("probe", gpus=[a_card(1)])!r} + b"\\n"

def say(data):
    while data:
        data = data[os.write(0, data):]

def hear(seconds):
    if select.select([0], [], [], seconds)[0]:
        asked = os.read(0, 4096)
        if not asked:
            sys.exit(0)
        return asked

def work(frames=10**9):
    for _ in range(frames):
        say(FRAME)
        asked = hear(0.01)
        if asked == b"probe GPU-1\\n":
            say(PROBE)

def hang():
    while True:
        time.sleep(60)

def deaf():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hang()
"""
WORK = "work()"


class Stage:
    """A watch, the acts of its collectors one after the other (the last one again and again), and what was heard."""

    def __init__(self, folder: Path, *acts: str, times: Times = SHORT, expected: bool = True) -> None:
        self.folder, self.acts, self.expected = folder, acts, expected
        self.pids: list[int] = []
        self.heard: list[Any] = []
        self.said: list[str] = []
        self.failing: OSError | None = None
        self.looks = 0
        self.watch = Watch(self.spawn, self.hear, self.said.append, self.expects, times)

    def spawn(self, link: socket.socket) -> int:
        assert not [pid for pid in self.pids if _exists(pid)], "there is a collector already"
        if self.failing is not None:
            raise self.failing
        number = min(len(self.pids), len(self.acts) - 1)
        script = self.folder / f"act-{number}.py"
        script.write_text(VERBS + self.acts[number])
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", str(script)],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, link.fileno(), 0)],
            setsid=True,
        )
        self.pids.append(pid)
        return pid

    def hear(self, value: Any) -> None:
        self.heard.append(value)

    def expects(self) -> bool:
        self.looks += 1
        return self.expected

    def all(self, kind: type) -> list[Any]:
        return [value for value in self.heard if isinstance(value, kind)]

    async def until(self, condition: Callable[[], Any], timeout: float = 20.0) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, (self.said, self.heard[-3:], self.pids)
            await asyncio.sleep(0.002)

    async def frames(self, more: int = 1) -> None:
        wanted = len(self.all(Frame)) + more
        await self.until(lambda: len(self.all(Frame)) >= wanted)


def _exists(pid: int) -> bool:
    """Also true for a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


Play = Callable[..., Stage]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """play(story, *acts): a story with a stage, on a loop; afterwards there is no process and no zombie."""

    def run(story: Callable[[Stage], Awaitable[object]], *acts: str, **values: Any) -> Stage:
        async def main() -> Stage:
            stage = Stage(tmp_path, *acts, **values)
            stage.watch.begin()
            try:
                await story(stage)
            finally:
                stage.watch.close()
                left = [pid for pid in stage.pids if _exists(pid)]
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
            assert not left
            return stage

        return asyncio.run(main())

    return run


# --- all is well ---


def test_frames_are_heard_and_the_log_says_it_once(play: Play) -> None:
    async def story(stage: Stage) -> None:
        assert stage.watch.words(time.time()) == "the GPUs are being read for the first time"
        await stage.frames(30)
        assert stage.watch.silent_since is None
        assert stage.watch.words(time.time()) is None
        assert stage.watch.pid == stage.pids[0]

    stage = play(story, WORK, times=CALM)
    assert stage.said == ["1 GPU seen, driver unknown"]
    assert len(stage.pids) == 1


def test_a_probe_is_answered(play: Play) -> None:
    async def story(stage: Stage) -> None:
        await stage.frames()
        stage.watch.probe("GPU-1")
        await stage.until(lambda: stage.all(Probe))

    assert play(story, WORK, times=CALM).all(Probe)[0].card.uuid == "GPU-1"


def test_a_probe_of_nobody_is_nothing(play: Play) -> None:
    async def story(stage: Stage) -> None:
        stage.watch.probe("GPU-1")
        stage.expected = True
        await stage.frames()
        for _ in range(100_000):  # it does not read them, and they don't wait for it
            stage.watch.probe("GPU-1")

    play(story, "say(FRAME); hang()", expected=False)


# --- nobody there ---


def test_without_a_driver_there_is_no_process_and_one_line(play: Play) -> None:
    async def story(stage: Stage) -> None:
        await stage.until(lambda: stage.looks > 5)
        assert stage.watch.words(time.time()) == NO_DRIVER
        assert stage.watch.silent_since is None
        assert (stage.pids, stage.heard, stage.said) == ([], [], ["no NVIDIA driver found: jobs without GPUs go on"])
        stage.expected = True
        await stage.frames()

    assert len(play(story, WORK, expected=False).pids) == 1


def test_trouble_is_told_once_and_tried_again(play: Play) -> None:
    async def story(stage: Stage) -> None:
        await stage.until(lambda: len(stage.all(Trouble)) == 4)
        assert stage.watch.trouble == stage.heard[-1]
        assert "the driver is not loaded" in (stage.watch.words(time.time()) or "")
        assert stage.said == ["the driver is not loaded; modprobe nvidia"]
        await stage.frames()
        assert stage.watch.trouble is None
        assert stage.watch.silent_since is None

    trouble = "say(TROUBLE + b'\\n'); sys.exit(3)"
    stage = play(story, *[trouble] * 5, WORK, times=CALM)
    assert len(stage.pids) == 6
    assert stage.said == ["the driver is not loaded; modprobe nvidia", "1 GPU seen, driver unknown"]


def test_a_driver_that_goes_is_looked_for_without_a_process(play: Play) -> None:
    async def story(stage: Stage) -> None:
        await stage.until(lambda: stage.all(Trouble))
        stage.expected = False
        await stage.until(lambda: stage.watch.words(time.time()) == NO_DRIVER)
        count, looks = len(stage.pids), stage.looks
        await stage.until(lambda: stage.looks > looks + 3)
        assert len(stage.pids) == count
        assert stage.watch.trouble is None

    play(story, "say(TROUBLE + b'\\n'); sys.exit(3)")


def test_pauses_grow_but_not_for_a_driver_that_waits_for_its_gpus(tmp_path: Path) -> None:
    async def pauses(code: str | None, late: float = 60.0) -> list[float]:
        found: list[float] = []
        watch = Watch(lambda link: 0, lambda value: None, lambda line: None, lambda: True, replace(Times(), late=late))
        watch._next = lambda seconds, step: found.append(seconds)  # type: ignore[method-assign]
        for _ in range(7):
            if code is not None:
                collector = module.Child(lambda link: 0)
                watch._take(collector, a_line("trouble", code=code, message="?"))
                assert collector.link is not None
                collector.link.close()
            watch._again()
        return found

    assert asyncio.run(pauses(None)) == [1, 2, 4, 8, 16, 30, 30]
    assert asyncio.run(pauses("driver_not_loaded")) == [1, 2, 4, 8, 16, 30, 30]
    assert asyncio.run(pauses("no_gpu")) == [1, 2, 4, 5, 5, 5, 5]
    assert asyncio.run(pauses("no_gpu", late=0.0)) == [1, 2, 4, 8, 16, 30, 30]


def test_one_that_cannot_be_started_is_tried_again(play: Play) -> None:
    async def story(stage: Stage) -> None:
        stage.failing = OSError(11, "Resource temporarily unavailable")
        stage.expected = True
        await stage.until(lambda: stage.watch.silent_since is not None)
        assert "can't be started: Resource temporarily" in (stage.watch.words(time.time()) or "")
        stage.failing = None
        await stage.frames()

    stage = play(story, WORK, expected=False)
    assert sum("can't be started" in line for line in stage.said) == 2, "once by itself, once as the reason of silence"


# --- silence ---


def test_one_that_falls_silent_is_told_then_killed_and_replaced(play: Play) -> None:
    async def story(stage: Stage) -> None:
        before = time.time()
        await stage.until(lambda: stage.all(Silence))
        assert _exists(stage.pids[0]), "it has some patience left"
        silence = stage.all(Silence)[0]
        assert before <= silence.since <= time.time()
        assert stage.watch.silent_since == silence.since
        clock = time.strftime("%H:%M:%S", time.localtime(silence.since))
        assert silence.words == f"nothing is known of the GPUs since {clock}: the driver does not answer"
        assert stage.watch.words(time.time()) == silence.words
        assert stage.watch.words(time.time() + 90_000) == silence.words.replace(
            clock, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(silence.since))
        )
        await stage.frames()
        assert stage.watch.silent_since is None
        assert not _exists(stage.pids[0])

    stage = play(story, "work(3); deaf()", WORK)
    assert len(stage.all(Silence)) == 1
    assert stage.said[1].startswith("nothing is known of the GPUs since ")


def test_one_that_was_slow_and_comes_back_lives(play: Play) -> None:
    async def story(stage: Stage) -> None:
        await stage.until(lambda: stage.all(Silence))
        os.kill(stage.pids[0], signal.SIGCONT)
        await stage.frames()
        assert stage.watch.silent_since is None

    act = "work(3); os.kill(os.getpid(), signal.SIGSTOP); work()"
    assert len(play(story, act, times=replace(SHORT, patience=60.0)).pids) == 1


def test_the_first_frame_may_take_long(play: Play) -> None:
    async def story(stage: Stage) -> None:
        await stage.until(lambda: stage.all(Silence))
        await stage.frames()

    assert len(play(story, "time.sleep(0.6); work()").pids) == 1


def test_one_that_cannot_be_killed_is_not_waited_for_and_stays_alone(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a call of the driver that never returns: no signal arrives."""
    real, gone, looks = os.kill, module.Child.gone, list[bool]()
    monkeypatch.setattr(module.os, "kill", lambda pid, number: None)
    monkeypatch.setattr(module.Child, "gone", lambda self: looks.append(True) or gone(self))
    monkeypatch.setattr(module, "REAP_SECONDS_MAX", 0.02)

    async def story(stage: Stage) -> None:
        await stage.until(lambda: any("can't be ended" in line for line in stage.said))
        looked = len(looks)
        await stage.until(lambda: len(looks) > looked + 5)
        assert len(stage.pids) == 1
        assert stage.watch.pid == stage.pids[0]
        assert "the driver does not answer" in (stage.watch.words(time.time()) or "")
        real(stage.pids[0], signal.SIGKILL)
        monkeypatch.setattr(module.os, "kill", real)
        await stage.frames()
        assert not _exists(stage.pids[0])

    stage = play(story, "work(3); deaf()", WORK)
    told = [line for line in stage.said if "can't be ended" in line]
    assert len(told) == 1
    assert told[0].startswith("the driver does not answer since ")
    assert f"process {stage.pids[0]}" in told[0]


def test_time_in_which_the_daemon_did_not_run_is_not_held_against_it(play: Play) -> None:
    async def story(stage: Stage) -> None:
        await stage.frames(3)
        os.kill(stage.pids[0], signal.SIGSTOP)  # all of the box stood still
        time.sleep(0.6)
        os.kill(stage.pids[0], signal.SIGCONT)
        await stage.frames(20)

    stage = play(story, WORK, times=replace(SHORT, silence=0.3, patience=0.5))
    assert len(stage.pids) == 1
    assert not stage.all(Silence)


# --- lies ---


def test_garbage_is_passed_over_and_told_once(play: Play) -> None:
    act = """
for number in range(50):
    say(b"NVML: garbage %d\\n\\n\\xff\\n{}\\n" % number + FRAME)
work()
"""

    async def story(stage: Stage) -> None:
        await stage.frames(60)

    stage = play(story, act, times=CALM)
    assert len(stage.pids) == 1
    assert [line for line in stage.said if "sends" in line] == [
        "the collector of the GPUs sends a line that is not JSON; it is passed over"
    ]


def test_one_that_sends_nothing_but_garbage_is_as_good_as_silent(play: Play) -> None:
    async def story(stage: Stage) -> None:
        await stage.until(lambda: len(stage.pids) > 1)
        assert "sends a line without its time" in (stage.watch.words(time.time()) or "")
        await stage.frames()

    act = "while True: say(b'{}\\n'); hear(0.01)"
    play(story, act, WORK, times=replace(SHORT, first=0.5))


def test_half_lines_are_put_together(play: Play) -> None:
    act = """
for _ in range(3):
    for byte in FRAME * 2:
        say(bytes([byte]))
work()
"""

    async def story(stage: Stage) -> None:
        await stage.frames(6)

    stage = play(story, act, times=CALM)
    assert stage.said == ["1 GPU seen, driver unknown"]


def test_a_line_that_is_too_long_costs_no_memory_and_the_next_one_is_heard(play: Play) -> None:
    act = f"""
say(b"x" * {LINE_MAX + 100} + b"\\n" + FRAME)
say(b"x" * {4 * LINE_MAX})
hang()
"""

    async def story(stage: Stage) -> None:
        await stage.frames()
        collector = stage.watch._collector
        assert collector is not None
        await stage.until(lambda: len(collector._rest) == LINE_MAX + 1)

    stage = play(story, act, times=CALM)
    assert stage.said[0] == f"the collector of the GPUs sends a line of over {LINE_MAX} bytes; it is passed over"


@pytest.mark.parametrize("flood", ["FRAME * 50", "b'\\n' * 10000", "b'x' * 65536"])
def test_a_flood_is_ended_and_the_loop_stays_free(play: Play, flood: str) -> None:
    async def story(stage: Stage) -> None:
        longest, last = 0.0, time.monotonic()
        while len(stage.pids) < 2:
            await asyncio.sleep(0)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        await stage.frames()
        assert longest < 1.0

    stage = play(story, f"while True: say({flood})", WORK, times=CALM)
    assert "the collector of the GPUs sends more than can be read; it is started again" in stage.said


def test_a_fault_of_whoever_listens_is_told_once_and_ends_nothing(play: Play) -> None:
    async def story(stage: Stage) -> None:
        await stage.frames(2)
        stage.watch._heard = lambda value: stage.hear(value) or stage.heard[1000]
        await stage.frames(10)

    stage = play(story, WORK, times=CALM)
    assert len(stage.pids) == 1
    assert [line.splitlines()[-1] for line in stage.said[1:]] == ["IndexError: list index out of range"]


# --- ends ---


def test_one_that_dies_is_replaced_and_how_it_died_is_told_once(play: Play) -> None:
    async def story(stage: Stage) -> None:
        await stage.until(lambda: len(stage.pids) == 6)
        await stage.frames()

    stage = play(story, *["sys.exit(5)"] * 3, *["os.abort()"] * 2, WORK, times=CALM)
    assert stage.said == [
        "the collector of the GPUs ended with code 5; it is started again",
        "the collector of the GPUs was killed by signal 6; it is started again",
        "1 GPU seen, driver unknown",
    ]


def test_between_two_of_them_it_says_why_nothing_is_known(play: Play) -> None:
    async def story(stage: Stage) -> None:
        await stage.until(lambda: stage.all(Silence))
        assert (stage.watch.words(time.time()) or "").endswith(": their collector ended with code 5")

    play(story, "sys.exit(5)", times=replace(SHORT, silence=0.5, pause=60.0, pause_max=60.0))


def test_one_that_closes_its_socket_and_stays_is_killed(play: Play) -> None:
    async def story(stage: Stage) -> None:
        await stage.frames(2)

    assert len(play(story, "work(1); os.close(0); deaf()", WORK, times=CALM).pids) == 2


def test_one_that_ends_but_left_its_socket_to_a_child_is_noticed_by_its_silence(play: Play, tmp_path: Path) -> None:
    heir = tmp_path / "heir"

    async def story(stage: Stage) -> None:
        await stage.frames(2)

    act = f"""
work(1)
child = os.fork()
if child:
    open({str(heir)!r}, "w").write(str(child))
    os._exit(0)
hang()
"""
    try:
        assert len(play(story, act, WORK).pids) == 2
    finally:
        os.kill(int(heir.read_text()), signal.SIGKILL)


def test_after_one_that_worked_for_long_the_next_comes_soon(play: Play) -> None:
    async def story(stage: Stage) -> None:
        await stage.until(lambda: len(stage.pids) == 6)  # the pause is at its longest now
        await stage.frames()
        working = time.monotonic()
        await stage.until(lambda: time.monotonic() > working + 0.2)
        os.kill(stage.pids[-1], signal.SIGKILL)
        await stage.until(lambda: len(stage.pids) == 7)
        assert stage.watch._pause == 2 * SHORT.pause
        await stage.frames()

    stage = play(story, *["sys.exit(5)"] * 5, WORK, times=CALM)
    assert stage.said[-1] == "the collector of the GPUs was killed by signal 9; it is started again"


def test_killed_at_any_moment_it_always_comes_back_and_never_twice(play: Play) -> None:
    chance = random.Random(46)

    async def story(stage: Stage) -> None:
        for _ in range(50):
            await asyncio.sleep(chance.uniform(0, 0.05))
            pid = stage.watch.pid
            if pid is not None:
                os.kill(pid, chance.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV)))
            if chance.random() < 0.3:
                await stage.frames()
        count = len(stage.all(Frame))
        await stage.until(lambda: len(stage.all(Frame)) > count + 3)

    stage = play(story, WORK, times=replace(SHORT, pause_max=0.02))
    assert len(stage.pids) > 5


# --- the end ---


@pytest.mark.parametrize("act", [WORK, "work(1); hang()", "work(1); deaf()", "work(1); os.close(0); deaf()"])
def test_close_leaves_no_process(play: Play, act: str) -> None:
    async def story(stage: Stage) -> None:
        await stage.frames()
        began = time.monotonic()
        stage.watch.close()
        assert time.monotonic() - began < 5 * SHORT.leave + 1
        assert not _exists(stage.pids[0])
        heard = len(stage.heard)
        await asyncio.sleep(0.05)
        stage.watch.probe("GPU-1")
        assert len(stage.heard) == heard

    assert len(play(story, act).pids) == 1


def test_close_comes_at_any_time(play: Play) -> None:
    async def nothing(stage: Stage) -> None:
        pass

    async def pause(stage: Stage) -> None:
        await stage.until(lambda: any("ended" in line for line in stage.said))

    for story, acts in ((nothing, WORK), (pause, "sys.exit(5)")):
        assert len(play(story, acts, times=replace(CALM, pause=60.0)).pids) == 1
    assert not play(nothing, WORK, expected=False).pids


def test_whoever_hears_something_may_close_it(play: Play) -> None:
    for kind, act in (
        (Frame, "say(FRAME * 5); work()"),
        (Trouble, "say(TROUBLE + b'\\n'); hang()"),
        (Silence, "hang()"),
    ):

        async def story(stage: Stage, kind: type = kind) -> None:
            stage.watch._heard = lambda value: (
                stage.hear(value),
                stage.watch.close() if isinstance(value, kind) else None,
            )
            await stage.until(lambda: stage.all(kind))
            assert not _exists(stage.pids[0])
            await asyncio.sleep(0.05)

        assert len(play(story, act).all(kind)) == 1


def test_close_works_when_the_loop_has_ended(tmp_path: Path) -> None:
    async def main() -> Stage:
        stage = Stage(tmp_path, WORK)
        stage.watch.begin()
        await stage.frames()
        return stage

    stage = asyncio.run(main())
    stage.watch.close()
    assert not _exists(stage.pids[0])


def test_one_that_cannot_be_killed_does_not_hold_up_the_end(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.kill
    monkeypatch.setattr(module.os, "kill", lambda pid, number: None)

    async def story(stage: Stage) -> None:
        await stage.until(lambda: any("can't be ended" in line for line in stage.said))
        began = time.monotonic()
        stage.watch.close()
        assert time.monotonic() - began < 0.1
        real(stage.pids[0], signal.SIGKILL)
        os.waitpid(stage.pids[0], 0)
        monkeypatch.setattr(module.os, "kill", real)

    play(story, "work(3); deaf()")


# --- the real one ---


def test_signs_of_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SIGNS", (str(tmp_path / "nvidiactl"),))
    monkeypatch.setenv("LD_LIBRARY_PATH", f":{tmp_path / 'lib'}:")
    assert not driver_there()
    (tmp_path / "nvidiactl").touch()
    assert driver_there()
    (tmp_path / "nvidiactl").unlink()
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / module.LIBRARY).touch()
    assert driver_there()


def test_the_collector_is_a_detached_process_with_plain_signals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the interpreter says how it was started."""
    script = tmp_path / "python"
    script.write_text(
        f"""#!{sys.executable} -IS
import json, os, signal, sys
line = json.dumps({{
    "arguments": sys.argv[1:], "session": os.getsid(0) == os.getpid(),
    "open": sorted(map(int, os.listdir("/proc/self/fd"))),
    "ignored": [n for n in (1, 2, 13, 15, 17) if signal.getsignal(n) == signal.SIG_IGN and n != 13],
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])), "mine": os.environ.get("FAKE_NVML"),
}})
os.write(0, line.encode() + b"\\n")
sys.stderr.write("hello")
"""
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setenv("FAKE_NVML", "script")
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    ours, theirs = socket.socketpair()
    mine = {ours.fileno(), theirs.fileno(), log}
    try:
        pid = spawner(log)(theirs)
        theirs.close()
        os.waitpid(pid, 0)
        said = json.loads(ours.recv(4096))
    finally:
        signal.signal(signal.SIGHUP, before)
        ours.close()
        os.close(log)
    assert said["arguments"] == ["-P", "-m", "runner.box.gpus"]
    assert said["session"]
    assert not {fd for fd in said["open"] if fd > 3} & mine, "3 is the listing itself"
    assert said["ignored"] == said["blocked"] == []
    assert said["mine"] == "script"
    assert (tmp_path / "log").read_text() == "hello"


def test_the_real_collector_is_heard_whatever_this_computer_has() -> None:
    async def main() -> list[Any]:
        heard: list[Any] = []
        done = asyncio.Event()
        watch = Watch(spawner(2), lambda value: heard.append(value) or done.set(), print, lambda: True)
        watch.begin()
        try:
            await asyncio.wait_for(done.wait(), 20)
        finally:
            watch.close()
        return heard

    assert isinstance(asyncio.run(main())[0], Frame | Trouble)


def test_reading_a_minute_of_eight_gpus_costs_the_daemon_next_to_nothing(
    play: Play, figure: Callable[[str], None]
) -> None:
    cards = [a_card(number) for number in range(8)]
    act = f"FRAME = {a_line(gpus=cards)!r} + b'\\n'\nwork(60); hang()"

    async def story(stage: Stage) -> None:
        await stage.frames()
        began = time.process_time()
        wanted = asyncio.Event()
        stage.watch._heard = lambda value: stage.hear(value) or len(stage.heard) < 60 or wanted.set()
        with suppress(TimeoutError):
            await asyncio.wait_for(wanted.wait(), 20)
        used = time.process_time() - began
        figure(f"the daemon reads 60 frames of 8 GPUs in {used * 1e3:.0f} ms of CPU")
        assert len(stage.all(Frame)) == 60
        assert used <= 0.1

    play(story, act, times=CALM)


# --- behind a door ---------------------------------------------------------------------------------------------------


def test_a_collector_behind_a_door_is_heard_and_let_go(tmp_path: Path) -> None:
    """Somebody else starts it for whoever connects; it ends when its socket is closed."""

    async def heard() -> tuple[list[object], bytes]:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "door"))
        listener.listen()
        said: list[object] = []
        watch = Watch(Door(str(tmp_path / "door")), said.append, lambda line: None, lambda: True)
        watch.begin()
        assert (watch.looks, watch.pid) == (True, None)
        theirs, _ = listener.accept()
        with listener, theirs:
            theirs.sendall(a_line("frame", gpus=[a_card()]) + b"\n")
            while not said:
                await asyncio.sleep(0.001)
            watch.probe("GPU-1")
            asked = theirs.recv(100)
            watch.close()
            assert theirs.recv(1) == b""
        return said, asked

    said, asked = asyncio.run(heard())
    assert isinstance(said[0], Frame)
    assert asked == b"probe GPU-1\n"


def test_a_door_with_nobody_behind_it_is_told(tmp_path: Path) -> None:
    async def told() -> list[str]:
        lines: list[str] = []
        watch = Watch(Door(str(tmp_path / "none")), lambda value: None, lines.append, lambda: True)
        watch.begin()
        assert not watch.looks
        watch.close()
        return lines

    assert asyncio.run(told()) == ["the collector of the GPUs can't be started: No such file or directory"]


def test_a_door_that_stays_closed_behind_one_that_hangs_is_no_news(tmp_path: Path) -> None:
    """systemd lets nobody else in until it has ended that one: what is said stays what it was."""

    async def told() -> tuple[str | None, int]:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "door"))
        listener.listen()
        lines: list[str] = []
        watch = Watch(Door(str(tmp_path / "door")), lambda value: None, lines.append, lambda: True, SHORT)
        watch.begin()
        with listener:
            first, _ = listener.accept()
            first.sendall(a_line("frame", gpus=[a_card()]) + b"\n")
            listener.setblocking(False)
            turned_away = 0
            while turned_away < 3:
                await asyncio.sleep(0.002)
                try:
                    listener.accept()[0].close()
                    turned_away += 1
                except BlockingIOError:
                    pass
            await asyncio.sleep(0.02)
            words = watch.words(time.time())
            watch.close()
            first.close()
        return words, len(lines)

    words, lines = asyncio.run(told())
    assert words is not None
    assert words.endswith(": the driver does not answer")
    assert lines == 2, "seen, and then silent"
