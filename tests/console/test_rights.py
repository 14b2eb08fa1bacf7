"""What the console may do and hear, asked of a real nats-server."""

import asyncio
from collections.abc import AsyncIterator

import pytest_asyncio
from polling import until

from relay.console import rights, watching
from relay.console.rights import Rights
from relay.console.tail import Filter, Tail
from relay.console.watching import Watching
from relay.contract.settings import Settings
from relay.contract.subjects import DLQ_SUBJECTS, RECEIPT_SUBJECTS, STATUS_SUBJECTS, status_subject
from relay.local.server import NatsServer
from relay.nats.connection import close, connect
from relay.nats.frames import FrameClient

JOB = "00000000-0000-4000-8000-00000000000a"
HEARD = frozenset({STATUS_SUBJECTS, DLQ_SUBJECTS, RECEIPT_SUBJECTS})


@pytest_asyncio.fixture
async def settings() -> AsyncIterator[Settings]:
    """Of a server without JetStream, whose API a test can play."""
    async with NatsServer(jetstream=False) as server:
        nats = Settings().nats.model_copy(update={"urls": (server.url,)})
        yield Settings().model_copy(update={"nats": nats})


@pytest_asyncio.fixture
async def client(settings) -> AsyncIterator[FrameClient]:
    client = await connect(settings.nats, name="test")
    yield client
    await close(client)


async def test_jetstream_that_does_not_answer_yet(settings, client, monkeypatch):
    """While JetStream gives no answer nobody knows what the user may do: the console says so, and asks again."""
    monkeypatch.setattr(rights, "_TIMEOUT_S", 0.05)
    monkeypatch.setattr(watching, "_ASK_AGAIN_S", 0.01)
    mute = await client.subscribe("$JS.API.>")
    looking = Watching(settings)
    running = asyncio.create_task(looking.run())
    trouble = await until(lambda: looking.view.trouble)
    assert looking.client is None
    assert "no answer in time" in trouble
    await mute.unsubscribe()
    await until(lambda: looking.client)
    assert Rights(hear=HEARD) == looking.rights
    running.cancel()
    await asyncio.wait([running])


async def test_hears_updates_while_a_page_watches(client):
    """Updates are heard while at least one page watches, however often pages connect and go away."""
    tail = Tail()
    await tail.start(client, Rights(hear=HEARD))

    async def heard() -> int:
        before = tail.number
        await client.publish(status_subject(JOB), b"{}")
        await client.flush()  # what was published has come back before the answer to this
        return len(list(tail.since(before, Filter())))

    assert 0 == await heard()
    for page in ("a", "a", "b"):
        await tail.watch(page)
    await tail.leave("a")
    assert 1 == await heard()
    await tail.leave("b")
    await tail.leave("b")
    assert 0 == await heard()
    await tail.watch("c")
    assert 1 == await heard()
