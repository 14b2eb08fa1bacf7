"""Dead letters as an operator works with them: read, published again once, removed."""

import asyncio
import contextlib
import datetime as dt
import itertools
import json
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.errors import NotFoundError
from relay_kit import TERMED, Published, Scene, counters, new_job
from update_kit import GivenUpdate

from relay.cli.dlq_purge import remove, survey
from relay.contract.errors import BrokerUnavailable, JetStreamError, NotProvisioned
from relay.contract.subjects import (
    DLQ_STREAM,
    STATUS_STREAM,
    STATUS_SUBJECTS,
    Reason,
    api_consumer_delete,
    api_consumer_list,
    api_message_delete,
    api_stream_info,
    api_stream_update,
    dlq_subject,
    status_subject,
)
from relay.core.verdict import DeadLetter
from relay.dead_letters import store as dead_letter_store
from relay.dead_letters.replay import Account, Replayed, Republisher, replay_all
from relay.dead_letters.store import DeadLetterStore
from relay.dead_letters.stored import Selection, StoredDeadLetter
from relay.dead_letters.writer import DeadLetterWriter
from relay.local.facilitator import FacilitatorSimulator
from relay.local.server import NatsServer
from relay.nats.connection import api_request, publish_confirmed
from relay.nats.pipeline import pipelined

JOB, OTHER = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"
TIMEOUT_S = 30


async def bury(nc: Client, job: str = JOB, body: bytes = b"{}", reason: Reason = Reason.REFUSED, **headers: str) -> int:
    """Publish an update and write its dead letter, as a relay would; returns the update's sequence."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    ack = await publish_confirmed(nc, status_subject(job), body, given or None)
    stored = GivenUpdate(f"job.status.0.{job}", ack.sequence, given, body, 0.0)
    await DeadLetterWriter(nc).write(stored, DeadLetter(reason, "told"), 5)
    return ack.sequence


async def all_of(nc: Client, selection: Selection | None = None, up_to: int | None = None) -> list[StoredDeadLetter]:
    store = DeadLetterStore(nc)
    last = await store.last_sequence() if up_to is None else up_to
    return [letter async for letter in store.read(selection or Selection(), last)]


async def sequences(nc: Client, selection: Selection | None = None, up_to: int | None = None) -> list[int]:
    return [letter.sequence for letter in await all_of(nc, selection, up_to)]


async def stored(nc: Client, start: int = 1) -> list[tuple[str, bytes, dict[str, str]]]:
    """The updates that the status stream has from a sequence on: job, body and headers of each."""
    info = await api_request(nc, api_stream_info(STATUS_STREAM))
    found = []
    for sequence in range(start, info["state"]["last_seq"] + 1):
        with contextlib.suppress(NotFoundError):
            raw = await nc.jetstream().get_msg(STATUS_STREAM, sequence)
            found.append((raw.subject.split(".")[3], raw.data or b"", raw.headers or {}))
    return found


async def change(nc: Client, stream: str, **fields: Any) -> None:
    config = (await api_request(nc, api_stream_info(stream)))["config"]
    await api_request(nc, api_stream_update(stream), config | fields)


async def replay_letters(nc: Client, *letters: StoredDeadLetter) -> tuple[Account, list[Replayed]]:
    """What `relay dlq replay` does, with an operator's fresh memory."""
    account, done = Account(), []

    async def each() -> AsyncIterator[StoredDeadLetter]:
        for letter in letters:
            yield letter

    async with pipelined(nc) as pipeline:
        await replay_all(each(), Republisher(pipeline).move, account=account, on_replayed=done.append)
    return account, done


async def replay_selected(nc: Client, selection: Selection | None = None) -> tuple[Account, list[Replayed]]:
    """The same with what is selected."""
    store, account, done = DeadLetterStore(nc), Account(), []
    letters = store.read(selection or Selection(), await store.last_sequence())
    async with pipelined(nc) as pipeline, contextlib.aclosing(letters):
        await replay_all(letters, Republisher(pipeline).move, account=account, on_replayed=done.append)
    return account, done


# Reading


