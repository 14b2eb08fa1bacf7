"""Raising the number of lanes to a multiple while updates wait: the new lanes wait until the old ones are far enough.

With twice as many lanes, the jobs of lane l are afterwards in lane l, with the same consumer, or in a new one, l + n.
So only new lanes may overtake: lane m must deliver nothing before lane m modulo n has settled all that was stored when
the number was changed. Until then the new consumers are paused; their metadata say for what they wait. The stream's
metadata say from which numbers the lanes were raised, so that a consumer that was deleted meanwhile waits again.
"""

import asyncio
import datetime as dt
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from relay.contract import subjects
from relay.contract.subjects import STATUS_STREAM
from relay.nats.jetstream import Requester, api_request
from relay.nats.messages import find_message

WAITS_KEY: Final = "relay.waits-for"
"""In the metadata of a lane consumer: `<lane> <sequence>`, up to which that lane must be settled first."""
RAISED_KEY: Final = "relay.raised-from"
"""In the metadata of the status stream: the numbers of lanes before each raise, since no lane waited; such as `2 4`."""
_NUMBERS: Final = re.compile(r"[1-9][0-9]{0,3}(?: [1-9][0-9]{0,3})*")
_TEXT: Final = re.compile(r"([0-9]{1,4}) ([0-9]{1,18})")
_UNKNOWN: Final = 10**18 - 1
"""Stands for the sequence until the number of lanes is changed, also if the process that did it was killed."""
_PAUSE: Final = dt.timedelta(days=3650)
_STORED_AFTER_S: Final = 1.0
"""So long after the change, everything that was on its way before it is stored."""


def is_growth(old: int, new: int) -> bool:
    """Whether a change of the number of lanes moves jobs into new lanes only."""
    return new > old and new % old == 0


def raised_from(stream: Mapping[str, Any]) -> tuple[int, ...]:
    """What RAISED_KEY says in the configuration of the status stream."""
    found = _NUMBERS.fullmatch(stream.get("metadata", {}).get(RAISED_KEY, ""))
    return tuple(map(int, found[0].split())) if found else ()


def raised_again(stream: Mapping[str, Any], consumers: Iterable[Mapping[str, Any]], old: int) -> tuple[int, ...]:
    """What it is to say when the lanes are raised from `old`, with these lane consumers, given with their INFO."""
    waits = any(WAITS_KEY in info["config"].get("metadata", {}) for info in consumers)
    return (*(raised_from(stream) if waits else ()), old)


def noted(stream: Mapping[str, Any], raised: Sequence[int]) -> dict[str, Any]:
    """The configuration of the status stream, with `raised` in its metadata."""
    kept = {key: value for key, value in stream.get("metadata", {}).items() if key != RAISED_KEY and key[:5] != "_nats"}
    return {**stream, "metadata": kept | ({RAISED_KEY: " ".join(map(str, raised))} if raised else {})}


def lanes_before(lane: int, raised: Sequence[int]) -> int | None:
    """The number of lanes before the raise that made this lane; None if it was there before."""
    return max((old for old in raised if old <= lane), default=None)


def paused(config: Mapping[str, Any], lane: int, old: int) -> dict[str, Any]:
    """The configuration of a new lane's consumer, to be made before the change, or later if it was deleted."""
    until = (dt.datetime.now(dt.UTC) + _PAUSE).isoformat()
    return {**config, "pause_until": until, "metadata": {**config["metadata"], WAITS_KEY: f"{lane % old} {_UNKNOWN}"}}


async def resume_ready(client: Requester, consumers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Resume the consumers, given with their INFO, that need not wait any more; returns for what the others wait.

    Safe to repeat, and by several processes at once. Raises as `api_request` does.
    """
    waiting: list[str] = []
    last: int | None = None
    for name, info in consumers.items():
        found = _TEXT.fullmatch(info["config"].get("metadata", {}).get(WAITS_KEY, ""))
        if found is None:
            continue
        lane, sequence = int(found[1]), int(found[2])
        if sequence == _UNKNOWN:
            last = last or await _last_stored(client)
            await _update(client, name, info["config"], {WAITS_KEY: f"{lane} {last}"})
            sequence = last
        if await _is_settled(client, consumers.get(subjects.lane_consumer(lane)), lane, sequence):
            await _resume(client, name, info["config"])
        else:
            waiting.append(f"{name} waits until lane {lane} has settled what was stored before the change")
    return waiting


async def _is_settled(client: Requester, info: Mapping[str, Any] | None, lane: int, sequence: int) -> bool:
    if info is None or WAITS_KEY in info["config"].get("metadata", {}):
        return False  # older updates of its jobs may be in the lane for which it waits itself
    floor = info["ack_floor"]["stream_seq"]
    request = {"seq": floor + 1, "next_by_subj": subjects.lane_filter(lane)}
    oldest = await find_message(client, STATUS_STREAM, request)
    return oldest is None or oldest.sequence > sequence


async def _last_stored(client: Requester) -> int:
    """A sequence above which every update is in its new lane."""
    await asyncio.sleep(_STORED_AFTER_S)
    return (await api_request(client, subjects.api_stream_info(STATUS_STREAM)))["state"]["last_seq"]


async def _resume(client: Requester, name: str, config: Mapping[str, Any]) -> None:
    await api_request(client, subjects.api_consumer_pause(STATUS_STREAM, name))
    await _update(client, name, {key: value for key, value in config.items() if key != "pause_until"}, {})


async def _update(client: Requester, name: str, config: Mapping[str, Any], waits: Mapping[str, str]) -> None:
    kept = {key: value for key, value in config["metadata"].items() if key != WAITS_KEY and key[:5] != "_nats"}
    body = {"stream_name": STATUS_STREAM, "config": {**config, "metadata": {**kept, **waits}}, "action": "update"}
    await api_request(client, subjects.api_consumer_create(STATUS_STREAM, name, config["filter_subject"]), body)
