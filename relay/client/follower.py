"""Following one job: each update when it is stored, and again when it is settled."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Final

import nats.errors
from nats.aio.msg import Msg

from relay.client.errors import QueryFailed
from relay.client.questions import ask_updates
from relay.contract.subjects import receipt_subject, status_subject
from relay.nats.frames import FrameClient
from relay.query.replies import UpdateProgress, UpdateReply
from relay.timing.waiting import set_within

_NONE: Final = (0, "")


class JobFollower:
    """Gives each update of a job once while it is pending and once when it is settled.

    It remembers what it has given, so it can go on over another connection.
    """

    def __init__(self, job: str) -> None:
        self.ended = False
        """Whether the job has ended and its last update is settled."""
        self.problem = ""
        """Why the relays did not answer the last time; empty if they did."""
        self._job = job
        self._settled_up_to = _NONE
        """The last update of those that are settled without a gap."""
        self._given: dict[int, tuple[str, bool]] = {}
        """By sequence: when the update was published, and whether it was given as settled."""

    async def ask(self, client: FrameClient) -> list[UpdateReply]:
        """Ask once; returns what is new, also if the relays stop answering midway. If cancelled, news may get lost."""
        news: list[UpdateReply] = []
        try:
            if not await self._go_on(client, news):
                self._settled_up_to = _NONE
                await self._go_on(client, news)
        except QueryFailed as error:
            self.problem = error.problem
        else:
            self.problem = ""
        return news

    async def _go_on(self, client: FrameClient, news: list[UpdateReply]) -> bool:
        """Add what is new; begin with the last settled update. False at once if that one is no longer there.

        Then it was removed, as by a replay, or the stream was made anew and counts from 1 again.
        """
        begin, ended, all_settled = self._settled_up_to, False, True
        is_there = begin == _NONE
        async with contextlib.aclosing(ask_updates(client, self._job, max(0, begin[0] - 1))) as updates:
            async for update in updates:
                is_there = is_there or begin == (update.sequence, update.published)
                if not is_there:
                    return False
                settled = update.progress is not UpdateProgress.PENDING
                if self._is_news(update, settled=settled):
                    news.append(update)
                all_settled = all_settled and settled
                if all_settled:
                    self._settled_up_to = update.sequence, update.published
                ended = update.terminal and settled
        self.ended = ended
        return is_there

    def _is_news(self, update: UpdateReply, *, settled: bool) -> bool:
        published, was_settled = self._given.get(update.sequence, ("", False))
        if published == update.published and (was_settled or not settled):
            return False
        self._given[update.sequence] = update.published, settled
        return True


async def follow(
    client: FrameClient,
    job: str,
    follower: JobFollower,
    *,
    ask_again_s: float = 2.0,
    on_problem: Callable[[str], None] = lambda _: None,
) -> AsyncGenerator[UpdateReply]:
    """Each update of a job when it is stored and again when it is settled, until the job's end is settled.

    It ends early if the client is closed for good. `on_problem` is called when the relays begin not to answer, and when
    the reason changes. Cancelling it is safe.
    """
    news = asyncio.Event()

    async def wake(_: Msg) -> None:
        news.set()

    subscriptions = [
        await client.subscribe(subject, cb=wake) for subject in (status_subject(job), receipt_subject(job))
    ]
    try:
        while not follower.ended and not client.is_closed:
            before = follower.problem
            for update in await follower.ask(client):
                yield update
            if follower.problem and follower.problem != before:
                on_problem(follower.problem)
            # Ask again even without a message: receipts may be off, and messages during a reconnect are missed.
            if not follower.ended:
                await set_within(news, ask_again_s)
                news.clear()
    finally:
        for subscription in subscriptions:
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()