async def test_selections(provisioned):
    """Each condition of a selection takes its own, in stream order, and all conditions hold together."""
    await bury(provisioned)
    await bury(provisioned, OTHER, reason=Reason.TOO_LARGE)
    third = await bury(provisioned, reason=Reason.TOO_LARGE)
    letters = await all_of(provisioned)
    assert [1, 2, 3] == [letter.sequence for letter in letters]
    assert (Reason.TOO_LARGE, "told", "5", JOB, str(third)) == (
        *(letters[2].reason, letters[2].error, letters[2].attempts),
        *(letters[2].job, letters[2].source_sequence),
    )
    for expected, selection in (
        ([1, 3], Selection(job=JOB)),
        ([2, 3], Selection(reason=Reason.TOO_LARGE)),
        ([3], Selection(job=JOB, reason=Reason.TOO_LARGE)),
        ([1, 2], Selection(limit=2)),
        ([2], Selection(reason=Reason.TOO_LARGE, limit=1)),
        ([2, 3], Selection(since=letters[1].stored_at)),
        ([], Selection(since=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1))),
        ([1, 3], Selection(sequences=(3, 1, 9, 3))),
        ([], Selection(job="nobody")),
    ):
        assert expected == await sequences(provisioned, selection), selection


async def test_one_letter(provisioned):
    """One dead letter is had by its sequence, and the absence of one is no error."""
    await bury(provisioned, body=b"\xff", X_Trace="7b")
    store = DeadLetterStore(provisioned)
    letter = await store.get(1)
    assert (1, b"\xff", "7b") == (letter.sequence, letter.body, letter.headers["X-Trace"])
    assert abs(dt.datetime.now(dt.UTC) - letter.stored_at) < dt.timedelta(minutes=1)
    assert None is await store.get(2)


async def test_reading_ends(provisioned):
    """What comes while dead letters are read is not read: reading ends however many come."""
    for _ in range(3):
        await bury(provisioned)
    read = []
    async for letter in DeadLetterStore(provisioned).read(Selection(), 3):
        await bury(provisioned)
        read.append(letter.sequence)
    assert [1, 2, 3] == read
    assert [1, 2] == await sequences(provisioned, up_to=2)


async def test_consumer_goes_away(provisioned, monkeypatch):
    """Who pauses for long over what is read goes on where the reading was, and leaves no consumer behind."""
    monkeypatch.setattr(dead_letter_store, "_BATCH", 2)
    for _ in range(5):
        await bury(provisioned)
    read = []
    async for letter in DeadLetterStore(provisioned).read(Selection(), 5):
        read.append(letter.sequence)
        if letter.sequence == 3:
            (consumer,) = (await api_request(provisioned, api_consumer_list(DLQ_STREAM)))["consumers"]
            await api_request(provisioned, api_consumer_delete(DLQ_STREAM, consumer["name"]))
    assert [1, 2, 3, 4, 5] == read
    assert 0 == (await api_request(provisioned, api_consumer_list(DLQ_STREAM)))["total"]


async def test_messages_lost_on_the_way(provisioned, monkeypatch):
    """A message that is lost on the way, as in a reconnect, is noticed and asked for again."""
    for _ in range(5):
        await bury(provisioned)
    take, lost = dead_letter_store._Reading.take, []

    def lose_the_third(reading, *message):
        if reading.next_sequence == 3 and not lost:
            lost.append(message)
        else:
            take(reading, *message)

    monkeypatch.setattr(dead_letter_store._Reading, "take", lose_the_third)
    assert [1, 2, 3, 4, 5] == await sequences(provisioned)
    assert 1 == len(lost)


async def test_nothing_comes(provisioned, monkeypatch):
    """Reading that gets nothing in spite of new consumers ends with an error that says where it stands."""
    monkeypatch.setattr(dead_letter_store, "_SILENCE_S", 0.05)
    await bury(provisioned)

    monkeypatch.setattr(dead_letter_store._Reading, "take", lambda *_: None)
    with pytest.raises(BrokerUnavailable, match="stopped coming at sequence 1"):
        await sequences(provisioned)


async def test_without_a_stream(nc):
    """Without a dead-letter stream the error says so, and what to run."""
    with pytest.raises(NotProvisioned, match=r"stream JOB_DLQ is missing.*relay provision"):
        await DeadLetterStore(nc).last_sequence()


# Removing


