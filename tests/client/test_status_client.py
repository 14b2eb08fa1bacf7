"""StatusClient with a real relay, and with answers that the test sends."""

import asyncio
import contextlib
import json
from unittest import mock
from uuid import UUID

import msgspec
import pytest
from cli_kit import TIMEOUT_S
from guarded_nats import password
from process_kit import SERVER_PARTS, in_a_program
from relay_kit import heard_no_receipt, new_job

from relay.client import (
    AnswerUnavailable,
    InvalidQuery,
    NoAnswer,
    NoRelayRunning,
    Outcome,
    QueryFailed,
    Receipt,
    RelayFault,
    StatusClient,
    TooManyQueries,
    UnknownJob,
    UpdateProgress,
    WaitTimedOut,
    status_client,
)
from relay.contract.subjects import Reason, query_subject, receipt_subject
from relay.local.faults import stall

JOB = "123e4567-e89b-42d3-a456-426614174000"


@pytest.fixture
async def client(nats_server):
    async with StatusClient(nats_server.url, timeout_s=TIMEOUT_S) as client:
        yield client


@pytest.fixture
async def answering(nc):
    """`answers` are sent one after another to questions about JOB, the last one again and again."""
    answers: list[tuple[bytes, dict[str, str]]] = []

    async def answer(message) -> None:
        body, headers = answers.pop(0) if len(answers) > 1 else answers[0]
        await nc.publish(message.reply, body, headers=headers)

    await nc.subscribe(query_subject(JOB), cb=answer)
    await nc.flush()
    return answers


def refusal(code: int) -> tuple[bytes, dict[str, str]]:
    return b"", {"Nats-Service-Error-Code": str(code), "Nats-Service-Error": "because"}


async def test_status(scene, client):
    """The latest update is returned with how far it got, and with its body if that is wanted."""
    async with scene.relay():
        await scene.settled(await scene.publish(JOB, "received"), await scene.publish(JOB, "completed", {"a": 1}))
        update = await client.status(UUID(JOB))
        with_body = await client.status(JOB.upper(), body=True)
    assert (JOB, "completed", True, 2) == (update.uuid, update.status, update.terminal, update.sequence)
    assert UpdateProgress.ACKNOWLEDGED is update.progress
    assert {"a": 1} == json.loads(bytes(with_body.body))["metadata"]


async def test_history(scene, client):
    """All updates are returned in order, although they need more than one page."""
    async with scene.relay():
        updates = [await scene.publish(JOB, "received") for _ in range(101)]
        await scene.settled(*updates)
        sequences = [update.sequence async for update in client.history(JOB)]
        later = [update.sequence async for update in client.history(JOB, after=99)]
    assert list(range(1, 102)) == sequences
    assert [100, 101] == later


async def test_unknown_job(scene, client):
    """If no update of the job is stored, the error says so at once."""
    async with scene.relay():
        with pytest.raises(UnknownJob, match=f"no update of job {JOB} is stored"):
            await client.status(JOB)


@pytest.mark.usefixtures("provisioned")
async def test_no_relay(client):
    """If nobody answers, the error says at once that no relay runs."""
    with pytest.raises(NoRelayRunning, match="no relay is running"):
        await client.status(JOB)


async def test_not_a_uuid(client):
    """What is no UUID is refused before NATS is asked."""
    with pytest.raises(InvalidQuery, match="'job-1' is not a UUID"):
        await client.status("job-1")


@pytest.mark.parametrize(
    ("code", "error"), [(400, InvalidQuery), (404, UnknownJob), (500, RelayFault), (418, QueryFailed)]
)
async def test_errors(answering, client, code, error):
    """Each error code has its error, with the relay's text."""
    answering.append(refusal(code))
    with pytest.raises(error, match="because") as raised:
        await client.status(JOB)
    assert error is raised.type


