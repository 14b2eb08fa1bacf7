"""The client that reads and writes in batches: messages arrive whole, in order, at their subscription."""

import asyncio
import json

import nats.errors
import pytest
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from relay.nats.frames import FrameClient, publication
from relay.nats.headers import parse_headers

TIMEOUT_S = 10
OURS = b"MSG in.1 %(ours)d 3\r\na\r\n\r\n", b"HMSG in.2 %(ours)d back 12 14\r\nNATS/1.0\r\n\r\nbb\r\n"
OTHERS = (
    b"MSG out %(others)d 19\r\nMSG in.9 %(ours)03d 5\r\nabc\r\n",  # looks like one of ours
    b"HMSG out %(others)d 12 12\r\nNATS/1.0\r\n\r\n\r\n",
)
BETWEEN = b"PING\r\n", b"+OK\r\n"
TAKEN = [(b"in.1", b"", b"", b"a\r\n"), (b"in.2", b"back", b"NATS/1.0\r\n\r\n", b"bb")]


class Taken(list[tuple[bytes, ...]]):
    """Records the messages that it is called with."""

    def __call__(self, *message: bytes) -> None:
        self.append(message)


async def listening(nc: FrameClient, subject: str) -> tuple[Subscription, Taken]:
    took = Taken()
    subscription = await nc.listen(subject, took)
    await nc.flush()  # so that nothing else comes between
    return subscription, took


async def subscribed(nc: FrameClient, subject: str) -> Subscription:
    subscription = await nc.subscribe(subject)
    await nc.flush()
    return subscription


async def heard(subscription: Subscription, count: int) -> list[Msg]:
    return [await subscription.next_msg(TIMEOUT_S) for _ in range(count)]


async def test_wherever_it_is_cut(nc):
    """Wherever reads from the socket are cut, our messages are taken once, in order, and the client gets the rest."""
    (ours, took), others = await listening(nc, "in.*"), await subscribed(nc, "out")
    numbers = {b"ours": ours._id, b"others": others._id}
    text = b"".join(part % numbers for part in (OTHERS[0], OURS[0], BETWEEN[0], OURS[1], OTHERS[1], BETWEEN[1]))
    for first in range(len(text)):
        second = first + (len(text) - first) // 2
        took.clear()
        for piece in (text[:first], text[first:second], text[second:]):
            await nc._ps.parse(piece)
        assert TAKEN == took
        assert [19, 0] == [len(message.data) for message in await heard(others, 2)]
    assert 0 == ours.pending_msgs


@pytest.mark.parametrize("place", [5, 15, 40])
async def test_reconnected_in_the_midst(nc, place):
    """A message that was incomplete when the connection was lost is dropped; the next connection starts afresh."""
    ours, took = await listening(nc, "in.*")
    await nc._ps.parse((b"MSG in.0 %d 1000\r\n" % ours._id + b"x" * 1000)[:place])
    nc._ps.reset()
    await nc._ps.parse(b"".join(OURS) % {b"ours": ours._id})
    assert TAKEN == took


async def test_two_at_a_time(nc):
    """Of two subscriptions at a time, one that has ended gets nothing more, and the other goes on."""
    (first, one), (second, other) = await listening(nc, "in.*"), await listening(nc, "out")
    text = b"".join(OURS[0] % {b"ours": subscription._id} for subscription in (first, second))
    await nc._ps.parse(text)
    await first.unsubscribe()
    await nc._ps.parse(text)
    assert (1, 2) == (len(one), len(other))


async def test_drained(nc):
    """A subscription that is drained gets what was published before, and nothing after."""
    ours, took = await listening(nc, "in")
    for number in range(100):
        nc.write(publication(b"in", b"%d" % number))
    await ours.drain()
    nc.write(publication(b"in", b"late"))
    await nc.flush()
    assert [b"%d" % number for number in range(100)] == [body for *_, body in took]


async def test_one_of_a_queue(nc):
    """In a queue group, one subscription gets each message."""
    one, other = Taken(), Taken()
    for took in (one, other):
        await nc.listen("in", took, queue="group")
    for _ in range(20):
        nc.write(publication(b"in", b""))
    await nc.flush()
    assert 20 == len(one) + len(other)


async def test_what_is_written(nc):
    """Written messages arrive unchanged, with reply subject and headers, in order with the client's own messages."""
    ours, took = await listening(nc, "out")
    nc.write(publication(b"out", b"first"))
    await nc.publish("out", b"second")
    nc.write(publication(b"out", b"third", b"back", {"A": "b"}))
    await ours.drain()
    assert [(b"", b"", b"first"), (b"", b"", b"second")] == [message[1:] for message in took[:2]]
    [(_, reply, headers, body)] = took[2:]
    assert (b"back", {"A": "b"}, b"third") == (reply, parse_headers(headers), body)


