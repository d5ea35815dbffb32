"""The HTTP client against a server that sends exactly the bytes of the test, and the starting of a daemon."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

import runner
from runner import errors, paths
from runner.laptop import boxes, client, flow, light
from runner.laptop.client import Client

JSON_HEAD = b"Content-Type: application/json\r\n"
OURS = f"X-Gpubox-Api: {runner.API_LEVEL}\r\nX-Gpubox-Version: {runner.__version__}\r\n".encode()


def answer(body: bytes, status: bytes = b"200 OK", head: bytes = JSON_HEAD) -> bytes:
    return b"HTTP/1.1 %b\r\n%b%bContent-Length: %d\r\n\r\n%b" % (status, OURS, head, len(body), body)


class Scripted:
    """A server whose connections each get a list of replies; None hangs up. It keeps what it was asked."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.asked: list[bytes] = []
        self.connections: list[list[bytes | None]] = []
        self.count = 0
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(8)
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(5)
        sock.connect(self.path)
        return sock

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(5)

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            replies = self.connections[self.count] if self.count < len(self.connections) else [None]
            self.count += 1
            with sock:
                for reply in replies:
                    if not self._read(sock) or reply is None:
                        break
                    try:
                        sock.sendall(reply)
                    except OSError:
                        break

    def _read(self, sock: socket.socket) -> bool:
        """One request: its head, and its body by the length or to the last chunk."""
        data = b""
        while b"\r\n\r\n" not in data:
            piece = sock.recv(65536)
            if not piece:
                return False
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        lower = head.lower()
        while True:
            if b"chunked" in lower:
                if body.endswith(b"0\r\n\r\n"):
                    break
            else:
                length = int(lower.partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
                if len(body) >= length:
                    break
            body += sock.recv(65536)
        self.asked.append(head + b"\r\n\r\n" + body)
        return True


@pytest.fixture
def server(tmp_path) -> Iterator[Scripted]:
    scripted = Scripted(str(tmp_path / "s"))
    yield scripted
    scripted.close()


@pytest.fixture
def talk(server: Scripted, monkeypatch) -> Iterator[Callable[..., Client]]:
    monkeypatch.setattr(client, "PAUSES", (0.001, 0.001))

    made = []

    def begin(*connections: list[bytes | None]) -> Client:
        server.connections = list(connections)
        made.append(Client(server.connect))
        return made[-1]

    yield begin
    for api in made:
        api.close()


# --- requests --------------------------------------------------------------------------------------------------------


def test_json_goes_there_and_comes_back(talk, server):
    api = talk([answer(b'{"id": 42}', b"201 Created")])
    assert api.request("POST", "/jobs", json={"a": ["ü", 1]})[::2] == (201, {"id": 42})
    head, _, body = server.asked[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /api/v1/jobs HTTP/1.1\r\n")
    assert json.loads(body) == {"a": ["ü", 1]}


def test_one_connection_carries_many_requests(talk, server):
    api = talk([answer(b"1"), answer(b"2"), answer(b"3")])
    assert [api.get("/x") for _ in range(3)] == [1, 2, 3]
    assert server.count == 1


def test_a_connection_that_the_box_will_close_is_not_used_again(talk, server):
    api = talk([answer(b"1", head=JSON_HEAD + b"Connection: close\r\n")], [answer(b"2")])
    assert [api.get("/x") for _ in range(2)] == [1, 2]
    assert server.count == 2


def test_a_chunked_reply_is_put_together(talk):
    body = b'5;note=x\r\n{"a":\r\n3\r\n 7}\r\n0\r\nTrailer: t\r\n\r\n'
    api = talk([b"HTTP/1.1 200 OK\r\n" + JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + body, answer(b"2")])
    assert api.get("/x") == {"a": 7}
    assert api.get("/x") == 2


def test_a_reply_without_a_length_ends_with_the_connection(talk):
    assert talk([b"HTTP/1.1 200 OK\r\n" + JSON_HEAD + b"\r\n[1]"]).get("/x") == [1]


class Dripping:
    """A box that sends a byte now and then, and what it waits in between is time that only the test sees."""

    def __init__(self, monkeypatch, sent: bytes, every: float, piece: int = 1) -> None:
        self.sent, self.every, self.piece, self.now = sent, every, piece, 0.0
        self.connections = 0
        monkeypatch.setattr(client.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(client.time, "sleep", lambda seconds: None)

    def connect(self) -> Dripping:
        self.connections += 1
        self.left = self.sent
        return self

    def recv(self, size: int) -> bytes:
        self.now += self.every
        data, self.left = self.left[: self.piece], self.left[self.piece :]
        return data

    def sendall(self, data: bytes) -> None: ...

    def settimeout(self, seconds: float | None) -> None: ...

    def close(self) -> None: ...


def test_headers_that_come_byte_by_byte_are_waited_for_no_longer_than_others(monkeypatch):
    box = Dripping(monkeypatch, answer(b"{}"), 5)
    with pytest.raises(errors.Unreachable, match="does not answer"):
        Client(box.connect).get("/x")
    assert box.now <= client.REPLY_SECONDS + 2 * box.every


@pytest.mark.parametrize("body", [b"[" + b" " * 5000 + b"]", b"x" * (1 << 20)], ids=["answer", "download"])
def test_a_body_that_comes_byte_by_byte_is_given_up(monkeypatch, body):
    head, _, _ = answer(body).partition(b"\r\n\r\n")
    box = Dripping(monkeypatch, b" " * 5000 + body, 2)
    box.piece = 0

    def recv(size: int) -> bytes:
        if not box.piece:  # the head at once
            box.piece = 1
            return head + b"\r\n\r\n"
        return Dripping.recv(box, size)

    monkeypatch.setattr(box, "recv", recv)
    api = Client(box.connect)
    with pytest.raises(flow.Trickle, match="next to nothing"):
        api.get("/x") if body[:1] == b"[" else list(api.stream("GET", "/x"))
    assert box.now <= flow.SECONDS + 3 * box.every


def test_a_download_in_drops_over_many_connections_is_given_up_too(monkeypatch):
    box = Dripping(monkeypatch, answer(b"x" * 100)[:-99], 1, piece=1000)
    api = Client(box.connect)

    def download() -> None:
        while True:
            with pytest.raises(client.Lost):
                list(api.stream("GET", "/x"))

    with pytest.raises(flow.Trickle):
        download()
    assert box.connections > 10


def test_a_slow_download_that_keeps_coming_is_waited_for(monkeypatch):
    body = b"x" * (1 << 20)
    box = Dripping(monkeypatch, answer(body), 1.0, piece=300)
    assert b"".join(Client(box.connect).stream("GET", "/x")) == body
    assert box.now > 20 * flow.SECONDS


def test_a_box_that_has_nothing_to_say_for_long_may_be_listened_to(monkeypatch):
    body = b"tick\n" * 200
    box = Dripping(monkeypatch, answer(body), 15, piece=50)
    assert b"".join(Client(box.connect).stream("GET", "/events", patience=45)) == body
    assert box.now > 2 * client.REPLY_SECONDS


def test_other_content_comes_as_bytes(talk):
    status, headers, data = talk([answer(b"a\0b", head=b"X-Gpubox-Size: 9\r\n")]).request("GET", "/logs/1")
    assert (status, headers["x-gpubox-size"], data) == (200, "9", b"a\0b")


def test_a_reply_after_100_continue_is_the_reply(talk):
    assert talk([b"HTTP/1.1 100 Continue\r\n\r\n" + answer(b"5")]).get("/x") == 5


def test_an_upload_is_streamed_in_chunks(talk, server):
    talk([answer(b"{}")]).request("POST", "/blobs", body=iter([b"abc", b"", b"d" * 20]))
    head, _, body = server.asked[0].partition(b"\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in head
    assert b"Content-Type: application/octet-stream" in head
    assert body == b"3\r\nabc\r\n14\r\n" + b"d" * 20 + b"\r\n0\r\n\r\n"


def test_an_upload_that_is_refused_in_the_middle_says_why(tmp_path):
    """The box answers and hangs up before the upload's end: its words, not ours about a broken pipe."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen(1)

    def refuse() -> None:
        sock, _ = listener.accept()
        sock.recv(100)
        sock.sendall(answer(b'{"code":"disk_full","message":"full","hint":"h"}', b"507 Insufficient"))
        sock.shutdown(socket.SHUT_RD)
        sock.close()

    def connect() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(tmp_path / "s"))
        return sock

    api = Client(connect)
    thread = threading.Thread(target=refuse)
    thread.start()
    with pytest.raises(errors.DiskFull, match="full"):
        api.request("POST", "/blobs", body=(b"x" * 65536 for _ in range(1000)))
    api.close()
    thread.join(5)
    listener.close()


# --- errors ----------------------------------------------------------------------------------------------------------


def test_an_error_reply_is_raised_as_our_error(talk):
    api = talk([answer(b'{"code":"too_much","message":"m","hint":"h"}', b"422 No"), answer(b"1")])
    with pytest.raises(errors.TooMuch) as caught:
        api.get("/x")
    assert (caught.value.message, caught.value.hint) == ("m", "h")
    assert api.get("/x") == 1  # the connection is still good


def test_an_error_that_is_not_json_still_is_an_error(talk):
    with pytest.raises(errors.Problem, match="answered 500"):
        talk([answer(b"<html>", b"500 Oh", b"")]).get("/x")


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(b"SSH-2.0-OpenSSH\r\n\r\n", id="another protocol"),
        pytest.param(b"HTTP/1.1 2x0 OK\r\n\r\n", id="a status that is no number"),
        pytest.param(b"HTTP/1.1 200 OK\r\nbroken\r\n\r\n", id="a header without a name"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", id="a negative length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 40 + b"\r\n\r\n", id="an absurd length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 1_0\r\n\r\n", id="a length with an underscore"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", id="a chunk without a size"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n", id="a chunk too long"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"0" * 9000, id="an endless size"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"x" * (70 << 10), id="endless headers"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: y", id="headers cut off"),
    ],
)
def test_a_malformed_reply_is_named_as_such(talk, reply):
    with pytest.raises(errors.Unreachable, match="what answers is not a box") as caught:
        talk([reply]).get("/x")
    assert "runner doctor" in caught.value.hint


def test_a_reply_without_end_is_not_kept_in_memory(talk, monkeypatch):
    monkeypatch.setattr(client, "BODY_LIMIT", 1000)
    with pytest.raises(errors.TooLarge):
        talk([answer(b"1" * 2000)]).get("/x")


def test_silence_is_an_error(talk, monkeypatch, tmp_path):
    monkeypatch.setattr(client, "REPLY_SECONDS", 0.01)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "mute"))
    listener.listen(1)

    def connect() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(tmp_path / "mute"))
        return sock

    with pytest.raises(errors.Unreachable, match="does not answer"):
        Client(connect).get("/x")
    listener.close()


# --- trying again ----------------------------------------------------------------------------------------------------


def test_a_question_is_asked_again_when_the_connection_is_lost(talk, server):
    assert talk([None], [None], [answer(b"7")]).get("/x") == 7
    assert server.count == 3


def test_a_reply_cut_off_in_the_middle_is_asked_for_again(talk):
    assert talk([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"], [answer(b"7")]).get("/x") == 7


def test_a_submission_keeps_its_key_over_all_tries(talk, server):
    api = talk([None], [answer(b"{}")])
    api.request("POST", "/jobs", json={}, headers={"Idempotency-Key": client.new_key()})
    keys = [asked.partition(b"Idempotency-Key: ")[2].partition(b"\r\n")[0] for asked in server.asked]
    assert len(keys) == 2
    assert keys[0] == keys[1] != b""


def test_a_change_without_a_key_is_never_repeated(talk, server):
    with pytest.raises(client.Lost):
        talk([None], [answer(b"{}")]).request("POST", "/box/stop", json={})
    assert server.count == 1


def test_it_gives_up_after_a_few_tries(talk, server):
    with pytest.raises(errors.Unreachable, match="without an answer"):
        talk().get("/x")
    assert server.count == 3


# --- streams ---------------------------------------------------------------------------------------------------------


def test_a_stream_yields_what_arrives_and_frees_the_connection(talk, server):
    body = b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    api = talk([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body, answer(b"2")])
    assert b"".join(api.stream("GET", "/x")) == b"abc"
    assert api.get("/x") == 2
    assert server.count == 1


def test_other_requests_can_be_made_beside_a_stream(tmp_path, talk, server):
    api = talk([answer(b"abc", head=b"")])
    api.connect, paths = (lambda: next(paths)), iter([server.connect()])
    stream = api.stream("GET", "/x")
    assert api._idle is None
    assert b"".join(stream) == b"abc"
    assert api._idle is not None


def test_a_stream_left_in_the_middle_closes_its_connection(talk):
    api = talk([answer(b"a" * 10, head=b"")])
    stream = api.stream("GET", "/x")
    next(stream)
    stream.close()
    assert api._idle is None


def test_a_stream_refused_raises_before_it_begins(talk):
    with pytest.raises(errors.NotFound):
        talk([answer(b'{"code":"not_found","message":"m"}', b"404 No")]).stream("GET", "/x")


def test_a_stream_that_breaks_says_so(talk):
    stream = talk([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"]).stream("GET", "/x")
    assert next(stream) == b"abc"
    with pytest.raises(client.Lost):
        next(stream)


def test_odd_file_names_are_quoted():
    assert client.quote("a b/ü?#%\n\udcff.txt") == "a%20b/%C3%BC%3F%23%25%0A%FF.txt"


# --- JSON ------------------------------------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(values)
def test_light_json_is_json(value):
    assert light.dumps(value) == json.dumps(value, separators=(",", ":"))
    assert light.loads(" " + light.dumps(value) + "\n") == value


@pytest.mark.parametrize(
    "text", ["", " ", "{", '{"a"', "[1,]", "nul", "1 2", '"\n"', "\x00", "{'a': 1}", "NaN", "[-Infinity]"]
)
def test_what_is_not_json_is_a_value_error(text):
    with pytest.raises(ValueError):
        light.loads(text)


def test_what_has_no_json_form_is_refused():
    with pytest.raises(TypeError):
        light.dumps({1, 2})


# --- boxes -----------------------------------------------------------------------------------------------------------

DAEMON = """
import os, sys
fd = int(sys.argv[sys.argv.index("--ready-fd") + 1])
said = {said!r}
if {listens}:
    import socket, threading
    listener = socket.socket(socket.AF_UNIX)
    listener.bind({path!r})
    listener.listen(1)
os.write(fd, said.encode())
os.close(fd)
if {listens}:
    listener.settimeout(10)
    sock, _ = listener.accept()
    sock.recv(65536)
    body = (str(os.getpid()) + " " + str(os.getsid(0)) + " " + os.getcwd()).encode()
    sock.sendall(b"HTTP/1.1 200 OK\\r\\nX-Gpubox-Api: 1\\r\\nX-Gpubox-Version: {version}\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
    sock.recv(1)
"""  # noqa: E501


@pytest.fixture
def state(tmp_path, monkeypatch) -> str:
    path = str(tmp_path / "state")
    monkeypatch.setenv("GPUBOX_STATE", path)
    monkeypatch.delenv("GPUBOX_SOCKET", raising=False)
    monkeypatch.delenv("GPUBOX_BOX", raising=False)
    return path


@pytest.fixture
def daemon(tmp_path, state, monkeypatch) -> Callable[[str, bool], None]:
    """Makes `python -m runner.box` a stand-in that says and does what the test wants."""
    monkeypatch.setattr(boxes, "SETTLE_SECONDS", 0.1)

    def pretend(said: str, listens: bool) -> None:
        package = tmp_path / "fake" / "runner" / "box"
        package.mkdir(parents=True)
        (package.parent / "__init__.py").write_text("")
        (package / "__init__.py").write_text("")
        program = DAEMON.format(said=said, listens=listens, path=f"{state}/api.sock", version=runner.__version__)
        (package / "__main__.py").write_text(program)
        monkeypatch.setattr(runner, "__file__", str(package.parent / "__init__.py"))

    return pretend


def test_the_first_command_starts_the_daemon_detached(daemon, state):
    daemon("ready\n", True)
    api = boxes.open_box()
    pid, session, directory = b"".join(api.stream("GET", "/hello")).decode().split()
    api.close()
    assert int(session) not in (os.getsid(0), int(pid))  # a session of its own, which it does not lead
    assert directory == "/"


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ('{"code":"not_installed","message":"no fastapi","hint":""}\n', errors.NotInstalled, "no fastapi"),
        ('{"code":"state_damaged","message":"broken","hint":"x"}\n', errors.StateDamaged, "broken"),
        ('{"code":"busy","message":"another holds it","hint":"x"}\n', errors.Busy, "another holds it"),
        ("what?\n", errors.Problem, "something unexpected: what"),
        ("", errors.Unreachable, "ended while it started"),
        ("ready\n", errors.Unreachable, "is gone again"),
    ],
    ids=["not installed", "damaged", "busy", "nonsense", "silent", "gone"],
)
def test_a_daemon_that_does_not_start_says_why(daemon, said, kind, words):
    daemon(said, False)
    with pytest.raises(kind, match=words) as caught:
        boxes.open_box().get("/hello")
    if kind is errors.NotInstalled:
        assert caught.value.hint == 'pip install ".[box]" in a clone'


def test_the_last_line_of_its_log_is_quoted(daemon, state):
    os.makedirs(state)
    with open(f"{state}/daemon.log", "w") as file:
        file.write("first\nImportError: no such thing\n\n")
    daemon("", False)
    with pytest.raises(errors.Unreachable, match="ImportError: no such thing"):
        boxes.connect_or_start()


def test_a_state_directory_that_cannot_be_made_is_a_setting_to_change(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GPUBOX_STATE", str(tmp_path / "file" / "state"))
    monkeypatch.setenv("GPUBOX_SOCKET", str(tmp_path / "none.sock"))
    with pytest.raises(errors.BadSettings, match="state directory") as caught:
        boxes.connect_or_start()
    assert "GPUBOX_STATE" in caught.value.hint


def test_nothing_is_started_where_that_is_not_wanted(state):
    with pytest.raises(errors.Unreachable, match="no box is running here"):
        boxes.open_box(start=False).get("/hello")
    assert not os.path.exists(state)


def test_a_box_that_does_not_exist_is_named(monkeypatch):
    with pytest.raises(errors.NotFound, match='no box named "locl", did you mean "local"'):
        boxes.open_box("locl")
    monkeypatch.setenv("GPUBOX_BOX", "attic")
    with pytest.raises(errors.NotFound, match="attic"):
        boxes.open_box()


# --- the service of this computer ---


@pytest.fixture
def service(tmp_path, monkeypatch):
    """A folder that we may enter, where the service of a provisioned box has its."""
    for name in ("GPUBOX_STATE", "GPUBOX_SOCKET"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setattr(paths, "RUN", str(folder))
    monkeypatch.setattr(paths, "API_SOCKET", f"{folder}/api.sock")
    return folder


def test_local_is_the_service_of_this_computer_where_we_may_use_it(service):
    server = Scripted(f"{service}/api.sock")
    server.connections = [[answer(b'{"box":"attic"}')]]
    try:
        assert boxes.open_box().get("/hello") == {"box": "attic"}
    finally:
        server.close()
    assert boxes.provisioned()
    assert not boxes.closed()


def test_a_service_that_is_away_is_told_and_no_other_box_started(service, monkeypatch):
    monkeypatch.setattr(boxes, "SETTLE_SECONDS", 0.05)
    monkeypatch.setattr(boxes, "_spawn", lambda state: pytest.fail("started a box of our own"))
    with pytest.raises(errors.Unreachable, match="the service of this box does not run"):
        boxes.open_box().get("/hello")


def test_a_service_is_not_renewed_by_whoever_has_a_newer_command(service, monkeypatch):
    """It is upgraded with its box; a member may not restart it."""
    server = Scripted(f"{service}/api.sock")
    server.connections = [[versioned("0.0.1", b'{"box":"attic"}')]]
    try:
        assert boxes.open_box().get("/hello") == {"box": "attic"}
    finally:
        server.close()


def test_whom_the_service_is_not_for_has_a_box_of_their_own(service, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert (boxes.provisioned(), boxes.closed()) == (False, True)


@pytest.mark.parametrize("name", ["GPUBOX_STATE", "GPUBOX_SOCKET"])
def test_who_names_a_state_or_a_socket_means_that_one(service, monkeypatch, name):
    monkeypatch.setenv(name, "/elsewhere")
    assert not boxes.provisioned()


def versioned(version: str, body: bytes = b"{}", level: int = runner.API_LEVEL) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nX-Gpubox-Api: {level}\r\nX-Gpubox-Version: {version}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + JSON_HEAD + b"\r\n" + body


def test_an_older_daemon_is_renewed_and_asked_again(talk, server):
    hello = f'{{"version":"{runner.__version__}"}}'.encode()
    api = talk(
        [versioned("0.0.9", b'{"jobs":[]}')],
        [versioned("0.0.9")],  # POST /box/restart
        [versioned("0.0.9", b'{"version":"0.0.9"}')],
        [versioned(runner.__version__, hello), versioned(runner.__version__, b'{"jobs":[],"groups":[]}')],
    )
    api.greet = boxes._renew
    assert api.get("/jobs") == {"jobs": [], "groups": []}
    lines = [asked.partition(b" HTTP")[0] for asked in server.asked]
    assert lines[1] == b"POST /api/v1/box/restart"
    assert lines.count(b"GET /api/v1/jobs") == 2


def test_a_newer_daemon_is_left_alone(talk, server):
    api = talk([versioned("99.0.0", b'{"jobs":[]}')])
    api.greet = boxes._renew
    assert api.get("/jobs") == {"jobs": []}
    assert server.count == 1


def test_a_daemon_of_a_newer_api_is_not_spoken_to(talk):
    api = talk([versioned("99.0.0", b"1", level=2)])
    api.greet = boxes._renew
    with pytest.raises(errors.Unreachable, match="API level 2") as caught:
        api.get("/jobs")
    assert "upgrade" in caught.value.hint


@pytest.mark.parametrize(("ahead", "where"), [(-1, "there, to"), (1, "here")])
def test_a_box_elsewhere_of_another_api_says_which_side_to_upgrade(ahead, where):
    headers = {"x-gpubox-api": str(runner.API_LEVEL + ahead)}
    with pytest.raises(errors.Unreachable, match="API level") as caught:
        boxes._compare(None, headers)
    assert caught.value.hint.startswith(f"upgrade gpubox {where}")


def test_what_names_no_api_level_is_not_a_box(talk):
    api = talk([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"])
    api.greet = boxes._renew
    with pytest.raises(errors.Unreachable, match="not a box"):
        api.get("/jobs")


@pytest.mark.parametrize(
    ("theirs", "ours", "older"),
    [
        ("0.1.0", "0.1.0", False),
        ("0.9.0", "0.10.0", True),
        ("0.1.0", "0.1.1", True),
        ("1.0", "0.9.9", False),
        ("", "0.1", True),
    ],
)
def test_versions_are_compared_by_number(theirs, ours, older):
    assert boxes._older(theirs, ours) is older


def test_a_fork_leaves_no_child_behind(daemon):
    daemon("", False)
    with pytest.raises(errors.Unreachable):
        boxes.connect_or_start()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
