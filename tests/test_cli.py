"""The command line against a box made of a dictionary: what is read, sent and printed, and with which exit code."""

from __future__ import annotations

import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler

import pytest

import runner
from runner import cli, errors, model, words
from runner.box.gpus import watch
from runner.cli import complete, gpus, jobs, options, output, show, submit, usage, values, wait

HOUSE = os.path.dirname(os.path.dirname(os.path.abspath(runner.__file__)))


NOW = time.time()
PYTHON = ".".join(map(str, sys.version_info[:3]))


@pytest.fixture(autouse=True)
def _clock(monkeypatch) -> None:
    """Ages are counted from the moment the file was read."""
    monkeypatch.setattr(jobs.time, "time", lambda: NOW)


def job(job_id: int, state: str = words.QUEUED, **more: object) -> dict[str, object]:
    return {
        "id": job_id,
        "state": state,
        "name": "train.py",
        "command": ["python", "train.py"],
        "user": "me",
        "uid": 1000,
        "submitted_at": NOW - 100,
        "priority": 0,
        "cpus": 1,
        "project": "/p",
        **more,
    }


def gpu(index: int | None = 0, name: str = "NVIDIA GeForce RTX 3090", **more: object) -> dict[str, object]:
    uuid = f"GPU-{index}"
    made = model.Gpu(**{"uuid": uuid, "name": name, "index": index, "memory_bytes": 24 << 30, "state": "free", **more})
    return asdict(made)


def sample(**more: float) -> model.Sample:
    return model.Sample(**{"at": NOW, "memory_used_bytes": 12025908428, "utilization": 0.98, **more})


class Box:
    """Answers by "METHOD /path" (without the query): a value is JSON, bytes are sent as they are, a Problem is an
    error, a function is called with the request's body. It keeps what it was asked."""

    def __init__(self, path: str) -> None:
        self.replies: dict[str, object] = {}
        self.asked: list[tuple[str, str, object]] = []
        self.headers: list[dict[str, str]] = []
        self.bundles: list[dict[str, object]] = []  # the changes that submissions came with
        box = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                data = self.rfile.read(size)
                target = self.path.removeprefix("/api/v1")
                if target == "/bundles":  # asked for a job as by POST /jobs
                    sizes, _, data = data.partition(b"\n")
                    submission, changes = map(int, sizes.split())
                    box.bundles.append(json.loads(data[submission : submission + changes]))
                    target, data = "/jobs", data[:submission]
                body = json.loads(data) if data else None
                box.asked.append((self.command, target, body))
                box.headers.append(dict(self.headers))
                reply = box.replies.get(f"{self.command} {target.partition('?')[0]}")
                if callable(reply):
                    reply = reply(body)
                if reply is None:
                    reply = errors.NotFound(f"no {target}", "look elsewhere")
                status = reply.http_status if isinstance(reply, errors.Problem) else 200
                if isinstance(reply, errors.Problem):
                    reply = reply.as_json()
                raw = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/plain" if isinstance(reply, bytes) else "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.send_header("X-Gpubox-Api", str(runner.API_LEVEL))
                self.send_header("X-Gpubox-Version", runner.__version__)
                self.end_headers()
                self.wfile.write(raw)

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_: object) -> None:
                pass  # clients hang up

        self.server = Server(path, Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)

    def sent(self, start: str) -> list[object]:
        """The bodies of the requests "METHOD /path..."."""
        return [body for method, path, body in self.asked if f"{method} {path}".startswith(start)]


@pytest.fixture
def home(tmp_path, monkeypatch) -> str:
    """A project to stand in, and settings of its own."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "pyproject.toml").write_text("")
    (project / "train.py").write_text("print('hi')\n")
    monkeypatch.chdir(project)
    monkeypatch.setenv("PWD", str(project))
    monkeypatch.setenv("GPUBOX_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("GPUBOX_SOCKET", str(tmp_path / "s"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("GPUBOX_BOX", raising=False)
    monkeypatch.setenv("GPUBOX_COURIER", "no")
    return str(project)


@pytest.fixture
def box(home, tmp_path) -> Iterator[Box]:
    pretend = Box(str(tmp_path / "s"))
    pretend.replies["GET /gpus"] = {"gpus": [], "silent": None}
    pretend.replies["POST /jobs"] = {"id": 42, "count": 1, "group": None, "state": "queued", "warnings": []}
    yield pretend
    pretend.close()


@pytest.fixture
def run(capsys) -> Callable[..., tuple[int, str, str]]:
    def one(*arguments: str) -> tuple[int, str, str]:
        code = cli.run(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return one


def spawn(*arguments: str, **more: object) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PYTHONPATH"] = HOUSE
    command = [sys.executable, "-m", "runner", *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, **more
    )  # type: ignore[call-overload, no-any-return]


# --- what people type ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90), ("1.5", 1.5), ("45m", 2700), ("2h30m", 9000), ("1.5h", 5400), ("2d", 172800), ("1H5S", 3605),
        ("12:00:00", 43200), ("1-12:00:00", 129600), ("0:00:05", 5),
    ],
)  # fmt: skip
def test_times_are_read(text, seconds):
    assert values.duration("--time-limit", text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "h",
        "2x",
        "12:00",
        "1:2:3:4",
        "1:99:00",
        "-5",
        "30m2h",
        "2h30",
        "x-1:00:00",
        "1e3",
        "..",
        "٣",
        "0",
        "0m",
        "nan",
    ],
)
def test_times_that_are_none_are_refused(text):
    with pytest.raises(errors.BadRequest):
        values.duration("--time-limit", text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("8G", 8 << 30),
        ("1.5GiB", 3 << 29),
        ("512m", 512 << 20),
        ("1T", 1 << 40),
        ("2kb", 2048),
        ("123456789", 123456789),
    ],
)
def test_sizes_are_read(text, count):
    assert values.size("--mem", text) == count


@pytest.mark.parametrize("text", ["", "G", "8X", "-1G", "1.2.3G", "1e9", "8 G"])
def test_sizes_that_are_none_are_refused(text):
    with pytest.raises(errors.BadRequest):
        values.size("--mem", text)


def test_a_memory_of_a_few_bytes_is_a_forgotten_unit():
    with pytest.raises(errors.BadRequest) as caught:
        values.size("--mem", "8", values.MEMORY_LEAST)
    assert caught.value.hint == "for gibibytes write 8G"


def test_jobs_are_read_and_written_shortly():
    assert values.jobs(["42", "44-46,g7", "45"], "x") == [42, 44, 45, 46, "g7"]
    assert values.query([3, 1, 2, "g7", 9]) == "g7,1-3,9"


@pytest.mark.parametrize("text", ["x", "0", "-1", "5-", "7-5", "g", "gx", "g0", "1-9999999", "٣", ""])
def test_what_is_no_job_is_refused(text):
    with pytest.raises(errors.BadRequest):
        values.jobs([text], "runner cancel")


def test_arrays_are_read():
    assert values.array("3") == [0, 1, 2]
    assert values.array("5-7,1") == [5, 6, 7, 1]
    assert len(values.array("10000")) == values.SWEEP_LIMIT == model.SWEEP_LIMIT


@pytest.mark.parametrize("text", ["0", "", "x", "5-3", "1,1", "10001", "0-99999999999", "1-", "1,,2", "9" * 5000])
def test_arrays_that_are_none_are_refused(text):
    with pytest.raises(errors.BadRequest):
        values.array(text)


def test_sweeps_are_read():
    assert values.sweep(["lr=1e-3,1e-4", "seed=1"]) == {"lr": ["1e-3", "1e-4"], "seed": ["1"]}


@pytest.mark.parametrize(
    "texts", [["lr"], ["=1"], ["l r=1"], ["lr=1,,2"], ["lr=1", "lr=2"], ["a=" + "1," * 10000 + "1"]]
)
def test_sweeps_that_are_none_are_refused(texts):
    with pytest.raises(errors.BadRequest):
        values.sweep(texts)


def test_variables_come_with_a_value_or_from_here():
    assert values.environment(["A=1=2", "B", "C="], {"B": "here"}) == {"A": "1=2", "B": "here", "C": ""}
    for wrong in ("=1", "1A=2", "A-B=1", "MISSING"):
        with pytest.raises(errors.BadRequest):
            values.environment([wrong], {})


# --- options ---------------------------------------------------------------------------------------------------------

TEXT = """\
Usage: runner try [OPTIONS] WORDS...

  -q, --quiet             a flag
  -n, --number N          a value
  --env KEY...            many
