from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from relay.producer.outbox import Outbox


@dataclass(frozen=True)
class Parcel:
    job: str
    number: int
    size: int = 1


def outbox(*parcels: Parcel) -> Outbox[Parcel]:
    box: Outbox[Parcel] = Outbox(10, 100)
    for parcel in parcels:
        box.add(parcel)
    return box


def test_only_the_head_of_a_job_is_under_way():
    """A job's first parcel is to be published at once, a later one when those before it are done."""
    box = outbox()
    assert [True, False, True] == [box.add(Parcel("a", 1)), box.add(Parcel("a", 2)), box.add(Parcel("b", 3))]
    assert Parcel("a", 2) == box.done("a")
    assert None is box.done("a")
    assert box.add(Parcel("a", 4))


def test_a_failure_takes_those_behind_it_along():
    """What waits behind a parcel that failed leaves with it, in order; other jobs stay."""
    box = outbox(Parcel("a", 1), Parcel("b", 2), Parcel("a", 3), Parcel("a", 4))
    assert [Parcel("a", 3), Parcel("a", 4)] == box.failed("a")
    assert [Parcel("b", 2)] == list(box.parcels())
    assert box.add(Parcel("a", 5))


def test_bounds():
    """There is room for as many parcels and bytes as was said, and not for one more."""
    box: Outbox[Parcel] = Outbox(2, 10)
    assert (True, False) == (box.has_room(10), box.has_room(11))
    box.add(Parcel("a", 1, size=4))
    assert (True, False) == (box.has_room(6), box.has_room(7))
    box.add(Parcel("b", 2, size=0))
    assert not box.has_room(0)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["add", "done", "failed"]))))
def test_accounts(steps):
    """Whatever happens, the count and the bytes are those of the parcels inside, and each job's are in order."""
    box: Outbox[Parcel] = Outbox(10**6, 10**6)
    for number, (job, step) in enumerate(steps):
        held = [parcel.number for parcel in box.parcels() if parcel.job == job]
        if step == "add":
            box.add(Parcel(job, number, size=number))
        elif held:
            following = box.done(job) if step == "done" else box.failed(job)
            numbers = following and ([following.number] if step == "done" else [each.number for each in following])
            assert (held[1:2] if step == "done" else held[1:]) == (numbers or [])
    inside = list(box.parcels())
    assert (len(inside), sum(parcel.size for parcel in inside)) == (len(box), box.bytes)
    for line in ([parcel.number for parcel in inside if parcel.job == job] for job in "abc"):
        assert sorted(line) == line
