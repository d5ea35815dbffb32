"""The collector: reads the GPUs once a second and says it in lines of JSON, to a daemon that need not listen.

A process of its own, because the driver may hold a call for ever, or take the caller down. It writes no file, knows no
job, and is replaced when it hangs. tests/test_collector.py shows what each line looks like; `frames.py` reads them.
"""

from __future__ import annotations

import json
import select
import socket
import time

from runner.box.gpus.bus import Bus
from runner.box.gpus.faults import Lost
from runner.box.gpus.holders import Holders
from runner.box.gpus.kernel_log import KernelLog
from runner.box.gpus.nvml import COLD, DEMAND, HOT, ON_DEMAND, WARM, Card, Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Message = dict[str, object]

OK, ASLEEP, LOST, ERROR = "ok", "asleep", "lost", "error"  # the states of a card in a frame
TROUBLES = ("no_library", "driver_not_loaded", "version_mismatch", "no_gpu", "no_permission", "unknown")
FATAL = ("no_library", "driver_not_loaded", "version_mismatch")  # this process can't be mended: another may do
MOVED = 64 << 20  # bytes: memory in use changed by more, so look at once who holds it
PATIENCE = 3  # cycles in which a card answers nothing but errors
LOOKED_AT = 10.0  # seconds for which a card is read closely after somebody asked for it
NOBODY_LOOKS = "read only while somebody looks"
PAUSE, PAUSE_MAX = 1.0, 30.0  # seconds between two attempts to get a lost card back
LINE_MAX = 4096  # bytes of what the daemon says
FAREWELL = 2.0  # seconds for the last line to leave


def run(link: Link, collector: Collector, pace: float = 1.0, beat: Callable[[], None] = lambda: None) -> int:
    """Read and tell, once a second, until the daemon is gone (0) or the GPUs can't be read at all (3).

    pace: how fast the collector's seconds pass; tests are in a hurry. beat: called once a second, unless it hangs.
    """
    due = time.monotonic() * pace
    try:
        while True:
            if not link.full:  # a daemon that does not listen needs no more to be said
                link.send(collector.frame(due))
            beat()
            due = following(due, time.monotonic() * pace)
            for line in link.lines(until=due / pace):
                verb, _, uuid = line.partition(" ")
                if verb == "probe":
                    link.send(collector.probe(uuid, time.monotonic() * pace))
                elif verb == "closely":
                    collector.look_closely(uuid, time.monotonic() * pace)
    except ConnectionError:
        return 0
    except Lost as lost:
        return give_up(link, lost)


def following(due: float, now: float) -> float:
    """The next second of the schedule. It does not drift, and a cycle that comes too late is left out."""
    return due + HOT * max(1, int((now - due) / HOT + 1))


def give_up(link: Link, lost: Lost) -> int:
    code = lost.code if lost.code in TROUBLES else "unknown"
    try:
        link.send({"kind": "trouble", "at": time.time(), "code": code, "message": lost.message, "hint": lost.hint})
        for _ in link.lines(until=time.monotonic() + FAREWELL, emptied=True):
            pass
    except ConnectionError:
        pass
    return 3


# --- the daemon's end ----------------------------------------------------------------------------------------------


class Link:
    """The socket to the daemon. Never waits for it; raises ConnectionError when it is gone."""

    def __init__(self, link: socket.socket) -> None:
        link.setblocking(False)
        self._link = link
        self._to_say = b""
        self._heard = b""
        self._poll = select.poll()

    @property
    def full(self) -> bool:
        """Whether something that was said is still here, because the daemon does not read."""
        return bool(self._to_say)

    def send(self, message: Message) -> None:
        self._to_say += json.dumps(message, separators=(",", ":")).encode() + b"\n"
        self._push()

    def lines(self, until: float, emptied: bool = False) -> Iterator[str]:
        """What the daemon says until then, monotonic; or until all is said. Nothing is heard before all is said."""
        while (left := until - time.monotonic()) > 0 and not (emptied and not self.full):
            self._poll.register(self._link, select.POLLOUT if self.full else select.POLLIN)
            if not self._poll.poll(left * 1000):
                return
            if self.full:
                self._push()
            else:
                yield from self._hear()

    def _push(self) -> None:
        try:
            self._to_say = self._to_say[self._link.send(self._to_say) :]
        except BlockingIOError:
            pass

    def _hear(self) -> list[str]:
        said = self._link.recv(LINE_MAX)
        if not said:
            raise ConnectionResetError
        *lines, self._heard = (self._heard + said)[-LINE_MAX:].split(b"\n")
        return [line.decode(errors="replace").strip() for line in lines]


# --- the GPUs ------------------------------------------------------------------------------------------------------


