"""The door to NVML, NVIDIA's management library: typed values in SI units and bytes, or a reason in words.

A field that can't be read is absent and says why; 0 is a value. What makes handles void (a lost GPU, an unloaded
driver, ...) raises `Lost`, one kind for all: then close the session and open another. One caller, one thread: a call
may block for as long as the driver likes. `GetPcieThroughput` is never called, it takes 20 ms by design.

No dataclasses, typing or enum of ours here: the collector's process is to stay small.
"""

from __future__ import annotations

import pynvml  # type: ignore[import-untyped]

from runner.box.gpus import faults
from runner.box.gpus.bus import place
from runner.box.gpus.faults import Lost, Nonsense
from runner.box.gpus.nvml import readers
from runner.box.gpus.nvml.readers import COLD, DEMAND, FIELDS, HOT, ON_DEMAND, WARM, either, host_memory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import Any

    Values = dict[str, object]
    Reasons = dict[str, str]
    Listed = tuple[int, int | None, str, float | None]
    Reader = Callable[["Card"], tuple[object, ...]]
    Call = Callable[..., Any]

__all__ = ["COLD", "DEMAND", "FIELDS", "HOT", "ON_DEMAND", "WARM", "Card", "Session", "either", "host_memory"]

ASK_AGAIN = 600.0  # seconds until something that this card does not expose is tried once more
NVLINK = 5  # a link level of ours, nearer than NVML's nearest between two boards (10: one PCIe switch)

UNSUPPORTED = "not exposed by this card"
NEEDS_ROOT = "needs root"

PID_MAX = 1 << 22  # the highest that Linux can give
EVENTS_MAX = 100  # at once


# --- a session -----------------------------------------------------------------------------------------------------


class Session:
    """NVML from its init to its shutdown. Cards of a closed session are of no use.

    asleep: bus ids of cards that must not be touched; others: bus ids of the other NVIDIA GPUs on the bus. Only with
    one asleep are they asked for: then cards are opened by bus id, and else in the driver's order.
    Raises Lost when NVML can't be opened or has no card at all.
    """

    def __init__(self, asleep: Collection[str] = (), others: Collection[str] = ()) -> None:
        self.cards: list[Card] = []
        self._events: object = None  # the set of NVML's; None: it tells of none
        self.failed: list[Lost] = []  # why a card could not be opened, which can't say who it is
        _opening(pynvml.nvmlInit)
        try:
            self.driver = str(_opening(pynvml.nvmlSystemGetDriverVersion))
            self.cuda = _cuda()
            self.count = _count()
            self._open(asleep, others)
            self._events = self._register()
        except BaseException:
            self.close()
            raise

    def _open(self, asleep: Collection[str], others: Collection[str]) -> None:
        if self.count == 0:
            raise Lost("no_gpu", "the driver finds no GPU")
        for where in others if asleep else range(self.count):
            try:
                self.cards.append(Card(_handle(where)))
            except Lost as lost:
                self.failed.append(lost)

    def _register(self) -> object:
        """To be told of faults. It misses the worst of them, and many cards and drivers have none to tell."""
        try:
            events = pynvml.nvmlEventSetCreate()
        except pynvml.NVMLError:
            return None
        for card in self.cards:
            try:
                pynvml.nvmlDeviceRegisterEvents(card.handle, pynvml.nvmlEventTypeXidCriticalError, events)
            except pynvml.NVMLError:
                continue  # this one does not tell
        return events

    def xids(self) -> list[tuple[str, int]]:
        """(bus id, code) of the faults since the last call, as far as NVML tells them. Does not wait."""
        found: list[tuple[str, int]] = []
        while self._events is not None and len(found) < EVENTS_MAX:
            try:
                event = pynvml.nvmlEventSetWait(self._events, 0)
                found.append((place(pynvml.nvmlDeviceGetPciInfo(event.device).busId), int(event.eventData)))
            except pynvml.NVMLError as error:
                if error.value == faults.TIMEOUT:
                    break
                self._events = None  # a lost GPU ends it for all; a new session asks again
        return found

    def changed(self) -> bool:
        """Whether the driver sees more or fewer GPUs than when the session was opened."""
        return _count() != self.count

    def why_not(self, bus_id: str) -> Lost | None:
        """Why the card at a place on the bus can't be opened; None: there is none any more, or it can be."""
        try:
            handle = pynvml.nvmlDeviceGetHandleByPciBusId(bus_id)
        except pynvml.NVMLError as error:
            return None if error.value == faults.NOT_FOUND else faults.lost(error.value)
        try:
            Card(handle)
        except Lost as lost:
            return lost
        return None

    def links(self) -> dict[str, int]:
        """How near two cards are: "uuid uuid" (sorted) -> NVML's topology level, or NVLINK. Unknown is absent."""
        found = {}
        for one in self.cards:
            for other in self.cards:
                if one.uuid < other.uuid and (level := _link(one, other)) is not None:
                    found[f"{one.uuid} {other.uuid}"] = level
        return found

    def close(self) -> None:
        for card in self.cards:
            card.handle = None
        self.cards.clear()
        self._events = None
        try:
            pynvml.nvmlShutdown()
        except pynvml.NVMLError:
            pass  # there is nothing left to be shut down


