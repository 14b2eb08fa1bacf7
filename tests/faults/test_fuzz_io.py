"""With any bytes on a socket: no crash, no hang, and the next request or update is handled. See test_fuzz.py."""

import asyncio
import contextlib
import json
import re
from random import Random

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from oracle import Published
from relay_kit import ACKED, TERMED, Scene, new_job, update
from test_fuzz import EXAMPLES, JOB, SUCCESS, bounded
from websockets.utils import accept_key

from relay.contract.subjects import (
    ADVISORY_STREAM,
    LEASE_SUBJECTS,
    REQUEST_SUBJECTS,
    STATUS_STREAM,
    Reason,
    advisory_subject,
    api_stream_info,
    lane_consumer,
    request_subject,
)
from relay.facilitator.websocket import CannotConnect, ConnectionClosed, connect
from relay.leases.leases import Leases
from relay.local.facilitator import FacilitatorSimulator
from relay.local.server import NatsServer
from relay.nats.jetstream import api_request, publish_confirmed
from relay.network.dialer import Dialer
from relay.network.listener import listen
from relay.service.health import HealthServer

HOST = "127.0.0.1"
TIMEOUT_S = 5
MIB = 2**20

shared = pytest.mark.asyncio(loop_scope="module")


# --- the WebSocket

HANDSHAKE = (
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n\r\n"
)


def frame(opcode, payload, flags=0x80, length=None):
    """A frame as a server sends it; `length` is the length that it claims."""
    size = len(payload) if length is None else length
    if size < 126:
        return bytes([flags | opcode, size]) + payload
    if size < 65_536:
        return bytes([flags | opcode, 126]) + size.to_bytes(2) + payload
    return bytes([flags | opcode, 127]) + size.to_bytes(8) + payload


@st.composite
def frames(draw):
    """A frame of any kind, whose flags and length may be wrong."""
    payload = draw(st.binary(max_size=140) | st.just(SUCCESS.encode()))
    flags = draw(st.sampled_from([0x80, 0x80, 0x00, 0xC0, 0x90]))
    length = draw(st.none() | st.sampled_from([0, 125, 126, 65_535, 65_536, 2 * MIB, 2**62, 2**64 - 1]))
    return frame(draw(st.integers(0, 15)), payload, flags, length)


@contextlib.asynccontextmanager
async def raw_server(answer, *, hangs_up):
    """The URL of a TCP server that answers the first request with `answer(accept)`, then closes or stays open."""
    gone = asyncio.Event()

    async def converse(reader, writer):
        request = await reader.readuntil(b"\r\n\r\n")
        key = re.search(rb"Sec-WebSocket-Key: (\S+)", request)
        with contextlib.suppress(ConnectionError):
            writer.write(answer(accept_key(key[1].decode())))
            await writer.drain()
            if not hangs_up:
                await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        gone.set()

    async with await asyncio.start_server(converse, HOST, 0) as server:
        yield f"ws://{HOST}:{server.sockets[0].getsockname()[1]}/ws/v0/"
        await gone.wait()


async def received_from(answer, *, hangs_up):
    """Every message until the connection ends; None if there was no connection."""
    async with asyncio.timeout(TIMEOUT_S), raw_server(answer, hangs_up=hangs_up) as url:
        try:
            websocket = await connect(
                url,
                max_size=MIB,
                open_timeout_s=TIMEOUT_S,
                close_timeout_s=0.05,
                on_writable=lambda: None,
                dialer=Dialer(),
            )
        except CannotConnect:
            return None
        messages = []
        with contextlib.suppress(ConnectionClosed):
            while True:
                messages += await websocket.receive()
        await websocket.close()
        return messages


@bounded(0.4)
@given(st.lists(frames() | st.binary(max_size=30), max_size=5).map(b"".join))
def test_websocket(sent):
    """Any bytes after the handshake end the connection without a hang, and yield no more messages than were sent."""
    messages = asyncio.run(received_from(lambda accept: HANDSHAKE.format(accept).encode() + sent, hangs_up=True))
    assert len(sent) >= sum(map(len, messages))


