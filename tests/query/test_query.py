"""The status service never reports more than is true, and its answers can always be read."""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from relay_kit import ACKED, STATUSES, Scene, new_job, serving, update

from relay.contract.subjects import (
    DLQ_STREAM,
    STATUS_STREAM,
    advisory_subject,
    api_consumer_delete,
    history_subject,
    lane_consumer,
    query_subject,
    status_subject,
)
from relay.local.cluster import NatsCluster
from relay.local.faults import stall
from relay.local.server import DEFAULT_MAX_PAYLOAD
from relay.nats.jetstream import api_request, publish_confirmed
from relay.query.answers import Answers
from relay.query.archive import Archive
from relay.query.progress_sources import ProgressSources

LANES = 4
UUID = "123e4567-e89b-42d3-a456-426614174000"


def error_of(message: Msg) -> tuple[str, str] | None:
    """The code and the text of an error; None for an answer."""
    headers = message.headers or {}
    code = headers.get("Nats-Service-Error-Code")
    return None if code is None else (code, headers["Nats-Service-Error"])


async def asked(nc: Client, subject: str, **request: Any) -> dict[str, Any]:
    message = await nc.request(subject, json.dumps(request).encode() if request else b"", timeout=8)
    assert None is error_of(message)
    return json.loads(message.data)


async def latest(scene: Scene, job: str, **request: Any) -> dict[str, Any]:
    return await asked(scene.nc, query_subject(job), **request)


async def progress(scene: Scene, job: str) -> str:
    return (await latest(scene, job))["progress"]


async def history(scene: Scene, job: str, **request: Any) -> dict[str, Any]:
    return await asked(scene.nc, history_subject(job), **request)


async def pages(scene: Scene, job: str, **request: Any) -> list[list[dict[str, Any]]]:
    """The updates of the whole history, by page."""
    found = [await history(scene, job, **request)]
    while (after := found[-1]["next"]) is not None:
        found.append(await history(scene, job, after=after, **request))
    return [page["updates"] for page in found]


def of_each(updates: list[dict[str, Any]], *fields: str) -> list[tuple[Any, ...]]:
    return [tuple(each[field] for field in fields) for each in updates]


async def progress_without_owners(scene: Scene, job: str) -> str:
    """The progress that a worker without a lane reports while no worker drives one."""
    archive = Archive(scene.nc)
    sources = ProgressSources(scene.nc, archive, lambda _lane, _job: None, LANES)
    return json.loads(await Answers(archive, sources, LANES, lambda: DEFAULT_MAX_PAYLOAD).latest(job, b""))["progress"]


async def settled_job(scene: Scene, lane: int) -> str:
    """A job whose update was settled by a worker that has ended."""
    job = new_job(lane)
    async with serving(scene):
        assert [ACKED] == await scene.settled(await scene.publish(job))
    return job


# The content of answers.


async def test_latest(scene):
    """The answer has the job's last update: status, whether it is final, sequence, time, and progress."""
    job = new_job()
    async with serving(scene):
        *_, last = await scene.publish_life(job)
        assert [ACKED] == await scene.settled(last)
        answer = await latest(scene, job)
    stored = await scene.nc.jetstream().get_msg(STATUS_STREAM, last.sequence)
    published = answer.pop("published")
    assert stored.time.isoformat(timespec="milliseconds")[:23] == published[:23]
    expected = {"uuid": job, "status": "completed", "terminal": True, "sequence": last.sequence}
    assert expected | {"progress": "acknowledged", "reason": None, "dead_letter": None, "unreadable": None} == answer


async def test_body(scene):
    """The body is added on request, as the Facilitator gets it: without envelope, and repaired."""
    job = new_job()
    payload = {"uuid": job, "status": "completed", "metadata": None}
    async with serving(scene):
        await scene.publish_body(job, json.dumps({"type": "job_status_update", "payload": payload}).encode())
        with_body, without = await latest(scene, job, metadata=True), await latest(scene, job, metadata=False)
    assert payload | {"message_type": "V0JobStatusUpdate", "metadata": {}} == with_body.pop("body")
    assert without.keys() == with_body.keys()


async def test_unreadable(scene):
    """An unreadable body has no status; the answer says why, and has the body in base64."""
    job, body = new_job(), b'{"uuid": \xff}'
    async with serving(scene):
        await scene.settled(await scene.publish_body(job, body))
        answer = await latest(scene, job, metadata=True)
    expected = [(None, False, "dead_lettered", "invalid_json")]
    assert expected == of_each([answer], "status", "terminal", "progress", "reason")
    assert answer["unreadable"].startswith("invalid_json: not JSON that every reader understands alike")
    assert body == base64.b64decode(answer["body"])


