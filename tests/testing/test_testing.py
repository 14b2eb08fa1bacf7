"""relay.testing: stand-ins have the methods of what they stand for, and the examples of docs/testing.md pass."""

import asyncio
import inspect
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from relay_kit import heard_no_receipt, new_job

from relay.client import JobRequests, Outcome, StatusClient, UnknownJob, UpdateProgress, WaitTimedOut
from relay.contract.errors import LocalServerError
from relay.producer import (
    JobStatusUpdate,
    PublisherFull,
    PublishHeldBack,
    PublishRefused,
    PublishTimedOut,
    StatusPublisher,
    SyncStatusPublisher,
)
from relay.service.app import Relay
from relay.testing import FakeStatusClient, FakeStatusPublisher, FakeSyncStatusPublisher, running_relay
from relay.testing.running_relay import RunningRelay

JOB = "123e4567-e89b-42d3-a456-426614174000"
PAGE = Path(__file__).parents[2] / "docs" / "testing.md"
TIMEOUT_S = 30
ONLY_REAL = {"from_environment", "follow", "receipts"}


@pytest.mark.parametrize(
    ("fake", "real"),
    [
        (FakeStatusPublisher, StatusPublisher),
        (FakeSyncStatusPublisher, SyncStatusPublisher),
        (FakeStatusClient, StatusClient),
    ],
)
def test_same_methods(fake, real):
    """Each public method of the real class is there, with the same parameters."""
    methods = {name for name in vars(real) if not name.startswith("_")} - ONLY_REAL
    for name in methods:
        expected, found = (inspect.signature(getattr(each, name)) for each in (real, fake))
        assert list(expected.parameters) == list(found.parameters), name


async def test_fakes():
    """A publish is stored once, fails as planned, and the client knows what it was given."""
    async with FakeStatusPublisher() as publisher:
        publisher.refuse_next()
        update = JobStatusUpdate(uuid=JOB, status="completed")
        assert isinstance(publisher.submit(update).exception(), PublishRefused)
        pub_acks = [await publisher.publish(update) for _ in range(2)]
        assert [(1, False), (1, True)] == [(pub_ack.sequence, pub_ack.duplicate) for pub_ack in pub_acks]
    async with FakeStatusClient() as client:
        with pytest.raises(UnknownJob):
            await client.status(JOB)
        with pytest.raises(WaitTimedOut):
            await client.wait_until(JOB, terminal=True, timeout_s=1)
        for both_or_neither in ({}, {"relayed": "completed", "terminal": True}):
            with pytest.raises(ValueError, match="wait for a status with `relayed`, or"):
                await client.wait_until(JOB, **both_or_neither, timeout_s=1)
        client.store(update, UpdateProgress.PENDING)
        with pytest.raises(WaitTimedOut):
            await client.wait_until(JOB, terminal=True, timeout_s=1)
        client.store(update)
        last = await client.wait_until(JOB, terminal=True, timeout_s=1)
        assert [1, 2] == [each.sequence async for each in client.history(JOB)]
        assert (2, update.to_json()) == (last.sequence, bytes((await client.status(JOB, body=True)).body))


@pytest.mark.parametrize("fake", [FakeStatusPublisher, FakeSyncStatusPublisher])
async def test_submit_fails_as_planned(fake):
    """`submit` raises at once what the real one raises at once; all else is in its future."""
    publisher, update = fake(), JobStatusUpdate(uuid=JOB, status="completed")
    held_back, full = PublishHeldBack("completed", "accepted", "?"), PublisherFull("completed", 1, 1, 1, 1)
    publisher.fail_next(held_back)
    publisher.fail_next(full)
    publisher.time_out_next()
    assert held_back is publisher.submit(update).exception()
    with pytest.raises(PublisherFull):
        publisher.submit(update)
    assert isinstance(publisher.submit(update).exception(), PublishTimedOut)
    assert 1 == publisher.submit(update).result().sequence


async def test_running_relay(connect):
    """Its relay answers, sends receipts, and stores the job requests that are pushed."""
    job, requested = new_job(), new_job()
    with RunningRelay() as running:
        nc = await connect(running.nats_url)
        async with (
            StatusClient.from_environment(running.variables) as client,
            StatusPublisher.from_environment(running.variables) as publisher,
            JobRequests.from_environment(running.variables, deliver="all") as requests,
            asyncio.timeout(TIMEOUT_S),
        ):
            with pytest.raises(UnknownJob):
                await client.status(job)
            receipt = asyncio.create_task(anext(client.receipts()))
            await heard_no_receipt(nc, job)
            await publisher.publish(JobStatusUpdate(uuid=job, status="accepted"))
            assert (job, Outcome.ACKNOWLEDGED) == ((await receipt).uuid, (await receipt).outcome)
            assert "accepted" == (await client.status(job)).status
            running.push_job_request(requested)
            assert requested == (await anext(aiter(requests))).message.uuid


def test_running_relay_that_cannot_start(monkeypatch, tmp_path):
    """The error says why, and no thread is left."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    running = RunningRelay()
    with pytest.raises(LocalServerError, match="nats-server"):
        running.__enter__()
    assert "relay-for-tests" not in [thread.name for thread in threading.enumerate()]


def test_running_relay_that_does_not_get_ready(monkeypatch):
    """If it does not start in time, the error says for what the relay waits, and no thread is left."""

    async def never(relay: Relay, _: object) -> bool:
        relay._wait_for("the streams are away")
        return await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(Relay, "_until_provisioned", never)
    monkeypatch.setattr(running_relay, "_START_S", 0.2)
    with pytest.raises(LocalServerError, match=r"did not start within 0.2 s: (starting|the streams are away)"):
        RunningRelay().__enter__()
    assert "relay-for-tests" not in [thread.name for thread in threading.enumerate()]


async def test_examples(tmp_path):
    """The examples of the page pass as they stand, in a project of their own."""
    examples = re.findall(r"<!-- example: (\w+) -->\n```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    for name, text in examples:
        (tmp_path / f"test_{name}.py").write_text(text)
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["relay.testing.plugin"]\n')
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "2 passed" in done.stdout, done.stdout + done.stderr
