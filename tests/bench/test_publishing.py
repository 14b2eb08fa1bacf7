"""bench.publishing: it measures both ways, and what it publishes is stored."""

import pytest

from bench import publishing
from relay.contract.subjects import STATUS_STREAM


@pytest.mark.usefixtures("provisioned")
async def test_measures_both(nats_server, nc, monkeypatch):
    """A small run has a figure of each kind for both, and stores each update."""
    monkeypatch.setattr(publishing, "JOBS", 32)
    monkeypatch.setattr(publishing, "ONE_BY_ONE", 3)
    figures = await publishing.measure(nats_server.url, 1)
    assert 8 == len(figures)
    assert all(value > 0 for values in figures.values() for value in values)
    stored = (await nc.jetstream().stream_info(STATUS_STREAM)).state.messages
    assert 2 * (2 * 32 * publishing.UPDATES + 2 * 3) == stored
