"""The walk of one update through the relay: each call from its delivery to its acknowledgement.

A nats-server, the Facilitator simulator and one relay with one lane run in this process, as in the demo. Updates are
published one at a time, and `sys.setprofile` records each call of a function of the relay; a coroutine that continues
is reported as a call, too. Not recorded: the publishing client, the simulator, and what libraries call among
themselves. Periodic work, such as a heartbeat, is part of a few walks only, so the most frequent walk is printed.
"""

import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, Final, NamedTuple

import nats
from nats.aio.client import Client

import relay
from bench.load import body, job_uuids
from relay.contract.settings import DeliverySettings
from relay.contract.subjects import STATUS_STREAM, status_subject
from relay.local.demo import make_hotkey, open_demo
from relay.observability import logs

_ROOT: Final = str(Path(relay.__file__).parent) + "/"
_SURROUNDINGS: Final = f"{_ROOT}local/"
_ACKNOWLEDGEMENTS: Final = f"$JS.ACK.{STATUS_STREAM}.>"
_WARM_UP: Final = 200
_WALKS: Final = 100
_SETTLED_WITHIN_S: Final = 10.0


class Call(NamedTuple):
    """One call of a function of the relay; `depth` is how many of the relay's functions were running then."""

    depth: int
    file: str
    function: str


Walk = tuple[Call, ...]


@contextmanager
def recording(calls: list[Call]) -> Iterator[None]:
    """Append each call of a function of the relay to `calls`."""

    def note(frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call" and _is_ours(frame):
            code = frame.f_code
            calls.append(Call(_depth(frame), code.co_filename.removeprefix(_ROOT), code.co_qualname))

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)


async def walks(count: int) -> list[Walk]:
    """The walks of `count` updates, one by one, after a warm-up. Raises TimeoutError if one is not settled in 10 s."""
    with tempfile.TemporaryDirectory() as folder:
        async with open_demo(make_hotkey(Path(folder)), DeliverySettings(lanes=1)) as demo:
            client = await nats.connect(demo.nats_url)
            try:
                return await _record(client, count)
            finally:
                await client.close()


async def _record(client: Client, count: int) -> list[Walk]:
    acknowledged = asyncio.Event()

    async def on_acknowledged(_: Any) -> None:
        acknowledged.set()

    await client.subscribe(_ACKNOWLEDGEMENTS, cb=on_acknowledged)
    found: list[Walk] = []
    for uuid in job_uuids(_WARM_UP + count):
        calls: list[Call] = []
        subject, update = status_subject(uuid), body(uuid, time.monotonic_ns())
        acknowledged.clear()
        with recording(calls):
            await client.publish(subject, update)
            await asyncio.wait_for(acknowledged.wait(), _SETTLED_WITHIN_S)
        found.append(tuple(calls))
    return found[_WARM_UP:]


def report(walk: Walk, seen: int, count: int) -> str:
    """The walk as an indented list, and its totals."""
    lines = [f"{n:3} {call.file:32} {'  ' * call.depth}{call.function}" for n, call in enumerate(walk, 1)]
    files = [call.file for call in walk]
    changes = sum(left != right for left, right in pairwise(files))
    totals = f"{len(walk)} calls, {len(set(files))} files entered, {changes} changes of file"
    return "\n".join([*lines, "", f"{totals} (the walk of {seen} of {count} updates)"])


def _is_ours(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    return name.startswith(_ROOT) and not name.startswith(_SURROUNDINGS)


def _depth(frame: FrameType) -> int:
    depth = 0
    below = frame.f_back
    while below is not None:
        depth += _is_ours(below)
        below = below.f_back
    return depth


def main() -> None:
    """Trace updates, and print the most frequent walk."""
    logs.configure("error", "console")
    ((walk, seen),) = Counter(asyncio.run(walks(_WALKS))).most_common(1)
    print(report(walk, seen, _WALKS))


if __name__ == "__main__":
    main()
