import asyncio
import contextlib
import re
import ssl

import pytest
from nats.errors import NoServersError, StaleConnectionError
from structlog.testing import capture_logs
from tcp_server import tcp_server

from relay.contract.errors import BrokerUnavailable, ConfigurationError
from relay.contract.settings import NatsSettings
from relay.local.server import NatsServer
from relay.nats import connection
from relay.nats.frames import FrameClient
from relay.nats.jetstream import api_request

JWT = "-----BEGIN NATS USER JWT-----\ney.ey.x\n------END NATS USER JWT------\n"
SEED = f"-----BEGIN USER NKEY SEED-----\nSUA{'A' * 55}\n------END USER NKEY SEED------\n"
PASSWORD = 'authorization: {user: "relay", password: "right"}'


async def test_no_server_is_an_error_at_once(connect, unused_port):
    """If no server listens, the first connection fails after one try, with the address and the cause."""
    url = f"nats://127.0.0.1:{unused_port}"
    with pytest.raises(BrokerUnavailable, match=f"no NATS connection to {url}: .*Connect"):
        await connect(url)


async def test_silent_server(connect, monkeypatch):
    """If a server accepts the connection and says nothing, the error says for how long it was waited."""

    async def say_nothing(reader, _writer):
        await reader.read()

    monkeypatch.setitem(connection._TIMING, "connect_timeout", 0.2)
    async with tcp_server(say_nothing) as port:
        url = f"nats://127.0.0.1:{port}"
        with pytest.raises(
            BrokerUnavailable, match=rf"^no NATS connection to {url}: no answer within 0\.2 s; it may expect TLS"
        ):
            await connect(url)


async def test_not_connected(nc):
    """Without a connection, the error of a request names no server, and says that it was not sent."""
    await connection.close(nc)
    with pytest.raises(BrokerUnavailable, match=r"^no NATS connection: not connected, so \$JS\.API\.INFO was not sent"):
        await api_request(nc, "$JS.API.INFO")


async def test_one_server_of_several_is_enough(nats_server, unused_port):
    """The first connection tries each server once before it gives up."""
    away = f"nats://127.0.0.1:{unused_port}"
    settings = NatsSettings(urls=(away, nats_server.url))
    client = await connection.connect(settings, name="test")
    assert client.is_connected
    # The server that was away stays in the list.
    assert 2 == len(client.servers)
    await connection.close(client)


@pytest.mark.parametrize("away", [True, False], ids=["nobody answers", "connected"])
async def test_a_cancellation_is_not_lost_to_the_outcome(nats_server, monkeypatch, away):
    """A cancellation that nats-py loses, because it comes together with the outcome, ends `connect` all the same."""
    really_connect, clients, begun = FrameClient.connect, [], asyncio.Event()

    async def connect_and_lose_the_cancellation(client, **options):
        clients.append(client)
        begun.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        if away:
            raise NoServersError
        await really_connect(client, **options)

    monkeypatch.setattr(FrameClient, "connect", connect_and_lose_the_cancellation)
    connecting = asyncio.create_task(connection.connect(NatsSettings(urls=(nats_server.url,)), name="test"))
    await begun.wait()
    connecting.cancel()
    await asyncio.wait([connecting])
    assert (True, False) == (connecting.cancelled(), clients[0].is_connected)


@pytest.mark.parametrize("credentials", [{}, {"user": "relay", "password": "wrong"}, {"token": "wrong"}])
async def test_wrong_credentials_are_an_error_at_once(connect, credentials):
    """If a server rejects the credentials, this is reported, and not tried again."""
    async with NatsServer(extra_config=PASSWORD) as server:
        with pytest.raises(BrokerUnavailable, match="Authorization Violation"):
            await connect(server.url, **credentials)


async def test_right_credentials_are_let_in(connect):
    """User and password from the settings open a protected server."""
    async with NatsServer(extra_config=PASSWORD) as server:
        client = await connect(server.url, user="relay", password="right")
        assert client.is_connected
        await connection.close(client)


async def test_an_error_shows_no_password(unused_port):
    """Credentials in a URL do not appear in errors."""
    url = f"nats://relay:hidden@127.0.0.1:{unused_port}"
    with pytest.raises(BrokerUnavailable) as caught:
        await connection.connect(NatsSettings(urls=(url,)), name="test")
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        SEED,
        JWT,
        JWT + SEED.replace("SUA", "SAA"),
        JWT + SEED.replace("AA\n", "\n"),
        (JWT + SEED).replace("\n", "\r\n"),
    ],
    ids=["empty", "no JWT", "no seed", "seed of an account", "short seed", "line ends of Windows"],
)
async def test_a_file_without_credentials_is_a_configuration_error(connect, tmp_path, text):
    """A credentials file without a JWT or a user's seed is refused before it is used: nats-py would search it forever,
    or raise an unexpected exception.
    """
    creds = tmp_path / "relay.creds"
    creds.write_bytes(text.encode())
    with pytest.raises(ConfigurationError, match="RELAY_NATS_CREDS"):
        await connect("nats://127.0.0.1:1", creds=creds)


async def test_tls_with_a_known_authority_connects(connect, certificate):
    """If the CA file matches the server's certificate, the connection is made over TLS."""
    cert, key = certificate
    async with NatsServer(extra_config=f'tls {{cert_file: "{cert}", key_file: "{key}"}}') as server:
        client = await connect(server.url.replace("nats://", "tls://"), ca_file=cert)
        assert isinstance(client._transport._io_writer.get_extra_info("ssl_object"), ssl.SSLObject)
        await connection.close(client)


