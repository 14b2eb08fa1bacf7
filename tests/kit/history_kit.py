"""Stands where a relay answers on `job.history.<uuid>`, for tests that decide what it says."""

import msgspec
from nats.aio.msg import Msg

from relay.contract.subjects import history_subject
from relay.nats.frames import FrameClient
from relay.query.replies import HistoryReply, HistoryRequest, UpdateProgress, UpdateReply


class History:
    """Answers with `updates`: sequence, progress, and in which second they were published; job `job`."""

    def __init__(self, job: str) -> None:
        self.updates: list[tuple[int, str, int]] = []
        self._job = job

    async def start(self, client: FrameClient) -> None:
        await client.subscribe(history_subject(self._job), cb=self._answer)
        await client.flush()

    async def _answer(self, request: Msg) -> None:
        after = msgspec.json.decode(request.data, type=HistoryRequest).after
        found = [self._reply(*update) for update in self.updates if update[0] > after]
        await request.respond(msgspec.json.encode(HistoryReply(self._job, found, None)))

    def _reply(self, sequence: int, progress: str, second: int) -> msgspec.Raw:
        published = f"2026-11-22T03:14:{second:02}Z"
        reply = UpdateReply(
            uuid=self._job,
            status="completed",
            terminal=True,
            sequence=sequence,
            published=published,
            progress=UpdateProgress.PENDING,
        )
        return msgspec.Raw(msgspec.json.encode(msgspec.to_builtins(reply) | {"progress": progress}))
