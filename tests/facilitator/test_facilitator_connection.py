"""FacilitatorConnection with updates that were made up; tests/path tests it in a running relay."""

import asyncio
import contextlib
import uuid
from collections import deque
from operator import attrgetter
from types import SimpleNamespace
from unittest.mock import Mock

from delivery_kit import body

from relay.core.backoff import Backoff
from relay.core.connect_pace import ConnectPace, Place
from relay.core.session import AT_ONCE_BYTES, Session
from relay.core.update import Update
from relay.facilitator.connection import Endpoint, FacilitatorConnection
from relay.local.faults import NEVER_ANSWER
from relay.observability.metrics import Metrics

UPDATES = 20


def supply_of(updates):
    """Gives these updates, as core/turns.py does."""
    waiting = deque(updates)

    def take(room, room_bytes, _now_s):
        taken = []
        while waiting and len(taken) < room and room_bytes > 0:
            taken.append(waiting.popleft())
            room_bytes -= taken[-1].held_bytes
        return taken

    return SimpleNamespace(take=take)


def holding(held_bytes):
    """A new job's update that holds so much memory, of which little is sent."""
    job = str(uuid.uuid4())
    return Update(Mock(), 1, job, Mock(), 0.0, 0.0, held_bytes, body(job))


async def test_all_that_fit_into_the_window_are_sent(facilitator):
    """No answer is needed for the next batch, also if the updates hold more memory than is sent of them."""
    never = facilitator.inject(NEVER_ANSWER, times=None)
    session = Session(window=32, reply_timeout_s=60.0, authentication=None, size_of=attrgetter("held_bytes"))
    pace = ConnectPace(lambda: Place(0, 1), 0, 1, Backoff(1.0, 1.0, lambda: 0.0))
    connection = FacilitatorConnection(
        Endpoint(facilitator.url), session, pace, Metrics(lanes=1), ping_interval_s=60.0, ping_timeout_s=60.0
    )
    supply = supply_of([holding(AT_ONCE_BYTES // 4) for _ in range(UPDATES)])
    running = asyncio.create_task(connection.run(supply, Mock(), Mock()))
    try:
        await facilitator.wait_for(lambda _: never.hits == UPDATES)
        assert UPDATES == connection.unanswered
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