def _opening(call: Call, *arguments: object) -> Any:
    """A call without whose answer nothing goes on."""
    try:
        return call(*arguments)
    except pynvml.NVMLError as error:
        raise faults.lost(error.value) from None


def _count() -> int:
    return int(_opening(pynvml.nvmlDeviceGetCount))


def _cuda() -> str:
    """The newest CUDA that the driver runs, or nothing where it does not say."""
    try:
        version: int = pynvml.nvmlSystemGetCudaDriverVersion()
    except pynvml.NVMLError:
        return ""
    return f"{version // 1000}.{version % 1000 // 10}"


def _handle(where: int | str) -> object:
    """The handle of the card with an index, or at a place on the bus. This wakes and initialises it, and no other."""
    by = pynvml.nvmlDeviceGetHandleByIndex if isinstance(where, int) else pynvml.nvmlDeviceGetHandleByPciBusId
    return _opening(by, where)


def _link(one: Card, other: Card) -> int | None:
    try:
        status = pynvml.nvmlDeviceGetP2PStatus(one.handle, other.handle, pynvml.NVML_P2P_CAPS_INDEX_NVLINK)
        if status == pynvml.NVML_P2P_STATUS_OK:
            return NVLINK
    except pynvml.NVMLError:
        pass  # most cards have none, and old drivers have no such question
    try:
        level: int = pynvml.nvmlDeviceGetTopologyCommonAncestor(one.handle, other.handle)
    except pynvml.NVMLError:
        return None
    return level


# --- a card --------------------------------------------------------------------------------------------------------


class Card:
    """One GPU, for as long as its session is open. Raises Lost at once when it can't say who it is."""

    __slots__ = (
        "_ask_again", "_busy_until", "architecture", "bus_id", "handle", "index", "memory_bytes", "name", "unified",
        "uuid",
    )  # fmt: skip

    def __init__(self, handle: object) -> None:
        self.handle = handle
        self.uuid = str(_opening(pynvml.nvmlDeviceGetUUID, handle))
        self.name = str(_opening(pynvml.nvmlDeviceGetName, handle))
        self.index = int(_opening(pynvml.nvmlDeviceGetIndex, handle))
        self.bus_id = place(_opening(pynvml.nvmlDeviceGetPciInfo, handle).busId)
        self.memory_bytes, self.unified = readers.capacity(self)
        self.architecture = readers.architecture(self)
        self._ask_again: dict[str, float] = {}  # what this card does not expose -> when it is tried once more
        self._busy_until = 0  # the driver's time stamp of the last look at what its processes do

    def read(self, tiers: Collection[float], now: float) -> tuple[Values, Reasons]:
        """The fields of some tiers: those that could be read, and why the others could not. now: monotonic."""
        values: Values = {}
        reasons: Reasons = {}
        for names, tier, reader in FIELDS:
            if tier in tiers:
                read = self._ask(names[0], reader, now)
                if isinstance(read, str):
                    reasons.update(dict.fromkeys(names, read))
                else:
                    values.update(zip(names, read, strict=True))
        return values, reasons

    def processes(self, now: float) -> tuple[list[Listed] | None, str]:
        """(pid, bytes that it holds here or None, compute | graphics | both, 0..1: how busy it kept the GPU since the
        last time or None), by pid; or None and the reason."""
        compute = self._ask("compute processes", readers.compute, now)
        graphics = self._ask("graphics processes", readers.graphics, now)
        if isinstance(compute, str):
            return None, compute
        found: dict[int, tuple[int, int | None, str]] = {}
        for kind, listed in (("compute", compute), ("graphics", () if isinstance(graphics, str) else graphics)):
            for entry in listed:
                self._add(found, entry, kind)
        busy = self._busy(now) if found else {}
        return [(*found[pid], busy.get(pid)) for pid in sorted(found)], ""

    def _busy(self, now: float) -> dict[int, float]:
        read = self._ask("process utilization", lambda card: readers.utilizations(card, card._busy_until), now)
        if isinstance(read, str):
            return {}
        self._busy_until, busy = read  # type: ignore[assignment]
        return busy  # type: ignore[return-value]

    def _add(self, found: dict[int, tuple[int, int | None, str]], entry: Any, kind: str) -> None:
        pid, held = entry.pid, entry.usedGpuMemory
        if not 0 < pid <= PID_MAX:
            return
        if held is not None and held > readers.most(self):
            held = None
        if pid in found:
            _, known, other = found[pid]
            held = max((bytes_ for bytes_ in (held, known) if bytes_ is not None), default=None)
            kind = kind if kind == other else "both"
        found[pid] = (pid, held, kind)

    def _ask(self, what: str, reader: Reader, now: float) -> tuple[object, ...] | str:
        """What a reader says, or why not. What the card does not expose is not asked for again for a while."""
        if now < self._ask_again.get(what, now):
            return UNSUPPORTED
        try:
            return reader(self)
        except Nonsense as nonsense:
            return f"error: {nonsense}"
        except pynvml.NVMLError as error:
            if error.value in faults.LIFECYCLE:
                raise faults.lost(error.value) from None
            if error.value in faults.NOT_EXPOSED:
                self._ask_again[what] = now + ASK_AGAIN
                return UNSUPPORTED
            return NEEDS_ROOT if error.value == faults.NO_PERMISSION else f"error: {faults.words(error.value)}"
