"""Connections to names with several addresses, as a resolver gives them."""

import asyncio
import contextlib
import errno
import socket

import pytest
import uvloop
from namespaces import black_hole
from tcp_server import tcp_server

from relay.network.dialer import Dialer

TIMEOUT_S = 5
LAST = "127.0.0.1"


@pytest.fixture
def resolver(monkeypatch):
    """`resolver(*addresses)`: every name has these addresses, in this order."""

    def resolve_to(*addresses):
        async def resolve(_host, port, **_options):
            families = [socket.AF_INET6 if ":" in each else socket.AF_INET for each in addresses]
            return [
                (family, socket.SOCK_STREAM, 0, "", (each, port, 0, 0) if ":" in each else (each, port))
                for family, each in zip(families, addresses, strict=True)
            ]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)

    return resolve_to


@contextlib.asynccontextmanager
async def listening(*hosts):
    """The port on which somebody listens at each of these addresses."""

    async def hang_up(_reader, _writer):
        pass

    async with contextlib.AsyncExitStack() as servers:
        port = 0
        for host in hosts:
            port = await servers.enter_async_context(tcp_server(hang_up, host, port))
        yield port


async def address_of(dialer, port):
    with await dialer.dial("several.example", port, TIMEOUT_S) as connected:
        return connected.getpeername()[0]


@pytest.mark.parametrize("first", [["127.0.0.2"], ["127.0.0.2", "127.0.0.3", "127.0.0.4"]], ids=["one", "three"])
async def test_first_addresses_swallow_packets(resolver, first):
    """The address that answers is found within the time limit, behind any that swallow packets."""
    resolver(*first, LAST)
    async with listening(LAST) as port:
        with contextlib.ExitStack() as holes:
            for host in first:
                holes.enter_context(black_hole(host, port))
            assert LAST == await address_of(Dialer(), port)


async def test_first_address_refuses(resolver):
    """An address that refuses is followed by the next one at once, also of the other family."""
    resolver("::1", "127.0.0.2", LAST)
    async with listening(LAST) as port:
        assert LAST == await address_of(Dialer(), port)


async def test_next_address_next_time(resolver):
    """Each connection begins with another address: one that accepts and then never answers is not taken again."""
    resolver("127.0.0.2", "127.0.0.3", LAST)
    async with listening("127.0.0.2", "127.0.0.3", LAST) as port:
        dialer = Dialer()
        found = [await address_of(dialer, port) for _ in range(4)]
    assert ["127.0.0.2", "127.0.0.3", LAST, "127.0.0.2"] == found


async def test_no_address_answers(resolver):
    """If all addresses swallow packets, the error names them and the time limit."""
    resolver("127.0.0.2", LAST)
    async with listening(LAST) as port:
        pass
    with (
        black_hole("127.0.0.2", port),
        black_hole(LAST, port),
        pytest.raises(TimeoutError, match=f"^no TCP connection to 127.0.0.2, 127.0.0.1 port {port} within 0.3 s$"),
    ):
        await Dialer().dial("several.example", port, 0.3)


async def test_nobody_listens(resolver):
    """If all addresses refuse, the error says so once."""
    resolver("127.0.0.2", LAST)
    async with listening(LAST) as port:
        pass
    with pytest.raises(ConnectionRefusedError, match=r"^\[Errno \d+\] Connection refused$"):
        await Dialer().dial("several.example", port, TIMEOUT_S)


@pytest.mark.parametrize("host", ["facilitator..example", "a" * 64 + ".example", "\udcff.example"])
async def test_no_host_name(host):
    """What cannot be a host name is an error like any other of the network."""
    with pytest.raises(OSError, match="cannot be a host name"):
        await Dialer().dial(host, 80, TIMEOUT_S)


async def test_no_thread_can_be_started(monkeypatch):
    """At the end of a program, when no thread can look the name up any more, it is looked up nevertheless."""

    async def refuse(*_arguments, **_options):
        raise RuntimeError("cannot schedule new futures after shutdown")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", refuse)
    async with listening(LAST) as port:
        with await Dialer().dial("localhost", port, TIMEOUT_S) as connected:
            assert port == connected.getpeername()[1]


@pytest.mark.parametrize("host", ["fe80::1%lo", "fe80::1%25lo"])
def test_zone(monkeypatch, host):
    """The zone of an IPv6 address reaches the kernel, however its % is written, with uvloop too, which forgets it."""
    asked = []

    class Socket(socket.socket):
        def connect_ex(self, address):
            asked.append(address)
            return errno.ENETUNREACH

    monkeypatch.setattr(socket, "socket", Socket)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, pytest.raises(OSError, match="unreachable"):
        runner.run(Dialer().dial(host, 1, TIMEOUT_S))
    assert [("fe80::1", 1, 0, socket.if_nametoindex("lo"))] == asked


async def test_zoned_connection(monkeypatch):
    """A connection to an address with a zone is waited for, and a refusal is told."""
    zone = socket.if_nametoindex("lo")
    async with listening("::1") as port:
        found = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, zone))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        with await Dialer().dial("fe80::1%lo", port, TIMEOUT_S) as connected:
            assert "::1" == connected.getpeername()[0]
    with pytest.raises(ConnectionRefusedError):
        await Dialer().dial("fe80::1%lo", port, TIMEOUT_S)
