"""What the engines of this box share: attempts as folders of records, read and written the same way whoever runs them.

An engine on top of it says how a supervisor is asked for, and how what a dead one left behind is found and ended.
"""

from __future__ import annotations

import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from runner import files
from runner.box.engines import Key, Launch, Stop
from runner.files import failpoint
from runner.job import processes, supervisor
from runner.model import Evidence, Exit, Resources
from runner.paths import AttemptDir, StateDir


class OnDisk(ABC):
    def __init__(self, state: StateDir, capacity: Resources, report: Callable[[str], None]) -> None:
        """report: a line for the daemon's log."""
        self.state = state
        self._capacity, self._report = capacity, report
        self._staged: set[Key] = set()  # attempts whose folders were made ahead
        self._awaited: set[Key] = set()  # asked for, and not yet seen to have begun
        self._refused: set[Key] = set()
        self._fencing: dict[Key, float] = {}  # attempts of which something does not die -> since when (monotonic)
        self._told: set[str] = set()  # about attempts that give trouble

    # --- what an engine adds ---

    @abstractmethod
    def _ask(self, key: Key) -> None:
        """Ask for a supervisor. OSError: none will come."""

    @abstractmethod
    def _hear(self) -> None:
        """Learn which of the awaited will not come: into `_refused`."""

    @abstractmethod
    def _left(self, stop: Stop) -> set[int]:
        """The living processes of an attempt whose supervisor is gone."""

    @abstractmethod
    def _end_all(self, stop: Stop) -> bool:
        """Kill them; True when none is left."""

    def _folders(self, job_id: int, attempt: int) -> list[str]:
        """What is made before an attempt is asked for, the outer ones first."""
        job = self.state.job(job_id)
        return [job, job.out, job.checkpoint, job.attempt(attempt)]

    # --- the verbs ---

    def capacity(self) -> Resources:
        return self._capacity

    def start(self, launches: Sequence[Launch]) -> None:
        if not launches:
            return
        self._refused.update(launch.key for launch in launches)
        new = [launch.key for launch in launches if launch.key not in self._staged]
        for key in new:
            with self._alone(key):
                self._make_dirs(*key)
        if new:
            files.fsync_dir(self.state.jobs)
        self._staged -= {launch.key for launch in launches}
        failpoint("d.dirs")
        for launch in launches:
            with self._alone(launch.key):
                self._start(launch)
                self._refused.discard(launch.key)

    def refusals(self) -> Collection[Key]:
        """Those whose supervisor will not come, as far as is known. Nobody knows whether one came after all: a fence
        makes sure of that."""
        self._hear()
        refused, self._refused = self._refused, set()
        return refused

    def stage(self, keys: Sequence[Key]) -> None:
        """Make their folders, durably, and the files in them: two milliseconds that their starts need not take."""
        known = self._staged
        self._staged = known & set(keys)
        for key in keys:
            if key not in known:
                try:
                    self._make_dirs(*key)
                    supervisor.make_files(self._dir(key))
                except OSError:
                    continue  # its start meets the same trouble, and names it
                self._staged.add(key)
        if self._staged - known:
            files.fsync_dir(self.state.jobs)

    def stop(self, stops: Sequence[Stop]) -> None:
        for stop in stops:
            with self._alone(stop.key):
                if stop.fence:
                    self._fence(stop)
                else:
                    self._wish(stop)

    def evidence(self, keys: Sequence[Key]) -> Mapping[Key, Evidence]:
        boot = files.boot_id()
        found: dict[Key, Evidence] = {}
        for key in keys:
            with self._alone(key):
                found[key] = self._evidence(self._dir(key), boot)
                if found[key].alive or found[key].exit is not None:
                    self._awaited.discard(key)
        return found

    @contextmanager
    def _alone(self, key: Key) -> Iterator[None]:
        """What is wrong with the files of one attempt is told, and holds nobody else up. A disk is everybody's."""
        try:
            yield
        except OSError as error:
            if error.errno in files.DISK_FULL + files.DISK_FAILED:
                raise
            said = f"job {key[0]}, attempt {key[1]}: {error.strerror}: {error.filename}"
            if said not in self._told:
                self._told.add(said)
                self._report(said)

    # --- reading ---

    def _evidence(self, directory: AttemptDir, boot: str) -> Evidence:
        end = _read_exit(directory)
        if end is not None:
            return Evidence(end, None, False)
        if not os.path.isdir(directory):
            return Evidence(None, None, False, missing=True)
        held = files.lock(directory.lock)
        try:
            # Read again under the lock: it may have ended since, and nothing can be written by others now.
            end = _read_exit(directory) if held is not None else None
            started = read(directory, "started")
            return Evidence(
                exit=end,
                started_at=_number(started.get("started_at")) if started is not None else None,
                alive=held is None,
                rebooted=started is not None and started.get("boot_id") != boot,
                abandoned=read(directory, "abandoned") is not None,
                supervisor=_whole(started.get("supervisor")) if started is not None else None,
            )
        finally:
            if held is not None:
                os.close(held)

    # --- writing ---

    def _start(self, launch: Launch) -> None:
        directory = self._dir(launch.key)
        # Not fsynced: after a power cut an attempt without a `started` record is abandoned, never started.
        try:
            _write_spec(directory, launch)
        except FileNotFoundError:  # made ahead, and removed since by somebody
            self._make_dirs(*launch.key)
            files.fsync_dir(self.state.jobs)
            _write_spec(directory, launch)
        failpoint("d.spec")
        self._ask(launch.key)
        self._awaited.add(launch.key)
        failpoint("d.asked")

    def _wish(self, stop: Stop) -> None:
        directory = self._dir(stop.key)
        if not os.path.isdir(directory):
            return  # the next look at the evidence settles it
        record: dict[str, object] = {"requested_at": time.time(), "reason": stop.reason}
        if stop.grace is not None:
            record["grace"] = stop.grace
        if not files.put(directory, "cancel", record) and stop.grace == 0:
            files.put(directory, "kill", record)
        failpoint("d.wished")

    def _fence(self, stop: Stop) -> None:
        """Under the attempt's lock: it never ran, so it never will; or it ran, and what is left of it is ended."""
        directory = self._dir(stop.key)
        missing = not os.path.isdir(directory)
        failpoint("d.fence")
        self._make_dirs(*stop.key)
        held = files.lock(directory.lock)
        if held is None:
            return  # a supervisor is there after all
        try:
            if _read_exit(directory) is not None:
                return
            started = read(directory, "started")
            if started is None and not stop.ran and not missing:
                failpoint("d.fencing")
                files.put(directory, "abandoned", {"at": time.time()})
                failpoint("d.fenced")
                return
            ran = started is not None or stop.ran or bool(self._left(stop))
            ended = self._end_all(stop)
            if not ended and not self._in_vain(stop.key, directory):
                return  # something does not die: look again later, claim nothing
            self._fencing.pop(stop.key, None)
            if not ran and ended:
                files.put(directory, "abandoned", {"at": time.time()})
                return
            stuck = {} if ended else processes.outliving(self._left(stop))
            files.put(directory, "exit", _lost(started) | {"launch_id": stop.launch_id} | stuck)
            failpoint("d.buried")
        finally:
            os.close(held)

    def _in_vain(self, key: Key, directory: AttemptDir) -> bool:
        """Whether an attempt has outlived KILL for as long as its supervisor would have waited."""
        since = self._fencing.setdefault(key, time.monotonic())
        spec = read(directory, "spec") or {}
        return time.monotonic() - since >= _number(spec.get("kill_seconds", supervisor.KILL_SECONDS))

    def _make_dirs(self, job_id: int, attempt: int) -> None:
        for path in self._folders(job_id, attempt):
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:
                continue
        files.fsync_dir(self.state.job(job_id))

    def _dir(self, key: Key) -> AttemptDir:
        return self.state.job(key[0]).attempt(key[1])


