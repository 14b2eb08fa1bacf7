"""How dead letters flow through a replay: how many at a time, in which order, and what stops it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from relay_kit import new_job
from test_dead_letters import JOB, OTHER, all_of, bury, replay_selected, sequences, stored
from test_sources import stored_sequences

from relay.contract.errors import BrokerUnavailable
from relay.contract.subjects import STATUS_STREAM, api_stream_info, dlq_subject, status_subject
from relay.dead_letters import flow
from relay.dead_letters.replay import Account, Replayed, Republisher, replay_all
from relay.dead_letters.stored import StoredDeadLetter, moment_of
from relay.nats.connection import api_request, publish_confirmed
from relay.nats.pipeline import Pipeline


async def of(*letters: StoredDeadLetter) -> AsyncIterator[StoredDeadLetter]:
    for letter in letters:
        yield letter


def made_up(sequence: int, job: str = JOB, body: bytes = b"") -> StoredDeadLetter:
    return StoredDeadLetter(sequence, moment_of(sequence), {"Relay-Source-Subject": status_subject(job)}, body)


async def replayed_with(
    letters: AsyncIterator[StoredDeadLetter], one: Callable[[StoredDeadLetter], Any], **more: Any
) -> tuple[Account, list[int]]:
    account, done = Account(), []
    await replay_all(letters, one, account=account, on_replayed=lambda each: done.append(each.letter.sequence), **more)
    return account, done


# With replays that are made up


async def test_jobs_are_replayed_side_by_side_but_each_in_order():
    """Dead letters of different jobs are under way together, those of one job one after another."""
    both, began = asyncio.Barrier(2), []

    async def one(letter: StoredDeadLetter) -> Replayed:
        began.append(letter.sequence)
        if letter.sequence in (1, 2):
            await both.wait()  # comes to pass only if both are under way
            assert [1, 2] == began, "the third is of the first one's job"
        return Replayed(letter)

    account, done = await replayed_with(of(made_up(1), made_up(2, OTHER), made_up(3)), one)
    assert Account(replayed=3) == account
    assert 3 == done[-1]


async def test_failure_stops_what_is_behind():
    """After a failure nothing new is begun, above all not of its job; what is under way is finished."""
    other_began, failed = asyncio.Event(), asyncio.Event()

    async def one(letter: StoredDeadLetter) -> Replayed:
        if letter.sequence == 1:
            await other_began.wait()
            failed.set()
            raise BrokerUnavailable(["nats"], "gone")
        other_began.set()
        await failed.wait()
        return Replayed(letter)

    letters = of(made_up(1), made_up(2, OTHER), made_up(3), made_up(4, OTHER))
    account, done = await replayed_with(letters, one)
    assert "gone" in str(account.failure)
    assert [2] == done


@pytest.mark.parametrize(
    ("window", "window_bytes", "most"), [(3, 1000, 3), (100, 40, 4), (100, 9, 1)], ids=["count", "bytes", "too large"]
)
async def test_the_window_is_bounded(monkeypatch, window, window_bytes, most):
    """No more are under way at a time than the window holds, in number and in bytes; a larger one goes alone."""
    monkeypatch.setattr(flow, "WINDOW", window)
    monkeypatch.setattr(flow, "WINDOW_BYTES", window_bytes)
    under_way, seen = set(), []

    async def one(letter: StoredDeadLetter) -> Replayed:
        under_way.add(letter.sequence)
        seen.append(len(under_way))
        for _ in range(5):
            await asyncio.sleep(0)  # so that others get to run
        under_way.discard(letter.sequence)
        return Replayed(letter)

    letters = of(*(made_up(count, f"job-{count}", b"x" * 10) for count in range(1, 20)))
    account, _ = await replayed_with(letters, one)
    assert (19, most) == (account.replayed, max(seen))


async def test_order_of_a_job_that_outgrows_the_window(monkeypatch):
    """Those of a job that wait for their turn count as under way, and are worked on in their order."""
    monkeypatch.setattr(flow, "WINDOW", 4)
    began, waited = [], 0

    async def letters() -> AsyncIterator[StoredDeadLetter]:
        nonlocal waited
        for sequence in range(1, 31):
            yield made_up(sequence, OTHER if sequence % 7 == 0 else JOB)
            waited = max(waited, sequence - len(began))

    async def one(letter: StoredDeadLetter) -> Replayed:
        await asyncio.sleep(0)
        began.append(letter.sequence)
        return Replayed(letter)

    account, _ = await replayed_with(letters(), one)
    assert (30, True) == (account.replayed, waited <= 5)
    for job in (True, False):
        assert sorted(each for each in began if (each % 7 == 0) is job) == [
            each for each in began if (each % 7 == 0) is job
        ]


async def test_rate():
    """With a rate, so many are begun a second at most, evenly: none before it is due."""
    loop, began = asyncio.get_running_loop(), []

    async def one(letter: StoredDeadLetter) -> Replayed:
        began.append(loop.time() - start)
        return Replayed(letter)

    letters, start = of(*(made_up(count, f"job-{count}") for count in range(1, 6))), loop.time()
    account, _ = await replayed_with(letters, one, rate_per_s=50)
    early = [count for count, since_s in enumerate(began) if since_s < count / 50 - 0.005]
    assert (5, []) == (account.replayed, early)


async def test_error_while_reading():
    """If reading fails, what is under way is finished, and the account has the error."""
    began, failed = asyncio.Event(), asyncio.Event()

    async def broken() -> AsyncIterator[StoredDeadLetter]:
        yield made_up(1)
        await began.wait()
        failed.set()
        raise BrokerUnavailable(["nats"], "gone")

    async def one(letter: StoredDeadLetter) -> Replayed:
        began.set()
        await failed.wait()
        return Replayed(letter)

    account, _ = await replayed_with(broken(), one)
    assert (1, "gone") == (account.replayed, account.failure.cause)


# With replays that are none


async def test_more_than_the_window_holds(provisioned, monkeypatch):
    """Each job's updates are stored in their order when there are many times more than are under way at a time."""
    monkeypatch.setattr(flow, "WINDOW", 5)
    jobs = [new_job() for _ in range(3)]
    for count in range(60):
        await bury(provisioned, jobs[count % 7 % 3], b"%d" % count)
    assert Account(replayed=60) == (await replay_selected(provisioned))[0]
    replays = [(job, int(body)) for job, body, _ in await stored(provisioned, 61)]
    for number, job in enumerate(jobs):
        expected = [count for count in range(60) if count % 7 % 3 == number]
        assert expected == [count for each, count in replays if each == job]
    assert [] == await sequences(provisioned)


