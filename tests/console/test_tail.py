"""What the tail remembers of what it hears."""

import json

import pytest
from polling import until

from relay.console.rights import Rights
from relay.console.tail import Filter, Tail
from relay.contract.subjects import (
    DLQ_SUBJECTS,
    REASON_HEADER,
    RECEIPT_SUBJECTS,
    SOURCE_SEQUENCE_HEADER,
    SOURCE_SUBJECT_HEADER,
    STATUS_SUBJECTS,
    dlq_subject,
    receipt_subject,
    status_subject,
)

JOB = "00000000-0000-4000-8000-00000000000a"
OTHER = "00000000-0000-4000-8000-00000000000b"


@pytest.fixture
async def tail(nc) -> Tail:
    """A tail that hears everything."""
    tail = Tail()
    await tail.start(nc, Rights(hear=frozenset({STATUS_SUBJECTS, DLQ_SUBJECTS, RECEIPT_SUBJECTS})))
    await tail.watch("a page")
    return tail


def letter(sequence: int, reason: str = "refused") -> dict[str, str]:
    return {
        REASON_HEADER: reason,
        SOURCE_SUBJECT_HEADER: status_subject(JOB),
        SOURCE_SEQUENCE_HEADER: str(sequence),
    }


async def test_rows_are_small(nc, tail):
    """However long the texts are that a producer sends, what is kept of them is short."""
    await nc.publish(status_subject("j" * 1000), json.dumps({"status": "s" * 100_000}).encode())
    await nc.publish(dlq_subject(JOB), b"{}", headers=letter(1, "r" * 1000))
    await until(lambda: tail.number == 2)
    for row in tail.since(0, Filter()):
        assert max(map(len, (row.job, row.status, row.detail))) <= 64


async def test_a_dead_letter_is_told_once(nc, tail):
    """What is published again until it is stored is one dead letter; what has no reason is none."""
    await nc.publish(dlq_subject("relay-doctor"), b"{", headers={"Nats-Expected-Stream": "relay-doctor"})
    for sequence in (1, 1, 2, 1):
        await nc.publish(dlq_subject(JOB), b"{}", headers=letter(sequence))
    await nc.publish(dlq_subject(JOB), b"{}", headers=letter(3, "max_deliver"))
    await until(lambda: [row for row in tail.since(0, Filter()) if row.detail == "max_deliver"])
    assert ["refused", "refused", "max_deliver"] == [row.detail for row in tail.since(0, Filter())]


async def test_receipts_belong_to_jobs(nc, tail):
    """The receipt of another job's update with the same sequence says nothing, nor does one of no relay."""
    for job, sequence, relayed_ms in ((JOB, 1, 3.25), (JOB, 2, 1e308), ("x" * 1000, 3, 1.0), (OTHER, 4, 2.0)):
        receipt = {"uuid": job, "status": "completed", "sequence": sequence, "outcome": "acknowledged"}
        receipt |= {"reason": None, "attempts": 0, "relayed_ms": relayed_ms}
        await nc.publish(receipt_subject(JOB), json.dumps(receipt).encode())
    await until(lambda: tail.relayed_ms(OTHER, 4))
    assert (3.25, None, None) == (tail.relayed_ms(JOB, 1), tail.relayed_ms(OTHER, 1), tail.relayed_ms(JOB, 2))
    assert 2 == tail.number
