"""Every name on the wire: streams, subjects, consumers, headers, buckets, with functions that build and parse them.

Users type these names into `nats sub` and build dashboards on them, so they change only with a new major version.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

STATUS_STREAM: Final = "JOB_STATUS"
DLQ_STREAM: Final = "JOB_DLQ"
ADVISORY_STREAM: Final = "JOB_ADVISORIES"
REQUEST_STREAM: Final = "JOB_REQUESTS"
LEASE_BUCKET: Final = "RELAY_LEASES"
LEASE_STREAM: Final = f"KV_{LEASE_BUCKET}"
"""The stream behind the bucket, as NATS names it."""

STATUS_SUBJECTS: Final = "job.status.*"
"""What producers publish on, and what STATUS_STREAM captures."""
CANARY_SUBJECT: Final = "relay.canary"
"""Where workers publish a message without a body, to see whether STATUS_STREAM stores anything. It is in no lane."""
DLQ_SUBJECTS: Final = "job.dlq.*"
REQUEST_SUBJECTS: Final = ("job.request.*", "job.cheated.*")
QUERY_SUBJECTS: Final = "job.query.*"
"""Where STATUS_SERVICE answers with a job's latest status."""
HISTORY_SUBJECTS: Final = "job.history.*"
RECEIPT_SUBJECTS: Final = "job.relayed.*"
"""Where STATUS_SERVICE answers with all updates of a job."""
REPORT_SUBJECT: Final = "relay.report"
"""Where every worker answers with its Report; see report.py."""
STATUS_SERVICE: Final = "job-status"
"""The NATS micro service of the workers, and the queue group that shares out its requests."""
LEASE_SUBJECTS: Final = f"$KV.{LEASE_BUCKET}.>"
LANE_CONSUMER_PREFIX: Final = "relay-lane-"
ADVISORY_SUBJECTS: Final = f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{STATUS_STREAM}.*"
API: Final = "$JS.API"
"""The prefix of JetStream's API, unless it is in another domain or account; see `on_api`."""
_KV: Final = "$KV."
DLQ_METADATA_KEY: Final = "relay.dlq-subject"
"""Key in a lane consumer's metadata that names where its dead letters go."""

MARKER_HEADERS: Final = ("Nats-Marker-Reason", "KV-Operation")
"""On a message without a body: it stands for messages that are gone. The server or a key-value client stores it."""
MSG_ID_HEADER: Final = "Nats-Msg-Id"
REASON_HEADER: Final = "Relay-Reason"
ERROR_HEADER: Final = "Relay-Error"
ATTEMPTS_HEADER: Final = "Relay-Attempts"
SOURCE_SUBJECT_HEADER: Final = "Relay-Source-Subject"
SOURCE_SEQUENCE_HEADER: Final = "Relay-Source-Sequence"
SOURCE_STORED_AT_HEADER: Final = "Relay-Source-Stored-At"
"""When STATUS_STREAM stored the update, exactly: sequence and time together name one update for ever."""
FAILED_AT_HEADER: Final = "Relay-Failed-At"
REPLAYED_FROM_HEADER: Final = "Relay-Replayed-From"
"""On an update that was replayed: the sequence of its dead letter in DLQ_STREAM."""
HISTORY_HEADER: Final = "Relay-History"
"""On a replayed update: its earlier failures, oldest first; see `StoredDeadLetter.history`."""
FLOOR_HEADER: Final = "Relay-Floor"
"""On the lease of a lane: up to which sequence its updates are settled, and when STATUS_STREAM was made."""
ORIGINAL_HEADER_PREFIX: Final = "Relay-Original-"
"""In a dead letter, the prefix for headers of the original update that the server would act on (`Nats-*`)."""

JOB_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
"""A UUID in the one spelling that is allowed in a subject: lower case, with hyphens.

The lane of a job is computed from the characters of the token. If two spellings were allowed, updates of one job could
travel in two lanes and overtake each other.
"""
_UNSAFE_IN_TOKEN: Final = re.compile(r"[^0-9A-Za-z_-]")
_FNV_OFFSET_32: Final = 0x811C9DC5
_FNV_PRIME_32: Final = 0x01000193
_MAX_TOKEN_CHARS: Final = 64


