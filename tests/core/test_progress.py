"""The owner of a lane never reports an update as settled that is not, whatever was lost."""

import math

from delivery_kit import JOBS, FakeDelivery
from hypothesis import given
from hypothesis import strategies as st

from relay.core import progress
from relay.core.continuity import ConsumerState, Continuity
from relay.core.lane import Lane
from relay.core.progress import Settled, SettlementLog
from relay.core.update import DeadLetterHorizon
from relay.core.verdict import Outcome

PATIENCE_S = 10.0


def state(delivered: int, told_at_s: float = 100.0) -> ConsumerState:
    return ConsumerState(0, delivered, delivered, told_at_s=told_at_s)


def released_at(
    delivered: int, *, began_at: int | None = None, missing: int = 0, own: tuple[int, ...] = ()
) -> SettlementLog:
    """The log after a release at time 100: `delivered` updates were delivered, `began_at` of them to earlier owners."""
    log = SettlementLog()
    log.began(state(delivered if began_at is None else began_at))
    log.released(state(delivered), missing, {"a": own})
    return log


def settled(
    log: SettlementLog, sequence: int, *at_hand: int, stored_at_s: float = 0.0, flowing: bool = True
) -> Settled:
    return log.progress("a", at_hand, flowing=flowing).settled(sequence, stored_at_s)


def test_nothing_is_known_at_first():
    """Before a lane's first release only updates at hand are known: they are not settled."""
    log = SettlementLog()
    log.began(state(6))
    log.delivered([FakeDelivery(7, stored_at_s=0.0)], held=True)
    assert Settled.UNKNOWN is settled(log, 6, 7, flowing=False)
    assert Settled.UNKNOWN is settled(log, 8, 7, flowing=False)
    assert Settled.NO is settled(log, 7, 7, flowing=False)


def test_own_updates():
    """An update delivered to the owner is settled once it is not at hand; one that was not delivered is not."""
    log = released_at(10)
    for sequence in (11, 12):
        log.delivered([FakeDelivery(sequence, stored_at_s=0.0)], held=False)
    assert Settled.ACKNOWLEDGED is settled(log, 11, 12)
    assert Settled.NO is settled(log, 12, 12)
    assert Settled.NO is settled(log, 13, 12)


def test_own_dead_letters():
    """Updates that the owner dead-lettered are distinguished from those that it acknowledged, for each job."""
    log = released_at(10)
    for sequence in (11, 12, 13):
        log.delivered([FakeDelivery(sequence, stored_at_s=0.0)], held=False)
    log.dead_lettered("a", 12)
    log.dead_lettered("b", 13)
    said = [settled(log, sequence) for sequence in (11, 12)]
    assert [Settled.ACKNOWLEDGED, Settled.DEAD_LETTERED] == said


def test_too_many_dead_letters(monkeypatch):
    """If there are more dead letters than the owner can remember, it knows nothing about the updates before."""
    monkeypatch.setattr(progress, "_MOST_DEAD_LETTERS", 2)
    log = released_at(10)
    for sequence in (11, 12, 13, 14):
        log.delivered([FakeDelivery(sequence, stored_at_s=0.0)], held=False)
        log.dead_lettered("a", sequence)
    log.delivered([FakeDelivery(15, stored_at_s=0.0)], held=False)
    said = [settled(log, sequence) for sequence in (10, 11, 12, 14, 15)]
    unknown = Settled.UNKNOWN
    assert [Settled.UNLESS_GIVEN_UP, unknown, unknown, Settled.DEAD_LETTERED, Settled.ACKNOWLEDGED] == said


def test_inherited_updates():
    """Updates delivered to earlier owners are settled or given up, if everything pending has been at hand."""
    assert Settled.UNLESS_GIVEN_UP is settled(released_at(10), 10)
    assert Settled.NO is settled(released_at(10), 10, 10)
    assert Settled.UNKNOWN is settled(released_at(10, missing=1), 10)


def test_delivered_while_held():
    """Of the updates that were delivered while the lane was held, only those that were at hand are known."""
    log = released_at(13, began_at=10, own=(12, 13))
    said = [settled(log, sequence, 13) for sequence in (10, 11, 12, 13)]
    assert [Settled.UNLESS_GIVEN_UP, Settled.UNKNOWN, Settled.ACKNOWLEDGED, Settled.NO] == said