async def test_tls_with_an_unknown_authority_is_an_error(connect, certificate):
    """A server with a certificate of an unknown authority is refused, with the reason."""
    cert, key = certificate
    async with NatsServer(extra_config=f'tls {{cert_file: "{cert}", key_file: "{key}"}}') as server:
        with pytest.raises(BrokerUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await connect(server.url.replace("nats://", "tls://"))


async def test_a_wrong_ca_file_is_a_configuration_error(connect, tmp_path):
    """If the CA file is no PEM file, the error names its variable."""
    ca_file = tmp_path / "ca.pem"
    ca_file.write_text("not a certificate")
    with pytest.raises(ConfigurationError, match="RELAY_NATS_CA_FILE"):
        await connect("tls://127.0.0.1:1", ca_file=ca_file)


async def test_each_outage_is_logged_once(nats_server, connect):
    """In each outage the loss, each distinct problem and the return are logged once."""
    gone, back = asyncio.Event(), asyncio.Event()
    client = await connect(nats_server.url, on_disconnected=gone.set, on_reconnected=back.set)
    with capture_logs() as logs:
        for _ in range(2):
            gone.clear()
            back.clear()
            await nats_server.kill()
            await gone.wait()
            for _ in range(3):
                await client._error_cb(OSError("away"))
            await nats_server.start()
            await back.wait()
    assert 2 == [entry.get("error") for entry in logs].count("away")
    events = [entry["event"] for entry in logs]
    assert (2, 2) == (events.count("disconnected from NATS; reconnecting"), events.count("connected to NATS again"))


async def half_open(proxied, client) -> None:
    """Leave `client` with unsent data on a socket whose other side has stopped reading."""
    proxied.freeze()
    writer = client._transport._io_writer
    # More than the kernel's buffers hold, so that some of it stays unsent.
    writer.write(b"+OK\r\n" * 4_000_000)
    assert writer.transport.get_write_buffer_size() > 0


async def test_a_half_open_socket_does_not_stop_the_reconnect(proxied, connect):
    """With unsent data on a dead socket the client reconnects within seconds; nats-py alone waits for minutes."""
    back = asyncio.Event()
    client = await connect(proxied.url, on_reconnected=back.set)
    await half_open(proxied, client)
    # nats-py does this when its pings stay unanswered.
    await client._process_op_err(StaleConnectionError())
    async with asyncio.timeout(10):
        await back.wait()
    assert 2 == proxied.connections
    assert 0 == (await api_request(client, "$JS.API.INFO"))["streams"]


@pytest.mark.parametrize("state", ["connected", "reconnecting", "half-open", "closed"])
async def test_close_ends_in_every_state(nats_server, proxied, connect, state):
    """`close` returns with the client closed, whether the server is up, away or silent, or it was closed before."""
    gone = asyncio.Event()
    client = await connect(proxied.url, on_disconnected=gone.set)
    match state:
        case "reconnecting":
            await nats_server.stop()
            await gone.wait()
        case "half-open":
            await half_open(proxied, client)
        case "closed":
            await client.close()
    async with asyncio.timeout(8):
        await connection.close(client, timeout_s=0.5)
    assert client.is_closed


async def test_close_sends_what_is_buffered(proxied, connect):
    """What was published before `close` has reached the server when it returns."""
    passed: list[bytes] = []
    proxied.edit = lambda sent: passed.append(sent) or sent
    client = await connect(proxied.url)
    for number in range(4000):
        await client.publish("numbers", b"%01000d" % number)
    await connection.close(client)
    assert list(range(4000)) == [int(body) for body in re.findall(rb"\r\n(\d{1000})\r\n", b"".join(passed))]


async def test_being_thrown_out_is_waited_out(nats_server, connect):
    """If the server closes the connection because of a violation, the reason is logged, and the client reconnects."""
    back = asyncio.Event()
    client = await connect(nats_server.url, on_reconnected=back.set)
    with capture_logs() as logs:
        # nats-py does not count headers.
        await client.publish("x", b"x" * client.max_payload, headers={"a": "b"})
        async with asyncio.timeout(10):
            await back.wait()
    assert any(str(entry.get("error")).startswith("maximum payload violation: ") for entry in logs)
    assert 0 == (await api_request(client, "$JS.API.INFO"))["streams"]


async def test_no_exception_ends_the_reconnect(nats_server, connect, monkeypatch):
    """Whatever is raised while connecting, the client says so and tries again."""
    back, errors = asyncio.Event(), [RuntimeError("handle is closed"), UnicodeError("label too long"), KeyError("port")]
    client = await connect(nats_server.url, on_reconnected=back.set)
    for place in ("_connect_command", "_flush_pending"):
        method, left = getattr(client, place), list(errors)

        def fail(*arguments, method=method, left=left, **options):
            if left:
                raise left.pop()
            return method(*arguments, **options)

        monkeypatch.setattr(client, place, fail)
        back.clear()
        await client._process_op_err(StaleConnectionError())
        async with asyncio.timeout(10):
            await back.wait()
        assert [] == left
    assert {} == client.failures
    assert 0 == (await api_request(client, "$JS.API.INFO"))["streams"]
