"""Asking the relays about a job, on `job.query.<uuid>` and `job.history.<uuid>`."""

from collections.abc import AsyncGenerator
from typing import Any, Final, TypeVar

import msgspec
import nats.errors

from relay.contract.errors import RelayError
from relay.contract.subjects import history_subject, query_subject
from relay.contract.text import describe, escape
from relay.nats.frames import FrameClient
from relay.query.replies import HistoryReply, HistoryRequest, UpdateReply

_TIMEOUT_S: Final = 6.0
"""Longer than any worker takes: it answers with an error before that."""
_CODE_HEADER: Final = "Nats-Service-Error-Code"
_ERROR_HEADER: Final = "Nats-Service-Error"

R = TypeVar("R", UpdateReply, HistoryReply)


class QueryFailed(RelayError):  # noqa: N818 - named for what happened, as its siblings
    """There is no answer, or the answer is an error. The message is safe to show on a terminal."""

    def __init__(self, problem: str) -> None:
        self.problem = escape(problem)
        super().__init__(self.problem)


async def ask_latest(client: FrameClient, job: str) -> UpdateReply:
    """The job's latest update. Raises QueryFailed, also if there is none. Cancelling it is safe."""
    return await _ask(client, query_subject(job), b"", UpdateReply)


async def ask_updates(client: FrameClient, job: str, after: int = 0) -> AsyncGenerator[UpdateReply]:
    """The job's updates with a sequence above `after`, oldest first. Raises QueryFailed, also if there are none.

    Cancelling it is safe.
    """
    next_after: int | None = after
    while next_after is not None:
        request = msgspec.json.encode(HistoryRequest(after=next_after))
        page = await _ask(client, history_subject(job), request, HistoryReply)
        for update in page.updates:
            yield msgspec.json.decode(update, type=UpdateReply)
        next_after = page.next


async def _ask(client: FrameClient, subject: str, request: bytes, kind: type[R]) -> R:
    try:
        answer = await client.request(subject, request, timeout=_TIMEOUT_S)
    except nats.errors.NoRespondersError:
        raise QueryFailed(f"nobody answers on {subject}: no relay is running on this NATS") from None
    except (nats.errors.Error, TimeoutError, OSError) as error:
        raise QueryFailed(f"no answer on {subject}: {describe(error)}") from None
    headers: dict[str, Any] = answer.headers or {}
    if _CODE_HEADER in headers:
        raise QueryFailed(headers.get(_ERROR_HEADER, "no reason is given"))
    try:
        return msgspec.json.decode(answer.data, type=kind)
    except msgspec.DecodeError as error:
        raise QueryFailed(f"the answer on {subject} cannot be read: {error}") from None
