"""Counting dead letters by reason."""

from relay.contract.subjects import DLQ_STREAM, DLQ_SUBJECTS, Reason
from relay.dead_letters import reasons, stream
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


async def test_counted_anew_in_another_stream(dlq):
    """If the stream was made anew, what was counted in the one before counts no more."""
    counter = ReasonCounter(dlq.client)
    for _ in range(3):
        await dlq.write()
    assert ReasonCounts(3, 3, {"refused": 3}) == await counter.count()
    await dlq.recreate_stream(DLQ_STREAM)
    assert ReasonCounts() == await counter.count()
    await dlq.write(reason=Reason.TOO_LARGE)
    assert ReasonCounts(1, 1, {"too_large": 1}) == await counter.count()


async def test_newest_were_removed(dlq, monkeypatch):
    """What is old is counted as well if there are few; if there are many, and none of the newest, the counts say so."""
    monkeypatch.setattr(reasons, "NEWEST", 2)
    for _ in range(5):
        await dlq.write()
    for sequence in (4, 5):
        await stream.remove(dlq.client, sequence)
    found = await ReasonCounter(dlq.client).count()
    assert (3, 0, True) == (found.total, found.counted, "were removed" in found.uncounted)
    await stream.remove(dlq.client, 3)
    assert ReasonCounts(2, 2, {"refused": 2}) == await ReasonCounter(dlq.client).count()


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