"""


def test_options_are_read_as_the_help_text_declares_them():
    given = options.parse(TEXT, ["a", "-qn5", "--env=A=1", "--env", "-x", "b"])
    assert given.words == ["a", "b"]
    assert given.options == {"--quiet": [""], "--number": ["5"], "--env": ["A=1", "-x"]}


def test_everything_after_the_first_word_can_belong_to_it():
    given = options.parse(TEXT, ["-q", "a", "--number", "--help", "--", "x"], stop_at_word=True)
    assert given.words == ["a", "--number", "--help", "--", "x"]
    assert not given.dashes


def test_two_dashes_end_the_options():
    given = options.parse(TEXT, ["--", "-q", "--"])
    assert (given.words, given.dashes, given.options) == (["-q", "--"], True, {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quit"], 'runner try has no option --quit, did you mean "--quiet"?'),
        (["-x"], "runner try has no option -x"),
        (["--quiet=1"], "--quiet takes no value"),
        (["--number"], "--number needs a value: --number N"),
        (["-n", "1", "--number=2"], "--number was given twice"),
    ],
)
def test_wrong_options_are_named(arguments, message):
    with pytest.raises(errors.BadRequest) as caught:
        options.parse(TEXT, arguments)
    assert caught.value.message == message
    assert "runner try --help" in caught.value.hint


@pytest.mark.parametrize("name", [name for name in cli.TABLE if name not in ("help", "version")])
def test_every_command_explains_itself(name, run):
    code, out, err = run(name, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: runner {name}")
    assert "Examples:" in out
    assert out.count("\n  runner ") + out.count("runner") > 3
    assert max(map(len, out.splitlines())) <= 120
    assert run("help", name)[1] == out


def test_help_lists_every_command(run):
    code, out, _ = run()
    assert code == 0
    assert all(f"\n  {name} " in out for name in cli.TABLE)
    assert run("--help")[1] == run("help")[1] == out
    assert run("--version")[1] == f"gpubox {runner.__version__}\n"


def test_a_misspelt_command_is_an_error_with_the_nearest_name(run):
    code, out, err = run("submti")
    assert (code, out) == (64, "")
    assert err == 'runner: runner has no command "submti", did you mean "submit"?\n' + (
        "  hint: `runner help` lists the commands\n"
    )


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["stop", "42"], "cancel"),
        (["status"], "ps"),
        (["run", "train.py"], "submit"),
        (["secret", "rm", "A"], "remove"),
        (["box", "delete", "b"], "remove"),
        (["data", "remove", "d"], "rm"),
        (["token", "rm", "t"], "revoke"),
    ],
)
def test_a_word_of_other_programs_leads_to_ours(typed, meant, run):
    code, _, err = run(*typed)
    assert code == 64
    assert f'did you mean "{meant}"?' in err


def test_a_script_is_not_a_command(home, run):
    code, _, err = run("train.py")
    assert code == 64
    assert "`runner submit train.py`" in err


# --- submit ----------------------------------------------------------------------------------------------------------


def test_detached_the_id_alone_is_printed(box, run):
    assert run("submit", "-d", "train.py", "--lr", "0.1", "-d") == (0, "42\n", "")
    (body,) = box.sent("POST /jobs")
    spec = body["spec"]
    assert spec["command"] == ["python", "train.py", "--lr", "0.1", "-d"]
    assert (spec["script"], spec["directory"], spec["name"]) == ("train.py", "", "train.py")
    assert len(spec["snapshot"]) == 64


def test_the_job_runs_where_it_was_submitted(box, home, run, monkeypatch):
    os.makedirs(f"{home}/a/b")
    with open(f"{home}/a/run.sh", "w") as file:
        file.write("true")
    monkeypatch.chdir(f"{home}/a/b")
    monkeypatch.setenv("PWD", f"{home}/a/b")
    assert run("submit", "-d", "../run.sh")[0] == 0
    spec = box.sent("POST /jobs")[0]["spec"]
    assert (spec["directory"], spec["script"], spec["command"]) == ("a/b", "a/run.sh", ["bash", "../run.sh"])


def test_a_program_is_run_directly(box, home, run):
    with open(f"{home}/tool", "w") as file:
        file.write("#!/bin/sh\n")
    os.chmod(f"{home}/tool", 0o755)
    run("submit", "-d", "tool", "x")
    assert box.sent("POST /jobs")[0]["spec"]["command"] == ["./tool", "x"]


def test_a_command_is_sent_as_it_is(box, run):
    assert run("submit", "-d", "--", "python", "-c", "pass")[:2] == (0, "42\n")
    spec = box.sent("POST /jobs")[0]["spec"]
    assert spec["command"] == ["python", "-c", "pass"]
    assert "script" not in spec
    model.JobSpec(**spec)


def test_all_options_reach_the_box_as_the_model_has_them(box, run):
    options_ = (
        "--name n --cpus 2 --mem 8G --gpus 1 --priority -3 --time-limit 1h --grace 0 --retries 2 --stop-if-idle 30m "
        "--retry-on signal,reboot --requeue --after 41 --after 40:any --env A=1 --base --array 3 --hold"
    )
    assert run("submit", "-d", *options_.split(), "train.py")[:2] == (0, "42\n")
    (body,) = box.sent("POST /jobs")
    spec = model.JobSpec(**{**body["spec"], "after": [model.After(**after) for after in body["spec"]["after"]]})
    submission = model.Submission(**{**body, "spec": spec})
    assert (spec.name, spec.cpus, spec.memory_bytes, spec.gpus, spec.priority) == ("n", 2, 8 << 30, 1, -3)
    assert (spec.time_limit, spec.grace, spec.retries, spec.retry_on) == (3600, 0, 2, ["signal", "reboot"])
    assert (spec.requeue, spec.env, spec.environment, spec.stop_if_idle) == (True, {"A": "1"}, "base", 1800.0)
    assert spec.after == [model.After(41), model.After(40, any_end=True)]
    assert (submission.array, submission.held) == ([0, 1, 2], True)


@pytest.mark.parametrize(
    ("typed", "fields"),
    [
        ("--gpus 2", {"gpus": 2}),
        ("--gpus 0", {"gpus": 0}),
        ("--gpu-type 3090", {"gpus": 1, "gpu_type": "3090"}),
        ("--gpu-mem 8G", {"gpus": 1, "gpu_memory_bytes": 8 << 30}),
        (
            "--gpus 2 --gpu-mem 1.5G --exclusive --gpu-ids index",
            {"gpus": 2, "gpu_memory_bytes": 3 << 29, "exclusive": True, "gpu_ids": "index"},
        ),
    ],
)
def test_gpus_are_asked_for_in_words_of_the_model(box, run, typed, fields):
    assert run("submit", "-d", *typed.split(), "train.py")[:2] == (0, "42\n")
    spec = box.sent("POST /jobs")[0]["spec"]
    assert {name: value for name, value in spec.items() if name.startswith("gpu") or name == "exclusive"} == fields
    model.JobSpec(**spec)


def test_what_past_runs_used_is_told(box, run):
    said = "the last run of train.py used 9.1 GiB of GPU memory; --gpu-mem 10G would let others share"
    box.replies["POST /jobs"]["warnings"] = [said]
    assert run("submit", "-d", "--gpus", "1", "train.py") == (0, "42\n", f"note: {said}\n")


def test_a_group_to_wait_for_is_all_of_its_jobs(box, run):
    box.replies["GET /jobs"] = {"jobs": [job(7), job(8)]}
    run("submit", "-d", "--after", "g7", "train.py")
    assert box.sent("POST /jobs")[0]["spec"]["after"] == [{"job": 7, "any_end": False}, {"job": 8, "any_end": False}]


def test_an_unchanged_project_is_one_request(box, run, home):
    past = time.time() - 60
    for name in ("train.py", "pyproject.toml"):
        os.utime(f"{home}/{name}", (past, past))
    run("submit", "-d", "train.py")
    run("submit", "-d", "train.py")  # it may have been a young one at first
    box.asked.clear()
    box.bundles.clear()
    assert run("submit", "-d", "train.py")[:2] == (0, "42\n")
    assert ([path for _, path, _ in box.asked], box.bundles) == (["/jobs"], [])


def test_a_snapshot_that_the_box_lost_is_sent_again(box, run):
    run("submit", "-d", "train.py")
    replies = [errors.SnapshotUnknown("gone", ""), {"id": 43, "count": 1, "group": None, "state": "queued"}]
    box.replies["POST /jobs"] = lambda body: replies.pop(0)
    box.asked.clear()
    box.headers.clear()
    box.bundles.clear()
    assert run("submit", "-d", "train.py")[:2] == (0, "43\n")
    keys = {headers.get("Idempotency-Key") for headers in box.headers if "Idempotency-Key" in headers}
    assert len(keys) == 1
    assert [changes["base"] for changes in box.bundles] == [None]


def test_json_is_what_the_box_said(box, run):
    code, out, err = run("submit", "--json", "train.py")
    assert (code, json.loads(out)["id"], err) == (0, 42, "")


def test_an_array_is_named_by_its_group(box, run):
    box.replies["POST /jobs"] = {"id": 42, "count": 3, "group": "g42", "state": "queued", "warnings": ["w\x1b[2J"]}
    code, out, err = run("submit", "-d", "--sweep", "lr=1,2,3", "--", "python", "t.py", "--lr", "{lr}")
    assert (code, out) == (0, "g42\n")
    assert err == "note: w\\x1b[2J\n"
    assert box.sent("POST /jobs")[0]["sweep"] == {"lr": ["1", "2", "3"]}


def an_array(box, counts, ended):
    """An array of three, its counts and what ended between two looks."""
    box.replies["POST /jobs"] = {"id": 42, "count": 3, "group": "g42", "state": "queued"}
    box.replies["GET /events"] = b"id: 1\nevent: job\ndata: {}\n\n"
    box.replies["GET /groups/g42"] = lambda _: {"group": "g42", "jobs": counts.pop(0)}
    box.replies["GET /jobs"] = lambda _: {"jobs": ended.pop(0)}


def with_outputs(box, *ids):
    for job_id in (42, 43, 44):
        file = {"path": "a.txt", "size": 3, "mode": 0o644, "modified_at": 1.0}
        box.replies[f"GET /jobs/{job_id}"] = {"job": job(job_id, words.SUCCEEDED)}
        box.replies[f"GET /jobs/{job_id}/outputs"] = {"outputs": [file] * (job_id in ids), "links": {}}
        box.replies[f"GET /jobs/{job_id}/outputs/a.txt"] = b"abc"
        box.replies[f"POST /jobs/{job_id}/fetched"] = {"differ": []}


def test_a_followed_array_comes_home_job_by_job_and_ends_as_waiting_for_it_does(box, home, run):
    ended = [
        [job(43, words.SUCCEEDED, project=home)],
        [
            job(44, words.FAILED, exit_code=7, reason="exit_code", project=home),
            job(42, words.FAILED, signal=15, reason="signal", project=home),
        ],
    ]
    an_array(box, [{"queued": 2, "running": 1}, {"succeeded": 1, "running": 2}, {"succeeded": 1, "failed": 2}], ended)
    with_outputs(box, 42, 43)
    code, out, err = run("submit", "--array", "3", "train.py")
    assert (code, out) == (128 + 15, "")
    assert err.splitlines() == [
        "3 jobs g42 submitted to local (2 files, 12 bytes; none sent)",
        "g42: 3 jobs: 1 running, 2 queued",
        "job 44 failed: the command ended with exit code 7",
        "job 42 failed: the command was ended by SIGTERM",
        "g42: 3 jobs: 1 succeeded, 2 failed",
        "2 outputs in runs/local-43/ to local-42/ (6 bytes)",
    ]
    asked = [path.partition("&")[0] for _, path, _ in box.asked if path.startswith("/jobs?")]
    assert asked == ["/jobs?ids=42-44", "/jobs?ids=42,44"]
    with open(os.path.join(home, "runs", "local-42", "a.txt"), "rb") as file:
        assert file.read() == b"abc"


def test_outputs_of_an_array_that_do_not_come_home_are_named_with_what_to_type(box, run):
    an_array(box, [{"succeeded": 3}], [[job(number, words.SUCCEEDED) for number in (42, 43, 44)]])
    with_outputs(box)
    for number in (42, 43):
        box.replies[f"GET /jobs/{number}/outputs"] = errors.DiskFull("no room")
    code, _, err = run("submit", "--array", "3", "train.py")
    assert code == 0
    assert err.count("the outputs of job 42 are still on the box: no room") == 1
    assert "`runner pull 42-43` fetches the outputs that are still on the box" in err


def test_many_failures_of_an_array_are_counted(box, run):
    failed = [job(42 + number, words.FAILED, exit_code=1, reason="exit_code") for number in range(30)]
    an_array(box, [{"failed": 30}], [failed])
    box.replies["POST /jobs"]["count"] = 30
    for number in range(30):
        box.replies[f"GET /jobs/{42 + number}"] = {"job": failed[number]}
        box.replies[f"GET /jobs/{42 + number}/outputs"] = {"outputs": [], "links": {}}
        box.replies[f"POST /jobs/{42 + number}/fetched"] = {"differ": []}
    code, _, err = run("submit", "--array", "30", "train.py")
    assert code == 1
    assert err.count("failed: the command") == 10
    assert "`runner ps --no-group --state failed g42` names all that did not succeed" in err


def test_a_dry_run_sends_nothing(box, run):
    code, out, err = run("submit", "--dry-run", "--array", "4", "train.py", "a b")
    assert code == 0
    assert box.asked == []
    assert "command      python train.py 'a b'" in out
    assert "jobs         4" in out
    assert "environment  declared in pyproject.toml" in out
    assert err == "nothing was sent\n"
    shown = json.loads(run("submit", "--dry-run", "--json", "train.py")[1])
    assert shown["files"]["count"] == 2


def test_without_files_none_are_looked_at(box, run):
    assert run("submit", "-d", "--no-files", "--", "true")[:2] == (0, "42\n")
    assert "snapshot" not in box.sent("POST /jobs")[0]["spec"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 64, "there is no script to submit"),
        ([""], 64, "there is no script to submit"),
        (["--"], 64, "there is no command after --"),
        (["--", ""], 64, "there is no command after --"),
        (["trian.py"], 66, 'there is no script "trian.py", did you mean "train.py"?'),
        (["python", "train.py"], 66, "runner submit -- python"),
        (["folder"], 64, "folder is a directory"),
        (["dangling.py"], 66, "dangling.py is a link to nothing"),
        (["/dev/null"], 64, "/dev/null is not a file"),
        (["pyproject.toml"], 64, "neither a .py or .sh file nor executable"),
        (["away.py"], 0, ""),
        (["--no-files", "train.py"], 64, "a script cannot run without its files"),
        (["--gpu", "1", "train.py"], 64, 'did you mean "--gpus"?'),
        (["--cpus", "two", "train.py"], 64, "--cpus takes a whole number"),
        (["--gpus", "-1", "train.py"], 64, '--gpus takes a whole number, at least 0: not "-1"'),
        (["--gpus", "9999999999999", "train.py"], 64, "--gpus takes a whole number"),
        (["--gpu-mem", "-8G", "train.py"], 64, '--gpu-mem takes a size: not "-8G"'),
        (["--gpu-mem", "24", "train.py"], 64, "for gibibytes write 24G"),
        (["--gpus", "0", "--gpu-mem", "8G", "train.py"], 64, "--gpu-mem is about GPUs, and the job asks for none"),
        (["--stop-if-idle", "30m", "train.py"], 64, "--stop-if-idle is about GPUs, and the job asks for none"),
        (["--exclusive", "train.py"], 64, "--gpus 1 --exclusive"),
        (["--gpus", "1", "--gpu-ids", "uid", "train.py"], 64, 'did you mean "uuid"?'),
        (["--mem", "8", "train.py"], 64, "for gibibytes write 8G"),
        (["--time-limit", "12:00", "train.py"], 64, "--time-limit takes a time"),
        (["--retry-on", "exitcode", "train.py"], 64, 'did you mean "exit_code"?'),
        (["--after", "42:ok", "train.py"], 64, "after the colon comes any"),
        (["--array", "3", "--sweep", "a=1", "train.py"], 64, "do not go together"),
        (["--env", "NOT_SET_HERE", "train.py"], 64, "it has no value here"),
        (["--box", "attic", "train.py"], 66, 'no box named "attic"'),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_submitted_gets_a_sentence(box, home, run, arguments, code, words):
    os.mkdir(f"{home}/folder")
    os.symlink("nowhere", f"{home}/dangling.py")
    os.symlink("train.py", f"{home}/away.py")
    got, out, err = run("submit", "-d", *arguments)
    assert got == code
    assert words in err
    if code:
        assert out == ""
        assert err.startswith("runner: ")
        assert box.sent("POST /jobs") == []


def test_an_option_after_the_script_is_told_unless_the_script_knows_it(box, home, run):
    said = "note: --gpus after the script is the script's; the job's: runner submit --gpus ... train.py\n"
    assert run("submit", "-d", "train.py", "--gpus", "1") == (0, "42\n", said)
    assert box.sent("POST /jobs")[0]["spec"]["command"] == ["python", "train.py", "--gpus", "1"], "as it was typed"
    assert run("submit", "-d", "train.py", "--gpu-mem=8G")[2].startswith("note: --gpu-mem after")
    assert run("submit", "-d", "--", "python", "train.py", "--gpus", "1")[2] == ""
    with open(f"{home}/train.py", "a") as file:
        file.write("parser.add_argument('--gpus')\n")
    assert run("submit", "-d", "train.py", "--gpus", "1")[2] == ""


def test_a_notebook_is_told_how_to_run(home, run):
    open(f"{home}/my notes.ipynb", "w").close()
    code, _, err = run("submit", "my notes.ipynb")
    assert code == 64
    assert "my notes.ipynb is a notebook" in err
    assert """--execute --output-dir "$RUNNER_OUT" "my notes.ipynb"'""" in err


