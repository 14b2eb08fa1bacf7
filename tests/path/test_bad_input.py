"""Every bad update is repaired or dead-lettered with a reason, and does not stop its job's next update."""

import datetime as dt
import json
from dataclasses import dataclass

import pytest
import pytest_asyncio
from relay_kit import ACKED, TERMED, Scene, counters, new_job, update

from relay.contract.errors import PublishUnconfirmed
from relay.contract.subjects import DLQ_STREAM, STATUS_STREAM, Reason
from relay.local.facilitator import FacilitatorSimulator
from relay.local.server import NatsServer
from relay.nats.jetstream import publish_confirmed
from relay.nats.messages import get_message
from relay.service.intervals import Intervals

shared = pytest.mark.asyncio(loop_scope="module")
MIB = 2**20
OTHER_JOB = "00000000-0000-4000-8000-000000000001"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene():
    """One relay for all cases, each with its own jobs; at the end the oracle checks all of them."""
    async with (
        NatsServer(max_payload=32 * MIB) as server,
        FacilitatorSimulator() as facilitator,
        Scene(server, facilitator) as scene,
        scene.relay() as scene.running,
    ):
        yield scene
        assert await scene.broken_promises() == []


@dataclass(frozen=True)
class Bad:
    """A body that must not reach the Facilitator; JOB in it stands for the job's UUID."""

    body: bytes
    reason: Reason
    told: str
    """What the error must contain; ASCII, because it is in a header."""


def bad(reason: Reason, told: str, **fields: object) -> Bad:
    return Bad(update("JOB", **fields), reason, told)


def stdout(text: str) -> dict:
    return {"miner_response": {"docker_process_stdout": text, "docker_process_stderr": ""}}


BAD = {
    "empty": Bad(b"", Reason.INVALID_JSON, "Expecting value"),
    "not JSON": Bad(b"accepted, I think", Reason.INVALID_JSON, "not JSON"),
    "truncated JSON": Bad(update("JOB")[:-1], Reason.INVALID_JSON, "not JSON"),
    "truncated UTF-8": Bad(b'{"uuid":"JOB","status":"accepted","x":"\xe2\x82"}', Reason.INVALID_JSON, "utf-8"),
    "NaN": Bad(b'{"uuid":"JOB","status":"accepted","metadata":{"x":NaN}}', Reason.INVALID_JSON, "NaN"),
    "Infinity": Bad(b'{"uuid":"JOB","status":"accepted","metadata":{"x":-Infinity}}', Reason.INVALID_JSON, "Infinity"),
    "a number past every float": Bad(
        b'{"uuid":"JOB","status":"accepted","metadata":{"x":1e999}}', Reason.INVALID_JSON, "1e999"
    ),
    "duplicate keys": Bad(
        b'{"uuid":"JOB","status":"accepted","status":"failed"}', Reason.INVALID_JSON, "'status' occurs twice"
    ),
    "nested 5,000 deep": Bad(
        b'{"uuid":"JOB","status":"accepted","metadata":{"x":' + b"[" * 5000 + b"]" * 5000 + b"}}",
        Reason.INVALID_JSON,
        "recursion limit",
    ),
    "nested 100,000 deep": Bad(b"[" * 100_000 + b"]" * 100_000, Reason.INVALID_JSON, "not JSON"),
    "lone surrogate": Bad(update("JOB", metadata=stdout("\ud800")), Reason.INVALID_JSON, "surrogate"),
    "array": Bad(b"[" + update("JOB") + b"]", Reason.INVALID_JSON, "an array"),
    "text": Bad(b'"accepted"', Reason.INVALID_JSON, "text"),
    "no uuid": bad(Reason.INVALID_SCHEMA, "uuid", uuid=...),
    "no status": bad(Reason.INVALID_SCHEMA, "status", status=...),
    "uuid a number": bad(Reason.INVALID_SCHEMA, "$.uuid", uuid=7),
    "metadata a text": bad(Reason.INVALID_SCHEMA, "$.metadata", metadata="none"),
    "miner_response without stderr": bad(
        Reason.INVALID_SCHEMA, "docker_process_stderr", metadata={"miner_response": {"docker_process_stdout": ""}}
    ),
    "exit status a text": bad(
        Reason.INVALID_SCHEMA,
        "docker_process_exit_status",
        metadata={
            "job_failure_details": {
                "reason": "timeout",
                "stage": "execution",
                "message": "",
                "docker_process_exit_status": "1",
            }
        },
    ),
    "port 2^40": bad(
        Reason.INVALID_SCHEMA,
        "streaming_server_port",
        status="streaming_ready",
        metadata={"streaming_details": {"streaming_server_port": 2**40}},
    ),
    "extra field": bad(Reason.INVALID_SCHEMA, "colour", colour="red"),
    "another message_type": bad(Reason.INVALID_SCHEMA, "message_type", message_type="V0Heartbeat"),
    "an envelope around nothing": Bad(
        b'{"type":"job_status_update","payload":null}', Reason.INVALID_SCHEMA, "$.payload"
    ),
    "uuid no UUID": bad(Reason.INVALID_UUID, "'JOBx' is not a UUID", uuid="JOBx"),
    "uuid of another job": bad(Reason.UUID_MISMATCH, OTHER_JOB, uuid=OTHER_JOB),
    "unknown status": bad(Reason.UNKNOWN_STATUS, "'finished'", status="finished"),
    "status a number": bad(Reason.UNKNOWN_STATUS, "a number", status=3),
    "status unknown": bad(Reason.UNKNOWN_STATUS, "HTTP 500", status="unknown"),
    "status null": bad(Reason.UNKNOWN_STATUS, "null", status=None),
    "20 MB": bad(Reason.TOO_LARGE, "16777216", metadata=stdout("x" * 20_000_000)),
}


