"""Room for bytes that many share."""

import asyncio

import pytest

from relay.timing.room import Room


async def turn() -> None:
    """Let everything run that can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_room_is_given_in_order_and_within_the_limit():
    """At most the limit is held, and a small request does not overtake a large one before it."""
    room, given = Room(10), []

    async def take(size: int) -> None:
        await room.take(size)
        given.append(size)

    tasks = [asyncio.create_task(take(size)) for size in (4, 6, 8, 1)]
    await turn()
    assert ([4, 6], 10) == (given, room.held_bytes)
    room.release(6)
    await turn()
    assert ([4, 6], 4) == (given, room.held_bytes)
    room.release(4)
    await turn()
    assert ([4, 6, 8, 1], 9) == (given, room.held_bytes)
    await asyncio.gather(*tasks)


async def test_what_is_larger_than_the_limit_goes_alone():
    """It waits until nothing is held, and nothing else is held beside it."""
    room = Room(10)
    await room.take(1)
    large = asyncio.create_task(room.take(99))
    small = asyncio.create_task(room.take(1))
    await turn()
    assert not large.done()
    room.release(1)
    await turn()
    assert (True, False, 99) == (large.done(), small.done(), room.held_bytes)
    room.release(99)
    await small
    assert 1 == room.held_bytes


async def test_a_cancelled_wait_holds_nothing_and_lets_others_pass():
    """Those behind a wait that is cancelled get the room that there is."""
    room = Room(10)
    await room.take(5)
    large, small = asyncio.create_task(room.take(6)), asyncio.create_task(room.take(5))
    await turn()
    large.cancel()
    await small
    with pytest.raises(asyncio.CancelledError):
        await large
    assert 10 == room.held_bytes


async def test_cancelled_just_when_room_is_given():
    """Room that is given to a task that is cancelled in the same moment is given back."""
    room = Room(10)
    await room.take(10)
    waiting = asyncio.create_task(room.take(3))
    await turn()
    room.release(10)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert 0 == room.held_bytes


async def test_room_is_given_back_after_an_error():
    """The block of `held` gives its room back, however it ends."""
    room = Room(10)

    async def fail() -> None:
        async with room.held(7):
            raise ValueError(room.held_bytes)

    with pytest.raises(ValueError, match="7"):
        await fail()
    assert 0 == room.held_bytes
