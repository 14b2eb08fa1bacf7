"""Compares what was published with what the Facilitator stored and what was dead-lettered."""

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from relay.contract.subjects import Reason
from relay.dead_letters.stored import StoredDeadLetter
from relay.local.ledger import Row


@dataclass(frozen=True, slots=True)
class Published:
    """An update whose publish was acknowledged. `dead_letter`: the reason with which it must be dead-lettered."""

    sequence: int
    job: str
    status: str | None
    dead_letter: Reason | None = None


def oracle(published: Collection[Published], rows: Iterable[Row], letters: Iterable[StoredDeadLetter]) -> list[str]:
    """A line for each difference, none if the promise was kept. Call it when everything is settled.

    The promise: everything published is at the Facilitator or a dead letter, as expected; nothing is both;
    nothing else is there; and each job's updates arrived in stream order.
    """
    meant = sorted((each.sequence, str(each.dead_letter)) for each in published if each.dead_letter)
    found = sorted((letter.source_sequence, letter.reason) for letter in letters)
    broken = [] if found == meant else [f"dead letters (source, reason) are {found}, not {meant}"]

    arrived: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        arrived[row.uuid].append(row.status)
    expected: dict[str, list[str]] = defaultdict(list)
    for each in sorted(published, key=lambda each: each.sequence):
        # The Facilitator keeps the first of each status, and makes `sent` itself.
        if not each.dead_letter and each.status != "sent" and each.status not in expected[each.job]:
            expected[each.job].append(str(each.status))
    broken += [
        f"of job {job} there arrived {arrived[job]}, not {expected[job]}"
        for job in arrived.keys() | expected.keys()
        if arrived[job] != expected[job]
    ]
    return broken
