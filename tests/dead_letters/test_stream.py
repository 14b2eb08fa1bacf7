"""How an operator reads from JOB_DLQ and removes from it."""

import datetime as dt
import json

import pytest
from dead_letter_kit import JOB, OTHER, Dlq, change_stream
from relay_kit import new_job

from relay.cli.dlq_purge import plan_purge
from relay.contract.errors import BrokerUnavailable, JetStreamError, NotProvisioned, RelayError
from relay.contract.subjects import (
    DLQ_STREAM,
    DLQ_SUBJECTS,
    Reason,
    api_consumer_delete,
    api_consumer_list,
    api_message_delete,
)
from relay.dead_letters import stream
from relay.dead_letters.purge import remove
from relay.dead_letters.selection import Selection
from relay.local.server import NatsServer
from relay.nats.jetstream import api_request
from relay.topology.provision import provision

# Reading


async def test_selections(dlq):
    """A selection returns the dead letters that meet all its conditions, in stream order."""
    await dlq.write()
    await dlq.write(OTHER, reason=Reason.TOO_LARGE)
    source = await dlq.write(reason=Reason.TOO_LARGE)
    letters = await dlq.read()
    last = letters[2]
    assert [1, 2, 3] == [letter.sequence for letter in letters]
    assert (Reason.TOO_LARGE, "told", "5", JOB, source) == (
        *(last.reason, last.error, last.attempts, last.job, last.source_sequence),
    )
    for expected, selection in (
        ([1, 3], Selection(job=JOB)),
        ([2, 3], Selection(reason=Reason.TOO_LARGE)),
        ([3], Selection(job=JOB, reason=Reason.TOO_LARGE)),
        ([1, 2], Selection(limit=2)),
        ([2], Selection(reason=Reason.TOO_LARGE, limit=1)),
        ([2, 3], Selection(since=letters[1].stored_at)),
        ([3], Selection(sequences=(1, 3), since=letters[1].stored_at)),
        ([], Selection(since=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1))),
        ([1, 3], Selection(sequences=(3, 1, 9, 3))),
        ([], Selection(job="nobody")),
    ):
        assert expected == await dlq.sequences(selection), selection


async def test_find(dlq):
    """One dead letter is found by its sequence; a missing one is no error."""
    await dlq.write(body=b"\xff", X_Trace="7b")
    letter = await stream.find(dlq.client, 1)
    assert (1, b"\xff", "7b") == (letter.sequence, letter.body, letter.headers["X-Trace"])
    assert abs(dt.datetime.now(dt.UTC) - letter.stored_at) < dt.timedelta(minutes=1)
    assert None is await stream.find(dlq.client, 2)


async def test_reading_ends(dlq):
    """Dead letters that are written during a read are not part of it, so it ends however many come."""
    await dlq.write_many(3)
    read = []
    async for letter in stream.read(dlq.client, Selection(), 3):
        await dlq.write()
        read.append(letter.sequence)
    assert [1, 2, 3] == read
    assert [1, 2] == await dlq.sequences(up_to=2)


async def test_removed_while_reading(dlq):
    """Dead letters that are removed during a read are left out, without an error."""
    await dlq.write_many(4)
    up_to = await stream.last_sequence(dlq.client)
    for sequence in (2, 4):
        await api_request(dlq.client, api_message_delete(DLQ_STREAM), {"seq": sequence})
    assert [1, 3] == await dlq.sequences(up_to=up_to)


async def test_consumer_goes_away(dlq):
    """If a reader pauses until its consumer is deleted, it goes on where it was, and leaves no consumer behind."""
    await dlq.write_many(5)
    read = []
    async for letter in stream.read(dlq.client, Selection(), 5, batch_size=2):
        read.append(letter.sequence)
        if letter.sequence == 3:
            (consumer,) = (await api_request(dlq.client, api_consumer_list(DLQ_STREAM)))["consumers"]
            await api_request(dlq.client, api_consumer_delete(DLQ_STREAM, consumer["name"]))
    assert [1, 2, 3, 4, 5] == read
    assert 0 == (await api_request(dlq.client, api_consumer_list(DLQ_STREAM)))["total"]


async def test_message_lost_on_the_way(dlq, monkeypatch):
    """A message that is lost, as in a reconnect, is noticed and requested again."""
    await dlq.write_many(5)
    take, lost = stream._Reading.take, []

    def lose_the_third(reading, *message):
        if reading.next_sequence == 3 and not lost:
            lost.append(message)
        else:
            take(reading, *message)

    monkeypatch.setattr(stream._Reading, "take", lose_the_third)
    assert [1, 2, 3, 4, 5] == await dlq.sequences()
    assert 1 == len(lost)