def test_an_unreadable_script_is_named(box, home, run, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)  # root reads everything
    code, _, err = run("submit", "train.py")
    assert code == 66
    assert "chmod +r" in err


@pytest.mark.parametrize("kind", errors.BY_CODE.values(), ids=lambda kind: kind.code)
def test_every_error_of_the_box_is_told_with_its_exit_code(box, run, kind):
    box.replies["GET /jobs"] = kind("it \x1b]0;broke", "do\rthis")
    code, out, err = run("ps")
    assert (code, out) == (kind.exit_code, "")
    assert err == "runner: it \\x1b]0;broke\n  hint: do\\rthis\n"


# --- looking ---------------------------------------------------------------------------------------------------------


def test_the_queue_is_a_table(box, run):
    box.replies["GET /jobs"] = {
        "jobs": [
            job(9, words.FAILED, started_at=NOW - 90, ended_at=NOW - 30, exit_code=2, reason="exit_code"),
            job(10, words.RUNNING, started_at=NOW - 60, name="evil\x1b[2J\nname", params={"lr": "1"}),
            job(11, why="needs 4 cores, 2 are free"),
        ]
    }
    code, out, err = run("ps")
    assert (code, err) == (0, "")
    head, *rows = out.splitlines()
    assert head.split() == ["ID", "STATE", "NAME", "USER", "AGE", "TIME"]
    assert rows[0].split()[:6] == ["9", "failed", "train.py", "me", "1m40s", "1m00s"]
    assert rows[0].endswith("exit 2")
    assert "evil\\x1b[2J\\nname lr=1" in rows[1]
    assert rows[2].endswith("needs 4 cores, 2 are free")


