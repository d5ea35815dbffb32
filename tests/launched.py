"""A host of the test bed with users, launcher and units as the role lays them, and its engine driven from here.

The daemon's side of the engine runs on the host as user gpubox (`python launched.py STATE` there): a line of JSON in
for each verb, one out. `Remote` is the same engine on this side, for the contract that holds for all of them.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from runner.box.engines import Key, Launch, Stop
from runner.box.engines.systemd import Systemd
from runner.model import Evidence, Exit, Resources
from runner.paths import StateDir

PACKAGES = "/usr/lib/python3/dist-packages"
STATE = "/var/lib/gpubox"
VALUES = {
    "runner_python": "/usr/bin/python3",
    "runner_supervisor_python": "/usr/bin/python3",
    "runner_state": STATE,
    "runner_data": "/srv/gpubox/data",
    "runner_vault": "/var/lib/gpubox-secrets",
    "runner_vault | basename": "gpubox-secrets",
}
USERS = (
    "useradd --system --home-dir /var/lib/gpubox gpubox",
    "useradd --system --home-dir /var/lib/gpubox-job --create-home --shell /bin/bash gpubox-job",
    f"install -d -o gpubox -g gpubox -m 711 {STATE}",
    "install -d -o gpubox-job -g gpubox-job /srv/gpubox/data",
    "install -d /etc/gpubox /usr/lib/gpubox",
)


def rendered(template: str, **values: str) -> str:
    """A template of the role, as far as these need rendering."""
    for name, value in {**VALUES, **values}.items():
        template = template.replace(f"{{{{ {name} }}}}", value)
    return template.replace("{{ [runner_data] | to_json }}", json.dumps([VALUES["runner_data"]]))


def furnish(host: Any, root: object) -> None:
    """What the role runner does for the launcher. host: of the test bed; root: of the project."""
    host.run(" && ".join(USERS))
    host.put(f"{root}/runner", PACKAGES)
    host.put(__file__, "/usr/lib/gpubox/launched.py")
    host.run(
        f"find {PACKAGES}/runner -name __pycache__ -prune -exec rm -r {{}} +; chmod -R go=rX,u=rwX {PACKAGES}/runner"
    )
    host.run("chown -R root:root /usr/lib/gpubox " + PACKAGES + "/runner; chmod 644 /usr/lib/gpubox/launched.py")
    supervisor = host.run("python3 -m runner.box.frozen /usr/lib/gpubox").strip()
    templates = f"{root}/playbooks/roles/runner/templates"
    places = {"launcher.toml": "/etc/gpubox"} | dict.fromkeys(
        ("gpubox-launcher.service", "gpubox-launcher.socket"), "/etc/systemd/system"
    )
    for name, place in places.items():
        with open(f"{templates}/{name}.j2") as file:
            host.run(f"cat > {place}/{name}", text=rendered(file.read(), runner_supervisor=supervisor))
    host.run("systemctl daemon-reload && systemctl start gpubox-launcher.socket")


# --- the engine, from afar -------------------------------------------------------------------------------------------


class Remote:
    def __init__(self, host: Any, state: StateDir) -> None:
        from bed.host import SSH_OPTIONS  # not there on the host itself

        command = f"setpriv --reuid gpubox --regid gpubox --clear-groups python3 /usr/lib/gpubox/launched.py {state}"
        options = (*SSH_OPTIONS, "-i", str(host.key), "-p", str(host.port))
        words = ("ssh", *options, f"{host.user}@{host.address}", command)
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.capacity()  # it is there: so are its folders

    def close(self) -> None:
        self._process.communicate(timeout=30)

    def _ask(self, verb: str, *values: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([verb, *values]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def capacity(self) -> Resources:
        return Resources(*self._ask("capacity"))

    def start(self, launches: Sequence[Launch]) -> None:
        self._ask("start", [asdict(launch) for launch in launches])

    def refusals(self) -> Collection[Key]:
        return [(job, attempt) for job, attempt in self._ask("refusals")]

    def stage(self, keys: Sequence[Key]) -> None:
        self._ask("stage", keys)

    def stop(self, stops: Sequence[Stop]) -> None:
        self._ask("stop", [asdict(stop) for stop in stops])

    def evidence(self, keys: Sequence[Key]) -> Mapping[Key, Evidence]:
        found = {}
        for key, values in zip(keys, self._ask("evidence", keys), strict=True):
            if values is not None:
                end = values.pop("exit")
                if end is not None:
                    end = Exit(**{**end, "stuck": tuple(map(tuple, end["stuck"]))})
                found[key] = Evidence(end, **values)
        return found

    def packet(self, request: str) -> str:
        """The launcher's whole answer to a packet."""
        answer: str = self._ask("packet", request)
        return answer

    def outputs(self, job: int, paths: Sequence[str]) -> tuple[dict[str, Any], list[str | None]]:
        """The listing of a job's outputs, and the contents of some files, None where they can't be read."""
        listing, contents = self._ask("outputs", [job, paths])
        return listing, contents

    def read(self, path: str) -> str:
        """A file of the daemon's."""
        text: str = self._ask("read", path)
        return text

    def said(self) -> list[str]:
        """What it reported for the daemon's log."""
        lines: list[str] = self._ask("said")
        return lines


def _answer(engine: Systemd, said: list[str], verb: str, values: Any) -> object:
    match verb:
        case "capacity":
            return list(asdict(engine.capacity()).values())
        case "start":
            return engine.start([Launch(tuple(each["key"]), each["launch_id"], each["spec"]) for each in values])
        case "refusals":
            return list(engine.refusals())
        case "stage":
            return engine.stage([tuple(key) for key in values])
        case "stop":
            return engine.stop([Stop(**{**each, "key": tuple(each["key"])}) for each in values])
        case "evidence":
            seen = engine.evidence([tuple(key) for key in values])
            return [asdict(seen[tuple(key)]) if tuple(key) in seen else None for key in values]
        case "packet":
            return _packet(engine, values)
        case "outputs":
            return _outputs(engine, *values)
        case "read":
            with open(values) as file:
                return file.read()
        case _:
            return said


def _packet(engine: Systemd, request: str) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
        link.connect(engine.launcher)
        link.send(request.encode())
        return link.recv(4096).decode()


def _outputs(engine: Systemd, job: int, paths: list[str]) -> object:
    from runner.box.reader import Reader
    from runner.errors import Problem

    reader = Reader(engine.outputs(job, 1))
    contents: list[str | None] = []
    for path in paths:
        try:
            with open(reader.open_file(path)[0]) as file:
                contents.append(file.read())
        except Problem:
            contents.append(None)
    return reader.listing()._asdict(), contents


def main(state: str) -> None:
    os.umask(0o077)
    said: list[str] = []
    engine = Systemd(StateDir(state), Resources(4, 8 << 30, 0), report=said.append)
    for line in sys.stdin:
        verb, *values = json.loads(line)
        sys.stdout.write(json.dumps(_answer(engine, said, verb, *values or [None])) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
