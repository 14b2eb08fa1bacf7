"""The control: an update that tells whether a dropped connection was the fault of the suspect or of the Facilitator.

While the Facilitator cannot store anything (its disk is full, an index is damaged), it drops the connection at every
update, good ones and repeats as well, although it lets us sign in. The suspect alone does not show which of the two it
is. So an update that the Facilitator has acknowledged before, the *control*, is sent before it: the Facilitator refuses
a repeat with `job.integrity_error`, unless it cannot store anything.

**Why from memory.** The control must be an update that this Facilitator has stored, or else sending it could store a
row, and the Facilitator shows the last row to arrive as the job's status. A made-up update with the status `sent` might
be the first of its job. The stream says which updates were settled, not which of them were acknowledged; and asking it
costs a request at a time when little works. A worker that has seen nothing acknowledged has no control: then a drop
counts for nothing, and other updates go first, until one of them is acknowledged.

**What a repeat can do.** It is refused and stores nothing, unless the row was deleted at the Facilitator meanwhile.
Then it is stored again, and shown. So an update with a terminal status is preferred: it is the last of its job, and
showing it once more changes nothing. When it was acknowledged, each control was the newest of its job to arrive.
"""

from typing import Final

from relay.contract.facilitator_messages import Reply
from relay.contract.model import JobStatus
from relay.core.verdict import INTEGRITY_ERROR

CONTROL_MAX_BYTES: Final = 64 * 1024
"""Larger updates are not kept: a control is sent often, and each connection keeps one in memory."""
_TERMINAL: Final = frozenset[str](status for status in JobStatus if status.terminal)


class Control:
    """The control of one connection to the Facilitator. Sending it uses it up, and its answer makes it usable again.

    So a control that is itself what the Facilitator drops the connection for is sent once, and holds up nothing.
    """

    def __init__(self) -> None:
        self._text = b""
        self._is_terminal = False
        self._is_usable = False

    def __repr__(self) -> str:
        return f"<Control: {len(self._text)} bytes{'' if self._is_usable else ', not usable'}>"

    def keep(self, text: bytes, status: str | None) -> bool:
        """The Facilitator has just acknowledged an update with this text and status, which may become the control.

        Returns whether there is a control now, and was none before.
        """
        is_terminal, was_usable = status in _TERMINAL, self._is_usable
        if len(text) <= CONTROL_MAX_BYTES and (is_terminal or not (was_usable and self._is_terminal)):
            self._text, self._is_terminal, self._is_usable = text, is_terminal, True
        return self._is_usable and not was_usable

    def use(self) -> bytes | None:
        """The text to send now; None if there is no control. It is not usable again until `passed` is called."""
        text = self._text if self._is_usable else None
        self._is_usable = False
        return text

    def passed(self) -> None:
        """It was answered as a repeat of a stored update is."""
        self._is_usable = True


def shows_storing(reply: Reply) -> bool:
    """Whether the answer to a control shows that the Facilitator can store updates.

    `job.not_found` does not: the job was deleted, so the Facilitator did not try to store anything.
    """
    return reply.status == "success" or any(error.type == INTEGRITY_ERROR for error in reply.errors)