def test_the_queue_names_gpus_only_where_a_job_has_some(box, run):
    box.replies["GET /jobs"] = {"jobs": [job(9, words.RUNNING, gpus=0, allotted=[])], "gpus": {}}
    assert "GPU" not in run("ps")[1]
    box.replies["GET /jobs"] = {
        "jobs": [
            job(9, words.RUNNING, started_at=NOW, gpus=2, allotted=["GPU-b", "GPU-a"]),
            job(10, words.RUNNING, started_at=NOW, gpus=1, allotted=["GPU-gone"]),
            job(11, gpus=2, allotted=["GPU-a", "GPU-b"], why="needs 2 GPUs, 0 of 2 free"),
            job(12, words.SUCCEEDED),
        ],
        "gpus": {"GPU-a": 0, "GPU-b": 1},
        "groups": [],
    }
    head, *rows = run("ps")[1].splitlines()
    start = head.index("GPUS")
    assert [row[start : start + 9].strip() for row in rows] == ["GPU 0,1", "1 GPU", "2 GPUs", ""]
    assert rows[2].endswith("  needs 2 GPUs, 0 of 2 free")
    assert [path for _, path, _ in box.asked if path.startswith("/gpus")] == []


def test_an_empty_queue_says_what_to_do(box, run):
    box.replies["GET /jobs"] = {"jobs": []}
    assert run("ps") == (0, "", "no jobs; `runner submit train.py` makes one\n")
    assert run("ps", "--json")[1] == "[]\n"


def test_an_array_is_one_line_unless_asked(box, run):
    box.replies["GET /jobs"] = {"jobs": [job(42 + n, group="g42", array_index=n) for n in range(3)]}
    assert len(run("ps", "--no-group")[1].splitlines()) == 4
    assert run("ps", "-q")[1] == "42\n43\n44\n"
    box.replies["GET /jobs"]["groups"] = [
        {
            "group": "g42", "name": "many", "user": "me", "submitted_at": NOW, "first_id": 42, "last_id": 141,
            "counts": {"queued": 8, "succeeded": 90, "running": 2}, "why": "needs 1 cpu, 0 of 2 free",
        }
    ]  # fmt: skip
    lines = run("ps")[1].splitlines()
    assert box.asked[-1][1] == "/jobs?grouped=1"
    assert len(lines) == 2
    assert lines[1].startswith("g42  running")
    assert lines[1].endswith("100 jobs: 90 succeeded, 2 running, 8 queued")
    box.replies["GET /jobs"]["groups"][0]["counts"] = {"queued": 100}
    assert run("ps")[1].splitlines()[1].endswith("100 jobs: 100 queued; needs 1 cpu, 0 of 2 free")


def test_a_job_of_an_array_that_is_named_has_its_own_line(box, run):
    box.replies["GET /jobs"] = {"jobs": [job(43, group="g42", array_index=1)], "groups": []}
    assert run("ps", "43")[1].splitlines()[1].startswith("43  queued")


def test_ps_asks_for_what_was_named(box, run):
    box.replies["GET /jobs"] = {"jobs": []}
    run("ps", "--state", "failed,lost", "42-44", "g7")
    assert box.asked[0][1] == "/jobs?ids=g7,42-44&state=failed,lost&grouped=1"
    code, _, err = run("ps", "--state", "faild")
    assert code == 64
    assert 'did you mean "failed"?' in err


def test_everything_is_streamed_as_json_lines(box, run):
    lines = b"".join(json.dumps(job(n)).encode() + b"\n" for n in range(1, 500))
    box.replies["GET /jobs"] = lines
    process = spawn("ps", "--all", "--json")
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, lines, b"")
    assert len(run("ps", "--all", "-q")[1].splitlines()) == 499


def test_a_job_is_shown_in_full(box, run):
    box.replies["GET /jobs/42"] = {
        "job": job(42, words.FAILED, signal=9, reason="host_out_of_memory", snapshot="ab", time_limit=60.0),
        "spec": {"after": [{"job": 41, "any_end": True}], "env": {"A": "1"}, "retries": 2, "retry_on": ["signal"]},
        "attempts": [
            {"number": 1, "state": "failed", "created_at": NOW, "started_at": NOW, "ended_at": NOW + 5, "signal": 9}
        ],
        "why": "the box ran out of memory",
        "files": {"count": 2, "bytes": 34816},
        "outputs": [{"path": "loss\x07.png", "size": 5, "mode": 420, "modified_at": NOW}],
    }
    code, out, _ = run("show", "42")
    assert code == 0
    for text in ("the box ran out of memory", "SIGKILL (host_out_of_memory)", "2 files, 34 KiB", "41:any", "loss\\x07"):
        assert text in out
    assert "up to 2, only for signal" in out
    assert json.loads(run("show", "42", "--json")[1])["job"]["id"] == 42


def test_a_job_is_shown_with_the_gpus_it_was_given(box, run):
    peak = 9771050598
    tried = {"number": 1, "state": "failed", "created_at": NOW, "allotted": ["GPU-b", "GPU-c"], "gpu_peak_bytes": peak}
    again = {"number": 2, "state": "running", "created_at": NOW, "allotted": ["GPU-a"]}
    given = {"gpus": 1, "gpu_type": "3090", "gpu_memory_bytes": 8 << 30, "allotted": ["GPU-a"]}
    box.replies["GET /jobs/42"] = {
        "job": job(42, words.RUNNING, gpu_peak_bytes=peak, expected_seconds=7800.0, **given),
        "spec": {},
        "attempts": [tried, again],
        "gpus": {
            "GPU-a": {"index": 0, "name": "NVIDIA GeForce RTX 3090", "memory_bytes": 24 << 30},
            "GPU-b": {"index": None, "name": "NVIDIA GeForce RTX 4090", "memory_bytes": 24 << 30},
        },
    }
    lines = [line.strip() for line in run("show", "42")[1].splitlines()]
    for line in (
        "needs         1 core, 1 GPU (3090) with 8 GiB, which others may share",
        "expected      to run for about 2h10m",
        "GPUs          GPU 0 (RTX 3090)",
        "GPU memory    peak 9.1 of 24 GiB on GPU 0",
    ):
        assert line in lines
    assert lines[-2].endswith(", peak 9.1 GiB on GPU-b or GPU-c"), "their sizes are not both known"
    assert lines[-1].endswith(", on GPU 0")


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"gpus": 1}, "1 GPU"),
        ({"gpus": 2, "gpu_memory_bytes": 3 << 29}, "2 GPUs with 1.5 GiB each, which others may share"),
        ({"gpus": 1, "gpu_memory_bytes": 8 << 30, "exclusive": True}, "1 GPU with 8 GiB, alone"),
        ({"gpus": 1, "gpu_floor_bytes": 24 << 30}, "1 GPU, next alone on more than 24 GiB"),
    ],
)
def test_what_a_job_needs_of_gpus_is_said(asked, text):
    assert show._gpus(asked) == text


def test_the_files_of_a_job_are_listed(box, run):
    box.replies["GET /jobs/42/files"] = {
        "version": 1, "files": {"b\n.py": [0o755, 10, "aa"]}, "links": {"a": "b"}, "dirs": ["c"],
    }  # fmt: skip
    lines = run("show", "42", "--files")[1].splitlines()
    assert [line.split(maxsplit=2) for line in lines[1:]] == [
        ["link", "-", "a -> b"], ["755", "10", "b\\n.py"], ["dir", "-", "c/"],
    ]  # fmt: skip


def test_why_is_one_sentence(box, run):
    box.replies["GET /jobs/42/why"] = {"id": 42, "state": "queued", "why": "it is held"}
    assert run("why", "42") == (0, "it is held\n", "")
    assert json.loads(run("why", "42", "--json")[1])["state"] == "queued"
    assert run("why")[0] == 64


