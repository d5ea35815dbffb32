"""Finding and ending what a job left behind."""

from __future__ import annotations

import builtins
import errno
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from tools import wait_until

from runner.job import processes

SLEEP = ["sleep", "600"]


def sleeper(pids: list[int], launch_id: str = "", **options: object) -> int:
    env = {"PATH": os.environ["PATH"]} | ({processes.LAUNCH_VARIABLE: launch_id} if launch_id else {})
    pids.append(os.posix_spawnp("sleep", SLEEP, env, **options))  # type: ignore[arg-type]
    return pids[-1]


def test_a_name_with_brackets_and_spaces_does_not_confuse(tmp_path: Path, pids: list[int]) -> None:
    odd = tmp_path / ") S 1 (x"
    odd.symlink_to("/bin/sleep")
    pids.append(os.posix_spawn(str(odd), SLEEP, {}))
    assert pids[0] in processes.descendants(os.getpid())


def test_descendants_are_all_generations_but_no_zombies_and_not_the_root(pids: list[int]) -> None:
    pids.append(os.posix_spawnp("sh", ["sh", "-c", "sleep 600 & sleep 601 & wait"], {"PATH": os.environ["PATH"]}))
    zombie = os.posix_spawnp("true", ["true"], {})
    wait_until(lambda: len(processes.descendants(pids[0])) == 2)
    ours = processes.descendants(os.getpid())
    assert ours > processes.descendants(pids[0])
    assert os.getpid() not in ours
    wait_until(lambda: zombie not in processes.descendants(os.getpid()))
    os.waitpid(zombie, 0)
    processes.kill(processes.descendants(pids[0]))


def test_carriers_are_found_by_the_whole_launch_id(pids: list[int]) -> None:
    ours, _, _ = sleeper(pids, "box-4-1"), sleeper(pids, "box-4-11"), sleeper(pids)
    wait_until(lambda: processes.carriers("box-4-1") == {ours})
    os.kill(ours, signal.SIGKILL)
    wait_until(lambda: processes.carriers("box-4-1") == set())


def test_a_process_whose_first_thread_ended_lives_as_long_as_the_others(pids: list[int]) -> None:
    """As one whose other threads hang in a GPU's driver: a zombie that holds its memory."""
    script = """
import ctypes, threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
ctypes.CDLL(None).syscall(60 if __import__("os").uname().machine == "x86_64" else 93, 0)
"""
    env = {"PATH": os.environ["PATH"], processes.LAUNCH_VARIABLE: "box-5-1"}
    pids.append(os.posix_spawn(sys.executable, [sys.executable, "-I", "-S", "-c", script], env))
    wait_until(lambda: (processes._stat(pids[0]) or [b""])[0] == b"Z")
    assert pids[0] in processes.descendants(os.getpid())
    assert processes.carriers("box-5-1") == {pids[0]}
    start = processes.started(pids[0])
    assert start is not None
    assert processes.living([(pids[0], start)]) == [(pids[0], start)]
    processes.kill({pids[0]})
    wait_until(lambda: processes.living([(pids[0], start)]) == [])


def test_a_process_is_known_by_its_start(pids: list[int]) -> None:
    ours = sleeper(pids)
    start = processes.started(ours)
    assert start is not None
    assert start > 0
    assert processes.living([(ours, start), (ours, start - 1), (1 << 30, 5)]) == [(ours, start)]
    os.kill(ours, signal.SIGKILL)
    wait_until(lambda: processes.living([(ours, start)]) == [])
    assert processes.started(ours) == start, "a zombie still has its number"
    os.waitpid(ours, 0)
    assert processes.started(ours) is None


