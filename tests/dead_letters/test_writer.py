"""Dead letters that cannot be written for a while, and headers that would spoil them."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import pytest
from dead_letter_kit import JOB, Dlq, change_stream
from relay_kit import ACKED, TERMED, Scene, missing, new_job, said
from update_kit import GivenUpdate

from relay.contract.subjects import DLQ_STREAM, DLQ_SUBJECTS, Reason, status_subject
from relay.core.verdict import DeadLetter
from relay.dead_letters.writer import DeadLetterWriter
from relay.local.facilitator import FacilitatorSimulator
from relay.local.server import NatsServer
from relay.path.dead_letter_worker import WRITERS
from relay.service.intervals import Intervals

Restore = Callable[[], Awaitable[object]]


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with (
        NatsServer() as server,
        FacilitatorSimulator() as facilitator,
        Scene(server, facilitator, ACK_WAIT="0.6") as scene,
        scene.relay(intervals=Intervals(dead_letter_retry_s=0.2, dead_letter_write_s=0.3)),
    ):
        yield scene


async def deleted(scene: Scene) -> Restore:
    await scene.nc.jetstream().delete_stream(DLQ_STREAM)
    return scene.provision


async def full(scene: Scene) -> Restore:
    await change_stream(scene.nc, DLQ_STREAM, max_msgs=1)
    await scene.nc.jetstream().publish("job.dlq.other", b"")

    async def restore() -> None:
        await change_stream(scene.nc, DLQ_STREAM, max_msgs=-1)
        await scene.nc.jetstream().delete_msg(DLQ_STREAM, 1)

    return restore


async def silent(scene: Scene) -> Restore:
    """As while the stream has no leader: publishes have a subscriber, but no answer."""
    await scene.nc.jetstream().delete_stream(DLQ_STREAM)

    async def ignore(_: object) -> None:
        pass

    subscription = await scene.nc.subscribe(DLQ_SUBJECTS, cb=ignore)
    await scene.nc.flush()

    async def restore() -> None:
        await subscription.unsubscribe()
        await scene.provision()

    return restore


TROUBLES = {deleted: "run `relay provision`", full: "maximum messages exceeded", silent: "no PubAck within"}


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.__name__)
async def test_dead_letters_cannot_be_written(scene, capsys, trouble):
    """While dead letters cannot be written, bad updates are neither acknowledged nor terminated, the log says why, and
    other jobs go on. Later all are written. The test has more bad updates than writers, so that all writers are busy.
    """
    restore = await trouble(scene)
    jobs = [new_job() for _ in range(8)]
    bad = [await scene.publish_body(job, b"bad", dead_letter=Reason.INVALID_JSON) for job in jobs]
    held = [await scene.publish(job, "completed", {}) for job in jobs]
    others = [await scene.publish(new_job(), "accepted") for _ in range(20)]
    assert [ACKED] * 20 == await scene.settled(*others)
    for _ in range(2):
        await asyncio.gather(*(scene.kept(update) for update in bad + held))
    assert 16 == await scene.unsettled()
    logged = [line for line in capsys.readouterr().out.splitlines() if "the dead letters cannot be reached" in line]
    assert any(TROUBLES[trouble] in line for line in logged), logged
    await restore()
    assert [TERMED] * 8 + [ACKED] * 8 == await scene.settled(*bad, *held)
    assert [] == await scene.broken_promises()


async def test_dead_letter_that_is_too_large_is_named():
    """While NATS takes no dead letter of an update's size, /readyz names the update, the size and what to raise."""
    async with (
        NatsServer() as server,
        FacilitatorSimulator() as facilitator,
        Scene(server, facilitator, ACK_WAIT="0.6") as scene,
        scene.relay(intervals=Intervals(dead_letter_retry_s=0.2)) as relay,
    ):
        await change_stream(scene.nc, DLQ_STREAM, max_msg_size=1_000_000)
        bad = await scene.publish_body(new_job(lane=2), b"x" * 1_500_000, dead_letter=Reason.INVALID_JSON)
        for _ in range(3):
            await scene.kept(bad)
        trouble = await missing(relay, "lane 2: the dead letter of update 1 of JOB_STATUS cannot be written: ")
        assert "size" in trouble
        assert "raise max_payload" in trouble
        await change_stream(scene.nc, DLQ_STREAM, max_msg_size=-1)
        assert [TERMED] == await scene.settled(bad)
        await said(relay, lambda told: told["ready"])


