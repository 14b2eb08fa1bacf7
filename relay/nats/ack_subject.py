"""The subjects on which deliveries are acknowledged.

    $JS.ACK.<stream>.<consumer>.<deliveries>.<stream seq>.<consumer seq>.<stored, ns>.<pending>
    $JS.ACK.<domain>.<account hash>.<stream>.<consumer>. ... .<pending>.<random>

The server chooses the second form where it has a domain or the stream is shared between accounts.
"""

from typing import Final

import msgspec

_SHORT_FORM_TOKENS: Final = 9
_NO_SEQUENCE: Final = 2**62


class AckSubject(msgspec.Struct, gc=False):
    """What the subject says of a delivery."""

    deliveries: int
    """How often the message was delivered, this time included."""
    sequence: int
    """Of the message in its stream."""
    consumer_sequence: int
    """Of the delivery in its consumer."""
    stored_ns: int
    """When the stream stored the message: Unix time in nanoseconds, on the server's clock."""
    pending: int
    """How many messages the consumer had yet to deliver."""


def parse_ack_subject(subject: bytes) -> AckSubject:
    """Read such a subject. Raises ValueError for any other."""
    tokens = subject.split(b".")
    if len(tokens) == _SHORT_FORM_TOKENS:
        _, _, _, _, deliveries, sequence, consumer_sequence, stored_ns, pending = tokens
    else:
        _, _, _, _, _, _, deliveries, sequence, consumer_sequence, stored_ns, pending, *_ = tokens
    return AckSubject(int(deliveries), int(sequence), int(consumer_sequence), int(stored_ns), int(pending))


def all_acks(stream: str) -> str:
    """Where all deliveries of a stream are acknowledged, if the subjects have the first form."""
    return f"$JS.ACK.{stream}.>"


def ack_of_nothing(stream: str, consumer: str) -> str:
    """Where an acknowledgement changes nothing, because no message has its sequence.

    The server answers it after it has processed those that were sent before.
    """
    return f"$JS.ACK.{stream}.{consumer}.1.{_NO_SEQUENCE}.1.0.0"
