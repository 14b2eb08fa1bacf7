"""An update is deleted from the status stream with its dead letter, and no other update is."""

import asyncio
import datetime as dt
from dataclasses import replace

import pytest
from dead_letter_kit import (
    JOB,
    OTHER,
    change_stream,
    dead_letter,
    each,
    purge_selected,
    read_all,
    recreate_status_stream,
    replay,
    replay_selected,
    sequences,
    stored_sequences,
    stored_updates,
    write_dead_letter,
)
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
    status_subject,
)
from relay.dead_letters import sources
from relay.dead_letters.replay import Replayer
from relay.dead_letters.replay_all import ReplaySummary
from relay.dead_letters.selection import Selection
from relay.dead_letters.sources import SourceUpdates
from relay.local.facilitator import FacilitatorSimulator
from relay.local.server import NatsServer
from relay.nats.connection import publish_confirmed

both_ways = pytest.mark.parametrize("take", [replay_selected, purge_selected])


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
async def test_source_goes_with_its_dead_letter(provisioned, take, selection, left):
    """The sources of the dead letters that are replayed or purged are deleted with them, and no other update is."""
    await dead_letter(provisioned)
    await dead_letter(provisioned, OTHER, reason=Reason.TOO_LARGE)
    await publish_confirmed(provisioned, status_subject(JOB), b"{}")
    await dead_letter(provisioned)
    await take(provisioned, selection)
    assert left == [sequence for sequence in await stored_sequences(provisioned) if sequence <= 4]
    assert sorted({1, 2, 4} & set(left)) == [each.source_sequence for each in await read_all(provisioned)]


@both_ways
async def test_stream_made_anew_keeps_its_updates(provisioned, take):
    """After the status stream was made anew, an update is kept that has the job and the sequence of a dead letter."""
    await dead_letter(provisioned)
    await dead_letter(provisioned, OTHER)
    await recreate_status_stream(provisioned)
    for job in (JOB, OTHER):
        await publish_confirmed(provisioned, status_subject(job), b"new")
    await take(provisioned)
    assert [b"new", b"new"] == [body for _, body, _ in await stored_updates(provisioned)][:2]
    assert [] == await sequences(provisioned)


@pytest.mark.parametrize("stride", [1, 64], ids=["look ahead", "look at each"])
@both_ways
async def test_anothers_update_stays(provisioned, monkeypatch, take, stride):
    """The update that a dead letter names is kept if it is another job's, or younger than the dead letter."""
    monkeypatch.setattr(sources, "_STRIDE", stride)
    for _ in range(2):
        await publish_confirmed(provisioned, status_subject(JOB), b"")
    for job, sequence in ((OTHER, 1), (JOB, 3)):
        await write_dead_letter(provisioned, job, sequence)
    await publish_confirmed(provisioned, status_subject(JOB), b"")
    for _ in range(2):
        await publish_confirmed(provisioned, status_subject(new_job()), b"")
    await take(provisioned)
    assert [1, 2, 3] == (await stored_sequences(provisioned))[:3]
    assert [] == await sequences(provisioned)


async def test_purge_without_a_status_stream(provisioned):
    """Dead letters can be purged when the status stream is gone."""
    await dead_letter(provisioned)
    await provisioned.jetstream().delete_stream(STATUS_STREAM)
    await purge_selected(provisioned)
    assert [] == await sequences(provisioned)


async def test_what_may_not_be_deleted(provisioned):
    """If the source may not be deleted, its dead letter stays, so that it can be done again."""
    await dead_letter(provisioned)
    await change_stream(provisioned, STATUS_STREAM, deny_delete=True)
    summary, _ = await replay_selected(provisioned)
    assert isinstance(summary.error, JetStreamError)
    with pytest.raises(ExceptionGroup) as raised:
        await asyncio.create_task(purge_selected(provisioned))  # before Python 3.13 a group leaves its task cancelling
    assert summary.error.err_code == raised.value.exceptions[0].err_code
    assert [1] == await sequences(provisioned)


