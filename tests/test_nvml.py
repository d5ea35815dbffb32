"""The door to NVML: units, reasons, nonsense, old names, ends. In this process, over the fake library."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable
from pathlib import Path

import fake_nvml
import pynvml
import pytest
from fake_nvml import FakeNvml

from runner.box.gpus import nvml
from runner.box.gpus.faults import Lost
from runner.box.gpus.nvml import ASK_AGAIN, COLD, HOT, NEEDS_ROOT, UNSUPPORTED, WARM, Card, Session, readers

ALL = (HOT, WARM, COLD)
GIB = 1 << 30


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """A machine of its own: the library remembers its script, so each test loads its own copy."""
    fake = FakeNvml(tmp_path)
    for name, value in fake.env.items():
        monkeypatch.setenv(name, value)
    copy = shutil.copy(fake_nvml.library() / "libnvidia-ml.so.1", tmp_path / "copy.so")
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(copy))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return fake


def only_card() -> Card:
    (card,) = Session().cards
    return card


def test_values_are_in_si_units_and_bytes(driver: FakeNvml) -> None:
    gpu = driver.add("3090")
    gpu.set(
        used=3 * GIB, utilization=87, memory_utilization=41, power=212345, temperature=66, sm_clock=1860,
        memory_clock=9751, fan=55, performance_state=2, energy=123_456_789, throttle=0b1000101,
        throttled_power_cap=2_500_000_000, power_enforced=300_000, pcie_generation=4, pcie_width=8, persistence=1,
        recovery=2,
    )  # fmt: skip
    card = only_card()
    assert (card.uuid, card.index, card.bus_id) == (gpu.uuid, 0, "00000000:01:00.0")
    assert (card.memory_bytes, card.unified) == ((24576 - 317) << 20, False)
    values, reasons = card.read(ALL, 0.0)
    data_centre = ("ecc_errors", "memory_temperature_celsius", "remap_pending", "remap_failed")
    assert reasons == dict.fromkeys(data_centre, UNSUPPORTED)
    assert values.pop("throttled_seconds") == {
        "power_cap": 2.5, "sync_boost": 0, "sw_thermal": 0, "hw_thermal": 0, "power_brake": 0,
    }  # fmt: skip
    assert values == {
        "memory_used_bytes": 3 * GIB,
        "utilization": 0.87,
        "memory_utilization": 0.41,
        "power_watts": 212.345,
        "temperature_celsius": 66.0,
        "sm_clock_hertz": 1.86e9,
        "throttled_by": ["power_cap", "hw_thermal"],
        "fan": 0.55,
        "performance_state": 2,
        "memory_clock_hertz": 9.751e9,
        "energy_joules": 123456.789,
        "power_limit_watts": 300.0,
        "power_limit_default_watts": 350.0,
        "slowdown_celsius": 95.0,
        "shutdown_celsius": 98.0,
        "pcie_generation": 4,
        "pcie_width": 8,
        "pcie_generation_most": 4,
        "pcie_width_most": 16,
        "recovery": "reboot",
        "persistence": True,
    }


def test_the_session_says_what_the_driver_is(driver: FakeNvml) -> None:
    driver.add("3090")
    session = Session()
    assert (session.driver, session.cuda) == ("570.86.15", "12.8")


def test_zero_is_a_value(driver: FakeNvml) -> None:
    driver.add("3090").set(used=0, utilization=0, power=0, temperature=0, fan=0, performance_state=0, energy=0)
    values, _ = only_card().read(ALL, 0.0)
    fields = ("memory_used_bytes", "utilization", "power_watts", "temperature_celsius", "fan", "energy_joules")
    assert [values[field] for field in fields] == [0] * 6
    assert values["performance_state"] == 0


def test_each_tier_reads_its_own_fields_alone(driver: FakeNvml) -> None:
    gpu = driver.add("3090")
    card = only_card()
    before = driver.calls(gpu=gpu)
    values, _ = card.read((HOT,), 0.0)
    assert set(values) == {
        "memory_used_bytes", "utilization", "memory_utilization", "power_watts", "temperature_celsius",
        "sm_clock_hertz", "throttled_by",
    }  # fmt: skip
    assert driver.calls(gpu=gpu) - before == 6


def test_what_a_card_does_not_expose_is_asked_for_again_after_ten_minutes_only(driver: FakeNvml) -> None:
    gpu = driver.add("3090")
    gpu.unsupported("fan")
    card = only_card()
    for now in (0.0, 5.0, ASK_AGAIN - 1):
        assert card.read((WARM,), now)[1]["fan"] == UNSUPPORTED
    assert driver.calls("nvmlDeviceGetFanSpeed") == 1
    gpu.set(fan=40)
    assert card.read((WARM,), ASK_AGAIN)[0]["fan"] == 0.4


def test_a_new_session_asks_again_at_once(driver: FakeNvml) -> None:
    gpu = driver.add("3090")
    gpu.unsupported("fan")
    session = Session()
    session.cards[0].read((WARM,), 0.0)
    gpu.set(fan=40)
    session.close()
    assert only_card().read((WARM,), 0.0)[0]["fan"] == 0.4


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (3, UNSUPPORTED),
        (13, UNSUPPORTED),
        (4, NEEDS_ROOT),
        (10, "error: the driver took too long"),
        (19, "error: it is in use"),
        (999, "error: the driver does not know why"),
        (77, "error: NVML error 77"),
    ],
)
def test_an_absent_field_says_why(driver: FakeNvml, code: int, reason: str) -> None:
    driver.add("3090").fails("power", code)
    values, reasons = only_card().read((HOT,), 0.0)
    assert reasons == {"power_watts": reason}
    assert "power_watts" not in values
    assert "temperature_celsius" in values


def test_an_error_is_tried_again_in_the_next_cycle(driver: FakeNvml) -> None:
    gpu = driver.add("3090")
    gpu.fails("power", 10)
    card = only_card()
    assert "power_watts" in card.read((HOT,), 0.0)[1]
    gpu.fails("power", None)
    assert card.read((HOT,), 1.0)[0]["power_watts"] == 20.0


@pytest.mark.parametrize(
    ("code", "kind"), [(15, "lost"), (1, "unknown"), (9, "driver_not_loaded"), (18, "version_mismatch"), (28, "no_gpu")]
)
def test_what_voids_a_handle_is_one_kind_of_exception(driver: FakeNvml, code: int, kind: str) -> None:
    gpu = driver.add("3090")
    card = only_card()
    gpu.fault(code)
    with pytest.raises(Lost) as caught:
        card.read((HOT,), 0.0)
    assert caught.value.code == kind
    assert caught.value.message
    assert caught.value.hint
    with pytest.raises(Lost):
        card.processes(0.0)


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [
        (lambda driver: driver.version_mismatch(), "version_mismatch"),
        (lambda driver: driver.init_fault(4), "no_permission"),
        (lambda driver: driver.driver_not_loaded(), "driver_not_loaded"),
        (lambda driver: driver.init_fault(999), "unknown"),
        (lambda driver: None, "no_gpu"),
    ],
)
def test_nvml_that_can_not_be_opened_says_why(driver: FakeNvml, trouble: Callable[[FakeNvml], None], kind: str) -> None:
    trouble(driver)
    with pytest.raises(Lost) as caught:
        Session()
    assert caught.value.code == kind


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    with pytest.raises(Lost, match=r"libnvidia-ml\.so\.1 is missing") as caught:
        Session()
    assert caught.value.code == "no_library"


def test_garbage_is_not_a_value(driver: FakeNvml) -> None:
    driver.add("3090").garbage()
    values, reasons = only_card().read(ALL, 0.0)
    garbage = {
        "utilization", "memory_utilization", "power_watts", "temperature_celsius", "sm_clock_hertz", "fan",
        "memory_clock_hertz", "energy_joules",
    }  # fmt: skip
    assert garbage <= reasons.keys()
    assert not garbage & values.keys()
    assert all(reasons[field].startswith("error: the driver says") for field in garbage)


@pytest.mark.parametrize(
    ("field", "absurd", "name"),
    [
        ("used", 2**64 - 1, "memory_used_bytes"),
        ("used", 60 * GIB, "memory_used_bytes"),
        ("utilization", 101, "utilization"),
        ("temperature", 4294967295, "temperature_celsius"),
        ("performance_state", 32, "performance_state"),
        ("pcie_width", 4294967295, "pcie_width"),
        ("power_enforced", 4294967295, "power_limit_watts"),
    ],
)
def test_one_absurd_value_is_left_out_alone(driver: FakeNvml, field: str, absurd: int, name: str) -> None:
    driver.add("3090").set(**{field: absurd})
    values, reasons = only_card().read(ALL, 0.0)
    assert name not in values
    assert name in reasons
    assert "sm_clock_hertz" in values


def test_energy_that_falls_is_passed_on(driver: FakeNvml) -> None:
    gpu = driver.add("3090")
    card = only_card()
    gpu.set(energy=9_000_000)
    assert card.read((WARM,), 0.0)[0]["energy_joules"] == 9000.0
    gpu.set(energy=1000)
    assert card.read((WARM,), 5.0)[0]["energy_joules"] == 1.0


def test_an_old_driver_is_asked_by_the_old_names(driver: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_temperature_of", "_throttles_of", "_memory_of"):  # settled by other tests, for their driver
        monkeypatch.setattr(readers, name, fresh(name))
    driver.old_driver()
    driver.add("3090").set(used=GIB, throttle=4)
    card = only_card()
    assert card.memory_bytes == 24 * GIB  # the first version does not say what is reserved
    values, reasons = card.read((HOT,), 0.0)
    assert reasons == {}
    assert (values["temperature_celsius"], values["throttled_by"]) == (35.0, ["power_cap"])
    assert values["memory_used_bytes"] == GIB + (317 << 20)


def fresh(name: str) -> Callable[..., object]:
    pairs = {
        "_temperature_of": (pynvml.nvmlDeviceGetTemperatureV, pynvml.nvmlDeviceGetTemperature),
        "_throttles_of": (
            pynvml.nvmlDeviceGetCurrentClocksEventReasons,
            pynvml.nvmlDeviceGetCurrentClocksThrottleReasons,
        ),
        "_memory_of": (
            lambda handle: pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2),
            pynvml.nvmlDeviceGetMemoryInfo,
        ),
    }
    return nvml.either(*pairs[name])


def test_the_old_name_is_settled_at_the_first_call() -> None:
    asked = []

    def new() -> None:
        asked.append("new")
        raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)

    call = nvml.either(new, lambda: asked.append("old"))
    call()
    call()
    assert asked == ["new", "old", "old"]


def test_a_card_without_memory_of_its_own_has_the_hosts(driver: FakeNvml) -> None:
    driver.add("gb10")
    card = only_card()
    total, _ = nvml.host_memory()
    assert (card.unified, card.memory_bytes) == (True, total)
    values, reasons = card.read((HOT,), 0.0)
    assert 0 < values["memory_used_bytes"] < total  # type: ignore[operator]
    assert "memory_used_bytes" not in reasons


def test_processes_are_listed_once_each_with_what_they_hold(driver: FakeNvml) -> None:
    gpu = driver.add("3090")
    gpu.process(300, GIB)
    gpu.process(100, None)
    gpu.process(200, 2 * GIB, "both", sm=75)
    gpu.process(400, 3 * GIB, "graphics")
    listed, reason = only_card().processes(0.0)
    assert reason == ""
    assert listed == [
        (100, None, "compute", 0.0),
        (200, 2 * GIB, "both", 0.75),
        (300, GIB, "compute", 0.0),
        (400, 3 * GIB, "graphics", 0.0),
    ]


def test_a_process_with_absurd_memory_is_listed_without_it(driver: FakeNvml) -> None:
    gpu = driver.add("3090")
    gpu.set(used=GIB)
    gpu.process(100, 2**63)
    gpu.process(2**32 - 1, GIB)
    assert only_card().processes(0.0) == ([(100, None, "compute", 0.0)], "")


def test_a_list_that_can_not_be_read_is_not_an_empty_one(driver: FakeNvml) -> None:
    gpu = driver.add("3090")
    card = only_card()
    assert card.processes(0.0) == ([], "")
    gpu.fails("processes", 999)
    assert card.processes(0.0) == (None, "error: the driver does not know why")


def test_what_each_process_does_is_told_where_the_driver_knows_it(driver: FakeNvml) -> None:
    gpu = driver.add("3090")
    gpu.process(100, GIB, sm=30)
    card = only_card()
    assert [busy for *_, busy in card.processes(0.0)[0] or ()] == [0.3]
    gpu.garbage()
    assert [busy for *_, busy in card.processes(1.0)[0] or ()] == [None], "old, and over 100 %"
    gpu.garbage(False)
    gpu.unsupported("process_utilization")
    assert [busy for *_, busy in card.processes(2.0)[0] or ()] == [None]
    card.processes(3.0)
    assert driver.calls("nvmlDeviceGetProcessUtilization") == 3 + 2, "twice each, with the size; then not any more"


def test_a_card_of_a_data_centre_says_more(driver: FakeNvml) -> None:
    driver.add("h200").set(memory_temperature=88, remap_pending=1)
    values, reasons = only_card().read(ALL, 0.0)
    assert (values["memory_temperature_celsius"], values["remap_pending"], values["remap_failed"]) == (
        88.0,
        True,
        False,
    )
    assert reasons["slowdown_celsius"] == UNSUPPORTED


def test_faults_are_told_once_by_the_cards_that_tell_them(driver: FakeNvml) -> None:
    tells, silent = driver.add("3090"), driver.add("3090")
    silent.unsupported("events")
    tells.xid(13)  # of before
    session = Session()
    assert session.xids() == []
    for gpu in (tells, silent):
        gpu.xid(31)
    assert session.xids() == [(tells.bus_id, 31)]
    assert session.xids() == []
    driver.fault(999)
    assert session.xids() == []
    driver.fault(None)
    tells.xid(43)
    assert session.xids() == [], "until the next session"


def test_links_tell_how_near_two_cards_are(driver: FakeNvml) -> None:
    one, two, three = driver.add("3090"), driver.add("3090"), driver.add("3090")
    driver.link(one, two, "nvlink")
    driver.link(two, three, 10)
    assert Session().links() == {
        f"{one.uuid} {two.uuid}": nvml.NVLINK,
        f"{two.uuid} {three.uuid}": 10,
        f"{one.uuid} {three.uuid}": 30,
    }


def test_a_closed_session_has_no_handles(driver: FakeNvml) -> None:
    driver.add("3090")
    session = Session()
    (card,) = session.cards
    session.close()
    assert card.handle is None
    assert session.cards == []
    with pytest.raises(Lost):
        card.read((HOT,), 0.0)


def test_cards_beside_a_sleeping_one_are_opened_by_their_place(driver: FakeNvml) -> None:
    asleep, awake = driver.add("3090"), driver.add("4090")
    session = Session([asleep.bus_id], [awake.bus_id])
    assert [(card.uuid, card.index) for card in session.cards] == [(awake.uuid, 1)]
    assert driver.calls(gpu=asleep) == 0
    assert driver.calls("nvmlDeviceGetHandleByIndex_v2") == 0


def test_a_count_that_changed_is_noticed(driver: FakeNvml) -> None:
    gpu = driver.add("3090")
    driver.add("4090")
    session = Session()
    assert not session.changed()
    driver.drop(gpu)
    assert session.changed()


def test_a_card_that_can_not_be_opened_tells_why(driver: FakeNvml) -> None:
    lost, gone, fine = driver.add("3090"), driver.add("3090"), driver.add("4090")
    lost.lost()
    driver.drop(gone)
    session = Session()
    assert [card.uuid for card in session.cards] == [fine.uuid]
    assert [why.code for why in session.failed] == ["lost"]
    why = session.why_not(lost.bus_id)
    assert why is not None
    assert why.code == "lost"
    assert session.why_not(gone.bus_id) is None


def test_every_field_of_a_sample_is_read_by_one_reader() -> None:
    from dataclasses import fields

    from runner.model import Sample

    read = [name for names, _, _ in nvml.FIELDS for name in names]
    assert sorted(read) == sorted(field.name for field in fields(Sample) if field.name != "at")


def test_throughput_is_read_for_nobody() -> None:
    tiers = {
        tier for names, tier, _ in nvml.FIELDS if names[0].startswith("pcie_") and names[0].endswith("_per_second")
    }
    assert tiers == {nvml.DEMAND}
    assert nvml.DEMAND not in (nvml.HOT, nvml.WARM, nvml.COLD)