async def test_remove(provisioned):
    """What is removed is gone, what is gone already is no error, and what may not be removed is one."""
    await bury(provisioned)
    await bury(provisioned)
    store = DeadLetterStore(provisioned)
    assert (True, False, False) == (await store.remove(1), await store.remove(1), await store.remove(9))
    assert [2] == await sequences(provisioned)
    await change(provisioned, DLQ_STREAM, deny_delete=True)
    with pytest.raises(JetStreamError):
        await store.remove(2)


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
async def test_purge_takes_what_was_surveyed(provisioned, tmp_path, selection, left):
    """Exactly what was exported is removed: nothing that others removed or that came in between shifts it."""
    await bury(provisioned)
    await bury(provisioned, OTHER, reason=Reason.TOO_LARGE)
    await bury(provisioned)
    await bury(provisioned)
    store, path = DeadLetterStore(provisioned), tmp_path / "letters"
    found = await survey(store, selection, path)
    await bury(provisioned, reason=Reason.TOO_LARGE)
    exported = [json.loads(line)["sequence"] for line in path.read_text().splitlines()]
    assert sorted({1, 2, 3, 4, 5} - set(exported)) == left
    assert len(exported) == found.reasons.total() == await remove(provisioned, selection, found.last_sequence)
    assert left == await sequences(provisioned)


async def test_purge_with_a_limit_after_somebody_else(provisioned):
    """A limit counts what was surveyed: that somebody removed one of those does not reach out to another."""
    for _ in range(3):
        await bury(provisioned)
    store, selection = DeadLetterStore(provisioned), Selection(limit=2)
    found = await survey(store, selection, None)
    await store.remove(1)
    assert 1 == await remove(provisioned, selection, found.last_sequence)
    assert [3] == await sequences(provisioned)


async def test_purge_of_nothing(provisioned):
    """A bound of nothing removes nothing."""
    await bury(provisioned)
    assert 0 == await DeadLetterStore(provisioned).remove_all("job.dlq.*", 0)
    assert [1] == await sequences(provisioned)


# Replaying


async def test_replay(provisioned):
    """A replay is stored as the update that it was, marked, in stream order, and its dead letter is gone."""
    bodies = [b'{"n": 1}', b"\xff", b""]
    for body in bodies:
        await bury(provisioned, body=body, X_Trace=str(len(body)), Nats_Msg_Id=f"id-{len(body)}")
    letters = await all_of(provisioned)
    account, _ = await replay_selected(provisioned)
    assert Account(replayed=3) == account
    replays = await stored(provisioned, 4)
    assert [(JOB, body) for body in bodies] == [(job, body) for job, body, _ in replays]
    for letter, (_, body, headers) in zip(letters, replays, strict=True):
        assert (str(letter.sequence), str(len(body))) == (headers["Relay-Replayed-From"], headers["X-Trace"])
        assert f"refused 5 {letter.failed_at}" == headers["Relay-History"]
        assert {"Relay-Replayed-From", "Relay-History"} == {name for name in headers if name.startswith("Relay-")}
    assert [] == await sequences(provisioned)


async def forget_message_ids(nc: Client) -> None:
    """Until the server knows no message id any more, as it does after its duplicate window."""
    await change(nc, STATUS_STREAM, duplicate_window=100_000_000)
    probe = {"Nats-Msg-Id": "probe"}
    await publish_confirmed(nc, status_subject("probe"), b"", probe)
    while (await publish_confirmed(nc, status_subject("probe"), b"", probe)).duplicate:
        pass


@pytest.mark.parametrize("later", [0, 3], ids=["nothing since", "updates since"])
async def test_interrupted_before_the_removal(provisioned, later):
    """An update whose replay was stored is found, whatever came after it and however long ago, and not sent again."""
    await bury(provisioned)
    await bury(provisioned)
    first, second = await all_of(provisioned)
    republisher = Republisher(provisioned)
    sent = [(await republisher.publish(letter)).sequence for letter in (first, second)]
    for _ in range(later):
        await publish_confirmed(provisioned, status_subject(JOB), b"later")
    await forget_message_ids(provisioned)
    before = await stored(provisioned, 3)
    account, done = await replay_selected(provisioned)
    assert Account(were_there=2) == account
    assert sent == [replayed.sequence for replayed in done]
    assert before == await stored(provisioned)
    assert [] == await sequences(provisioned)