@shared
@pytest.mark.parametrize("case", BAD)
async def test_what_the_facilitator_must_not_see(scene, case):
    """A bad update becomes one dead letter that says what was wrong, and the job's next update is relayed."""
    job, expected = new_job(), BAD[case]
    body = expected.body.replace(b"JOB", job.encode())
    began = dt.datetime.now(dt.UTC)
    headers = {"Nats-Msg-Id": f"{job}-1", "X-Trace": "7b"}
    poor = await scene.publish_body(job, body, headers, dead_letter=expected.reason)
    good = await scene.publish(job, "executor_ready")

    assert await scene.settled(poor, good) == [TERMED, ACKED]

    source = await get_message(scene.nc, STATUS_STREAM, poor.sequence)
    [letter] = await scene.dead_letters(f"job.dlq.{job}")
    told, failed_at = letter.headers.pop("Relay-Error"), letter.headers.pop("Relay-Failed-At")
    assert letter.body == body
    assert letter.headers == {
        "X-Trace": "7b",
        "Relay-Original-Nats-Msg-Id": f"{job}-1",
        "Nats-Msg-Id": f"JOB_STATUS:{poor.sequence}",
        "Relay-Reason": expected.reason,
        "Relay-Attempts": "0",
        "Relay-Source-Subject": f"job.status.{job}",
        "Relay-Source-Sequence": str(poor.sequence),
        "Relay-Source-Stored-At": source.stored_at.isoformat(timespec="microseconds"),
    }
    assert expected.told.replace("JOB", job) in told
    assert told == told.encode("ascii", "replace").decode()
    assert began - dt.timedelta(milliseconds=1) <= dt.datetime.fromisoformat(failed_at) <= dt.datetime.now(dt.UTC)
    assert [frame for frame in scene.facilitator.received if job in frame] == [update(job, "executor_ready").decode()]


@shared
async def test_upper_case_subject(scene):
    """A subject with a job in upper case may belong to a wrong lane; its dead letter shows the right spelling."""
    job = new_job().upper()
    shouted = await scene.publish_body(job, update(job), dead_letter=Reason.INVALID_UUID)

    assert await scene.settled(shouted) == [TERMED]
    [letter] = await scene.dead_letters(f"job.dlq.{job}")
    assert letter.headers["Relay-Source-Subject"] == f"job.status.{job}"
    assert letter.headers["Relay-Error"] == (
        f"the subject ends in '{job}', but must end in a UUID in lower case with hyphens,"
        " as in job.status.123e4567-e89b-42d3-a456-426614174000"
    )


@shared
async def test_subject_without_a_uuid(scene):
    """Any other token is dead-lettered too, under a token that is safe in a subject."""
    odd = await scene.publish_body("job=7", update(new_job()), dead_letter=Reason.INVALID_UUID)

    assert await scene.settled(odd) == [TERMED]
    [letter] = await scene.dead_letters("job.dlq.job_7")
    assert letter.headers["Relay-Source-Subject"] == "job.status.job=7"


@shared
@pytest.mark.parametrize("subject", ["job.status.{}.accepted", "job.status.0.{}", "job.status"])
async def test_extra_subject_tokens(scene, subject):
    """No stream takes a subject with too many or too few tokens: the producer gets an error, and no PubAck."""
    job = new_job()
    with pytest.raises(PublishUnconfirmed, match="no stream captures this subject"):
        await publish_confirmed(scene.nc, subject.format(job), update(job))


