"""Requests and replies on `job.query.<uuid>` and `job.history.<uuid>`, as JSON.

A new field of a reply goes into UpdateReply, into `_update_reply` of answers.py, which fills it, and into the table of
subjects.md, which tests/docs/test_subjects_md.py compares with UpdateReply.
"""

from enum import StrEnum
from typing import Annotated, Final

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

MOST_UPDATES: Final = 200
"""In one reply on `job.history.<uuid>`."""


class UpdateProgress(StrEnum):
    """How far an update got."""

    PENDING = "pending"
    """It is not settled, or nobody knows for certain that it is."""
    ACKNOWLEDGED = "acknowledged"
    """The Facilitator has acknowledged it."""
    DEAD_LETTERED = "dead_lettered"
    """It is in the dead-letter stream, and will not be sent again."""


class QueryRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A request on `job.query.<uuid>`. An empty request has the defaults."""

    metadata: bool = False
    """Whether the reply is to have the update's body."""


class HistoryRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A request on `job.history.<uuid>`. An empty request has the defaults."""

    metadata: bool = False
    """Whether the reply is to have the updates' bodies."""
    after: Annotated[int, Meta(ge=0)] = 0
    """Only updates with a higher sequence: `next` of the reply before."""
    limit: Annotated[int, Meta(ge=1, le=MOST_UPDATES)] = 100


class UpdateReply(Struct, frozen=True, kw_only=True):
    """One update."""

    uuid: str
    status: str | None
    """Null if the body cannot be read."""
    terminal: bool
    """Whether the job ends with this status."""
    sequence: int
    """In JOB_STATUS."""
    published: str
    """When JOB_STATUS stored it: RFC 3339, UTC."""
    progress: UpdateProgress
    reason: str | None = None
    """If it is dead-lettered: its `Relay-Reason`."""
    dead_letter: int | None = None
    """If it is dead-lettered: its sequence in JOB_DLQ."""
    unreadable: str | None = None
    """Why the body cannot be read."""
    body: Raw | UnsetType = UNSET
    """If asked for: the update as the Facilitator gets it; a body that cannot be read, as text in base64.

    Null if the reply would be too large for NATS with it.
    """


class HistoryReply(Struct, frozen=True):
    """Updates of a job in the order of their sequences."""

    uuid: str
    updates: list[Raw]
    """Each is an UpdateReply."""
    next: int | None
    """What to send as `after` to get the updates that follow; null if these are the last."""
