"""With its dead letter an update is deleted from the status stream, and no other update is."""

import asyncio
import datetime as dt
from dataclasses import replace

import pytest
from dead_letter_kit import JOB, OTHER, Dlq, change_stream, each
from nats.aio.client import Client
from nats.aio.msg import Msg
from relay_kit import ACKED, Scene, new_job

from relay.contract.errors import JetStreamError
from relay.contract.subjects import (
    STATUS_STREAM,
    Reason,
    api_message_get,
    api_pull,
    api_stream_info,
    lane_consumer,
)
from relay.dead_letters import sources
from relay.dead_letters.replay import Replayer
from relay.dead_letters.replay_all import ReplaySummary
from relay.dead_letters.selection import Selection
from relay.dead_letters.sources import SourceUpdates
from relay.local.facilitator import FacilitatorSimulator
from relay.local.server import NatsServer

both_ways = pytest.mark.parametrize("take", [Dlq.replay, Dlq.purge])


# What is deleted


@both_ways
@pytest.mark.parametrize(
    ("selection", "left"),
    [
        (Selection(), [3]),
        (Selection(job=JOB), [2, 3]),
        (Selection(reason=Reason.TOO_LARGE), [1, 3, 4]),
        (Selection(sequences=(1,)), [2, 3, 4]),
    ],
)
async def test_source_goes_with_its_dead_letter(dlq, take, selection, left):
    """With the dead letters that are replayed or purged, exactly their sources are deleted."""
    await dlq.write()
    await dlq.write(OTHER, reason=Reason.TOO_LARGE)
    await dlq.publish(JOB, b"{}")
    await dlq.write()
    await take(dlq, selection)
    assert left == [sequence for sequence in await dlq.update_sequences() if sequence <= 4]
    assert sorted({1, 2, 4} & set(left)) == [each.source_sequence for each in await dlq.read()]


@both_ways
async def test_stream_made_anew_keeps_its_updates(dlq, take):
    """If the status stream was created again, an update with the job and the sequence of a dead letter is kept."""
    await dlq.write()
    await dlq.write(OTHER)
    await dlq.recreate_stream()
    for job in (JOB, OTHER):
        await dlq.publish(job, b"new")
    await take(dlq)
    assert [b"new", b"new"] == [body for _, body, _ in await dlq.updates()][:2]
    assert [] == await dlq.sequences()


@pytest.mark.parametrize("stride", [1, 64], ids=["look ahead", "look at each"])
@both_ways
async def test_anothers_update_stays(dlq, monkeypatch, take, stride):
    """The update that a dead letter names is kept if it belongs to another job, or is younger than the dead letter."""
    monkeypatch.setattr(sources, "_STRIDE", stride)
    for _ in range(2):
        await dlq.publish(JOB, b"")
    for job, sequence in ((OTHER, 1), (JOB, 3)):
        await dlq.write_for(job, sequence)
    await dlq.publish(JOB, b"")
    for _ in range(2):
        await dlq.publish(new_job(), b"")
    await take(dlq)
    assert [1, 2, 3] == (await dlq.update_sequences())[:3]
    assert [] == await dlq.sequences()


@pytest.mark.parametrize("same_job", [True, False])
async def test_clock_set_back(dlq, same_job):
    """A source is deleted even if its dead letter seems to be older, because a clock was set back in between."""
    await dlq.write_many(2)
    letter = (await dlq.read())[0]
    older = replace(letter, stored_at=letter.stored_at - dt.timedelta(hours=1))
    await SourceUpdates(dlq.client).remove(older, same_job=same_job)
    assert [2] == await dlq.update_sequences()


async def test_clock_set_back_and_stream_made_anew(dlq, monkeypatch):
    """A dead letter of the stream before is not taken for that of an update, even if it seems to be younger."""
    monkeypatch.setattr(sources, "_STRIDE", 1)
    await dlq.write()
    letter = (await dlq.read())[0]
    await dlq.recreate_stream()
    for _ in range(2):
        await dlq.publish()
    later = letter.stored_at + dt.timedelta(hours=1)
    headers = {**letter.headers, "Relay-Source-Stored-At": later.isoformat()}
    await SourceUpdates(dlq.client).remove(replace(letter, stored_at=later, headers=headers), same_job=True)
    assert [1, 2] == await dlq.update_sequences()


async def test_purge_without_a_status_stream(dlq):
    """Dead letters can be purged without a status stream."""
    await dlq.write()
    await dlq.client.jetstream().delete_stream(STATUS_STREAM)
    await dlq.purge()
    assert [] == await dlq.sequences()


