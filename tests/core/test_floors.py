"""Up to where lanes are settled, kept for the case that a consumer is deleted."""

import pytest

from relay.core.floors import Floor, Floors

MADE, AGAIN = "2026-11-28T20:46:10.0875Z", "2026-11-28T21:00:00Z"


def known(made_at: str = MADE) -> Floors:
    floors = Floors()
    floors.stream_seen(made_at, 100)
    floors.settled(2, 90)
    return floors


def test_written_and_read():
    """What is written with a lease is read again; anything else is no floor."""
    assert Floor(90, MADE) == Floor.parse(known().header(2))
    assert [None] * 4 == [Floor.parse(text) for text in (None, "", "90", "x y")]


def test_nothing_is_known_without_the_stream():
    """A floor is of a stream, so nothing is kept before the stream was seen, and of other lanes nothing is known."""
    floors = Floors()
    floors.settled(2, 90)
    assert (None, None) == (floors.header(2), known().header(1))


@pytest.mark.parametrize(
    ("made_at", "last_sequence", "counts"), [(MADE, 90, True), (MADE, 89, False), (AGAIN, 500, False)]
)
def test_another_stream(made_at, last_sequence, counts):
    """A stream that was made anew, or restored from before, counts from elsewhere: its updates are not skipped."""
    floors = known()
    floors.stream_seen(made_at, last_sequence)
    assert counts is (floors.header(2) is not None) is Floor(90, MADE).is_of(made_at, last_sequence)


def test_stream_gone():
    """When the stream is gone, nothing is known of the one that may come."""
    floors = known()
    floors.stream_gone()
    floors.settled(2, 95)
    assert None is floors.header(2)


def test_next_owner():
    """The next owner of a lane goes on with the floor of the one before, until it knows a newer one."""
    floors = Floors()
    floors.inherit(2, f"90 {MADE}")
    assert f"90 {MADE}" == floors.header(2)
    floors.stream_seen(MADE, 100)
    floors.settled(2, 95)
    floors.inherit(2, f"90 {MADE}")
    assert f"95 {MADE}" == floors.header(2)
