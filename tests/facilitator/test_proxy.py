"""The way to the Facilitator through a real HTTP proxy, and redirects."""

import asyncio
import base64
import contextlib
import ssl

import pytest
from relay_kit import ACKED, Scene, new_job
from tcp_server import tcp_server
from websockets.asyncio.server import serve

from relay.facilitator.websocket import CannotConnect, connect
from relay.network.dialer import Dialer

SECRET = "user:p%40ss"


class ConnectProxy:
    """An HTTP proxy that knows CONNECT only. It notes requests, and answers with `status` if that is set."""

    def __init__(self, status: str = "", *, silent: bool = False) -> None:
        self.requests: list[list[str]] = []
        self._status = status
        self._silent = silent

    def serving(self, **options):
        """Its port, while it serves."""
        return tcp_server(self._serve, **options)

    async def _serve(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        self.requests.append(head)
        if self._silent:
            await reader.read()
        elif self._status:
            writer.write(f"HTTP/1.1 {self._status}\r\nContent-Length: 0\r\n\r\n".encode())
        else:
            await self._pass_on(head[0].split()[1], reader, writer)

    async def _pass_on(self, target, reader, writer):
        host, _, port = target.rpartition(":")
        there, back = await asyncio.open_connection("127.0.0.1" if host == "facilitator.example" else host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(_pump(reader, back), _pump(there, writer))


async def _pump(source, sink):
    with contextlib.suppress(OSError):
        while data := await source.read(65536):
            sink.write(data)
    sink.close()


async def echo(connection):
    async for message in connection:
        await connection.send(message)


async def opened(url, proxy, open_timeout_s=5.0):
    return await connect(
        url,
        dialer=Dialer(),
        proxy=proxy,
        max_size=1 << 20,
        open_timeout_s=open_timeout_s,
        close_timeout_s=1,
        on_writable=print,
    )


def server_side(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


@pytest.mark.parametrize("tls", ["none", "behind", "both"])
async def test_through_a_proxy(tls, certificate, monkeypatch):
    """The WebSocket goes through the proxy, which looks up its host; TLS is between the relay and the server."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    behind = None if tls == "none" else server_side(certificate)
    proxy = ConnectProxy()
    async with (
        serve(echo, "127.0.0.1", 0, ssl=behind) as server,
        proxy.serving(ssl=server_side(certificate) if tls == "both" else None) as port,
    ):
        target = server.sockets[0].getsockname()[1]
        host = "127.0.0.1" if behind else "facilitator.example"
        address = f"{'https' if tls == 'both' else 'http'}://{SECRET}@127.0.0.1:{port}"
        through = await opened(f"{'wss' if behind else 'ws'}://{host}:{target}/ws/v0/", address)
        through.send(b"through")
        assert [b"through"] == await through.receive()
        await through.close()
    secret = base64.b64encode(b"user:p@ss").decode()
    assert [
        [f"CONNECT {host}:{target} HTTP/1.1", f"Host: {host}:{target}", f"Proxy-Authorization: Basic {secret}", ""]
    ] == proxy.requests


async def test_refused():
    """A proxy that refuses is named in words, with its answer."""
    async with ConnectProxy("407 Proxy Authentication Required").serving() as port:
        with pytest.raises(CannotConnect) as refused:
            await opened("wss://facilitator.example/ws/v0/", f"http://{SECRET}@127.0.0.1:{port}")
    assert "the proxy refuses the way to facilitator.example:443: HTTP 407 Proxy Authentication Required" == str(
        refused.value
    )


async def test_no_answer(unused_port):
    """A proxy that does not answer, or is not there, is named, without the password."""
    async with ConnectProxy(silent=True).serving() as port:
        with pytest.raises(
            CannotConnect, match=rf"^after 0.2 s the proxy http://127\.0\.0\.1:{port} has not answered yet$"
        ):
            await opened("wss://facilitator.example/ws/v0/", f"http://{SECRET}@127.0.0.1:{port}", 0.2)
    with pytest.raises(
        CannotConnect, match=rf"^the proxy http://127\.0\.0\.1:{unused_port} cannot be reached: .*refused"
    ):
        await opened("wss://facilitator.example/ws/v0/", f"http://{SECRET}@127.0.0.1:{unused_port}")


async def test_hangs_up():
    """A proxy that hangs up without an answer is named."""

    async def hang_up(_reader, _writer):
        pass

    async with tcp_server(hang_up) as port:
        with pytest.raises(CannotConnect, match="the proxy hung up without an answer"):
            await opened("ws://facilitator.example/ws/v0/", f"http://127.0.0.1:{port}")


async def test_the_setting(nats_server, facilitator):
    """With RELAY_FACILITATOR_PROXY the relay reaches the Facilitator through the proxy alone."""
    proxy = ConnectProxy()
    url = facilitator.url.replace("127.0.0.1", "facilitator.example")
    async with (
        proxy.serving() as port,
        Scene(nats_server, facilitator, FACILITATOR_URL=url) as scene,
        scene.relay(FACILITATOR_PROXY=f"http://127.0.0.1:{port}"),
    ):
        assert [ACKED] == await scene.settled(await scene.publish(new_job()))
    assert "CONNECT facilitator.example:" in proxy.requests[0][0]
