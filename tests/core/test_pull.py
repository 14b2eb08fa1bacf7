import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from relay.core.continuity import patience_s
from relay.core.memory import LARGEST_BYTES, Memory
from relay.core.pull import PullWindow, Request, Signal, expiry_s

BATCH = 8
EXPIRES_S = 30.0
CAPACITY = 10
DELIVERED = 100
"""How many deliveries the consumer had made before the test."""


LEASE_TTLS_S = 0.5, 1, 5, 15, 60, 3600
ACK_WAITS_S = 0.05, 0.5, 1, 2, 5, 30, 3600
NEW_PULL_S = 0.3
"""How long new requests take, once it is noticed that the old ones are not served."""


@pytest.mark.parametrize("ack_wait_s", ACK_WAITS_S)
@pytest.mark.parametrize("lease_ttl_s", LEASE_TTLS_S)
def test_dead_requests_are_made_anew_while_a_lane_is_patient(lease_ttl_s, ack_wait_s):
    """With all settings, dead requests are replaced before a held lane goes on without what is missing, and no request
    outlives the lease of its worker.
    """
    expires_s = expiry_s(lease_ttl_s, ack_wait_s)
    assert expires_s <= lease_ttl_s
    assert PullWindow(BATCH, expires_s).dead_after_s + NEW_PULL_S < patience_s(ack_wait_s)


def window_with(outstanding):
    window = PullWindow(BATCH, EXPIRES_S)
    window.start(DELIVERED)
    window.requested(Request(outstanding, 0))
    return window


def counted(window, room):
    """How many updates it wants to request."""
    request = window.wanted(room)
    return request.count if request else 0


@pytest.mark.parametrize(
    ("outstanding", "room", "wanted"),
    [
        (0, 100, 8),
        (4, 100, 4),
        (5, 100, 0),
        (8, 100, 0),
        (0, 3, 3),
        (3, 5, 2),
        (3, 3, 0),
        (3, 2, 0),
        (0, 0, 0),
        (0, -1, 0),
    ],
)
def test_requests_are_topped_up_at_half_a_batch(outstanding, room, wanted):
    """At half a batch or less, a request fills up to the batch or the room, whichever is less; above, there is none."""
    assert wanted == counted(window_with(outstanding), room)


def test_a_batch_of_one_flows():
    """With a batch of 1, each delivery allows the next request."""
    window = PullWindow(1, EXPIRES_S)
    before = window.wanted(5)
    window.requested(before)
    during = window.wanted(5)
    window.delivered_up_to += 1
    assert (1, None, 1) == (before.count, during, counted(window, 5))


def test_a_surplus_delivery_owes_nothing():
    """A delivery beyond what was requested does not make the window ask for more than a batch."""
    window = window_with(0)
    window.delivered_up_to += 3
    window.requested(window.wanted(100))
    assert (BATCH, 0) == (window.outstanding, counted(window, 100))


@pytest.mark.parametrize(
    ("code", "description", "pending", "signal", "outstanding"),
    [
        (100, "Idle Heartbeat", None, Signal.ALIVE, 6),
        (404, "No Messages", 4, Signal.ASK_AGAIN, 2),
        (404, "No Messages", None, Signal.START_OVER, 6),
        (408, "Request Timeout", 6, Signal.ASK_AGAIN, 0),
        (408, "Request Timeout", 9, Signal.ASK_AGAIN, 0),
        (409, "Batch Completed", 0, Signal.ASK_AGAIN, 6),
        (409, "Message Size Exceeds MaxBytes", 5, Signal.ASK_AGAIN, 1),
        (409, "Exceeded MaxAckPending", 6, Signal.ASK_AGAIN, 0),
        (409, "Exceeded MaxAckPending", None, Signal.START_OVER, 6),
        (409, "Leadership Change", 6, Signal.START_OVER, 6),
        (409, "Server Shutdown", 6, Signal.START_OVER, 6),
        (409, "Consumer Deleted", 6, Signal.CONSUMER_GONE, 6),
        (409, "Consumer is push based", None, Signal.CONSUMER_GONE, 6),
        (409, "a text of some later server", None, Signal.START_OVER, 6),
        (503, "No Responders", None, Signal.START_OVER, 6),
        (0, "", None, Signal.START_OVER, 6),
    ],
)
def test_every_status_says_what_becomes_of_the_requests(code, description, pending, signal, outstanding):
    """A status that ends a request makes the rest of it available for new ones; an unknown status starts over."""
    window = window_with(6)
    assert (signal, outstanding) == (window.status(code, description, pending), window.outstanding)


