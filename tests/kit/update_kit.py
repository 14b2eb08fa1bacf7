"""Updates as values, for tests that need no server to store them."""

from collections.abc import Mapping
from typing import NamedTuple


class GivenUpdate(NamedTuple):
    """What a dead letter is made of; see UpdateLike."""

    subject: str
    sequence: int
    headers: Mapping[str, str]
    body: bytes
    stored_at_s: float