async def test_the_status_stream_was_made_anew(provisioned):
    """Sequences that begin again make no replay look as if it had been stored, nor one that was look as if not."""
    for _ in range(3):
        await publish_confirmed(provisioned, status_subject(OTHER), b"")
    await bury(provisioned)
    await bury(provisioned)
    config = (await api_request(provisioned, api_stream_info(STATUS_STREAM)))["config"]
    await provisioned.jetstream().delete_stream(STATUS_STREAM)
    await api_request(provisioned, f"$JS.API.STREAM.CREATE.{STATUS_STREAM}", config)
    first, _ = await all_of(provisioned)
    await Republisher(provisioned).publish(first)
    account, _ = await replay_selected(provisioned)
    assert Account(replayed=1, were_there=1) == account
    assert 2 == len(await stored(provisioned))


async def test_two_replays_at_a_time(provisioned):
    """Two operators who replay the same at the same time store each update once."""
    for count in range(40):
        await bury(provisioned, JOB if count % 4 else OTHER, f"{count}".encode())
    accounts = [account for account, _ in await asyncio.gather(*(replay_selected(provisioned) for _ in range(2)))]
    assert [None, None] == [account.failure for account in accounts]
    replays = [int(body) for _, body, _ in await stored(provisioned, 41)]
    assert list(range(40)) == sorted(replays)
    for job in (0, 1):  # each job's in order
        kept = [number for number in replays if bool(number % 4) is bool(job)]
        assert sorted(kept) == kept
    assert [] == await sequences(provisioned)


async def test_producer_goes_on_meanwhile(provisioned):
    """Updates that a job's producer publishes meanwhile neither stop a replay nor double it."""
    for count in range(20):
        await bury(provisioned, JOB, f"replay {count}".encode())
    new, seen = 0, set[bytes]()

    async def produce(message: Msg) -> None:
        nonlocal new
        if b"replay" in message.data and message.data not in seen:
            seen.add(message.data)  # a publish that is refused is heard of as well
            await publish_confirmed(provisioned, status_subject(JOB), b"new")
            new += 1

    subscription = await provisioned.subscribe(status_subject(JOB), cb=produce)
    account, _ = await replay_selected(provisioned)
    await subscription.drain()
    assert (Account(replayed=20), 20) == (account, new)
    replays = [body for _, body, _ in await stored(provisioned, 21) if body != b"new"]
    assert [f"replay {count}".encode() for count in range(20)] == replays


async def test_killed_half_way(provisioned, nats_server):
    """A replay that is killed and run again stores each update once, and leaves no dead letter."""
    jobs = [new_job() for _ in range(10)]
    for count in range(200):
        await bury(provisioned, jobs[count % 10], str(count).encode())
    half = asyncio.Event()
    seen = itertools.count(1)

    async def watch(_: object) -> None:
        if next(seen) == 100:
            half.set()

    await provisioned.subscribe(STATUS_SUBJECTS, cb=watch)
    await provisioned.flush()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "relay", "dlq", "replay", "--all"),
        env={"RELAY_NATS_URL": nats_server.url},
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(TIMEOUT_S):
        await half.wait()
        process.send_signal(signal.SIGKILL)
        await process.communicate()
    account, _ = await replay_selected(provisioned)
    assert None is account.failure
    assert account.replayed < 150, "it was killed too late to show anything"
    replays = [int(body) for _, body, _ in await stored(provisioned, 201)]
    assert list(range(200)) == sorted(replays)
    for job in range(10):
        assert list(range(job, 200, 10)) == [count for count in replays if count % 10 == job]
    assert [] == await sequences(provisioned)


async def test_full_status_stream_stops_a_replay(provisioned):
    """What the server refuses stops the replay with its error; the rest stays, and goes when there is room."""
    for count in range(6):
        await bury(provisioned, JOB, str(count).encode())
    await provisioned.jetstream().purge_stream(STATUS_STREAM)  # else each source that leaves makes room
    await change(provisioned, STATUS_STREAM, max_msgs=2)
    account, _ = await replay_selected(provisioned)
    assert (2, 10077) == (account.replayed, account.failure.err_code)
    assert [3, 4, 5, 6] == await sequences(provisioned)
    await change(provisioned, STATUS_STREAM, max_msgs=-1)
    assert Account(replayed=4) == (await replay_selected(provisioned))[0]
    assert [str(count).encode() for count in range(6)] == [body for _, body, _ in await stored(provisioned, 7)]


