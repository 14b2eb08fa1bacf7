"""SyncStatusClient: the same answers and errors as StatusClient, for threads and on both sides of a fork."""

import asyncio
import itertools
import threading

import pytest
from process_kit import in_a_program
from relay_kit import new_job

from relay.client import (
    ClientClosed,
    ConfigurationError,
    NoRelayRunning,
    SyncStatusClient,
    UnknownJob,
    UpdateProgress,
    WaitTimedOut,
)

JOB = new_job()
STATUSES = ("accepted", "executor_ready", "completed")


async def test_asking(scene, nats_server):
    """Status, history, waiting and following give what the relay says; each error is raised where it is waited for."""

    def ask() -> None:
        with SyncStatusClient(nats_server.url) as client:
            with pytest.raises(UnknownJob):
                client.status(new_job())
            last = client.wait_until(JOB, terminal=True, timeout_s=20)
            assert ("completed", UpdateProgress.ACKNOWLEDGED) == (last.status, last.progress)
            assert last == client.status(JOB)
            assert list(STATUSES) == [update.status for update in client.history(JOB)]
            assert list(STATUSES[:2]) == [update.status for update in itertools.islice(client.follow(JOB), 2)]
            with pytest.raises(WaitTimedOut):
                client.wait_until(new_job(), terminal=True, timeout_s=0.1)

    async with scene.relay():
        await scene.publish_life(JOB, STATUSES)
        await asyncio.gather(*(asyncio.to_thread(ask) for _ in range(3)))
    assert [] == [thread for thread in threading.enumerate() if thread.name == "relay-producer"]


async def test_nobody_answers(nats_server):
    """Without a relay the error says so; a closed client says that it is closed."""
    client = SyncStatusClient(nats_server.url)
    with pytest.raises(NoRelayRunning):
        await asyncio.to_thread(client.status, JOB)
    receipts = client.receipts()
    await asyncio.to_thread(client.close)
    with pytest.raises(ClientClosed):
        await asyncio.to_thread(next, receipts)
    for wrong in ({"timeout_s": 0}, {"servers": "http://h"}):
        with pytest.raises(ConfigurationError):
            SyncStatusClient(**wrong)


async def test_fork(nats_server):
    """A client that was made and used before a fork works in parent and child."""
    script = f"""
import os
from relay.client import *
client = SyncStatusClient({nats_server.url!r})
def ask():
    try: client.status("{JOB}")
    except NoRelayRunning: return 0
ask()
if child := os.fork():
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), ask())
    client.close()
else:
    os._exit(ask() or ask())
"""
    assert ["0 0"] == await asyncio.to_thread(in_a_program, script)
