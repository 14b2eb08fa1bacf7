"""What the NATS server does not permit this worker, in words: what was refused, and what that means."""

import time
from collections.abc import Iterator, Mapping
from typing import Final

from relay.contract.subjects import CANARY_SUBJECT, DLQ_SUBJECTS, LEASE_SUBJECTS, REQUEST_SUBJECTS
from relay.nats.frames import FrameClient
from relay.nats.refusals import Refusals

_REMEDY: Final = "permit it (deploy/nats/users.conf)"
_AT_WORK_S: Final = 60.0
"""What is refused in the work on updates is refused again within this time, as long as it is not permitted."""
_TOLD_ELSEWHERE: Final = tuple(
    subject.lower().rstrip("*>") for subject in (CANARY_SUBJECT, DLQ_SUBJECTS, LEASE_SUBJECTS, *REQUEST_SUBJECTS)
)
"""These wait for a PubAck, and those who wait report that it does not come."""
_UNSETTLED: Final = (
    "no update can be settled: each is delivered again and again, and after RELAY_MAX_DELIVER deliveries it is "
    "dead-lettered"
)
_TOO_MANY: Final = (
    "nats-server lets this connection have fewer subscriptions than a worker needs (20, and 3 for each lane): raise "
    "`max_subscriptions` of the server, or `max_subs` of the NATS user"
)
_PUBLISHES: Final = {
    "job.relayed.": "there are no receipts",
    "relay.lane.": "questions about lanes of other workers are answered by what the server knows, which is less",
    "$js.": "what is asked there stays unknown",
}
_ANSWERS: Final = "who asked there gets no answer, unless a stranger named a subject on which nobody may answer"
_SUBSCRIPTIONS: Final = {
    "job.query.": "this worker answers no questions about jobs",
    "job.history.": "this worker answers no questions about jobs",
    "relay.report": "`relay top` and `relay doctor` do not see this worker",
    "relay.lane.": "other workers cannot ask this one about its lanes",
    "$srv.": "this worker is not shown as a micro service",
    "$js.event.": "updates that JetStream gave up on are found some seconds later",
}
_LEASES: Final = "lanes that others give up are taken some seconds later"


class PermissionWatch:
    """Reads what `client` was refused on its present connection."""

    def __init__(self, client: FrameClient) -> None:
        self._client = client

    @property
    def troubles(self) -> list[str]:
        """Refusals that keep updates from flowing, with what to do."""
        return list(self._troubles())

    @property
    def warnings(self) -> list[str]:
        """The other refusals, with what they mean and what to do."""
        return [*self._of_publishes(), *self._of_subscriptions()]

    @property
    def _refusals(self) -> Refusals:
        return self._client.refusals

    @property
    def _inbox(self) -> str:
        return self._client.new_inbox().rpartition(".")[0].lower() + "."

    def _troubles(self) -> Iterator[str]:
        if self._refusals.too_many:
            yield _TOO_MANY
        for subject in self._refusals.publishes(time.monotonic(), _AT_WORK_S):
            if (meaning := _at_work(subject)) is not None:
                yield _told("publish on", subject, meaning)
        for subject in self._refusals.subscriptions:
            if subject.startswith(self._inbox):
                yield _told("subscribe to", subject, "updates and answers do not arrive")

    def _of_publishes(self) -> Iterator[str]:
        for subject in self._refusals.publishes(time.monotonic()):
            if _at_work(subject) is None and not subject.startswith(_TOLD_ELSEWHERE):
                yield _told("publish on", subject, _meaning(subject, _PUBLISHES) or _ANSWERS)

    def _of_subscriptions(self) -> Iterator[str]:
        for subject in self._refusals.subscriptions:
            if not subject.startswith(self._inbox):
                yield _told("subscribe to", subject, _meaning(subject, _SUBSCRIPTIONS) or _LEASES)


def _at_work(subject: str) -> str | None:
    """What it means if a subject of the work on updates is refused; None for other subjects."""
    if subject.startswith("$js.ack."):
        return _UNSETTLED
    return "nothing is delivered from there" if ".consumer.msg.next." in subject else None


def _meaning(subject: str, meanings: Mapping[str, str]) -> str | None:
    return next((meaning for beginning, meaning in meanings.items() if subject.startswith(beginning)), None)


def _told(what: str, subject: str, meaning: str) -> str:
    return f"this worker may not {what} {subject}, so {meaning}; {_REMEDY}"
