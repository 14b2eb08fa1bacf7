"""The replies of the protocol page, row by row, and what the relay does with them."""

import asyncio
import re

import pytest
import pytest_asyncio
from relay_kit import ACKED, TERMED, Scene, counters, gauges, new_job

from relay.contract.subjects import Reason
from relay.local.facilitator import FacilitatorSimulator
from relay.local.faults import answer_late, refuse, stall
from relay.local.server import NatsServer

shared = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def calm():
    """One relay for the rows that keep the connection open; each row has its own jobs."""
    async with (
        NatsServer() as server,
        FacilitatorSimulator() as facilitator,
        Scene(server, facilitator, ACK_WAIT="1") as scene,
        scene.relay() as scene.running,
    ):
        await scene.settled(await scene.publish(new_job()))  # it is connected after this
        yield scene
        assert await scene.broken_promises() == []
        assert facilitator.accepted == 1


@shared
async def test_known_job(calm):
    """An update for a known job is stored and acknowledged."""
    before = counters(calm.running)
    first = await calm.publish(job := new_job(), "accepted", {"n": 1})

    assert await calm.settled(first) == [ACKED]
    assert [(row.status, row.metadata) for row in calm.facilitator.rows_of(job)] == [("accepted", {"n": 1})]
    assert counters(calm.running) - before == {"relay_updates acknowledged": 1}


@shared
async def test_repeated(calm):
    """The same status again, with other metadata, is acknowledged as a duplicate; the first one is kept."""
    before = counters(calm.running)
    first = await calm.publish(job := new_job(), "accepted", {"n": 1})
    again = await calm.publish(job, "accepted", {"n": 2})

    assert await calm.settled(first, again) == [ACKED, ACKED]
    assert [row.metadata for row in calm.facilitator.rows_of(job)] == [{"n": 1}]
    assert counters(calm.running) - before == {"relay_updates acknowledged": 1, "relay_updates duplicate": 1}


@shared
async def test_sent(calm):
    """`sent`, which the Facilitator makes itself, is acknowledged as a duplicate."""
    before = counters(calm.running)
    sent = await calm.publish(new_job(), "sent")

    assert await calm.settled(sent) == [ACKED]
    assert counters(calm.running) - before == {"relay_updates duplicate": 1}


@shared
async def test_unknown_job(calm):
    """An update of an unknown job is tried MAX_ATTEMPTS times, then dead-lettered; other jobs do not wait for it."""
    calm.facilitator.unknown_jobs.add(job := new_job())
    before, asked = counters(calm.running), calm.facilitator.replies["job.not_found"]
    lost = [await calm.publish(job, status, dead_letter=Reason.JOB_NOT_FOUND) for status in ("accepted", "failed")]
    other = await calm.publish(new_job())

    assert await calm.settled(*lost, other) == [TERMED, TERMED, ACKED]
    assert calm.facilitator.replies["job.not_found"] - asked == 2 * 3
    letters = await calm.dead_letters(f"job.dlq.{job}")
    assert [letter.source_sequence for letter in letters] == [each.sequence for each in lost]
    assert {letter.headers["Relay-Attempts"] for letter in letters} == {"3"}
    assert {letter.headers["Relay-Error"] for letter in letters} == {
        f"the Facilitator answered 3 times, the last time: job.not_found: Job {job} does not exist."
    }
    assert counters(calm.running) - before == {
        "relay_updates acknowledged": 1,
        "relay_updates dead_lettered": 2,
        "relay_dead_letters job_not_found": 2,
        "relay_retries": 2 * 2,
    }


async def test_a_refusal_is_told(nats_server, facilitator, capsys):
    """Each answer that leads to a retry is logged, with the answer and the update."""
    async with Scene(nats_server, facilitator, MAX_ATTEMPTS="3", LOG_LEVEL="info") as scene, scene.relay():
        facilitator.unknown_jobs.add(job := new_job())
        lost = await scene.publish(job, dead_letter=Reason.JOB_NOT_FOUND)
        assert [TERMED] == await scene.settled(lost)
    told = [line for line in capsys.readouterr().out.splitlines() if "refused, will be tried again" in line]
    assert [1, 2] == [int(re.findall(r"attempts=(\d+)", line)[0]) for line in told]
    assert all(job in line and f"Job {job} does not exist." in line for line in told)


