"""Changing the number of lanes of a status stream that is in use."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from time import monotonic
from typing import Any, Final
from uuid import uuid4

import nats.errors

from relay.contract import subjects
from relay.contract.errors import JetStreamError, PublishUnconfirmed, UnsafeChange
from relay.nats.err_codes import CONSUMER_EXISTS, WRONG_LAST_SEQUENCE
from relay.nats.jetstream import Requester, api_request, publish_confirmed
from relay.topology.plan import LaneChange

_LOCK_CONSUMER: Final = "relay-changing-lanes"
_LOCK_EXPIRES_NS: Final = 10_000_000_000
_KNOWN_WITHIN_S: Final = 2.0
_AGAIN_AFTER_S: Final = 0.02
_CLOSED_SUBJECT: Final = "job.status-closed.for-lane-change"


@contextlib.asynccontextmanager
async def intake_closed(client: Requester, change: LaneChange) -> AsyncGenerator[None]:
    """Stop the stream's intake for a block, in which every stored update is settled. The block updates the stream.

    Without this, an update in its job's old lane could be overtaken by a later one in the new lane. The plan was made
    when everything up to `change.last_sequence` was settled. So it is enough to stop the intake, and to check that
    nothing came after that sequence. For these few milliseconds no stream captures `job.status.*`: producers get an
    error and publish again. The block's update starts the intake again. If the block fails, it is started here; if this
    process is killed, the next provisioning starts it.

    Raises UnsafeChange if an update came after the plan was made, or if somebody else changes the lanes; and as
    `api_request` does. If cancelled, it still starts the intake again.
    """
    await _lock(client, change)
    try:
        config = (await api_request(client, subjects.api_stream_info(subjects.STATUS_STREAM)))["config"]
        if subjects.lanes_of_transform(config["subject_transform"]) != change.old:
            raise UnsafeChange([f"{change}: somebody else has changed the lanes meanwhile; try again"])
        update = subjects.api_stream_update(subjects.STATUS_STREAM)
        await api_request(client, update, config | {"subjects": [_CLOSED_SUBJECT]})
        try:
            await _require_last_sequence(client, change)
            yield
        except BaseException:
            await api_request(client, update, config)
            raise
    finally:
        await api_request(client, subjects.api_consumer_delete(subjects.STATUS_STREAM, _LOCK_CONSUMER))


async def _lock(client: Requester, change: LaneChange) -> None:
    # Without a lock, two processes could undo each other's change and let updates in meanwhile. The lock is a consumer:
    # the server refuses to create another one with the same name and a different configuration. It expires by itself if
    # this process is killed.
    lock: dict[str, Any] = {
        "name": _LOCK_CONSUMER,
        "filter_subject": _CLOSED_SUBJECT,
        "ack_policy": "none",
        "deliver_policy": "new",
        "mem_storage": True,
        "inactive_threshold": _LOCK_EXPIRES_NS,
        "metadata": {"relay.provisioning": uuid4().hex},
    }
    request = subjects.api_consumer_create(subjects.STATUS_STREAM, _LOCK_CONSUMER, _CLOSED_SUBJECT)
    try:
        await api_request(client, request, {"stream_name": subjects.STATUS_STREAM, "config": lock, "action": "create"})
    except JetStreamError as error:
        if error.err_code != CONSUMER_EXISTS:
            raise
        raise UnsafeChange([f"{change}: somebody else is changing the lanes at this moment; try again"]) from error


async def _require_last_sequence(client: Requester, change: LaneChange) -> None:
    # The server processes this publish after every update that is on its way into the stream. It is stored, in no lane:
    # a condition that is checked only when it is stored, such as Nats-Expected-Last-Msg-Id, ends every copy of a
    # replicated stream with a "critical write error", and the stream takes nothing more.
    condition = {"Nats-Expected-Last-Sequence": str(change.last_sequence)}
    give_up_s = monotonic() + _KNOWN_WITHIN_S
    while True:
        try:
            await publish_confirmed(client, _CLOSED_SUBJECT, b"", condition)
        except JetStreamError as error:
            if error.err_code != WRONG_LAST_SEQUENCE:
                raise
            raise UnsafeChange([f"{change}: an update arrived meanwhile; relay it and try again"]) from error
        except PublishUnconfirmed as error:
            # The servers of a cluster tell each other which subjects there are; ours may not have heard of this one.
            if not isinstance(error.__cause__, nats.errors.NoRespondersError) or monotonic() > give_up_s:
                raise
            await asyncio.sleep(_AGAIN_AFTER_S)
        else:
            return
