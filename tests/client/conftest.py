import pytest
from relay_kit import Scene

from relay.local.facilitator import FacilitatorSimulator


@pytest.fixture
async def scene(nats_server):
    """A provisioned NATS and a simulated Facilitator."""
    async with FacilitatorSimulator() as facilitator, Scene(nats_server, facilitator) as scene:
        yield scene