async def test_job_that_becomes_known(nats_server, facilitator):
    """Updates that come before their job are relayed in order as soon as the job is known."""
    async with Scene(nats_server, facilitator, MAX_ATTEMPTS="1000") as scene, scene.relay():
        facilitator.unknown_jobs.add(job := new_job())
        life = await scene.publish_life(job)
        await facilitator.wait_for(lambda facilitator: facilitator.replies["job.not_found"] >= 2)
        facilitator.unknown_jobs.remove(job)

        assert await scene.settled(*life) == [ACKED] * len(life)
        assert await scene.broken_promises() == []


@shared
@pytest.mark.parametrize("error", ["missing", "string_type", "extra_forbidden", "json_invalid", "union_tag_not_found"])
async def test_refused(calm, error):
    """An update that does not fit the Facilitator's schema is dead-lettered at its first answer."""
    job = new_job()
    injection = calm.facilitator.inject(refuse(error, "Not like this."), uuid=job, status="accepted", times=None)
    with injection:
        poor = await calm.publish(job, "accepted", dead_letter=Reason.REFUSED)
        good = await calm.publish(job, "executor_ready")
        assert await calm.settled(poor, good) == [TERMED, ACKED]

    assert injection.hits == 1
    [letter] = await calm.dead_letters(f"job.dlq.{job}")
    assert letter.headers["Relay-Attempts"] == "1"
    assert letter.headers["Relay-Error"] == f"the Facilitator refused the update: {error}: Not like this."


@shared
async def test_refused_for_another_reason(calm):
    """An error that the page does not list may be temporary, so the update is tried MAX_ATTEMPTS times."""
    job = new_job()
    with calm.facilitator.inject(refuse("job.on_fire"), uuid=job, times=None) as injection:
        poor = await calm.publish(job, dead_letter=Reason.REFUSED)
        assert await calm.settled(poor) == [TERMED]
    assert injection.hits == 3


@shared
async def test_refusal_that_echoes_megabytes(calm):
    """An error reply of several megabytes is read, and its text is cut to fit a header."""
    with calm.facilitator.inject(refuse("string_type", "x" * 5_000_000), uuid=(job := new_job())):
        poor = await calm.publish(job, dead_letter=Reason.REFUSED)
        assert await calm.settled(poor) == [TERMED]
    [letter] = await calm.dead_letters(f"job.dlq.{job}")
    assert len(letter.headers["Relay-Error"]) < 1100


@shared
async def test_pushes_between_replies(calm):
    """A push between replies is not taken for a reply."""
    before = counters(calm.running)
    calm.facilitator.service_time_s = 0.002
    updates, *_ = await asyncio.gather(
        calm.publish_lives(5), *(calm.facilitator.push_job_request(new_job()) for _ in range(10))
    )
    assert await calm.settled(*updates) == [ACKED] * len(updates)
    calm.facilitator.service_time_s = 0
    assert counters(calm.running) - before == {"relay_updates acknowledged": 30, "relay_pushes request": 10}


@shared
async def test_late_answer(calm):
    """An answer that comes late, but within the reply timeout, is waited for; it delays other updates no longer."""
    with calm.facilitator.inject(answer_late(0.3), nth=5):
        updates = await calm.publish_lives(5)
        assert await calm.settled(*updates) == [ACKED] * len(updates)


@shared
async def test_window(calm):
    """While the Facilitator stalls, at most 32 updates are unanswered; then all of them go on."""
    with calm.facilitator.inject(stall()) as injection:
        updates = [await calm.publish(new_job()) for _ in range(100)]
        await calm.kept(updates[-1])  # it is at hand, and not sent
        assert gauges(calm.running)["relay_in_flight"] == 32
        injection.lift()
        assert await calm.settled(*updates) == [ACKED] * len(updates)
