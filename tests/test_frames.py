"""What the collector says, as values; and nothing it says may hurt."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.box.gpus import frames
from runner.box.gpus.frames import Frame, Probe, Reading, Trouble, Xid, parse
from runner.model import Process, Sample

GIB = 1 << 30
HOT = {
    "memory_used_bytes": 12 * GIB,
    "utilization": 0.97,
    "memory_utilization": 0.5,
    "power_watts": 312.4,
    "temperature_celsius": 71,
    "sm_clock_hertz": 1.9e9,
    "throttled_by": ["power_cap"],
}
REST = {
    "fan": 0.4,
    "performance_state": 2,
    "memory_clock_hertz": 1e10,
    "energy_joules": 1e7,
    "throttled_seconds": {"power_cap": 1.5, "hw_thermal": 0},
    "memory_temperature_celsius": 88,
    "power_limit_watts": 350,
    "power_limit_default_watts": 350,
    "slowdown_celsius": 95,
    "shutdown_celsius": 98,
    "pcie_generation": 4,
    "pcie_width": 16,
    "pcie_generation_most": 4,
    "pcie_width_most": 16,
    "remap_pending": False,
    "remap_failed": False,
    "ecc_errors": 0,
    "recovery": "none",
    "persistence": True,
    "pcie_sent_per_second": 1.5e6,
    "pcie_received_per_second": 0.0,
    "encoder": 0.4,
    "decoder": 0.0,
}
PROCESS = {
    "pid": 4321,
    "started": 12345678,
    "memory_bytes": GIB,
    "kind": "compute",
    "alive": True,
    "user": "alice",
    "command": "python train.py",
    "launch": "12/1",
    "ancestors": [100, 50, 1],
    "utilization": 0.25,
}


def a_card(number: int = 0, **values: Any) -> dict[str, Any]:
    return {
        "uuid": f"GPU-{number}",
        "index": number,
        "name": "NVIDIA GeForce RTX 3090",
        "bus_id": f"00000000:{number + 1:02x}:00.0",
        "memory_bytes": 24 * GIB,
        "unified": False,
        "state": "ok",
        "detail": "",
        "sample": dict(HOT),
        "absent": {"ecc_errors": "not exposed by this card"},
        "processes": None,
        **values,
    }


def a_line(kind: str = "frame", **values: Any) -> bytes:
    return json.dumps({"kind": kind, "at": 1000.5, "gpus": [a_card()], **values}).encode()


def the_card(**values: Any) -> Reading:
    frame = parse(a_line(gpus=[a_card(**values)]))
    assert isinstance(frame, Frame)
    return frame.cards[0]


def the_frame(**values: Any) -> Frame:
    frame = parse(a_line(**values))
    assert isinstance(frame, Frame)
    return frame


def test_a_frame_carries_all_that_was_read() -> None:
    frame = the_frame(
        driver="570.86.15",
        cuda="12.8",
        cost=0.012,
        gpus=[a_card(0, sample=HOT | REST, processes=[PROCESS]), a_card(1, processes=[])],
        links={"GPU-0 GPU-1": 30},
        xids=[{"at": 999.0, "bus_id": "00000000:01:00.0", "code": 79, "text": "fallen off the bus", "pid": 7}],
    )
    assert (frame.at, frame.driver, frame.cuda, frame.cost) == (1000.5, "570.86.15", "12.8", 0.012)
    assert frame.links == {("GPU-0", "GPU-1"): 30}
    assert frame.xids == [Xid(999.0, "00000000:01:00.0", 79, "fallen off the bus", 7)]
    first, second = frame.cards
    assert first.sample == HOT | REST
    assert first.absent == {}, "what is there is not absent"
    assert second.absent == {"ecc_errors": "not exposed by this card"}
    assert first.processes == [
        Process(
            4321, 12345678, GIB, "compute", True, "alice", "python train.py", "12/1", [100, 50, 1], utilization=0.25
        )
    ]
    assert (second.uuid, second.index, second.memory_bytes, second.state) == ("GPU-1", 1, 24 * GIB, "ok")
    assert second.processes == [], "none is not the same as not read"


def test_a_probe_carries_one_card() -> None:
    probe = parse(a_line("probe", gpus=[a_card(3)]))
    assert isinstance(probe, Probe)
    assert probe.card.uuid == "GPU-3"
    for gpus in ([], [a_card(1), a_card(2)]):
        with pytest.raises(ValueError, match="not one GPU"):
            parse(a_line("probe", gpus=gpus))


def test_trouble_has_a_code_that_is_known() -> None:
    said = parse(a_line("trouble", code="no_gpu", message="no GPU", hint="look at its cable"))
    assert said == Trouble(1000.5, "no_gpu", "no GPU", "look at its cable")
    said = parse(a_line("trouble", code=["?"], message=None))
    assert said == Trouble(1000.5, "unknown", "the GPUs can't be read", "")


def test_what_was_not_read_is_none_and_not_empty() -> None:
    assert the_frame().links is None
    assert the_frame().cost is None
    assert the_card().processes is None
    assert the_card(memory_bytes=None).memory_bytes is None


def test_every_field_of_a_sample_is_known_here() -> None:
    known = {field.name for field in dataclasses.fields(Sample)} - {"at"}
    assert set(frames._SAMPLE) == known
    assert set(HOT | REST) == known
    assert Sample(at=1.0, **the_card(sample=HOT | REST).sample).persistence is True  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory_used_bytes", -1),
        ("memory_used_bytes", 2**64 - 1),
        ("memory_used_bytes", 1e9),
        ("memory_used_bytes", True),
        ("utilization", 42.94967295),
        ("utilization", math.nan),
        ("power_watts", math.inf),
        ("power_watts", "312"),
        ("temperature_celsius", -300),
        ("performance_state", 32),
        ("energy_joules", -1.0),
        ("throttled_by", "power_cap"),
        ("throttled_seconds", [1, 2]),
        ("persistence", 1),
        ("recovery", {}),
        ("ecc_errors", 2**63),
    ],
)
def test_a_value_that_makes_no_sense_is_absent_with_that_reason(name: str, value: object) -> None:
    card = the_card(sample=HOT | {name: value})
    assert name not in card.sample
    assert card.absent[name] == frames.NONSENSE
    assert set(card.sample) == set(HOT) - {name}, "the others are kept"


def test_fields_that_are_not_known_are_passed_over() -> None:
    card = the_card(sample=HOT | {"at": 5, "colour": "green", "fan": None}, absent={"colour": "grey"}, extra=1)
    assert card.sample == HOT
    assert card.absent == {}


@pytest.mark.parametrize("state", ["melted", None, ["ok"], 1])
def test_a_state_that_is_not_known_is_an_error(state: object) -> None:
    card = the_card(state=state, detail="fine")
    assert (card.state, card.detail) == ("error", "its state makes no sense")


@pytest.mark.parametrize(
    "gpus",
    [
        None,
        {},
        "all",
        [None],
        [{}],
        [a_card(uuid="")],
        [a_card(uuid=7)],
        [a_card(uuid="GPU 0")],
        [a_card(uuid="GPU-0\n")],
        [a_card(uuid="GPU-" + "0" * 200)],
        [a_card(0), a_card(0)],
        [a_card(number) for number in range(frames.CARDS_MAX + 1)],
    ],
)
def test_a_frame_whose_cards_are_doubtful_is_refused_as_a_whole(gpus: object) -> None:
    """Or a card would look as if it were missing, and its job as if it were lost."""
    with pytest.raises(ValueError, match="GPU"):
        parse(a_line(gpus=gpus))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff\xfe",
        b"NVML: segmentation fault",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"1" * 10_000,
        b"[]",
        b"null",
        b"{}",
        b'{"kind":"frame","gpus":[]}',
        b'{"kind":"frame","at":NaN,"gpus":[]}',
        b'{"kind":"frame","at":-5,"gpus":[]}',
        b'{"kind":"frame","at":1e999,"gpus":[]}',
        b'{"kind":"frame","at":true,"gpus":[]}',
        b'{"kind":"song","at":1,"gpus":[]}',
        b'{"kind":["frame"],"at":1,"gpus":[]}',
        a_line(driver="x" * frames.LINE_MAX),
    ],
    ids=lambda line: line[:20].decode(errors="replace"),
)
def test_a_line_that_is_none_is_refused_in_words(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"^a line "):
        parse(line)


def test_texts_are_printable_short_and_can_be_written_anywhere() -> None:
    card = the_card(name="\x1b[2J3090\n\ud800\u202e", detail="x" * 100_000)
    assert card.name == " [2J3090   "
    assert len(card.detail) == frames.TEXT_MAX
    assert card.detail.endswith("x...")
    process = the_card(processes=[PROCESS | {"command": "python -c 'a\nb'", "user": 5}]).processes
    assert process is not None
    assert (process[0].command, process[0].user) == ("python -c 'a b'", "")


def test_a_process_without_a_pid_is_none() -> None:
    doubtful = [None, {}, PROCESS | {"pid": 0}, PROCESS | {"pid": -4}, PROCESS | {"pid": "1"}, PROCESS | {"pid": 2**40}]
    assert the_card(processes=doubtful).processes == []


def test_a_process_keeps_what_makes_sense() -> None:
    said = {"pid": 7, "started": -1, "memory_bytes": 2**64 - 1, "kind": [], "launch": 3, "ancestors": [1, "2", -3, 4]}
    assert the_card(processes=[said | {"job": 12}]).processes == [Process(7, 0, ancestors=[1, 4])]


def test_there_are_only_so_many_processes_and_faults() -> None:
    many = the_card(processes=[{"pid": 1}] * (frames.PROCESSES_MAX + 5)).processes
    assert many is not None
    assert len(many) == frames.PROCESSES_MAX
    xid = {"at": 1.0, "bus_id": "00000000:01:00.0", "code": 79}
    assert len(the_frame(xids=[xid] * (frames.XIDS_MAX + 5)).xids) == frames.XIDS_MAX


@pytest.mark.parametrize("xid", [None, {}, {"at": 1.0, "code": 79}, {"at": "x", "bus_id": "0:1:0", "code": 79}])
def test_a_fault_of_no_card_is_passed_over(xid: object) -> None:
    assert the_frame(xids=[xid]).xids == []


def test_links_are_sorted_pairs() -> None:
    said = {"GPU-1 GPU-0": 30, "GPU-0": 1, "a b c": 1, "GPU-0 GPU-2": -4, "GPU-0 GPU-3": "near", "GPU-0 ": 3}
    assert the_frame(links=said).links == {("GPU-0", "GPU-1"): 30}
    assert the_frame(links=[1]).links is None


# --- whatever it says ---

JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**64 - 1, -1, 10**30, 0, 1])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["GPU-0", "ok", "frame", "\ud800"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


def damaged(whole: dict[str, Any], **inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A right object, of which up to two fields are junk, or missing."""
    right = st.fixed_dictionaries({name: inner.get(name, st.just(value)) for name, value in whole.items()})
    missing = st.just("missing")
    damage = st.dictionaries(st.sampled_from(list(whole)), missing | JUNK, max_size=2)
    return st.builds(lambda a, b: {k: v for k, v in (a | b).items() if v != "missing"}, right, damage)