class Turn:
    """What a card's next readings depend on."""

    __slots__ = ("close_at", "close_until", "cold_at", "failures", "pids", "used", "warm_at", "worked")

    def __init__(self, now: float) -> None:
        self.warm_at = self.cold_at = now  # monotonic
        self.close_at, self.close_until = now, 0.0  # 0: nobody looks
        self.used: object = None  # bytes in use when its processes were read last
        self.pids: list[int] = []
        self.failures = 0  # cycles in a row in which it answered nothing but errors
        self.worked = False  # something was read of it

    def tiers(self, now: float, index: int) -> tuple[float, ...]:
        """What is due. After the first time the cards take turns with what is slow, so that no cycle has it all."""
        shift = index if self.warm_at == self.cold_at else 0
        due = [HOT]
        if now >= self.warm_at:
            due.append(WARM)
            self.warm_at = now + WARM - shift % WARM
        if now >= self.cold_at:
            due.append(COLD)
            self.cold_at = now + COLD - shift % COLD
        if self.close_at <= now < self.close_until:
            due.append(DEMAND)
            self.close_at = now + DEMAND
        return tuple(due)

    def is_left(self, now: float) -> bool:
        """Whether nobody looks any more, as of now."""
        left = 0.0 < self.close_until <= now
        if left:
            self.close_until = 0.0
        return left


class Collector:
    """The GPUs of this box, by UUID, whatever becomes of the driver's handles. Lost: there is no going on."""

    def __init__(self, bus: Bus, holders: Holders, log: KernelLog) -> None:
        self._bus, self._holders, self._log = bus, holders, log
        self._session: Session | None = None
        self._seen: dict[str, Message] = {}  # UUID -> who it is: every card that this process came to know
        self._down: dict[str, tuple[str, str]] = {}  # UUID -> state and words: those that are there, without a handle
        self._unknown: list[str] = []  # places of sleeping cards of which nobody knows the UUID
        self._unnamed = 0  # cards that are there, could not be opened, and whose UUIDs this process does not know
        self._turns: dict[str, Turn] = {}
        self._links: dict[str, int] | None = None  # not told yet
        self._pause = PAUSE
        self._retry_at = 0.0
        self._count_at = 0.0

    def frame(self, now: float) -> Message:
        """All cards, as they are now. now: the monotonic time of the schedule."""
        at, begun = time.time(), time.monotonic()
        session = self._opened(now)
        cards = [self._read(card, now, at) for card in tuple(session.cards)]
        told = {card["uuid"] for card in cards}
        cards += [self._without_handle(uuid) for uuid in self._down if uuid not in told]
        cards.sort(key=lambda card: str(card["bus_id"]))
        frame: Message = {"kind": "frame", "at": at, "driver": session.driver, "cuda": session.cuda, "gpus": cards}
        if self._links is not None:
            frame["links"], self._links = self._links, None
        frame["xids"] = self._log.read() + self._log.beside(session.xids())
        if self._unnamed:
            frame["unnamed"] = self._unnamed
        frame["cost"] = round(time.monotonic() - begun, 6)
        return frame

    def probe(self, uuid: str, now: float) -> Message:
        """One card, with the hot fields and its processes read now."""
        at = time.time()
        card = next((card for card in self._session.cards if card.uuid == uuid), None) if self._session else None
        if card is not None:
            answer = self._read(card, now, at, probing=True)
        elif uuid in self._down:
            answer = self._without_handle(uuid)
        else:
            answer = {"uuid": uuid, "state": ERROR, "detail": "the driver does not list it"}
        return {"kind": "probe", "at": at, "gpus": [answer]}

    def look_closely(self, uuid: str, now: float) -> None:
        """Somebody looks at this card: for a while its frames say what is too dear to be read for nobody."""
        turn = self._turns.get(uuid)
        if turn is not None:
            turn.close_until = now + LOOKED_AT

    # --- one card ---

    def _read(self, card: Card, now: float, at: float, probing: bool = False) -> Message:
        who = self._seen[card.uuid]
        if self._bus.asleep(card.bus_id):
            return _as(who, ASLEEP)
        turn = self._turns[card.uuid]
        tiers = (HOT,) if probing else turn.tiers(now, card.index)
        try:
            values, reasons = card.read(tiers, now)
            _answered(turn, bool(values) or not any(why.startswith("error") for why in reasons.values()))
            turn.worked = turn.worked or bool(values)
            if turn.is_left(now):
                reasons.update(dict.fromkeys(ON_DEMAND, NOBODY_LOOKS))
            used = values.get("memory_used_bytes")
            due = probing or WARM in tiers or _moved(turn.used, used)
            processes = self._processes(card, now, turn, used, reasons) if due else None
        except Lost as lost:
            return _as(who, *self._lose(card, lost, now))
        return who | {
            "state": OK,
            "detail": "",
            "sample": {"at": at, **values},
            "absent": reasons,
            "processes": processes,
        }

    def _processes(
        self, card: Card, now: float, turn: Turn, used: object, reasons: dict[str, str]
    ) -> list[Message] | None:
        listed, why = card.processes(now)
        turn.used = used
        if listed is None:
            reasons["processes"] = why
            return None
        turn.pids = [pid for pid, *_ in listed]
        self._holders.keep({pid for turn in self._turns.values() for pid in turn.pids})
        return [
            {"pid": pid, "memory_bytes": held, "kind": kind, "utilization": busy, **self._holders.describe(pid)}
            for pid, held, kind, busy in listed
        ]

    def _without_handle(self, uuid: str) -> Message:
        return _as(self._seen[uuid], *self._down[uuid])

    def _lose(self, card: Card, lost: Lost, now: float) -> tuple[str, str]:
        """Its handle is void: it is not used again, and NVML is opened anew; soon, if it worked until now."""
        assert self._session is not None
        if self._turns[card.uuid].worked:
            self._pause, self._retry_at = PAUSE, min(self._retry_at, now + PAUSE)
        self._session.cards.remove(card)
        self._down[card.uuid] = _state(lost)
        return self._down[card.uuid]

    # --- all of them ---

    def _opened(self, now: float) -> Session:
        """A session that is good as far as one can know."""
        if self._session is not None and self._outdated(self._session, now):
            self._session.close()
            self._session = None
        if self._session is None:
            self._session = self._open(now)
        return self._session

    def _outdated(self, session: Session, now: float) -> bool:
        if session.failed or any(state != ASLEEP for state, _ in self._down.values()):
            if now >= self._retry_at:
                return True
        elif now >= self._retry_at:
            self._pause = PAUSE
        sleeping = [str(self._seen[uuid]["bus_id"]) for uuid, (state, _) in self._down.items() if state == ASLEEP]
        if not all(self._bus.asleep(place) for place in (*sleeping, *self._unknown)):
            return True
        if now < self._count_at:
            return False
        self._count_at = now + WARM
        try:
            return session.changed()
        except Lost:
            return True

    def _open(self, now: float) -> Session:
        """Open NVML, and find out what became of the cards that were seen before."""
        self._retry_at, self._pause = now + self._pause, min(self._pause * 2, PAUSE_MAX)
        self._count_at = now + WARM
        places = self._bus.gpus()
        asleep = [place for place in places if self._bus.asleep(place)]
        session = Session(asleep, [place for place in places if place not in asleep])
        self._down.clear()
        self._turns = {card.uuid: Turn(now) for card in session.cards}
        self._seen.update((card.uuid, _identity(card)) for card in session.cards)
        self._meet(asleep)
        self._miss(session, asleep)
        fatal = next((why for why in session.failed if why.code in FATAL or not (session.cards or self._down)), None)
        if fatal is not None:
            session.close()
            raise fatal
        self._links = session.links()
        return session

    def _meet(self, asleep: list[str]) -> None:
        """Sleeping cards that only the kernel could tell us of. One that it does not know stays out until it wakes."""
        known = {who["bus_id"] for who in self._seen.values()}
        self._unknown.clear()
        for place in asleep:
            if place in known:
                continue
            if (said := self._bus.identity(place)) is None:
                self._unknown.append(place)
                continue
            uuid, name = said
            self._seen[uuid] = _who(uuid, self._bus.gpus().index(place), name, place, None, False)

    def _miss(self, session: Session, asleep: list[str]) -> None:
        """Those without a handle that are still there. One that is not enumerated any more is the daemon's to miss."""
        for uuid, who in self._seen.items():
            if uuid in self._turns:
                continue
            place = str(who["bus_id"])
            if place in asleep:
                self._down[uuid] = ASLEEP, ""
            elif session.failed and (why := session.why_not(place)) is not None:
                self._down[uuid] = _state(why)
        named = sum(state == ERROR for state, _ in self._down.values())
        self._unnamed = max(sum(_state(why)[0] == ERROR for why in session.failed) - named, 0)


