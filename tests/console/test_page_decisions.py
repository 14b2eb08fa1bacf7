"""What pages decide, without a browser."""

import datetime as dt
from types import SimpleNamespace

from history_kit import History
from snapshot_kit import snapshot

from relay.console.frame import Comeback
from relay.console.job_page import Following
from relay.console.letters_page import _row
from relay.dead_letters.pages import Row
from relay.dead_letters.stored import StoredDeadLetter
from relay.overview.watch import View

JOB = "00000000-0000-4000-8000-00000000000a"
AT = dt.datetime(2026, 11, 22, 3, 14, tzinfo=dt.UTC)
GOOD = View(AT, snapshot(), None)
AWAY = View(AT, None, None, "for 2 s now: away")


async def test_a_job_page_says_why_it_stands_still(nc):
    """Neither a bug nor the end of the job leaves a page without a word."""
    history = History(JOB)
    await history.start(nc)
    history.updates = [(1, "acknowledged", 1)]
    shown = []

    async def show(update) -> None:
        shown.append(update.sequence)

    async def fail(_) -> None:
        raise OverflowError("date value out of range")

    following = Following(nc, JOB, show)
    assert ("", "") == (following.problem, following.ended)
    await following.run()
    assert ([1], "") == (shown, following.problem)
    assert "follows it no longer" in following.ended
    broken = Following(nc, JOB, fail)
    await broken.run()
    assert "OverflowError('date value out of range')" in broken.problem
    assert "" == broken.ended


def test_a_page_loads_itself_again_after_an_outage():
    """Not if NATS was not away: what failed once would fail again, every few seconds in each tab."""
    watching = SimpleNamespace(client=object(), view=GOOD, number=0)
    comeback = Comeback(watching)

    def after(view: View) -> bool:
        watching.view, watching.number = view, watching.number + 1
        return comeback.look()

    assert [False, False, False, True] == [after(view) for view in (GOOD, GOOD, AWAY, GOOD)]
    watching.client = None
    comeback = Comeback(watching)
    assert not comeback.look()
    watching.client = object()
    assert not comeback.look()  # before the first view
    assert after(GOOD)


def test_rows_of_dead_letters_are_small():
    """However long the texts are that a producer sends, a page of dead letters is not."""
    letter = StoredDeadLetter(1, AT, dict.fromkeys(("Relay-Reason", "Relay-Error"), "x" * 60_000), b"")
    row = _row(Row(letter, "s" * 100_000, 2), "")
    assert max(len(str(value)) for value in row.values()) < 200
