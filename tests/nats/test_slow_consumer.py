"""A server that drops a client because too much waits for it says so only in its own log; the client finds out."""

import asyncio

import pytest
from structlog.testing import capture_logs

from relay.local.server import NatsServer

MIB = 1024 * 1024


@pytest.fixture
async def nats_server():
    async with NatsServer(max_payload=2 * MIB, extra_config="max_pending: 4MB") as server:
        yield server


async def test_slow_consumer_is_named(nats_server, connect, nc):
    """After the connection is lost among large messages, and the same server runs on, the probable cause is logged."""
    again = asyncio.Event()
    with capture_logs() as logs:
        slow = await connect(nats_server.url, on_reconnected=again.set)
        await slow.listen("large", lambda *_: None)
        await slow.flush()
        slow._transport._io_reader._transport.pause_reading()
        for _ in range(30):
            await nc.publish("large", bytes(MIB))
        await nc.flush()
        assert "Slow Consumer Detected" in nats_server.log_tail
        slow._transport._io_reader._transport.resume_reading()
        await asyncio.wait_for(again.wait(), 20)
    assert slow.dropped_at_bytes > MIB
    assert [slow.dropped_at_bytes] == [line["message_bytes"] for line in logs if "slow consumer" in line["event"]]


async def test_server_that_ended_is_no_slow_consumer(nats_server, connect):
    """If the server was started again meanwhile, nothing is said of slow consumers, large messages or not."""
    again, received = asyncio.Event(), asyncio.Event()
    with capture_logs() as logs:
        client = await connect(nats_server.url, on_reconnected=again.set)
        await client.listen("large", lambda *_: received.set())
        await client.publish("large", bytes(MIB))
        await received.wait()
        await nats_server.restart()
        await asyncio.wait_for(again.wait(), 20)
    assert client.dropped_at_bytes is None
    assert [] == [line for line in logs if "slow consumer" in line["event"]]