@pytest.mark.parametrize(("code", "error"), [(429, TooManyQueries), (503, AnswerUnavailable)])
async def test_temporary_errors(answering, client, code, error):
    """After a temporary error the client asks again, until its time is over."""
    reply = {"uuid": JOB, "status": "sent", "terminal": False, "sequence": 7, "published": "", "progress": "pending"}
    answering += [refusal(code), refusal(code), (json.dumps(reply).encode(), {})]
    assert 7 == (await client.status(JOB)).sequence
    answering[:] = [refusal(code)]
    with pytest.raises(error, match="because"):
        await client.status(JOB, timeout_s=0.3)


@pytest.mark.parametrize("answer", [b"{", b'{"uuid":"\xff"}', b'{"new":' + b"[" * 100_000])
async def test_unreadable_answer(answering, client, answer):
    """An answer that cannot be read is an error of the client, not a traceback of its parser."""
    answering.append((answer, {}))
    with pytest.raises(QueryFailed, match="cannot be read"):
        await client.status(JOB)


async def test_nats_is_away():
    """If NATS is away, the error names the address that was tried and the reason."""
    async with StatusClient("nats://127.0.0.1:1") as client:
        with pytest.raises(NoAnswer, match=r"no NATS connection to nats://127\.0\.0\.1:1: "):
            await client.status(JOB, timeout_s=0.3)


async def test_nats_comes_back(scene, client):
    """A client outlives a restart of NATS."""
    async with scene.relay():
        await scene.settled(await scene.publish(JOB, "received"))
        await client.status(JOB)
        await scene.server.restart()
        await scene.reconnected()
        progress = UpdateProgress.PENDING
        async with asyncio.timeout(TIMEOUT_S):
            while progress is not UpdateProgress.ACKNOWLEDGED:
                with contextlib.suppress(NoRelayRunning):  # the relay comes back by itself, not before the client
                    progress = (await client.status(JOB)).progress


async def test_follow_over_a_restart(scene, client):
    """Each update is given when it is stored and when it is settled, also if NATS is restarted meanwhile."""
    seen: list[tuple[str | None, str]] = []

    async def follow() -> None:
        async for update in client.follow(JOB):
            seen.append((update.status, str(update.progress)))
            news.set()

    news = asyncio.Event()
    async with scene.relay(), asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as group:
        group.create_task(follow())
        await scene.settled(await scene.publish(JOB, "received"))
        while ("received", "acknowledged") not in seen:
            news.clear()
            await news.wait()
        await scene.server.restart()
        await scene.reconnected()
        await scene.publish(JOB, "failed")
    assert ("failed", "acknowledged") == seen[-1]
    assert 1 == seen.count(("received", "acknowledged"))


async def test_wait_until_relayed(scene, client):
    """The wait for a status ends when this update is settled, also for a job that is not known yet."""
    async with scene.relay():
        waiting = asyncio.create_task(client.wait_until(JOB, relayed="accepted", timeout_s=TIMEOUT_S))
        with scene.facilitator.inject(stall()):
            await scene.publish(JOB, "received")
            await scene.publish(JOB, "accepted")
            await scene.publish(JOB, "completed", {})
            assert not waiting.done()
        update = await waiting
    assert ("accepted", UpdateProgress.ACKNOWLEDGED) == (update.status, update.progress)


async def test_wait_until_terminal(scene, client):
    """The wait for a job's end returns its last update, and tells if that became a dead letter."""
    scene.facilitator.unknown_jobs.add(JOB)
    async with scene.relay(MAX_ATTEMPTS="1"):
        await scene.publish(JOB, "received", dead_letter=Reason.JOB_NOT_FOUND)
        await scene.publish(JOB, "failed", dead_letter=Reason.JOB_NOT_FOUND)
        update = await client.wait_until(JOB, terminal=True, timeout_s=TIMEOUT_S)
    assert ("failed", "dead_lettered", "job_not_found") == (update.status, update.progress, update.reason)