async def test_nothing_comes(dlq, monkeypatch):
    """If new consumers deliver nothing either, reading ends with an error that says how far it got."""
    await dlq.write()
    monkeypatch.setattr(stream._Reading, "take", lambda *_: None)
    with pytest.raises(BrokerUnavailable, match="stopped coming at sequence 1"):
        await dlq.sequences(silence_s=0.05)


async def test_a_limit_of_the_server(connect, topology):
    """A server that limits the batch of each request is asked for less, and everything is read."""
    limits = "jetstream: {store_dir: store, limits: {max_request_batch: 2}}"
    async with NatsServer(jetstream=False, extra_config=limits) as server:
        client = await connect(server.url)
        await provision(client, topology)
        dlq = Dlq(client)
        await dlq.write_many(5)
        assert [1, 2, 3, 4, 5] == await dlq.sequences()


# Removing


async def test_remove(dlq):
    """A removed dead letter is gone; a second removal is no error; a removal without permission is one."""
    await dlq.write_many(2)
    assert [True, False, False] == [await stream.remove(dlq.client, sequence) for sequence in (1, 1, 9)]
    assert [2] == await dlq.sequences()
    await change_stream(dlq.client, DLQ_STREAM, deny_delete=True)
    with pytest.raises(JetStreamError):
        await stream.remove(dlq.client, 2)


async def test_without_a_stream(nc):
    """Without a dead-letter stream every function raises an error that says what to run."""
    for attempt in (stream.last_sequence(nc), stream.remove(nc, 1), stream.find(nc, 1)):
        with pytest.raises(NotProvisioned, match=r"stream JOB_DLQ is missing.*relay provision"):
            await attempt


@pytest.mark.parametrize(
    ("selection", "left"),
    [
        (Selection(), [5]),
        (Selection(job=JOB), [2, 5]),
        (Selection(reason=Reason.TOO_LARGE), [1, 3, 4, 5]),
        (Selection(limit=2), [3, 4, 5]),
        (Selection(sequences=(1, 4)), [2, 3, 5]),
    ],
)
async def test_purge_removes_what_was_exported(dlq, tmp_path, selection, left):
    """A purge removes exactly what it exported, whatever is written meanwhile."""
    for job, reason in ((JOB, Reason.REFUSED), (OTHER, Reason.TOO_LARGE), *[(JOB, Reason.REFUSED)] * 2):
        await dlq.write(job, reason=reason)
    path = tmp_path / "export"
    plan = await plan_purge(dlq.client, selection, path)
    await dlq.write(reason=Reason.TOO_LARGE)
    exported = [json.loads(line)["sequence"] for line in path.read_text().splitlines()]
    assert sorted({1, 2, 3, 4, 5} - set(exported)) == left
    assert len(exported) == plan.reasons.total() == await remove(dlq.client, selection, plan)
    assert left == await dlq.sequences()


async def test_limit_of_a_purge(dlq):
    """If a selected dead letter is removed by somebody else, the purge does not take another one in its place."""
    await dlq.write_many(3)
    plan = await plan_purge(dlq.client, Selection(limit=2), None)
    await stream.remove(dlq.client, 1)
    assert 1 == await remove(dlq.client, Selection(limit=2), plan)
    assert [3] == await dlq.sequences()


async def test_purge_of_another_stream(dlq):
    """If the stream is made anew after the count, the dead letters that have the same sequences then are kept."""
    await dlq.write_many(2)
    plan = await plan_purge(dlq.client, Selection(), None)
    await dlq.recreate_stream(DLQ_STREAM)
    await dlq.write_many(2)
    with pytest.raises(RelayError, match="deleted and made anew"):
        await remove(dlq.client, Selection(), plan)
    assert ([1, 2], [1, 2, 3, 4]) == (await dlq.sequences(), await dlq.update_sequences())


async def test_purge_of_nothing(dlq):
    """If there is no dead letter up to the given sequence, nothing is removed."""
    await dlq.write()
    assert 0 == await stream.remove_all(dlq.client, DLQ_SUBJECTS, 0)
    assert [1] == await dlq.sequences()


async def test_few_bytes_are_read_at_a_time(dlq, monkeypatch):
    """However many large dead letters there are, a batch has two of the largest size at most, or 8 MiB."""
    batches, batch = [], stream._Reading.batch

    async def measured(self):
        messages = await batch(self)
        batches.append(sum(len(message.body) for message in messages))
        return messages

    monkeypatch.setattr(stream._Reading, "batch", measured)
    sequences = [await dlq.write(new_job(), b"x" * 6_000_000) for _ in range(5)]
    assert sequences == [letter.source_sequence for letter in await dlq.read()]
    assert max(batches) <= 2 * dlq.client.max_payload
