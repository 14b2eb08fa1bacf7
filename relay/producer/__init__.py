"""What job runners import: publishing updates so that none is lost. An update counts as published with its PubAck.

    from relay.producer import JobStatus, JobStatusUpdate, StatusPublisher

    async with StatusPublisher("nats://127.0.0.1:4222") as publisher:
        await publisher.publish(JobStatusUpdate(uuid=job, status=JobStatus.ACCEPTED))

This does not import the relay's server parts. Every error is a `RelayError`.
"""

from relay.contract.errors import ConfigurationError, JetStreamError, PublishUnconfirmed, RelayError
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
from relay.nats.connection import PubAck
from relay.producer.confirmed import message_id, publish_body, publish_update, update_of
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
