"""What a dead letter says of whose it is."""

import re
from dataclasses import dataclass
from typing import Final, Self

from relay.contract.subjects import REASON_HEADER, SOURCE_SEQUENCE_HEADER, SOURCE_SUBJECT_HEADER
from relay.nats.messages import StoredMessage

_SOURCE_SEQUENCE: Final = re.compile(rb"\r\n" + SOURCE_SEQUENCE_HEADER.encode() + rb": (\d{1,19})\r\n")
_SOURCE_SUBJECT: Final = re.compile(rb"\r\n" + SOURCE_SUBJECT_HEADER.encode() + rb": ([^\r\n]*)\r\n")
_REASON: Final = re.compile(rb"\r\n" + REASON_HEADER.encode() + rb": ([a-z_]{1,64})\r\n")


@dataclass(frozen=True, slots=True)
class Burial:
    """That an update of a job became a dead letter.

    It was the update with the sequence and the subject that the dead letter names, unless that is younger than the
    dead letter: a status stream that was deleted and made anew counts from 1 again. "Younger" is a matter of clocks,
    since the leaders of two streams can be on two servers; who asks says which error is the worse one.
    """

    sequence: int
    """Of the dead letter."""
    stored_at_s: float
    """When the dead letter was stored, in Unix time, on the server's clock."""
    source_sequence: int
    """0 if it does not say."""
    source_subject: bytes
    reason: str

    @classmethod
    def parse(cls, message: StoredMessage) -> Self:
        """From a message of the dead-letter stream."""
        headers = message.header_block
        source, subject = _SOURCE_SEQUENCE.search(headers), _SOURCE_SUBJECT.search(headers)
        reason = _REASON.search(headers)
        return cls(
            sequence=message.sequence,
            stored_at_s=message.stored_at_s,
            source_sequence=int(source[1]) if source else 0,
            source_subject=subject[1] if subject else b"",
            reason=reason[1].decode() if reason else "unknown",
        )

    def is_older_than(self, stored_at_s: float, *, skew_s: float) -> bool:
        """Whether it was there before what was stored at `stored_at_s`, by clocks that differ by `skew_s` at most."""
        return self.stored_at_s < stored_at_s - skew_s
