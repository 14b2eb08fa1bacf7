"""Following a job with a running relay."""

import asyncio

import pytest
from cli_kit import TIMEOUT_S
from history_kit import History

from relay.client.follower import JobFollower, follow
from relay.local.faults import stall

JOB = "123e4567-e89b-42d3-a456-426614174000"


class Following:
    """`follow` in a task; `shown` is what it has given so far, `problems` what it has reported."""

    def __init__(self, client) -> None:
        self.shown: list[tuple[int, str | None, str]] = []
        self.problems: list[str] = []
        self._updates = follow(client, JOB, JobFollower(JOB), ask_again_s=0.1, on_problem=self.problems.append)
        self._task = asyncio.create_task(self._show())

    async def _show(self) -> None:
        async for update in self._updates:
            self.shown.append((update.sequence, update.status, str(update.progress)))

    async def ended(self) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await self._task

    async def asks_three_times(self, client) -> None:
        """Wait until it has asked three times, and check that it has not ended."""
        asked = await client.subscribe(f"job.history.{JOB}")
        for _ in range(3):
            await asked.next_msg(timeout=TIMEOUT_S)
        await asked.unsubscribe()
        assert not self._task.done()


@pytest.mark.parametrize("receipts", ["true", "false"])
async def test_follow(connect, scene, receipts):
    """Each update is given when it is stored and when it is settled, until the job ends, receipts or not."""
    async with scene.relay(RECEIPTS=receipts):
        await scene.settled(await scene.publish(JOB, "received"))
        with scene.facilitator.inject(stall()):
            last = await scene.publish(JOB, "completed", {})
            following = Following(await connect(scene.server.url))
            await following.asks_three_times(scene.nc)
        await scene.settled(last)
        await following.ended()
    expected = [(1, "received", "acknowledged"), (2, "completed", "pending"), (2, "completed", "acknowledged")]
    assert expected == following.shown


async def test_follow_from_the_start(connect, scene):
    """If the job is not known yet, this is reported once, and it waits."""
    async with scene.relay():
        following = Following(await connect(scene.server.url))
        await following.asks_three_times(scene.nc)
        await scene.publish_life(JOB)
        await following.ended()
    (problem,) = following.problems
    assert f"no update of job {JOB} is stored" in problem
    assert [1, 2, 3, 4, 5, 6] == [sequence for sequence, _, progress in following.shown if progress == "acknowledged"]


async def test_nothing_is_given_twice(nc):
    """An update behind one that waits is given once as settled; each is given again when something becomes of it."""
    history, follower = History(JOB), JobFollower(JOB)
    await history.start(nc)

    async def given(*updates: tuple[int, str, int]) -> list[int]:
        history.updates = [*updates]
        return [update.sequence for update in await follower.ask(nc)]

    waits, first, second = (1, "pending", 1), (1, "acknowledged", 1), (2, "acknowledged", 2)
    assert [1, 2] == await given(waits, second)
    assert [] == await given(waits, second)
    assert [1] == await given(first, second)
    assert [] == await given(first, second)
    # The second is replayed, which removes it; then the stream is made anew, and counts from 1 again.
    assert [3] == await given(first, (3, "pending", 3))
    assert [] == await given(first)
    assert [1] == await given((1, "acknowledged", 4))
    assert [2] == await given((1, "acknowledged", 4), (2, "dead_lettered", 5))
    assert "" == follower.problem


async def test_answer_of_another_version(nc):
    """What cannot be read is told, and asked for again."""
    history, follower = History(JOB), JobFollower(JOB)
    await history.start(nc)
    history.updates = [(1, "on_hold", 1)]
    assert [] == await follower.ask(nc)
    assert "cannot be read: Invalid enum value 'on_hold'" in follower.problem
