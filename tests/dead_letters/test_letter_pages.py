"""Dead letters page by page, and what a replay would do."""

import datetime as dt
from dataclasses import replace
from itertools import pairwise

import pytest
from dead_letter_kit import JOB, OTHER, Dlq

from relay.contract.subjects import Reason
from relay.dead_letters import pages, stream
from relay.dead_letters.pages import newest_first
from relay.dead_letters.rehearsal import Rehearser
from relay.dead_letters.selection import Selection


async def all_pages(dlq: Dlq, selection: Selection, **options) -> list[int]:
    """The sequences of all pages, one after another."""
    found: list[int] = []
    below = None
    while True:
        page = await newest_first(dlq.client, selection, below, size=3, **options)
        found += [row.letter.sequence for row in page.rows]
        if (below := page.below) is None:
            return found


@pytest.mark.parametrize("scan", [True, False])
async def test_newest_first(dlq, monkeypatch, scan):
    """All that are selected come once, newest first, over gaps, in windows of any size, with and without a consumer."""
    monkeypatch.setattr(pages, "_FIRST_WINDOW", 2)
    for number in range(10):
        await dlq.write(JOB if number % 2 else OTHER, reason=Reason.REFUSED if number < 8 else Reason.TOO_LARGE)
    for sequence in (1, 5, 6):
        assert await stream.remove(dlq.client, sequence)
    everything = await all_pages(dlq, Selection(), scan=scan)
    assert [10, 9, 8, 7, 4, 3, 2] == everything
    assert [10, 8, 4, 2] == await all_pages(dlq, Selection(job=JOB), scan=scan)
    assert [10, 9] == await all_pages(dlq, Selection(reason=Reason.TOO_LARGE), scan=scan)
    assert [8, 4, 2] == await all_pages(dlq, Selection(job=JOB, reason=Reason.REFUSED), scan=scan)
    since = (await newest_first(dlq.client, Selection(), 5, scan=scan)).rows[0].letter.stored_at
    assert [10, 9, 8, 7, 4] == await all_pages(dlq, Selection(since=since), scan=scan)
    assert all(new > old for new, old in pairwise(everything))


async def test_clock_set_back(dlq, monkeypatch):
    """By time, what came before a clock was set back is found as well."""
    monkeypatch.setattr(pages, "_FIRST_WINDOW", 2)
    read = pages._read

    async def read_with_a_step(*arguments, **options):
        async for letter in read(*arguments, **options):
            back = dt.timedelta(minutes=30 if letter.sequence == 5 else 0)
            yield replace(letter, stored_at=letter.stored_at - back)

    monkeypatch.setattr(pages, "_read", read_with_a_step)
    await dlq.write_many(6)
    since = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=20)
    assert [6, 4, 3, 2, 1] == await all_pages(dlq, Selection(since=since))


async def test_row(dlq):
    """A row has the status and the size of the body, and not the body."""
    await dlq.write(body=b'{"status": "failed"}')
    (row,) = (await newest_first(dlq.client, Selection())).rows
    assert ("failed", 20, b"") == (row.status, row.size_bytes, row.letter.body)


async def test_none(dlq):
    """Without dead letters there is an empty page, and nothing below it."""
    page = await newest_first(dlq.client, Selection())
    assert ((), None) == (page.rows, page.below)


async def test_bounded(dlq, monkeypatch):
    """If few match, a page ends after so many that were looked at; what it says leads to the rest."""
    monkeypatch.setattr(pages, "_FIRST_WINDOW", 2)
    monkeypatch.setattr(pages, "_MOST_LOOKED_AT", 2)
    await dlq.write(reason=Reason.TOO_LARGE)
    for _ in range(5):
        await dlq.write()
    wanted = Selection(reason=Reason.TOO_LARGE)
    page = await newest_first(dlq.client, wanted)
    assert ((), 5) == (page.rows, page.below)
    assert [1] == await all_pages(dlq, wanted)


async def test_rehearsal(dlq):
    """A rehearsal names what would fail again, and a job that has gone on since; and changes nothing."""
    await dlq.write(JOB, body=f'{{"uuid": "{JOB}", "status": "accepted"}}'.encode())
    await dlq.publish(JOB, f'{{"uuid": "{JOB}", "status": "completed"}}'.encode())
    await dlq.write(OTHER, body=b"{")
    rehearser = Rehearser(dlq.client)
    gone_on, invalid = [await rehearser.rehearse(letter) for letter in await dlq.read()]
    said = "its job has gone on to completed since: the Facilitator would show accepted after that"
    assert [said] == gone_on.warnings
    assert None is invalid.later
    assert Reason.INVALID_JSON == invalid.fault.reason
