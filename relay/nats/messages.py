"""Looking up and deleting single messages of a stream through JetStream's API.

The stream's leader answers, so the last write is always seen.
"""

import datetime as dt
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from relay.contract.errors import JetStreamError
from relay.contract.subjects import api_message_delete, api_message_get
from relay.nats.err_codes import NO_MESSAGE, NOT_DELETED
from relay.nats.headers import parse_headers
from relay.nats.jetstream import ErrorAnswer, Requester, api_request, api_request_as

_TIMEOUT_S: Final = 5.0


class StoredMessage(msgspec.Struct, frozen=True):
    """A message as its stream keeps it."""

    subject: str
    sequence: int = msgspec.field(name="seq")
    time: str
    """When the stream stored it, as the server gives it: RFC 3339, UTC, nanoseconds."""
    body: bytes = msgspec.field(name="data", default=b"")
    header_block: bytes = msgspec.field(name="hdrs", default=b"")
    """As on the wire; `headers` parses it."""

    @property
    def headers(self) -> dict[str, str]:
        """The headers, parsed again at each access."""
        return parse_headers(self.header_block)

    @property
    def stored_at(self) -> dt.datetime:
        """When the stream stored it, to the microsecond, UTC."""
        return dt.datetime.fromisoformat(self.time)

    @property
    def stored_at_s(self) -> float:
        """When the stream stored it: Unix time in seconds, on the server's clock."""
        return self.stored_at.timestamp()


class _Found(msgspec.Struct, frozen=True):
    message: StoredMessage | None = None
    error: ErrorAnswer | None = None


# The body comes in base64. This reads it from the answer at once, without a copy of its text in between.
_decode_found: Final = msgspec.json.Decoder(_Found).decode


async def find_message(
    client: Requester, stream: str, request: Mapping[str, Any], *, timeout_s: float = _TIMEOUT_S
) -> StoredMessage | None:
    """The message that matches `request`; None if there is none. Raises RelayError. Cancelling is safe.

    `request` is {"seq": n}, {"last_by_subj": subject}, or {"next_by_subj": subject, "seq": n} for the first from n on.
    """
    try:
        found = await api_request_as(client, api_message_get(stream), request, _decode_found, timeout_s=timeout_s)
    except JetStreamError as error:
        if error.err_code == NO_MESSAGE:
            return None
        raise
    return found.message


async def get_message(client: Requester, stream: str, sequence: int) -> StoredMessage | None:
    """The message with this sequence; None if it does not exist. Raises RelayError. Cancelling is safe."""
    return await find_message(client, stream, {"seq": sequence})


async def delete_message(client: Requester, stream: str, sequence: int) -> bool:
    """Delete one message; False if it did not exist. Raises RelayError. If cancelled, it may or may not be deleted."""
    # Erasing would overwrite the bytes on disk, which costs a write of the whole block.
    try:
        await api_request(client, api_message_delete(stream), {"seq": sequence, "no_erase": True})
    except JetStreamError as error:
        if error.err_code not in NOT_DELETED or await get_message(client, stream, sequence) is not None:
            raise
        return False
    return True
