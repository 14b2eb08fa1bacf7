"""What the producer's tests share: updates, reading what is stored, and a stream whose answers the test sends."""

import asyncio
import json
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg

from relay.contract.model import JobStatusUpdate
from relay.contract.settings import NatsSettings
from relay.contract.subjects import STATUS_STREAM, api_stream_info
from relay.local.server import NatsServer
from relay.nats.connection import close, connect
from relay.nats.jetstream import api_request
from relay.producer import StatusPublisher

_WAIT_S = 10


def update(job: str, status: str = "accepted", **metadata: Any) -> JobStatusUpdate:
    return JobStatusUpdate.model_validate({"uuid": job, "status": status, "metadata": metadata or None})


def numbered(job: str, count: int) -> list[JobStatusUpdate]:
    """Updates of one job that differ by `number` in their metadata."""
    return [update(job, number=number) for number in range(count)]


async def stored(server: NatsServer) -> dict[str, list[JobStatusUpdate]]:
    """Each job's updates in stream order, read over a new connection."""
    client = await connect(NatsSettings(urls=(server.url,)), name="test")
    try:
        last = (await api_request(client, api_stream_info(STATUS_STREAM)))["state"]["last_seq"]
        messages = [await client.jetstream().get_msg(STATUS_STREAM, sequence) for sequence in range(1, last + 1)]
    finally:
        await close(client)
    updates: dict[str, list[JobStatusUpdate]] = {}
    for message in messages:
        found = JobStatusUpdate.model_validate_json(message.data or b"")
        updates.setdefault(found.uuid, []).append(found)
    return updates


class PlayedStream:
    """Replaces the stream: no stream captures its subject, and the test answers. `publisher` publishes to it."""

    def __init__(self, publisher: StatusPublisher) -> None:
        self.publisher = publisher
        self._arrived: asyncio.Queue[Msg] = asyncio.Queue()

    async def listen(self, client: Client) -> "PlayedStream":
        await client.subscribe("job.status.*", cb=self._arrived.put)
        await client.flush()
        return self

    async def hear(self) -> Msg:
        """Return the next publish."""
        async with asyncio.timeout(_WAIT_S):
            return await self._arrived.get()

    async def acknowledge(self, heard: Msg | None = None, sequence: int = 1) -> None:
        """Send the PubAck for a publish, or for the next one."""
        heard = heard or await self.hear()
        await heard.respond(json.dumps({"stream": STATUS_STREAM, "seq": sequence}).encode())

    async def refuse(self, code: int, err_code: int) -> None:
        """Answer the next publish with an error."""
        error = {"code": code, "err_code": err_code, "description": "no"}
        await (await self.hear()).respond(json.dumps({"stream": STATUS_STREAM, "seq": 0, "error": error}).encode())

    @property
    def silent(self) -> bool:
        return self._arrived.empty()
