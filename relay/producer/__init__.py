"""What job runners import: publishing updates so that none is lost. An update counts as published with its PubAck.

    from relay.producer import JobStatus, JobStatusUpdate, StatusPublisher

    async with StatusPublisher("nats://127.0.0.1:4222") as publisher:
        await publisher.publish(JobStatusUpdate(uuid=job, status=JobStatus.ACCEPTED))

This does not import the relay's server parts. Every error is a `RelayError`.

Nor does it import pydantic, which takes longer to import than all else: that is imported with the first model or
publisher. So what is imported here must name models and settings for type checkers only.
"""

from typing import TYPE_CHECKING, Any

from relay.contract.errors import ConfigurationError, JetStreamError, PublishUnconfirmed, RelayError
from relay.nats.jetstream import PubAck
from relay.producer.confirmed import message_id, publish_body, publish_update
from relay.producer.errors import (
    FlushIncomplete,
    InvalidUpdate,
    NotInEventLoop,
    NotReady,
    PublisherClosed,
    PublisherFull,
    PublishHeldBack,
    PublishRefused,
    PublishTimedOut,
    UpdateTooLarge,
)
from relay.producer.options import Credentials, Limits, OnError, OnTooLarge
from relay.producer.publisher import StatusPublisher
from relay.producer.sync_publisher import SyncStatusPublisher

if TYPE_CHECKING:
    from relay.contract.model import (
        FailureReason,
        FailureStage,
        HordeFailureDetails,
        JobFailureDetails,
        JobParticipant,
        JobRejectionDetails,
        JobStatus,
        JobStatusMetadata,
        JobStatusUpdate,
        MinerResponse,
        RejectionReason,
        StreamingDetails,
    )
    from relay.producer.channel_layer import update_of

__all__ = [
    "ConfigurationError",
    "Credentials",
    "FailureReason",
    "FailureStage",
    "FlushIncomplete",
    "HordeFailureDetails",
    "InvalidUpdate",
    "JetStreamError",
    "JobFailureDetails",
    "JobParticipant",
    "JobRejectionDetails",
    "JobStatus",
    "JobStatusMetadata",
    "JobStatusUpdate",
    "Limits",
    "MinerResponse",
    "NotInEventLoop",
    "NotReady",
    "OnError",
    "OnTooLarge",
    "PubAck",
    "PublishHeldBack",
    "PublishRefused",
    "PublishTimedOut",
    "PublishUnconfirmed",
    "PublisherClosed",
    "PublisherFull",
    "RejectionReason",
    "RelayError",
    "StatusPublisher",
    "StreamingDetails",
    "SyncStatusPublisher",
    "UpdateTooLarge",
    "message_id",
    "publish_body",
    "publish_update",
    "update_of",
]


def __getattr__(name: str) -> Any:
    """A name of `__all__` that needs pydantic."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from relay.contract import model  # noqa: PLC0415
    from relay.producer import channel_layer  # noqa: PLC0415

    found = channel_layer.update_of if name == "update_of" else getattr(model, name)
    globals()[name] = found  # so that this is called once for each
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
