"""The asker of the benchmark asks each question once, and reports the answers as they are."""

import asyncio
from contextlib import closing

import pytest
from nats.aio.msg import Msg

from bench.asker import NO_ANSWER, Asker, to_relay, to_server
from relay.contract.subjects import STATUS_STREAM, api_message_get, query_subject

RATE = 1000


async def asked(url: str, question, jobs: list[str], **options: float) -> dict:
    def ask() -> dict:
        with closing(Asker(url, question, **options)) as asking:
            return asking.ask(jobs, RATE)

    return await asyncio.to_thread(ask)


@pytest.fixture
async def answered(nc) -> list[str]:
    """Answer each question according to its job; yields the subjects of the questions."""
    subjects = []

    async def answer(message: Msg) -> None:
        subjects.append(message.subject)
        match message.subject.split(".")[-1]:
            case "silent":
                return
            case "refused":
                await nc.publish(message.reply, b"", headers={"Nats-Service-Error-Code": "404"})
            case progress:
                await message.respond(b'{"progress":"%b"}' % progress.encode())

    await nc.subscribe("job.query.*", cb=answer)
    await nc.flush()
    return subjects


async def test_questions(nats_server, answered):
    """Each question has one answer and its time; errors and missing answers are counted by kind."""
    jobs = ["pending", "silent", "acknowledged", "refused"] * 5
    summary = await asked(nats_server.url, to_relay, jobs, patience_s=0.3)
    assert [query_subject(job) for job in jobs] == answered
    assert (20, 5, 15) == (summary["asked"], summary["pending"], len(summary["latencies_ms"]))
    assert {"NATS/1.0\r\nNats-Service-Error-Code: 404": 5, NO_ANSWER: 5} == summary["refused"]
    assert 0 < min(summary["latencies_ms"])


async def test_nobody(nats_server):
    """If nobody answers, the server says so for each question, and the asker does not wait."""
    summary = await asked(nats_server.url, to_relay, ["any"] * 3)
    assert {"NATS/1.0 503\r\nNats-Subject: job.query.any": 3} == summary["refused"]


async def test_the_floor(provisioned, nats_server):
    """The server is asked for a job's last update; an update that it does not have is an error."""
    await provisioned.jetstream().publish("job.status.known", b"{}")
    asking, errors = ["known", "unknown", "known"], {"code": 404, "err_code": 10037, "description": "no message found"}
    summary = await asked(nats_server.url, to_server, asking)
    assert ({str(errors): 1}, 3) == (summary["refused"], len(summary["latencies_ms"]))
    assert (api_message_get(STATUS_STREAM), b'{"last_by_subj":"job.status.*.known"}') == to_server("known")
