"""FastStream: a NATS JetStream pull subscriber that forwards over one WebSocket and acknowledges after the reply.

Built as its page "Pull Subscriber" recommends for a large flow: `PullSub` with a batch size, on the stream that is
there already (`JStream(declare=False)`) and a durable consumer of its own, with the handler called per message.

Tuned with what it offers: `max_workers`, so that handlers run concurrently and the next fetch begins before
the last handler has ended; no dependency injection and no validation (`apply_types=False`); a decoder that passes the
body on as it came; no log line per message; uvloop, as `faststream run` would. The handlers share one connection, on
which up to `WINDOW` updates wait for their replies at once.

`PullSub(batch=True)`, one call of the handler for a list, costs less CPU time per update, but is no choice here: it
waits until the batch is full or its timeout is over. With 5 s (the default) that is the latency; with 10 or 50 ms some
updates came only after a redelivery, 30 s later.
"""

import asyncio
import json
import os
import signal
from typing import Final

import uvloop
from faststream.middlewares import AckPolicy
from faststream.nats import JStream, NatsBroker, NatsMessage, PullSub

from bench.systems.forwarding import WINDOW, Facilitator, connected

BATCH: Final = 100
"""The most that one request to NATS asks for: of 1, 10, 100 and 256, measured in turn, the one that carried most."""


async def undecoded(message: NatsMessage) -> bytes:
    return message.body


def subscribing_broker(nats_url: str, facilitator: Facilitator) -> NatsBroker:
    """The broker with its one subscriber, not started yet."""
    broker = NatsBroker(nats_url, apply_types=False, logger=None)
    subscriber = broker.subscriber(
        "job.status.*.*",
        stream=JStream("JOB_STATUS", declare=False),
        durable="faststream",
        pull_sub=PullSub(batch_size=BATCH),
        max_workers=WINDOW,
        decoder=undecoded,
        ack_policy=AckPolicy.NACK_ON_ERROR,
    )
    subscriber(facilitator.forward)
    return broker


async def main() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with connected() as facilitator, subscribing_broker(os.environ["BENCH_NATS_URL"], facilitator) as broker:
        await broker.start()
        print(json.dumps({"ready": True}), flush=True)
        await stop.wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
