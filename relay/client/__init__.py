"""What services import that ask for the status of jobs.

    from relay.client import StatusClient

    async with StatusClient("nats://127.0.0.1:4222") as client:
        update = await client.status(job)

This does not import the relay's server parts. Every error is a `RelayError`.
"""

from relay.client.errors import (
    AnswerUnavailable,
    InvalidQuery,
    NoAnswer,
    NoRelayRunning,
    QueryFailed,
    RelayFault,
    TooManyQueries,
    UnknownJob,
    WaitTimedOut,
)
from relay.client.status_client import StatusClient
from relay.contract.errors import ConfigurationError, RelayError
from relay.core.receipt import Receipt
from relay.core.verdict import Outcome
from relay.producer.options import Credentials
from relay.query.replies import UpdateProgress, UpdateReply

__all__ = [
    "AnswerUnavailable",
    "ConfigurationError",
    "Credentials",
    "InvalidQuery",
    "NoAnswer",
    "NoRelayRunning",
    "Outcome",
    "QueryFailed",
    "Receipt",
    "RelayError",
    "RelayFault",
    "StatusClient",
    "TooManyQueries",
    "UnknownJob",
    "UpdateProgress",
    "UpdateReply",
    "WaitTimedOut",
]
