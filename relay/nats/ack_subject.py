"""The subjects on which deliveries are acknowledged.

    $JS.ACK.<stream>.<consumer>.<deliveries>.<stream seq>.<consumer seq>.<stored, ns>.<pending>
    $JS.ACK.<domain>.<account hash>.<stream>.<consumer>. ... .<pending>.<random>

nats-server 2.14 and newer use the second form if their feature flag `js_ack_fc_v2` is set; without a domain it is `_`.
"""

from typing import Final

import msgspec

_SHORT_FORM_TOKENS: Final = 9
_NO_SEQUENCE: Final = 2**62


class AckSubject(msgspec.Struct, gc=False):
    """What the subject says about a delivery."""

    deliveries: int
    """How often the message was delivered, this time included."""
    sequence: int
    """The message's sequence in its stream."""
    consumer_sequence: int
    """The delivery's sequence in its consumer."""
    stored_ns: int
    """When the stream stored the message: Unix time in nanoseconds, on the server's clock."""
    pending: int
    """How many messages the consumer still had to deliver."""


def parse_ack_subject(subject: bytes) -> AckSubject:
    """Read an ACK subject. Raises ValueError if it is not one."""
    tokens = subject.split(b".")
    if len(tokens) == _SHORT_FORM_TOKENS:
        _, _, _, _, deliveries, sequence, consumer_sequence, stored_ns, pending = tokens
    else:
        _, _, _, _, _, _, deliveries, sequence, consumer_sequence, stored_ns, pending, *_ = tokens
    return AckSubject(int(deliveries), int(sequence), int(consumer_sequence), int(stored_ns), int(pending))


def all_acks(stream: str) -> tuple[str, str]:
    """They match the ACK subjects of all deliveries of a stream: those of the first form, and those of the second."""
    return f"$JS.ACK.{stream}.>", f"$JS.ACK.*.*.{stream}.>"


def origin_of(subject: bytes) -> str:
    """The domain and the account hash in an ACK subject of the second form, `<domain>.<hash>`; empty in the first."""
    tokens = subject.split(b".")
    return "" if len(tokens) <= _SHORT_FORM_TOKENS else b".".join(tokens[2:4]).decode()


def ack_of_nothing(stream: str, consumer: str, origin: str = "") -> str:
    """An ACK subject that changes nothing, because no message has its sequence. `origin` is that of the deliveries.

    The server answers it after it has processed the acknowledgements that were sent before.
    """
    return ack_subject(stream, consumer, _NO_SEQUENCE, 1, origin)


def ack_subject(stream: str, consumer: str, sequence: int, consumer_sequence: int, origin: str = "") -> str:
    """An ACK subject for a delivery that is not at hand. `origin` is that of the deliveries.

    The server goes by the stream's `sequence`. It ignores a `-NAK` if `consumer_sequence` is not between the consumer's
    ack floor and its latest delivery.
    """
    names = f"{origin}.{stream}.{consumer}" if origin else f"{stream}.{consumer}"
    return f"$JS.ACK.{names}.1.{sequence}.{consumer_sequence}.0.0"
