"""Following one job: each update when it is stored, and again when it is settled."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

import nats.errors
from nats.aio.msg import Msg

from relay.client.errors import QueryFailed
from relay.client.questions import ask_updates
from relay.contract.subjects import receipt_subject, status_subject
from relay.nats.frames import FrameClient
from relay.query.replies import UpdateProgress, UpdateReply
from relay.timing.waiting import set_within


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
        self._settled_up_to = 0
        self._pending: set[int] = set()
        """Given as pending, and not settled since."""

    async def ask(self, client: FrameClient) -> list[UpdateReply]:
        """Ask once; returns what is new, also if the relays stop answering midway. If cancelled, news may get lost."""
        news: list[UpdateReply] = []
        ended, all_settled = False, True
        try:
            async with contextlib.aclosing(ask_updates(client, self._job, self._settled_up_to)) as updates:
                async for update in updates:
                    settled = update.progress is not UpdateProgress.PENDING
                    if self._is_news(update.sequence, settled=settled):
                        news.append(update)
                    all_settled = all_settled and settled
                    if all_settled:
                        self._settled_up_to = update.sequence
                    ended = update.terminal and settled
        except QueryFailed as error:
            self.problem = error.problem
        else:
            self.problem = ""
            self.ended = ended
        return news

    def _is_news(self, sequence: int, *, settled: bool) -> bool:
        if settled:
            self._pending.discard(sequence)
            return True
        known = sequence in self._pending
        self._pending.add(sequence)
        return not known


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
