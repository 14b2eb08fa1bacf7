"""One delivery of one update, and the words to settle it with."""

from collections.abc import Mapping

import nats.errors

from relay.core.trace import traced
from relay.nats.frames import FrameClient, publication
from relay.observability.logs import get_logger

_log = get_logger(__name__)

_ACK = b"+ACK"
_NAK = b"-NAK"
_IN_PROGRESS = b"+WPI"
_TERM = b"+TERM"


class Delivery:
    """A message of a pull consumer with what its reply subject tells.

    `$JS.ACK.<stream>.<consumer>.<deliveries>.<stream seq>.<consumer seq>.<stored, ns>.<pending>`, and three tokens
    more where the account has a domain: two before the stream, one at the end.
    """

    __slots__ = (
        "_nc",
        "_reply",
        "body",
        "consumer_sequence",
        "deliveries",
        "headers",
        "sequence",
        "stored_at_s",
        "subject",
    )

    def __init__(self, nc: FrameClient, subject: bytes, reply: bytes, headers: bytes, body: bytes) -> None:
        self._nc = nc
        self._reply = reply
        self.subject = subject.decode(errors="replace")
        """The stored subject, `job.status.<lane>.<token>`."""
        self.headers: Mapping[str, str] = nc.headers_of(headers)
        self.body = body
        tokens = reply.split(b".")
        first = 4 if len(tokens) == 9 else 6  # noqa: PLR2004 - the two forms above
        self.deliveries = int(tokens[first])
        """How often the server delivered it, this time included. It says nothing about whose fault that was."""
        self.sequence = int(tokens[first + 1])
        self.consumer_sequence = int(tokens[first + 2])
        self.stored_at_s = int(tokens[first + 3]) / 1e9
        """When the stream stored it, in seconds of Unix time, on the server's clock."""

    def __repr__(self) -> str:
        return f"<Delivery {self.subject} #{self.sequence}, {self.deliveries}x>"

    def ack(self) -> None:
        """Acknowledge, without waiting for the server: if this gets lost, the update is delivered again."""
        self._answer(_ACK)

    def in_progress(self) -> None:
        """Start `ack_wait` anew; counts no delivery. Of no use later, so it is not kept for a lost connection."""
        if self._nc.is_connected:
            self._answer(_IN_PROGRESS)

    def nak(self) -> None:
        """Give it back, to be delivered again at once."""
        self._answer(_NAK)

    def term(self, reason: str) -> None:
        """Never deliver it again, because of `reason`: the server publishes both as an advisory."""
        self._answer(_TERM + b" " + reason.encode())

    def _answer(self, word: bytes) -> None:
        try:
            self._nc.write(publication(self._reply, word))
        except nats.errors.Error as error:
            # The server will deliver it again; the lane then settles it as before, or has it at hand still.
            told = traced(self.headers)
            _log.warning(
                "the server was not told what became of an update", delivery=repr(self), error=repr(error), **told
            )
