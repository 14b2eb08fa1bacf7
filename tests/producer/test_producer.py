"""StatusPublisher: acknowledged updates are stored once and in order, whatever server, loop and caller do."""

import asyncio
import time
from functools import partial

import pytest
import uvloop
from producer_kit import numbered, stored, update
from relay_kit import new_job
from structlog.testing import capture_logs

from relay.contract.model import JobStatus, JobStatusUpdate
from relay.contract.subjects import STATUS_STREAM, lane_of, stored_subject
from relay.producer import Limits, PubAck, PublisherClosed, PublishHeldBack, StatusPublisher, message_id

A, B = new_job(), new_job()


async def test_publish(publisher, provisioned):
    """An update is stored in its lane with its message id, and a repeat is recognised."""
    pub_acks = [await publisher.publish(update(A)) for _ in range(2)]
    assert [PubAck(STATUS_STREAM, 1, duplicate=False), PubAck(STATUS_STREAM, 1, duplicate=True)] == pub_acks
    message = await provisioned.jetstream().get_msg(STATUS_STREAM, 1)
    assert stored_subject(lane_of(A, 4), A) == message.subject
    assert {"Nats-Msg-Id": message_id(update(A))} == message.headers
    assert update(A) == JobStatusUpdate.model_validate_json(message.data)


async def test_order_of_a_job(nats_server, publisher):
    """Updates of many jobs that are submitted at once are stored, each job's in the order of the calls."""
    jobs = {job: numbered(job, 20) for job in [new_job() for _ in range(10)]}
    in_turns = [each for updates in zip(*jobs.values(), strict=True) for each in updates]
    await asyncio.gather(*map(publisher.submit, in_turns))
    assert jobs == await stored(nats_server)


async def test_jobs_do_not_wait_for_each_other(played):
    """A job's second update is sent after the PubAck of its first; other jobs do not wait."""
    waiting = [played.publisher.submit(each) for each in (update(A), update(A, "completed"), update(B))]
    first, other = await played.hear(), await played.hear()
    assert {f"job.status.{A}", f"job.status.{B}"} == {first.subject, other.subject}
    await played.acknowledge(other)
    await played.acknowledge(first)
    second = await played.hear()
    assert JobStatus.COMPLETED == JobStatusUpdate.model_validate_json(second.data).status
    await played.acknowledge(second, 2)
    assert 2 == (await waiting[1]).sequence


@pytest.mark.usefixtures("provisioned")
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
async def test_server_killed_in_mid_publish(nats_server, run):
    """On both event loops, updates that are published while the server dies and restarts are stored once, in order."""
    jobs = {job: numbered(job, 100) for job in [new_job() for _ in range(5)]}
    loop, published = asyncio.get_running_loop(), asyncio.Semaphore(0)

    async def publish_in_order(publisher: StatusPublisher, updates: list[JobStatusUpdate]) -> None:
        for each in updates:
            await publisher.publish(each)
            loop.call_soon_threadsafe(published.release)

    async def publish_all() -> None:
        async with StatusPublisher(nats_server.url) as publisher:
            await asyncio.gather(*(publish_in_order(publisher, updates) for updates in jobs.values()))

    publishing = asyncio.create_task(asyncio.to_thread(run, publish_all()))
    for _ in range(2):
        for _ in range(100):
            await published.acquire()
        await nats_server.kill()
        await nats_server.start()
    await publishing
    assert jobs == await stored(nats_server)


async def test_lost_connection_is_not_waited_out(played, proxied):
    """If the connection is lost before the PubAck, the update is sent again as soon as there is a new connection."""
    async with StatusPublisher(proxied.url) as publisher:
        waiting = publisher.submit(update(A))
        first = await played.hear()
        began_s = time.monotonic()
        for task in list(proxied._connections):
            task.cancel()
        again = await played.hear()
        assert time.monotonic() - began_s < 3  # less than the 5 s that a try waits for its PubAck
        assert (first.data, first.headers) == (again.data, again.headers)
        await played.acknowledge(again)
        assert 1 == (await waiting).sequence


async def test_thrown_out(publisher):
    """If the server ends the connection with an error, such as expired credentials, the next publish waits for it."""
    await publisher.publish(update(A))
    await publisher._queue._connection._client._process_err("'user authentication expired'")
    assert 2 == (await publisher.publish(update(B))).sequence


async def test_close_publishes_what_waits(nats_server, publisher):
    """What was submitted before `close` is stored when it returns; after that, nothing is accepted."""
    waiting = [publisher.submit(each) for each in numbered(A, 50)]
    await publisher.close()
    await publisher.close()
    assert {A: numbered(A, 50)} == await stored(nats_server)
    assert list(range(1, 51)) == [future.result().sequence for future in waiting]
    unused = StatusPublisher(nats_server.url)
    await unused.close()
    for closed in (publisher, unused):
        with pytest.raises(PublisherClosed, match="make a new one"):
            await closed.publish(update(A))


