import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from relay.core.continuity import patience_s
from relay.core.pull import PullWindow, Signal, expiry_s

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
    window.requested(outstanding)
    return window


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
    assert wanted == window_with(outstanding).wanted(room)


def test_a_batch_of_one_flows():
    """With a batch of 1, each delivery allows the next request."""
    window = PullWindow(1, EXPIRES_S)
    before = window.wanted(5)
    window.requested(before)
    during = window.wanted(5)
    window.delivered_up_to += 1
    assert (1, 0, 1) == (before, during, window.wanted(5))


def test_a_surplus_delivery_owes_nothing():
    """A delivery beyond what was requested does not make the window ask for more than a batch."""
    window = window_with(0)
    window.delivered_up_to += 3
    window.requested(window.wanted(100))
    assert (BATCH, 0) == (window.outstanding, window.wanted(100))


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
    assert BATCH == window.wanted(100)


@pytest.mark.parametrize(("delivered", "low"), [(0, False), (BATCH // 2 - 1, False), (BATCH // 2, True), (BATCH, True)])
def test_the_low_mark_is_half_a_batch(delivered, low):
    """When half a batch has come, and not before, more is requested."""
    window = window_with(BATCH)
    window.delivered_up_to += delivered
    assert (low, low) == (window.is_low, window.delivered_up_to >= window.low_at)


class Pulls(RuleBasedStateMachine):
    """Updates come, stay for a while and are settled; requests are made whenever the window wants some."""

    def __init__(self):
        super().__init__()
        self.window = PullWindow(BATCH, EXPIRES_S)
        self.held = 0
        self.requests = []

    @rule()
    def top_up(self):
        count = self.window.wanted(CAPACITY - self.held)
        if count:
            self.requests.append(count)
            self.window.requested(count)

    @precondition(lambda self: self.requests)
    @rule()
    def deliver(self):
        self.requests[0] -= 1
        self.requests = [left for left in self.requests if left]
        self.held += 1
        self.window.delivered_up_to += 1

    @precondition(lambda self: self.requests)
    @rule(code=st.sampled_from([404, 408, 409]))
    def end_a_request(self, code):
        self.window.status(code, "Batch Completed", self.requests.pop(0))

    @precondition(lambda self: self.held)
    @rule()
    def settle(self):
        self.held -= 1

    @rule()
    def start_over(self):
        self.requests.clear()
        self.window.start(self.window.delivered_up_to)

    @invariant()
    def counts_what_the_server_owes(self):
        assert sum(self.requests) == self.window.outstanding

    @invariant()
    def never_asks_for_more_than_a_batch_or_the_room(self):
        assert (True, True) == (self.window.outstanding <= BATCH, self.held + self.window.outstanding <= CAPACITY)

    @invariant()
    def asks_when_it_is_worth_a_request(self):
        free = min(BATCH, CAPACITY - self.held) - self.window.outstanding
        worth_it = free >= BATCH // 4 if 0 < self.window.outstanding <= BATCH // 2 else free > 0
        assert (worth_it and self.window.outstanding <= BATCH // 2) == (self.window.wanted(CAPACITY - self.held) > 0)


TestPulls = Pulls.TestCase
TestPulls.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestPulls.__doc__ = "Whatever comes, ends and is settled, no more is on request than a batch or than there is room for."
