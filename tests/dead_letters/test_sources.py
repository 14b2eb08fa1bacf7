"""An update leaves the status stream with its dead letter, and nothing else leaves with it."""

import asyncio
import datetime as dt
from dataclasses import replace

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from relay_kit import ACKED, Scene, new_job
from test_dead_letters import JOB, OTHER, all_of, bury, change, replay_letters, replay_selected, sequences, stored
from update_kit import GivenUpdate

from relay.cli.dlq_purge import remove
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
from relay.core.verdict import DeadLetter
from relay.dead_letters import sources
from relay.dead_letters.replay import Account, Republisher
from relay.dead_letters.sources import Sources
from relay.dead_letters.stored import Selection
from relay.dead_letters.writer import DeadLetterWriter
from relay.local.facilitator import FacilitatorSimulator
from relay.local.server import NatsServer
from relay.nats.connection import api_request, publish_confirmed


async def purge_selected(nc: Client, selection: Selection | None = None) -> None:
    await remove(nc, selection or Selection(), 2**40)


async def stored_sequences(nc: Client) -> list[int]:
    """Which sequences the status stream has."""
    state = (await api_request(nc, api_stream_info(STATUS_STREAM), {"deleted_details": True}))["state"]
    return sorted(set(range(state["first_seq"], state["last_seq"] + 1)) - set(state.get("deleted", [])))


async def status_stream_made_anew(nc: Client) -> None:
    config = (await api_request(nc, api_stream_info(STATUS_STREAM)))["config"]
    await nc.jetstream().delete_stream(STATUS_STREAM)
    await api_request(nc, f"$JS.API.STREAM.CREATE.{STATUS_STREAM}", config)


# What leaves


@pytest.mark.parametrize("take", [replay_selected, purge_selected])
@pytest.mark.parametrize(
    ("selection", "left"),
    [
        (Selection(), [3]),
        (Selection(job=JOB), [2, 3]),
        (Selection(reason=Reason.TOO_LARGE), [1, 3, 4]),
        (Selection(sequences=(1,)), [2, 3, 4]),
    ],
)
async def test_source_leaves_with_its_letter(provisioned, take, selection, left):
    """The sources of the dead letters that are replayed or purged leave with them; of all the rest none does."""
    await bury(provisioned)
    await bury(provisioned, OTHER, reason=Reason.TOO_LARGE)
    await publish_confirmed(provisioned, status_subject(JOB), b"{}")
    await bury(provisioned)
    await take(provisioned, selection)
    assert left == [sequence for sequence in await stored_sequences(provisioned) if sequence <= 4]
    assert sorted({1, 2, 4} & set(left)) == [int(each.source_sequence) for each in await all_of(provisioned)]


@pytest.mark.parametrize("take", [replay_selected, purge_selected])
async def test_stream_made_anew_keeps_its_updates(provisioned, take):
    """Of a status stream that was made anew no update leaves, though it has the job and sequence of a dead letter."""
    await bury(provisioned)
    await bury(provisioned, OTHER)
    await status_stream_made_anew(provisioned)
    for job in (JOB, OTHER):
        await publish_confirmed(provisioned, status_subject(job), b"new")
    await take(provisioned)
    assert [b"new", b"new"] == [body for _, body, _ in await stored(provisioned)][:2]
    assert [] == await sequences(provisioned)


@pytest.mark.parametrize("stride", [1, 64], ids=["look ahead", "look at each"])
@pytest.mark.parametrize("take", [replay_selected, purge_selected])
async def test_anothers_update_stays(provisioned, monkeypatch, take, stride):
    """A dead letter that names the sequence of another job's update, or of a younger one, takes none with it."""
    monkeypatch.setattr(sources, "_STRIDE", stride)
    for _ in range(2):
        await publish_confirmed(provisioned, status_subject(JOB), b"")
    for subject, sequence in ((f"job.status.0.{OTHER}", 1), (f"job.status.0.{JOB}", 3)):
        update = GivenUpdate(subject, sequence, {}, b"{}", 0.0)
        await DeadLetterWriter(provisioned).write(update, DeadLetter(Reason.REFUSED, "told"), 5)
    await publish_confirmed(provisioned, status_subject(JOB), b"")
    for _ in range(2):
        await publish_confirmed(provisioned, status_subject(new_job()), b"")
    await take(provisioned)
    assert [1, 2, 3] == (await stored_sequences(provisioned))[:3]
    assert [] == await sequences(provisioned)


async def test_purge_without_a_status_stream(provisioned):
    """Dead letters can be purged when the status stream is gone."""
    await bury(provisioned)
    await provisioned.jetstream().delete_stream(STATUS_STREAM)
    await purge_selected(provisioned)
    assert [] == await sequences(provisioned)