PROCESSES = st.none() | st.lists(damaged(PROCESS) | JUNK, max_size=3)
SAMPLES = damaged(HOT | REST)
CARDS = damaged(a_card(), uuid=st.sampled_from(["GPU-0", "GPU-1"]), sample=SAMPLES, processes=PROCESSES)
LINKS = st.dictionaries(st.sampled_from(["GPU-0 GPU-1", "GPU-0"]) | st.text(max_size=4), JUNK, max_size=3)
XIDS = st.lists(damaged({"at": 1.0, "bus_id": "00000000:01:00.0", "code": 79, "text": "gone"}) | JUNK, max_size=2)
FRAME = {"kind": "frame", "at": 1.0, "driver": "570", "cuda": "12.8", "cost": 0.1, "gpus": [], "links": {}, "xids": []}
TROUBLE = {"kind": "trouble", "at": 1.0, "code": "no_gpu", "message": "no GPU", "hint": ""}
LINES = (
    damaged(FRAME, gpus=st.lists(CARDS, max_size=2), links=LINKS, xids=XIDS)
    | damaged({"kind": "probe", "at": 1.0, "gpus": []}, gpus=st.lists(CARDS, min_size=1, max_size=1))
    | damaged(TROUBLE)
)


def check(line: bytes) -> None:
    try:
        value = parse(line)
    except ValueError:
        return
    text = json.dumps(dataclasses.asdict(value, dict_factory=_with_texts), allow_nan=False, ensure_ascii=False)
    text.encode()
    cards = value.cards if isinstance(value, Frame) else [value.card] if isinstance(value, Probe) else []
    for card in cards:
        assert card.state in frames.CARD_STATES
        assert not set(card.sample) & set(card.absent)
        assert (card.memory_bytes or 1) > 0
        for process in card.processes or []:
            assert process.pid > 0
            assert process.job is None


