"""Counting dead letters by reason."""

from relay.contract.subjects import DLQ_STREAM, REASON_HEADER, Reason, api_stream_purge, dlq_subject
from relay.dead_letters.reasons import ReasonCounter, ReasonCounts


async def test_reasons_are_counted_once(provisioned):
    """Dead letters that were counted are not read again, unless some were removed meanwhile."""
    count = ReasonCounter(provisioned)
    jetstream = provisioned.jetstream()

    async def write(reason: str) -> None:
        await jetstream.publish(dlq_subject("x"), b"body", headers={REASON_HEADER: reason})

    assert ReasonCounts() == await count.count()
    for reason in (Reason.REFUSED, Reason.TOO_LARGE, Reason.REFUSED):
        await write(reason)
    assert ReasonCounts(3, 3, {"refused": 2, "too_large": 1}) == await count.count()
    await write("refused")
    assert ReasonCounts(4, 4, {"refused": 3, "too_large": 1}) == await count.count()
    await jetstream.delete_msg(DLQ_STREAM, 2)
    await write("refused")
    assert ReasonCounts(4, 4, {"refused": 4}) == await count.count()
    await provisioned.request(api_stream_purge(DLQ_STREAM), b"")
    assert ReasonCounts() == await count.count()
    assert [] == await jetstream.consumers_info(DLQ_STREAM)


async def test_written_while_counting(provisioned, monkeypatch):
    """A dead letter that is written between two steps of a look is counted once, at the next look."""
    count = ReasonCounter(provisioned)
    jetstream = provisioned.jetstream()
    await jetstream.publish(dlq_subject("x"), b"", headers={REASON_HEADER: Reason.REFUSED})
    state = count._state

    async def state_and_one_more():
        found = await state()
        await jetstream.publish(dlq_subject("x"), b"", headers={REASON_HEADER: Reason.TOO_LARGE})
        return found

    monkeypatch.setattr(count, "_state", state_and_one_more)
    assert ReasonCounts(1, 1, {"refused": 1}) == await count.count()
    monkeypatch.setattr(count, "_state", state)
    assert ReasonCounts(2, 2, {"refused": 1, "too_large": 1}) == await count.count()