@bounded(0.3)
@given(st.binary(max_size=200), st.integers(0, 120), st.integers(0, 30))
def test_handshake(noise, start, cut):
    """Any answer to the handshake leads to a connection or to an outage, and to nothing else."""

    def answer(accept):
        good = HANDSHAKE.format(accept).encode()
        return good[:start] + noise + good[start + cut :]

    messages = asyncio.run(received_from(answer, hangs_up=True))
    assert messages is None or len(noise) + 129 >= sum(map(len, messages))


VIOLATIONS = {
    "a reserved bit": frame(1, b"x", 0xC0),
    "an unknown opcode": frame(3, b"x"),
    "a masked frame": bytes([0x81, 0x81, 0, 0, 0, 0]) + b"x",
    "a continuation of nothing": frame(0, b"x"),
    "a fragmented ping": frame(9, b"x", 0x00),
    "a long pong": frame(10, b"x" * 126),
    "a close frame of one byte": frame(8, b"x"),
    "a close frame in no encoding": frame(8, b"\x03\xe8\xff"),
    "a message too large": frame(1, b"", length=MIB + 1),
    "fragments that add up": frame(1, b"x" * MIB, 0x00) + frame(0, b"x"),
    "a length past all bounds": frame(1, b"", length=2**64 - 1),
}


@pytest.mark.parametrize("case", VIOLATIONS)
async def test_violation(case):
    """The relay closes the connection to a server that breaks the WebSocket protocol, also if the server does not."""
    messages = await received_from(lambda accept: HANDSHAKE.format(accept).encode() + VIOLATIONS[case], hangs_up=False)
    assert [] == messages


# --- probes

PROBE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
REQUESTS = [PROBE, b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n"]


def http_noise(rng):
    """What a client may send to the HTTP port of the probes."""
    request = bytearray(rng.choice(REQUESTS))
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(request) + 1)
        request[at : at + rng.randrange(5)] = rng.randbytes(rng.randrange(6))
    return bytes(request)


async def ask(port, request):
    """The answer to a request after which nothing more is sent."""
    reader, writer = await asyncio.open_connection(HOST, port)
    answer = b""
    with contextlib.suppress(ConnectionError):
        writer.write(request)
        writer.write_eof()
        answer = await reader.read()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return answer


class _Answers:
    """The answers of a healthy worker."""

    def hung(self) -> tuple[str, ...]:
        return ()

    async def readiness(self) -> dict[str, bool]:
        return {"ready": True}

    async def exposition(self) -> bytes:
        return b"relay_x 1\n"


async def test_probes():
    """Whatever is sent to the HTTP port, answers stay short, and the next probe is answered."""
    server = HealthServer(listen(HOST, 0, prefix="RELAY_HTTP"), _Answers())
    serving = asyncio.create_task(server.serve())
    rng = Random(7)
    noise = [http_noise(rng) for _ in range(EXAMPLES)]
    noise += [b"GET /" + b"x" * MIB, b"GET /livez HTTP/1.1\r\n" + b"X: y\r\n" * 100_000, b"\0" * MIB]
    try:
        async with asyncio.timeout(4 * TIMEOUT_S):
            longest = max([len(await ask(server.port, request)) for request in noise])
            assert longest < 1000
            assert b"HTTP/1.1 200 OK" in await ask(server.port, PROBE)
    finally:
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving


# --- the whole relay, with other clients on the same NATS

STEERING = [
    {"Status": "junk"},
    {"Status": "-1", "Description": "x" * 1000},
    {"Status": "100", "Nats-Pending-Messages": "many"},
    {"Status": "404"},
    {"Status": "409", "Description": "Leadership Change"},
    {"Status": "999"},
    {"event": "x", "consumer": "x"},
]
REPLY_SUBJECTS = ["x", "$JS.ACK", "$JS.ACK.a.b.c.d.e.f.g", "$JS.ACK.1.2.3.4.5", "$JS.ACK" + ".x" * 50]