@pytest.mark.parametrize("broken", [False, True])
async def test_close_says_what_was_not_published(nats_server, played, broken):
    """`close` ends at its time limit with an error that names what had no PubAck; so does each publish that waits.

    An exception from inside `async with` is raised unchanged; what was not published is logged then.
    """
    waiting = []

    async def leave() -> None:
        async with StatusPublisher(nats_server.url, limits=Limits(close_timeout_s=0.05)) as publisher:
            waiting.extend(publisher.submit(each) for each in (update(A), update(B), update(A, "completed")))
            await played.hear()
            if broken:
                raise ZeroDivisionError

    with capture_logs() as logs, pytest.raises(ZeroDivisionError if broken else PublisherClosed) as caught:
        await leave()
    if broken:
        assert 1 == len([entry for entry in logs if entry["event"].startswith("the publisher was closed before")])
    else:
        names = (f"accepted of job {A}", f"completed of job {A}", f"accepted of job {B}")
        assert names == caught.value.unpublished
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [PublisherClosed, PublisherClosed, PublishHeldBack] == [type(outcome) for outcome in outcomes]


async def test_close_while_reconnecting(nats_server, publisher):
    """`close` ends a reconnect even if its first cancellation is lost, as by `wait_for` in Python 3.11."""
    await publisher.publish(update(A))
    client, trying = publisher._queue._connection._client, asyncio.Event()

    async def connect(*_: object, **__: object) -> None:
        trying.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ConnectionRefusedError from None

    client._transport.connect = connect
    await nats_server.stop()
    await trying.wait()
    await publisher.close()
    assert client._reconnection_task.done()


async def test_cancelled_publish(played):
    """Cancelling a publish does not stop the update: it is published in its turn, and a failure is logged."""
    first = asyncio.create_task(played.publisher.publish(update(A)))
    heard = await played.hear()
    second = asyncio.create_task(played.publisher.publish(update(A, "completed"), timeout_s=0.3))
    await asyncio.sleep(0)  # let it start
    third = played.publisher.submit(update(A, "failed"))
    for task in (first, second):
        task.cancel()
    await asyncio.wait([first, second])
    await played.acknowledge(heard)
    assert JobStatus.COMPLETED == JobStatusUpdate.model_validate_json((await played.hear()).data).status
    with capture_logs() as logs, pytest.raises(PublishHeldBack):
        await third
    assert (True, True) == (first.cancelled(), second.cancelled())
    unheard = [f"{status} of job {A}" for status in ("completed", "failed")]
    assert unheard == [entry["update"] for entry in logs if "nobody waits" in entry["event"]]


@pytest.mark.usefixtures("provisioned")
async def test_loop_that_ended_badly(nats_server):
    """After an event loop that ended without `close`, the publisher works in the next one."""
    publisher = StatusPublisher(nats_server.url)

    async def break_off() -> None:
        await publisher.publish(update(A))
        publisher.submit(update(A, "completed"))
        raise ZeroDivisionError

    async def go_on() -> int:
        async with publisher:
            return (await publisher.publish(update(B))).sequence

    with pytest.raises(ZeroDivisionError):
        await asyncio.to_thread(asyncio.run, break_off())
    sequence = await asyncio.to_thread(asyncio.run, go_on())
    assert [update(B)] == (await stored(nats_server))[B]
    assert sequence in (2, 3)  # `completed` may have been stored


@pytest.mark.usefixtures("provisioned")
@pytest.mark.parametrize("here", [True, False])
async def test_many_loops(nats_server, here):
    """One publisher serves many event loops in many threads, wherever it was made; `close` ends it for all."""
    make = partial(StatusPublisher, nats_server.url)
    publisher = make() if here else await asyncio.to_thread(make)
    jobs = {job: numbered(job, 20) for job in [new_job() for _ in range(6)]}

    async def publish(updates: list[JobStatusUpdate]) -> None:
        await publisher.check()
        for each in updates[:10]:
            await publisher.publish(each)
        for each in updates[10:]:
            publisher.submit(each)
        await publisher.flush()

    first, *others = jobs.values()
    await asyncio.gather(publish(first), *(asyncio.to_thread(asyncio.run, publish(updates)) for updates in others))
    assert jobs == await stored(nats_server)
    await asyncio.to_thread(asyncio.run, publisher.close())
    for call in (publisher.publish(update(B)), asyncio.to_thread(asyncio.run, publisher.publish(update(B)))):
        with pytest.raises(PublisherClosed):
            await call
