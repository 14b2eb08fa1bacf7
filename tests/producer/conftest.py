"""A publisher with a real stream, and one whose answers the test sends."""

from collections.abc import AsyncIterator

import pytest
from producer_kit import PlayedStream

from relay.producer import StatusPublisher


@pytest.fixture
async def publisher(provisioned) -> AsyncIterator[StatusPublisher]:
    """A publisher whose updates JOB_STATUS stores."""
    async with StatusPublisher(provisioned.connected_url.geturl()) as publisher:
        yield publisher


@pytest.fixture
async def played(nats_server, nc) -> AsyncIterator[PlayedStream]:
    """A stream whose answers the test sends, and its publisher."""
    async with StatusPublisher(nats_server.url) as publisher:
        yield await PlayedStream(publisher).listen(nc)
