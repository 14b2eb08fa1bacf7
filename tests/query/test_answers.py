"""The answer about one update, whatever happens between the reads that it is made of."""

import asyncio
import datetime as dt
import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
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
"""What happens to an update that is dead-lettered: its dead letter is written, it is settled, it is removed from its
stream, and its dead letter is removed as well."""


def dead_letter(sequence: int, source: int, age_s: float = 0) -> StoredDeadLetter:
    headers = {"Relay-Source-Sequence": str(source)}
    return StoredDeadLetter(sequence, STORED_AT - dt.timedelta(seconds=age_s), headers, b"")


class World:
    """What Answers reads about UPDATE. Before each read it goes on by as many stages as `steps` says.

    `owner_knows` whether the update is settled; otherwise the server is asked. `later` are dead letters behind its own.
    """

    def __init__(self, steps: list[int], later: list[StoredDeadLetter], *, owner_knows: bool) -> None:
        self.own = [dead_letter(1, UPDATE.sequence)]
        self._stage = 0
        self._steps = iter(steps)
        self._later = later
        self._owner_knows = owner_knows

    def _go_on(self) -> int:
        self._stage = min(PURGED, self._stage + next(self._steps, 0))
        return self._stage

    async def owner(self, _lane: int, _job: str) -> Any:
        known = Known.SETTLED if self._go_on() >= SETTLED else Known.PENDING
        return SimpleNamespace(known=lambda _: known if self._owner_knows else Known.UNKNOWN)

    async def server(self, _lane: int) -> Any:
        known = Known.SETTLED if self._go_on() >= SETTLED else Known.UNCERTAIN
        return SimpleNamespace(known=lambda _: known)

    async def last_update(self, _job: str) -> StoredMessage | None:
        return UPDATE if self._go_on() < REMOVED else None

    async def dead_letters(self, *_: Any) -> list[StoredDeadLetter]:
        return [*(self.own if WRITTEN <= self._go_on() < PURGED else []), *self._later]

    async def last_dead_letter(self, _job: str) -> StoredDeadLetter | None:
        return ([None, *await self.dead_letters()])[-1]

    def progress(self) -> str:
        answers: Any = Answers(self, self, 4, lambda: 2**20)
        try:
            return json.loads(asyncio.run(answers.latest(JOB, b"")))["progress"]
        except QueryError as error:
            return str(error.code)


@given(st.lists(st.integers(0, 4), max_size=12), st.booleans(), st.booleans())
def test_never_acknowledged(steps, with_later, owner_knows):
    """An update that is dead-lettered is never called acknowledged, whatever is written and removed meanwhile."""
    world = World(steps, [dead_letter(2, 3)] if with_later else [], owner_knows=owner_knows)
    assert world.progress() in ("pending", "dead_lettered", "404")


@pytest.mark.parametrize(("age_s", "expected"), [(59, "dead_lettered"), (61, "acknowledged")])
def test_dead_letter_of_a_deleted_stream(age_s, expected):
    """A dead letter over a minute older than the update with its sequence is about an update of an earlier stream."""
    world = World([SETTLED], [], owner_knows=True)
    world.own = [dead_letter(1, UPDATE.sequence, age_s)]
    assert expected == world.progress()


@pytest.mark.parametrize("floor", [AckFloor(4, STORED_AT_S), AckFloor(5, STORED_AT_S - 1), None])
def test_ack_floor(floor):
    """Up to the ack floor all is settled that is not younger, as in a new stream, if JetStream gave up on nothing."""
    sure = AckFloor(5, STORED_AT_S)
    assert Known.SETTLED is ServerProgress(sure, given_up=False).known(UPDATE)
    assert Known.UNCERTAIN is ServerProgress(floor, given_up=False).known(UPDATE)
    assert Known.UNCERTAIN is ServerProgress(sure, given_up=True).known(UPDATE)


@pytest.mark.parametrize(
    ("settled", "given_up", "expected"),
    [
        (Settled.NO, False, Known.PENDING),
        (Settled.ACKNOWLEDGED, True, Known.ACKNOWLEDGED),
        (Settled.DEAD_LETTERED, True, Known.SETTLED),
        (Settled.UNLESS_GIVEN_UP, False, Known.SETTLED),
        (Settled.UNLESS_GIVEN_UP, True, Known.UNCERTAIN),
        (Settled.UNKNOWN, False, Known.UNKNOWN),
    ],
)
def test_owner(settled, given_up, expected):
    """The owner is certain of what it settled itself, and the server is asked only where the owner does not know."""
    progress: Any = SimpleNamespace(settled=lambda *_: settled)
    assert expected is OwnerProgress(progress, given_up).known(UPDATE)