async def publish_raw(server: NatsServer, job: str, headers: bytes) -> None:
    """Publish without any checks, and wait until the server has stored it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    block = b"NATS/1.0\r\n" + headers + b"\r\n"
    writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n')
    head = f"HPUB {status_subject(job)} {len(block)} {len(block) + 3}\r\n".encode()
    writer.write(head + block + b"bad\r\nPING\r\n")
    while await reader.readline() != b"PONG\r\n":
        pass
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_headers_are_made_safe(scene):
    """For any headers of an update a dead letter is written, without control characters, and without an effect on the
    server.
    """
    job = new_job()
    await publish_raw(
        scene.server,
        job,
        b"X\x1b[31m: name\r\nX-Value: a\x1b]0;b\x07\r\nX-Bytes: \xff\xfe\r\nno colon\r\nX-Lines: one\ntwo\r\n"
        b"Nats-Expected-Stream: JOB_STATUS\r\n",
    )
    assert [ACKED] == await scene.settled(await scene.publish(job, "accepted"))
    [letter] = await Dlq(scene.nc).read()
    assert {
        "X__31m": "name",
        "X-Value": "a ]0;b",
        "X-Bytes": "\ufffd\ufffd",
        "Relay-Original-Nats-Expected-Stream": "JOB_STATUS",
        "X-Lines": "one two",
    } == carried(letter.headers)


def carried(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of a dead letter that come from its update."""
    return {name: value for name, value in headers.items() if name not in ADDED}


ADDED = {
    "Nats-Msg-Id",
    *(f"Relay-{name}" for name in ("Reason", "Error", "Attempts", "Failed-At")),
    *(f"Relay-Source-{name}" for name in ("Subject", "Sequence", "Stored-At")),
}
REPLAYED = {"Relay-Replayed-From": "7", "Relay-History": "refused 5 2026-11-22T02:59:00.000+00:00"}


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (
            {"Nats-TTL": "1h", "nats-rollup": "all", "NATS-Expected-Stream": "NOWHERE", "X-Nats": "kept"},
            {
                "Relay-Original-Nats-TTL": "1h",
                "Relay-Original-nats-rollup": "all",
                "Relay-Original-NATS-Expected-Stream": "NOWHERE",
                "X-Nats": "kept",
            },
        ),
        (
            REPLAYED | {"X": "kept", "Nats-Msg-Id": "relay-replay:7:1:ab", "Nats-Expected-Stream": "x"},
            REPLAYED | {"X": "kept"},
        ),
    ],
    ids=["producer's", "replay's"],
)
async def test_control_headers(dlq, headers, expected):
    """Headers that would control the server, in any case of letters, are renamed. Those that an
    earlier replay added to control it are left out, and its marks are kept.
    """
    await dlq.write_for(JOB, 1, headers=headers)
    assert expected == carried((await dlq.read())[0].headers)


@pytest.mark.parametrize("marks", [{}, REPLAYED], ids=["first time", "replayed"])
async def test_headers_that_outgrow_their_room(dlq, marks):
    """Headers that do not fit beside the body are left out, and the error says so; a replay's headers are kept."""
    body = b"x" * (await dlq.max_size() - 60_000)
    await dlq.write_for(JOB, 1, body, marks | {"X": "x" * 80_000})
    [letter] = await dlq.read()
    assert marks == carried(letter.headers)
    assert "told (the headers of the original were too large, and were left out)" == letter.error


async def test_clock_set_back(dlq):
    """A dead letter is found, and not written again, even if it is older than its update by the clocks of NATS."""
    ahead_s = round(time.time()) + 3600
    first, second = (GivenUpdate(f"job.status.0.{JOB}", sequence, {}, b"{}", ahead_s + sequence) for sequence in (1, 2))
    writer = DeadLetterWriter(dlq.client)
    for update in (first, second, second):
        await writer.write(update, DeadLetter(Reason.REFUSED, "told"), 1)
    assert [1, 2] == [letter.source_sequence for letter in await dlq.read()]
    assert [True, True, False] == [await writer.holds(each) for each in (first, second, first._replace(sequence=3))]
    assert not await writer.holds(first._replace(stored_at_s=ahead_s))
    await writer.look()
    assert second.stored_at_s == writer.horizon.newest_s


async def test_few_bytes_are_dead_lettered_at_a_time(scene, monkeypatch):
    """Bodies that are written at a time have 16 MiB at most."""
    sizes, written, most, may_write = Counter(), DeadLetterWriter.write, [0], asyncio.Event()

    async def write(self, update, dead_letter, attempts):
        sizes[update.sequence] = len(update.body)
        most[0] = max(most[0], sizes.total())
        await may_write.wait()
        try:
            await written(self, update, dead_letter, attempts)
        finally:
            del sizes[update.sequence]

    monkeypatch.setattr(DeadLetterWriter, "write", write)
    body = b"x" * 5_000_000
    bad = [await scene.publish_body(new_job(), body, dead_letter=Reason.INVALID_JSON) for _ in range(WRITERS + 1)]
    await asyncio.gather(*(scene.kept(update) for update in bad))
    assert 15_000_000 == sizes.total()
    may_write.set()
    assert [TERMED] * len(bad) == await scene.settled(*bad)
    assert 15_000_000 == most[0]
