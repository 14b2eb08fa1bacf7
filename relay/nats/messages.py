"""Single messages of a stream, looked up and deleted by JetStream's API: asked of the leader, who knows the last write.

A message is a dict as the API gives it: `seq`, `subject`, `time` (RFC 3339), and `data` and `hdrs` in base64, where
there are any.
"""

from collections.abc import Mapping
from typing import Any, Final

from relay.contract.errors import JetStreamError
from relay.contract.subjects import api_message_delete, api_message_get
from relay.nats.connection import Requester, api_request
from relay.nats.err_codes import NO_MESSAGE, NOT_DELETED

_TIMEOUT_S: Final = 5.0


async def find_message(
    client: Requester, stream: str, request: Mapping[str, Any], *, timeout_s: float = _TIMEOUT_S
) -> dict[str, Any] | None:
    """The message that fits `request`; None if none does. Raises RelayError.

    `request` is {"seq": n}, {"last_by_subj": subject}, or {"next_by_subj": subject, "seq": n} for the first from n on.
    """
    try:
        return (await api_request(client, api_message_get(stream), request, timeout_s=timeout_s))["message"]
    except JetStreamError as error:
        if error.err_code == NO_MESSAGE:
            return None
        raise


async def get_message(client: Requester, stream: str, sequence: int) -> dict[str, Any] | None:
    """The message with a sequence; None if it is not there. Raises RelayError."""
    return await find_message(client, stream, {"seq": sequence})


async def delete_message(client: Requester, stream: str, sequence: int) -> bool:
    """Delete one message; False if it was not there any more. Raises RelayError."""
    # Erasing would overwrite the bytes on the disk, at the cost of a write of the whole block.
    try:
        await api_request(client, api_message_delete(stream), {"seq": sequence, "no_erase": True})
    except JetStreamError as error:
        if error.err_code not in NOT_DELETED or await get_message(client, stream, sequence) is not None:
            raise
        return False
    return True
