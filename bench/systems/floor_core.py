"""Floor: core NATS publish -> nats-py subscriber. Nothing is stored, nothing forwarded, nothing acknowledged."""

import os

import nats
from nats.aio.msg import Msg

from bench.arrivals import Arrivals, answer, run
from bench.load import sent_ns_of
from relay.contract.subjects import STATUS_SUBJECTS


async def main() -> None:
    arrivals = Arrivals()

    async def take(message: Msg) -> None:
        sent_ns = sent_ns_of(message.data)
        if sent_ns is not None:
            arrivals.record(sent_ns)

    client = await nats.connect(os.environ["BENCH_NATS_URL"])
    await client.subscribe(STATUS_SUBJECTS, cb=take)
    await client.flush()
    await answer(arrivals)


if __name__ == "__main__":
    run(main)
