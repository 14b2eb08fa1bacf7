"""The memory for updates, and how the lanes of a worker share it."""

import math

import pytest
from delivery_kit import FakeDelivery

from relay.core.continuity import Continuity, patience_s
from relay.core.lane import Lane
from relay.core.memory import LARGEST_BYTES, MAX_ON_REQUEST_BYTES, Memory, Share
from relay.core.pull import PullWindow, Request, expiry_s
from relay.core.session import AT_ONCE_BYTES, Session
from relay.core.turns import Turns
from relay.core.update import DeadLetterHorizon
from relay.core.verdict import Outcome

MIB = 1 << 20
SUCCESS = '{"status":"success","errors":[]}'
MAX_PENDING_BYTES = 64 * MIB
"""nats-server disconnects a client with more than this in its buffer, by default."""


def lanes(count: int, memory_bytes: int = 256 * MIB, ack_wait_s: float = 5.0) -> tuple[Memory, list[Share]]:
    memory = Memory(memory_bytes, ack_wait_s)
    memory.arriving_bytes_per_s = 1e9
    return memory, [memory.join() for _ in range(count)]


@pytest.mark.parametrize("count", [1, 4, 256])
def test_lanes_share_equally(count):
    """What all lanes may have at hand and on request is bounded, however many there are."""
    memory, shares = lanes(count)
    assert len({share.free_bytes for share in shares}) == 1
    assert count * memory.share_bytes <= 128 * MIB
    assert count * shares[0].request_bytes <= MAX_ON_REQUEST_BYTES


def test_a_lane_that_takes_nothing_more_is_full():
    """A lane is full if its share is used up, or if it waits until it may ask for a large update; not before."""
    memory, (first, second, third) = lanes(3)
    assert not first.is_full
    first.at_hand_bytes = memory.share_bytes - 1
    assert (True, False) == (first.is_full, second.is_full)
    first.at_hand_bytes = 0
    for share in (first, second):
        share.go_alone()
    assert not third.may_go_alone()
    assert (False, False, True) == (first.is_full, second.is_full, third.is_full)


def test_a_share_changes_as_lanes_come_and_go():
    """A lane that leaves makes room for the others, and one that comes gets as much as they."""
    memory, (first, second) = lanes(2)
    with_two = first.free_bytes
    memory.leave(second)
    with_one = first.free_bytes
    memory.join()
    assert (2 * with_two, with_two) == (with_one, first.free_bytes)


def test_what_is_at_hand_leaves_less_to_ask_for():
    """A lane whose share is used asks for nothing, and asks again when something is settled."""
    memory, (share,) = lanes(1)
    window = PullWindow(256, 5.0, share)
    share.at_hand_bytes = memory.share_bytes
    before = window.wanted(512)
    share.at_hand_bytes -= 10 * MIB
    assert (None, Request(256, 10 * MIB)) == (before, window.wanted(512))


def test_a_held_lane_takes_in_all_that_was_delivered_before():
    """A lane that is held goes on asking although its share is used, in portions, because it waits for the rest."""
    memory, (share,) = lanes(1)
    share.at_hand_bytes = 3 * memory.share_bytes
    share.held = True
    assert Request(256, share.request_bytes) == PullWindow(256, 5.0, share).wanted(512)


@pytest.mark.parametrize("bytes_per_s", [None, 100_000, 1_000_000, 1e9])
@pytest.mark.parametrize("ack_wait_s", [0.5, 5.0, 60.0])
def test_what_is_on_request_arrives_before_ack_wait(bytes_per_s, ack_wait_s):
    """No more is asked for than arrives in a quarter of `ack_wait` at the speed that was seen last."""
    memory, shares = lanes(4, ack_wait_s=ack_wait_s)
    memory.arriving_bytes_per_s = bytes_per_s
    asked = sum(share.request_bytes for share in shares)
    assert asked <= max(4 * 16 * 1024, (bytes_per_s or 4_000_000) * ack_wait_s / 4)


def test_the_server_never_has_more_to_send_than_it_buffers():
    """All that can be on request together is less than the server's limit."""
    memory, shares = lanes(4)
    for share in shares:
        if memory.may_go_alone(share):
            share.go_alone()
        else:
            share.asked_bytes += share.request_bytes
    assert memory.on_request_bytes + LARGEST_BYTES < MAX_PENDING_BYTES


def refused(window: PullWindow, request: Request) -> None:
    """The server ends the request, because the next update does not fit."""
    window.requested(request)
    window.status(409, "Message Size Exceeds MaxBytes", request.count, request.max_bytes or 0)


def test_an_update_that_is_too_large_goes_alone():
    """What does not fit into a whole request is asked for by itself, without a limit; the next has one again."""
    _, (share,) = lanes(1)
    window = PullWindow(256, 5.0, share)
    usual = window.wanted(512)
    refused(window, usual)
    alone = window.wanted(512)
    window.requested(alone)
    window.came(window.delivered_up_to + 1, 16 * MIB)
    assert (Request(1, None), usual) == (alone, window.wanted(512))


