"""What job runners import: publishing updates so that none is lost. An update counts as published with its PubAck.

    from relay.producer import JobStatus, JobStatusUpdate, StatusPublisher

    async with StatusPublisher("nats://127.0.0.1:4222") as publisher:
        await publisher.publish(JobStatusUpdate(uuid=job, status=JobStatus.ACCEPTED))

This does not import the relay's server parts. Every error is a `RelayError`.
"""

from relay.contract.errors import RelayError
from relay.contract.model import JobStatus, JobStatusMetadata, JobStatusUpdate
from relay.nats.connection import PubAck
from relay.producer.confirmed import message_id, publish_body, publish_update, update_of
from relay.producer.errors import (
    PublisherClosed,
    PublisherFull,
    PublishHeldBack,
    PublishRefused,
    PublishTimedOut,
    UpdateTooLarge,
)
from relay.producer.options import Credentials, Limits
from relay.producer.publisher import StatusPublisher
from relay.producer.sync_publisher import SyncStatusPublisher

__all__ = [
    "Credentials",
    "JobStatus",
    "JobStatusMetadata",
    "JobStatusUpdate",
    "Limits",
    "PubAck",
    "PublishHeldBack",
    "PublishRefused",
    "PublishTimedOut",
    "PublisherClosed",
    "PublisherFull",
    "RelayError",
    "StatusPublisher",
    "SyncStatusPublisher",
    "UpdateTooLarge",
    "message_id",
    "publish_body",
    "publish_update",
    "update_of",
]
