"""Many requests at a time over one connection: each has its own answer, whatever way it comes."""

import asyncio

import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from relay.broker import pipeline
from relay.broker.nats_py import _PLAIN_HEADERS
from relay.broker.pipeline import pipelined

TIMEOUT_S = 10


async def echo(nc: Client) -> None:
    async def respond(message: Msg) -> None:
        await message.respond(message.data)

    await nc.subscribe("echo", cb=respond)


async def test_each_request_has_its_own_answer(nc):
    """Answers of all sizes, among other messages and in pieces as the socket gives them, find their requests."""
    await echo(nc)
    asked = [b"%d " % number * (10_000 if number % 10 == 0 else number) for number in range(200)]
    heard = await nc.subscribe("other")
    async with pipelined(nc) as fast:
        requests = [fast.request("echo", data, timeout=TIMEOUT_S) for data in asked]
        for _ in range(50):
            await nc.publish("other", b"", headers={"X": "y"})
        answers = await asyncio.gather(*requests)
    assert asked == [answer.data for answer in answers]
    assert [{"X": "y"}] * 50 == [(await heard.next_msg(TIMEOUT_S)).headers for _ in range(50)]


async def test_answers_are_read_without_the_subscription(nc, monkeypatch):
    """What comes in whole is no message to the client, which is as it was afterwards."""
    received, parse = [], nc._ps.parse

    async def receive(_: object, message: Msg) -> None:
        received.append(message)

    monkeypatch.setattr(pipeline._Pipeline, "receive", receive)
    await echo(nc)
    async with pipelined(nc) as fast:
        answers = await asyncio.gather(*(fast.request("echo", b"x", timeout=TIMEOUT_S) for _ in range(10)))
    assert ([b"x"] * 10, []) == ([answer.data for answer in answers], received)
    assert parse == nc._ps.parse


async def test_answers_in_pieces(nc, monkeypatch):
    """Wherever the socket cuts what comes in, each answer is read once and as it is."""
    monkeypatch.setattr(pipeline, "_GATHER_S", TIMEOUT_S)  # so that nothing else comes in between
    async with pipelined(nc) as fast:
        [sid] = [sid for sid, subscription in nc._subs.items() if subscription.subject == f"{fast.inbox}.*"]
        head = b"MSG %b.%%d %d %%d\r\n" % (fast.inbox.encode(), sid)
        cut, length = 0, 1
        while cut < length:
            requests = [fast.request("silent", timeout=TIMEOUT_S) for _ in range(2)]
            bodies = [head % (0, 2) + b"%03d" % cut for _ in requests]  # they look like an answer themselves
            numbered = zip((2 * cut + 1, 2 * cut + 2), bodies, strict=True)
            text = b"".join(head % (number, len(body)) + body + b"\r\n" for number, body in numbered)
            await nc._ps.parse(text[:cut])
            await nc._ps.parse(text[cut:])
            assert bodies == [answer.data for answer in await asyncio.gather(*requests)]
            cut, length = cut + 1, len(text)


async def test_nobody_answers(nc, monkeypatch):
    """Where nobody listens the error says so, and where nobody answers the time runs out, for the late answer too."""
    monkeypatch.setattr(pipeline, "_LOOK_EVERY_S", 0.01)
    silent = await nc.subscribe("silent")
    async with pipelined(nc) as fast:
        with pytest.raises(nats.errors.NoRespondersError):
            await fast.request("nowhere", timeout=TIMEOUT_S)
        with pytest.raises(nats.errors.TimeoutError):
            await fast.request("silent", timeout=0.01)
        late = await silent.next_msg(TIMEOUT_S)
        await late.respond(b"late")
        await echo(nc)
        assert b"next" == (await fast.request("echo", b"next", timeout=TIMEOUT_S)).data


async def test_headers_arrive_as_they_are(nc):
    """A line end within a header, as somebody may write into a file of dead letters, begins no other header."""
    subscription = await nc.subscribe("silent")
    headers = {"Plain": "a: b", "Umlaut": "ä", "Value": "a\r\nNats-Rollup: all", "Na\nme": "b\n"}
    async with pipelined(nc) as fast:
        request = fast.request("silent", b"body", timeout=TIMEOUT_S, headers=headers)
        message = await subscription.next_msg(TIMEOUT_S)
        request.cancel()
    assert b"body" == message.data
    assert {"Plain": "a: b", "Umlaut": "ä", "Value": "a  Nats-Rollup: all"} == message.headers


async def test_two_at_a_time(nc):
    """Two on one client do not take each other's answers, and it reads as before when both are closed."""
    await echo(nc)
    first, second = pipelined(nc), pipelined(nc)
    one, other = await first.__aenter__(), await second.__aenter__()
    requests = [fast.request("echo", b"%d" % place, timeout=TIMEOUT_S) for place, fast in enumerate((one, other))]
    assert [b"0", b"1"] == [answer.data for answer in await asyncio.gather(*requests)]
    await first.__aexit__(None, None, None)
    assert b"2" == (await other.request("echo", b"2", timeout=TIMEOUT_S)).data
    await second.__aexit__(None, None, None)
    assert b"3" == (await nc.request("echo", b"3", timeout=TIMEOUT_S)).data


@pytest.mark.parametrize(
    ("lines", "plain"),
    [
        (b"A: b\r\n", True),
        (b"A: b c: d\r\nNats-Msg-Id: x\r\nA: e\r\n", True),
        (b"A: \r\n", True),
        (b"A:b\r\n", False),
        (b"A:  b\r\n", False),
        (b"A: b \r\n", False),
        (b"A: b\x0bc\r\n", False),
        (b"A B: c\r\n", False),
        (b": c\r\n", False),
        (b"A: \xff\r\n", False),
        (b"A: b\nC: d\r\n", False),
        (b"no colon\r\n", False),
    ],
)
async def test_plain_headers_are_read_as_the_client_reads_them(nc, lines, plain):
    """Headers that are taken for plain are those that the client itself would read."""
    block = b"NATS/1.0\r\n" + lines + b"\r\n"
    assert plain is bool(_PLAIN_HEADERS.fullmatch(block))
    assert (await Client()._process_headers(block)) == (await nc._process_headers(block))