@pytest.mark.parametrize("count", [2, 4, 32, 256])
def test_requests_of_the_first_lanes_leave_room_to_go_alone(count):
    """A worker takes one lane after the other, and each asks at once for as much as it may; one may still go alone."""
    memory = Memory(64 * MIB, 30.0, count)
    shares: list[Share] = []
    for _ in range(count):
        shares.append(memory.join())
        shares[-1].asked_bytes = max(0, shares[-1].free_bytes)
    shares[-1].nothing_on_request()
    assert shares[-1].may_go_alone()


def test_others_wait_for_their_turn_to_go_alone():
    """Two lanes at a time have an update of any size on request; a third one goes on when one of them has come."""
    memory, shares = lanes(3)
    windows = [PullWindow(256, 5.0, share) for share in shares]
    woken: list[int] = []
    for number, window in enumerate(windows):
        shares[number].on_room = lambda number=number: woken.append(number)
        refused(window, window.wanted(512))
        if request := window.wanted(512):
            window.requested(request)
    assert ({shares[2]}, []) == (set(memory.waiting), woken)
    shares[0].nothing_on_request()
    assert [2] == woken
    assert Request(1, None) == windows[2].wanted(512)


def test_overdrafts_are_bounded():
    """With all of the room beyond the shares in use, no lane goes alone until something is settled."""
    memory, (first, second) = lanes(2, memory_bytes=64 * MIB)
    first.at_hand_bytes = memory.share_bytes + 16 * MIB
    before = memory.may_go_alone(second)
    first.at_hand_bytes = memory.share_bytes
    assert (False, True) == (before, memory.may_go_alone(second))


def test_a_lane_is_patient_for_what_arrives_slowly():
    """Requests of a held lane are made anew before it goes on without what is missing, as with small updates."""
    window = PullWindow(256, expiry_s(5.0, 5.0), lanes(1)[1][0])
    assert window.dead_after_s < patience_s(5.0)


def open_session(window_bytes: int) -> Session[int]:
    """A session in which an update is the number of its bytes."""
    session: Session[int] = Session(
        window=4, reply_timeout_s=60.0, authentication="in", size_of=lambda size: size, window_bytes=window_bytes
    )
    session.opened(0.0)
    session.received(SUCCESS, 0.0)
    return session


def lane_with(*deliveries: FakeDelivery) -> Lane:
    lane = Lane(0, Continuity(patience_s=1.0), DeadLetterHorizon(-math.inf, -math.inf))
    lane.continuity.held = False
    lane.continuity._next = deliveries[0].consumer_sequence
    lane.admit(deliveries, 0.0)
    return lane


def test_the_window_is_bounded_in_bytes():
    """With as many bytes unanswered as the window has, nothing more is taken; an answer makes room again."""
    session = open_session(window_bytes=100)
    rooms: list[int] = []

    def take(_room: int, room_bytes: int, _now_s: float) -> list[int]:
        rooms.append(room_bytes)
        return [70]

    taken = [list(session.fill(take, 0.0)) for _ in range(3)]
    full = session.unanswered_bytes
    session.received(SUCCESS, 0.0)
    session.fill(take, 0.0)
    assert ([[70], [70], []], [100, 30, 30], 140) == (taken, rooms, full)
    session.closed(1012)
    assert session.unanswered_bytes == 0


def test_little_is_taken_at_once():
    """However much room there is, only so many bytes are taken at a time that the socket's buffer stays small."""
    rooms: list[int] = []
    open_session(window_bytes=1 << 40).fill(lambda _room, room_bytes, _now_s: rooms.append(room_bytes) or (), 0.0)
    assert [AT_ONCE_BYTES] == rooms


def test_turns_stop_at_the_room_in_bytes():
    """Heads are taken until they have as many bytes as there is room; the last one may exceed it."""
    turns = Turns()
    turns.add(lane_with(*(FakeDelivery(number, letter, size_bytes=300) for number, letter in enumerate("abc", 1))))
    assert [[1, 2], [3], []] == [[each.sequence for each in turns.take(9, room, 0.0)] for room in (400, 1, 0)]


def test_a_lane_counts_its_bytes():
    """What is at hand counts with its bytes until it is settled, also if it is delivered again."""
    lane = lane_with(FakeDelivery(1, "a", size_bytes=300), FakeDelivery(2, "b", size_bytes=500))
    lane.admit([FakeDelivery(2, "b", size_bytes=500)], 0.0)
    lane.continuity.held = False
    both = lane.share.at_hand_bytes
    first = lane.take(0.0)
    assert first is not None
    lane.settle(first, Outcome.ACKNOWLEDGED)
    assert (800, 500) == (both, lane.share.at_hand_bytes)
