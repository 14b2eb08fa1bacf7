"""A producer that never stops."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from relay_kit import Scene, new_job

from relay.local.facilitator import FacilitatorSimulator


@contextlib.asynccontextmanager
async def steadily_published(scene: Scene, backlog: int) -> AsyncIterator[None]:
    """Publish updates of new jobs during the block, so that about `backlog` of them are unsettled at any time."""

    def wanted(facilitator: FacilitatorSimulator) -> bool:
        return done.is_set() or len(scene.published) - len(facilitator.rows) <= backlog

    async def publish() -> None:
        while not done.is_set():
            await scene.publish_life(new_job())
            await scene.facilitator.wait_for(wanted, 20)

    done = asyncio.Event()
    publishing = asyncio.create_task(publish())
    try:
        yield
    except BaseException:
        publishing.cancel()  # it would wait for updates that nobody relays any more
        raise
    done.set()
    await publishing
