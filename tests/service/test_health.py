import asyncio
import contextlib
import errno
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from process_kit import Response, ask

from relay.contract.errors import ConfigurationError
from relay.service.health import HealthServer, ProbeAnswers, listen

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
    server = HealthServer(listen(HOST, 0), answers or Answers(), **options)
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
    server = HealthServer(listen(HOST, 0), Answers())
    task = asyncio.create_task(server.serve())
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    socket.create_server((HOST, server.port)).close()


def test_never_served():
    """A server that is closed before it serves frees the port."""
    server = HealthServer(listen(HOST, 0), Answers())
    server.close()
    socket.create_server((HOST, server.port)).close()


async def test_signals_stay_with_the_process():
    """Serving leaves the handlers of SIGINT and SIGTERM as they were."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    async with serving() as server:
        await get(server, "/livez")
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_port_in_use():
    """A port that is in use is refused by name, before anything is served."""
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigurationError) as caught:
            listen(HOST, port)
    assert (caught.value.variable, caught.value.value) == ("RELAY_HTTP_PORT", str(port))
    expected = (
        f"RELAY_HTTP_PORT='{port}' is not allowed: Address already in use on 127.0.0.1; "
        "give a port that is free and open to this user, or 0 for any free one"
    )
    assert str(caught.value) == expected


@pytest.mark.parametrize("host", ["a..b", "relay.invalid", "192.0.2.1"])
def test_host_of_another_machine(host):
    """A host that is malformed, unknown, or not of this machine is refused by name."""
    with pytest.raises(ConfigurationError) as caught:
        listen(host, 0)
    assert (caught.value.variable, caught.value.value) == ("RELAY_HTTP_HOST", host)
    assert caught.value.allowed.split("; ")[-1] == "give a host name or address of this machine"


async def test_host_with_addresses_of_both_families(monkeypatch):
    """All addresses of a host are served, on the same port."""
    look_up = socket.getaddrinfo
    both = ("::1", "127.0.0.1", "127.0.0.1")
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda _, *more, **options: [look_up(a, *more, **options)[0] for a in both]
    )
    server = HealthServer(listen("both.example", 0), Answers())
    monkeypatch.undo()
    serving = asyncio.create_task(server.serve())
    for address in ("127.0.0.1", "::1"):
        reader, writer = await asyncio.open_connection(address, server.port)
        writer.write(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"HTTP/1.1 200 OK\r\n" == await reader.readline()
        writer.close()
    serving.cancel()
    await asyncio.wait([serving])


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_all_interfaces(host):
    """The address of all interfaces of one family serves both, in a network namespace that nobody else reaches."""
    script = f"""
import socket
from relay.service.health import listen
listeners = listen({host!r}, 0)
for address in ("127.0.0.1", "::1"):
    socket.create_connection((address, listeners[0].getsockname()[1])).close()
"""
    command = ["unshare", "-rn", "sh", "-c", f"ip link set lo up && {sys.executable} -"]
    done = subprocess.run(command, input=script, check=False, capture_output=True, text=True)
    assert (0, "") == (done.returncode, done.stderr)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_system_without_one_family(monkeypatch, host):
    """A family that the system does not have is left out."""
    create = socket.create_server

    def only_ipv4(address, *, family):
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "no IPv6 here")
        return create(("127.0.0.1", address[1]), family=family)

    monkeypatch.setattr(socket, "create_server", only_ipv4)
    listeners = listen(host, 0)
    families = [listener.family for listener in listeners]
    for listener in listeners:
        listener.close()
    assert [socket.AF_INET] == families


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
