"""What the console may do and hear, asked of a real nats-server."""

import asyncio
from collections.abc import AsyncIterator
from unittest.mock import AsyncMock

import pytest
import pytest_asyncio
from nats.aio.msg import Msg
from polling import until

from relay.console import rights, watching
from relay.console.rights import Rights
from relay.console.tail import Filter, Tail
from relay.console.watching import Watching
from relay.contract.errors import BrokerUnavailable, ConfigurationError
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
    """While JetStream gives no answer, or is not there, nobody knows what the user may do: the console asks again."""
    monkeypatch.setattr(rights, "_TIMEOUT_S", 0.05)
    monkeypatch.setattr(watching, "check_broker", AsyncMock(return_value=[]))
    monkeypatch.setattr(watching, "_ASK_AGAIN_S", 0.01)
    mute = await client.subscribe("$JS.API.>")
    looking = Watching(settings)
    running = asyncio.create_task(looking.run())
    trouble = await until(lambda: looking.view.trouble)
    assert looking.client is None
    assert "connected to NATS, but no answer" in trouble
    await mute.unsubscribe()
    await until(lambda: "JetStream is not enabled" in looking.view.trouble)
    await client.subscribe("$JS.API.>", cb=refuse)
    await until(lambda: looking.client)
    assert Rights(act=True, scan=True, hear=HEARD) == looking.rights
    running.cancel()
    await asyncio.wait([running])


async def refuse(request: Msg) -> None:
    """As JetStream answers a request that cannot be read."""
    if request.reply:
        await request.respond(b'{"error": {"code": 400, "err_code": 10003, "description": "bad request"}}')


async def test_a_certificate_that_is_just_being_renewed(settings, monkeypatch):
    """A file that cannot be used ends the console at its start; later it may be just about to be written."""
    unusable = ConfigurationError("RELAY_NATS_CA_FILE", "ca.crt", "the path of a certificate")
    failures = [BrokerUnavailable([], "away"), unusable]

    async def failing_first(*arguments, **options) -> FrameClient:
        if failures:
            raise failures.pop(0)
        return await connect(*arguments, **options)

    monkeypatch.setattr(watching, "connect", failing_first)
    monkeypatch.setattr(watching, "_ASK_AGAIN_S", 0.01)
    looking = Watching(settings)
    running = asyncio.create_task(looking.run())
    await until(lambda: "JetStream is not enabled" in (looking.view.trouble or ""))
    running.cancel()
    await asyncio.wait([running])
    failures.append(unusable)
    with pytest.raises(ConfigurationError):
        await Watching(settings).run()


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
