import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.backoff import Backoff


@pytest.mark.parametrize(("attempt", "ceiling_s"), [(1, 0.5), (2, 1.0), (3, 2.0), (6, 16.0), (7, 30.0), (8, 30.0)])
def test_the_ceiling_doubles_up_to_the_longest_wait(attempt, ceiling_s):
    """Attempt 1 waits at most `initial_s`; each further one at most twice as long, never beyond `max_s`."""
    assert ceiling_s == Backoff(0.5, 30.0, lambda: 1.0).delay_s(attempt)


@pytest.mark.parametrize(("drawn", "delay_s"), [(0.0, 0.0), (0.25, 0.5), (0.5, 1.0)])
def test_the_jitter_is_full(drawn, delay_s):
    """The delay is the random number times the whole ceiling, and may be 0."""
    assert delay_s == Backoff(0.5, 30.0, lambda: drawn).delay_s(3)


@given(
    attempt=st.integers(1, 10**9),
    initial_s=st.floats(0.001, 60),
    longer=st.floats(1, 1000),
    drawn=st.floats(0, 1, exclude_max=True),
)
def test_no_attempt_is_too_high(attempt, initial_s, longer, drawn):
    """Whatever the attempt and the settings, the delay lies between zero and `max_s`."""
    delay_s = Backoff(initial_s, initial_s * longer, lambda: drawn).delay_s(attempt)
    assert (True, True) == (delay_s >= 0, delay_s <= initial_s * longer)
