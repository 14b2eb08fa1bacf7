"""Messages that are taken out of what a client reads: whole, in order, and no others."""

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from relay.broker.frames import taken

TIMEOUT_S = 10
OURS = b"MSG in.1 %(ours)d 3\r\na\r\n\r\n", b"HMSG in.2 %(ours)d back 12 14\r\nNATS/1.0\r\n\r\nbb\r\n"
OTHERS = (
    b"MSG out %(others)d 19\r\nMSG in.9 %(ours)03d 5\r\nabc\r\n",  # it looks like one of ours
    b"HMSG out %(others)d 12 12\r\nNATS/1.0\r\n\r\n\r\n",
)
BETWEEN = b"PING\r\n", b"+OK\r\n"
TAKEN = [(b"in.1", b"", b"", b"a\r\n"), (b"in.2", b"back", b"NATS/1.0\r\n\r\n", b"bb")]


async def subscribed(nc: Client, subject: str) -> Subscription:
    subscription = await nc.subscribe(subject)
    await nc.flush()  # so that nothing else comes in between
    return subscription


async def heard(subscription: Subscription, count: int) -> list[Msg]:
    return [await subscription.next_msg(TIMEOUT_S) for _ in range(count)]


async def test_wherever_it_is_cut(nc):
    """Wherever the socket cuts what comes in, what is ours is taken once, in order, and the client has the rest."""
    ours, others = await subscribed(nc, "in.*"), await subscribed(nc, "out")
    numbers = {b"ours": ours._id, b"others": others._id}
    text = b"".join(part % numbers for part in (OTHERS[0], OURS[0], BETWEEN[0], OURS[1], OTHERS[1], BETWEEN[1]))
    parse = nc._ps.parse
    for first in range(len(text)):
        second = first + (len(text) - first) // 2
        took = []
        with taken(nc, ours, lambda *message, took=took: took.append(message)):
            for piece in (text[:first], text[first:second], text[second:]):
                await nc._ps.parse(piece)
        assert TAKEN == took
        assert [19, 0] == [len(message.data) for message in await heard(others, 2)]
    assert (0, parse) == (ours.pending_msgs, nc._ps.parse)


async def test_begun_in_the_midst(nc):
    """A message that was begun before ours were taken is read to its end, and what is ours behind it is taken."""
    ours, others = await subscribed(nc, "in.*"), await subscribed(nc, "out")
    numbers, took = {b"ours": ours._id, b"others": others._id}, []
    first, second = OTHERS[0] % numbers, b"".join(OURS) % numbers
    await nc._ps.parse(first[:20])
    with taken(nc, ours, lambda *message: took.append(message)):
        await nc._ps.parse(first[20:] + second)
    assert TAKEN == took
    assert [19] == [len(message.data) for message in await heard(others, 1)]


@pytest.mark.parametrize("place", [5, 15, 40])
async def test_reconnected_in_the_midst(nc, place):
    """What was not whole when the connection was lost is forgotten: the next one begins with a frame of its own."""
    ours, took = await subscribed(nc, "in.*"), []
    with taken(nc, ours, lambda *message: took.append(message)):
        await nc._ps.parse((b"MSG in.0 %d 1000\r\n" % ours._id + b"x" * 1000)[:place])
        nc._ps.reset()
        await nc._ps.parse(b"".join(OURS) % {b"ours": ours._id})
    assert TAKEN == took


async def test_two_at_a_time(nc):
    """Two subscriptions are taken side by side, and what is not ended yet goes on when the other is."""
    first, second = await subscribed(nc, "in.*"), await subscribed(nc, "out")
    took = []
    text = [OURS[0] % {b"ours": subscription._id} for subscription in (first, second)]
    with taken(nc, second, lambda *_: took.append("second")):
        with taken(nc, first, lambda *_: took.append("first")):
            await nc._ps.parse(b"".join(text))
        await nc._ps.parse(b"".join(text))
    assert ["first", "second", "second"] == took
    assert [b"a\r\n"] == [message.data for message in await heard(first, 1)]