async def test_unfit_letters_hold_up_nobody(provisioned):
    """A dead letter that cannot be replayed is kept, with the reason told, and the others go."""
    limit = (await api_request(provisioned, api_stream_info(STATUS_STREAM)))["config"]["max_msg_size"]
    await publish_confirmed(provisioned, dlq_subject("somebody"), b"by hand")
    await bury(provisioned, body=b"x" * limit)
    await bury(provisioned, OTHER)
    account, done = await replay_selected(provisioned)
    assert Account(replayed=1, unfit=2) == account
    assert [1, 2] == await sequences(provisioned)
    told = {replayed.letter.sequence: replayed.unfit for replayed in done}
    assert "on which subject" in told[1]
    assert "too large" in told[2]


async def test_history_gives_way_to_the_body(provisioned):
    """An update that has no room for its history is replayed without it."""
    limit = (await api_request(provisioned, api_stream_info(STATUS_STREAM)))["config"]["max_msg_size"]
    await bury(provisioned, body=b"x" * (limit - 250))
    account, _ = await replay_selected(provisioned)
    assert Account(replayed=1) == account
    [(_, _, headers)] = await stored(provisioned, 2)
    assert (True, False) == ("Relay-Replayed-From" in headers, "Relay-History" in headers)


# The whole way


async def test_replayed_update_reaches_the_facilitator():
    """A job that the Facilitator did not know is made there, its updates are replayed, and the Facilitator has them.

    A replay that fails again has its history, and replayed updates are counted apart.
    """
    async with NatsServer() as server, FacilitatorSimulator() as facilitator, Scene(server, facilitator) as scene:
        job = new_job()
        facilitator.unknown_jobs.add(job)
        async with scene.relay() as relay:
            doomed = [await scene.publish(job, status, {}) for status in ("accepted", "completed")]
            await scene.settled(*doomed)
            _, replayed = await replay_selected(scene.nc)
            assert [TERMED] * 2 == await scene.settled(*(Published(each.sequence, job, None) for each in replayed))
            again = await all_of(scene.nc)
            facilitator.unknown_jobs.clear()
            assert Account(replayed=2) == (await replay_selected(scene.nc))[0]
            await scene.dust_settled()
            counted = {name: count for name, count in counters(relay).items() if name.startswith("relay_replayed")}
        assert {
            "relay_replayed_updates acknowledged": 2,
            "relay_replayed_updates duplicate": 0,
            "relay_replayed_updates dead_lettered": 2,
        } == counted
        assert ["accepted", "completed"] == [row.status for row in facilitator.rows_of(job)]
        assert [] == await sequences(scene.nc)
    assert ["JOB_STATUS:3", "JOB_STATUS:4"] == [letter.headers["Nats-Msg-Id"] for letter in again]
    assert ["1", "2"] == [letter.replayed_from for letter in again]
    for letter in again:
        assert [("job_not_found", "3")] == [(ending.reason, ending.attempts) for ending in letter.history]
        assert ("job_not_found", "3") == (letter.reason, letter.attempts)
        assert not [name for name in letter.headers if name.startswith("Relay-Original-")]


async def test_dead_letter_that_cannot_be_looked_up_is_not_removed(provisioned):
    """If nobody can tell whether a dead letter is gone, removing it is an error, and not taken for done."""
    await bury(provisioned)
    await provisioned.jetstream().delete_stream(DLQ_STREAM)
    with pytest.raises(NotProvisioned):
        await DeadLetterStore(provisioned).remove(1)


async def test_deleted_under_the_readers_hands(provisioned):
    """Dead letters that somebody removes while they are read are left out, without an error."""
    for _ in range(4):
        await bury(provisioned)
    up_to = await DeadLetterStore(provisioned).last_sequence()
    for sequence in (2, 4):
        await api_request(provisioned, api_message_delete(DLQ_STREAM), {"seq": sequence})
    assert [1, 3] == await sequences(provisioned, up_to=up_to)
