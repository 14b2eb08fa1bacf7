"""Fixtures: a real nats-server for each test, connections to it, and a TCP proxy between them that can misbehave."""

import asyncio
import contextlib
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from dead_letter_kit import Dlq
from guarded_nats import guarded_server, passwords
from nats.aio.client import Client
from relay_kit import Scene
from tcp_proxy import TcpProxy
from tcp_server import reserved_port
from xdist.scheduler import LoadScopeScheduling

from relay.contract.settings import NatsSettings
from relay.local.facilitator import FacilitatorSimulator
from relay.local.server import NatsServer
from relay.nats import connection
from relay.nats.frames import FrameClient
from relay.topology.provision import Topology, provision

WATCH_TIMEOUT_S = 15


class _ConsoleTogether(LoadScopeScheduling):
    """Gives all tests of the console to one worker, as they share a browser, and each other test to whoever is free.

    (The mark `xdist_group` would do, but xdist 3.8 does not see it with pytest 9.2, which keeps node ids elsewhere.)
    """

    def _split_scope(self, nodeid: str) -> str:
        return "console" if nodeid.startswith("tests/console/") else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _ConsoleTogether(config, log)


# On a busy machine any example may take longer than the 200 ms that Hypothesis allows by default.
hypothesis.settings.register_profile("relay", deadline=None)
hypothesis.settings.load_profile("relay")

# A shell script starts background commands with SIGINT ignored, and `nohup` starts its command with SIGHUP ignored.
# Every process that they start inherits that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
async def nats_server() -> AsyncIterator[NatsServer]:
    """A fresh, empty nats-server with JetStream (it starts in about 10 ms)."""
    async with NatsServer() as server:
        yield server


@pytest.fixture
def users_have_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """The passwords of the users of deploy/nats/users.conf are in the environment of servers that start now."""
    for name, value in passwords().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
async def guarded(users_have_passwords: None) -> AsyncIterator[NatsServer]:  # noqa: ARG001
    """A nats-server with the users of deploy/nats/users.conf; guarded_nats.py in tests/kit signs in as each of them."""
    async with guarded_server() as server:
        yield server


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., Any]]:
    """`await connect(url, user=..., on_reconnected=...)`: the relay's own `connect`; closed after the test."""
    async with contextlib.AsyncExitStack() as opened:

        async def connect(
            url: str, *, on_disconnected: Any = None, on_reconnected: Any = None, **settings: Any
        ) -> Client:
            client = await connection.connect(
                NatsSettings(urls=(url,), **settings),
                name="test",
                on_disconnected=on_disconnected,
                on_reconnected=on_reconnected,
            )
            opened.push_async_callback(connection.close, client, timeout_s=2)
            return client

        yield connect


@pytest.fixture
async def nc(nats_server: NatsServer, connect: Callable[..., Any]) -> Client:
    """A connection to `nats_server`."""
    return await connect(nats_server.url)


@pytest.fixture
def topology() -> Topology:
    """The topology that `provisioned` creates."""
    return Topology(lanes=4, replicas=1, ack_wait_s=5, max_deliver=50, lease_ttl_s=5)


@pytest.fixture
async def provisioned(nc: Client, topology: Topology) -> Client:
    """`nc`, with the relay's streams and consumers in place."""
    await provision(nc, topology)
    return nc


@pytest.fixture
def dlq(provisioned: FrameClient) -> Dlq:
    """The dead letters of a provisioned server."""
    return Dlq(provisioned)


@pytest.fixture
async def proxied(nats_server: NatsServer) -> AsyncIterator[TcpProxy]:
    """A proxy in front of `nats_server`."""
    async with TcpProxy(nats_server.port).serving() as proxy:
        yield proxy


@pytest.fixture
def unused_port() -> Iterator[int]:
    """A port of 127.0.0.1 where nobody listens."""
    with reserved_port() as port:
        yield port


@pytest.fixture
async def facilitator() -> AsyncIterator[FacilitatorSimulator]:
    """A simulated Facilitator, running."""
    async with FacilitatorSimulator() as facilitator:
        yield facilitator


@pytest.fixture
async def scene(nats_server: NatsServer, facilitator: FacilitatorSimulator) -> AsyncIterator[Scene]:
    """`nats_server`, provisioned, and `facilitator`, for the relays that a test starts between them."""
    async with Scene(nats_server, facilitator) as scene:
        yield scene


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=relay", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


@pytest.fixture
def after(monkeypatch) -> Callable[..., Any]:
    """`until = after(Class.method)`: `await until(condition)` checks the condition after every call of the method."""

    def watch(owner: type, name: str) -> Callable[..., Any]:
        called, method = asyncio.Event(), getattr(owner, name)

        def watched(self: Any, *args: Any) -> Any:
            result = method(self, *args)
            if asyncio.iscoroutine(result):
                result = asyncio.ensure_future(result)
                result.add_done_callback(lambda _: called.set())
            else:
                called.set()
            return result

        async def until(condition: Callable[[], bool]) -> None:
            async with asyncio.timeout(WATCH_TIMEOUT_S):
                while not condition():
                    called.clear()
                    await called.wait()

        monkeypatch.setattr(owner, name, watched)
        return until

    return watch
