import asyncio
import contextlib
import socket
import ssl

import pytest
from websockets.asyncio.server import serve
from websockets.client import ClientProtocol
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

import relay.facilitator.websocket
from relay.facilitator.websocket import CannotConnect, ConnectionClosed, WebSocket, connect
from relay.network import dialer
from relay.network.dialer import Dialer

MIB = 1024 * 1024


@contextlib.asynccontextmanager
async def conversation(converse, *, on_writable=lambda: None, **options):
    """A connection to a real WebSocket server that runs `converse` for it; over TLS if `options` have `ssl`."""
    async with serve(converse, "127.0.0.1", 0, **options) as server:
        port = server.sockets[0].getsockname()[1]
        websocket = await connect(
            f"{'wss' if 'ssl' in options else 'ws'}://127.0.0.1:{port}/ws/v0/",
            max_size=MIB,
            open_timeout_s=5,
            close_timeout_s=0.2,
            on_writable=on_writable,
            dialer=Dialer(),
        )
        try:
            yield websocket
        finally:
            await websocket.close()


async def opened(url, *, open_timeout_s):
    return await connect(
        url, max_size=MIB, open_timeout_s=open_timeout_s, close_timeout_s=1, on_writable=print, dialer=Dialer()
    )


async def received(websocket, count):
    """The next `count` messages or more."""
    messages = []
    while len(messages) < count:
        messages += await websocket.receive()
    return messages


async def end_of(websocket):
    """The close frame with which the connection ended, when nothing more can be received."""
    try:
        while True:
            await websocket.receive()
    except ConnectionClosed as closed:
        return closed.close


async def echo(connection):
    async for message in connection:
        await connection.send(message)


async def test_batch():
    """Messages of one batch arrive one by one, in order, and so do their answers."""
    async with conversation(echo) as websocket:
        websocket.send(*(str(number).encode() for number in range(100)))
        assert [str(number).encode() for number in range(100)] == await received(websocket, 100)


async def test_fragments():
    """A message in fragments is received whole, among other messages."""

    async def converse(connection):
        await connection.send("first")
        await connection.send(["sec", "", "ond"])
        await connection.send(b"third")
        await connection.wait_closed()

    async with conversation(converse) as websocket:
        assert [b"first", b"second", b"third"] == await received(websocket, 3)


async def test_ping_is_answered():
    """A ping of the other side is answered automatically."""
    ponged = asyncio.Event()

    async def converse(connection):
        await (await connection.ping())
        ponged.set()

    async with conversation(converse):
        await asyncio.wait_for(ponged.wait(), 5)


@pytest.mark.parametrize("code", [1000, 1001, 1011, 1012, 3000, 3001])
async def test_closed_by_the_other_side(code):
    """What was sent before a close frame is received first; then the error has the frame's code and reason."""

    async def converse(connection):
        await connection.send("last")
        await connection.close(code, "because")

    async with conversation(converse) as websocket:
        assert [b"last"] == await websocket.receive()
        close = await end_of(websocket)
        assert (code, "because") == (close.code, close.reason)
        assert not websocket.writable
        with pytest.raises(ConnectionClosed):
            websocket.send(b"late")


async def test_dropped():
    """A connection that is lost without a close frame ends with none."""

    async def converse(connection):
        connection.transport.abort()

    async with conversation(converse) as websocket:
        assert await end_of(websocket) is None


async def test_closed_by_us():
    """The other side gets the close code; what it sends after that is not waited for."""
    codes = asyncio.Queue()

    async def converse(connection):
        await connection.wait_closed()
        codes.put_nowait(connection.close_code)

    async with conversation(converse) as websocket:
        await websocket.close(CloseCode.PROTOCOL_ERROR)
        assert CloseCode.PROTOCOL_ERROR == await codes.get()
        assert CloseCode.PROTOCOL_ERROR == (await end_of(websocket)).code


async def test_other_side_does_not_close():
    """If the other side never answers the close frame, the socket is closed after the close timeout."""
    reading = asyncio.Event()

    async def converse(connection):
        connection.transport.pause_reading()
        reading.set()
        await connection.wait_closed()

    async with conversation(converse, close_timeout=0.2) as websocket:
        await reading.wait()
        async with asyncio.timeout(5):
            await websocket.close()
        assert CloseCode.NORMAL_CLOSURE == (await end_of(websocket)).code


