"""Counting dead letters by reason."""

from relay.contract.subjects import DLQ_STREAM, DLQ_SUBJECTS, Reason
from relay.dead_letters import stream
from relay.dead_letters.reasons import ReasonCounter, ReasonCounts


async def test_reasons_are_counted_once(dlq):
    """Dead letters that were counted are not read again, unless some were removed since."""
    counter = ReasonCounter(dlq.client)
    assert ReasonCounts() == await counter.count()
    for reason in (Reason.REFUSED, Reason.TOO_LARGE, Reason.REFUSED):
        await dlq.write(reason=reason)
    assert ReasonCounts(3, 3, {"refused": 2, "too_large": 1}) == await counter.count()
    await dlq.write()
    assert ReasonCounts(4, 4, {"refused": 3, "too_large": 1}) == await counter.count()
    await stream.remove(dlq.client, 2)
    await dlq.write()
    assert ReasonCounts(4, 4, {"refused": 4}) == await counter.count()
    await stream.remove_all(dlq.client, DLQ_SUBJECTS, 5)
    assert ReasonCounts() == await counter.count()
    assert [] == await dlq.client.jetstream().consumers_info(DLQ_STREAM)


async def test_written_while_counting(dlq, monkeypatch):
    """A dead letter that is written while others are counted is counted once, by the next call."""
    counter = ReasonCounter(dlq.client)
    await dlq.write()
    state = counter._state

    async def state_and_one_more():
        found = await state()
        await dlq.write(reason=Reason.TOO_LARGE)
        return found

    monkeypatch.setattr(counter, "_state", state_and_one_more)
    assert ReasonCounts(1, 1, {"refused": 1}) == await counter.count()
    monkeypatch.setattr(counter, "_state", state)
    assert ReasonCounts(2, 2, {"refused": 1, "too_large": 1}) == await counter.count()
