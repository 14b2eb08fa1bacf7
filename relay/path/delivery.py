"""One delivery of one update, and how to settle it."""

from collections.abc import Mapping
from operator import attrgetter

import nats.errors

from relay.core.trace import traced
from relay.core.update import DeliveryLike
from relay.nats.ack_subject import parse_ack_subject
from relay.nats.frames import FrameClient, publication
from relay.nats.headers import parse_headers
from relay.observability.logs import get_logger

_log = get_logger(__name__)

_NAK = b"-NAK"
_IN_PROGRESS = b"+WPI"
_TERM = b"+TERM"
_reply_of = attrgetter("reply")


class Delivery:
    """A message of a pull consumer, with the facts that its reply subject contains."""

    __slots__ = (
        "_client",
        "body",
        "consumer_sequence",
        "deliveries",
        "headers",
        "reply",
        "sequence",
        "size_bytes",
        "stored_at_s",
        "subject",
    )

    def __init__(self, client: FrameClient, subject: bytes, reply: bytes, headers: bytes, body: bytes) -> None:
        self._client = client
        self.reply = reply
        """The subject on which it is acknowledged or given back."""
        self.subject = subject.decode(errors="replace")
        """The stored subject, `job.status.<lane>.<token>`."""
        self.headers: Mapping[str, str] = parse_headers(headers) if headers else {}
        self.body = body
        self.size_bytes = len(subject) + len(reply) + len(headers) + len(body)
        """As the server counts it for the limit of a pull request."""
        told = parse_ack_subject(reply)
        self.deliveries = told.deliveries
        """How often the server delivered it, this time included. It says nothing about whose fault that was."""
        self.sequence = told.sequence
        self.consumer_sequence = told.consumer_sequence
        self.stored_at_s = told.stored_ns // 1000 / 1e6
        """When the stream stored it, in seconds of Unix time, on the server's clock.

        To the microsecond, so that it equals the time of the message that is read from the stream.
        """

    def __repr__(self) -> str:
        return f"<Delivery {self.subject} #{self.sequence}, {self.deliveries}x>"

    def ack(self, *others: DeliveryLike) -> None:
        """Acknowledge this delivery, and others together with it in one write.

        The server does not confirm it: if an acknowledgement gets lost, the update is delivered again.
        """
        replies = map(_reply_of, (self, *others))
        self._write(b"PUB %b 4\r\n+ACK\r\n" % b" 4\r\n+ACK\r\nPUB ".join(replies))

    def in_progress(self) -> None:
        """Let `ack_wait` begin again; does not count as a delivery. Does nothing while disconnected."""
        if self._client.is_connected:
            self._answer(_IN_PROGRESS)

    def nak(self) -> None:
        """Give it back, to be delivered again at once."""
        self._answer(_NAK)

    def term(self, reason: str) -> None:
        """Never deliver it again, because of `reason`; the server publishes an advisory with the reason."""
        self._answer(_TERM + b" " + reason.encode())

    def _answer(self, word: bytes) -> None:
        self._write(publication(self.reply, word))

    def _write(self, lines: bytes) -> None:
        try:
            self._client.write(lines)
        except nats.errors.Error as error:
            # The server will deliver it again; the lane then settles it as before, or still has it at hand.
            told = traced(self.headers)
            _log.warning(
                "the server was not told what became of an update", delivery=repr(self), error=repr(error), **told
            )
