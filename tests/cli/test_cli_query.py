"""`relay query` beside a relay at work."""

import asyncio
import json

import pytest
from cli_kit import TIMEOUT_S, make_command
from relay_kit import Scene

from relay.cli import query
from relay.contract.subjects import Reason
from relay.local.facilitator import FacilitatorSimulator
from relay.local.faults import stall

JOB = "123e4567-e89b-42d3-a456-426614174000"


@pytest.fixture
def command(monkeypatch, tmp_path, nats_server):
    """Runs `relay query ...` against `nats_server`."""
    run = make_command(monkeypatch, tmp_path)
    monkeypatch.setattr(query, "_ASK_AGAIN_S", 0.2)

    async def command(*arguments: str, **settings: str):
        return await run("query", *arguments, **{"NATS_URL": nats_server.url} | settings)

    return command


@pytest.fixture
async def scene(nats_server):
    async with FacilitatorSimulator() as facilitator, Scene(nats_server, facilitator) as scene:
        yield scene


def lines(out: str) -> list[tuple[int, str, str]]:
    """Sequence, status and progress of each line."""
    return [(row["sequence"], row["status"], row["progress"]) for row in map(json.loads, out.splitlines())]


async def test_latest(command, scene):
    """The latest status is told, whether the job ends with it, and that the Facilitator has it."""
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
    """Every update is told in order with how far it got; one that became a dead letter with its reason."""
    async with scene.relay():
        first = await scene.publish(JOB, "received")
        bad = await scene.publish(JOB, "nonsense", doom=Reason.UNKNOWN_STATUS)
        await scene.settled(first, bad, await scene.publish(JOB, "accepted"))
        told = await command(JOB, "--history")
        as_json = await command(JOB, "--history", "--json")
    assert [(1, "received", "acknowledged"), (2, None, "dead_lettered"), (3, "accepted", "acknowledged")] == lines(
        as_json.out
    )
    assert "unreadable       dead_lettered (unknown_status, dead letter 1)" in told.out.splitlines()[1]


async def test_unknown_job(command, scene):
    """A job that nobody knows ends with one line that says so, exit 1."""
    async with scene.relay():
        ended = await command(JOB)
    assert (1, "", 1) == (ended.code, ended.out, ended.err.count("\n"))
    assert f"no update of job {JOB} is stored" in ended.err


async def test_not_a_uuid(command):
    """What is no UUID is refused before anybody is asked, exit 2."""
    ended = await command("job-1")
    assert (2, "") == (ended.code, ended.out)
    assert "is not a UUID with hyphens" in ended.err


@pytest.mark.usefixtures("provisioned")
async def test_nobody_answers(command):
    """Without any relay there is one line that says so, exit 1."""
    ended = await command(JOB)
    expected = f"relay: nobody answers on job.query.{JOB}: no relay is running on this NATS\n"
    assert (1, "", expected) == ended


@pytest.mark.parametrize("receipts", ["true", "false"])
async def test_follow(command, scene, receipts):
    """It shows each update when it is seen and again when it is settled, and ends with the job, receipts or not."""
    async with scene.relay(RECEIPTS=receipts):
        await scene.settled(await scene.publish(JOB, "received"))
        with scene.facilitator.inject(stall()):
            last = await scene.publish(JOB, "completed", {})
            following = asyncio.create_task(command(JOB, "--follow", "--json"))
            await scene.nc.subscribe(f"job.history.{JOB}", cb=(asked := Counted()).hear)
            await asked.three_times()
            assert not following.done()
        await scene.settled(last)
        async with asyncio.timeout(TIMEOUT_S):
            ended = await following
    assert (0, "") == (ended.code, ended.err)
    expected = [(1, "received", "acknowledged"), (2, "completed", "pending"), (2, "completed", "acknowledged")]
    assert expected == lines(ended.out)


async def test_follow_from_the_start(command, scene):
    """A job that is not known yet is waited for."""
    async with scene.relay():
        await scene.nc.subscribe(f"job.history.{JOB}", cb=(asked := Counted()).hear)
        following = asyncio.create_task(command(JOB, "--follow", "--json"))
        await asked.three_times()
        await scene.publish_life(JOB)
        async with asyncio.timeout(TIMEOUT_S):
            ended = await following
    assert (0, 1) == (ended.code, ended.err.count("\n"))
    assert ended.err.endswith("; still asking\n")
    settled = [sequence for sequence, _, progress in lines(ended.out) if progress == "acknowledged"]
    assert [1, 2, 3, 4, 5, 6] == settled


class Counted:
    """Hears how often a question is asked."""

    def __init__(self) -> None:
        self._asked: asyncio.Queue[object] = asyncio.Queue()

    async def hear(self, question: object) -> None:
        self._asked.put_nowait(question)

    async def three_times(self) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            for _ in range(3):
                await self._asked.get()


async def test_follow_before_any_relay(command, scene):
    """Begun before any relay is there, it goes on asking until one is, and ends as it would."""
    await scene.publish(JOB, "completed", {})
    following = asyncio.create_task(command(JOB, "--follow", "--json"))
    async with scene.relay(), asyncio.timeout(TIMEOUT_S):
        ended = await following
    assert 0 == ended.code
    assert (1, "completed", "acknowledged") == lines(ended.out)[-1]