async def test_all_kinds_at_a_time(provisioned):
    """Dead letters of every kind go side by side: each kind's ending is its own, and holds up no other."""
    limit = (await api_request(provisioned, api_stream_info(STATUS_STREAM)))["config"]["max_msg_size"]
    kinds = {kind: new_job() for kind in ("plain", "updated since", "source gone", "stored before", "too large")}
    for count in range(10):
        for job in kinds.values():
            await bury(provisioned, job, b"x" * limit if job == kinds["too large"] and not count else b"%d" % count)
    await publish_confirmed(provisioned, dlq_subject("somebody"), b"by hand")
    await publish_confirmed(provisioned, status_subject(kinds["updated since"]), b"later")
    letters = await all_of(provisioned)
    for letter in letters:
        if letter.job == kinds["source gone"]:
            await provisioned.jetstream().delete_msg(STATUS_STREAM, int(letter.source_sequence))
    earlier = Republisher(provisioned)
    before = [await earlier.publish(letter) for letter in letters if letter.job == kinds["stored before"]]
    account, done = await replay_selected(provisioned)
    assert Account(replayed=39, were_there=10, unfit=2) == account
    assert [each.sequence for each in before] == [each.sequence for each in done if each.was_there]
    assert [5, 51] == await sequences(provisioned)
    assert [5, 51] == [sequence for sequence in await stored_sequences(provisioned) if sequence <= 51]
    replays = [(job, body) for job, body, _ in await stored(provisioned, 52)]
    for kind, job in kinds.items():
        expected = [b"%d" % count for count in range(kind == "too large", 10)]
        assert expected == [body for each, body in replays if each == job], kind


async def test_interrupted_anywhere(provisioned, monkeypatch):
    """Whichever request of a replay is the last that is sent, one that is run again loses and doubles nothing."""
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
            await bury(provisioned, jobs[count % 2], b"%d" % count)
        start, left = (await stored_sequences(provisioned))[-1] + 1, last
        interrupted.clear()
        replaying, waiting = (asyncio.create_task(each) for each in (replay_selected(provisioned), interrupted.wait()))
        await asyncio.wait([replaying, waiting], return_when=asyncio.FIRST_COMPLETED)
        replaying.cancel()
        waiting.cancel()
        await asyncio.wait([replaying, waiting])
        sources = [sequence for sequence in await stored_sequences(provisioned) if start - 3 <= sequence < start]
        letters = await all_of(provisioned)
        assert set(sources) <= {int(letter.source_sequence) for letter in letters}, "a source outlived its dead letter"
        left = 10_000
        await replay_selected(provisioned)
        replays = [(job, body) for job, body, _ in await stored(provisioned, start - 3)]
        assert sorted([(jobs[0], b"0"), (jobs[0], b"2"), (jobs[1], b"1")]) == sorted(replays), last
        assert [] == await sequences(provisioned)