async def test_keepalive():
    """A peer that answers pings stays connected; one that stops reading is closed with 1011 after the timeout."""
    connections = asyncio.Queue()

    async def converse(connection):
        connections.put_nowait(connection)
        await connection.wait_closed()

    async with conversation(converse, close_timeout=0.2) as websocket:
        keeping = asyncio.create_task(websocket.keep_alive(0.02, 0.2))
        connection = await connections.get()
        await asyncio.wait({keeping}, timeout=0.5)
        assert not keeping.done()
        connection.transport.pause_reading()
        async with asyncio.timeout(5):
            await keeping
            assert CloseCode.INTERNAL_ERROR == (await end_of(websocket)).code


async def test_too_large():
    """A message above the size limit closes the connection with 1009, and the error says so."""

    async def converse(connection):
        await connection.send("x" * (MIB + 1))
        await connection.wait_closed()

    async with conversation(converse) as websocket:
        assert CloseCode.MESSAGE_TOO_BIG == (await end_of(websocket)).code


async def test_congestion():
    """While the other side does not read, nothing more may be sent; when it reads again, a callback reports it."""
    connections = asyncio.Queue()
    relieved = asyncio.Event()

    async def converse(connection):
        connection.transport.pause_reading()
        connections.put_nowait(connection)
        await connection.wait_closed()

    async with conversation(converse, on_writable=relieved.set, max_size=None, max_queue=None) as websocket:
        connection = await connections.get()
        sent = 0
        while websocket.writable:
            websocket.send(b"x" * MIB)
            sent += 1
        assert not relieved.is_set()
        connection.transport.resume_reading()
        await asyncio.wait_for(relieved.wait(), 5)
        assert websocket.writable
        async with asyncio.timeout(10):
            assert [MIB] * sent == [len(await connection.recv()) for _ in range(sent)]


class UnreadTransport(asyncio.Transport):
    """A transport that is told to pause."""

    def __init__(self):
        super().__init__()
        self.paused = False

    def pause_reading(self):
        self.paused = True

    def resume_reading(self):
        self.paused = False

    def is_closing(self):
        return False


