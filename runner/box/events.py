"""What changes, told to whoever listens: numbered, with a short memory for those who come back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from runner.model import Event

MEMORY = 4096  # events kept for a listener that reconnects; one that missed more looks at the jobs afresh


class Events:
    def __init__(self, first: int = 1) -> None:
        """first: the number of the first event; a restarted daemon starts above the last one's."""
        self._next = first
        self._recent: deque[Event] = deque(maxlen=MEMORY)
        self._listeners: set[Callable[[], None]] = set()

    @property
    def last(self) -> int:
        return self._next - 1

    def publish(self, kind: str, id: int | str, state: str, at: float) -> None:
        self._recent.append(Event(self._next, kind, id, state, at))
        self._next += 1
        for listener in tuple(self._listeners):
            listener()

    def since(self, seq: int) -> list[Event] | None:
        """The events after a number; None when some of them are no longer remembered (or it is of another daemon)."""
        oldest = self._recent[0].seq if self._recent else self._next
        if not oldest - 1 <= seq <= self.last:
            return None
        return [event for event in self._recent if event.seq > seq]

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have `listener` called at each event; returns what ends that."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    @property
    def listeners(self) -> int:
        return len(self._listeners)
