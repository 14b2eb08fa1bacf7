"""What the Facilitator pushes (job requests, cheated jobs), published on JetStream for the programs that run jobs."""

import asyncio
import hashlib
from typing import Final

from relay.contract.errors import JetStreamError, RelayError
from relay.contract.facilitator_messages import PushKind
from relay.contract.subjects import MSG_ID_HEADER, cheated_subject, request_subject
from relay.core.backoff import Backoff
from relay.core.session import Pushed
from relay.nats.err_codes import TOO_LARGE
from relay.nats.frames import FrameClient
from relay.nats.jetstream import publish_confirmed
from relay.observability.logs import get_logger
from relay.observability.metrics import Metrics
from relay.timing.room import Room

_log = get_logger(__name__)

_QUEUE_SIZE: Final = 1000
_QUEUE_BYTES: Final = 16 * 1024 * 1024
"""Room for 1,000 pushes of 16 KB. A larger push is queued alone.

While the queue is full nothing is read from the Facilitator: it has to wait, because a dropped push is lost."""
_WAITING: Final = (
    "job requests of the Facilitator cannot be stored, so jobs do not start, and when 1,000 of them wait, updates do "
    "not flow either"
)


class PushPublisher:
    """Publishes pushes in the order in which they came; each is tried until the server has it."""

    def __init__(self, client: FrameClient, backoff: Backoff, metrics: Metrics) -> None:
        self._client = client
        self._backoff = backoff
        self._metrics = metrics
        self._queue: asyncio.Queue[Pushed] = asyncio.Queue(_QUEUE_SIZE)
        self._room = Room(_QUEUE_BYTES)
        self.trouble: str | None = None
        """Why the first of the pushes that wait cannot be stored, and what that means; None if it can."""
        metrics.hold("pushes", lambda: self._room.held_bytes)

    async def put(self, pushed: Pushed) -> None:
        """Queue a push to be published; waits while the queue is full. If cancelled, the push is not queued."""
        await self._room.take(len(pushed.message))
        try:
            await self._queue.put(pushed)
        except BaseException:
            self._room.release(len(pushed.message))
            raise

    async def drain(self) -> None:
        """Wait until all that was put is published. Cancelling the wait is safe."""
        await self._queue.join()

    def unpublished(self) -> list[str]:
        """Empty the queue; returns what was in it, in words for a last log line."""
        left: list[str] = []
        while not self._queue.empty():
            pushed = self._queue.get_nowait()
            self._room.release(len(pushed.message))
            push = pushed.push
            left.append(f"{push.message_type} {push.token}")
        return left

    async def run(self) -> None:
        """Publish until cancelled; a push that is not confirmed by then may be lost."""
        while True:
            pushed = await self._queue.get()
            await self._publish(pushed)
            self._metrics.pushed(pushed.push.kind)
            self._room.release(len(pushed.message))
            self._queue.task_done()

    async def _publish(self, pushed: Pushed) -> None:
        message = pushed.message.encode() if isinstance(pushed.message, str) else pushed.message
        # Every connection of a validator gets a copy: the same text is the same push.
        headers = {MSG_ID_HEADER: hashlib.sha256(message).hexdigest()}
        subject = _subject_of(pushed)
        attempt = 0
        while True:
            try:
                await publish_confirmed(self._client, subject, message, headers)
            except RelayError as error:
                if isinstance(error, JetStreamError) and error.err_code == TOO_LARGE:
                    # It would never fit, and all that is pushed after it would wait for it.
                    _log.error(
                        "a push of the Facilitator is too large for NATS, and is lost",
                        subject=subject,
                        error=str(error),
                    )
                    self._tell(subject, None)
                    return
                attempt += 1
                self._tell(subject, error)
                await asyncio.sleep(self._backoff.delay_s(attempt))
            else:
                self._tell(subject, None)
                return

    def _tell(self, subject: str, error: RelayError | None) -> None:
        """The push on `subject` was stored, or cannot be because of `error`, which is logged once."""
        trouble = None if error is None else f"{_WAITING}: {error}"
        if trouble is not None and trouble != self.trouble:
            _log.error("a push of the Facilitator cannot be published yet", subject=subject, error=str(error))
        elif trouble is None and self.trouble is not None:
            _log.info("pushes of the Facilitator are stored again")
        self.trouble = trouble


def _subject_of(pushed: Pushed) -> str:
    push = pushed.push
    if push.kind is PushKind.CHEATED:
        return cheated_subject(push.token)
    if push.kind is PushKind.OTHER:
        _log.warning("the Facilitator pushed a message of an unknown type", message_type=push.message_type)
    return request_subject(push.token)