def test_gap():
    """While a lane is held for a gap, earlier knowledge stays valid; later updates are known after the release."""
    log = released_at(10)
    log.delivered([FakeDelivery(11, stored_at_s=0.0)], held=False)
    log.delivered([FakeDelivery(14, stored_at_s=0.0)], held=True)
    assert Settled.ACKNOWLEDGED is settled(log, 11, 14, flowing=False)
    assert Settled.UNKNOWN is settled(log, 12, 14, flowing=False)
    log.released(state(14), 0, {})
    log.delivered([FakeDelivery(15, stored_at_s=0.0)], held=False)
    said = [settled(log, sequence, 14) for sequence in (10, 12, 14, 15)]
    assert [Settled.UNLESS_GIVEN_UP, Settled.UNKNOWN, Settled.NO, Settled.ACKNOWLEDGED] == said


def test_stream_made_anew():
    """An update that is younger than all known ones belongs to another stream, whatever its sequence is."""
    log = released_at(10)
    assert Settled.UNKNOWN is settled(log, 5, stored_at_s=100.5)
    log.delivered([FakeDelivery(11, stored_at_s=101.0)], held=False)
    assert Settled.UNLESS_GIVEN_UP is settled(log, 5, stored_at_s=100.5)


class World:
    """A lane's owner and the server; deliveries and acknowledgements are lost, and owners follow each other."""

    def __init__(self) -> None:
        self.now = 0.0
        self.stored = 0
        self.delivered = 0
        self.count = 0
        self.pending: set[int] = set()
        self.settled: set[int] = set()
        self.take_over()

    def publish(self) -> None:
        self.stored += 1

    def deliver(self, *, lost: bool) -> None:
        if self.delivered < self.stored:
            self.delivered += 1
            self.pending.add(self.delivered)
            self._send(self.delivered, lost=lost)

    def redeliver(self, which: int, *, lost: bool) -> None:
        if self.pending:
            self._send(sorted(self.pending)[which % len(self.pending)], lost=lost)

    def settle(self, *, lost: bool) -> None:
        update = self.lane.take(self.now)
        if update is not None:
            self.lane.settle(update, Outcome.ACKNOWLEDGED)
            self._acknowledge(update.sequence, lost=lost)

    def take_over(self) -> None:
        self.inherited = set(self.pending)
        self.lane = Lane(0, Continuity(PATIENCE_S), DeadLetterHorizon(-math.inf, -math.inf))
        self.lane.began(self._state, self.now)

    def acknowledge_late(self, which: int) -> None:
        """The previous owner had sent an update, and its answer comes only now."""
        if self.inherited:
            self._acknowledge(sorted(self.inherited)[which % len(self.inherited)], lost=False)

    def look(self, *, patient: bool) -> None:
        if self.lane.held:
            self.now += 0.0 if patient else 2 * PATIENCE_S
            self.lane.resolve(self._state, self.now)

    @property
    def claimed(self) -> set[int]:
        """The sequences that the owner reports as settled."""
        sure = (Settled.ACKNOWLEDGED, Settled.UNLESS_GIVEN_UP)
        return {each for each in range(1, self.stored + 1) if self.said_of(each) in sure}

    def said_of(self, sequence: int) -> Settled:
        return self.lane.progress(JOBS[_job(sequence)]).settled(sequence, float(sequence))

    @property
    def _state(self) -> ConsumerState:
        return ConsumerState(len(self.pending), self.delivered, self.count, told_at_s=self.stored + 0.5)

    def _send(self, sequence: int, *, lost: bool) -> None:
        self.count += 1
        if lost:
            return
        delivery = FakeDelivery(sequence, _job(sequence), consumer_sequence=self.count, stored_at_s=float(sequence))
        for _ in self.lane.admit([delivery], self.now).settled_before:
            self._acknowledge(sequence, lost=False)

    def _acknowledge(self, sequence: int, *, lost: bool) -> None:
        self.settled.add(sequence)
        if not lost:
            self.pending.discard(sequence)


def _job(sequence: int) -> str:
    return "abc"[sequence % 3]


EVENTS = st.one_of(
    st.just(("publish", {})),
    st.builds(lambda lost: ("deliver", {"lost": lost}), st.booleans()),
    st.builds(lambda which, lost: ("redeliver", {"which": which, "lost": lost}), st.integers(0, 9), st.booleans()),
    st.builds(lambda lost: ("settle", {"lost": lost}), st.booleans()),
    st.just(("take_over", {})),
    st.builds(lambda which: ("acknowledge_late", {"which": which}), st.integers(0, 9)),
    st.builds(lambda patient: ("look", {"patient": patient}), st.booleans()),
)


@given(st.lists(EVENTS, max_size=60))
def test_never_too_much(events):
    """Whatever is lost, taken over or comes back late: every update that is reported as settled is settled."""
    world = World()
    for name, arguments in events:
        getattr(world, name)(**arguments)
        assert set() == world.claimed - world.settled
