"""The fixture for pytest: put `pytest_plugins = ["relay.testing.plugin"]` into a conftest.py."""

from collections.abc import Generator

import pytest

from relay.testing.running_relay import RunningRelay


@pytest.fixture(scope="session")
def running_relay() -> Generator[RunningRelay]:
    """A real nats-server, relay and simulated Facilitator for all tests of the session. Use new jobs in each test."""
    with RunningRelay() as running:
        yield running