async def test_sources_that_are_older_than_their_dead_letters(provisioned, monkeypatch):
    """Many sources that are old enough cost few lookups: their bodies are not fetched to be deleted."""
    monkeypatch.setattr(sources, "_STRIDE", 10)
    looks = []

    async def look(message: Msg) -> None:
        looks.append(message.subject)

    for count in range(40):
        await dead_letter(provisioned, new_job(), str(count).encode())
    for _ in range(10):
        await publish_confirmed(provisioned, status_subject(new_job()), b"")
    # As after an outage: all dead letters are younger than all updates.
    letters = await read_all(provisioned)
    later = [replace(letter, stored_at=letter.stored_at + dt.timedelta(hours=1)) for letter in letters]
    for subject in (api_message_get(STATUS_STREAM), api_stream_info(STATUS_STREAM)):
        await provisioned.subscribe(subject, cb=look)
    summary, _ = await replay(provisioned, each(*later))
    assert ReplaySummary(replayed=40) == summary
    assert 1 == looks.count(api_stream_info(STATUS_STREAM))
    assert 1 <= looks.count(api_message_get(STATUS_STREAM)) <= 5
    assert list(range(41, 51)) == [sequence for sequence in await stored_sequences(provisioned) if sequence <= 50]


# What is interrupted


@both_ways
async def test_interrupted_before_the_letter(provisioned, take):
    """A dead letter whose source is gone already is removed like any other, and nothing else is."""
    await dead_letter(provisioned)
    await dead_letter(provisioned)
    first, _ = await read_all(provisioned)
    await SourceUpdates(provisioned).remove(first)
    await take(provisioned)
    assert [] == [sequence for sequence in await stored_sequences(provisioned) if sequence <= 2]
    assert [] == await sequences(provisioned)


async def test_interrupted_replay_that_failed_again(provisioned):
    """A replay that was interrupted before the removal, and failed again, is not doubled: the first dead letter, which
    is still there, goes with the second one, and so do both sources.
    """
    await dead_letter(provisioned)
    [first] = await read_all(provisioned)
    copy = (await Replayer(provisioned).publish(first)).sequence
    raw = await provisioned.jetstream().get_msg(STATUS_STREAM, copy)
    await write_dead_letter(provisioned, JOB, copy, raw.data, raw.headers)
    assert ReplaySummary(replayed=1) == (await replay_selected(provisioned, Selection(sequences=(2,))))[0]
    assert [] == await sequences(provisioned)
    assert [3] == await stored_sequences(provisioned)


# Beside a relay that runs


async def die_before_terminating(client: Client, job: str) -> None:
    """Publish an update, and be the worker that writes its dead letter and dies before it can terminate the update."""
    inbox = await client.subscribe(client.new_inbox())
    await client.publish(api_pull(STATUS_STREAM, lane_consumer(0)), b"", reply=inbox.subject)
    ack = await publish_confirmed(client, status_subject(job), b"bad")
    message = await inbox.next_msg(5)
    await inbox.unsubscribe()
    stored_at_s = message.metadata.timestamp.timestamp()
    await write_dead_letter(client, job, ack.sequence, b"bad", reason=Reason.INVALID_JSON, stored_at_s=stored_at_s)


@pytest.mark.parametrize(
    ("take", "moment"), [(replay_selected, "before"), (replay_selected, "during"), (purge_selected, "before")]
)
async def test_source_that_was_not_terminated(take, moment):
    """If a source is deleted before its worker, which died, could terminate it, the next worker takes the lane over
    all the same, and neither sends the update nor writes its dead letter again.
    """
    async with (
        NatsServer() as server,
        FacilitatorSimulator() as facilitator,
        Scene(server, facilitator, ACK_WAIT="0.5") as scene,
    ):
        job = new_job(0)
        await die_before_terminating(scene.nc, job)
        if moment == "before":
            await take(scene.nc)
        async with scene.relay():
            if moment == "during":
                await scene.owned(lambda: 0 in scene.owners)
                await take(scene.nc)
            assert [ACKED] == await scene.settled(await scene.publish(job, "accepted"))
            await scene.dust_settled()
        letters = [each.source for each in await scene.dead_letters()]
    assert ["accepted"] == [row.status for row in facilitator.rows]
    assert ([2] if take is replay_selected else []) == letters