async def test_wait_times_out(scene, client):
    """A wait that ends without success says what is known instead."""
    async with scene.relay():
        with pytest.raises(WaitTimedOut, match="no update of it is stored"):
            await client.wait_until(JOB, terminal=True, timeout_s=0.3)
        await scene.settled(await scene.publish(JOB, "received"))
        with pytest.raises(WaitTimedOut, match=r"`received` \(acknowledged\)"):
            await client.wait_until(JOB, relayed="accepted", timeout_s=1)


async def test_wait_for_nothing(client):
    """A wait must say what it waits for."""
    with pytest.raises(ValueError, match="terminal=True"):
        await client.wait_until(JOB, timeout_s=1)


async def test_receipts(scene, client):
    """Receipts are given as they come, of all jobs or of one; what is no receipt is skipped."""
    other = new_job()

    async def first(receipts) -> list[tuple[str, str | None, Outcome]]:
        async with contextlib.aclosing(receipts):
            async for receipt in receipts:
                return [(receipt.uuid, receipt.status, receipt.outcome)]
        raise AssertionError

    async with scene.relay(RECEIPTS="true"), asyncio.timeout(TIMEOUT_S):
        every = asyncio.create_task(first(client.receipts()))
        of_job = asyncio.create_task(first(client.receipts(JOB)))
        for job in (other, JOB):
            await heard_no_receipt(scene.nc, job)
        await scene.settled(await scene.publish(other, "received"))
        assert [(other, "received", Outcome.ACKNOWLEDGED)] == await every
        await scene.settled(await scene.publish(JOB, "accepted"))
        assert [(JOB, "accepted", Outcome.ACKNOWLEDGED)] == await of_job


async def test_too_many_receipts(nc, client, monkeypatch):
    """If receipts come faster than they are taken, the oldest are dropped, and the log says so."""
    monkeypatch.setattr(status_client, "_MOST_RECEIPTS", 3)
    dropped = asyncio.Queue()
    monkeypatch.setattr(status_client, "_log", mock.Mock(warning=lambda text, **_: dropped.put_nowait(text)))
    receipts = [Receipt(JOB, "accepted", number, Outcome.ACKNOWLEDGED, None, 0, 1.0) for number in range(6)]
    async with asyncio.timeout(TIMEOUT_S), contextlib.aclosing(client.receipts()) as taken:
        first = asyncio.create_task(anext(taken))
        await heard_no_receipt(nc, JOB)
        await nc.publish(receipt_subject(JOB), msgspec.json.encode(receipts[0]))
        assert receipts[0] == await first
        for receipt in receipts[1:]:
            await nc.publish(receipt_subject(JOB), msgspec.json.encode(receipt))
        told = [await dropped.get() for _ in range(2)]
        assert receipts[3:] == [await anext(taken) for _ in range(3)]
    assert ["receipts come faster than they are taken: the oldest is dropped"] * 2 == told


async def test_receipts_are_not_permitted(guarded):
    """A user who may not read receipts is told so, instead of waiting for ever."""
    async with StatusClient(guarded.url, user="producer", password=password("producer")) as client:
        with pytest.raises(QueryFailed, match=r"may not do this: permissions violation for subscription"):
            await anext(client.receipts())


async def test_questions_are_not_permitted(guarded):
    """A user who may not ask is told so when the time is over."""
    async with StatusClient(guarded.url, user="relay", password=password("relay"), timeout_s=0.5) as client:
        with pytest.raises(NoAnswer, match="permissions violation for publish"):
            await client.status(JOB)


def test_no_server_parts_come_along():
    """Importing and making a client imports no server part."""
    script = f"""
import sys
from relay.client import StatusClient
StatusClient('nats://127.0.0.1:1')
print(sorted(set(sys.modules) & set({SERVER_PARTS})))
"""
    assert ["[]"] == in_a_program(script)
