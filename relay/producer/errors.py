"""The errors of a publisher, in addition to ConfigurationError of `relay.contract.errors`.

    RelayError
    ├── JetStreamError
    │   └── PublishRefused      the server refused an update: it is not stored
    ├── PublishUnconfirmed
    │   └── PublishTimedOut     no PubAck in time; `maybe_stored` says whether the update may be stored
    ├── PublishHeldBack         an earlier update of the same job was not published
    ├── PublisherFull           too much waits already: the update was not taken
    ├── UpdateTooLarge          an update is larger than a limit: it can never be published
    ├── InvalidUpdate           this is no update, or one that cannot be written as JSON
    ├── FlushIncomplete         after a flush, some updates are not published
    ├── NotReady                NATS would not store an update now
    ├── NotInEventLoop          `StatusPublisher.submit` was called where no event loop runs
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
    """The update was not taken: `waiting` updates of `waiting_bytes` bytes wait, and no more are allowed.

    `submit` says so at once, `publish` after it has waited for room for all its time.
    """

    def __init__(self, update: str, waiting: int, waiting_bytes: int, max_updates: int, max_bytes: int) -> None:
        self.update = update
        self.waiting = waiting
        self.waiting_bytes = waiting_bytes
        super().__init__(
            f"{update} was not taken: {waiting} updates of {waiting_bytes} bytes wait to be published, and at most"
            f" {max_updates} of {max_bytes} bytes may; NATS is away or slower than you publish: use `publish`, which"
            " waits for room, or call `flush`, or raise max_updates or max_bytes"
        )


class UpdateTooLarge(RelayError):  # noqa: N818
    """An update has more bytes than `limit` allows. It is not stored, and never will be.

    `limit` is the name of what limits it to `max_bytes`: max_bytes of the publisher, max_payload of nats-server, or
    what the Facilitator takes. `parts` names its largest members with their sizes.
    """

    def __init__(self, update: str, size_bytes: int, limit: str, max_bytes: int, parts: str) -> None:
        self.update = update
        self.size_bytes = size_bytes
        self.limit = limit
        self.max_bytes = max_bytes
        self.parts = parts
        super().__init__(
            f"{update} is not stored: it has {size_bytes} bytes, and {limit} is {max_bytes}. The largest parts are"
            f' {parts}: shorten them, or let the publisher do it with on_too_large="truncate"'
        )


class InvalidUpdate(RelayError, ValueError):  # noqa: N818
    """This is no update: of another type, with wrong fields, or with text that JSON cannot have."""

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(f"nothing was published: {problem}")


class FlushIncomplete(RelayError):  # noqa: N818
    """After a flush, `unpublished` names the updates that failed or still wait. Those that wait are still published."""

    def __init__(self, unpublished: Sequence[str], timeout_s: float) -> None:
        self.unpublished = tuple(unpublished)
        super().__init__(f"not published within {timeout_s:g} s: {_listed(self.unpublished)}")


class NotReady(RelayError):  # noqa: N818
    """NATS would not store an update now. `cause` says why."""

    def __init__(self, cause: str) -> None:
        self.cause = cause
        super().__init__(f"updates cannot be published now: {cause}")


class NotInEventLoop(RelayError, RuntimeError):  # noqa: N818
    """A StatusPublisher was used where no event loop runs."""

    def __init__(self) -> None:
        super().__init__("no event loop runs here: use SyncStatusPublisher, whose methods block instead")


class PublisherClosed(RelayError):  # noqa: N818
    """The publisher is closed. `unpublished` names the updates that had no PubAck by then, each job's oldest first."""

    def __init__(self, unpublished: Sequence[str] = ()) -> None:
        self.unpublished = tuple(unpublished)
        super().__init__(
            f"the publisher was closed before the PubAck of {_listed(self.unpublished)}; what was on its way may be"
            " stored: publish them again"
            if unpublished
            else "the publisher is closed: make a new one"
        )


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _remedy(err_code: int) -> str:
    if err_code == TOO_LARGE:
        return "shorten its metadata"
    if err_code == STREAM_FULL:
        return "the stream JOB_STATUS is full: raise its limits, and publish again"
    if err_code in STORE_FULL:
        return "the store of nats-server is full: make room there, and publish again"
    return "correct what the server names, and publish again"
