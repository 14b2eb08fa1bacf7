"""How job runners published before: a message on the job's own channel of a Django Channels layer on Redis.

The layer is `channels_redis.core.RedisChannelLayer`, configured as in the README of channels-redis: `hosts`, and
defaults for the rest. (Its `capacity` of 100 messages a channel is per job here.)
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from channels_redis.core import RedisChannelLayer

AT_ONCE: Final = 32
"""How many publications run at once at most. Real ones came from many processes. In one process, more than 100 at once
would exhaust the pool of connections to Redis, and the publisher is not what is measured."""

Publish = Callable[[str, dict[str, Any]], Awaitable[None]]


def channel_of(uuid: str) -> str:
    """The channel that carries the updates of one job."""
    return f"job_status_updates__{uuid}"


async def connect(redis_url: str) -> Publish:
    """A function that publishes one update: `await publish(uuid, payload)`.

    It returns when Redis has the update. It raises channels.exceptions.ChannelFull if 100 updates of the job are
    waiting, and redis.exceptions.RedisError if Redis cannot be reached.
    """
    layer = RedisChannelLayer(hosts=[redis_url])
    room = asyncio.Semaphore(AT_ONCE)

    async def publish(uuid: str, payload: dict[str, Any]) -> None:
        async with room:
            await layer.send(channel_of(uuid), {"type": "job_status_update", "payload": payload})

    return publish