STREAMING = {"streaming_server_cert": None, "streaming_server_port": 30000}
FILLED = {"streaming_server_cert": "", "streaming_server_address": "", "streaming_server_port": 30000}
REPAIRED = {
    "completed without metadata": (update("JOB", "completed", ...), {}, "metadata_added"),
    "completed, metadata null": (update("JOB", "completed", None), {}, "metadata_added"),
    "streaming_ready without metadata": (update("JOB", "streaming_ready", ...), {}, "metadata_added"),
    "streaming_ready with a null and an absent member": (
        update("JOB", "streaming_ready", {"streaming_details": STREAMING}),
        {"streaming_details": FILLED},
        "streaming_details_filled",
    ),
    "NUL in stdout": (update("JOB", "accepted", stdout("a\0b")), stdout("a\ufffdb"), "nul_replaced"),
    "upper case in the body": (update("UPPER", "accepted", {"n": 1}), {"n": 1}, "uuid_respelled"),
    "no message_type": (update("JOB", "accepted", {"n": 1}, message_type=...), {"n": 1}, "message_type_added"),
}


@shared
@pytest.mark.parametrize("case", REPAIRED)
async def test_what_is_repaired(scene, case):
    """Small faults are repaired and counted, and the Facilitator stores the update."""
    job = new_job()
    body, metadata, rule = REPAIRED[case]
    body = body.replace(b"JOB", job.encode()).replace(b"UPPER", job.upper().encode())
    before = counters(scene.running)
    mended = await scene.publish_body(job, body, status=json.loads(body)["status"])

    assert await scene.settled(mended) == [ACKED]
    assert [row.metadata for row in scene.facilitator.rows_of(job)] == [metadata]
    gained = {name: n for name, n in (counters(scene.running) - before).items() if "connections" not in name}
    assert gained == {"relay_updates acknowledged": 1, f"relay_repairs {rule}": 1}


@shared
async def test_envelope(scene):
    """An update in the channel-layer envelope is relayed without the envelope."""
    job = new_job()
    envelope = b'{"type":"job_status_update","payload":' + update(job, "failed", {"n": 1.50}) + b"}"
    wrapped = await scene.publish_body(job, envelope, status="failed")

    assert await scene.settled(wrapped) == [ACKED]
    assert scene.facilitator.received[-1] == update(job, "failed", {"n": 1.50}).decode()


@shared
async def test_the_largest_update_arrives(scene):
    """An update of exactly the Facilitator's 16 MiB is stored; one byte more is too large."""
    job = new_job()
    room = 16 * MIB - len(update(job, "completed", stdout("")))
    largest = await scene.publish(job, "completed", stdout("x" * room))
    larger = await scene.publish(job, "failed", stdout("x" * (room + 4)), dead_letter=Reason.TOO_LARGE)

    assert await scene.settled(largest, larger) == [ACKED, TERMED]
    assert len(scene.facilitator.rows_of(job)[0].metadata["miner_response"]["docker_process_stdout"]) == room


@pytest.fixture
async def alone(nats_server):
    """A relay for one test, which retries quickly to write a dead letter."""
    async with (
        FacilitatorSimulator() as facilitator,
        Scene(nats_server, facilitator, ACK_WAIT="1") as scene,
        scene.relay(intervals=Intervals(dead_letter_retry_s=0.1)),
    ):
        yield scene


async def missing(scene: Scene) -> None:
    await scene.nc.jetstream().delete_stream(DLQ_STREAM)


async def full(scene: Scene) -> None:
    info = await scene.nc.jetstream().stream_info(DLQ_STREAM)
    await scene.nc.jetstream().update_stream(info.config, max_msgs=1)
    filler = await scene.publish_body(new_job(), b"", dead_letter=Reason.INVALID_JSON)
    assert await scene.settled(filler) == [TERMED]


@pytest.mark.parametrize("trouble", [missing, full])
async def test_no_dead_letter_stream_to_write_to(alone, trouble):
    """While a dead letter cannot be written, its job waits and others go on; then it is written."""
    await trouble(alone)
    poor = await alone.publish_body(job := new_job(), b"{}", dead_letter=Reason.INVALID_SCHEMA)
    behind = await alone.publish(job, "accepted")
    others = [update for _ in range(8) for update in await alone.publish_life(new_job())]

    assert await alone.settled(*others) == [ACKED] * len(others)
    await alone.kept(poor)
    await alone.kept(poor)
    assert await alone.unsettled() == 2

    await alone.provision()
    assert await alone.settled(poor, behind) == [TERMED, ACKED]
    assert await alone.broken_promises() == []