async def test_dead_letter_that_was_removed_alone(scene):
    """If somebody removes a dead letter and not its update, the lane's owner still does not call it acknowledged."""
    job = new_job()
    async with serving(scene):
        await scene.settled(await scene.publish_body(job, b"{"))
        await scene.nc.jetstream().purge_stream(DLQ_STREAM)
        answer = await latest(scene, job)
    assert [("dead_lettered", None, None)] == of_each([answer], "progress", "reason", "dead_letter")


async def test_history(scene):
    """The history has all updates of a job in order, each with its progress, in pages of the requested length.

    A dead letter only affects the progress of its own update.
    """
    job = new_job()
    async with serving(scene):
        first, second = await scene.publish_life(job, STATUSES[:2])
        bad = await scene.publish_body(job, update(job, "nonsense"))
        last = await scene.publish(job, "completed", {})
        await scene.settled(first, second, bad, last)
        long, short = await pages(scene, job, limit=3)
        beyond = await history(scene, job, after=last.sequence)
    expected = [
        (first.sequence, "received", "acknowledged", None, None),
        (second.sequence, "accepted", "acknowledged", None, None),
        (bad.sequence, None, "dead_lettered", "unknown_status", 1),
        (last.sequence, "completed", "acknowledged", None, None),
    ]
    found = of_each([*long, *short], "sequence", "status", "progress", "reason", "dead_letter")
    assert (3, expected) == (len(long), found)
    assert {"uuid": job, "updates": [], "next": None} == beyond


async def test_large_bodies(scene):
    """A page ends before it is too large for NATS, and a body that is too large for any answer is left out."""
    job, other, large = new_job(), new_job(), new_job()
    async with serving(scene):
        lives = [await scene.publish(job, status, {"text": "x" * 2_400_000}) for status in STATUSES[:5]]
        unreadable = [await scene.publish_body(other, b"\xff" * 2_700_000) for _ in range(3)]
        await scene.settled(*lives, *unreadable, await scene.publish_body(large, b"\xff" * 7_200_000))
        found = await pages(scene, job, metadata=True)
        in_base64 = await pages(scene, other, metadata=True)
        without = await latest(scene, large, metadata=True)
    assert ([3, 2], [2, 1]) == ([len(page) for page in found], [len(page) for page in in_base64])
    assert [each.status for each in lives] == [each["body"]["status"] for page in found for each in page]
    assert (None, "dead_lettered") == (without["body"], without["progress"])


# Progress.


async def test_pending(scene, facilitator):
    """Exactly the updates that the Facilitator has not answered, or that wait for a retry, are pending."""
    stuck, other = new_job(lane=0), new_job(lane=0)
    facilitator.unknown_jobs.add(stuck)
    async with serving(scene, MAX_ATTEMPTS="1000"):
        await scene.publish(stuck)
        await facilitator.wait_for(lambda facilitator: facilitator.replies["job.not_found"] > 0)
        with facilitator.inject(stall(), uuid=other) as stalled:
            published = await scene.publish(other)
            await facilitator.wait_for(lambda _: stalled.hits == 1)
            before = await progress(scene, other)
        await scene.settled(published)
        after = await progress(scene, other)
        assert ("pending", "acknowledged", "pending") == (before, after, await progress(scene, stuck))
        facilitator.unknown_jobs.clear()


async def test_bodies_of_dead_letters_are_not_kept(scene):
    """All dead letters of a job are read for an answer, but their bodies are not kept."""
    job = new_job()
    async with serving(scene):
        await scene.settled(*[await scene.publish_body(job, b"{" * 1_000_000) for _ in range(3)])
        archive = Archive(scene.nc)
        last = await archive.last_dead_letter(job)
        letters = await archive.dead_letters(job, last)
    assert [(1, b""), (2, b""), (3, b"")] == [(letter.source_sequence, letter.body) for letter in (*letters[:2], last)]


async def test_late_dead_letter(scene):
    """A dead letter is found after a later one of an earlier update, as when JetStream gave up on it."""
    job = new_job()
    async with serving(scene):
        first = await scene.publish(job)
        second = await scene.publish_body(job, b"{")
        await scene.settled(first, second)
        headers = {"Relay-Reason": "max_deliver", "Relay-Source-Sequence": str(first.sequence)}
        await publish_confirmed(scene.nc, f"job.dlq.{job}", b"", headers)
        answer = await latest(scene, job)
    expected = [(second.sequence, "dead_lettered", "invalid_json")]
    assert expected == of_each([answer], "sequence", "progress", "reason")


