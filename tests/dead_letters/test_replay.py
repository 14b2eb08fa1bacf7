"""Dead letters are replayed once and in order, also after interruptions."""

import asyncio
import itertools
import signal

import pytest
from cli_kit import TIMEOUT_S, start_command
from dead_letter_kit import JOB, OTHER, Dlq, change_stream
from nats.aio.msg import Msg
from oracle import Published
from relay_kit import TERMED, Scene, counters, new_job

from relay.contract.subjects import STATUS_STREAM, dlq_subject, status_subject
from relay.dead_letters.replay import Replayer
from relay.dead_letters.replay_all import ReplaySummary
from relay.local.facilitator import FacilitatorSimulator
from relay.local.server import NatsServer
from relay.nats.jetstream import publish_confirmed


async def test_replay(dlq):
    """A replayed update is stored as it was, with marks, in stream order, and its dead letter is removed."""
    bodies = [b'{"n": 1}', b"\xff", b""]
    for body in bodies:
        await dlq.write(body=body, X_Trace=str(len(body)), Nats_Msg_Id=f"id-{len(body)}")
    letters = await dlq.read()
    summary, _ = await dlq.replay()
    assert ReplaySummary(replayed=3) == summary
    replays = await dlq.updates(4)
    assert [(JOB, body) for body in bodies] == [(job, body) for job, body, _ in replays]
    for letter, (_, body, headers) in zip(letters, replays, strict=True):
        assert (str(letter.sequence), str(len(body))) == (headers["Relay-Replayed-From"], headers["X-Trace"])
        assert f"refused 5 {letter.failed_at}" == headers["Relay-History"]
        assert {"Relay-Replayed-From", "Relay-History"} == {name for name in headers if name.startswith("Relay-")}
    assert [] == await dlq.sequences()


async def forget_message_ids(dlq: Dlq) -> None:
    """Wait until the server has forgotten all message ids, as after its duplicate window.

    A change of the window makes the server look for expired ids, but that look may still go by the old window. So the
    window is changed again until they are gone.
    """
    probe = {"Nats-Msg-Id": "probe"}
    await dlq.publish("probe", headers=probe)
    for window_ns in itertools.count(100_000_000):
        await change_stream(dlq.client, STATUS_STREAM, duplicate_window=window_ns)
        if not (await dlq.publish("probe", headers=probe)).duplicate:
            return


@pytest.mark.parametrize("later", [0, 3], ids=["nothing since", "updates since"])
async def test_interrupted_before_the_removal(dlq, later):
    """A replay that was stored is found and not sent again, whatever came after it, and however long ago it was."""
    await dlq.write_many(2)
    replayer = Replayer(dlq.client)
    sent = [(await replayer.publish(letter)).sequence for letter in await dlq.read()]
    for _ in range(later):
        await dlq.publish(JOB, b"later")
    await forget_message_ids(dlq)
    before = await dlq.updates(3)
    summary, results = await dlq.replay()
    assert ReplaySummary(already_stored=2) == summary
    assert sent == [result.sequence for result in results]
    assert before == await dlq.updates()
    assert [] == await dlq.sequences()


async def test_the_status_stream_was_made_anew(dlq):
    """After the stream was created again, reused sequences do not affect whether a replay counts as stored."""
    for _ in range(3):
        await dlq.publish(OTHER, b"")
    await dlq.write_many(2)
    await dlq.recreate_stream()
    first, _ = await dlq.read()
    await Replayer(dlq.client).publish(first)
    summary, _ = await dlq.replay()
    assert ReplaySummary(replayed=1, already_stored=1) == summary
    assert 2 == len(await dlq.updates())


async def test_two_replays_at_a_time(dlq):
    """If two operators replay the same dead letters at once, each update is stored once, and each job's in order."""
    for count in range(40):
        await dlq.write(JOB if count % 4 else OTHER, b"%d" % count)
    ended = await asyncio.gather(*(dlq.replay() for _ in range(2)))
    assert [None, None] == [summary.error for summary, _ in ended]
    replays = [(job, int(body)) for job, body, _ in await dlq.updates(41)]
    assert 40 == len(replays)
    for job in (JOB, OTHER):
        expected = [count for count in range(40) if (count % 4 == 0) is (job == OTHER)]
        assert expected == [count for each, count in replays if each == job]
    assert [] == await dlq.sequences()