class Reason(StrEnum):
    """Why an update is in the dead-letter stream: the values of the `Relay-Reason` header.

    Each has its advice in dead_letters/runbook.py and its section in docs/dead-letters.md; tests fail without them.
    """

    INVALID_JSON = "invalid_json"
    INVALID_SCHEMA = "invalid_schema"
    UNKNOWN_STATUS = "unknown_status"
    INVALID_UUID = "invalid_uuid"
    UUID_MISMATCH = "uuid_mismatch"
    TOO_LARGE = "too_large"
    REFUSED = "refused"
    JOB_NOT_FOUND = "job_not_found"
    CONNECTION_DROPPED = "connection_dropped"
    UNEXPLAINED_DUPLICATE = "unexplained_duplicate"
    MAX_DELIVER = "max_deliver"
    NO_LANE = "no_lane"


def is_marker(headers: Mapping[str, str], body: bytes) -> bool:
    """Whether a message is no update, but stands for messages that are gone. One with a body never does."""
    return not body and any(name in headers for name in MARKER_HEADERS)


def is_job_uuid(token: str) -> bool:
    """Whether `token` is a UUID in the one spelling that is allowed in a subject: see JOB_UUID."""
    return JOB_UUID.fullmatch(token) is not None


def lane_of(token: str, lanes: int) -> int:
    """The lane, 0 to `lanes` - 1, that the server's `partition(lanes, 1)` gives the job `token`.

    FNV-1a, 32 bits, modulo the number of lanes: what nats-server does in its subject transforms.
    """
    digest = _FNV_OFFSET_32
    for byte in token.encode():
        digest = (digest ^ byte) * _FNV_PRIME_32 & 0xFFFFFFFF
    return digest % lanes


def status_subject(uuid: str) -> str:
    """Where a producer publishes the updates of job `uuid`."""
    return f"job.status.{uuid}"


def lane_transform(lanes: int) -> dict[str, str]:
    """The subject transform of STATUS_STREAM: it stores each job's updates under the job's lane."""
    return {"src": STATUS_SUBJECTS, "dest": f"job.status.{{{{partition({lanes},1)}}}}.{{{{wildcard(1)}}}}"}


def lanes_of_transform(transform: dict[str, str] | None) -> int | None:
    """How many lanes a stream's subject transform makes, or None if it is not the relay's."""
    match = re.fullmatch(r"job\.status\.\{\{partition\((\d+),1\)\}\}\..*", (transform or {}).get("dest", ""))
    return int(match[1]) if match else None


def lane_filter(lane: int) -> str:
    """The stored subjects of one lane."""
    return f"job.status.{lane}.*"


def lane_consumer(lane: int) -> str:
    """The durable consumer of one lane."""
    return f"{LANE_CONSUMER_PREFIX}{lane}"


def lane_of_consumer(name: str) -> int | None:
    """The lane of a consumer, or None if it is not the consumer of a lane."""
    digits = name.removeprefix(LANE_CONSUMER_PREFIX)
    return int(digits) if digits != name and digits.isascii() and digits.isdecimal() else None


def stored_subject(lane: int, uuid: str) -> str:
    """Where STATUS_STREAM keeps an update."""
    return f"job.status.{lane}.{uuid}"


def job_filter(token: str) -> str:
    """Every stored subject of one job, in any lane: the number of lanes may have changed."""
    return f"job.status.*.{token}"


def token_of_stored(subject: str) -> str:
    """The job token of a stored subject: a UUID, unless the producer made a mistake.

    The subject is `job.status.<lane>.<token>`; `job.status.<token>` if the stream had lost its transform.
    """
    return subject.rpartition(".")[2]


def lane_of_stored(subject: str) -> int:
    """The lane of a stored subject `job.status.<lane>.<token>`, which the server's transform has written."""
    return int(subject.split(".", 3)[2])


def published_subject(stored: str) -> str:
    """The subject on which the producer published the update that is stored under `stored`; a replay uses it again."""
    return status_subject(token_of_stored(stored))


def safe_token(token: str) -> str:
    """`token` with `_` for each character that could break a subject, cut to 64 characters. A UUID is not changed."""
    return _UNSAFE_IN_TOKEN.sub("_", token)[:_MAX_TOKEN_CHARS] or "_"


def dlq_subject(token: str) -> str:
    """Where the dead letters of job `token` go."""
    return f"job.dlq.{safe_token(token)}"


def dlq_msg_id(stream: str, sequence: int) -> str:
    """The `Nats-Msg-Id` of a dead letter: the same at each try to write it, so that the server stores it once."""
    return f"{stream}:{sequence}"


