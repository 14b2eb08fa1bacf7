"""Looking for an earlier update with the same status, while others change the streams."""

from types import SimpleNamespace

import pytest
from relay_kit import new_job, update

from relay.contract.subjects import DLQ_STREAM
from relay.nats.messages import StoredMessage
from relay.path import earlier_updates
from relay.path.earlier_updates import EarlierUpdates

JOB = new_job()
EARLIER = StoredMessage(subject=f"job.status.0.{JOB}", sequence=1, time="2026-01-01T00:00:00Z", body=update(JOB))


@pytest.mark.parametrize("still_there", [True, False])
async def test_removed_meanwhile(monkeypatch, still_there):
    """An update that was removed with its dead letter, after it was read, does not count as one that is stored."""

    async def find_message(_client, stream, request, **_):
        if stream == DLQ_STREAM or ("seq" in request and "next_by_subj" not in request and not still_there):
            return None
        return EARLIER

    monkeypatch.setattr(earlier_updates, "find_message", find_message)
    lane = SimpleNamespace(outcome_of=lambda _: None)
    later = SimpleNamespace(job=JOB, sequence=2, status="accepted", lane=lane)
    assert still_there is await EarlierUpdates(None).hold_equal(later)
