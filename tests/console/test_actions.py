"""What is said of a replay or purge: how far it is, how it ended, and what to do then."""

import datetime as dt
from types import SimpleNamespace

import pytest

from relay.console import actions
from relay.console.actions import Action, Actions
from relay.console.rights import Rights
from relay.contract.errors import RelayError
from relay.dead_letters.replay_all import ReplaySummary
from relay.dead_letters.selection import Selection

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


async def test_export_is_broken_off(monkeypatch):
    """A file that the browser did not take to its end says so, and nothing is removed; a second one may be whole."""

    async def lines(*_):
        yield b"1"
        yield b"2"

    monkeypatch.setattr(actions, "exported", lines)
    acting = Actions(SimpleNamespace(client=object(), rights=Rights(act=True)))
    export = acting.export_named(acting.prepare_export(Selection()))
    writing = acting.export(export)
    await anext(writing)
    assert (False, "") == (export.complete, export.error)
    await writing.aclose()
    assert (False, "it was broken off before its end; export again") == (export.complete, export.error)
    with pytest.raises(RelayError, match="not written to its end"):
        acting.purge(export)
    assert [b"1", b"2"] == [line async for line in acting.export(export)]
    assert (True, "") == (export.complete, export.error)