async def test_few_bytes_wait_to_be_received():
    """With more than a megabyte waiting to be received, nothing more is read, until it is received."""
    protocol = ClientProtocol(parse_uri("ws://facilitator/"), state=State.OPEN, max_size=None)
    websocket, transport = WebSocket(protocol, 1, lambda: None), UnreadTransport()
    websocket.connection_made(transport)
    frame = Frame(Opcode.TEXT, b"x" * (MIB // 2)).serialize(mask=False)
    for _ in range(2):
        websocket.data_received(frame)
    assert not transport.paused
    websocket.data_received(frame)
    assert transport.paused
    assert [MIB // 2] * 3 == [len(each) for each in await websocket.receive()]
    assert not transport.paused


async def test_headers():
    """Further headers are sent with the request; an Authorization replaces the one of the password in the address."""
    requests = []

    async def note(connection):
        requests.append(connection.request.headers)

    async with serve(note, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        added = [("X-Validator-Version", "1.2.3"), ("authorization", "Bearer t")]
        url = f"ws://user:password@127.0.0.1:{port}/ws/v0/"
        websocket = await connect(
            url, headers=added, max_size=MIB, open_timeout_s=5, close_timeout_s=1, on_writable=print, dialer=Dialer()
        )
        await end_of(websocket)
        await websocket.close()
    [headers] = requests
    assert ["1.2.3"] == headers.get_all("X-Validator-Version")
    assert ["Bearer t"] == headers.get_all("Authorization")
    assert [f"127.0.0.1:{port}"] == headers.get_all("Host")


async def test_tls(certificate, monkeypatch):
    """With `wss://` the connection uses TLS, if the machine trusts the certificate."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    async with conversation(echo, ssl=server_side(certificate)) as websocket:
        websocket.send(*(str(number).encode() for number in range(100)))
        assert [str(number).encode() for number in range(100)] == await received(websocket, 100)


async def test_tls_with_an_unknown_authority(certificate):
    """A server with a certificate of an unknown authority is refused."""
    with pytest.raises(CannotConnect, match="CERTIFICATE_VERIFY_FAILED"):
        async with conversation(echo, ssl=server_side(certificate)):
            pass


def server_side(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


async def test_refused():
    """An answer with another HTTP status is no WebSocket, and the error shows the status."""

    async def refuse(connection, _request):
        return connection.respond(403, "not here\n")

    with pytest.raises(CannotConnect, match="403"):
        async with conversation(echo, process_request=refuse):
            pass


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("wss://new.example/ws/v0/?secret=1", "wss://new.example/ws/v0/"),
        ("/ws/v1/", r"ws://127\.0\.0\.1:\d+/ws/v1/"),
        ("http://[", "something that is no address"),
    ],
)
async def test_redirected(location, target):
    """A redirect is not followed; the error says where it leads, without what may be secret."""

    async def redirect(connection, _request):
        response = connection.respond(301, "moved\n")
        response.headers["Location"] = location
        return response

    with pytest.raises(CannotConnect, match=f"HTTP 301; it redirects to {target}, and redirects are not followed$"):
        async with conversation(echo, process_request=redirect):
            pass


@contextlib.asynccontextmanager
async def raw_server(converse):
    """The URL of a server that accepts TCP connections and runs `converse` for each."""
    conversations = []

    async def take(reader, writer):
        conversations.append(asyncio.current_task())
        await converse(reader)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(take, "127.0.0.1", 0) as server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        await asyncio.gather(*conversations)


async def test_not_a_websocket():
    """A server that closes during the handshake leaves nobody waiting."""

    async def hang_up(_reader):
        pass

    async with raw_server(hang_up) as url:
        with pytest.raises(CannotConnect, match="HTTP response"):
            await opened(url, open_timeout_s=5)


@pytest.mark.parametrize(
    ("scheme", "what"),
    [("ws", "there is no answer to the request for a WebSocket"), ("wss", "the TLS handshake is not finished")],
)
async def test_silent(scheme, what):
    """A server that accepts the connection and sends nothing is given up after the open timeout; the error says so."""

    async def say_nothing(reader):
        await reader.read()  # the request
        await reader.read()  # until the client closes

    async with raw_server(say_nothing) as url:
        with pytest.raises(CannotConnect, match=f"^after 0.1 s {what} yet$"):
            await opened(url.replace("ws", scheme), open_timeout_s=0.1)


async def test_packets_are_dropped(monkeypatch):
    """If the packets of the TCP handshake are dropped, the address is given up soon, and the error names it."""
    monkeypatch.setattr(relay.facilitator.websocket, "_TCP_TIMEOUT_S", 0.1)
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for waiting in (first, second):  # the kernel drops what comes when nobody accepts these
            waiting.settimeout(0)
            waiting.connect_ex(full.getsockname())
        port = full.getsockname()[1]
        with pytest.raises(CannotConnect, match=f"^no TCP connection to 127.0.0.1 port {port} within 0.1 s$"):
            await opened(f"ws://127.0.0.1:{port}/", open_timeout_s=5)


async def test_look_up_takes_too_long(monkeypatch):
    """If a name is not looked up in time, the error says so."""

    async def never(*_args, **_options):
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", never)
    monkeypatch.setattr(dialer, "LOOK_UP_S", 0.1)
    with pytest.raises(CannotConnect, match=r"^the name facilitator\.example was not looked up within 0\.1 s$"):
        await opened("ws://facilitator.example/", open_timeout_s=0.1)


async def test_several_addresses(monkeypatch):
    """If nobody listens at a name's first address, the next one is tried; if at none, the error is the last one's."""
    loop, resolve = asyncio.get_running_loop(), asyncio.get_running_loop().getaddrinfo

    async def two_addresses(host, port, **options):
        del host
        found = [await resolve(each, port, **options) for each in ("127.0.0.2", "127.0.0.1")]
        return [address for addresses in found for address in addresses]

    monkeypatch.setattr(loop, "getaddrinfo", two_addresses)
    async with serve(echo, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        websocket = await opened(f"ws://facilitator.example:{port}/", open_timeout_s=5)
        websocket.send(b"hello")
        assert [b"hello"] == await received(websocket, 1)
        await websocket.close()
    with pytest.raises(CannotConnect, match="Connection refused"):
        await opened(f"ws://facilitator.example:{port}/", open_timeout_s=5)
