from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from relay.producer.outbox import Outbox, PendingUpdate


def pending(job: str, number: int = 0, size: int = 0) -> PendingUpdate:
    future: Any = None
    return PendingUpdate(str(number), job, "", b"x" * size, {}, timeout_s=0, deadline_s=0, pub_ack=future)


def test_bounds():
    """There is room for exactly the given numbers of updates and bytes."""
    outbox = Outbox(2, 10)
    assert (True, False) == (outbox.has_room(10), outbox.has_room(11))
    outbox.add(pending("a", size=4))
    assert (True, False) == (outbox.has_room(6), outbox.has_room(7))
    outbox.add(pending("b"))
    assert not outbox.has_room(0)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["add", "published", "failed"]))))
def test_outbox(steps):
    """Each job's updates are published in order, one at a time; a failure removes exactly those after it."""
    outbox = Outbox(10**6, 10**6)
    held: dict[str, list[PendingUpdate]] = {job: [] for job in "abc"}
    for number, (job, step) in enumerate(steps):
        queue = held[job]
        if step == "add":
            queue.append(pending(job, number, size=number))
            assert outbox.add(queue[-1]) == (len(queue) == 1)
        elif queue and step == "published":
            del queue[0]
            assert outbox.published(job) is (queue[0] if queue else None)
        elif queue:
            assert queue[1:] == outbox.failed(job)
            queue.clear()
    inside = list(outbox)
    assert held == {job: [update for update in inside if update.job == job] for job in "abc"}
    assert (len(inside), sum(update.size for update in inside)) == (len(outbox), outbox.bytes)