def test_words_of_several_lines_are_shown_as_such(box, run):
    words_ = "failed: its environment could not be built:\nerror: no such package\n\x1b[2Jjob 43: fine"
    box.replies["GET /jobs/42/why"] = {"id": 42, "state": "failed", "why": words_}
    shown = ["failed: its environment could not be built:", "  error: no such package", "  \\x1b[2Jjob 43: fine"]
    assert run("why", "42")[1].splitlines() == shown
    detail = words_.partition(": ")[2]
    box.replies["GET /jobs/42"] = {"job": job(42, words.FAILED, detail=detail), "spec": {}, "why": words_}
    out = run("show", "42")[1]
    assert [line.strip() for line in out.splitlines()[2:4]] == [line.strip() for line in shown[1:]]
    assert "detail" not in out, "it is said once"


def test_two_jobs_are_compared(box, run):
    for number, args in ((41, ["a"]), (42, ["b"])):
        box.replies[f"GET /jobs/{number}"] = {"job": job(number), "spec": {"command": args, "snapshot": "x"}}
    old = {"same": [420, 1, "s"], "gone": [420, 2, "g"], "code.py": [420, 9, "o"], "run": [420, 1, "s"]}
    new = {"same": [420, 1, "s"], "code.py": [420, 9, "n"], "run": [493, 1, "s"], "pic": [420, 3, "p"]}
    box.replies["GET /jobs/41/files"] = {"version": 1, "files": old, "links": {}, "dirs": []}
    box.replies["GET /jobs/42/files"] = {"version": 1, "files": new, "links": {"l": "same"}, "dirs": []}
    for sha, data in (("s", b"x"), ("g", b"g\n"), ("o", b"1\n2\n"), ("n", b"1\n3\x1b\n"), ("p", b"\0\0")):
        box.replies[f"GET /blobs/{sha}"] = data
    code, out, _ = run("diff", "41", "42")
    assert code == 0
    assert out.startswith("-command: a\n+command: b\n--- job 41/code.py\n+++ job 42/code.py\n")
    assert "-2\n+3\\x1b\n" in out
    assert "pic differ (binary" in out
    assert "run: mode 644 is now 755" in out
    stat = dict(reversed(line.split()) for line in run("diff", "--stat", "41", "42")[1].splitlines()[2:])
    assert stat == {"code.py": "changed", "gone": "removed", "l": "added", "pic": "added", "run": "mode"}
    assert json.loads(run("diff", "--json", "41", "42")[1])["options"] == {"command": [["a"], ["b"]]}
    assert run("diff", "41", "41")[2] == "nothing changed\n"


def test_a_job_is_compared_with_the_files_here(box, run):
    box.replies["GET /jobs/41"] = {"job": job(41), "spec": {"command": ["a"], "snapshot": "x"}}
    manifest = {"version": 1, "files": {"train.py": [420, 9, "o"]}, "links": {}, "dirs": []}
    box.replies["GET /jobs/41/files"] = manifest
    box.replies["GET /blobs/o"] = b"print('ho')\n"
    out = run("diff", "41")[1]
    assert "-print('ho')\n+print('hi')\n" in out
    assert "here/train.py" in out


# --- changing and waiting --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "path", "body", "said"),
    [
        (["cancel", "42-43", "g7"], "/jobs/cancel", {"ids": [42, 43, "g7"], "grace": None}, "job 42: asked to end"),
        (["cancel", "--grace", "0", "42"], "/jobs/cancel", {"ids": [42], "grace": 0}, "job 42: asked to end"),
        (["hold", "42"], "/jobs/hold", {"ids": [42]}, "job 42: held"),
        (["release", "42"], "/jobs/release", {"ids": [42]}, "job 42: released"),
        (["priority", "42", "-5"], "/jobs/priority", {"ids": [42], "priority": -5}, "job 42: priority 0"),
    ],
)
def test_jobs_are_changed(box, run, arguments, path, body, said):
    box.replies[f"POST {path}"] = {"jobs": [job(42, words.RUNNING)]}
    assert run(*arguments) == (0, "", said + "\n")
    assert box.sent(f"POST {path}") == [body]
    assert json.loads(run(*arguments, "--json")[1] if arguments[0] != "priority" else "[{}]")


def test_many_changed_jobs_are_counted(box, run):
    box.replies["POST /jobs/cancel"] = {"jobs": [job(n, words.CANCELLED) for n in range(1, 101)]}
    assert run("cancel", "1-100")[2] == "100 jobs cancelled\n"


def test_waiting_ends_with_the_first_code_that_is_not_0(box, run):
    replies = [
        {"jobs": [job(41, words.RUNNING), job(42, words.SUCCEEDED, exit_code=0), job(43, words.QUEUED)]},
        {
            "jobs": [
                job(41, words.FAILED, signal=15, reason="signal"),
                job(43, words.FAILED, exit_code=7, reason="exit_code"),
            ]
        },
    ]
    box.replies["GET /events"] = b"id: 1\nevent: job\ndata: {}\n\n"
    box.replies["GET /jobs"] = lambda _: replies.pop(0)
    code, out, err = run("wait", "41-43")
    assert (code, out) == (128 + 15, "")
    assert err.splitlines() == [
        "job 42 succeeded",
        "job 41 failed: the command was ended by SIGTERM",
        "job 43 failed: the command ended with exit code 7",
    ]
    asked = [path.partition("&")[0] for _, path, _ in box.asked if "ids" in path]
    assert asked == ["/jobs?ids=41-43", "/jobs?ids=41,43"]


def test_waiting_for_a_job_that_does_not_exist_is_an_error(box, run):
    box.replies["GET /events"] = b": hello\n\n"
    box.replies["GET /jobs"] = {"jobs": []}
    code, _, err = run("wait", "99")
    assert code == 66
    assert "there is no job 99" in err


def test_waiting_can_give_up(box, run):
    box.replies["GET /events"] = b": hello\n\n"
    box.replies["GET /jobs"] = {"jobs": [job(42)]}
    code, _, err = run("wait", "--timeout", "0.2", "42")
    assert code == 75
    assert "have not" in err or "not all" in err


# --- the box ---------------------------------------------------------------------------------------------------------


def test_outputs_are_brought_home(box, home, run):
    box.replies["GET /jobs"] = {"jobs": [job(42, words.SUCCEEDED, project=home)]}
    box.replies["GET /jobs/42"] = {"job": job(42, words.SUCCEEDED, ended_at=NOW)}
    entry = {"path": "loss.txt", "size": 5, "mode": 0o644, "modified_at": NOW - 10}
    box.replies["GET /jobs/42/outputs"] = {"outputs": [entry], "links": {}}
    box.replies["GET /jobs/42/outputs/loss.txt"] = b"0.123"
    box.replies["POST /jobs/42/fetched"] = {"differ": []}
    code, out, err = run("pull", "42")
    assert (code, out) == (0, "")
    assert "runs/local-42/" in err
    with open(f"{home}/runs/local-42/loss.txt") as file:
        assert file.read() == "0.123"
    assert run("pull", "-q", "42")[1] == f"{home}/runs/local-42\n"
    assert json.loads(run("pull", "--json", "42")[1])[0]["files"] == [{"path": "loss.txt", "size": 5}]


def test_the_box_says_what_it_has(box, run):
    capacity = {"cpus": 8, "memory_bytes": 64 << 30, "gpus": 0}
    box.replies["GET /hello"] = {}
    box.replies["GET /box"] = {"capacity": capacity, "free": {"cpus": 1, "gpus": 0}}
    assert run("box")[1].splitlines()[1].split("  ")[-1] == "8 cores, 64 GiB of memory, 1 core free"
    box.replies["GET /box"] = {"capacity": {**capacity, "gpus": 2}, "free": {"cpus": 5, "gpus": 1}}
    said = "8 cores, 64 GiB of memory, 2 GPUs, 5 cores and 1 GPU free"
    assert run("box")[1].splitlines()[1].split("  ")[-1] == said


def test_draining_is_switched(box, run):
    box.replies["POST /box/drain"] = {"on": True}
    assert "starts no more jobs" in run("drain")[2]
    assert "starts jobs again" in run("drain", "--off")[2]
    assert box.sent("POST /box/drain") == [{"on": True}, {"on": False}]


def test_cleaning_says_what_it_frees(box, run):
    removed = [{"kind": "logs", "what": f"job {n}", "bytes": 1024} for n in (1, 2)]
    box.replies["POST /box/clean"] = {"removed": removed, "kept_unfetched": {"count": 1, "bytes": 5, "jobs": [7]}}
    code, out, err = run("clean", "--dry-run")
    assert code == 0
    kept, how, freed = err.splitlines()
    assert kept == "kept: 5 bytes of outputs that nobody has fetched, of job 7"
    assert how.endswith("`runner pull 7` brings them home, `runner clean --unfetched --older-than 0` removes them")
    assert freed == "2.0 KiB would be freed"
    assert out.splitlines()[1].split() == ["logs", "2", "2.0", "KiB"]
    run("clean", "--unfetched", "--older-than", "12h")
    run("clean", "--older-than", "0")
    assert box.sent("POST /box/clean") == [
        {"dry_run": True},
        {"dry_run": False, "older_than_days": 0.5, "unfetched": True},
        {"dry_run": False, "older_than_days": 0.0},
    ]


