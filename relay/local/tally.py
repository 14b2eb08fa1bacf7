"""The demo's counts: what was published, compared with what the Facilitator stored and what became a dead letter."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from relay.core.repeats import may_be_stored
from relay.local.ledger import Row
from relay.local.traffic import Published


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds from publishing an update to its arrival at the Facilitator; None if nothing arrived."""

    p50: float | None
    p99: float | None
    p99_9: float | None


@dataclass(frozen=True, slots=True)
class Result:
    """How the published updates ended; published = acknowledged + duplicates + dead letters + lost.

    acknowledged: stored by the Facilitator. duplicates: the Facilitator had the same job and status already.
    reordered: rows that arrived after a row of their job that was published later. lost: neither a row nor a dead
    letter. both: a row and a dead letter whose reason says that there is no row.
    """

    published: int
    acknowledged: int
    duplicates: int
    dead_lettered: Mapping[str, int]
    reordered: int
    lost: int
    both: int
    latency_ms: Latency

    @property
    def kept_the_promise(self) -> bool:
        return self.lost == 0 and self.both == 0 and self.reordered == 0


class Tally:
    """Records what happens, in any order, and adds it up. Its memory grows with the number of updates."""

    def __init__(self) -> None:
        self.jobs_by_status: Counter[str] = Counter()
        """How many jobs the Facilitator shows in each status now."""
        self.dead_letters: Counter[str] = Counter()
        """By reason, counted when the relay terminates the update; `result` counts what is in the stream instead."""
        self.repeated = 0
        """Publishes that JetStream recognised by their `Nats-Msg-Id` and did not store again."""
        self._published: dict[int, Published] = {}
        self._settled: set[int] = set()
        self._unsettled = 0
        self._rows: list[Row] = []
        self._shown: dict[str, str] = {}
        self._sent_s: dict[tuple[str, str], float] = {}
        self._arrived_s: dict[tuple[str, str], float] = {}
        self._latencies_s: list[float] = []

    @property
    def published(self) -> int:
        return len(self._published)

    @property
    def relayed(self) -> int:
        return len(self._rows)

    @property
    def in_flight(self) -> int:
        """Published and not settled."""
        return self._unsettled

    def note_published(self, published: Published) -> None:
        if published.sequence in self._published:
            self.repeated += 1
            return
        self._published[published.sequence] = published
        self._unsettled += published.sequence not in self._settled
        key = _key(published)
        if key not in self._sent_s:
            self._sent_s[key] = published.sent_s
            self._note_latency(key)

    def note_row(self, row: Row) -> None:
        """The Facilitator stored a row. This may be known before the PubAck arrives."""
        self._rows.append(row)
        self.jobs_by_status[row.status] += 1
        if row.uuid in self._shown:
            self.jobs_by_status[self._shown[row.uuid]] -= 1
        self._shown[row.uuid] = row.status
        key = (row.uuid, row.status)
        self._arrived_s[key] = row.arrived_s
        self._note_latency(key)

    def note_settled(self, sequence: int, reason: str | None) -> None:
        """The relay settled an update; `reason` is given if it became a dead letter."""
        if sequence in self._settled:
            return
        self._settled.add(sequence)
        self._unsettled -= sequence in self._published
        if reason is not None:
            self.dead_letters[reason] += 1

    def latency(self) -> Latency:
        ordered = sorted(self._latencies_s)
        return Latency(_quantile_ms(ordered, 0.5), _quantile_ms(ordered, 0.99), _quantile_ms(ordered, 0.999))

    def result(self, letters: Mapping[int, str]) -> Result:
        """Add up. `letters` are the dead letters in the stream: the reason by source sequence."""
        arrivals = [(row.uuid, row.status) for row in self._rows]
        stored = set(arrivals)
        expected = {sequence: _key(self._published[sequence]) for sequence in sorted(self._published.keys() - letters)}
        firsts: dict[tuple[str, str], int] = {}
        for sequence, key in expected.items():
            firsts.setdefault(key, sequence)
        acknowledged = len(stored & firsts.keys())
        lost = sum(key not in stored for key in expected.values())
        return Result(
            published=len(self._published),
            acknowledged=acknowledged,
            duplicates=len(expected) - acknowledged - lost,
            dead_lettered=dict(sorted(Counter(letters.values()).items())),
            reordered=_count_reordered(arrivals, firsts),
            lost=lost,
            both=self._count_both(letters, stored - firsts.keys()),
            latency_ms=self.latency(),
        )

    def _count_both(self, letters: Mapping[int, str], unexpected: Collection[tuple[str, str]]) -> int:
        """How many of the dead letters are among the rows that no other update explains."""
        return sum(
            _key(self._published[sequence]) in unexpected
            for sequence, reason in letters.items()
            if sequence in self._published and not may_be_stored(reason)
        )

    def _note_latency(self, key: tuple[str, str]) -> None:
        if key in self._sent_s and key in self._arrived_s:
            self._latencies_s.append(self._arrived_s[key] - self._sent_s[key])


def _key(published: Published) -> tuple[str, str]:
    return published.message.uuid, published.message.status


def _count_reordered(arrivals: Sequence[tuple[str, str]], firsts: Mapping[tuple[str, str], int]) -> int:
    reordered = 0
    newest: dict[str, int] = {}
    for key in arrivals:
        sequence = firsts.get(key)
        if sequence is None:
            continue  # it is a dead letter that was stored, or not one of ours: its order cannot be checked
        newest_before = newest.get(key[0], 0)
        reordered += sequence < newest_before
        newest[key[0]] = max(sequence, newest_before)
    return reordered


def _quantile_ms(ordered: Sequence[float], share: float) -> float | None:
    if not ordered:
        return None
    return round(ordered[math.ceil(share * len(ordered)) - 1] * 1000, 3)
