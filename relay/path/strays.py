"""Strays: updates that JOB_STATUS stored under no lane, because it had lost its subject transform.

Somebody who changes the stream by other means than `relay provision` can take the transform away. What is published
until it is back is confirmed, and stored as `job.status.<uuid>`, where no lane's consumer finds it. When the transform
is back, later updates of the same job travel in their lane. So a stray cannot be sent in order any more: it becomes a
dead letter, and people decide whether it is still wanted. The owner of lane 0 sees to this, for all jobs.

A stray stays in its stream, like every update that is settled. The worker remembers how far it has looked, and its
successor finds the dead letters.
"""

import asyncio
from typing import Any, Final

from relay.contract.errors import RelayError
from relay.contract.subjects import STATUS_STREAM, STATUS_SUBJECTS, Reason, api_stream_info, is_marker
from relay.core.verdict import DeadLetter
from relay.nats.frames import FrameClient
from relay.nats.jetstream import api_request
from relay.nats.messages import StoredMessage, find_message
from relay.observability.logs import get_logger
from relay.path.undelivered import Undelivered
from relay.timing.room import Room

_log = get_logger(__name__)

LANE: Final = 0
"""The lane whose owner looks for strays."""
_HOW_MANY: Final = {"subjects_filter": STATUS_SUBJECTS, "offset": 2**31 - 1}
"""Only their number, from the server's index of subjects: with this offset it lists none of them."""
_TOLD: Final = (
    f"{STATUS_STREAM} had lost its subject_transform when this was published, so it was filed under no lane; the job's"
    " later updates may have been relayed before it"
)


class Strays:
    """Looks for strays every `look_every_s` seconds, and dead-letters them, oldest first. `room` is for their bytes."""

    def __init__(self, client: FrameClient, undelivered: Undelivered, room: Room, look_every_s: float = 5.0) -> None:
        self.trouble: str | None = None
        """Why strays are left, in words for an operator; None if none is."""
        self._client = client
        self._undelivered = undelivered
        self._room = room
        self._look_every_s = look_every_s
        self._looked_up_to = 0

    async def run(self) -> None:
        """Look until cancelled, which is safe at any time. What another worker has done meanwhile is found out."""
        self._looked_up_to = 0
        try:
            while True:
                await self._look()
                await asyncio.sleep(self._look_every_s)
        finally:
            self.trouble = None

    async def _look(self) -> None:
        try:
            info = await api_request(self._client, api_stream_info(STATUS_STREAM), _HOW_MANY)
        except RelayError:
            return  # the lanes' consumers report what is wrong with the stream
        try:
            if info.get("total"):
                await self._dead_letter_all(info)
        except RelayError as error:
            trouble = f"updates that {STATUS_STREAM} stored under no lane do not become dead letters: {error}"
            if trouble != self.trouble:
                _log.error(trouble)
            self.trouble = trouble
        else:
            self.trouble = None

    async def _dead_letter_all(self, info: dict[str, Any]) -> None:
        last: int = info["state"]["last_seq"]
        if last < self._looked_up_to:
            self._looked_up_to = 0  # the stream was made anew
        while self._looked_up_to < last:
            async with self._room.held(self._client.max_payload):  # how large the update is, is not known yet
                request = {"next_by_subj": STATUS_SUBJECTS, "seq": self._looked_up_to + 1}
                found = await find_message(self._client, STATUS_STREAM, request)
                if found is not None and not is_marker(found.headers, found.body):
                    await self._dead_letter(found)
            self._looked_up_to = last if found is None else found.sequence

    async def _dead_letter(self, stray: StoredMessage) -> None:
        await self._undelivered.dead_letter(stray, DeadLetter(Reason.NO_LANE, _TOLD), lane=LANE, deliveries=0)
