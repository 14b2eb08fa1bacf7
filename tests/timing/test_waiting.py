"""Waiting for an event with a time limit."""

import asyncio

import pytest

from relay.timing.waiting import set_within

LONG_S = 30
SHORT_S = 0.01


@pytest.mark.parametrize("timeout_s", [None, LONG_S, 0])
async def test_already_set(timeout_s):
    """If the event is set already, the wait returns at once, with any limit."""
    event = asyncio.Event()
    event.set()
    assert await set_within(event, timeout_s)


@pytest.mark.parametrize("timeout_s", [None, LONG_S])
async def test_set_meanwhile(timeout_s):
    """The wait ends when the event is set."""
    event = asyncio.Event()
    asyncio.get_running_loop().call_soon(event.set)
    assert await set_within(event, timeout_s)


@pytest.mark.parametrize("timeout_s", [0, SHORT_S])
async def test_not_set(timeout_s):
    """The wait ends at its limit without an error."""
    assert not await set_within(asyncio.Event(), timeout_s)


async def test_cancelled():
    """A cancelled wait is cancelled, and does not return as if its time were over."""
    waiting = asyncio.create_task(set_within(asyncio.Event(), LONG_S))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
