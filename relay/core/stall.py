"""Whether a lane is given anything, and the limits that the server puts on requests for updates."""

import re
from dataclasses import dataclass
from typing import Final

_LIMIT: Final = re.compile(r"exceeded maxrequest(batch|expires|maxbytes) of (\S+)")
_DURATION: Final = re.compile(r"([\d.]+)(h|ms|m|us|µs|ns|s)")
_SECONDS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


@dataclass(frozen=True, slots=True)
class PullLimit:
    """The most that one request may ask for: `batch` updates, `expires` seconds, or `maxbytes` bytes."""

    of: str
    most: float


def limit_in(description: str) -> PullLimit | None:
    """The limit that a request has exceeded, from the text of its refusal; None if that names no limit."""
    if (match := _LIMIT.search(description.lower())) is None:
        return None
    of, value = match.groups()
    parts = _DURATION.findall(value) if of == "expires" else []
    most = sum(float(number) * _SECONDS[unit] for number, unit in parts) if parts else _number(value)
    return PullLimit(of, most) if most > 0 else None


def _number(text: str) -> float:
    return float(text) if text.isdecimal() else 0.0


class StallWatch:
    """Notices that updates wait in a lane and none of them is given, although they are asked for.

    It does not ask for the cause, so it also notices causes that nobody has thought of.
    """

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._delivered = -1
        self._since_s = 0.0

    def look(self, now_s: float, *, delivered: int, waiting: int, asking: bool) -> float | None:
        """For how many seconds nothing was given; None if that is not long, or as it should be.

        `delivered` is how many deliveries the consumer has made, `waiting` how many updates it has not delivered yet.
        """
        if delivered != self._delivered or not waiting or not asking:
            self._delivered, self._since_s = delivered, now_s
        still_s = now_s - self._since_s
        return still_s if still_s >= self._after_s else None
