"""Many concurrent requests over one connection: each gets its own answer."""

import asyncio
from collections.abc import Awaitable

import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from relay.nats.jetstream import Response
from relay.nats.pipeline import Pipeline, pipelined

TIMEOUT_S = 10


async def echo(nc: Client) -> None:
    async def respond(message: Msg) -> None:
        await message.respond(message.data)

    await nc.subscribe("echo", cb=respond)


async def answers(*requests: Awaitable[Response]) -> list[bytes | type[Exception]]:
    """For each of several concurrent requests, its answer or the type of its error."""

    async def ask(request: Awaitable[Response]) -> bytes | type[Exception]:
        try:
            return (await request).data
        except nats.errors.Error as error:
            return type(error)

    return await asyncio.gather(*map(ask, requests))


async def test_each_request_has_its_own_answer(nc):
    """Answers of all sizes reach their requests, among other messages, and in pieces as the socket gives them."""
    await echo(nc)
    asked = [b"%d " % number * (10_000 if number % 10 == 0 else number) for number in range(200)]
    heard = await nc.subscribe("other")
    async with pipelined(nc) as pipeline:
        requests = [pipeline.request("echo", data, timeout=TIMEOUT_S) for data in asked]
        answered = asyncio.create_task(answers(*requests))
        for _ in range(50):
            await nc.publish("other", b"", headers={"X": "y"})
        assert asked == await answered
    assert [{"X": "y"}] * 50 == [(await heard.next_msg(TIMEOUT_S)).headers for _ in range(50)]


async def test_answers_in_pieces(nc):
    """Wherever reads from the socket are cut, each answer is read once and unchanged."""
    silent = await nc.subscribe("silent")
    async with pipelined(nc) as fast:
        [sid] = [sid for sid, subscription in nc._subs.items() if subscription.subject == f"{fast.inbox}.*"]
        head = b"MSG %b.%%d %d %%d\r\n" % (fast.inbox.encode(), sid)
        cut, length = 0, 1
        while cut < length:
            requests = [fast.request("silent", timeout=TIMEOUT_S) for _ in range(2)]
            answered = asyncio.create_task(answers(*requests))
            numbers = [int((await silent.next_msg(TIMEOUT_S)).reply.rpartition(".")[2]) for _ in requests]
            bodies = [head % (0, 2) + b"%03d" % cut for _ in requests]  # these look like answers themselves
            numbered = zip(numbers, bodies, strict=True)
            text = b"".join(head % (number, len(body)) + body + b"\r\n" for number, body in numbered)
            await nc._ps.parse(text[:cut])
            await nc._ps.parse(text[cut:])
            assert bodies == await answered
            cut, length = cut + 1, len(text)


async def test_nobody_answers(nc):
    """Without a subscriber the error says so; without an answer the request times out, and a late answer is ignored."""
    silent = await nc.subscribe("silent")
    async with pipelined(nc, look_every_s=0.01) as fast:
        requests = fast.request("nowhere", timeout=TIMEOUT_S), fast.request("silent", timeout=0.01)
        assert [nats.errors.NoRespondersError, nats.errors.TimeoutError] == await answers(*requests)
        late = await silent.next_msg(TIMEOUT_S)
        await late.respond(b"late")
        await echo(nc)
        assert [b"next"] == await answers(fast.request("echo", b"next", timeout=TIMEOUT_S))


async def test_two_at_a_time(nc):
    """Two pipelines on one client do not take each other's answers; after both are closed it reads as before."""
    await echo(nc)
    first, second = pipelined(nc), pipelined(nc)
    one, other = await first.__aenter__(), await second.__aenter__()

    async def echoed(fast: Pipeline, data: bytes) -> list[bytes | type[Exception]]:
        return await answers(fast.request("echo", data, timeout=TIMEOUT_S))

    assert [[b"0"], [b"1"]] == await asyncio.gather(echoed(one, b"0"), echoed(other, b"1"))
    await first.__aexit__(None, None, None)
    assert [b"2"] == await echoed(other, b"2")
    await second.__aexit__(None, None, None)
    assert b"3" == (await nc.request("echo", b"3", timeout=TIMEOUT_S)).data


async def test_a_request_that_is_given_up(nc):
    """The answer to a request that was given up disturbs nothing."""
    await echo(nc)
    async with pipelined(nc) as fast:
        given_up = fast.request("echo", b"given up", timeout=TIMEOUT_S)
        given_up.cancel()
        assert [b"next"] == await answers(fast.request("echo", b"next", timeout=TIMEOUT_S))


async def test_sending_fails(nc, monkeypatch):
    """If a request cannot be sent, the caller gets the error at once."""

    def fail(_: bytes) -> None:
        raise nats.errors.ConnectionClosedError

    async with pipelined(nc) as fast:
        monkeypatch.setattr(nc, "write", fail)
        with pytest.raises(nats.errors.ConnectionClosedError):
            fast.request("echo", timeout=0.01)
