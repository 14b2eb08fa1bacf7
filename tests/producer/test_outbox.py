from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from relay.producer.outbox import Outbox, PendingUpdate


def pending(job: str, number: int = 0, size: int = 0) -> PendingUpdate:
    nothing: Any = None
    return PendingUpdate(nothing, str(number), job, "", b"", {}, timeout_s=0, deadline_s=0, pub_ack=nothing, size=size)


def test_bounds():
    """There is room for exactly the given numbers of updates and bytes."""
    outbox = Outbox(2, 10)
    assert (True, False) == (outbox.has_room(10), outbox.has_room(11))
    outbox.add(pending("a", size=4))
    assert (True, False) == (outbox.has_room(6), outbox.has_room(7))
    outbox.add(pending("b"))
    assert not outbox.has_room(0)


def test_line():
    """Updates without room wait in the order of the calls: nothing overtakes the first of them, however small."""
    outbox = Outbox(2, 10)
    large, small, first = pending("b", size=10), pending("c", size=1), pending("a", size=5)
    outbox.add(first)
    for each in (large, small):
        outbox.wait_in_line(each)
    assert (False, None) == (outbox.has_room(1), outbox.next_in_line())
    outbox.published("a")
    assert large is outbox.next_in_line()
    outbox.add(large)
    assert [large, small] == list(outbox)
    assert (True, False) == (outbox.leave_line(small), outbox.leave_line(small))


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["add", "published", "failed"]))))
def test_outbox(steps):
    """Each job's updates are published in order, one at a time; a failure removes exactly those after it.

    This holds for updates that have to wait in line as well.
    """
    outbox = Outbox(3, 10**6)
    held: dict[str, list[PendingUpdate]] = {job: [] for job in "abc"}
    inside: dict[str, list[PendingUpdate]] = {job: [] for job in "abc"}
    for number, (job, step) in enumerate(steps):
        queue = held[job]
        if step == "add":
            queue.append(pending(job, number, size=number))
            if outbox.has_room(number):
                assert outbox.add(queue[-1]) == (len(inside[job]) == 0)
                inside[job].append(queue[-1])
            else:
                outbox.wait_in_line(queue[-1])
        elif inside[job] and step == "published":
            del queue[0], inside[job][0]
            assert outbox.published(job) is (inside[job][0] if inside[job] else None)
        elif inside[job]:
            assert queue[1:] == outbox.failed(job)
            queue.clear()
            inside[job].clear()
        while (next_one := outbox.next_in_line()) is not None:
            outbox.add(next_one)
            inside[next_one.job].append(next_one)
    everything = list(outbox)
    assert held == {job: [update for update in everything if update.job == job] for job in "abc"}
    there = [update for queue in inside.values() for update in queue]
    assert (len(there), sum(update.size for update in there)) == (len(outbox), outbox.bytes)
