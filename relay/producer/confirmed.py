"""One publish with its PubAck, and what is published: bodies, headers, message ids."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from nats.aio.client import Client
from pydantic_core import to_json

from relay.contract.model import JobStatusUpdate
from relay.contract.subjects import MSG_ID_HEADER, status_subject
from relay.nats.connection import PubAck, publish_confirmed

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
    """Publish one update, once, over a connection of your own, and wait until JetStream has stored it.

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


def update_of(message: Mapping[str, Any]) -> JobStatusUpdate:
    """The update in a message of the channel layer: `{"type": "job_status_update", "payload": {...}}`, or a bare one.

    Raises pydantic.ValidationError, which names each field that is wrong.
    """
    payload = message.get("payload", message) if message.get("type") == "job_status_update" else message
    return JobStatusUpdate.model_validate_json(to_json(payload))


@dataclass(frozen=True, slots=True)
class Parcel:
    """An update ready to be published. `name` is how errors call it."""

    name: str
    job: str
    subject: str
    body: bytes
    headers: dict[str, str]

    @property
    def size(self) -> int:
        """Bytes of the body; headers are small and alike."""
        return len(self.body)


def pack(update: JobStatusUpdate, headers: Mapping[str, str]) -> Parcel:
    """The parcel of `update`, with further `headers`."""
    return Parcel(
        name=f"{update.status} of job {update.uuid}",
        job=update.uuid,
        subject=status_subject(update.uuid),
        body=update.to_json(),
        headers={MSG_ID_HEADER: message_id(update), **headers},
    )
