"""What changes is numbered, told to listeners and remembered for a while."""

from __future__ import annotations

from runner.box.events import MEMORY, Events


def test_events_are_numbered_on_from_the_first() -> None:
    events = Events(100)
    assert events.last == 99
    events.publish("job", 1, "queued", 5.0)
    events.publish("box", "local", "draining", 6.0)
    assert [(event.seq, event.kind, event.id, event.state, event.at) for event in events.since(99) or []] == [
        (100, "job", 1, "queued", 5.0),
        (101, "box", "local", "draining", 6.0),
    ]
    assert [event.seq for event in events.since(100) or []] == [101]
    assert events.since(101) == []


def test_who_missed_too_much_or_comes_from_another_daemon_is_told_so() -> None:
    events = Events(100)
    assert events.since(99) == []
    assert events.since(98) is None
    assert events.since(100) is None, "a number from the future"
    for _ in range(MEMORY + 1):
        events.publish("job", 1, "queued", 5.0)
    assert events.since(99) is None
    assert len(events.since(100) or []) == MEMORY


def test_listeners_are_called_until_they_leave_even_while_being_called() -> None:
    events = Events()
    heard: list[str] = []

    def once() -> None:
        heard.append("once")
        leave()

    leave = events.listen(once)
    stay = events.listen(lambda: heard.append("always"))
    events.publish("job", 1, "queued", 5.0)
    events.publish("job", 1, "running", 6.0)
    assert sorted(heard) == ["always", "always", "once"]
    assert events.listeners == 1
    stay()
    stay()
    assert events.listeners == 0
