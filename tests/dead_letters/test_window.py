"""Replays of many dead letters at a time: how many, in which order, and what stops them."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from dead_letter_kit import JOB, OTHER, each
from relay_kit import new_job

from relay.contract.errors import BrokerUnavailable
from relay.contract.subjects import STATUS_STREAM, dlq_subject, status_subject
from relay.dead_letters.moments import moment_of_us
from relay.dead_letters.replay import Replayer, ReplayResult
from relay.dead_letters.replay_all import ReplaySummary, replay_all
from relay.dead_letters.stored import StoredDeadLetter
from relay.dead_letters.window import for_each
from relay.local.server import DEFAULT_MAX_PAYLOAD
from relay.nats.jetstream import publish_confirmed
from relay.nats.pipeline import Pipeline


def made_up(sequence: int, job: str = JOB, body: bytes = b"") -> StoredDeadLetter:
    return StoredDeadLetter(sequence, moment_of_us(0), {"Relay-Source-Subject": status_subject(job)}, body)


SIZE_BYTES = made_up(10, "job-10", b"x" * 10).size_bytes


def job_of(letter: StoredDeadLetter) -> str:
    return letter.job


async def replayed_with(
    letters: AsyncIterator[StoredDeadLetter], replay: Callable[[StoredDeadLetter], Any], **how: Any
) -> tuple[ReplaySummary, list[int]]:
    summary, done = ReplaySummary(), []
    await replay_all(
        letters, replay, summary=summary, on_result=lambda result: done.append(result.letter.sequence), **how
    )
    return summary, done


# With simulated replays


async def test_jobs_are_replayed_side_by_side_but_each_in_order():
    """Dead letters of different jobs are replayed concurrently, those of one job one after another."""
    both, began = asyncio.Barrier(2), []

    async def replay(letter: StoredDeadLetter) -> ReplayResult:
        began.append(letter.sequence)
        if letter.sequence in (1, 2):
            await both.wait()  # passes only if both have started
            assert [1, 2] == began, "the third is of the first one's job"
        return ReplayResult(letter)

    summary, done = await replayed_with(each(made_up(1), made_up(2, OTHER), made_up(3)), replay)
    assert ReplaySummary(replayed=3) == summary
    assert 3 == done[-1]


async def test_error_stops_what_is_behind():
    """After an error no more are started, above all not of the same job; started ones are finished."""
    other_began, failed = asyncio.Event(), asyncio.Event()

    async def replay(letter: StoredDeadLetter) -> ReplayResult:
        if letter.sequence == 1:
            await other_began.wait()
            failed.set()
            raise BrokerUnavailable(["nats"], "gone")
        other_began.set()
        await failed.wait()
        return ReplayResult(letter)

    letters = each(made_up(1), made_up(2, OTHER), made_up(3), made_up(4, OTHER))
    summary, done = await replayed_with(letters, replay)
    assert "gone" in str(summary.error)
    assert [2] == done


async def test_error_while_reading():
    """If reading fails, started ones are finished, and the summary has the error."""
    began, failed = asyncio.Event(), asyncio.Event()

    async def broken() -> AsyncIterator[StoredDeadLetter]:
        yield made_up(1)
        await began.wait()
        failed.set()
        raise BrokerUnavailable(["nats"], "gone")

    async def replay(letter: StoredDeadLetter) -> ReplayResult:
        began.set()
        await failed.wait()
        return ReplayResult(letter)

    summary, _ = await replayed_with(broken(), replay)
    assert (1, "gone") == (summary.replayed, summary.error.cause)


async def test_rate():
    """With a rate, that many are started a second at most, at even intervals, and none before it is due."""
    loop, began = asyncio.get_running_loop(), []

    async def replay(letter: StoredDeadLetter) -> ReplayResult:
        began.append(loop.time() - start)
        return ReplayResult(letter)

    letters, start = each(*(made_up(count, f"job-{count}") for count in range(1, 6))), loop.time()
    summary, _ = await replayed_with(letters, replay, rate_per_s=50)
    early = [count for count, since_s in enumerate(began) if since_s < count / 50 - 0.005]
    assert (5, []) == (summary.replayed, early)


@pytest.mark.parametrize(
    ("window", "window_bytes", "most"),
    [(3, 10_000, 3), (100, SIZE_BYTES * 4, 4), (100, SIZE_BYTES - 1, 1)],
    ids=["count", "bytes", "too large"],
)
async def test_the_window_is_bounded(window, window_bytes, most):
    """At most as many are in progress as fit into the window, in number and in bytes; a larger one is alone."""
    under_way, seen = set(), []

    async def work(letter: StoredDeadLetter) -> None:
        under_way.add(letter.sequence)
        seen.append(len(under_way))
        for _ in range(5):
            await asyncio.sleep(0)  # so that other tasks run
        under_way.discard(letter.sequence)

    letters = each(*(made_up(count, f"job-{count}", b"x" * 10) for count in range(1, 20)))
    await for_each(letters, work, key=job_of, window=window, window_bytes=window_bytes)
    assert (19, most) == (len(seen), max(seen))


@pytest.mark.parametrize(
    ("body", "headers", "most"),
    [(b"", {}, 200), (b"x" * 3_000_000, {}, 2), (b"x" * 9_000_000, {}, 1), (b"", {"Large": "x" * 60_000}, 139)],
    ids=["small", "large", "larger than the window", "large headers"],
)
async def test_a_replay_is_bounded_in_bytes(body, headers, most):
    """A replay has 8 MiB of dead letters under way at a time, headers included, or a single larger one."""
    under_way, seen = set(), []

    async def replay(letter: StoredDeadLetter) -> ReplayResult:
        under_way.add(letter.sequence)
        seen.append(len(under_way))
        for _ in range(5):
            await asyncio.sleep(0)  # so that other tasks run
        under_way.discard(letter.sequence)
        return ReplayResult(letter)

    letters = [made_up(count, f"job-{count}", body) for count in range(200)]
    letters = [dataclasses.replace(letter, headers={**letter.headers, **headers}) for letter in letters]
    summary, _ = await replayed_with(each(*letters), replay)
    assert (ReplaySummary(replayed=200), most) == (summary, max(seen))


async def test_job_that_outgrows_the_window():
    """Dead letters that wait for others of their job count as in progress, and are handled in order."""
    began, waited = [], 0

    async def letters() -> AsyncIterator[StoredDeadLetter]:
        nonlocal waited
        for sequence in range(1, 31):
            yield made_up(sequence, OTHER if sequence % 7 == 0 else JOB)
            waited = max(waited, sequence - len(began))

    async def work(letter: StoredDeadLetter) -> None:
        await asyncio.sleep(0)
        began.append(letter)

    await for_each(letters(), work, key=job_of, window=4)
    assert (30, True) == (len(began), waited <= 5)
    for job in (JOB, OTHER):
        order = [letter.sequence for letter in began if letter.job == job]
        assert sorted(order) == order


# With a server


async def test_all_kinds_at_a_time(dlq):
    """Dead letters of every kind are replayed concurrently: each has its own result, and delays no other."""
    limit = await dlq.max_size()
    kinds = {kind: new_job() for kind in ("plain", "updated since", "source gone", "stored before", "too large")}
    for count in range(10):
        for job in kinds.values():
            body = b"x" * limit if job == kinds["too large"] and not count else b"%d" % count
            await dlq.write(job, body)
    await publish_confirmed(dlq.client, dlq_subject("somebody"), b"by hand")
    await dlq.publish(kinds["updated since"], b"later")
    letters = await dlq.read()
    for letter in letters:
        if letter.job == kinds["source gone"]:
            await dlq.client.jetstream().delete_msg(STATUS_STREAM, letter.source_sequence)
    earlier = Replayer(dlq.client)
    before = [await earlier.publish(letter) for letter in letters if letter.job == kinds["stored before"]]
    summary, results = await dlq.replay()
    assert ReplaySummary(replayed=39, already_stored=10, problems=2) == summary
    assert [each.sequence for each in before] == [each.sequence for each in results if each.already_stored]
    assert [5, 51] == await dlq.sequences()
    assert [5, 51] == [sequence for sequence in await dlq.update_sequences() if sequence <= 51]
    replays = [(job, body) for job, body, _ in await dlq.updates(52)]
    for kind, job in kinds.items():
        expected = [b"%d" % count for count in range(kind == "too large", 10)]
        assert expected == [body for each, body in replays if each == job], kind


async def test_few_messages_are_looked_up_at_a_time(dlq, monkeypatch):
    """A replay looks only so many stored messages up at a time that messages of the largest size fit into memory."""
    assert dlq.client.max_payload == DEFAULT_MAX_PAYLOAD
    jobs, request, under_way, most = [new_job() for _ in range(40)], Pipeline.request, set(), [0]

    def counted(self, subject, *arguments, **options):
        waiting = request(self, subject, *arguments, **options)
        if ".STREAM.MSG.GET." in subject:
            under_way.add(waiting)
            waiting.add_done_callback(under_way.discard)
            most[0] = max(most[0], len(under_way))
        return waiting

    for job in jobs:
        await dlq.write(job)
        await dlq.publish(job)  # so the job's last update has to be looked up
    monkeypatch.setattr(Pipeline, "request", counted)
    summary, _ = await dlq.replay()
    assert (ReplaySummary(replayed=40), 8) == (summary, most[0])


async def test_interrupted_anywhere(dlq, monkeypatch):
    """Wherever a replay is interrupted, between any two requests, a repeat loses and doubles nothing."""
    request, left, interrupted = Pipeline.request, 0, asyncio.Event()

    def ask_while_some_are_left(pipeline: Pipeline, *asked: Any, **how: Any) -> asyncio.Future[Any]:
        nonlocal left
        left -= 1
        if left >= 0:
            return request(pipeline, *asked, **how)
        interrupted.set()
        return asyncio.get_running_loop().create_future()

    monkeypatch.setattr(Pipeline, "request", ask_while_some_are_left)
    for last in range(14):
        jobs = new_job(), new_job()
        for count in range(3):
            await dlq.write(jobs[count % 2], b"%d" % count)
        start, left = (await dlq.update_sequences())[-1] + 1, last
        interrupted.clear()
        replaying, waiting = (asyncio.create_task(each) for each in (dlq.replay(), interrupted.wait()))
        await asyncio.wait([replaying, waiting], return_when=asyncio.FIRST_COMPLETED)
        replaying.cancel()
        waiting.cancel()
        await asyncio.wait([replaying, waiting])
        sources = [sequence for sequence in await dlq.update_sequences() if start - 3 <= sequence < start]
        letters = await dlq.read()
        assert set(sources) <= {letter.source_sequence for letter in letters}, "a source outlived its dead letter"
        left = 10_000
        await dlq.replay()
        replays = [(job, body) for job, body, _ in await dlq.updates(start - 3)]
        assert sorted([(jobs[0], b"0"), (jobs[0], b"2"), (jobs[1], b"1")]) == sorted(replays), last
        assert [] == await dlq.sequences()