def _write_spec(directory: AttemptDir, launch: Launch) -> None:
    record = {"version": files.SCHEMA, "launch_id": launch.launch_id, "job": launch.key[0], "attempt": launch.key[1]}
    data = json.dumps(record | launch.spec).encode()
    fd = os.open(f"{directory}/.spec", os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        files.write_all(fd, data)
    finally:
        os.close(fd)
    os.rename(f"{directory}/.spec", directory.spec)


def _lost(started: dict[str, object] | None) -> dict[str, object]:
    if started is None:
        reason = "record_missing"
    else:
        reason = "supervisor_died" if started.get("boot_id") == files.boot_id() else "reboot"
    end: dict[str, object] = {"exit_code": None, "signal": None, "detail": "", "started": True}
    if started is not None and "started_at" in started:
        end["started_at"] = started["started_at"]
    return end | {"reason": reason, "ended_at": time.time()}


def read(directory: str, name: str) -> dict[str, object] | None:
    """A record; a damaged one counts as present and empty (an empty tombstone is still a tombstone)."""
    try:
        return files.get(directory, name)
    except ValueError:
        return {}


def _read_exit(directory: str) -> Exit | None:
    record = read(directory, "exit")
    if record is None:
        return None
    if "ended_at" not in record:
        detail = f"its exit record is damaged and kept at {directory}/exit"
        return Exit("supervisor_died", None, None, detail, time.time(), True)
    return Exit(
        reason=None if record.get("reason") is None else str(record["reason"]),
        exit_code=_whole(record.get("exit_code")),
        signal=_whole(record.get("signal")),
        detail=str(record.get("detail", "")),
        ended_at=_number(record["ended_at"]),
        started=bool(record.get("started", True)),
        started_at=_number(record["started_at"]) if "started_at" in record else None,
        stuck=_pairs(record.get("stuck")),
    )


def _pairs(value: object) -> tuple[tuple[int, int], ...]:
    """The (pid, start) of a record; what is none, in a damaged one, is left out."""
    pairs = [pair for pair in value if isinstance(pair, list) and len(pair) == 2] if isinstance(value, list) else []
    return tuple((pid, start) for pid, start in pairs if isinstance(pid, int) and isinstance(start, int))


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
