"""Who is signed in, and how often a wrong password may be tried. Without I/O; times are monotonic seconds."""

import hmac
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

SESSION_S: Final = 12 * 3600.0
"""How long a session lasts."""
_MOST_SESSIONS: Final = 1000
TRIES: Final = 5
TRIES_PER_S: Final = 60.0
"""TRIES wrong passwords in so many seconds, from all addresses together: then nobody may try for a while."""


class Sessions:
    """The sessions of those that are signed in.

    Args:
        password: what they must know.
        new_token: makes a secret that nobody can guess.
    """

    def __init__(self, password: str, new_token: Callable[[], str]) -> None:
        self._password = password.encode()
        self._new_token = new_token
        self._ends_s: OrderedDict[str, float] = OrderedDict()
        self._wrong_s: deque[float] = deque(maxlen=TRIES)

    def must_wait_s(self, now_s: float) -> float:
        """How long no password is looked at, because too many were wrong; 0 if one may be tried."""
        if len(self._wrong_s) < TRIES:
            return 0.0
        return max(0.0, self._wrong_s[0] + TRIES_PER_S - now_s)

    def sign_in(self, password: str, now_s: float) -> str | None:
        """The token of a new session; None if the password is wrong, or may not be tried now."""
        if self.must_wait_s(now_s):
            return None
        if not hmac.compare_digest(password.encode(errors="replace"), self._password):
            self._wrong_s.append(now_s)
            return None
        token = self._new_token()
        self._ends_s[token] = now_s + SESSION_S
        if len(self._ends_s) > _MOST_SESSIONS:
            self._ends_s.popitem(last=False)
        return token

    def holds(self, token: str, now_s: float) -> bool:
        """Whether it is the token of a session that has not ended."""
        return self._ends_s.get(token, now_s) > now_s

    def sign_out(self, token: str) -> None:
        self._ends_s.pop(token, None)