def test_what_outlived_a_kill_is_named_and_why(pids: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    ours, other = sleeper(pids), sleeper(pids)
    pairs = [[pid, processes.started(pid)] for pid in sorted((ours, other))]
    first = min(ours, other)
    said = f"process {first} and 1 more could not be ended: it waits in the kernel"
    assert processes.outliving({other, ours, 1 << 30}) == {"stuck": pairs, "detail": said}

    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    with monkeypatch.context() as patched:
        patched.setattr(os, "kill", refuse)
        assert processes.outliving({first})["detail"] == (
            f"process {first} could not be ended: it belongs to another user"
        )
    assert processes.outliving({1 << 30}) == processes.outliving(()) == {}


def test_we_do_not_search_ourselves(monkeypatch: pytest.MonkeyPatch) -> None:
    pid = os.fork()
    if pid == 0:
        os.execve("/bin/sh", ["sh", "-c", "exit 0"], {})
    os.waitpid(pid, 0)
    monkeypatch.setattr(processes, "_numbers", lambda: [os.getpid(), 1 << 30])
    assert processes.carriers("anything") == set()


def test_all_are_stopped_before_any_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []

    def record(pid: int, number: int) -> None:
        sent.append((pid, number))
        if pid == 2:
            raise ProcessLookupError
        if pid == 3:
            raise PermissionError

    monkeypatch.setattr(os, "kill", record)
    processes.kill({1, 2, 3})
    assert [number for _, number in sent] == [signal.SIGSTOP] * 3 + [signal.SIGKILL] * 3


def test_reaping_tells_whether_a_child_is_left(pids: list[int]) -> None:
    """In a fork: a test's process may have other children."""
    pid = os.fork()
    if pid == 0:
        child = os.fork()
        if child == 0:
            signal.pause()
        before = processes.reap()
        os.kill(child, signal.SIGKILL)
        while not processes.reap():
            time.sleep(0.001)
        os._exit(10 + before)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 10


def test_orphans_are_collected_but_never_the_main_child() -> None:
    pid = os.fork()
    if pid == 0:
        children = [os.fork() or os._exit(3) for _ in range(4)]
        main = children[-1]
        os.waitid(os.P_PID, main, os.WEXITED | os.WNOWAIT)
        for _ in range(1000):
            processes.reap_orphans(main)
            time.sleep(0.001)
            if len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()) == 1:
                break
        os._exit(os.waitstatus_to_exitcode(os.waitpid(main, 0)[1]))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3


def test_a_group_gets_a_signal_and_one_that_is_gone_does_not_matter(pids: list[int]) -> None:
    leader = sleeper(pids, setpgroup=0)
    processes.signal_group(leader, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(leader, 0)[1]) == -signal.SIGTERM
    processes.signal_group(leader, signal.SIGTERM)


OURS = "/sys/fs/cgroup/jobs/one/memory.events"


@pytest.mark.parametrize(
    ("texts", "kills"),
    [
        pytest.param({"/proc/vmstat": "pgfault 5\noom_kill 17\nnr 3\n"}, 17, id="of this boot"),
        pytest.param({"/proc/vmstat": "pgfault 5\n"}, 0, id="an old kernel"),
        pytest.param({}, 0, id="no such file"),
        pytest.param({"/proc/vmstat": "oom_kill 17\n", OURS: "oom 3\noom_kill 2\n"}, 2, id="of our cgroup"),
        pytest.param({"/proc/vmstat": "oom_kill 17\n", OURS: "oom 0\noom_kill 0\n"}, 0, id="another's are not ours"),
    ],
)
def test_kills_for_memory_are_counted_where_the_kernel_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: dict[str, str], kills: int
) -> None:
    for path, text in {"/proc/self/cgroup": "4:memory:/x\n0::/jobs/one\n", **texts}.items():
        (tmp_path / path.replace("/", "-")).write_text(text)
    real = builtins.open
    monkeypatch.setattr(
        processes, "open", lambda path, *how: real(tmp_path / path.replace("/", "-"), *how), raising=False
    )
    assert processes.oom_kills() == kills


def test_an_unreadable_process_is_skipped_and_a_fault_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(code: int) -> None:
        def refuse(path: str, how: str) -> object:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(processes, "open", refuse, raising=False)

    fail(errno.EACCES)
    assert processes.descendants(1) == set()
    fail(errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        processes.descendants(1)
