"""require_server, requests to JetStream's API, and PubAcks."""

import asyncio
import contextlib
import json

import pytest
from tcp_server import tcp_server

from relay.contract.errors import BrokerUnavailable, JetStreamError, PublishUnconfirmed, UnsuitableServer
from relay.local.server import NatsServer
from relay.nats import err_codes
from relay.nats.connection import close
from relay.nats.jetstream import PubAck, api_request, publish_confirmed, require_server

STREAM = {"name": "KEPT", "subjects": ["kept.*"], "max_msgs": 2, "discard": "new"}


@pytest.fixture
async def kept(nc):
    """`nc`, with a stream on `kept.*` that takes two messages."""
    await api_request(nc, "$JS.API.STREAM.CREATE.KEPT", STREAM)
    return nc


@contextlib.asynccontextmanager
async def says(info):
    """A server that sends this INFO, answers PING, and nothing else."""

    async def talk(reader, writer):
        writer.write(b"INFO " + json.dumps(info).encode() + b"\r\n")
        while line := await reader.readline():
            if line == b"PING\r\n":
                writer.write(b"PONG\r\n")

    async with tcp_server(talk) as port:
        yield f"nats://127.0.0.1:{port}"


async def test_a_new_server_with_jetstream_is_suitable(nc):
    """The server that the tests run on passes the check."""
    assert None is await require_server(nc)


async def test_an_old_server_is_unsuitable(connect):
    """A server below the needed version is refused in one line with both versions."""
    async with says({"server_id": "OLD", "version": "2.10.26", "max_payload": 1048576, "proto": 1}) as url:
        client = await connect(url)
        with pytest.raises(UnsuitableServer) as caught:
            await require_server(client)
        expected = f"nats-server 2.10.26 at {url} is too old; the relay needs 2.11.0 or newer: upgrade the server"
        assert expected == str(caught.value)
        await close(client)


async def test_a_server_without_a_version_is_unsuitable(connect):
    """A server that does not report its version is refused."""
    async with says({"server_id": "ODD", "version": "devel", "max_payload": 1048576, "proto": 1}) as url:
        client = await connect(url)
        with pytest.raises(UnsuitableServer, match=r"says that its version is .*devel.*2.11.0 is needed"):
            await require_server(client)
        await close(client)


async def test_a_server_without_jetstream_is_unsuitable(connect):
    """A server without JetStream is refused, and the error says how to start it with JetStream."""
    async with NatsServer(jetstream=False) as server:
        client = await connect(server.url)
        with pytest.raises(UnsuitableServer, match=r"JetStream is not enabled .*nats-server -js"):
            await require_server(client)
        await close(client)


async def test_an_account_without_jetstream_is_unsuitable(connect):
    """An account that may not use JetStream is refused like a server without it."""
    accounts = 'accounts: {PLAIN: {users: [{user: "a", password: "b"}]}}'
    async with NatsServer(extra_config=accounts) as server:
        client = await connect(server.url, user="a", password="b")
        with pytest.raises(UnsuitableServer, match="or not for this account"):
            await require_server(client)
        await close(client)


async def test_an_api_error_keeps_its_code(nc):
    """JetStream's error answers become errors with the server's err_code."""
    with pytest.raises(JetStreamError) as caught:
        await api_request(nc, "$JS.API.STREAM.INFO.NOWHERE")
    assert (404, 10059) == (caught.value.code, caught.value.err_code)


async def test_a_silent_api_is_an_error(nc):
    """If no answer to a request comes in time, the error says what was asked and how long it waited."""
    await nc.subscribe("silent", cb=ignore)
    with pytest.raises(BrokerUnavailable, match=r"no answer to silent within 0\.05 s"):
        await api_request(nc, "silent", timeout_s=0.05)


async def ignore(_message) -> None:
    pass


async def test_a_stored_publish_is_acknowledged(kept):
    """The PubAck has the stream, the sequence, and whether the message was a duplicate."""
    headers = {"Nats-Msg-Id": "one"}
    assert PubAck("KEPT", 1, duplicate=False) == await publish_confirmed(kept, "kept.a", b"x", headers)
    assert PubAck("KEPT", 1, duplicate=True) == await publish_confirmed(kept, "kept.a", b"x", headers)


async def test_a_refused_publish_keeps_the_servers_code(kept):
    """A full stream is an error with its err_code, not taken for a PubAck."""
    await publish_confirmed(kept, "kept.a", b"")
    await publish_confirmed(kept, "kept.a", b"")
    with pytest.raises(JetStreamError) as caught:
        await publish_confirmed(kept, "kept.a", b"")
    assert 10077 == caught.value.err_code


async def test_a_publish_that_no_stream_captures_is_unconfirmed(nc):
    """A subject without a stream is an error that says so."""
    with pytest.raises(PublishUnconfirmed, match="publish on nowhere was not confirmed: no stream captures"):
        await publish_confirmed(nc, "nowhere", b"")


async def test_a_publish_without_an_answer_is_unconfirmed(nc):
    """No PubAck in time is an error that says how long it waited."""
    await nc.subscribe("silent", cb=ignore)
    with pytest.raises(PublishUnconfirmed, match=r"no PubAck within 0\.05 s"):
        await publish_confirmed(nc, "silent", b"", timeout_s=0.05)


@pytest.mark.parametrize("answer", [b"hello", b"{}", b"[]", b""])
async def test_an_answer_that_is_no_puback_is_unconfirmed(nc, answer):
    """An answer that does not come from a stream does not count as a PubAck."""

    async def respond(message):
        await message.respond(answer)

    await nc.subscribe("answered", cb=respond)
    with pytest.raises(PublishUnconfirmed):
        await publish_confirmed(nc, "answered", b"")


async def test_a_message_above_max_payload_does_not_cost_the_connection(kept):
    """Headers count: a message that is too large with them is refused here; the server would close the connection."""
    body = b"x" * (kept.max_payload - 100)
    with pytest.raises(JetStreamError) as caught:
        await publish_confirmed(kept, "kept.a", body, {"Relay-Error": "e" * 200})
    assert err_codes.TOO_LARGE == caught.value.err_code
    assert 1 == (await publish_confirmed(kept, "kept.a", body, {"Relay-Error": "e"})).sequence


async def test_the_size_of_a_message_is_counted_to_the_byte(kept):
    """A message of exactly max_payload bytes, including headers, is stored."""
    headers = {"Relay-Error": "\u00e9" * 10}
    body = b"x" * (kept.max_payload - len("NATS/1.0\r\nRelay-Error: \r\n\r\n") - 20)
    assert 1 == (await publish_confirmed(kept, "kept.a", body, headers)).sequence
    with pytest.raises(JetStreamError):
        await publish_confirmed(kept, "kept.a", body + b"x", headers)


async def test_without_a_connection_nothing_is_buffered(nats_server, connect):
    """While the server is away, requests fail at once and are not carried out later; then the client reconnects."""
    gone, back = asyncio.Event(), asyncio.Event()
    client = await connect(nats_server.url, on_disconnected=gone.set, on_reconnected=back.set)
    await api_request(client, "$JS.API.STREAM.CREATE.KEPT", STREAM)
    await nats_server.stop()
    await gone.wait()
    with pytest.raises(PublishUnconfirmed, match="no connection to NATS"):
        await publish_confirmed(client, "kept.a", b"")
    with pytest.raises(BrokerUnavailable, match=r"\$JS\.API\.INFO was not sent"):
        await api_request(client, "$JS.API.INFO")
    await nats_server.start()
    await back.wait()
    assert 1 == (await publish_confirmed(client, "kept.a", b"")).sequence
