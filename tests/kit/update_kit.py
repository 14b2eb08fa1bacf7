"""Updates as values, for tests that need no server."""

from collections.abc import Mapping
from typing import NamedTuple


class GivenUpdate(NamedTuple):
    """The update that a dead letter is made of; see UpdateLike."""

    subject: str
    sequence: int
    headers: Mapping[str, str]
    body: bytes
    stored_at_s: float
