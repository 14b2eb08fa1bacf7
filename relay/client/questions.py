"""Asking the relays about a job once, on `job.query.<uuid>` and `job.history.<uuid>`."""

from collections.abc import AsyncGenerator
from typing import Any, Final, TypeVar
from uuid import UUID

import msgspec
import nats.errors

from relay.client.errors import InvalidQuery, NoAnswer, NoRelayRunning, QueryFailed, refusal
from relay.contract.subjects import history_subject, is_job_uuid, query_subject
from relay.contract.text import describe
from relay.nats.frames import FrameClient
from relay.nats.jetstream import not_permitted
from relay.query.replies import HistoryReply, HistoryRequest, QueryRequest, UpdateReply

ANSWER_TIMEOUT_S: Final = 6.0
"""Longer than any worker takes: it answers with an error before that."""
_CODE_HEADER: Final = "Nats-Service-Error-Code"
_ERROR_HEADER: Final = "Nats-Service-Error"

R = TypeVar("R", UpdateReply, HistoryReply)


def job_of(uuid: UUID | str) -> str:
    """The UUID as subjects have it. Raises InvalidQuery if it is none."""
    job = str(uuid).lower()
    if not is_job_uuid(job):
        raise InvalidQuery(f"{uuid!a} is not a UUID with hyphens, such as 123e4567-e89b-42d3-a456-426614174000")
    return job


async def ask_latest(
    client: FrameClient, job: str, *, body: bool = False, timeout_s: float = ANSWER_TIMEOUT_S
) -> UpdateReply:
    """The job's latest update, with its body if wanted. Raises QueryFailed, also if there is none.

    Cancelling it is safe.
    """
    request = msgspec.json.encode(QueryRequest(metadata=body))
    return await _ask(client, query_subject(job), request, UpdateReply, timeout_s)


async def ask_page(
    client: FrameClient, job: str, *, after: int = 0, body: bool = False, timeout_s: float = ANSWER_TIMEOUT_S
) -> tuple[list[UpdateReply], int | None]:
    """The job's first updates with a sequence above `after`, oldest first, and the `after` of the next page, if any.

    Raises QueryFailed, also if there are none. Cancelling it is safe.
    """
    request = msgspec.json.encode(HistoryRequest(after=after, metadata=body))
    subject = history_subject(job)
    page = await _ask(client, subject, request, HistoryReply, timeout_s)
    try:
        return [msgspec.json.decode(update, type=UpdateReply) for update in page.updates], page.next
    except (ValueError, RecursionError) as error:  # of a relay of another version
        raise QueryFailed(f"an update in the answer on {subject} cannot be read: {error}") from None


async def ask_updates(client: FrameClient, job: str, after: int = 0) -> AsyncGenerator[UpdateReply]:
    """The job's updates with a sequence above `after`, oldest first. Raises QueryFailed, also if there are none.

    Cancelling it is safe.
    """
    next_after: int | None = after
    while next_after is not None:
        updates, next_after = await ask_page(client, job, after=next_after)
        for update in updates:
            yield update


async def _ask(client: FrameClient, subject: str, request: bytes, kind: type[R], timeout_s: float) -> R:
    try:
        answer = await client.request(subject, request, timeout=timeout_s)
    except nats.errors.NoRespondersError:
        raise NoRelayRunning(f"nobody answers on {subject}: no relay is running on this NATS") from None
    except (nats.errors.Error, TimeoutError, OSError) as error:
        in_time = f"none came within {timeout_s:g} s" if isinstance(error, TimeoutError) else describe(error)
        problem = not_permitted(client, subject) or in_time
        raise NoAnswer(f"no answer on {subject}: {problem}") from None
    headers: dict[str, Any] = answer.headers or {}
    if _CODE_HEADER in headers:
        raise refusal(headers[_CODE_HEADER], headers.get(_ERROR_HEADER, "no reason is given"))
    try:
        return msgspec.json.decode(answer.data, type=kind)
    except (ValueError, RecursionError) as error:
        raise QueryFailed(f"the answer on {subject} cannot be read: {error}") from None
