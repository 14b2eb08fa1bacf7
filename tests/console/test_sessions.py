"""Who is signed in: tokens, time limits, and how often a wrong password may be tried."""

from itertools import count

from relay.console.sessions import SESSION_S, TRIES, TRIES_PER_S, Sessions


def sessions() -> Sessions:
    numbers = count()
    return Sessions("correct horse", lambda: f"token-{next(numbers)}")


def test_right_password_alone():
    """Only the right password makes a session, and only its token is one."""
    found = sessions()
    assert found.sign_in("wrong", 0.0) is None
    token = found.sign_in("correct horse", 0.0)
    assert "token-0" == token
    assert found.holds(token, 1.0)
    assert not found.holds("", 1.0)
    assert not found.holds("token-1", 1.0)


def test_surrogates():
    """A password that is no valid text is wrong, and raises nothing."""
    assert sessions().sign_in("\ud800", 0.0) is None


def test_ends():
    """A session ends after its time, and when its user signs out."""
    found = sessions()
    token = found.sign_in("correct horse", 0.0)
    assert found.holds(token, SESSION_S - 1)
    assert not found.holds(token, SESSION_S)
    other = found.sign_in("correct horse", 0.0)
    found.sign_out(other)
    assert not found.holds(other, 1.0)


def test_guessing_is_slow():
    """After TRIES wrong passwords even the right one is not looked at, until the first of them is old enough."""
    found = sessions()
    for second in range(TRIES):
        assert found.must_wait_s(float(second)) == 0.0
        assert found.sign_in("wrong", float(second)) is None
    assert TRIES_PER_S - 10 == found.must_wait_s(10.0)
    assert found.sign_in("correct horse", 10.0) is None
    assert found.sign_in("correct horse", TRIES_PER_S) is not None


def test_bounded():
    """However often somebody signs in, the oldest sessions are forgotten."""
    found = sessions()
    first = found.sign_in("correct horse", 0.0)
    for _ in range(1000):
        last = found.sign_in("correct horse", 0.0)
    assert not found.holds(first, 1.0)
    assert found.holds(last, 1.0)