def examined(run, *words: str) -> tuple[int, dict[str, dict[str, object]]]:
    """(exit code, findings by id) of `runner doctor --json`."""
    code, out, _ = run("doctor", "--json", *words)
    answer = json.loads(out)
    assert answer["ok"] == (code == 0)
    return code, {check["id"]: check for check in answer["checks"]}


def test_the_doctor_looks_at_everything(box, run):
    box.replies["GET /hello"] = {"version": runner.__version__, "pid": 7}
    box.replies["GET /box"] = {
        "draining": True,
        "capacity": {"gpus": 0},
        "versions": {"base_python": f"{PYTHON} {sys.executable}"},
    }
    box.replies["GET /gpus"] = {"gpus": [], "silent": None}
    code, found = examined(run)
    assert code == 0, "it could be better, but works"
    assert found["service.queue"]["state"] == "warning"
    assert {id for id, check in found.items() if check["state"] == "failed"} == set()
    seen = {f"box.{name}" for name in ("uv", "state", "locks", "socket")} | {
        "command.python",
        "command.git",
        "disk.free",
    }
    seen |= {f"service.{name}" for name in ("answers", "versions", "clock", "queue", "python")} | {"collector.answers"}
    assert seen <= set(found)
    assert "next:  runner drain --off" in run("doctor", "service")[1]


@pytest.mark.parametrize(
    ("python", "state", "seen"),
    [
        (f"0.0.1 {sys.executable}", "warning", f"was 0.0.1 when the box started and is {PYTHON} now"),
        ("3.11.7 /bin/false", "failed", "/bin/false does not run"),
        ("3.11.7 /nothing/here", "failed", "/nothing/here does not run"),
    ],
)
def test_the_doctor_runs_the_base_python(box, run, python, state, seen):
    box.replies["GET /hello"] = {"version": runner.__version__, "pid": 7}
    box.replies["GET /box"] = {"versions": {"base_python": python}}
    _, found = examined(run, "service")
    assert found["service.python"]["state"] == state
    assert seen in found["service.python"]["what"]


def test_the_doctor_names_draining_once_and_a_pause_as_a_failure(box, run):
    box.replies["GET /hello"] = {"version": runner.__version__, "pid": 7}
    for about, state in (({"draining": True, "paused": "it drains"}, "warning"), ({"paused": "no room"}, "failed")):
        box.replies["GET /box"] = about
        assert examined(run, "service.queue")[1]["service.queue"]["state"] == state


def test_the_doctor_says_when_the_box_is_broken(box, run):
    box.replies["GET /hello"] = errors.StateDamaged("the database is damaged", "restore it")
    code, out, _ = run("doctor")
    assert code == 1
    assert "failed  service.answers        the database is damaged\n        next:  restore it\n" in out


@pytest.mark.parametrize(
    ("seen", "state", "says"),
    [
        ({"gpus": [], "silent": None}, "ok", "no NVIDIA driver found: jobs without GPU run"),
        ({"gpus": [gpu(0), gpu(1)], "silent": None}, "ok", "the driver answers, 2 GPUs"),
        ({"gpus": [], "silent": "no NVIDIA driver found"}, "ok", "no NVIDIA driver found: jobs without GPU run"),
        ({"gpus": [], "silent": "the driver was upgraded"}, "warning", "the driver was upgraded"),
        ({"gpus": [gpu(0)], "silent": "the driver does not answer"}, "failed", "the driver does not answer"),
        ({"gpus": [gpu(0), gpu(1, state="lost", why="GPU 1 is gone")], "silent": None}, "warning", "GPU 1 is gone"),
        (errors.StateDamaged("it broke"), "failed", "it broke"),
    ],
)
def test_the_doctor_looks_at_the_gpus(box, run, seen, state, says):
    box.replies["GET /hello"] = {"version": runner.__version__, "pid": 7}
    box.replies["GET /box"] = {}
    box.replies["GET /gpus"] = seen
    _, found = examined(run, "collector")
    assert (found["collector.answers"]["state"], found["collector.answers"]["what"]) == (state, says)


def test_stopping_what_does_not_run_is_no_error(home, run):
    assert run("serve", "--stop") == (0, "", "no box is running here\n")
    assert json.loads(run("box", "--json")[1]) == [{"name": "local", "running": False, "used": True, "box": None}]


# --- GPUs ------------------------------------------------------------------------------------------------------------


FULL = sample(temperature_celsius=71.4, power_watts=318.2)
HELD = model.Process(4242, 7, 12025908428, user="alice", command="python evil\x1b[2J.py")
OURS = model.Process(99, 8, 300 << 20, user="me", command="python train.py", job=42)
DEAD = model.Process(77, 0, None, alive=False)


def a_few() -> list[dict[str, object]]:
    held = "held by alice, python evil\x1b[2J.py"
    return [
        gpu(0, state="shared", sample=FULL, jobs=[42, 43], processes=[OURS], why="jobs 42, 43, 8 of 24 GiB declared"),
        gpu(1, "NVIDIA GeForce RTX 4080 SUPER", state="foreign", sample=FULL, why=held),
        gpu(
            2,
            state="draining",
            sample=sample(memory_used_bytes=0, utilization=0.0),
            why="GPU 2 is draining; do",
            jobs=[44],
        ),
        gpu(3, state="stuck", jobs=[45], why="GPU 3 is stuck: job 40 can't be ended"),
        gpu(None, "NVIDIA H200", state="lost", memory_bytes=None, why="GPU-None (H200) missing since 12:30"),
    ]


def test_gpus_are_a_table(box, run):
    box.replies["GET /gpus"] = {"gpus": a_few(), "silent": "the driver has not answered for 12 s"}
    code, out, err = run("gpus")
    assert (code, err) == (0, "the driver has not answered for 12 s\n")
    assert out.splitlines() == [
        "GPU  MODEL           STATE     MEMORY          USE   TEMP   POWER",
        "0    RTX 3090        shared    11.2 of 24 GiB  98 %  71 °C  318 W  jobs 42, 43, 8 of 24 GiB declared",
        "1    RTX 4080 SUPER  foreign   11.2 of 24 GiB  98 %  71 °C  318 W  held by alice, python evil\\x1b[2J.py",
        "2    RTX 3090        draining  0 of 24 GiB     0 %   -      -      job 44; do",
        "3    RTX 3090        stuck     - of 24 GiB     -     -      -      job 45; job 40 can't be ended",
        "-    H200            lost      -               -     -      -      missing since 12:30",
    ]


def test_what_is_wrong_with_all_gpus_is_said_once(box, run):
    silent = "nothing is known of the GPUs since 12:30:00: the driver does not answer"
    found = [gpu(0, state="unknown", why=silent), gpu(1, state="unknown", why=silent, jobs=[42])]
    box.replies["GET /gpus"] = {"gpus": found, "silent": silent}
    _, out, err = run("gpus")
    assert [line.split("  ")[-1] for line in out.splitlines()[1:]] == [" -", "job 42"]
    assert err == f"{silent}\n"


def test_gpus_fit_a_narrow_terminal(box, run, monkeypatch):
    box.replies["GET /gpus"] = {"gpus": a_few(), "silent": None}
    monkeypatch.setattr(output, "columns", lambda stream: 80)
    lines = run("gpus")[1].splitlines()
    assert max(map(output.width, lines)) <= 80
    assert lines[1].endswith("  jobs 42, 43,…")
    assert lines[2].endswith("  held by alic…")


def test_processes_are_listed_with_what_to_do_about_them(box, run):
    found = a_few()
    found[1]["processes"] = [asdict(HELD), asdict(DEAD)]
    box.replies["GET /gpus"] = {"gpus": found, "silent": None}
    _, out, err = run("gpus", "--processes")
    assert out.split("\n\n")[1].splitlines() == [
        "GPU  PID   USER   MEMORY   JOB               COMMAND",
        "0    99    me     300 MiB  job 42            python train.py",
        "1    4242  alice  11 GiB   not of the queue  python evil\\x1b[2J.py",
        "1    77    -      -        not of the queue  (dead, or in a container that hides it)",
    ]
    assert "`runner adopt PID`" in err
    box.replies["GET /gpus"] = {"gpus": [gpu()], "silent": None}
    assert run("gpus", "--processes")[2] == "no process is on a GPU\n"


def test_gpus_as_json_hold_the_reasons(box, run):
    said = {"gpus": [gpu(0, absent={"fan": "not exposed by this card"}, processes=[HELD])], "silent": None}
    box.replies["GET /gpus"] = said
    assert json.loads(run("gpus", "--json")[1]) == said


def test_a_box_without_gpus_says_so(box, run):
    assert gpus.NO_DRIVER == watch.NO_DRIVER
    code, out, err = run("gpus")
    assert (code, out) == (0, "")
    assert err.startswith("no NVIDIA driver found; jobs without GPU still run\n  hint: ")
    box.replies["GET /gpus"] = {"gpus": [], "silent": "the driver was upgraded"}
    assert run("gpus")[2].startswith("the driver was upgraded; jobs without GPU still run\n")