async def test_a_line_end_in_a_header(nc):
    """A line end within a header, as a file of dead letters may contain, does not start another header."""
    ours, took = await listening(nc, "out")
    headers = {"Plain": "a: b", "Umlaut": "ä", "Value": "a\r\nNats-Rollup: all", "Na\nme": "b\n"}
    nc.write(publication(b"out", b"body", headers=headers))
    await ours.drain()
    [(_, _, block, body)] = took
    assert b"body" == body
    assert {"Plain": "a: b", "Umlaut": "ä", "Value": "a  Nats-Rollup: all"} == parse_headers(block)


async def test_written_while_disconnected(nats_server, connect):
    """What is written while NATS is away is sent when it is back; beyond the limit, or after `close`, it is refused."""
    away, back = asyncio.Event(), asyncio.Event()
    nc = await connect(nats_server.url, on_disconnected=away.set, on_reconnected=back.set)
    _, took = await listening(nc, "in")
    await nats_server.stop()
    async with asyncio.timeout(TIMEOUT_S):
        await away.wait()
    nc.write(publication(b"in", b"kept"))
    with pytest.raises(nats.errors.OutboundBufferLimitError):
        nc.write(publication(b"in", bytes(2 * 1024 * 1024)))
    await nats_server.start()
    async with asyncio.timeout(TIMEOUT_S):
        await back.wait()
    await nc.flush()
    assert [b"kept"] == [body for *_, body in took]
    await nc.close()
    with pytest.raises(nats.errors.ConnectionClosedError):
        nc.write(publication(b"in", b""))


async def test_who_fails_over_a_message(nc, monkeypatch):
    """If a callback raises for a message, it still gets the next one, and the client is told why."""
    told, took = [], Taken()

    async def tell(error: Exception) -> None:
        told.append(str(error))

    def fail_first(*message: bytes) -> None:
        took(*message)
        if len(took) == 1:
            raise ValueError("unfit")

    monkeypatch.setattr(nc, "_error_cb", tell)
    ours = await nc.listen("in", fail_first)
    for body in (b"first", b"second"):
        nc.write(publication(b"in", body))
    await ours.drain()
    assert (["unfit"], [b"first", b"second"]) == (told, [body for *_, body in took])


async def test_a_flush_that_was_cancelled(nc):
    """The connection outlives the PONG for a flush that nobody waits for any more."""
    _, took = await listening(nc, "in")
    flush = asyncio.create_task(nc.flush())
    await asyncio.sleep(0)  # so that it waits for its PONG
    flush.cancel()
    nc.write(publication(b"in", b"later"))
    await nc.flush()
    assert (True, [b"later"]) == (flush.cancelled(), [body for *_, body in took])


async def test_a_line_that_nats_py_fails_at(nc, monkeypatch):
    """It ends the connection, not only the reading from it, and the client is told why."""
    told = []

    async def tell(error: Exception) -> None:
        told.append(type(error))

    monkeypatch.setattr(nc, "_error_cb", tell)
    with pytest.raises(nats.errors.ProtocolError):
        await nc._ps.parse(b"INFO {\r\n")
    assert [json.JSONDecodeError] == told


async def test_a_subscription_that_is_refused(nc):
    """A subscription that is refused takes no messages from the next one."""
    with pytest.raises(nats.errors.BadSubjectError):
        await nc.listen("not a subject", Taken())
    others = await subscribed(nc, "out")
    await nc.publish("out", b"theirs")
    assert [b"theirs"] == [message.data for message in await heard(others, 1)]


@pytest.mark.parametrize("headers", [None, {"Status": "503"}], ids=["answer", "nobody there"])
async def test_cancelled_as_the_answer_comes(nc, headers):
    """A request that is cancelled at the moment of its answer ends as cancelled."""
    silent = await nc.subscribe("silent")
    asking = asyncio.create_task(nc.request("silent", timeout=TIMEOUT_S))
    await silent.next_msg(TIMEOUT_S)
    [answer] = nc._resp_map.values()
    answer.set_result(Msg(nc, headers=headers))
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_cancelled_as_the_pong_comes(nc):
    """The same of a flush."""
    flush = asyncio.create_task(nc.flush())
    await asyncio.sleep(0)  # so that it waits for its PONG
    nc._pongs[-1].set_result(True)
    flush.cancel()
    await asyncio.wait([flush])
    assert flush.cancelled()


async def test_a_task_that_was_cancelled_asks_again(nc):
    """A task that cleans up after its cancellation gets its answer."""
    waiting = asyncio.Event()

    async def ask_after_all() -> Msg:
        try:
            waiting.set()
            return await asyncio.Future()
        except asyncio.CancelledError:
            await nc.flush()
            return await nc.request("$JS.API.INFO", timeout=TIMEOUT_S)

    asking = asyncio.create_task(ask_after_all())
    await waiting.wait()
    asking.cancel()
    assert b"account_info_response" in (await asking).data