async def test_what_may_not_be_deleted(dlq):
    """If the source may not be deleted, its dead letter is kept, so that the operation can be repeated."""
    await dlq.write()
    await change_stream(dlq.client, STATUS_STREAM, deny_delete=True)
    summary, _ = await dlq.replay()
    assert isinstance(summary.error, JetStreamError)
    with pytest.raises(ExceptionGroup) as raised:
        await asyncio.create_task(dlq.purge())  # before Python 3.13 a group leaves its task with a cancellation
    assert summary.error.err_code == raised.value.exceptions[0].err_code
    assert [1] == await dlq.sequences()


async def test_sources_that_are_older_than_their_dead_letters(dlq, monkeypatch):
    """Sources that are old enough need few lookups: their bodies are not read before they are deleted."""
    monkeypatch.setattr(sources, "_STRIDE", 10)
    looks = []

    async def look(message: Msg) -> None:
        looks.append(message.subject)

    for count in range(40):
        await dlq.write(new_job(), str(count).encode())
    for _ in range(10):
        await dlq.publish(new_job(), b"")
    # As after an outage, all dead letters are younger than all updates.
    letters = await dlq.read()
    later = [replace(letter, stored_at=letter.stored_at + dt.timedelta(hours=1)) for letter in letters]
    for subject in (api_message_get(STATUS_STREAM), api_stream_info(STATUS_STREAM)):
        await dlq.client.subscribe(subject, cb=look)
    summary, _ = await dlq.replay_these(each(*later))
    assert ReplaySummary(replayed=40) == summary
    assert 1 == looks.count(api_stream_info(STATUS_STREAM))
    assert 1 <= looks.count(api_message_get(STATUS_STREAM)) <= 5
    assert list(range(41, 51)) == [sequence for sequence in await dlq.update_sequences() if sequence <= 50]


# Interruptions


@both_ways
async def test_interrupted_before_the_letter(dlq, take):
    """A dead letter whose source is already deleted is removed like any other, and nothing else is."""
    await dlq.write_many(2)
    first, _ = await dlq.read()
    await SourceUpdates(dlq.client).remove(first)
    await take(dlq)
    assert [] == [sequence for sequence in await dlq.update_sequences() if sequence <= 2]
    assert [] == await dlq.sequences()


async def test_interrupted_replay_that_failed_again(dlq):
    """If a replay was interrupted before the removal and failed again, it is not doubled: the first dead letter, which
    still exists, is removed with the second one, and so are both sources.
    """
    await dlq.write()
    [first] = await dlq.read()
    copy = (await Replayer(dlq.client).publish(first)).sequence
    raw = await dlq.client.jetstream().get_msg(STATUS_STREAM, copy)
    await dlq.write_for(JOB, copy, raw.data, raw.headers)
    assert ReplaySummary(replayed=1) == (await dlq.replay(Selection(sequences=(2,))))[0]
    assert [] == await dlq.sequences()
    assert [3] == await dlq.update_sequences()


# With a running relay


async def die_before_terminating(client: Client, job: str) -> None:
    """Publish an update, write its dead letter as a worker does, and do not terminate the update."""
    inbox = await client.subscribe(client.new_inbox())
    await client.publish(api_pull(STATUS_STREAM, lane_consumer(0)), b"", reply=inbox.subject)
    ack = await Dlq(client).publish(job, b"bad")
    await inbox.next_msg(5)
    await inbox.unsubscribe()
    await Dlq(client).write_for(job, ack.sequence, b"bad", reason=Reason.INVALID_JSON)


@pytest.mark.parametrize(
    ("take", "moment", "ack_wait_s"),
    # During a takeover, the dead letter must be taken before its source is delivered again.
    [(Dlq.replay, "before", 0.5), (Dlq.replay, "during", 2), (Dlq.purge, "before", 0.5)],
)
async def test_source_that_was_not_terminated(take, moment, ack_wait_s):
    """If a source is deleted before its dead worker could terminate it, the next worker still takes over the lane, and
    neither sends the update nor writes its dead letter again.
    """
    async with (
        NatsServer() as server,
        FacilitatorSimulator() as facilitator,
        Scene(server, facilitator, ACK_WAIT=str(ack_wait_s)) as scene,
    ):
        job = new_job(0)
        await die_before_terminating(scene.nc, job)
        if moment == "before":
            await take(Dlq(scene.nc))
        async with scene.relay():
            if moment == "during":
                await scene.owned(lambda: 0 in scene.owners)
                await take(Dlq(scene.nc))
            assert [ACKED] == await scene.settled(await scene.publish(job, "accepted"))
            await scene.dust_settled()
        letters = [each.source_sequence for each in await scene.dead_letters()]
    assert ["accepted"] == [row.status for row in facilitator.rows]
    assert ([2] if take is Dlq.replay else []) == letters
