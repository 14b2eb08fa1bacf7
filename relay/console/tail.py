"""Updates as they are published and settled, heard once for all pages. Bounded: the oldest are forgotten."""

import contextlib
import datetime as dt
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec
import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from relay.console.rights import Rights
from relay.contract.subjects import (
    DLQ_SUBJECTS,
    REASON_HEADER,
    RECEIPT_SUBJECTS,
    SOURCE_SEQUENCE_HEADER,
    SOURCE_SUBJECT_HEADER,
    STATUS_SUBJECTS,
    is_job_uuid,
)
from relay.core.receipt import Receipt
from relay.dead_letters.stored import status_in
from relay.nats.frames import FrameClient

K = TypeVar("K")
V = TypeVar("V")
MOST_ROWS: Final = 20_000
MOST_RECEIPTS: Final = 50_000
MOST_LETTERS: Final = 1000
_NAME_CHARS: Final = 64
_LONGEST_MS: Final = 1e12
PUBLISHED: Final = "published"
DEAD_LETTERED: Final = "dead-lettered"


@dataclass(frozen=True, slots=True)
class Heard:
    """One message."""

    number: int
    """Counts up."""
    at: dt.datetime
    job: str
    status: str
    """Empty if the body cannot be read."""
    what: str
    """PUBLISHED, DEAD_LETTERED, or the outcome of a receipt."""
    detail: str
    """The reason of a dead letter, or how long it took."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which messages a page shows; empty for all."""

    job: str = ""
    status: str = ""
    dead_lettered_only: bool = False

    def takes(self, heard: Heard) -> bool:
        return (
            (not self.job or heard.job == self.job)
            and (not self.status or heard.status == self.status)
            and (not self.dead_lettered_only or heard.what == DEAD_LETTERED)
        )


class Tail:
    """Hears while somebody watches; receipts always, because they alone say how long an update took."""

    def __init__(self) -> None:
        self.number = 0
        """Of the last message."""
        self._rows: deque[Heard] = deque(maxlen=MOST_ROWS)
        self._relayed_ms: OrderedDict[tuple[str, int], float] = OrderedDict()
        """By job and sequence: a stream that is made anew counts from 1 again."""
        self._letters: OrderedDict[tuple[str, str], None] = OrderedDict()
        """Job and source of those heard last: a dead letter is published again until JOB_DLQ has stored it."""
        self._client: FrameClient | None = None
        self._rights = Rights()
        self._watchers = set[str]()
        self._updates: Subscription | None = None

    async def start(self, client: FrameClient, rights: Rights) -> None:
        """Begin to listen, as far as the NATS user may."""
        self._client, self._rights = client, rights
        if DLQ_SUBJECTS in rights.hear:
            await client.subscribe(DLQ_SUBJECTS, cb=self._dead_letter)
        if RECEIPT_SUBJECTS in rights.hear:
            await client.subscribe(RECEIPT_SUBJECTS, cb=self._receipt)
        await self._adjust()

    @property
    def may_hear(self) -> bool:
        return STATUS_SUBJECTS in self._rights.hear

    async def watch(self, page: str) -> None:
        """One more page watches, or the same one still. Afterwards everything is heard that is published then."""
        self._watchers.add(page)
        await self._adjust()

    async def leave(self, page: str) -> None:
        """A page watches no longer."""
        self._watchers.discard(page)
        await self._adjust()

    def since(self, number: int, wanted: Filter) -> Iterator[Heard]:
        """What was heard after the message `number`, oldest first, as far as it is remembered."""
        new = min(self.number - number, len(self._rows))
        for index in range(len(self._rows) - new, len(self._rows)):
            if wanted.takes(self._rows[index]):
                yield self._rows[index]

    def relayed_ms(self, job: str, sequence: int) -> float | None:
        """How long it took until an update was settled; None without its receipt."""
        return self._relayed_ms.get((job, sequence))

    async def _adjust(self) -> None:
        if self._client is None or not self.may_hear:
            return
        if self._watchers and self._updates is None:
            self._updates = await self._client.subscribe(STATUS_SUBJECTS, cb=self._update)
            with contextlib.suppress(nats.errors.Error):  # while NATS is away; the client subscribes again later
                await self._client.flush()
        elif not self._watchers and self._updates is not None:
            updates, self._updates = self._updates, None
            with contextlib.suppress(nats.errors.Error):
                await updates.unsubscribe()

    async def _update(self, message: Msg) -> None:
        self._add(_token(message.subject), status_in(message.data), PUBLISHED, "")

    async def _dead_letter(self, message: Msg) -> None:
        headers = message.headers or {}
        if REASON_HEADER not in headers:
            return  # `relay doctor` tries whether it may publish here
        job = _token(headers.get(SOURCE_SUBJECT_HEADER, message.subject))
        source = job[:_NAME_CHARS], headers.get(SOURCE_SEQUENCE_HEADER, "")[:_NAME_CHARS]
        if source in self._letters:
            return
        _remember(self._letters, source, None, MOST_LETTERS)
        self._add(job, status_in(message.data), DEAD_LETTERED, headers.get(REASON_HEADER, ""))

    async def _receipt(self, message: Msg) -> None:
        try:
            receipt = msgspec.json.decode(message.data, type=Receipt)
        except (ValueError, RecursionError):
            return  # of another version
        if not is_job_uuid(receipt.uuid) or not abs(receipt.relayed_ms) < _LONGEST_MS:
            return  # such a job has no page, and such a time no date
        _remember(self._relayed_ms, (receipt.uuid, receipt.sequence), receipt.relayed_ms, MOST_RECEIPTS)
        if self._watchers and receipt.reason is None:
            self._add(receipt.uuid, receipt.status or "", receipt.outcome, f"after {receipt.relayed_ms:.1f} ms")

    def _add(self, job: str, status: str, what: str, detail: str) -> None:
        """Each text is cut: what producers send may be large, and many rows are kept."""
        self.number += 1
        at, texts = dt.datetime.now(dt.UTC), (job[:_NAME_CHARS], status[:_NAME_CHARS], what, detail[:_NAME_CHARS])
        self._rows.append(Heard(self.number, at, *texts))


def _remember(known: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    known[key] = value
    if len(known) > most:
        known.popitem(last=False)


def _token(subject: str) -> str:
    return subject.rpartition(".")[2]
