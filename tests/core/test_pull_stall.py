"""Limits of requests, and lanes that are given nothing."""

import pytest

from relay.core.pull import PullWindow
from relay.core.stall import PullLimit, StallWatch, limit_in


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("Exceeded MaxRequestBatch of 50", PullLimit("batch", 50)),
        ("Exceeded MaxRequestExpires of 1m30s", PullLimit("expires", 90)),
        ("Exceeded MaxRequestExpires of 500ms", PullLimit("expires", 0.5)),
        ("Exceeded MaxRequestMaxBytes of 1000", PullLimit("maxbytes", 1000)),
        ("Exceeded MaxRequestBatch of many", None),
        ("Exceeded MaxWaiting", None),
        ("Bad Request", None),
    ],
)
def test_the_limit_is_in_the_text(text, limit):
    """What the server says of a request that asks for too much is the limit to keep to."""
    assert limit == limit_in(text)


@pytest.mark.parametrize("most", [1, 2, 50])
def test_no_request_exceeds_a_limit(most):
    """After a refusal each request is within the limit, and all room is still used in the end."""
    window = PullWindow(256, 5.0)
    window.status(409, f"Exceeded MaxRequestBatch of {most}", None)
    window.status(409, "Exceeded MaxRequestExpires of 1s", None)
    window.start(0)
    asked = []
    for _ in range(60):
        while (request := window.wanted(512)) is not None:
            window.requested(request)
            asked.append(request.count)
        window.delivered_up_to += window.outstanding
    assert (most, 60 * most, 1.0) == (max(asked), sum(asked), window.expires_s)
    assert window.dead_after_s <= 1.0


def test_a_stall_is_a_backlog_that_is_asked_for_and_not_given():
    """Only if updates wait, are asked for, and none comes for long enough, the lane stands still."""
    watch = StallWatch(10.0)
    looks = [
        watch.look(0, delivered=5, waiting=3, asking=True),
        watch.look(9, delivered=5, waiting=3, asking=True),
        watch.look(12, delivered=5, waiting=3, asking=True),
        watch.look(13, delivered=6, waiting=2, asking=True),
        watch.look(30, delivered=6, waiting=2, asking=False),
        watch.look(39, delivered=6, waiting=0, asking=True),
        watch.look(48, delivered=6, waiting=1, asking=True),
        watch.look(49, delivered=6, waiting=1, asking=True),
    ]
    assert [None, None, 12, None, None, None, None, 10] == looks
