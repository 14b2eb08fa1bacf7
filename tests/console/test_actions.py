"""What is said of a replay or purge: how far it is, how it ended, and what to do then."""

import datetime as dt

import pytest

from relay.console.actions import Action
from relay.dead_letters.replay_all import ReplaySummary

AT = dt.datetime(2026, 11, 22, 3, 14, tzinfo=dt.UTC)
LEFT = "some of the 5,000 may be removed, the others are kept: export and purge what is left"
SUMMARY = ReplaySummary(replayed=1200, already_stored=2, problems=1)


@pytest.mark.parametrize(
    ("action", "headline", "progress"),
    [
        (Action("purge", 5000), "Purge under way", "removing 5,000"),
        (
            Action("purge", 5000, removed=4999, ended_at=AT),
            "Purge done at 2026-11-22 03:14:00 UTC",
            "removed 4,999 of 5,000",
        ),
        (Action("purge", 5000, stopped=True, ended_at=AT), "Purge stopped at 2026-11-22 03:14:00 UTC", LEFT),
        (Action("purge", 5000, error="away", ended_at=AT), "Purge failed at 2026-11-22 03:14:00 UTC", f"away; {LEFT}"),
        (
            Action("replay", 5000, summary=SUMMARY),
            "Replay under way",
            "replayed 1,200 of 5,000, 2 had been replayed before, 1 cannot be replayed and are kept",
        ),
        (
            Action("replay", 5, summary=ReplaySummary(replayed=2), error="away", ended_at=AT),
            "Replay failed at 2026-11-22 03:14:00 UTC",
            "replayed 2 of 5. away. When that is mended, begin again: nothing is lost, and nothing is sent twice",
        ),
    ],
)
def test_told(action, headline, progress):
    """It says of no update more than is known: an interrupted purge does not know what it has removed."""
    assert (headline, progress) == (action.headline, action.progress)
