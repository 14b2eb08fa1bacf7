import asyncio
import contextlib
import json
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from process_kit import Response, ask

from relay.network.listener import listen
from relay.service.health import HealthServer, ProbeAnswers

HOST = "127.0.0.1"


class Answers:
    """The answers of a worker that lacks what `missing` says."""

    def __init__(self, missing: Sequence[str] = ()) -> None:
        self.missing: Sequence[str] | None = missing

    def hung(self) -> Sequence[str]:
        return ()

    async def readiness(self) -> dict[str, Any]:
        return {"ready": not self.missing, "missing": list(self.missing)}

    async def exposition(self) -> bytes:
        return b"relay_x 1\n"


@contextlib.asynccontextmanager
async def serving(answers: ProbeAnswers | None = None, **options: float) -> AsyncIterator[HealthServer]:
    server = HealthServer(listen(HOST, 0, prefix="RELAY_HTTP"), answers or Answers(), **options)
    task = asyncio.create_task(server.serve())
    try:
        yield server
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def get(server: HealthServer, path: str, method: str = "GET") -> Response:
    return await ask(server.port, path, method)


async def test_livez():
    """The liveness probe answers 200 while the loop runs, ready or not."""
    async with serving(Answers(["no NATS connection"])) as server:
        assert await get(server, "/livez") == (200, "text/plain; charset=utf-8", "ok\n")


async def test_readyz_follows_readiness():
    """The readiness probe checks each time: 503 with what is missing, 200 when nothing is."""
    missing = ["no NATS connection", "no lane is held"]
    async with serving(Answers(missing)) as server:
        status, kind, body = await get(server, "/readyz")
        assert (status, kind) == (503, "application/json")
        assert json.loads(body) == {"ready": False, "missing": ["no NATS connection", "no lane is held"]}
        missing.clear()
        status, _, body = await get(server, "/readyz")
        assert (status, json.loads(body)) == (200, {"ready": True, "missing": []})


async def test_unknown_path():
    """Any other path is 404, and any method except GET and HEAD is 405."""
    async with serving() as server:
        assert (await get(server, "/"))[0] == 404
        assert (await get(server, "/livez", "POST"))[0] == 405
        assert (await get(server, "/livez", "HEAD"))[0] == 200


async def test_metrics():
    """/metrics is in Prometheus' text format."""
    async with serving() as server:
        expected = (200, "text/plain; version=0.0.4; charset=utf-8", "relay_x 1\n")
        assert await get(server, "/metrics") == expected


async def test_ends_promptly_when_cancelled():
    """If it is cancelled while a client has sent half a request, it ends within a second and frees the port."""
    loop = asyncio.get_running_loop()
    async with serving() as server:
        reader, writer = await asyncio.open_connection(HOST, server.port)
        writer.write(b"GET /livez HTTP/1.1\r\n")
        await get(server, "/livez")
        began_s = loop.time()
    assert loop.time() - began_s < 1
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    socket.create_server((HOST, server.port)).close()


@pytest.mark.parametrize("turns", [1, 2, 3])
async def test_cancelled_while_starting(turns):
    """If it is cancelled while it starts, after any number of loop turns, it frees the port, too."""
    server = HealthServer(listen(HOST, 0, prefix="RELAY_HTTP"), Answers())
    task = asyncio.create_task(server.serve())
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    socket.create_server((HOST, server.port)).close()


def test_never_served():
    """A server that is closed before it serves frees the port."""
    server = HealthServer(listen(HOST, 0, prefix="RELAY_HTTP"), Answers())
    server.close()
    socket.create_server((HOST, server.port)).close()


async def test_signals_stay_with_the_process():
    """Serving leaves the handlers of SIGINT and SIGTERM as they were."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    async with serving() as server:
        await get(server, "/livez")
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


async def test_several_addresses():
    """Each of several listeners is served."""
    listeners = [each for host in ("127.0.0.1", "::1") for each in listen(host, 0, prefix="RELAY_HTTP")]
    addresses = [listener.getsockname()[:2] for listener in listeners]
    serving = asyncio.create_task(HealthServer(listeners, Answers()).serve())
    for address in addresses:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"HTTP/1.1 200 OK\r\n" == await reader.readline()
        writer.close()
    serving.cancel()
    await asyncio.wait([serving])


async def test_broken_readiness_is_an_error():
    """A readiness check that raises gives 500, and the server goes on."""
    async with serving(Answers(missing=None)) as server:
        assert (await get(server, "/readyz"))[0] == 500
        assert (await get(server, "/livez"))[0] == 200


async def test_idle_connections_starve_nobody():
    """However many clients send nothing or half a request, the next probe is answered; the oldest are closed."""
    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving())
        clients = [stack.enter_context(socket.socket()) for _ in range(300)]
        for number, client in enumerate(clients):
            client.settimeout(0)
            await loop.sock_connect(client, (HOST, server.port))
            client.send(b"GET /livez HTTP/1.1\r\nhost: " * (number % 2))
        assert (await get(server, "/livez"))[0] == 200
        assert (await get(server, "/metrics"))[0] == 200
        for client in clients[:200]:
            async with asyncio.timeout(5):
                with contextlib.suppress(ConnectionResetError):
                    assert await loop.sock_recv(client, 1) == b""


@pytest.mark.parametrize("sent", [b"", b"GET /livez HTTP/1.1\r\nhost: "])
async def test_slow_request(sent):
    """A client that does not finish its request is disconnected when its time is over, not before."""
    loop = asyncio.get_running_loop()
    async with serving(timeout_s=0.3) as server:
        began_s = loop.time()
        reader, writer = await asyncio.open_connection(HOST, server.port)
        writer.write(sent)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        assert loop.time() - began_s > 0.25
        writer.close()


async def test_one_request_for_each_connection():
    """The connection is closed after the answer, so that no client tries to reuse it."""
    async with serving() as server:
        reader, writer = await asyncio.open_connection(HOST, server.port)
        writer.write(b"GET /livez HTTP/1.1\r\nhost: relay\r\n\r\n" * 2)
        answer = await reader.read()
        writer.close()
    assert answer.count(b"HTTP/1.1 200 OK") == 1
    assert b"connection: close" in answer
