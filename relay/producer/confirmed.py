"""Publishing once and waiting for the PubAck; making message ids."""

import hashlib
import json
from typing import TYPE_CHECKING, Final

from nats.aio.client import Client

from relay.contract.subjects import MSG_ID_HEADER, status_subject
from relay.nats.jetstream import PubAck, publish_confirmed
from relay.nats.nats_py import cancellable

if TYPE_CHECKING:  # see __init__.py
    from relay.contract.model import JobStatusUpdate

PUBLISH_TIMEOUT_S: Final = 5.0
_ID_BYTES: Final = 16


def message_id(update: "JobStatusUpdate") -> str:
    """The `Nats-Msg-Id` of an update: 32 hexadecimal digits, the same for the same job, status and metadata.

    Differences in writing the metadata do not matter: the order of its keys, and whether optional members are left out
    or null.
    """
    content = update.model_dump(mode="json", include={"uuid", "status", "metadata"})
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=_ID_BYTES).hexdigest()


async def publish_update(client: Client, update: "JobStatusUpdate", *, timeout_s: float = PUBLISH_TIMEOUT_S) -> PubAck:
    """Publish one update once, over the caller's own connection, and wait until JetStream has stored it.

    Call it for a job's next update only after it has returned; otherwise they may be stored in the wrong order. If
    cancelled, the update may or may not be stored.

    Raises PublishUnconfirmed, after `timeout_s` seconds at most, if the update may or may not be stored. Then publish
    it again: it is stored only once. Raises JetStreamError if the server refuses the update.
    """
    return await publish_body(client, update.uuid, update.to_json(), message_id=message_id(update), timeout_s=timeout_s)


async def publish_body(
    client: Client, token: str, body: bytes, *, message_id: str | None, timeout_s: float = PUBLISH_TIMEOUT_S
) -> PubAck:
    """Publish any bytes as an update of the job `token`, and wait until JetStream has stored them.

    With a `message_id` the body is stored once, however often it is published within the stream's duplicate window of
    2 minutes. With None it is stored each time. For cancellation and errors see `publish_update`.
    """
    headers = None if message_id is None else {MSG_ID_HEADER: message_id}
    with cancellable():  # the caller's client may be nats-py's own
        return await publish_confirmed(client, status_subject(token), body, headers, timeout_s=timeout_s)


def name_of(update: "JobStatusUpdate") -> str:
    """What errors and log lines call an update: `completed of job <uuid>`."""
    return f"{update.status} of job {update.uuid}"