async def test_last_write(facilitator, connect):
    """After a PubAck from one node of a cluster, a read through another node finds the update at once."""
    job = new_job()
    published, read = [], []
    async with (
        NatsCluster() as cluster,
        Scene(cluster.nodes[0], facilitator, REPLICAS="3") as scene,
        serving(scene, NATS_URL=cluster.nodes[1].url),
    ):
        client = await connect(cluster.nodes[2].url)
        for _ in range(100):
            published.append((await scene.publish(job)).sequence)
            read.append((await asked(client, query_subject(job)))["sequence"])
        await client.close()
    assert published == read


async def test_without_an_owner(scene):
    """While no worker drives a lane, exactly what is below its consumer's ack floor counts as settled.

    Nothing does if an advisory shows that JetStream gave up on an update there, or if the consumer is new.
    """
    done, new, in_doubt, forgotten = new_job(0), new_job(0), new_job(1), new_job(2)
    async with serving(scene):
        await scene.settled(*[await scene.publish(job) for job in (done, in_doubt, forgotten)])
    await scene.publish(new)
    await publish_confirmed(scene.nc, advisory_subject(lane_consumer(1)), b"{}")
    await api_request(scene.nc, api_consumer_delete(STATUS_STREAM, lane_consumer(2)))
    said = [await progress_without_owners(scene, job) for job in (done, new, in_doubt, forgotten)]
    await scene.provision()
    said.append(await progress_without_owners(scene, forgotten))
    assert ["acknowledged", *["pending"] * 4] == said


async def test_inherited(scene):
    """What an earlier owner settled is acknowledged once the owner knows that JetStream gave up on none of it."""
    job = await settled_job(scene, lane=0)
    async with serving(scene):
        await scene.settled(await scene.publish(new_job(lane=0)))
        assert "acknowledged" == await progress(scene, job)


async def test_fewer_lanes(scene):
    """Updates of a lane that no longer exists are found; they were settled before it was removed."""
    job = await settled_job(scene, lane=3)
    scene.environment["RELAY_LANES"] = "2"
    await scene.provision()
    async with serving(scene):
        before = await latest(scene, job)
        await scene.settled(await scene.publish(job, "completed", {}))
        whole = await history(scene, job)
    expected = [("accepted", "acknowledged"), ("completed", "acknowledged")]
    assert expected[:1] == of_each([before], "status", "progress")
    assert expected == of_each(whole["updates"], "status", "progress")


async def test_stream_made_anew(scene, facilitator):
    """A new stream's update is pending, even if an old update with its sequence was acknowledged."""
    job = new_job(lane=0)
    async with serving(scene):
        await scene.settled(*[await scene.publish(new_job(lane=0)) for _ in range(3)])
        with facilitator.inject(stall(), uuid=job, times=None):
            await api_request(scene.nc, f"$JS.API.STREAM.DELETE.{STATUS_STREAM}")
            await scene.provision()
            published = await publish_confirmed(scene.nc, status_subject(job), update(job))
            said = {await progress(scene, job) for _ in range(20)}
    assert (1, {"pending"}) == (published.sequence, said)


@contextlib.asynccontextmanager
async def hammered(scene: Scene, jobs: list[str]) -> AsyncIterator[None]:
    """Ask about jobs all the time. What is reported as acknowledged must be stored; at the end all jobs but one are."""
    early: list[str] = []
    enough = asyncio.Event()

    async def ask(job: str) -> None:
        subjects = (query_subject(job), history_subject(job))
        for message in await asyncio.gather(*(scene.nc.request(subject, timeout=1) for subject in subjects)):
            answer = json.loads(message.data) if error_of(message) is None else {"updates": []}
            stored = {row.status for row in scene.facilitator.rows_of(job)}
            updates = answer.get("updates", [answer])
            early.extend(
                f"{job} {each['status']} {each['sequence']}: {sorted(stored)}"
                for each in updates
                if each["progress"] == "acknowledged" and each["status"] not in stored
            )

    async def hammer() -> None:
        while not enough.is_set():
            for job in jobs:
                with contextlib.suppress(TimeoutError, NoRespondersError):  # the worker that was asked has just ended
                    await ask(job)

    async with asyncio.TaskGroup() as group:
        group.create_task(hammer())
        publishing = asyncio.gather(*(scene.publish_life(job) for job in jobs))
        await scene.facilitator.wait_for(lambda facilitator: len(facilitator.rows) >= 20)
        yield
        await publishing
        await scene.dust_settled(20)
        final = {job: await progress(scene, job) for job in jobs}
        enough.set()
    assert [] == early
    unknown = scene.facilitator.unknown_jobs
    assert {job: "dead_lettered" if job in unknown else "acknowledged" for job in jobs} == final


