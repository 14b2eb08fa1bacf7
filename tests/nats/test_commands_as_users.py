"""The relay's commands, run as the users of deploy/nats/users.conf."""

import asyncio
import os
import re
import sys

import nats
import pytest
from guarded_nats import password, scene_of, variables, violations
from relay_kit import new_job, update

from relay.contract.subjects import STATUS_STREAM, Reason
from relay.local.server import NatsServer

JOB = "123e4567-e89b-42d3-a456-426614174000"


async def run_relay(server: NatsServer, role: str, *arguments: str, **more: str) -> tuple[int, str, str]:
    """Run `relay ...` as a role; returns exit code, standard output and standard error."""
    names = {f"RELAY_{name}": value for name, value in variables(role).items()}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "relay", *arguments),
        env={"PATH": os.environ["PATH"], "RELAY_NATS_URL": server.url, **names, **more},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_a_producer_publishes(guarded, facilitator):
    """As user `producer`, any client and `relay publish` publish and get their PubAck."""
    async with scene_of(guarded, facilitator):
        client = await nats.connect(guarded.url, user="producer", password=password("producer"))
        ack = await client.jetstream().publish(f"job.status.{JOB}", update(JOB, "received"))
        await client.close()
        published = await run_relay(guarded, "producer", "publish", JOB, "accepted")
    assert (STATUS_STREAM, 1) == (ack.stream, ack.seq)
    assert (0, f"{JOB} accepted: JOB_STATUS sequence 2\n", "") == published
    assert [] == violations(guarded)


async def test_an_operator_deals_with_dead_letters(guarded, facilitator):
    """The user `operator` reads, replays and purges dead letters, and `relay doctor` can check everything."""
    async with scene_of(guarded, facilitator) as scene, scene.relay(**variables("relay")):
        jobs = [new_job(), new_job()]
        facilitator.unknown_jobs.update(jobs)
        letters = [await scene.publish(job, dead_letter=Reason.JOB_NOT_FOUND) for job in jobs]
        await scene.settled(*letters)
        facilitator.unknown_jobs.clear()
        replayed = await run_relay(guarded, "operator", "dlq", "replay", "--job", jobs[0])
        await facilitator.wait_for(lambda facilitator: facilitator.rows_of(jobs[0]))
        purged = await run_relay(guarded, "operator", "dlq", "purge", "--all", "--yes")
        left = await scene.dead_letters()
        refused = violations(guarded)  # before the doctor, which also tries what only the relay may do
        examined = await run_relay(
            guarded, "operator", "doctor", RELAY_FACILITATOR_URL=facilitator.url, RELAY_FACILITATOR_AUTH="none"
        )
    assert [0, 0, 0] == [result[0] for result in (replayed, purged, examined)], (replayed, purged, examined)
    assert [] == left
    assert [] == refused
    assert [" 0 fail"] == re.findall(r" \d+ fail$", examined[1], flags=re.MULTILINE)


@pytest.mark.parametrize("command", [("dlq", "list"), ("dlq", "purge", "--all", "--yes"), ("provision",)])
async def test_an_observer_is_told_what_it_may_not(guarded, facilitator, command):
    """What the user `observer` may not do fails with one line that says so, and does not blame the server."""
    async with scene_of(guarded, facilitator, LANES="5"):
        code, out, err = await run_relay(guarded, "observer", *command)
    [line] = err.splitlines()
    assert (1, "") == (code, out)
    assert line.startswith(
        "relay: the NATS account does not permit this: it has JetStream, and nobody answers $JS.API."
    )
    assert line.endswith("; use credentials that may do it, or have it permitted")