def lane_key(lane: int) -> str:
    """The key in LEASE_BUCKET that names the owner of a lane."""
    return f"lane.{lane}"


def worker_key(worker: str) -> str:
    """The key in LEASE_BUCKET that says that a worker is alive."""
    return f"worker.{worker}"


def request_subject(token: str) -> str:
    """Where a job request that the Facilitator pushed is published."""
    return f"job.request.{safe_token(token)}"


def cheated_subject(token: str) -> str:
    """Where a report of a cheated job that the Facilitator pushed is published."""
    return f"job.cheated.{safe_token(token)}"


def receipt_subject(token: str) -> str:
    """Where the receipt of a settled update is published (core NATS; no stream stores it)."""
    return f"job.relayed.{safe_token(token)}"


def query_subject(uuid: str) -> str:
    """Where to ask for the latest status of job `uuid`."""
    return f"job.query.{uuid}"


def history_subject(uuid: str) -> str:
    """Where to ask for all updates of job `uuid`."""
    return f"job.history.{uuid}"


def lane_progress_subject(lane: int) -> str:
    """Where the worker that drives a lane tells other workers how far a job's updates have got."""
    return f"relay.lane.{lane}"


def advisory_subject(consumer: str) -> str:
    """Where the server reports updates that `consumer` delivered `max_deliver` times."""
    return f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{STATUS_STREAM}.{consumer}"


# --- JetStream's API: every request subject is built here, with the prefix API; `on_api` gives it another one


def on_api(prefix: str, subject: str) -> str:
    """Where to send what goes to `subject` if the streams are reached through JetStream's API under `prefix`.

    Requests to the API have `prefix` instead of their own. Keys of key-value buckets have it before them, as with all
    NATS clients, because a leaf node passes on nothing else of them. Other subjects are not changed.
    """
    if subject.startswith(f"{API}."):
        return prefix + subject.removeprefix(API)
    return f"{prefix}.{subject}" if subject.startswith(_KV) and prefix != API else subject


def domain_api(domain: str) -> str:
    """The prefix of JetStream's API in a domain."""
    return f"$JS.{domain}.API"


def api_account_info() -> str:
    return f"{API}.INFO"


def api_stream_names() -> str:
    return f"{API}.STREAM.NAMES"


def api_stream_info(stream: str) -> str:
    return f"{API}.STREAM.INFO.{stream}"


def api_stream_create(stream: str) -> str:
    return f"{API}.STREAM.CREATE.{stream}"


def api_stream_update(stream: str) -> str:
    return f"{API}.STREAM.UPDATE.{stream}"


def api_stream_stepdown(stream: str) -> str:
    """Where the leader of a stream is told to let another server lead."""
    return f"{API}.STREAM.LEADER.STEPDOWN.{stream}"


def api_message_get(stream: str) -> str:
    """Answered by the stream's leader, so it reads what was just written."""
    return f"{API}.STREAM.MSG.GET.{stream}"


def api_message_delete(stream: str) -> str:
    return f"{API}.STREAM.MSG.DELETE.{stream}"


def api_stream_purge(stream: str) -> str:
    return f"{API}.STREAM.PURGE.{stream}"


def api_consumer_list(stream: str) -> str:
    return f"{API}.CONSUMER.LIST.{stream}"


def api_consumer_info(stream: str, consumer: str) -> str:
    return f"{API}.CONSUMER.INFO.{stream}.{consumer}"


def api_consumer_create(stream: str, consumer: str, subject: str) -> str:
    return f"{API}.CONSUMER.CREATE.{stream}.{consumer}.{subject}"


def api_durable_create(stream: str, durable: str) -> str:
    """Where a durable without a filter of subjects is made."""
    return f"{API}.CONSUMER.CREATE.{stream}.{durable}"


def api_consumer_pause(stream: str, consumer: str) -> str:
    """Without a body it ends a pause."""
    return f"{API}.CONSUMER.PAUSE.{stream}.{consumer}"


def api_consumer_delete(stream: str, consumer: str) -> str:
    return f"{API}.CONSUMER.DELETE.{stream}.{consumer}"


def api_pull(stream: str, consumer: str) -> str:
    return f"{API}.CONSUMER.MSG.NEXT.{stream}.{consumer}"


def api_consumer_stepdown(stream: str, consumer: str) -> str:
    """Where the leader of a consumer is told to let another server lead."""
    return f"{API}.CONSUMER.LEADER.STEPDOWN.{stream}.{consumer}"