def test_gpus_are_drained_and_forgotten(box, run):
    box.replies["POST /gpus/0/drain"] = lambda wish: {"gpu": gpu(0, drained=wish["on"], jobs=[42])}
    box.replies["POST /gpus/GPU-1a/drain"] = {"gpu": gpu(None)}
    box.replies["POST /gpus/2/forget"] = {}
    said = "GPU 0 (RTX 3090) takes no new job; what runs there goes on (job 42); `runner gpus undrain 0` ends that\n"
    assert run("gpus", "drain", "0") == (0, "", said)
    assert run("gpus", "undrain", "0,GPU-1a")[2].splitlines() == [
        "GPU 0 (RTX 3090) takes jobs again",
        "GPU GPU-None (RTX 3090) takes jobs again",
    ]
    assert "GPU 2 is forgotten" in run("gpus", "forget", "2")[2]
    assert [body for _, _, body in box.asked] == [{"on": True}, {"on": False}, {"on": False}, {}]
    assert json.loads(run("gpus", "drain", "--json", "0")[1])[0]["drained"] is True


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["drian", "0"], 'runner gpus knows no "drian", did you mean "drain"?'),
        (["0"], 'runner gpus knows no "0"'),
        (["drain"], "runner gpus drain needs a GPU"),
        (["drain", "0/../1"], '"0/../1" is not a GPU'),
        (["drain", "0,"], '"" is not a GPU'),
        (["drain", "--processes", "0"], "--processes does not go together with drain"),
    ],
)
def test_what_is_no_gpu_is_refused(box, run, arguments, says):
    code, out, err = run("gpus", *arguments)
    assert (code, out) == (64, "")
    assert says in err
    assert box.asked == []


def test_a_process_is_adopted(box, run):
    box.replies["POST /jobs/adopt"] = {"id": 43, "count": 1, "group": None, "state": "running", "warnings": ["w\x07"]}
    assert run("adopt", "4242") == (0, "43\n", "note: w\\x07\n")
    assert box.sent("POST /jobs/adopt") == [{"pid": 4242}]
    assert json.loads(run("adopt", "--json", "4242")[1])["id"] == 43
    for wrong in ([], ["1", "2"], ["python"], ["0"], ["--", "-1"]):
        assert run("adopt", *wrong)[0] == 64


# --- completion ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(run, shell):
    code, out, _ = run("completion", shell)
    assert code == 0
    assert "runner completion --words" in out


def test_the_bash_script_parses_and_completes(box, run, tmp_path):
    script = tmp_path / "completion.bash"
    script.write_text(run("completion", "bash")[1])
    subprocess.run(["bash", "-n", str(script)], check=True)
    program = f"""
        runner() {{ {sys.executable} -m runner "$@"; }}
        source {script}
        COMP_WORDS=(runner sub) COMP_CWORD=1; _runner; echo "${{COMPREPLY[@]}}"
    """
    environment = {**os.environ, "PYTHONPATH": HOUSE}
    done = subprocess.run(["bash", "-c", program], capture_output=True, env=environment, check=True)
    assert done.stdout == b"submit\n"


@pytest.mark.parametrize(
    ("typed", "fits"),
    [
        (["re"], ["rerun", "release"]),
        (["submit", "--de"], ["--detach"]),
        (["submit", "train.py", "--de"], []),
        (["submit", "tr"], []),
        (["show", "4"], ["41", "42", "g41"][:2]),
        (["cancel", "g"], ["g41"]),
        (["completion", "f"], ["fish"]),
        (["nonsense", ""], []),
        (["gpus", ""], ["drain", "undrain", "forget"]),
        (["notices", ""], ["test"]),
        (["notices", "test", ""], []),
        (["gpus", "drain", ""], ["0", "1", "2", "3"]),
        (["gpus", "--json", "drain", "1"], ["1"]),
        (["adopt", "4"], ["4242"]),
        (["submit", "--gpu-type", ""], ["3090", "4080", "H200"]),
        (["submit", "--gpu-ids", "u"], ["uuid"]),
        (["submit", "train.py", "--gpu-ids", "u"], []),
        (["box", "r"], ["remove"]),
        (["box", "use", ""], ["local"]),
        (["box", "add", ""], []),
        (["token", "n"], ["new"]),
        (["data", "pu"], ["push", "pull"]),
        (["data", "rm", "c"], ["coco"]),
        (["data", "push", ""], []),
        (["ps", "--box", "l"], ["local"]),
    ],
)
def test_what_fits_is_found(box, typed, fits):
    found = a_few()
    found[1]["processes"] = [asdict(HELD)]
    box.replies["GET /gpus"] = {"gpus": found, "silent": None}
    box.replies["GET /jobs"] = {"jobs": [job(41, group="g41"), job(42, group="g41")]}
    box.replies["GET /data"] = {"sets": [{"name": "coco"}, {"name": "laion"}]}
    assert complete.fitting(typed) == fits


def test_completion_never_wakes_a_box_and_never_fails(home, run):
    assert run("completion", "--words", "--", "show", "4") == (0, "", "")
    assert not os.path.exists(os.environ["GPUBOX_STATE"])


def test_every_command_can_be_completed(home):
    assert set(complete.JOBS) <= set(cli.TABLE)
    assert tuple(gpus.VERBS) == complete.VERBS
    for name in cli.TABLE:
        if name not in ("help", "version"):
            assert "--help" in complete.fitting([name, "--"])


# --- a box in another place ---


class Away:
    """A client of a box that has answered before and is out of reach for a while."""

    def __init__(self, box: str, gone: int) -> None:
        self.box, self.gone = box, gone

    def get(self, path):
        if self.gone:
            self.gone -= 1
            raise errors.Unreachable("no network", "")
        return {"jobs": []}


def test_a_closed_lid_is_no_reason_to_give_up_waiting(monkeypatch):
    monkeypatch.setattr(wait, "AWAY_PAUSE", 0)
    assert wait._ask(Away("gpubox", 20), "/jobs", met=True) == {"jobs": []}
    for box, met in (("gpubox", False), ("local", True)):
        with pytest.raises(errors.Unreachable):
            wait._ask(Away(box, 1), "/jobs", met)


# --- speaking --------------------------------------------------------------------------------------------------------


def test_tables_fit_the_terminal(capsys, monkeypatch):
    monkeypatch.setattr(output, "columns", lambda stream: 30)
    output.table(("ID", "NAME", ""), [["1", "a name of some length", "and a reason that is long"]], gives_way=(2, 1))
    out = capsys.readouterr().out.splitlines()
    assert max(map(output.width, out)) <= 30
    assert out[1].startswith("1")
    assert "…" in out[1]


@pytest.mark.parametrize(("text", "room", "shown"), [("数数数", 4, "数…"), ("abc", 3, "abc"), ("abcd", 3, "ab…")])
def test_wide_letters_count_twice(text, room, shown):
    assert output.cut(text, room) == shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 KiB"),
        (34816, "34 KiB"),
        (5 << 30, "5.0 GiB"),
        (3 << 40, "3.0 TiB"),
    ],
)
def test_sizes_are_said(value, text):
    assert output.size(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-3, "0s"), (7, "7s"), (65, "1m05s"), (700, "11m"), (11100, "3h05m"), (187200, "2d04h")]
)
def test_times_are_said(seconds, text):
    assert output.span(seconds) == text


