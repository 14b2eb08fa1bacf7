"""Views one after another, whatever reading a snapshot raises."""

import contextlib

from snapshot_kit import snapshot

from relay.contract.errors import BrokerUnavailable
from relay.overview.watch import watch


class Scripted:
    """Reads what it was given: snapshots, and exceptions that it raises."""

    def __init__(self, *found) -> None:
        self._found = iter(found)

    async def read(self):
        if isinstance(found := next(self._found), Exception):
            raise found
        return found


async def test_whatever_is_raised_is_a_view():
    """Errors of the relay and unexpected ones are told; watching goes on, and no rate covers the time between."""
    reader = Scripted(snapshot(), KeyError("ack_wait"), BrokerUnavailable([], "away"), snapshot(), snapshot())
    async with contextlib.aclosing(watch(reader, 0.0)) as views:
        found = [await anext(views) for _ in range(5)]
    assert "KeyError('ack_wait')" in found[1].trouble
    assert "away" in found[2].trouble
    assert [True, True, True, True, False] == [view.interval is None for view in found]
    assert [None, None] == [view.trouble for view in found[3:]]
