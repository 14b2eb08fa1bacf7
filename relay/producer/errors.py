"""The errors of a publisher, in addition to ConfigurationError of `relay.contract.errors`.

    RelayError
    ├── JetStreamError
    │   └── PublishRefused      the server refused an update: it is not stored
    ├── PublishUnconfirmed
    │   └── PublishTimedOut     no PubAck in time; `maybe_stored` says whether the update may be stored
    ├── PublishHeldBack         an earlier update of the same job was not published
    ├── PublisherFull           too much waits already: the update was not taken
    ├── UpdateTooLarge          an update is larger than the publisher may hold: it can never be taken
    └── PublisherClosed         the publisher was closed, perhaps before everything was published

Each message says whether the update is stored, as far as that is known, and what to do. Messages and the attribute
`update` name an update as `completed of job <uuid>`.
"""

from collections.abc import Sequence
from typing import Final

from relay.contract.errors import JetStreamError, PublishUnconfirmed, RelayError
from relay.nats.err_codes import STORE_FULL, STREAM_FULL, TOO_LARGE

_SHOWN: Final = 3


class PublishRefused(JetStreamError):  # noqa: N818 - named after what happened, like all errors here
    """The server refused an update. It is not stored, and the same publish would be refused again.

    `err_code` is JetStream's: 10077 if the stream is full, 10054 if the update is too large; see nats/err_codes.py.
    """

    def __init__(self, update: str, answer: JetStreamError) -> None:
        self.update = update
        super().__init__(answer.request, answer.code, answer.err_code, answer.description)

    def __str__(self) -> str:
        return (
            f"{self.update} is not stored: the server refused it with {self.description!r} (err_code {self.err_code});"
            f" {_remedy(self.err_code)}"
        )


class PublishTimedOut(PublishUnconfirmed):
    """An update got no PubAck within `timeout_s` seconds, over all tries.

    `maybe_stored` is False if the update is certainly not stored, because each try was answered or had no connection.
    """

    def __init__(self, subject: str, cause: str, *, update: str, timeout_s: float, maybe_stored: bool) -> None:
        self.update = update
        self.timeout_s = timeout_s
        self.maybe_stored = maybe_stored
        super().__init__(subject, cause)

    def __str__(self) -> str:
        known = (
            "it may be stored: publish it again, within 2 minutes it is stored only once"
            if self.maybe_stored
            else "it is not stored: publish it again"
        )
        return f"{self.update} was not confirmed within {self.timeout_s:g} s: {self.cause}; {known}"


class PublishHeldBack(RelayError):  # noqa: N818
    """An update was not published, because `earlier`, an update of the same job, failed. `cause` says why."""

    def __init__(self, update: str, earlier: str, cause: str) -> None:
        self.update = update
        self.earlier = earlier
        self.cause = cause
        super().__init__(
            f"{update} is not stored: {earlier} must come first and was not published ({cause});"
            " publish both again, in this order"
        )


class PublisherFull(RelayError):  # noqa: N818
    """The update was not taken, because `waiting` updates of `waiting_bytes` bytes wait and no more are allowed."""

    def __init__(self, update: str, waiting: int, waiting_bytes: int, max_updates: int, max_bytes: int) -> None:
        self.update = update
        self.waiting = waiting
        self.waiting_bytes = waiting_bytes
        super().__init__(
            f"{update} was not taken: {waiting} updates of {waiting_bytes} bytes wait to be published, and at most"
            f" {max_updates} of {max_bytes} bytes may; NATS is away or slower than you publish: wait for the PubAcks"
            " of earlier ones, or raise max_updates or max_bytes"
        )


class UpdateTooLarge(RelayError):  # noqa: N818
    """An update has more bytes than all updates that wait may have together. It was not taken, and never will be."""

    def __init__(self, update: str, size_bytes: int, max_bytes: int) -> None:
        self.update = update
        self.size_bytes = size_bytes
        self.max_bytes = max_bytes
        super().__init__(
            f"{update} is not stored: it has {size_bytes} bytes, and the limit max_bytes of this publisher is"
            f" {max_bytes}; shorten its metadata, or raise max_bytes if NATS takes messages of that size"
        )


class PublisherClosed(RelayError):  # noqa: N818
    """The publisher is closed. `unpublished` names the updates that had no PubAck by then, each job's oldest first."""

    def __init__(self, unpublished: Sequence[str] = ()) -> None:
        self.unpublished = tuple(unpublished)
        named = ", ".join(self.unpublished[:_SHOWN])
        more = f" and {len(unpublished) - _SHOWN} more" if len(unpublished) > _SHOWN else ""
        super().__init__(
            f"the publisher was closed before the PubAck of {named}{more}; what was on its way may be stored:"
            " publish them again"
            if unpublished
            else "the publisher is closed: make a new one"
        )


def _remedy(err_code: int) -> str:
    if err_code == TOO_LARGE:
        return "shorten its metadata"
    if err_code == STREAM_FULL:
        return "the stream JOB_STATUS is full: raise its limits, and publish again"
    if err_code in STORE_FULL:
        return "the store of nats-server is full: make room there, and publish again"
    return "correct what the server names, and publish again"
