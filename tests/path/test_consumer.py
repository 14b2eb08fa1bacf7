"""The pull loop and its deliveries, where other tests do not show their behaviour."""

import asyncio
import time
from collections.abc import Callable, Sequence

import pytest
from relay_kit import Scene, new_job, update

from relay.contract.subjects import STATUS_STREAM, api_pull, lane_consumer, status_subject
from relay.core.memory import Memory, Share
from relay.nats.frames import FrameClient
from relay.nats.jetstream import publish_confirmed
from relay.path.consumer import PullConsumer
from relay.path.delivery import Delivery

TIMEOUT_S = 10
UPDATES = 6


def pulls(
    client: FrameClient, lane: int, share: Share, take: Callable[[Sequence[Delivery]], None], expires_s: float = 5.0
) -> PullConsumer:
    return PullConsumer(
        client,
        STATUS_STREAM,
        lane_consumer(lane),
        batch=10,
        expires_s=expires_s,
        share=share,
        room=lambda: 10,
        on_deliveries=take,
        on_start=lambda _: None,
    )


async def test_a_lane_in_trouble_keeps_nothing_from_the_others(provisioned):
    """A lane whose consumer has vanished does not keep others from asking for an update of any size."""
    memory = Memory()
    share = memory.join()
    share.go_alone()
    freed = asyncio.Event()
    other = memory.join()
    memory.waiting[other] = None
    other.on_room = freed.set
    running = asyncio.create_task(pulls(provisioned, 99, share, lambda _: None).run())
    async with asyncio.timeout(TIMEOUT_S):
        await freed.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert (set(), 0) == (memory.alone, share.on_request_bytes)


async def test_who_takes_deliveries_fails(provisioned):
    """An exception in the callback for deliveries ends the pull loop; ignored, it would leave an update untouched."""

    def fail(deliveries: Sequence[Delivery]) -> None:
        raise RuntimeError(deliveries[0].subject)

    consumer = pulls(provisioned, 0, Memory().join(), fail)
    job = new_job(lane=0)
    await publish_confirmed(provisioned, status_subject(job), update(job))
    with pytest.raises(RuntimeError, match=job):
        async with asyncio.timeout(TIMEOUT_S):
            await consumer.run()


async def test_the_clock_of_the_server_was_set_back(nats_server, facilitator):
    """The server redelivers by its wall clock, so after an hour back what a dead worker had at hand comes an hour late.
    The relay asks for it, and a newer update of its job waits. Here it is a delay of an hour that makes it late.
    """
    async with Scene(nats_server, facilitator, ACK_WAIT="0.2") as scene:
        job = new_job(lane=0)
        await scene.publish(job)
        dead = await scene.nc.subscribe(inbox := scene.nc.new_inbox())
        await scene.nc.publish(api_pull(STATUS_STREAM, lane_consumer(0)), b'{"batch": 1}', inbox)
        had = await dead.next_msg(timeout=TIMEOUT_S)
        await scene.nc.publish(had.reply, b'-NAK {"delay": %d}' % 3_600_000_000_000)
        await scene.publish(job, "completed", {})
        async with scene.relay():
            assert [] == await scene.broken_promises()


async def test_the_limit_of_bytes_is_used_up_exactly(provisioned):
    """Then the server ends a request without a status, and the rest is requested anew all the same."""
    share = Memory(ack_wait_s=0.016).join()
    sizes: list[int] = []
    complete = asyncio.Event()

    def take(deliveries: Sequence[Delivery]) -> None:
        sizes.extend(delivery.size_bytes for delivery in deliveries)
        if len(sizes) == UPDATES:
            complete.set()

    job = new_job(lane=0)
    plain = update(job, metadata={"filler": ""})
    around = len(f"job.status.0.{job}$JS.ACK.{STATUS_STREAM}.{lane_consumer(0)}.1.1.1.{time.time_ns()}.1")
    filler = "." * (share.request_bytes // 2 - len(plain) - around)
    for _ in range(UPDATES):
        await publish_confirmed(provisioned, status_subject(job), update(job, metadata={"filler": filler}))
    running = asyncio.create_task(pulls(provisioned, 0, share, take, expires_s=30.0).run())
    async with asyncio.timeout(TIMEOUT_S):
        await complete.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert [share.request_bytes // 2] * UPDATES == sizes


def test_what_is_kept_while_nats_is_away():
    """Acknowledgements are sent after a reconnect; `+WPI` is not, because it would come too late."""
    client = FrameClient()  # never connected, which is the same as after a loss
    client._max_pending_size = 100
    delivery = Delivery(client, b"job.status.0.x", b"$JS.ACK.s.c.1.2.3.4.0", b"", b"")
    delivery.in_progress()
    delivery.ack()
    assert [b"PUB $JS.ACK.s.c.1.2.3.4.0 4\r\n+ACK\r\n"] == client._pending
