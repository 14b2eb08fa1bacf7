"""The difference between the clock of NATS and that of this machine."""

from relay.core.server_clock import ServerClock


def told(*answers: tuple[float, float, float]) -> ServerClock:
    """A clock after answers: how far the server is ahead, the round trip, and when, all in seconds."""
    clock = ServerClock()
    for ahead_s, round_trip_s, now_s in answers:
        clock.told(1000 + now_s + ahead_s, 1000 + now_s - round_trip_s / 2, 1000 + now_s + round_trip_s / 2, now_s)
    return clock


def test_small_differences_are_not_corrected():
    """Between synchronised clocks the estimate is worse than no correction."""
    clock = told((0.05, 0.001, 0))
    assert (0.05, 0.0) == (round(clock.ahead_s, 6), clock.correction_s)


def test_hours():
    """A clock that is hours wrong is corrected, in both directions."""
    assert [7200.0, -7200.0] == [round(told((ahead_s, 0.001, 0)).correction_s) for ahead_s in (7200, -7200)]


def test_better_answers_count():
    """A slow answer does not replace a quick one, unless that is a minute old, or the clock was set in between."""
    quick, slow = (7200.0, 0.001, 0.0), (7201.0, 4.0, 1.0)
    assert 7200 == round(told(quick, slow).ahead_s)
    assert 7201 == round(told(quick, (7201.0, 4.0, 61.0)).ahead_s)
    assert 0 == round(told(quick, (0.0, 4.0, 1.0)).ahead_s)