class RawProducer:
    """A producer that writes NATS's protocol itself, so that it can send headers that no client library sends."""

    def __init__(self, reader, writer):
        self._reader = reader
        self._writer = writer
        writer.write(b'CONNECT {"headers":true,"verbose":false,"no_responders":true}\r\nSUB _INBOX.raw 1\r\n')

    async def publish(self, token, headers, body):
        """Publish on the subject that ends in the bytes `token`, and wait for the PubAck; returns the sequence."""
        sizes = len(headers), len(headers) + len(body)
        self._writer.write(b"HPUB job.status.%b _INBOX.raw %d %d\r\n" % (token, *sizes) + headers + body)
        self._writer.write(b"\r\n")
        while not (line := await self._reader.readline()).startswith(b"MSG "):
            assert not line.startswith(b"-ERR"), line
            if line.startswith(b"PING"):
                self._writer.write(b"PONG\r\n")
        answer = await self._reader.readexactly(int(line.split()[-1]) + 2)
        return json.loads(answer)["seq"]


@contextlib.asynccontextmanager
async def raw_producer(server):
    reader, writer = await asyncio.open_connection(HOST, server.port)
    try:
        yield RawProducer(reader, writer)
    finally:
        writer.close()
        await writer.wait_closed()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene():
    """One relay for the tests of this section; `pull_inboxes` are the inboxes of its lanes' pulls."""
    async with (
        NatsServer() as server,
        FacilitatorSimulator() as facilitator,
        Scene(server, facilitator) as scene,
    ):
        scene.pull_inboxes = set()

        async def note(request):
            scene.pull_inboxes.add(request.reply)

        await scene.nc.subscribe(f"$JS.API.CONSUMER.MSG.NEXT.{STATUS_STREAM}.*", cb=note)
        scene.advisory_deleted = asyncio.Event()

        async def deleted(_request):
            scene.advisory_deleted.set()

        await scene.nc.subscribe(f"$JS.API.STREAM.MSG.DELETE.{ADVISORY_STREAM}", cb=deleted)
        await scene.nc.flush()
        async with scene.relay():
            yield scene
            assert await scene.broken_promises() == []


def raw_headers(rng):
    """A header block with any content."""
    lines = [rng.randbytes(rng.randrange(30)) for _ in range(rng.randrange(5))]
    named = [b"%b:%b" % (rng.randbytes(rng.randrange(6)), rng.randbytes(rng.randrange(9))) for _ in lines]
    return b"NATS/1.0\r\n" + b"\r\n".join((*lines, *named)) + b"\r\n\r\n"


