"""Floor: JetStream publish -> the relay's own pull loop on all lanes -> ack. Nothing is decoded or forwarded."""

import asyncio
import os
from collections.abc import Sequence

from bench.arrivals import Arrivals, answer, run
from bench.load import sent_ns_of
from relay.contract.settings import NatsSettings
from relay.contract.subjects import STATUS_STREAM, lane_consumer
from relay.core.continuity import ConsumerState
from relay.core.memory import Memory
from relay.nats.connection import connect
from relay.path.consumer import PullConsumer
from relay.path.delivery import Delivery
from relay.topology.provision import LANE_CAPACITY

LANES = 4
PULL_EXPIRES_S = 5.0


async def main() -> None:
    arrivals = Arrivals()
    started = asyncio.Barrier(LANES + 1)

    def take(deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            sent_ns = sent_ns_of(delivery.body)
            if sent_ns is not None:
                arrivals.record(sent_ns)
        deliveries[0].ack(*deliveries[1:])

    nc = await connect(NatsSettings(urls=(os.environ["BENCH_NATS_URL"],)), name="bench-floor-pull")
    async with asyncio.TaskGroup() as group:
        pulling: list[asyncio.Task[None]] = []
        for lane in range(LANES):

            def on_start(_state: ConsumerState) -> None:
                group.create_task(started.wait())

            consumer = PullConsumer(
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
            pulling.append(group.create_task(consumer.run()))
        await started.wait()
        await answer(arrivals)
        for task in pulling:
            task.cancel()


if __name__ == "__main__":
    run(main)
