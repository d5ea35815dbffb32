"""The queue in memory stays in order and forgets what nobody needs."""

from __future__ import annotations

from builders import a_job, a_spec
from hypothesis import given
from hypothesis import strategies as st

from runner import words
from runner.box.book import Book
from runner.box.schedule import order
from runner.model import After, Job


def a_book(*jobs: Job, states: dict[int, str] | None = None) -> Book:
    book = Book()
    book.add(jobs, a_spec(), states or {})
    return book


def test_jobs_stand_in_the_queues_order() -> None:
    book = a_book(a_job(1), a_job(2, priority=5), a_job(3), a_job(4, words.RUNNING))
    assert [job.id for job in book.queued] == [2, 1, 3]
    assert book.active.keys() == {4}


def test_a_started_job_begins_with_a_clean_slate() -> None:
    job = a_job(1, attempt=1, exit_code=3, signal=9, reason="signal", detail="x", started_at=5.0, not_before=9.0)
    book = a_book(job)
    book.start(job)
    assert (job.state, job.attempt) == (words.STARTING, 2)
    assert [job.exit_code, job.signal, job.reason, job.started_at, job.not_before, job.detail] == [None] * 5 + [""]
    assert book.queued == []


def test_a_requeued_job_finds_its_old_place() -> None:
    jobs = [a_job(id) for id in (1, 2, 3)]
    book = a_book(*jobs)
    book.start(jobs[1])
    book.requeue(jobs[1])
    book.requeue(jobs[1])
    assert book.queued == jobs
    assert book.active == {}


def test_an_end_tells_who_waited_and_is_remembered_as_long_as_they_wait() -> None:
    first, second, third = a_job(1), a_job(2, after=[After(1)]), a_job(3, after=[After(1), After(2)])
    book = a_book(first, second, third)
    assert book.end(first, words.SUCCEEDED) == [second, third]
    assert book.ended == {1: words.SUCCEEDED}
    assert book.end(second, words.SUCCEEDED) == [third]
    assert book.end(third, words.SUCCEEDED) == []
    assert book.ended == {}
    assert book.specs == {}


def test_what_ended_before_is_known_to_who_waits_for_it_later() -> None:
    book = a_book(a_job(5, after=[After(1), After(2)]), states={1: words.FAILED, 2: words.RUNNING})
    assert book.ended == {1: words.FAILED}


def test_a_priority_moves_a_waiting_job_only() -> None:
    jobs = [a_job(1), a_job(2), a_job(3, words.RUNNING)]
    book = a_book(*jobs)
    book.prioritise(jobs[1], 5)
    book.prioritise(jobs[2], 5)
    assert [job.id for job in book.queued] == [2, 1]
    assert jobs[2].priority == 5


@given(
    st.lists(
        st.tuples(st.sampled_from(["start", "requeue", "end", "prioritise"]), st.integers(1, 8), st.integers(-3, 3))
    )
)
def test_whatever_happens_the_queue_is_sorted_and_complete(steps: list[tuple[str, int, int]]) -> None:
    jobs = {id: a_job(id) for id in range(1, 9)}
    book = a_book(*jobs.values())
    for what, id, number in steps:
        job = jobs[id]
        if job.finished:
            continue
        if what == "start" and job.state == words.QUEUED:
            book.start(job)
        elif what == "requeue":
            book.requeue(job)
        elif what == "end":
            book.end(job, words.FAILED)
        elif what == "prioritise":
            book.prioritise(job, number)
        assert book.queued == sorted((j for j in jobs.values() if j.state == words.QUEUED), key=order)
        assert book.active == {j.id: j for j in jobs.values() if j.state in words.ACTIVE}
        assert book.jobs.keys() == {j.id for j in jobs.values() if not j.finished}


def test_a_job_has_its_gpus_as_long_as_its_attempt() -> None:
    job = a_job(1)
    book = a_book(job)
    book.start(job, ("GPU-0", "GPU-1"))
    assert job.allotted == ["GPU-0", "GPU-1"]
    book.requeue(job)
    assert job.allotted == []
    book.start(job)
    assert job.allotted == []
    book.requeue(job)
    book.start(job, ["GPU-1"])
    book.end(job, words.SUCCEEDED)
    assert job.allotted == ["GPU-1"], "what it had stays known"
