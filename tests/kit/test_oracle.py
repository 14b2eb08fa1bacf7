"""The oracle, which other tests rely on, sees every way to break the promise."""

import pytest
from oracle import Published, oracle

from relay.contract.subjects import Reason
from relay.dead_letters.moments import moment_of_us
from relay.dead_letters.stored import StoredDeadLetter
from relay.local.ledger import Row

JOB = "00000000-0000-4000-8000-000000000001"
PUBLISHED = [
    Published(3, JOB, "completed"),
    Published(1, JOB, "accepted"),
    Published(2, JOB, "accepted"),
    Published(4, JOB, "failed", Reason.REFUSED),
    Published(5, JOB, "sent"),
]


def row(status: str, job: str = JOB) -> Row:
    return Row(job, status, 0.0, 1, None)


def letter(source: int, reason: Reason = Reason.REFUSED) -> StoredDeadLetter:
    headers = {"Relay-Reason": reason, "Relay-Source-Sequence": str(source)}
    return StoredDeadLetter(1, moment_of_us(0), headers, b"")


def test_a_promise_kept():
    """Repeated updates, `sent` updates of the Facilitator and dead letters fit the promise, in any order."""
    assert oracle(PUBLISHED, [row("accepted"), row("completed")], [letter(4)]) == []


@pytest.mark.parametrize(
    ("rows", "letters"),
    {
        "lost": ([row("accepted")], [letter(4)]),
        "reordered": ([row("completed"), row("accepted")], [letter(4)]),
        "in both places": ([row("accepted"), row("completed"), row("failed")], [letter(4)]),
        "in neither place": ([row("accepted"), row("completed")], []),
        "dead-lettered for no fault": ([row("accepted")], [letter(3), letter(4)]),
        "dead-lettered twice": ([row("accepted"), row("completed")], [letter(4), letter(4)]),
        "a wrong reason": ([row("accepted"), row("completed")], [letter(4, Reason.JOB_NOT_FOUND)]),
        "out of thin air": ([row("accepted"), row("completed"), row("accepted", JOB[::-1])], [letter(4)]),
    }.values(),
)
def test_a_promise_broken(rows, letters):
    """Every difference is reported."""
    assert len(oracle(PUBLISHED, rows, letters)) >= 1