def test_after_a_reset_a_whole_batch_is_wanted():
    """When the server has forgotten the requests, none of them counts."""
    window = window_with(BATCH)
    window.start(DELIVERED + 3)
    assert BATCH == counted(window, 100)


@pytest.mark.parametrize(("delivered", "low"), [(0, False), (BATCH // 2 - 1, False), (BATCH // 2, True), (BATCH, True)])
def test_the_low_mark_is_half_a_batch(delivered, low):
    """When half a batch has come, and not before, more is requested."""
    window = window_with(BATCH)
    window.delivered_up_to += delivered
    assert (low, low) == (window.is_low, window.delivered_up_to >= window.low_at)


SHARE_BYTES = 750
SIZES = 10, 100, 300, SHARE_BYTES, 2 * SHARE_BYTES


class Pulls(RuleBasedStateMachine):
    """Updates of many sizes come, stay for a while and are settled; requests are made whenever the window wants some.

    The server serves its requests one after another, and ends one if the next update does not fit.
    """

    def __init__(self):
        super().__init__()
        self.share = Memory(memory_bytes=SHARE_BYTES * 8 // 3).join()
        self.window = PullWindow(BATCH, EXPIRES_S, self.share)
        self.at_hand = []
        self.requests = []
        self.lost_count = 0

    @rule()
    def top_up(self):
        if request := self.window.wanted(CAPACITY - len(self.at_hand)):
            self.requests.append([request.count, request.max_bytes])
            self.window.requested(request)

    @precondition(lambda self: self.requests)
    @rule(size=st.sampled_from(SIZES))
    def deliver(self, size):
        while self.requests:
            count, left = self.requests[0]
            if left is None or size <= left:
                self.requests[0] = [count - 1, None if left is None else left - size]
                self.at_hand.append(size)
                self.share.at_hand_bytes += size
                self.window.came(self.window.delivered_up_to + 1, size)
                if count == 1 or left == size:
                    del self.requests[0]
                    self.lost_count += count - 1
                    if left != size:
                        self.window.status(409, "Batch Completed", 0, (left or size) - size)
                return
            del self.requests[0]
            self.window.status(409, "Message Size Exceeds MaxBytes", count, left)

    @precondition(lambda self: self.requests)
    @rule(code=st.sampled_from([404, 408, 409]))
    def end_a_request(self, code):
        count, left = self.requests.pop(0)
        self.window.status(code, "Batch Completed", count, left or 0)

    @precondition(lambda self: self.at_hand)
    @rule()
    def settle(self):
        self.share.at_hand_bytes -= self.at_hand.pop()

    @rule()
    def start_over(self):
        self.requests.clear()
        self.window.start(self.window.delivered_up_to)

    @invariant()
    def counts_what_the_server_owes(self):
        """Of a request that ended without a status something counts, but only while others are under way."""
        owed = sum(count for count, _ in self.requests)
        assert owed <= self.window.outstanding <= owed + self.lost_count
        assert self.requests or not self.window.outstanding
        self.lost_count *= bool(self.requests)

    @invariant()
    def counts_the_bytes_that_the_server_may_send(self):
        alone = [LARGEST_BYTES for _, left in self.requests if left is None]
        expected = sum(alone or (left for _, left in self.requests))
        assert not self.requests or expected == self.share.on_request_bytes

    @invariant()
    def never_asks_for_more_than_a_batch_or_the_room(self):
        assert (True, True) == (
            self.window.outstanding <= BATCH,
            len(self.at_hand) + self.window.outstanding <= CAPACITY,
        )

    @invariant()
    def has_no_more_bytes_than_its_share_and_one_update(self):
        asked = sum(left or 0 for _, left in self.requests)
        assert sum(self.at_hand) + asked <= SHARE_BYTES + max(SIZES)

    def teardown(self):
        """An update of any size comes in the end: asking never stops while there is room."""
        while self.at_hand:
            self.settle()
        for _ in range(3):
            self.top_up()
            self.deliver(max(SIZES))
        assert self.at_hand


TestPulls = Pulls.TestCase
TestPulls.settings = settings(max_examples=50, stateful_step_count=30)
TestPulls.__doc__ = "Whatever comes, ends and is settled, no more is on request than a batch or than there is room for."