async def test_never_early(scene, facilitator):
    """Asked all the time, during hand-overs and dead letters, the service never reports acknowledged too early."""
    facilitator.service_time_s = 0.002
    jobs = [new_job() for _ in range(24)]
    facilitator.unknown_jobs.add(jobs[0])
    async with serving(scene), hammered(scene, jobs), serving(scene):
        await scene.owned(lambda: len({taking.worker for taking in scene.owners.values()}) == 2)
        await facilitator.wait_for(lambda facilitator: len(facilitator.rows) >= 80)


async def test_never_early_after_a_crash(scene, facilitator):
    """After a crash, other workers never report as acknowledged what the killed one had not got through."""
    facilitator.service_time_s = 0.005
    scene.environment |= {"RELAY_LEASE_TTL": "0.5", "RELAY_ACK_WAIT": "0.5"}
    await scene.provision(downgrade=True)
    async with scene.relay_process() as process, serving(scene):
        await scene.owned(lambda: len(scene.lanes_of(process)) == 2)
        async with hammered(scene, [new_job() for _ in range(12)]):
            process.kill()


# Many workers, many requests.


async def test_any_worker_answers(scene, facilitator):
    """Requests go to all workers; each knows what is settled in lanes of others, also after a job that is stuck."""
    stuck, jobs = ([new_job(lane) for lane in range(LANES)] for _ in range(2))
    facilitator.unknown_jobs.update(stuck)
    inbox = scene.nc.new_inbox()
    answers = await scene.nc.subscribe(inbox)
    async with serving(scene, MAX_ATTEMPTS="1000"), serving(scene, MAX_ATTEMPTS="1000"):
        await scene.owned(lambda: len({taking.worker for taking in scene.owners.values()}) == 2)
        for job in stuck:
            await scene.publish(job)
        await scene.settled(*[await scene.publish(job) for job in jobs])
        said = [await progress(scene, job) for job in jobs * 8]
        await scene.nc.publish("$SRV.STATS.job-status", reply=inbox)
        stats = [json.loads((await answers.next_msg(5)).data) for _ in range(2)]
        facilitator.unknown_jobs.clear()
    counts = [each["endpoints"][0]["num_requests"] for each in stats]
    assert ["acknowledged"] * 32 == said
    assert (32, True) == (sum(counts), min(counts) > 0)


async def test_slow_readers(scene):
    """Two hundred readers of a huge history do not delay requests for a status."""
    giant, job = new_job(), new_job()
    await asyncio.gather(*(publish_confirmed(scene.nc, status_subject(giant), update(giant)) for _ in range(200)))
    async with serving(scene):
        await scene.settled(await scene.publish(job))
        readers = [asyncio.create_task(scene.nc.request(history_subject(giant), timeout=10)) for _ in range(200)]
        await asyncio.wait(readers, return_when=asyncio.FIRST_COMPLETED)
        assert "acknowledged" == await progress(scene, job)
        unfinished = sum(not reader.done() for reader in readers)
        for reader in readers:
            reader.cancel()
        await asyncio.wait(readers)
    assert unfinished >= 150


# Errors.


NOT_A_UUID = "is not a UUID in lower case with hyphens"
UNREADABLE = "the request cannot be read:"
UNKNOWN = f"no update of job {UUID} is stored: none was published, or JOB_STATUS keeps it no longer"
REFUSALS = [
    ("job.query.nonsense", b"", "400", f"'nonsense' {NOT_A_UUID}"),
    (query_subject(UUID.upper()), b"", "400", f"'{UUID.upper()}' {NOT_A_UUID}"),
    ("job.history.\u00e9" + "x" * 80, b"", "400", f"'\\xe9{'x' * 59}...' {NOT_A_UUID}"),
    (query_subject(UUID), b"{", "400", f"{UNREADABLE} Input data was truncated"),
    (query_subject(UUID), b'{"\xff":1}', "400", f"{UNREADABLE} it is not UTF-8"),
    (query_subject(UUID), b"[]", "400", f"{UNREADABLE} Expected `object`, got `array`"),
    (query_subject(UUID), b'{"body": true}', "400", f"{UNREADABLE} Object contains unknown field `body`"),
    (history_subject(UUID), b'{"limit": 201}', "400", f"{UNREADABLE} Expected `int` <= 200 - at `$.limit`"),
    (query_subject(UUID), b"", "404", UNKNOWN),
    (history_subject(UUID), b" ", "404", UNKNOWN),
]


async def test_refusals(scene):
    """A request that cannot be answered gets an error with a code and a sentence, and nothing else."""
    async with serving(scene):
        replies = [await scene.nc.request(subject, body, timeout=5) for subject, body, _, _ in REFUSALS]
    assert [(code, text) for _, _, code, text in REFUSALS] == [error_of(reply) for reply in replies]
    assert {b""} == {reply.data for reply in replies}