def test_colours_are_for_terminals_that_want_them(monkeypatch):
    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert output.colours(Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not output.colours(Terminal())


def test_the_state_of_a_group_is_the_one_that_matters():
    assert jobs._group_state({"succeeded": 5, "lost": 1}) == "lost"
    assert jobs._group_state({"succeeded": 5}) == "succeeded"
    assert jobs._group_state({"queued": 1, "running": 1, "failed": 1}) == "running"


# --- real processes --------------------------------------------------------------------------------------------------


HEAVY = {
    "ssl",
    "http.client",
    "dataclasses",
    "asyncio",
    "pathlib",
    "subprocess",
    "typing",
    "argparse",
    "socket",
    "model",
}


def imported(*arguments: str) -> set[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    program = f"import sys; sys.argv[1:] = {list(arguments)!r}; from runner.cli import main; main()"
    command = [sys.executable, "-X", "importtime", "-c", program]
    done = subprocess.run(command, env={**environment, "PYTHONPATH": HOUSE}, capture_output=True, timeout=20)
    assert done.returncode == 0, done.stderr.decode()[-500:]
    lines = done.stderr.decode().splitlines()
    return {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}


@pytest.mark.parametrize("arguments", [["submit", "-d", "train.py"], ["ps"]], ids=["submit", "ps"])
def test_the_frequent_commands_import_little(box, home, arguments):
    box.replies["GET /jobs"] = {"jobs": [job(42)]}
    past = time.time() - 60
    for name in ("train.py", "pyproject.toml"):
        os.utime(f"{home}/{name}", (past, past))
    cli.run(["submit", "-d", "train.py"])  # the index is written; the project is known from here on
    modules = imported(*arguments)
    assert modules & HEAVY == set()
    assert "runner.model" not in modules
    chosen = {name for name in modules if name.startswith("runner.cli.")}
    assert chosen <= {f"runner.cli.{name}" for name in ("options", "output", "values", "submit", "jobs")}


def test_ctrl_c_detaches_and_says_how_to_come_back(box, home):
    hanging = threading.Event()
    released = threading.Event()

    def hang(_: object) -> dict[str, object]:
        hanging.set()
        released.wait(10)
        return {"group": "g42", "jobs": {"queued": 3}}

    box.replies["POST /jobs"] = {"id": 42, "count": 3, "group": "g42", "state": "queued"}
    box.replies["GET /events"] = b": hello\n\n"
    box.replies["GET /groups/g42"] = hang
    process = spawn("submit", "--array", "3", "train.py")
    assert hanging.wait(10)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    released.set()
    assert (process.returncode, out) == (130, b"")
    assert b"3 jobs g42 go on without us\n  `runner wait g42` waits for them" in err
    assert b"Traceback" not in err


def test_a_fault_of_ours_is_one_line_and_its_details_are_kept(box, home, run, tmp_path, monkeypatch):
    def break_down(_: list[str]) -> int:
        raise RuntimeError("oh\x1b[2J\nno")

    monkeypatch.setattr(jobs, "ps", break_down)
    code, out, err = run("ps", "--box", "secret")
    kept = tmp_path / "cache" / "gpubox" / "fault.txt"
    assert (code, out) == (70, "")
    assert err.startswith("runner: a fault of gpubox itself: RuntimeError: oh\\x1b[2J")
    assert f"the details are in {kept}: please report it" in err
    assert "Traceback" not in err
    assert "Traceback" in kept.read_text()
    assert "secret" not in kept.read_text()
    monkeypatch.setenv("GPUBOX_DEBUG", "1")
    assert "in break_down" in run("ps")[2]
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nothing")
    assert "GPUBOX_DEBUG=1" in run("ps")[2]


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_closed_streams_do_no_harm(box, home, closed):
    box.replies["GET /jobs"] = {"jobs": [job(1)]}
    shell = " ".join(f"{fd}{'<' if fd == 0 else '>'}&-" for fd in closed)
    command = f"exec {sys.executable} -m runner ps {shell}"
    env = {**os.environ, "PYTHONPATH": HOUSE}
    done = subprocess.run(["sh", "-c", command], cwd=home, env=env, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("train.py" in done.stdout) == (1 not in closed)


def test_a_full_disk_behind_the_output_is_told(box, home):
    box.replies["GET /jobs"] = {"jobs": [job(1)]}
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "runner", "ps"]
        env = {**os.environ, "PYTHONPATH": HOUSE}
        done = subprocess.run(command, cwd=home, env=env, stdout=full, stderr=subprocess.PIPE, text=True, timeout=20)
    assert done.returncode == 73
    assert done.stderr.startswith("runner: the output can't be written: No space left on device\n  hint: ")


def test_ctrl_c_elsewhere_is_quiet(box, home):
    hanging, released = threading.Event(), threading.Event()
    box.replies["GET /jobs"] = lambda _: hanging.set() or released.wait(10) or {"jobs": []}
    process = spawn("ps")
    assert hanging.wait(10)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    released.set()
    assert (process.returncode, out, err) == (130, b"", b"")


@pytest.mark.parametrize("arguments", [["ps", "--no-group"], ["submit", "--help"], ["help"]], ids=" ".join)
def test_a_reader_that_leaves_is_no_error(box, home, arguments):
    box.replies["GET /jobs"] = {"jobs": [job(n) for n in range(1, 3000)]}
    process = spawn(*arguments)
    process.stdout.close()
    process.wait(10)
    err = process.stderr.read()
    process.stderr.close()
    assert (process.returncode, err) == (141, b"")


@pytest.mark.parametrize(
    ("named", "told"), [("{link}", "{link}"), ("/gone/{link}", "{real}"), ("/", "{real}"), ("", "{real}")]
)
def test_a_folder_is_called_as_the_shell_calls_it_when_that_is_true(monkeypatch, tmp_path, named, told):
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    monkeypatch.chdir(real)
    monkeypatch.setenv("PWD", named.format(link=link))
    assert submit._current_directory() == told.format(real=os.path.realpath(real), link=link)


def a_use(**values: object) -> dict[str, object]:
    return asdict(model.Use(**{"job": 42, "attempt": 1, "gpu": "GPU-a", "since": NOW, "until": NOW + 7200, **values}))


def test_what_a_job_used_is_shown_with_its_attempts(box, run):
    used = {
        "seen_seconds": 7100.0, "unseen_seconds": 100.0, "measured_seconds": 7000.0, "busy_seconds": 6090.0,
        "idle_seconds": 250.0, "peak_bytes": 9771050598, "energy_joules": 2.2e6, "cost": 0.2, "currency": "EUR",
        "hottest_celsius": 83.0, "heat_seconds": 180.0, "xids": {"31": 2}, "uncounted_seconds": 60.0, "shared": True,
    }  # fmt: skip
    tried = {"number": 1, "state": "running", "created_at": NOW, "allotted": ["GPU-a"]}
    box.replies["GET /jobs/42"] = {
        "job": job(42, words.RUNNING), "spec": {}, "attempts": [tried], "uses": [a_use(**used)],
        "gpus": {"GPU-a": {"index": 0, "name": "NVIDIA GeForce RTX 3090", "memory_bytes": 24 << 30}},
    }  # fmt: skip
    lines = [line.strip() for line in run("show", "42")[1].splitlines()]
    assert "used          2h00m of GPU, 0.61 kWh (a guess: shared, without 1m00s), 0.20 EUR" in lines
    assert lines[-1] == (
        "GPU 0: 87 % busy, idle for 4m10s, peak 9.1 GiB, 0.61 kWh (a guess: shared, without 1m00s), 0.20 EUR, "
        "at most 83 °C, held back by heat for 3m00s, Xid 31 2 times, nobody looked for 1m40s"
    )


@pytest.mark.parametrize(
    ("use", "text"),
    [
        (a_use(), "nothing was seen of it"),
        (a_use(energy_joules=900.0), "0.25 Wh"),
        (a_use(measured_seconds=100.0, busy_seconds=4.0), "4 % busy"),
        (a_use(xids={"79": 1}), "Xid 79"),
        (a_use(brake_seconds=60.0), "held back by its power supply for 1m00s"),
    ],
)
def test_what_was_used_is_said_as_far_as_it_is_known(use, text):
    assert usage.words(use) == text
    assert usage.total([]) == ""


def test_a_notification_is_tried_and_what_came_of_it_is_said(box, run):
    fine = {"ok": True, "said": "ntfy: ntfy.sh took it", "hint": "", "again": False}
    box.replies["POST /notices/test"] = {"outcomes": [fine]}
    assert run("notices", "test") == (0, "sent  ntfy: ntfy.sh took it\n", "")
    bad = {"ok": False, "said": "webhook: home answered 401\x1b[2J", "hint": "check notify_webhook", "again": False}
    box.replies["POST /notices/test"] = {"outcomes": [fine, bad]}
    code, out, err = run("notices", "test")
    assert (code, out.splitlines()[1:]) == (
        1,
        ["not sent  webhook: home answered 401\\x1b[2J", "          check notify_webhook"],
    )
    assert "runner serve --stop" in err
    assert run("notices", "test", "--json")[0] == 1
    assert "takes neither --seen nor --all" in run("notices", "test", "--seen")[2]
    assert 'takes no "tset"' in run("notices", "tset")[2]


def test_notices_are_the_newest_last_with_what_to_do(box, run):
    old = asdict(model.Notice(3, NOW, "xid", "job", "GPU 0: an error (Xid 31)", "look at the program", code=31))
    new = asdict(model.Notice(4, NOW, "gpu_back", "info", "GPU 0 is back\x1b[2J"))
    box.replies["GET /notices"] = {"notices": [new, old]}
    box.replies["POST /notices/seen"] = {"up_to": 4}
    code, out, err = run("notices")
    assert (code, err) == (0, "")
    assert [line[21:] for line in out.splitlines()] == [
        "job       GPU 0: an error (Xid 31)",
        "          look at the program",
        "info      GPU 0 is back\\x1b[2J",
    ]
    assert box.sent("POST /notices") == []
    run("notices", "--seen")
    assert box.sent("POST /notices/seen") == [{"up_to": 4}]
    assert len(json.loads(run("notices", "--all", "--json")[1])) == 2
    assert "unseen=false" in box.asked[-1][1]
    box.replies["GET /notices"] = {"notices": []}
    assert run("notices") == (0, "", "nothing new\n")
    assert run("notices", "--all")[2] == "nothing was ever noticed\n"


def test_gpus_are_watched_until_somebody_ends_it(box, run, monkeypatch):
    looks = []

    def sleep(_: float) -> None:
        looks.append(1)
        if len(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(gpus.time, "sleep", sleep)
    box.replies["GET /gpus"] = {"gpus": a_few(), "silent": None}
    code, out, _ = run("gpus", "--watch")
    assert code == 130
    assert out.count("GPU  MODEL") == 3