async def test_producer_goes_on_meanwhile(dlq):
    """If a job's producer publishes during a replay, the replay is neither stopped nor doubled."""
    for count in range(20):
        await dlq.write(body=b"replay %d" % count)
    new, seen = 0, set[bytes]()

    async def produce(message: Msg) -> None:
        nonlocal new
        if b"replay" in message.data and message.data not in seen:
            seen.add(message.data)  # a publish that is refused is seen here as well
            await dlq.publish(JOB, b"new")
            new += 1

    subscription = await dlq.client.subscribe(status_subject(JOB), cb=produce)
    summary, _ = await dlq.replay()
    await subscription.drain()
    assert (ReplaySummary(replayed=20), 20) == (summary, new)
    replays = [body for _, body, _ in await dlq.updates(21) if body != b"new"]
    assert [b"replay %d" % count for count in range(20)] == replays


async def test_killed_half_way(dlq, nats_server, tmp_path):
    """A replay that is killed and run again stores each update once, and leaves no dead letter."""
    jobs = [new_job() for _ in range(10)]
    for count in range(200):
        await dlq.write(jobs[count % 10], b"%d" % count)
    half = await dlq.updates_published(100)
    process = await start_command(tmp_path, "dlq", "replay", "--all", NATS_URL=nats_server.url)
    async with asyncio.timeout(TIMEOUT_S):
        await half.wait()
        process.send_signal(signal.SIGKILL)
        await process.communicate()
    summary, _ = await dlq.replay()
    assert None is summary.error
    assert summary.replayed < 150, "it was killed too late to show anything"
    replays = [int(body) for _, body, _ in await dlq.updates(201)]
    assert 200 == len(replays)
    for job in range(10):
        assert list(range(job, 200, 10)) == [count for count in replays if count % 10 == job]
    assert [] == await dlq.sequences()


async def test_dead_letters_that_cannot_be_replayed(dlq):
    """Dead letters that cannot be replayed are kept and reported, and the others are replayed."""
    await publish_confirmed(dlq.client, dlq_subject("somebody"), b"by hand")
    await dlq.write(body=b"x" * await dlq.max_size())
    await dlq.write(OTHER)
    summary, results = await dlq.replay()
    assert ReplaySummary(replayed=1, problems=2) == summary
    assert [1, 2] == await dlq.sequences()
    problems = {result.letter.sequence: result.problem for result in results}
    assert "on which subject" in problems[1]
    assert "too large" in problems[2]


async def test_history_gives_way_to_the_body(dlq):
    """If an update has no room for its history, it is replayed without it."""
    await dlq.write(body=b"x" * (await dlq.max_size() - 250))
    summary, _ = await dlq.replay()
    assert ReplaySummary(replayed=1) == summary
    [(_, _, headers)] = await dlq.updates(2)
    assert (True, False) == ("Relay-Replayed-From" in headers, "Relay-History" in headers)


async def test_replayed_update_reaches_the_facilitator():
    """When an unknown job has become known, its updates are replayed, and the Facilitator gets them.

    A replay that fails again has its history, and replayed updates are counted separately.
    """
    async with NatsServer() as server, FacilitatorSimulator() as facilitator, Scene(server, facilitator) as scene:
        job = new_job()
        facilitator.unknown_jobs.add(job)
        async with scene.relay() as relay:
            updates = [await scene.publish(job, status, {}) for status in ("accepted", "completed")]
            await scene.settled(*updates)
            _, results = await Dlq(scene.nc).replay()
            assert [TERMED] * 2 == await scene.settled(*(Published(each.sequence, job, None) for each in results))
            again = await Dlq(scene.nc).read()
            facilitator.unknown_jobs.clear()
            assert ReplaySummary(replayed=2) == (await Dlq(scene.nc).replay())[0]
            await scene.dust_settled()
            counted = {name: count for name, count in counters(relay).items() if name.startswith("relay_replayed")}
        assert {
            "relay_replayed_updates acknowledged": 2,
            "relay_replayed_updates duplicate": 0,
            "relay_replayed_updates dead_lettered": 2,
        } == counted
        assert ["accepted", "completed"] == [row.status for row in facilitator.rows_of(job)]
        assert [] == await Dlq(scene.nc).sequences()
    assert ["JOB_STATUS:3", "JOB_STATUS:4"] == [letter.headers["Nats-Msg-Id"] for letter in again]
    assert ["1", "2"] == [letter.replayed_from for letter in again]
    for letter in again:
        assert [("job_not_found", "3")] == [(failure.reason, failure.attempts) for failure in letter.history]
        assert ("job_not_found", "3") == (letter.reason, letter.attempts)
        assert not [name for name in letter.headers if name.startswith("Relay-Original-")]