async def test_what_may_not_be_deleted(provisioned):
    """Where the source may not be deleted its dead letter stays, and so it can be done again."""
    await bury(provisioned)
    await change(provisioned, STATUS_STREAM, deny_delete=True)
    account, _ = await replay_selected(provisioned)
    assert isinstance(account.failure, JetStreamError)
    with pytest.raises(ExceptionGroup) as raised:
        await asyncio.create_task(purge_selected(provisioned))  # before Python 3.13 a group leaves its task cancelling
    assert account.failure.err_code == raised.value.exceptions[0].err_code
    assert [1] == await sequences(provisioned)


async def test_sources_that_are_older_than_their_dead_letters(provisioned, monkeypatch):
    """Of many sources that are old enough few are looked at: their bodies are not fetched to be removed."""
    monkeypatch.setattr(sources, "_STRIDE", 10)
    looks = []

    async def look(message: Msg) -> None:
        looks.append(message.subject)

    for count in range(40):
        await bury(provisioned, new_job(), str(count).encode())
    for _ in range(10):
        await publish_confirmed(provisioned, status_subject(new_job()), b"")
    # As after an outage: all dead letters are younger than all updates.
    letters = await all_of(provisioned)
    later = [replace(letter, stored_at=letter.stored_at + dt.timedelta(hours=1)) for letter in letters]
    for subject in (api_message_get(STATUS_STREAM), api_stream_info(STATUS_STREAM)):
        await provisioned.subscribe(subject, cb=look)
    account, _ = await replay_letters(provisioned, *later)
    assert Account(replayed=40) == account
    assert 1 == looks.count(api_stream_info(STATUS_STREAM))
    assert 1 <= looks.count(api_message_get(STATUS_STREAM)) <= 5
    assert list(range(41, 51)) == [sequence for sequence in await stored_sequences(provisioned) if sequence <= 50]


# What is interrupted


@pytest.mark.parametrize("take", [replay_selected, purge_selected])
async def test_interrupted_before_the_letter(provisioned, take):
    """A dead letter whose source is gone already is removed like any other, and nothing else is."""
    await bury(provisioned)
    await bury(provisioned)
    first, _ = await all_of(provisioned)
    await Sources(provisioned).remove(first)
    await take(provisioned)
    assert [] == [sequence for sequence in await stored_sequences(provisioned) if sequence <= 2]
    assert [] == await sequences(provisioned)


async def test_interrupted_replay_that_failed_again(provisioned):
    """A replay that was interrupted before the removal, and failed again, is not doubled: the dead letter that is left
    of the first time goes with that of the second, in whatever order they are replayed, and so do both sources.
    """
    await bury(provisioned)
    [first] = await all_of(provisioned)
    copy = (await Republisher(provisioned).publish(first)).sequence
    raw = await provisioned.jetstream().get_msg(STATUS_STREAM, copy)
    again = GivenUpdate(raw.subject, copy, raw.headers, raw.data, 0.0)
    await DeadLetterWriter(provisioned).write(again, DeadLetter(Reason.REFUSED, "again"), 5)
    assert Account(replayed=1) == (await replay_selected(provisioned, Selection(sequences=(2,))))[0]
    assert [] == await sequences(provisioned)
    assert [3] == await stored_sequences(provisioned)


# Beside a relay that runs


async def take_in_hand(nc: Client, job: str) -> int:
    """Publish an update, and be the worker that has its dead letter stored and dies before it can end the update."""
    inbox = await nc.subscribe(nc.new_inbox())
    await nc.publish(api_pull(STATUS_STREAM, lane_consumer(0)), b"", reply=inbox.subject)
    ack = await publish_confirmed(nc, status_subject(job), b"bad")
    message = await inbox.next_msg(5)
    await inbox.unsubscribe()
    update = GivenUpdate(message.subject, ack.sequence, {}, message.data, message.metadata.timestamp.timestamp())
    await DeadLetterWriter(nc).write(update, DeadLetter(Reason.INVALID_JSON, "told"), 0)
    return ack.sequence


@pytest.mark.parametrize(
    ("take", "moment"), [(replay_selected, "before"), (replay_selected, "during"), (purge_selected, "before")]
)
async def test_source_that_was_not_ended(take, moment):
    """A source may leave before its worker, which died, could end it: the next one takes the lane over all the same,
    and neither sends it nor writes its dead letter again.
    """
    async with (
        NatsServer() as server,
        FacilitatorSimulator() as facilitator,
        Scene(server, facilitator, ACK_WAIT="0.5") as scene,
    ):
        job = new_job(0)
        await take_in_hand(scene.nc, job)
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
