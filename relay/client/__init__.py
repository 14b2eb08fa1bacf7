"""What services import that ask for the status of jobs, and programs that take job requests.

    from relay.client import StatusClient

    async with StatusClient("nats://127.0.0.1:4222") as client:
        update = await client.status(job)

This does not import the relay's server parts. Every error is a `RelayError`.
"""

from relay.client.errors import (
    AnswerUnavailable,
    ClientClosed,
    InvalidQuery,
    NoAnswer,
    NoRelayRunning,
    QueryFailed,
    RelayFault,
    RequestsUnavailable,
    RequestUnsettled,
    TooManyQueries,
    UnknownJob,
    WaitTimedOut,
)
from relay.client.job_requests import Deliver, JobRequests
from relay.client.pushes import JobRequest, RequestSignature, V0JobCheated, V2JobRequest
from relay.client.status_client import StatusClient
from relay.client.sync_status_client import SyncStatusClient
from relay.contract.errors import ConfigurationError, RelayError
from relay.contract.model import JobStatus
from relay.core.receipt import Receipt
from relay.core.verdict import Outcome
from relay.producer.options import Credentials
from relay.query.replies import UpdateProgress, UpdateReply

__all__ = [
    "AnswerUnavailable",
    "ClientClosed",
    "ConfigurationError",
    "Credentials",
    "Deliver",
    "InvalidQuery",
    "JobRequest",
    "JobRequests",
    "JobStatus",
    "NoAnswer",
    "NoRelayRunning",
    "Outcome",
    "QueryFailed",
    "Receipt",
    "RelayError",
    "RelayFault",
    "RequestSignature",
    "RequestUnsettled",
    "RequestsUnavailable",
    "StatusClient",
    "SyncStatusClient",
    "TooManyQueries",
    "UnknownJob",
    "UpdateProgress",
    "UpdateReply",
    "V0JobCheated",
    "V2JobRequest",
    "WaitTimedOut",
]
