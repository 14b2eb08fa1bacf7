"""Floor: core NATS publish -> nats-py subscriber. Nothing is stored, nothing forwarded, nothing acknowledged.

    python -m bench.systems.floor_core [RECORDED_BYTES]

With RECORDED_BYTES it records only updates of at most so many bytes.
"""

import os
import sys

import nats
from nats.aio.msg import Msg

from bench.arrivals import Arrivals, answer, run
from bench.load import sent_ns_of
from relay.contract.subjects import STATUS_SUBJECTS


async def main() -> None:
    arrivals = Arrivals()
    recorded_bytes = int(sys.argv[1]) if len(sys.argv) > 1 else sys.maxsize

    async def take(message: Msg) -> None:
        sent_ns = sent_ns_of(message.data)
        if sent_ns is not None and len(message.data) <= recorded_bytes:
            arrivals.record(sent_ns)

    client = await nats.connect(os.environ["BENCH_NATS_URL"])
    await client.subscribe(STATUS_SUBJECTS, cb=take)
    await client.flush()
    await answer(arrivals)


if __name__ == "__main__":
    run(main)
