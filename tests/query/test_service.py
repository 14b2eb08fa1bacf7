"""How the status service handles requests; the test makes the answers."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from nats.errors import NoRespondersError
from structlog.testing import capture_logs

from relay.contract.errors import BrokerUnavailable, JetStreamError
from relay.contract.subjects import history_subject, query_subject
from relay.local.server import DEFAULT_MAX_PAYLOAD
from relay.query.answers import QueryError
from relay.query.service import EndpointLimits, ServiceLimits, StatusService


@contextlib.asynccontextmanager
async def serving(nc, answer: Any, **limits: Any) -> AsyncIterator[asyncio.Task[None]]:
    """The service; `answer(job)` returns each reply."""

    async def reply(job: str, _request: bytes) -> bytes:
        return await answer(job) or job.encode()

    serving = asyncio.Event()
    service = StatusService(
        nc,
        lambda _client: SimpleNamespace(latest=reply, history=reply),
        worker="w",
        version="1.2.3.dev4",
        on_serving=serving.set,
        limits=ServiceLimits(**limits),
    )
    running = asyncio.create_task(service.run())
    await serving.wait()
    try:
        yield running
    finally:
        running.cancel()
        await asyncio.wait([running])


async def ask(nc, job: str, subject: Any = query_subject) -> str:
    """The reply, or the code and the text of the error."""
    message = await nc.request(subject(job), timeout=2)
    headers = message.headers or {"Nats-Service-Error-Code": message.data.decode(), "Nats-Service-Error": ""}
    return f"{headers['Nats-Service-Error-Code']} {headers['Nats-Service-Error']}".strip()


async def test_announcement(nc):
    """NATS' own tools find the service, its version, its endpoints, and how many requests failed and why."""

    async def refuse(_job: str) -> None:
        raise QueryError(400, "no")

    async with serving(nc, refuse):
        await ask(nc, "a")
        info, stats = [json.loads((await nc.request(f"$SRV.{verb}.job-status")).data) for verb in ("INFO", "STATS")]
    assert ("job-status", "1.2.3", {"worker": "w"}) == tuple(info[name] for name in ("name", "version", "metadata"))
    assert ["job.query.*", "job.history.*"] == [each["subject"] for each in info["endpoints"]]
    counts = [(each["num_requests"], each["num_errors"], each["last_error"]) for each in stats["endpoints"]]
    assert [(1, 1, "400:no"), (0, 0, "")] == counts


async def test_too_many(nc):
    """Beyond the limit of waiting requests a request is refused at once; one that waits too long gets an error."""

    async def never(_job: str) -> None:
        await asyncio.Event().wait()

    async with serving(
        nc, never, history=EndpointLimits(concurrent=1, waiting=2, timeout_s=0.3, messages=8, memory_bytes=1)
    ):
        replies = await asyncio.gather(*(ask(nc, "a", history_subject) for _ in range(5)))
    many = "429 3 requests are under way in this worker: ask again, and fewer at a time"
    late = "503 there was no answer within 0.3 s: ask again, or for less"
    assert [many] * 2 + [late] * 3 == sorted(replies)


@pytest.mark.parametrize(("subject", "most"), [(query_subject, 4), (history_subject, 1)])
async def test_few_answers_at_a_time_if_messages_are_large(nc, subject, most):
    """So many answers are made at a time that messages of the largest size fit into the memory for them."""
    assert nc.max_payload == DEFAULT_MAX_PAYLOAD
    made, finish = [], asyncio.Event()

    async def answer(job: str) -> None:
        made.append(job)
        await finish.wait()

    async with serving(nc, answer):
        asked = [asyncio.create_task(ask(nc, f"job-{number}", subject)) for number in range(40)]
        await nc.request(subject("a"), b" " * 5000)  # refused, after those before it were taken
        assert [f"job-{number}" for number in range(most)] == made
        finish.set()
        assert {f"job-{number}" for number in range(40)} == set(await asyncio.gather(*asked))


async def test_large_request(nc):
    """A request that is too large to be a question is refused, and not kept until its turn comes."""
    made = []

    async def answer(job: str) -> None:
        made.append(job)

    async with serving(nc, answer):
        refused = await nc.request(query_subject("a"), b" " * 4097, timeout=5)
        await nc.request(query_subject("a"), b" " * 4096, timeout=5)
    assert {
        "Nats-Service-Error-Code": "400",
        "Nats-Service-Error": "the request has 4097 bytes, and at most 4096 are read",
    } == refused.headers
    assert ["a"] == made


async def test_large_replies_wait_for_a_slow_connection(nats_server, proxied, connect):
    """While the connection takes nothing, no more large replies are made than may be made at a time."""
    client, asker = await connect(proxied.url), await connect(nats_server.url)
    made, taken = [], asyncio.Event()

    async def answer(job: str) -> bytes:
        made.append(job)
        return b"x" * 1_000_000

    async with serving(client, answer, last_requests_s=0.1, last_answers_s=0.1):
        await client.listen("all.are.taken", lambda *_: taken.set())
        await client.flush()
        proxied.freeze()
        for number in range(20):
            await asker.publish(query_subject(f"job-{number}"), b"", reply="nobody")
        await asker.publish("all.are.taken", b"")
        await taken.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        assert 4 == len(made)


@pytest.mark.parametrize("in_time", [True, False])
async def test_last_answers(nc, in_time):
    """A worker that stops still sends started answers, unless that takes too long, and accepts no new requests."""
    asked, finish = asyncio.Event(), asyncio.Event()

    async def answer(job: str) -> None:
        if job == "slow":
            asked.set()
            await finish.wait()

    async with serving(nc, answer, last_answers_s=10 if in_time else 0.1) as running:
        asking = asyncio.create_task(ask(nc, "slow"))
        await asked.wait()
        running.cancel()
        with contextlib.suppress(NoRespondersError):
            while await ask(nc, "new"):
                pass
        if not in_time:
            assert (await asyncio.wait([running], timeout=1))[0]
        finish.set()
        with contextlib.nullcontext() if in_time else pytest.raises(TimeoutError):
            assert "slow" == await asking
    assert [] == [task for task in asyncio.all_tasks() if "Endpoint" in repr(task)]


@pytest.mark.parametrize(
    ("error", "told", "logged"),
    [
        (BrokerUnavailable(["nats://a"], "gone"), "503 NATS cannot tell now (gone): ask again", []),
        (
            JetStreamError("get", 404, 10059, "none"),
            "503 NATS cannot tell now (get: none (err_code 10059)): ask again",
            [],
        ),
        (RuntimeError("inside"), "500 the relay failed over this request; its log says why", ["job.query.a"]),
    ],
)
async def test_errors(nc, error, told, logged):
    """An unexpected error is only logged, not sent; after any error the service goes on."""

    async def fail(job: str) -> None:
        if job == "a":
            raise error

    with capture_logs() as lines:
        async with serving(nc, fail):
            assert [told, "b"] == [await ask(nc, job) for job in "ab"]
    assert logged == [line["subject"] for line in lines if line["event"] == "a status request failed"]


async def test_no_reply_wanted(nc):
    """A request without a reply subject does no harm, and nothing is read for it."""
    asked = []

    async def answer(job: str) -> None:
        asked.append(job)

    async with serving(nc, answer):
        await nc.publish(query_subject("a"))
        await ask(nc, "b")
    assert ["b"] == asked
