"""How a user of taskiq publishes: the client sends a task, and taskiq-nats puts it on its own JetStream stream.

taskiq has its own message format (task, arguments, labels), so its workers could not read raw updates on
`job.status.<uuid>`; the producer sends a task ("kicks" it) instead. The task is called by name with `AsyncKicker`, as
taskiq's documentation shows it for a client that does not import the worker's code.

The broker is the pull-based one: with a push-based one the client would become a consumer, too, and take tasks.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from taskiq.kicker import AsyncKicker
from taskiq_nats import PullBasedJetStreamBroker

TASK: Final = "bench.forward"
BATCH: Final = 100
FETCH_TIMEOUT_S: Final = 5.0
"""Without a timeout (the default), a fetch waits until its batch is full, however long that takes."""

Publish = Callable[[str, dict[str, Any]], Awaitable[None]]


def broker_of(nats_url: str) -> PullBasedJetStreamBroker:
    """The broker of both sides, not yet started; the first one to start creates its stream and its consumer."""
    return PullBasedJetStreamBroker(
        nats_url,
        subject="bench_tasks",
        stream_name="bench_tasks",
        durable="bench_workers",
        pull_consume_batch=BATCH,
        pull_consume_timeout=FETCH_TIMEOUT_S,
    )


async def connect(nats_url: str) -> Publish:
    """A function that publishes one update: `await publish(uuid, payload)`.

    It returns with JetStream's PubAck, and raises taskiq.exceptions.SendTaskError if there is none.
    """
    broker = broker_of(nats_url)
    await broker.startup()
    kicker: AsyncKicker[Any, Any] = AsyncKicker(TASK, broker, labels={})

    async def publish(_uuid: str, payload: dict[str, Any]) -> None:
        await kicker.kiq(payload)

    return publish
