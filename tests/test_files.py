"""Durable records, locks and watches, as the disk shows them."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from pathlib import Path

import pytest
from tools import wait_until

from runner import files


@pytest.fixture
def folder(tmp_path: Path) -> str:
    os.mkdir(tmp_path / "folder")
    return str(tmp_path / "folder")


def test_a_record_is_read_as_it_was_written_with_its_version(folder: str) -> None:
    assert files.put(folder, "exit", {"reason": None, "n": 3})
    assert files.get(folder, "exit") == {"version": files.SCHEMA, "reason": None, "n": 3}
    assert os.listdir(folder) == ["exit"]


def test_the_first_writer_of_a_record_wins(folder: str) -> None:
    assert files.put(folder, "exit", {"by": 1})
    assert not files.put(folder, "exit", {"by": 2})
    assert files.get(folder, "exit") == {"version": files.SCHEMA, "by": 1}
    assert os.listdir(folder) == ["exit"]


def test_a_record_goes_into_a_file_prepared_ahead(folder: str) -> None:
    fd = os.open(f"{folder}/exit.tmp", os.O_CREAT | os.O_RDWR)
    os.posix_fallocate(fd, 0, 4096)
    assert files.put(folder, "exit", {"by": 1}, prepared=fd)
    os.close(fd)
    assert files.get(folder, "exit") == {"version": files.SCHEMA, "by": 1}
    assert os.listdir(folder) == ["exit"]


def test_a_record_that_is_not_there_is_none(folder: str) -> None:
    assert files.get(folder, "exit") is None
    assert files.get(f"{folder}/nowhere", "exit") is None
    Path(folder, "file").touch()
    assert files.get(f"{folder}/file", "exit") is None


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b"\xff\xfe"], ids=["empty", "cut off", "no object", "no text"])
def test_a_damaged_record_is_an_error_and_stays(folder: str, damage: bytes) -> None:
    Path(folder, "exit").write_bytes(damage)
    with pytest.raises(ValueError):
        files.get(folder, "exit")
    assert Path(folder, "exit").read_bytes() == damage


def test_a_link_is_no_record(folder: str) -> None:
    Path(folder, "other").write_text("{}")
    os.symlink("other", f"{folder}/exit")
    with pytest.raises(OSError, match=re.escape(os.strerror(errno.ELOOP))):
        files.get(folder, "exit")


def test_a_file_is_replaced_whole(folder: str) -> None:
    files.replace(f"{folder}/a", b"old")
    files.replace(f"{folder}/a", b"new", 0o640)
    assert Path(folder, "a").read_bytes() == b"new"
    assert Path(folder, "a").stat().st_mode & 0o777 == 0o640
    assert os.listdir(folder) == ["a"]


def test_a_directory_is_made_once(folder: str) -> None:
    files.make_dir(f"{folder}/a")
    files.make_dir(f"{folder}/a")
    assert os.listdir(folder) == ["a"]
    assert Path(folder, "a").stat().st_mode & 0o777 == 0o700


def test_a_lock_has_one_holder_and_is_free_when_it_is_closed(folder: str) -> None:
    first = files.lock(f"{folder}/lock")
    assert first is not None
    assert files.lock(f"{folder}/lock") is None
    assert not os.get_inheritable(first)
    os.close(first)
    second = files.lock(f"{folder}/lock")
    assert second is not None
    os.close(second)


def test_a_lock_that_the_file_system_refuses_is_an_error(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _refuse_locks(monkeypatch, errno.ENOLCK)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match=re.escape(os.strerror(errno.ENOLCK))):
        files.lock(f"{folder}/lock")
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_file_system_is_asked_whether_its_locks_exclude(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.supports_locks(folder)
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", lambda fd, how: None)
        assert not files.supports_locks(folder), "locks that exclude nobody"
    _refuse_locks(monkeypatch, errno.EOPNOTSUPP)
    assert not files.supports_locks(folder)
    _refuse_locks(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match=re.escape(os.strerror(errno.EIO))):
        files.supports_locks(folder)
    assert os.listdir(folder) == []


def _refuse_locks(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(fd: int, how: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_a_punched_range_takes_no_space_and_keeps_offsets_true(folder: str) -> None:
    path = Path(folder, "log")
    path.write_bytes(b"a" * 65536 + b"b" * 65536 + b"c" * 65536)
    with open(path, "r+b") as file:
        os.fsync(file.fileno())
        before = files.tree_bytes([folder])
        files.punch(file.fileno(), 65536, 65536)
        os.fsync(file.fileno())
    assert path.read_bytes() == b"a" * 65536 + bytes(65536) + b"c" * 65536
    assert files.tree_bytes([folder]) == before - 65536


def test_what_the_kernel_refuses_is_an_error() -> None:
    with pytest.raises(OSError, match=re.escape(os.strerror(errno.EBADF))):
        files.punch(-1, 0, 4096)


def test_a_watch_tells_which_path_changed(folder: str) -> None:
    os.mkdir(f"{folder}/a")
    os.mkdir(f"{folder}/b")
    watch = files.Watch()
    try:
        first, second = (watch.add(f"{folder}/{name}", files.IN_CREATE) for name in "ab")
        assert watch.drain() == []
        Path(folder, "b", "new").touch()
        Path(folder, "b", "a-much-longer-name-than-the-other-one").touch()
        Path(folder, "a", "new").touch()
        assert watch.drain() == [second, second, first]
        watch.remove(second)
        watch.drain()
        Path(folder, "b", "more").touch()
        assert watch.drain() == []
        with pytest.raises(FileNotFoundError):
            watch.add(f"{folder}/nowhere", files.IN_CREATE)
    finally:
        watch.close()


def test_this_boot_has_a_name_that_tests_can_change(monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    monkeypatch.setenv("GPUBOX_BOOT_ID", "another")
    assert files.boot_id() == "another"


def test_the_room_on_a_disk_is_what_is_free_to_us(folder: str) -> None:
    free, total = files.disk_room(folder)
    assert 0 < free < total


def test_a_tree_is_measured_without_following_links(folder: str) -> None:
    Path(folder, "a", "b").mkdir(parents=True)
    Path(folder, "a", "b", "file").write_bytes(b"x" * 10_000)
    os.symlink("/", f"{folder}/a/root")
    assert 10_000 <= files.tree_bytes([f"{folder}/a", f"{folder}/nowhere", f"{folder}/a/b/file"]) < 100_000


def test_an_armed_fail_point_is_called_by_its_name(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    passed: list[str] = []
    monkeypatch.setattr(files, "armed", passed.append)
    files.put(folder, "exit", {})
    assert passed == ["put.exit.written", "put.exit.linked", "put.exit.durable"]


def test_orphans_come_to_a_subreaper_and_a_child_dies_with_its_parent() -> None:
    """In a fork, because both are for life."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            files.become_subreaper()
            child = os.fork()
            if child == 0:
                grandchild = os.fork()
                if grandchild == 0:
                    os.read(reader, 1)
                    os._exit(7)
                os._exit(0)
            os.waitpid(child, 0)
            os.write(writer, b"x")
            os._exit(os.waitstatus_to_exitcode(os.waitpid(-1, 0)[1]))
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    middle = os.fork()
    if middle == 0:
        try:
            child = os.fork()
            if child == 0:
                files.die_with_parent(9)
                os.write(writer, str(os.getpid()).encode())
                os.read(reader, 0)
                while True:
                    os.sched_yield()
            wait_until(lambda: os.fstat(reader))
            os.read(reader, 0)
        finally:
            said = os.read(reader, 20)
            os.write(writer, said)
            os._exit(0)
    os.waitpid(middle, 0)
    orphan = int(os.read(reader, 20))
    os.close(reader)
    os.close(writer)
    wait_until(lambda: _gone(orphan), 5)


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"
    except OSError:
        return True