@shared
async def test_any_headers(scene):
    """Whatever the headers of an update are: a good one is relayed, and a bad one is dead-lettered with its reason."""
    rng = Random(11)
    async with raw_producer(scene.server) as producer:
        for number in range(max(20, EXAMPLES // 4)):
            job = new_job()
            good = bool(number % 3)
            sequence = await producer.publish(job.encode(), raw_headers(rng), update(job) if good else b"[]")
            dead_letter = None if good else Reason.INVALID_JSON
            scene.published.append(Published(sequence, job, "accepted" if good else None, dead_letter))
    assert {ACKED, TERMED} == set(await scene.settled(*scene.published[-20:]))


BLOCKS = [b"N", b"NATS/1.0", b"NATS/1.0 ", b"NATS/1.0 \xff\xff\xff\r\n\r\n", b"NATS/1.0 503 \xff\r\n\r\n", b"x" * 20]


@shared
@pytest.mark.parametrize("block", BLOCKS)
async def test_no_headers_at_all(scene, block):
    """An update with an unreadable header block is relayed as if it had no headers, and so are the next ones."""
    async with raw_producer(scene.server) as producer:
        sequence = await producer.publish((job := new_job()).encode(), block, update(job))
    scene.published.append(Published(sequence, job, "accepted"))
    updates = [await scene.publish(new_job(lane)) for lane in range(4)]
    assert [ACKED] * 5 == await scene.settled(scene.published[-5], *updates)


@shared
@pytest.mark.parametrize("token", [b"\xff\xfe", b"a\x0bb", b"a\x0b7", b"a\x0c3\x0cb", b"\x00\x1b[31m", b"x" * 3000])
async def test_any_token(scene, token):
    """A subject may end in any bytes: its update is dead-lettered, and others are relayed."""
    async with raw_producer(scene.server) as producer:
        sequence = await producer.publish(token, b"NATS/1.0\r\n\r\n", update(JOB))
    scene.published.append(Published(sequence, JOB, None, Reason.INVALID_UUID))
    updates = [await scene.publish(new_job(lane)) for lane in range(4)]
    assert [TERMED] + [ACKED] * 4 == await scene.settled(scene.published[-5], *updates)


@shared
async def test_large_push(scene):
    """A push that is too large for NATS is dropped and logged, and later pushes are published."""
    heard = await scene.nc.subscribe(REQUEST_SUBJECTS[0])
    await scene.nc.flush()
    await scene.facilitator.push_job_request(new_job(), args=["x" * scene.nc.max_payload])
    await scene.facilitator.push_job_request(job := new_job())
    assert request_subject(job) == (await heard.next_msg(4 * TIMEOUT_S)).subject
    await heard.unsubscribe()


@shared
@pytest.mark.parametrize(
    ("key", "value"), [("lane.x", b""), ("lane.999", b"x"), ("lane.\u0663", b"x"), ("worker.x", b"\xff")]
)
async def test_strange_leases(scene, key, value):
    """What other clients write into the lease bucket does not stop the workers from taking all lanes."""
    await publish_confirmed(scene.nc, LEASE_SUBJECTS.removesuffix(">") + key, value)
    updates = [await scene.publish(new_job(lane)) for lane in range(4)]
    assert [ACKED] * 4 == await scene.settled(*updates)
    leases = Leases(scene.nc, "test", 1.0)
    await leases.watch()
    # A key that looks like a worker counts as one, and is given lanes, until the key expires.
    while set(range(4)) - set((await leases.read()).owners):
        await leases.changed.wait()
        leases.changed.clear()


@shared
async def test_strange_advisories(scene):
    """Advisories without meaning are deleted, and those after them are handled."""
    subject = advisory_subject(lane_consumer(0))
    for body in (b"", b"\xff", b"{}", b'{"stream_seq":0,"deliveries":1}', b'{"x":' + b"[" * 100_000):
        await publish_confirmed(scene.nc, subject, body)
    await scene.dust_settled()
    async with asyncio.timeout(4 * TIMEOUT_S):
        info = await api_request(scene.nc, api_stream_info(ADVISORY_STREAM))
        while info["state"]["messages"]:
            await asyncio.wait_for(scene.advisory_deleted.wait(), 2 * TIMEOUT_S)
            scene.advisory_deleted.clear()
            info = await api_request(scene.nc, api_stream_info(ADVISORY_STREAM))


@shared
async def test_forged_answers(scene):
    """Messages that others write into the inboxes of the pulls stop no lane."""
    await scene.settled(*[await scene.publish(new_job(lane)) for lane in range(4)])
    assert len(scene.pull_inboxes) >= 4
    for inbox in list(scene.pull_inboxes):
        for headers in STEERING:
            await scene.nc.publish(inbox, b"", headers=headers)
        for reply in REPLY_SUBJECTS:
            await scene.nc.publish(inbox, update(JOB), reply=reply)
    await scene.nc.flush()
    updates = [await scene.publish(new_job(lane)) for lane in range(4)]
    assert [ACKED] * 4 == await scene.settled(*updates)