def _with_texts(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: str(value) if name == "links" else value for name, value in pairs}


@given(LINES)
def test_whatever_it_says_gives_values_that_can_be_used(said: dict[str, Any]) -> None:
    check(json.dumps(said).encode())


@given(st.binary(max_size=200) | JUNK.map(lambda junk: json.dumps(junk).encode()))
def test_bytes_of_any_kind_do_no_harm(line: bytes) -> None:
    check(line)


@given(st.data())
def test_a_line_that_was_cut_or_changed_does_no_harm(data: st.DataObject) -> None:
    line = bytearray(a_line(gpus=[a_card(sample=HOT | REST, processes=[PROCESS])]))
    for _ in range(data.draw(st.integers(1, 4))):
        line[data.draw(st.integers(0, len(line) - 1))] = data.draw(st.integers(0, 255))
    check(bytes(line[: data.draw(st.integers(0, len(line)))]))


def test_a_frame_of_eight_cards_is_read_in_a_third_of_a_millisecond(figure: Callable[[str], None]) -> None:
    processes = [PROCESS | {"pid": 1000 + number} for number in range(2)]
    hot = a_line(gpus=[a_card(number) for number in range(8)])
    full = a_line(gpus=[a_card(number, sample=HOT | REST, processes=processes) for number in range(8)])
    took = {name: min(_seconds(line) for _ in range(20)) for name, line in (("hot", hot), ("full", full))}
    figure(f"a frame of 8 GPUs: {took['hot'] * 1e6:.0f} us to read; with 16 processes {took['full'] * 1e6:.0f} us")
    assert took["hot"] <= 0.3e-3, "it comes each second; the others each 5 s"


def _seconds(line: bytes) -> float:
    began = time.perf_counter()
    for _ in range(20):
        parse(line)
    return (time.perf_counter() - began) / 20