def _who(uuid: str, index: int, name: str, place: str, memory_bytes: int | None, unified: bool) -> Message:
    """What does not change of a card, as far as that is known without its driver."""
    return {
        "uuid": uuid,
        "index": index,
        "name": name,
        "bus_id": place,
        "memory_bytes": memory_bytes,
        "unified": unified,
    }


def _identity(card: Card) -> Message:
    who = _who(card.uuid, card.index, card.name, card.bus_id, card.memory_bytes, card.unified)
    return who if card.architecture is None else who | {"architecture": card.architecture}


def _as(who: Message, state: str, detail: str = "") -> Message:
    """A card of which nothing was read."""
    return who | {"state": state, "detail": detail, "sample": {}, "absent": {}, "processes": None}


def _state(lost: Lost) -> tuple[str, str]:
    return LOST if lost.code == "lost" else ERROR, f"{lost.message}: {lost.hint}"


def _answered(turn: Turn, answered: bool) -> None:
    """A card that answers nothing but errors for a while is as good as lost. Raises Lost."""
    turn.failures = 0 if answered else turn.failures + 1
    if turn.failures >= PATIENCE:
        raise Lost("unknown", "the driver answers nothing but errors about it")


def _moved(before: object, used: object) -> bool:
    return isinstance(before, int) and isinstance(used, int) and abs(before - used) > MOVED
