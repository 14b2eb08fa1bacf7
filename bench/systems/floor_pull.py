"""Floor: JetStream publish -> the relay's own pull loop on all lanes -> ack. Nothing is decoded or forwarded."""

import asyncio
import os
from collections.abc import Callable, Sequence

from bench.arrivals import Arrivals, answer, run
from bench.load import sent_ns_of
from relay.contract.settings import NatsSettings
from relay.contract.subjects import STATUS_STREAM, lane_consumer
from relay.core.continuity import ConsumerState
from relay.core.memory import Memory
from relay.nats.connection import connect
from relay.nats.frames import FrameClient
from relay.path.consumer import PullConsumer
from relay.path.delivery import Delivery
from relay.topology.provision import LANE_CAPACITY

LANES = 4
PULL_EXPIRES_S = 5.0


async def pull(
    nc: FrameClient, take: Callable[[Sequence[Delivery]], None], group: asyncio.TaskGroup
) -> list[asyncio.Task[None]]:
    """Pull from all lanes in tasks of `group`. Returns them when every lane is being pulled from."""
    started = asyncio.Barrier(LANES + 1)

    def on_start(_state: ConsumerState) -> None:
        group.create_task(started.wait())

    consumers = [
        PullConsumer(
            nc,
            STATUS_STREAM,
            lane_consumer(lane),
            share=Memory().join(),
            batch=LANE_CAPACITY // 2,
            expires_s=PULL_EXPIRES_S,
            room=lambda: LANE_CAPACITY,
            on_deliveries=take,
            on_start=on_start,
        )
        for lane in range(LANES)
    ]
    pulling = [group.create_task(consumer.run()) for consumer in consumers]
    await started.wait()
    return pulling


async def main() -> None:
    arrivals = Arrivals()

    def take(deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            sent_ns = sent_ns_of(delivery.body)
            if sent_ns is not None:
                arrivals.record(sent_ns)
        deliveries[0].ack(*deliveries[1:])

    nc = await connect(NatsSettings(urls=(os.environ["BENCH_NATS_URL"],)), name="bench-floor-pull")
    async with asyncio.TaskGroup() as group:
        pulling = await pull(nc, take, group)
        await answer(arrivals)
        for task in pulling:
            task.cancel()


if __name__ == "__main__":
    run(main)
