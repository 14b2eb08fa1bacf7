"""Raising the number of lanes to a multiple while updates wait: the new lanes wait until the old ones are far enough.

With twice as many lanes, the jobs of lane l are afterwards in lane l, with the same consumer, or in a new one, l + n.
So only new lanes may overtake: lane m must deliver nothing before lane m modulo n has settled all that was stored when
the number was changed. Until then the new consumers are paused; their metadata say for what they wait.
"""

import asyncio
import datetime as dt
import re
from collections.abc import Mapping
from typing import Any, Final

from relay.contract import subjects
from relay.contract.subjects import STATUS_STREAM
from relay.nats.connection import Requester, api_request
from relay.nats.messages import find_message

WAITS_KEY: Final = "relay.waits-for"
"""In the metadata of a lane consumer: `<lane> <sequence>`, up to which that lane must be settled first."""
_TEXT: Final = re.compile(r"([0-9]{1,4}) ([0-9]{1,18})")
_UNKNOWN: Final = 10**18 - 1
"""Stands for the sequence until the number of lanes is changed, also if the process that did it was killed."""
_PAUSE: Final = dt.timedelta(days=3650)
_STORED_AFTER_S: Final = 1.0
"""So long after the change, everything that was on its way before it is stored."""


def is_growth(old: int, new: int) -> bool:
    """Whether a change of the number of lanes moves jobs into new lanes only."""
    return new > old and new % old == 0


def paused(config: Mapping[str, Any], lane: int, old: int) -> dict[str, Any]:
    """The configuration of a new lane's consumer, to be made before the change."""
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
    if info is None:
        return False
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
