"""Dead letters page by page, the newest first, in little memory however many there are."""

import contextlib
import datetime as dt
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Final

from relay.contract.subjects import DLQ_STREAM, REASON_HEADER, is_marker
from relay.dead_letters import stream
from relay.dead_letters.lookups import Lookups
from relay.dead_letters.selection import Selection
from relay.dead_letters.stored import StoredDeadLetter
from relay.nats.frames import FrameClient

PAGE: Final = 50
_CONSUMER_PREFIX: Final = "relay-page-"
_FIRST_WINDOW: Final = 256
_LARGEST_WINDOW: Final = 65_536
_MOST_LOOKED_AT: Final = 262_144
"""How many sequences are looked at for one page; with few that match, the page is then short, and one can go on."""
_ONE_BY_ONE: Final = 2_048
"""The same if they are read one by one."""

_CLOCK_STEP: Final = dt.timedelta(hours=1)
"""If a server's clock was set back by at most this, younger dead letters before older ones are found as well."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a page."""

    letter: StoredDeadLetter
    """Without its body."""
    status: str
    """The job's status in the body; empty if there is none."""
    size_bytes: int


@dataclass(frozen=True, slots=True)
class LetterPage:
    """One page."""

    rows: tuple[Row, ...]
    below: int | None
    """Where the next page goes on: below this sequence. None if there is nothing more."""


async def newest_first(
    client: FrameClient, selection: Selection, below: int | None = None, *, scan: bool = True, size: int = PAGE
) -> LetterPage:
    """The newest `size` selected dead letters with a sequence below `below`, newest first.

    `scan`: whether the NATS user may make a consumer; without one, letters are read one by one, which is slow.
    `selection.limit` does not count. Raises NotProvisioned and RelayError. Cancelling it is safe.
    """
    state = await stream.state(client)
    first, high = max(1, state["first_seq"]), state["last_seq"]
    if below is not None:
        high = min(high, below - 1)
    found: list[StoredDeadLetter] = []
    window, looked_at, most = _FIRST_WINDOW, 0, _MOST_LOOKED_AT if scan else _ONE_BY_ONE
    while high >= first and len(found) < size and looked_at < most:
        low = max(first, high - window + 1)
        newest: deque[StoredDeadLetter] = deque(maxlen=size - len(found) + 1)
        async with contextlib.aclosing(_read(client, selection, low, high, scan=scan)) as letters:
            async for letter in letters:
                if selection.takes(letter):
                    newest.append(letter)
                elif selection.since is not None and letter.stored_at < selection.since - _CLOCK_STEP:
                    first = letter.sequence + 1  # all before it are too old as well
        found += reversed(newest)
        looked_at, high = looked_at + window, low - 1
        window = min(4 * window, _LARGEST_WINDOW)
    rows = [await _row(client, letter) for letter in found[:size]]
    if len(found) > size or (len(found) == size and high >= first):
        return LetterPage(tuple(rows), found[size - 1].sequence)
    return LetterPage(tuple(rows), high + 1 if high >= first else None)


async def _read(
    client: FrameClient, selection: Selection, low: int, high: int, *, scan: bool
) -> AsyncGenerator[StoredDeadLetter]:
    """The dead letters on the selection's subject in a range of sequences, oldest first, without their bodies."""
    if scan:
        read = stream.read_headers(client, low, high, consumer_prefix=_CONSUMER_PREFIX, subject=selection.subject)
        async with contextlib.aclosing(read) as letters:
            async for letter in letters:
                yield letter
        return
    lookups = Lookups(client)
    while low <= high:
        found = await lookups.find(DLQ_STREAM, {"next_by_subj": selection.subject, "seq": low})
        if found is None or found.sequence > high:
            return
        low = found.sequence + 1
        if REASON_HEADER in found.headers or not is_marker(found.headers, found.body):
            yield StoredDeadLetter.without_body(found)


async def _row(client: FrameClient, letter: StoredDeadLetter) -> Row:
    """The line of a letter, whose body is read and dropped again; it may be large."""
    whole = await stream.find(client, letter.sequence)
    return Row(letter, whole.status, len(whole.body)) if whole is not None else Row(letter, "", 0)
