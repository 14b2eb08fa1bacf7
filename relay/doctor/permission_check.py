"""The check of the NATS permissions: what the relay's NATS user must be allowed to do."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from relay.contract.subjects import (
    ADVISORY_STREAM,
    CANARY_SUBJECT,
    DLQ_STREAM,
    LEASE_STREAM,
    LEASE_SUBJECTS,
    REPORT_SUBJECT,
    REQUEST_STREAM,
    STATUS_STREAM,
    advisory_subject,
    api_account_info,
    api_consumer_info,
    api_consumer_list,
    api_message_delete,
    api_message_get,
    api_pull,
    api_stream_info,
    api_stream_names,
    dlq_subject,
    history_subject,
    lane_consumer,
    lane_progress_subject,
    query_subject,
    worker_key,
)
from relay.doctor.findings import Finding, fail, ok, warn
from relay.nats.ack_subject import ack_of_nothing
from relay.nats.frames import FrameClient
from relay.nats.permissions import WRONG_STREAM, Permission, missing_permissions

PERMISSIONS: Final = "permissions"
_NOBODY: Final = "relay-doctor"
"""Stands for a job's UUID or a worker's id."""


LONGER_ACKS: Final = Permission(ack_of_nothing(STATUS_STREAM, lane_consumer(0), f"_.{_NOBODY}"), body=b"+WPI")
"""To acknowledge if nats-server uses the longer form of ACK subjects."""


def own_work() -> list[Permission]:
    """The permissions that only the relay needs: to acknowledge, dead-letter and hold leases."""
    return [
        Permission(CANARY_SUBJECT, body=b"", headers=WRONG_STREAM),
        Permission(ack_of_nothing(STATUS_STREAM, lane_consumer(0)), body=b"+WPI"),
        Permission(dlq_subject(_NOBODY), body=b"", headers=WRONG_STREAM),
        Permission(LEASE_SUBJECTS.removesuffix(">") + worker_key(_NOBODY), body=b"", headers=WRONG_STREAM),
    ]


def needs(on_wire: Callable[[str], str] = str) -> list[Permission]:
    """The permissions that `relay serve` needs, as far as they can be tried without effect.

    `on_wire` says where a subject of JetStream is reached.

    `job.request.*`, `job.cheated.*` and `job.relayed.*` are left out, because their subscribers would notice.
    """
    consumer = lane_consumer(0)
    streams = (STATUS_STREAM, DLQ_STREAM, ADVISORY_STREAM, REQUEST_STREAM, LEASE_STREAM)
    requests = (
        api_account_info(),
        api_stream_names(),
        *map(api_stream_info, streams),
        api_consumer_list(STATUS_STREAM),
        api_consumer_info(STATUS_STREAM, consumer),
        api_pull(STATUS_STREAM, consumer),
        *map(api_message_get, (STATUS_STREAM, DLQ_STREAM, ADVISORY_STREAM, LEASE_STREAM)),
        api_message_delete(ADVISORY_STREAM),
        lane_progress_subject(0),
    )
    heard = (
        *dict.fromkeys((LEASE_SUBJECTS, on_wire(LEASE_SUBJECTS))),
        *(advisory_subject(consumer), REPORT_SUBJECT, lane_progress_subject(0)),
        *(query_subject(_NOBODY), history_subject(_NOBODY)),
    )
    sent = [*map(Permission, requests), *own_work(), LONGER_ACKS]
    return [
        *(replace(each, subject=on_wire(each.subject)) for each in sent),
        *(Permission(subject, subscribe=True) for subject in heard),
    ]


async def check_permissions(client: FrameClient) -> Finding:
    """Try all permissions in `needs`. Raises nats.errors.Error if the connection is lost."""
    wanted = needs(client.on_wire)
    missing = await missing_permissions(client, wanted)
    if not missing:
        return ok(PERMISSIONS, f"this NATS user may do all that was tried ({len(wanted)} things)")
    if missing == [LONGER_ACKS]:
        found = f"this NATS user may not {LONGER_ACKS}"
        remedy = (
            "permit $JS.ACK.*.*.JOB_STATUS.> before nats-server's feature flag js_ack_fc_v2 is set: it acknowledges so"
        )
        return warn(PERMISSIONS, found, remedy)
    if {client.on_wire(each.subject) for each in own_work()} <= {each.subject for each in missing}:
        found = "this NATS user may neither acknowledge, dead-letter nor hold leases, so it is not the relay's"
        return warn(PERMISSIONS, found, "to check those of the relay, give its credentials (RELAY_NATS_*)")
    listed = "; ".join(map(str, missing))
    remedy = "permit it in the configuration of nats-server, or use the relay's own credentials (RELAY_NATS_*)"
    return fail(PERMISSIONS, f"this NATS user may not: {listed}", remedy)
