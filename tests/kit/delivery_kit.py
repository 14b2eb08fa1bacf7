"""Deliveries for the tests of the core, without I/O: the part of path/delivery.py that decisions need."""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

JOBS = {name: f"00000000-0000-4000-8000-00000000000{name}" for name in "abcdef"}
"""UUIDs of jobs, by letter."""
_numbers = itertools.count(1)


def body(job: str, status: str = "accepted") -> bytes:
    """An update that can be sent."""
    return json.dumps({"message_type": "V0JobStatusUpdate", "uuid": job, "status": status, "metadata": {}}).encode()


@dataclass(eq=False)
class FakeDelivery:
    """A delivery of an update: its stream sequence, the letter of its job, and whether it can be sent."""

    sequence: int
    letter: str = "a"
    fit: bool = True
    consumer_sequence: int = field(default_factory=lambda: next(_numbers))
    deliveries: int = 1
    stored_at_s: float = 0.0
    headers: Mapping[str, str] = field(default_factory=dict)
    reply: bytes = b""

    size_bytes: int = 100

    @property
    def job(self) -> str:
        return JOBS[self.letter]

    @property
    def subject(self) -> str:
        return f"job.status.0.{self.job}"

    @cached_property
    def body(self) -> bytes:
        return body(self.job) if self.fit else b"{"
