"""How fast large messages arrive."""

from typing import Final

_LEAST_BYTES: Final = 128 * 1024
_MOST_BYTES: Final = 4 * 1024 * 1024
"""How many bytes tell how fast they arrive: at least, so that it is known, and at most, so that it is recent."""


class ArrivalRate:
    """How fast bytes arrive of which the server has sent more: the rest of a message whose beginning has come."""

    def __init__(self) -> None:
        self._bytes = 0.0
        self._seconds = 0.0
        self._last_s = 0.0

    @property
    def bytes_per_s(self) -> float | None:
        """None until enough has arrived to tell."""
        return self._bytes / self._seconds if self._bytes >= _LEAST_BYTES and self._seconds else None

    def began(self, now_s: float) -> None:
        """The beginning of a message has come."""
        self._last_s = now_s

    def read(self, size_bytes: int, now_s: float) -> None:
        """More of it has come. What was read long ago counts less and less."""
        self._bytes += size_bytes
        self._seconds += now_s - self._last_s
        self._last_s = now_s
        if self._bytes > _MOST_BYTES:
            self._bytes /= 2
            self._seconds /= 2
