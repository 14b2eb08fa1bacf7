"""The answer about an update is true, whatever happens between the reads from which it is made."""

import datetime as dt
import itertools
import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from relay_kit import new_job, update

from relay.contract.subjects import stored_subject
from relay.core.progress import Settled
from relay.dead_letters.stored import StoredDeadLetter
from relay.nats.messages import StoredMessage
from relay.query.answers import Answers, QueryError
from relay.query.archive import AckFloor
from relay.query.progress_sources import Known, OwnerProgress, ServerProgress

JOB = new_job(lane=0)
STORED_AT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
STORED_AT_S = STORED_AT.timestamp()
UPDATE = StoredMessage(stored_subject(0, JOB), 5, STORED_AT.isoformat(), update(JOB))
WRITTEN, SETTLED, REMOVED, PURGED = 1, 2, 3, 4
"""The life of a dead-lettered update: its dead letter is written, it is settled, it is removed from its stream, and
its dead letter is removed."""
MOST_READS = 11
STORED_AT_HEADER = "Relay-Source-Stored-At"


def dead_letter(sequence: int, source: int, age_s: float = 0, **headers: str) -> StoredDeadLetter:
    headers = {"Relay-Source-Sequence": str(source), "Relay-Source-Subject": f"job.status.{JOB}"} | headers
    return StoredDeadLetter(sequence, STORED_AT - dt.timedelta(seconds=age_s), headers, b"")


class World:
    """What Answers reads about UPDATE. `events`: for each stage of its life, the number of the read that first sees it.

    `settled` is what the owner knows of the update once it is settled; if UNKNOWN, the server is asked. `later` are
    dead letters after its own.
    """

    def __init__(self, events: Sequence[int], later: list[StoredDeadLetter], settled: Known) -> None:
        self.own = [dead_letter(1, UPDATE.sequence)]
        self.reads = 0
        self._events = events
        self._later = later
        self._settled = settled

    def _go_on(self) -> int:
        """The stage of the update at the next read."""
        self.reads += 1
        return sum(event <= self.reads for event in self._events)

    async def owner(self, _lane: int, _job: str) -> Any:
        is_known = self._go_on() >= SETTLED or self._settled is Known.UNKNOWN
        return SimpleNamespace(known=lambda _: self._settled if is_known else Known.PENDING)

    async def server(self, _lane: int) -> Any:
        known = Known.SETTLED if self._go_on() >= SETTLED else Known.UNCERTAIN
        return SimpleNamespace(known=lambda _: known)

    async def last_update(self, _job: str) -> StoredMessage | None:
        return UPDATE if self._go_on() < REMOVED else None

    async def dead_letters(self, *_: Any) -> list[StoredDeadLetter]:
        return [*(self.own if WRITTEN <= self._go_on() < PURGED else []), *self._later]

    async def last_dead_letter(self, _job: str) -> StoredDeadLetter | None:
        return ([None, *await self.dead_letters()])[-1]

    async def answer(self) -> tuple[str, str | None]:
        """The progress of UPDATE, and the reason of its dead letter."""
        answers: Any = Answers(self, self, 4, lambda: 2**20)
        try:
            reply = json.loads(await answers.latest(JOB, b""))
        except QueryError as error:
            return str(error.code), None
        return reply["progress"], reply["reason"]


@pytest.mark.parametrize("later", [[], [dead_letter(2, 3)]])
@pytest.mark.parametrize("settled", [Known.SETTLED, Known.DEAD_LETTERED, Known.UNKNOWN])
async def test_never_acknowledged(later, settled):
    """A dead-lettered update is never reported as acknowledged, whatever is written and removed between the reads."""
    for events in itertools.combinations_with_replacement(range(1, MOST_READS + 2), PURGED):
        world = World(events, later, settled)
        assert (await world.answer())[0] in ("pending", "dead_lettered", "404"), events
        assert world.reads <= MOST_READS


@pytest.mark.parametrize(("age_s", "expected"), [(59, ("dead_lettered", "unknown")), (61, ("acknowledged", None))])
async def test_dead_letter_of_a_deleted_stream(age_s, expected):
    """A dead letter over a minute older than the update with its sequence belongs to an update of an earlier stream."""
    world = World([1] * SETTLED, [], Known.SETTLED)
    world.own = [dead_letter(1, UPDATE.sequence, age_s)]
    assert expected == await world.answer()


@pytest.mark.parametrize("later", [[], [dead_letter(2, 6, 9, **{STORED_AT_HEADER: STORED_AT.isoformat()})]])
@pytest.mark.parametrize(
    ("stored_at", "expected"),
    [(STORED_AT, ("dead_lettered", "refused")), (STORED_AT + dt.timedelta(seconds=1), ("acknowledged", None))],
)
async def test_clock_set_back(later, stored_at, expected):
    """A dead letter that names the time of its update is recognised by it alone, however old it seems to be."""
    world = World([1] * SETTLED, later, Known.SETTLED)
    headers = {STORED_AT_HEADER: stored_at.isoformat(), "Relay-Reason": "refused"}
    world.own = [dead_letter(1, UPDATE.sequence, 3600, **headers)]
    assert expected == await world.answer()


@pytest.mark.parametrize("others", [[], [dead_letter(1, 3)]])
async def test_dead_letter_that_was_removed_alone(others):
    """What its owner has dead-lettered is never acknowledged, even if the dead letter is gone."""
    world = World([1] * SETTLED, [], Known.DEAD_LETTERED)
    world.own = others
    assert ("dead_lettered", None) == await world.answer()


@pytest.mark.parametrize("floor", [AckFloor(4, STORED_AT_S), AckFloor(5, STORED_AT_S - 1), None])
def test_ack_floor(floor):
    """Up to the ack floor all is settled, unless it is younger (new stream), or JetStream gave up on an update."""
    sure = AckFloor(5, STORED_AT_S)
    assert Known.SETTLED is ServerProgress(sure, given_up=False).known(UPDATE)
    assert Known.UNCERTAIN is ServerProgress(floor, given_up=False).known(UPDATE)
    assert Known.UNCERTAIN is ServerProgress(sure, given_up=True).known(UPDATE)


@pytest.mark.parametrize(
    ("settled", "given_up", "expected"),
    [
        (Settled.NO, False, Known.PENDING),
        (Settled.ACKNOWLEDGED, True, Known.ACKNOWLEDGED),
        (Settled.DEAD_LETTERED, True, Known.DEAD_LETTERED),
        (Settled.UNLESS_GIVEN_UP, False, Known.SETTLED),
        (Settled.UNLESS_GIVEN_UP, True, Known.UNCERTAIN),
        (Settled.UNKNOWN, False, Known.UNKNOWN),
    ],
)
def test_owner(settled, given_up, expected):
    """The owner is certain of what it settled itself; the server is asked only if the owner does not know."""
    progress: Any = SimpleNamespace(settled=lambda *_: settled)
    assert expected is OwnerProgress(progress, given_up).known(UPDATE)
