"""Whoever asks for TLS never sends anything in the clear: to real servers that do not offer it, or no longer do.

A proxy before each server records what clients send. Certificates are real.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cli_kit import make_command
from polling import until
from tcp_proxy import TcpProxy
from tcp_server import reserved_port

from relay.contract.environment import load_settings
from relay.contract.errors import BrokerUnavailable
from relay.contract.settings import NatsSettings
from relay.local.server import NatsServer
from relay.nats.connection import close, connect
from relay.producer import JobStatus, JobStatusUpdate, Limits, PublishTimedOut, StatusPublisher
from relay.service.app import Relay

JOB = "9b2f8c1e-5d3a-4e7b-8f60-1c2d3e4f5a6b"
PASSWORD = "authorization: {user: relay, password: right}"
SIGN_IN = {"user": "relay", "password": "right"}
VARIABLES = {"NATS_USER": "relay", "NATS_PASSWORD": "right"}
PROBLEM = "the server offers no TLS, so nothing was sent to it"
WAYS = ("tls address", "another tls address", "authority", "certificate")


class Recorded:
    """What clients sent to a server, read by a proxy before it."""

    def __init__(self, server: NatsServer) -> None:
        self.heard = bytearray()
        self.proxy = TcpProxy(server.port, self._hear)

    def _hear(self, sent: bytes) -> bytes:
        self.heard += sent
        return sent

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.proxy.port}"


@pytest.fixture
async def plain() -> AsyncIterator[Recorded]:
    """A server with a password and without TLS."""
    async with NatsServer(extra_config=PASSWORD) as server:
        recorded = Recorded(server)
        async with recorded.proxy.serving():
            yield recorded


def tls(certificate: tuple[Path, Path], *, optional: bool = False) -> str:
    cert, key = certificate
    return f'tls {{cert_file: "{cert}", key_file: "{key}"}}\nallow_non_tls: {str(optional).lower()}\n'


def asking_for_tls(way: str, address: str, certificate: tuple[Path, Path]) -> dict[str, Any]:
    """Settings that ask for TLS at this server."""
    cert, key = certificate
    ways: dict[str, dict[str, Any]] = {
        "tls address": {"urls": (f"tls://{address}",)},
        "another tls address": {"urls": (f"nats://{address}", "tls://127.0.0.1:1")},
        "authority": {"urls": (f"nats://{address}",), "ca_file": cert},
        "certificate": {"urls": (f"nats://{address}",), "cert_file": cert, "key_file": key},
    }
    return ways[way]


def is_encrypted(client: Any) -> bool:
    return isinstance(client._transport._io_writer.get_extra_info("ssl_object"), ssl.SSLObject)


@pytest.mark.parametrize("way", WAYS)
async def test_a_server_without_tls_hears_nothing(plain, certificate, way):
    """A client that asks for TLS in any way sends nothing to a server that offers none, and says so."""
    settings = asking_for_tls(way, plain.address, certificate)
    with pytest.raises(BrokerUnavailable, match=PROBLEM):
        await connect(NatsSettings(**settings, **SIGN_IN), name="test")
    assert b"" == plain.heard


@pytest.mark.parametrize("way", ["tls address", "authority"])
async def test_optional_tls_is_used(certificate, way):
    """If the server leaves TLS to its clients, a client that asks for it uses it."""
    async with NatsServer(extra_config=PASSWORD + "\n" + tls(certificate, optional=True)) as server:
        recorded = Recorded(server)
        async with recorded.proxy.serving():
            settings = asking_for_tls(way, recorded.address, certificate) | {"ca_file": certificate[0]}
            client = await connect(NatsSettings(**settings, **SIGN_IN), name="test")
            encrypted = is_encrypted(client)
            await close(client)
    assert (True, False) == (encrypted, b"CONNECT" in recorded.heard)


async def test_a_server_that_lost_its_tls_hears_nothing(certificate):
    """At a reconnect nothing is sent to a server that has lost its TLS, not even what waited; then TLS comes back."""
    lost, back = asyncio.Event(), asyncio.Event()
    async with (
        NatsServer(extra_config=PASSWORD + "\n" + tls(certificate)) as secure,
        NatsServer(extra_config=PASSWORD) as plain,
    ):
        recorded = Recorded(secure)
        async with recorded.proxy.serving():
            settings = NatsSettings(urls=(f"tls://{recorded.address}",), ca_file=certificate[0], **SIGN_IN)
            client = await connect(settings, name="test", on_disconnected=lost.set, on_reconnected=back.set)
            await refuse_once(recorded, client, plain, lost)
            without_tls = bytes(recorded.heard)
            recorded.proxy.target_port = secure.port
            await back.wait()
            encrypted = is_encrypted(client)
            await close(client)
    assert (b"", True) == (without_tls, encrypted)


async def refuse_once(recorded: Recorded, client: Any, plain: NatsServer, lost: asyncio.Event) -> None:
    """Move the address to the server without TLS, and wait until the client has refused it."""
    refused = asyncio.Event()
    report = client._error_cb

    async def report_and_note(error: Exception) -> None:
        if PROBLEM in str(error):
            refused.set()
        await report(error)

    client._error_cb = report_and_note
    recorded.proxy.target_port = plain.port
    recorded.heard.clear()
    client._transport._io_writer.transport.abort()
    await lost.wait()
    recorded.heard.clear()
    await client.publish("job.status.x", b"waits")
    await refused.wait()


async def test_closing_in_the_middle_of_a_reconnect_sends_nothing(certificate):
    """A client that is closed while it meets a server without TLS again and again sends nothing of what waits."""
    lost = asyncio.Event()
    async with (
        NatsServer(extra_config=PASSWORD + "\n" + tls(certificate)) as secure,
        NatsServer(extra_config=PASSWORD) as plain,
    ):
        recorded = Recorded(secure)
        async with recorded.proxy.serving():
            settings = NatsSettings(urls=(f"tls://{recorded.address}",), ca_file=certificate[0], **SIGN_IN)
            client = await connect(settings, name="test", on_disconnected=lost.set)
            await refuse_once(recorded, client, plain, lost)
            await client._connect_to_server(client._server_pool[0])  # as at the next try
            await close(client)
    assert b"" == recorded.heard


def member(port: int, routes: list[int], advertised: str, more: str) -> NatsServer:
    """A server of a cluster that tells clients to look for it at `advertised`."""
    others = ", ".join(f'"nats-route://127.0.0.1:{each}"' for each in routes)
    cluster = f'cluster: {{name: two, listen: "127.0.0.1:{port}", routes: [{others}]}}'
    return NatsServer(jetstream=False, extra_config=f'{PASSWORD}\nclient_advertise: "{advertised}"\n{cluster}\n{more}')


async def test_a_server_that_another_one_named_hears_nothing(certificate):
    """A server without TLS that a server with TLS has named is treated like one from the settings."""
    with reserved_port() as first, reserved_port() as second, reserved_port() as proxy:
        async with (
            member(first, [second], "127.0.0.1:1", tls(certificate)) as secure,
            member(second, [first], f"127.0.0.1:{proxy}", "") as plain,
        ):
            recorded = Recorded(plain)
            recorded.proxy.port = proxy
            async with recorded.proxy.serving():
                settings = NatsSettings(urls=(secure.url,), ca_file=certificate[0], **SIGN_IN)
                client = await connect(settings, name="test")
                while recorded.address not in [server.uri.netloc for server in client._server_pool]:
                    await client.flush()  # INFO comes when the servers have found each other
                problems = noted_problems(client)
                await secure.kill()
                while PROBLEM not in await problems.get():
                    pass
                await close(client)
    assert b"" == recorded.heard


def noted_problems(client: Any) -> asyncio.Queue[str]:
    problems: asyncio.Queue[str] = asyncio.Queue()

    async def note(error: Exception) -> None:
        problems.put_nowait(str(error))

    client._error_cb = note
    return problems


async def test_a_producer_sends_nothing_in_the_clear(plain):
    """`relay.producer` says in its error that the server offers no TLS, and sends nothing."""
    update = JobStatusUpdate(uuid=JOB, status=JobStatus.ACCEPTED)
    async with StatusPublisher(f"tls://{plain.address}", limits=Limits(timeout_s=0.5), **SIGN_IN) as publisher:
        with pytest.raises(PublishTimedOut, match=PROBLEM):
            await publisher.publish(update)
    assert b"" == plain.heard


COMMANDS = [
    ("provision",),
    ("provision", "--check"),
    ("publish", JOB, "accepted"),
    ("query", JOB),
    ("top", "--once"),
    ("dlq", "list"),
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
async def test_a_command_sends_nothing_in_the_clear(plain, monkeypatch, tmp_path, arguments):
    """Each command that meets a server without TLS, although it is to use TLS, ends with one line that says so."""
    command = make_command(monkeypatch, tmp_path)
    ended = await command(*arguments, NATS_URL=f"tls://{plain.address}", **VARIABLES)
    assert (1, 1, b"") == (ended.code, ended.err.count("\n"), plain.heard)
    assert PROBLEM in ended.err


async def test_the_doctor_does_not_say_ok(plain, monkeypatch, tmp_path, certificate):
    """`relay doctor` fails a server without TLS for a CA file alone, and sends nothing to it."""
    command = make_command(monkeypatch, tmp_path)
    ended = await command(
        "doctor", "--json", NATS_URL=f"nats://{plain.address}", NATS_CA_FILE=str(certificate[0]), **VARIABLES
    )
    nats = [each for each in json.loads(ended.out)["findings"] if each["check"] == "nats"]
    assert (1, ["fail"], b"") == (ended.code, [each["verdict"] for each in nats], plain.heard)
    assert PROBLEM in nats[0]["found"]


async def test_a_relay_waits_for_tls(plain, facilitator):
    """A relay that meets a server without TLS is not ready, says why, sends nothing, and tries again."""
    nats = {"RELAY_NATS_URL": f"tls://{plain.address}", "RELAY_NATS_USER": "relay", "RELAY_NATS_PASSWORD": "right"}
    others = {"RELAY_FACILITATOR_URL": facilitator.url, "RELAY_FACILITATOR_AUTH": "none", "RELAY_HTTP_PORT": "0"}
    relay, stop = Relay(load_settings(nats | others, None), None), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(relay.run(stop))
        await until(lambda: plain.proxy.connections >= 2)
        readiness = await relay.worker_status.readiness()
        stop.set()
    assert (False, b"") == (readiness["ready"], plain.heard)
    assert PROBLEM in readiness["missing"][0]


def test_tls_for_one_server_is_tls_for_all():
    """One address with tls://, or a file for TLS, changes all addresses, so that each is shown and tried with TLS."""
    urls = ("nats://a:1", "tls://b:2")
    assert ("tls://a:1", "tls://b:2") == NatsSettings(urls=urls).servers
    assert ("tls://a:1",) == NatsSettings(urls=urls[:1], ca_file=Path(__file__)).servers
    assert urls[:1] == NatsSettings(urls=urls[:1]).servers
