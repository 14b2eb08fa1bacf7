"""What nats-server says before it ends a connection reaches whoever connects, although a write fails before it is read.

A server that has no room for another connection says so before it has heard anything, and hangs up.
"""

import asyncio
import contextlib
import gc
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from authority import Authority
from nats.aio.transport import TcpTransport
from tcp_server import reserved_port, tcp_server

from relay.contract.errors import BrokerUnavailable
from relay.contract.settings import NatsSettings
from relay.local.server import NatsServer
from relay.nats.connection import close, connect
from relay.nats.frames import FrameClient
from relay.nats.server_errors import explained

FULL = "maximum connections exceeded: the server has as many connections as its max_connections allows; raise it"
ACCOUNT_FULL = "maximum account active connections exceeded: the NATS account has as many connections as its limits"
WRONG_PORT = "attempted to connect to route port: this is the server's port for its cluster; use the port for clients"
IN_CLEAR_TEXT = "ends the TLS handshake in clear text, as it does when it has as many connections as its max_conn"
HANGS_UP = "hangs up as we sign in, and the reason did not reach us: the server's log has it"
LOST = {"tls": IN_CLEAR_TEXT, "websocket": HANGS_UP}
"""What is said if the reason comes in the middle of the TLS handshake, or the end of the WebSocket before it."""


@pytest.fixture
def port() -> Iterator[int]:
    """For a server that listens on another port as well."""
    with reserved_port() as port:
        yield port


async def connected(settings: NatsSettings) -> FrameClient:
    """The only connection that there may be, as soon as the server has forgotten the one that looked for it."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(BrokerUnavailable):
                return await connect(settings, name="holder")


@pytest.mark.filterwarnings("ignore:parameter 'timeout' of type 'float' is deprecated")  # in what nats-py calls
@pytest.mark.parametrize("way", ["plain", "tls", "websocket", "account", "port of the cluster"])
async def test_the_reason_of_the_server(certificate, port, way):
    """The error names it each time, with what it means and what to do; no library complains."""
    (cert, key), complaints = certificate, list[Any]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    tls = f'tls {{cert_file: "{cert}", key_file: "{key}"'
    config, url, options, told = {
        "plain": ("max_connections: 1", None, {}, FULL),
        "tls": (f"max_connections: 1\n{tls}}}", None, {"ca_file": cert}, FULL),
        "websocket": (
            f'max_connections: 1\nwebsocket {{listen: "127.0.0.1:{port}", no_tls: true}}',
            f"ws://127.0.0.1:{port}",
            {},
            FULL,
        ),
        "account": (
            "accounts {A {users: [{user: a, password: a}], limits: {max_connections: 1}}}",
            None,
            {"user": "a", "password": "a"},
            ACCOUNT_FULL,
        ),
        "port of the cluster": (
            f'cluster {{name: c, listen: "127.0.0.1:{port}"}}',
            f"nats://127.0.0.1:{port}",
            {},
            WRONG_PORT,
        ),
    }[way]
    async with NatsServer(extra_config=config, jetstream=False) as server:
        holder = None
        if way in {"plain", "tls", "websocket", "account"}:
            holder = await connected(NatsSettings(urls=(server.url,), **options))
        settings = NatsSettings(urls=(url or server.url,), **options)
        for _ in range(5):
            with pytest.raises(BrokerUnavailable) as raised:
                await connect(settings, name="test")
            assert told in str(raised.value) or (way in LOST and LOST[way] in str(raised.value))
        gc.collect()
        await asyncio.sleep(0)  # what is collected complains in the loop
        if holder is not None:
            await close(holder)
    assert [] == complaints


async def test_the_reason_comes_as_we_sign_in(monkeypatch):
    """A server that hangs up in the moment of the client's first write is still heard."""
    listener, hung_up, write = socket.create_server(("127.0.0.1", 0)), threading.Event(), TcpTransport.write

    def refuse() -> None:
        connection, _ = listener.accept()
        connection.sendall(b'INFO {"server_id":"x","version":"2.12.0","max_payload":1048576}\r\n')
        connection.recv(1, socket.MSG_PEEK)
        connection.sendall(b"-ERR 'maximum connections exceeded'\r\n")
        connection.close()  # it has not read everything, so it resets the connection
        hung_up.set()

    def write_and_wait(transport, payload):
        write(transport, payload)
        hung_up.wait(20)

    monkeypatch.setattr(TcpTransport, "write", write_and_wait)
    with listener, ThreadPoolExecutor() as threads:
        threads.submit(refuse)
        with pytest.raises(BrokerUnavailable, match=FULL):
            await connect(NatsSettings(urls=(f"nats://127.0.0.1:{listener.getsockname()[1]}",)), name="test")


async def test_no_reason():
    """A server that hangs up at the sign-in, without a word, is not taken for one that lets us in."""

    async def hang_up(reader, writer):
        writer.write(b'INFO {"server_id":"x","version":"2.12.0","max_payload":1048576}\r\n')
        await reader.readuntil(b"PING\r\n")

    async with tcp_server(hang_up) as port:
        with pytest.raises(BrokerUnavailable, match=HANGS_UP):
            await connect(NatsSettings(urls=(f"nats://127.0.0.1:{port}",)), name="test")


async def test_the_reason_in_the_middle_of_the_handshake():
    """If the reason comes instead of the server's part of the handshake, the error says what that means."""

    async def refuse(reader, writer):
        writer.write(b'INFO {"server_id":"x","version":"2.12.0","max_payload":1048576,"tls_required":true}\r\n')
        await reader.read(1)
        writer.write(b"-ERR 'maximum connections exceeded'\r\n")
        await writer.drain()

    async with tcp_server(refuse) as port:
        with pytest.raises(BrokerUnavailable, match=IN_CLEAR_TEXT):
            await connect(NatsSettings(urls=(f"tls://127.0.0.1:{port}",)), name="test")


@pytest.mark.parametrize("shown", ["none", "expired", "of another authority"])
async def test_a_refused_certificate(tmp_path, shown):
    """Each time, also when the alert of the server is lost, the error says what a refusal of the certificate means."""
    ours, others = Authority(tmp_path, "ours"), Authority(tmp_path, "others")
    cert, key, server_cert, server_key = (tmp_path / name for name in ("cert", "key", "server.cert", "server.key"))
    ours.issue(server_cert, server_key)
    (ours if shown == "expired" else others).issue(cert, key, days=-1 if shown == "expired" else 2)
    files = {} if shown == "none" else {"cert_file": cert, "key_file": key}
    config = f'tls {{cert_file: "{server_cert}", key_file: "{server_key}", ca_file: "{ours.ca}", verify: true}}'
    async with NatsServer(extra_config=config, jetstream=False) as server:
        settings = NatsSettings(urls=(server.url,), ca_file=ours.ca, **files)
        for _ in range(5):
            with pytest.raises(BrokerUnavailable, match=r"demands a client certificate .* may have refused ours"):
                await connect(settings, name="test")


@pytest.mark.parametrize(
    ("said", "problem", "remedy"),
    [
        (
            "Authentication Timeout.",
            "Authentication Timeout: signing in took longer than the `timeout` of the server's `authorization` allows",
            "wait, or raise it",
        ),
        (
            "user authentication expired",
            "user authentication expired: the user's JWT has expired",
            "issue a new one",
        ),
        ("Something New", "Something New", ""),
    ],
)
def test_what_it_means(said, problem, remedy):
    """The server's words stay, also those that nobody has thought of."""
    assert (problem, remedy) == explained(said)
