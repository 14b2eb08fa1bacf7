"""`relay query` with a running relay."""

import asyncio
import datetime as dt
import functools
import json

import pytest
from cli_kit import TIMEOUT_S
from relay_kit import Scene

from relay.cli.query_display import details, row
from relay.contract.subjects import Reason
from relay.local.facilitator import FacilitatorSimulator
from relay.query.replies import UpdateProgress, UpdateReply

JOB = "123e4567-e89b-42d3-a456-426614174000"


@pytest.fixture
def command(relay, nats_server):
    """Runs `relay query ...` with `nats_server`."""
    return functools.partial(relay, "query", NATS_URL=nats_server.url)


@pytest.fixture
async def scene(nats_server):
    async with FacilitatorSimulator() as facilitator, Scene(nats_server, facilitator) as scene:
        yield scene


def lines(out: str) -> list[tuple[int, str, str]]:
    """Sequence, status and progress of each line."""
    return [(row["sequence"], row["status"], row["progress"]) for row in map(json.loads, out.splitlines())]


async def test_latest(command, scene):
    """The latest status is printed, whether it is a final one, and that the Facilitator has it."""
    async with scene.relay():
        await scene.settled(*await scene.publish_life(JOB, ("received", "completed")))
        told = await command(JOB)
        as_json = await command(JOB.upper(), "--json")
    assert (0, "") == (told.code, told.err)
    job, status, published, relayed = told.out.splitlines()
    assert f"job        {JOB}" == job
    assert "status     completed, with which the job ends" == status
    assert published.endswith(" ago), JOB_STATUS sequence 2")
    assert "relayed    acknowledged: the Facilitator has it" == relayed
    assert [(2, "completed", "acknowledged")] == lines(as_json.out)


async def test_history(command, scene):
    """Every update is printed in order with its progress; for a dead letter, its reason as well."""
    async with scene.relay():
        first = await scene.publish(JOB, "received")
        bad = await scene.publish(JOB, "nonsense", dead_letter=Reason.UNKNOWN_STATUS)
        await scene.settled(first, bad, await scene.publish(JOB, "accepted"))
        told = await command(JOB, "--history")
        as_json = await command(JOB, "--history", "--json")
    assert [(1, "received", "acknowledged"), (2, None, "dead_lettered"), (3, "accepted", "acknowledged")] == lines(
        as_json.out
    )
    assert "unreadable       dead_lettered (unknown_status, dead letter 1)" in told.out.splitlines()[1]


def test_dead_letter_that_is_gone():
    """If the dead letter is gone, that is said instead of where it is."""
    update = UpdateReply(
        uuid=JOB,
        status="failed",
        terminal=True,
        sequence=3,
        published="2026-11-22T06:30:12.035538791Z",
        progress=UpdateProgress.DEAD_LETTERED,
    )
    told = details(update, dt.datetime.now(dt.UTC)).splitlines()[-1]
    assert "relayed    dead_lettered: its dead letter is gone, and `relay dlq` did not remove it" == told
    assert row(update).endswith("  dead_lettered")


async def test_unknown_job(command, scene):
    """An unknown job ends with one line that says so, and exit code 1."""
    async with scene.relay():
        ended = await command(JOB)
    assert (1, "", 1) == (ended.code, ended.out, ended.err.count("\n"))
    assert f"no update of job {JOB} is stored" in ended.err


async def test_not_a_uuid(command):
    """An argument that is no UUID is refused before a relay is asked, with exit code 2."""
    ended = await command("job-1")
    assert (2, "") == (ended.code, ended.out)
    assert "is not a UUID with hyphens" in ended.err


@pytest.mark.usefixtures("provisioned")
async def test_nobody_answers(command):
    """Without a relay there is one line that says so, and exit code 1."""
    ended = await command(JOB)
    expected = f"relay: nobody answers on job.query.{JOB}: no relay is running on this NATS\n"
    assert (1, "", expected) == ended


async def test_follow_before_any_relay(command, scene):
    """The command can be started before any relay: it asks until one answers, and ends with the job."""
    await scene.publish(JOB, "completed", {})
    following = asyncio.create_task(command(JOB, "--follow", "--json"))
    async with scene.relay(), asyncio.timeout(TIMEOUT_S):
        ended = await following
    assert 0 == ended.code
    assert (1, "completed", "acknowledged") == lines(ended.out)[-1]
