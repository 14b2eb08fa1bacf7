"""Looking up stored messages for many dead letters at a time, in little memory however large the messages are."""

from collections.abc import Mapping
from typing import Any, Final

from relay.nats.jetstream import Requester
from relay.nats.messages import StoredMessage, find_message
from relay.timing.room import Room

_ROOM_BYTES: Final = 64 * 1024 * 1024
"""For the messages that are looked up at a time: 8 with a `max_payload` of 8 MB.

How large a message is, is known only when it has come, so each counts as one of the largest size."""


class Lookups:
    """Looks up messages, a few at a time. Raises RelayError. Cancelling a lookup is safe."""

    def __init__(self, client: Requester) -> None:
        self._client = client
        self._room = Room(_ROOM_BYTES)

    async def find(self, stream: str, request: Mapping[str, Any]) -> StoredMessage | None:
        """As `find_message`, when it is this lookup's turn."""
        async with self._room.held(self._client.max_payload):
            return await find_message(self._client, stream, request)

    async def get(self, stream: str, sequence: int) -> StoredMessage | None:
        """As `get_message`, when it is this lookup's turn."""
        return await self.find(stream, {"seq": sequence})
