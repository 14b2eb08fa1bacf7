"""Publishing updates so that none is lost: a publish counts once the stream's PubAck is here."""

import hashlib
import json
from typing import Final

from nats.aio.client import Client

from relay.broker.connection import PubAck, publish_confirmed
from relay.model import JobStatusUpdate
from relay.subjects import MSG_ID_HEADER, status_subject

PUBLISH_TIMEOUT_S: Final = 5.0
_ID_BYTES: Final = 16


def message_id(update: JobStatusUpdate) -> str:
    """The `Nats-Msg-Id` of an update: 32 hexadecimal digits, the same for the same job, status and metadata.

    However the metadata was spelled: neither the order of keys nor optional members left out make a difference.
    """
    content = update.model_dump(mode="json", include={"uuid", "status", "metadata"})
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=_ID_BYTES).hexdigest()


async def publish_update(client: Client, update: JobStatusUpdate, *, timeout_s: float = PUBLISH_TIMEOUT_S) -> PubAck:
    """Publish one update and wait until JetStream has stored it.

    Publish a job's next update only after that, or they may be stored in the wrong order. Raises PublishUnconfirmed
    if it may or may not be stored: publish it again, it is stored once. JetStreamError if the server refuses it.
    """
    return await publish_body(client, update.uuid, update.to_json(), message_id=message_id(update), timeout_s=timeout_s)


async def publish_body(
    client: Client, token: str, body: bytes, *, message_id: str | None, timeout_s: float = PUBLISH_TIMEOUT_S
) -> PubAck:
    """Publish `body`, whatever it is, as an update of job `token`, and wait until JetStream has stored it.

    With a `message_id` it is stored once, however often it is published within the stream's duplicate window; with
    None it is stored each time. Raises as `publish_update` does.
    """
    headers = None if message_id is None else {MSG_ID_HEADER: message_id}
    return await publish_confirmed(client, status_subject(token), body, headers, timeout_s=timeout_s)
