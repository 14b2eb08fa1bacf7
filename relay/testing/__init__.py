"""What programs import whose tests publish, or ask for statuses: stand-ins, and a real relay.

    publisher = FakeSyncStatusPublisher()
    finish_job(publisher, job)
    assert [JobStatus.COMPLETED] == [update.status for update in publisher.published]

With `pytest_plugins = ["relay.testing.plugin"]` in a conftest.py, the fixture `running_relay` is a real nats-server
with a relay and a simulated Facilitator. It needs the extra `testing`; the stand-ins need nothing.
"""

from relay.testing.fake_client import FakeStatusClient
from relay.testing.fake_publisher import FakeStatusPublisher, FakeSyncStatusPublisher

__all__ = ["FakeStatusClient", "FakeStatusPublisher", "FakeSyncStatusPublisher"]
