"""How far a lane's consumer is, as the server counts it. Cancelling these requests is safe."""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from relay.contract.errors import JetStreamError
from relay.contract.subjects import (
    STATUS_STREAM,
    api_consumer_info,
    api_consumer_list,
    lane_consumer,
    lane_filter,
    lane_of_consumer,
)
from relay.core.continuity import ConsumerState
from relay.nats.err_codes import CONSUMER_NOT_FOUND, CONSUMER_OFFLINE, REMEDIES
from relay.nats.jetstream import Requester, api_request
from relay.nats.messages import find_message
from relay.timing.clock import monotonic
from relay.timing.room import Room

_ROOM_BYTES: Final = 32 * 1024 * 1024
"""For updates that are asked for at a time: 4 with a `max_payload` of 8 MB."""
_NS_PER_S: Final = 1_000_000_000
_KNOWN_FOR_S: Final = 60.0
"""An update may be removed without being settled, when it is too old for the stream or by an operator."""


def consumer_state_of(info: Mapping[str, Any]) -> ConsumerState:
    """From what JetStream's API answers about a consumer."""
    return ConsumerState(
        pending=info["num_ack_pending"],
        delivered=info["delivered"]["stream_seq"],
        delivered_count=info["delivered"]["consumer_seq"],
        waiting=info["num_pending"],
        ack_floor=info["ack_floor"]["stream_seq"],
        told_at_s=dt.datetime.fromisoformat(info["ts"]).timestamp(),
        made_at_s=dt.datetime.fromisoformat(info["created"]).timestamp(),
        ack_wait_s=info["config"].get("ack_wait", 0) / _NS_PER_S,
    )


async def find_consumer_state(client: Requester, lane: int, *, timeout_s: float) -> ConsumerState | None:
    """The state of a lane's consumer; None if there is no such consumer. Raises RelayError as `api_request` does."""
    try:
        info = await api_request(client, api_consumer_info(STATUS_STREAM, lane_consumer(lane)), timeout_s=timeout_s)
    except JetStreamError as error:
        if error.err_code == CONSUMER_NOT_FOUND:
            return None
        raise
    return consumer_state_of(info)


async def lane_consumers(client: Requester) -> dict[str, dict[str, Any]]:
    """What JetStream's API answers about each lane's consumer that exists, by name.

    Raises JetStreamError if there are others that nobody answers for, and as `api_request` does. A cluster lists those
    by name only, if their leader says nothing for 4 seconds: they are not missing, and nobody knows how they are.
    """
    found: dict[str, dict[str, Any]] = {}
    silent: set[str] = set()
    request, offset, total = api_consumer_list(STATUS_STREAM), 0, 1
    while offset < total:
        page = await api_request(client, request, {"offset": offset})
        infos: list[dict[str, Any]] = page["consumers"] or []
        found |= {info["name"]: info for info in infos if lane_of_consumer(info["name"]) is not None}
        silent |= {name for name in page.get("missing") or () if lane_of_consumer(name) is not None}
        offset, total = offset + page["limit"], page["total"]
    if silent:
        why = f"nobody answers for {', '.join(sorted(silent))}, so nobody knows how they are"
        raise JetStreamError(request, 503, CONSUMER_OFFLINE, why, REMEDIES[CONSUMER_OFFLINE])
    return found


@dataclass(frozen=True, slots=True)
class _Oldest:
    """The oldest update of a lane that is not settled, as it was looked up."""

    ack_floor: int
    consumer_made_at_s: float
    stored_at_s: float
    seen_s: float
    """When it was first looked up, on the monotonic clock."""
    looked_up_s: float
    """When it was last looked up."""

    def is_of(self, state: ConsumerState) -> bool:
        return (self.ack_floor, self.consumer_made_at_s) == (state.ack_floor, state.made_at_s)


class OldestUpdates:
    """How old the oldest update of each lane is that is not settled.

    To know its age, the server has to be asked for the whole update, which may be large. So few are asked for together,
    and none twice within a minute while nothing before it is settled.
    """

    def __init__(self, client: Requester, *, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._room = Room(_ROOM_BYTES)
        self._known: dict[int, _Oldest] = {}
        """By lane."""

    async def age_s(self, lane: int, state: ConsumerState) -> float | None:
        """The age in seconds of the lane's oldest update that is not settled, on the server's clock; None if all are.

        The oldest is the first one above the ack floor. If the server's clock was set back, the age may be too small,
        but not less than the time for which it was seen. Raises RelayError as `find_message` does. Cancelling is safe.
        """
        if not state.unsettled:
            return None
        now_s, known = monotonic(), self._known.get(lane)
        if known is not None and not known.is_of(state):
            known = None
        if known is None or now_s >= known.looked_up_s + _KNOWN_FOR_S:
            request = {"seq": state.ack_floor + 1, "next_by_subj": lane_filter(lane)}
            async with self._room.held(self._client.max_payload):
                oldest = await find_message(self._client, STATUS_STREAM, request, timeout_s=self._timeout_s)
            if oldest is None:  # it was settled and removed after the state was taken
                return None
            seen_s = known.seen_s if known is not None and known.stored_at_s == oldest.stored_at_s else now_s
            known = _Oldest(state.ack_floor, state.made_at_s, oldest.stored_at_s, seen_s, now_s)
            self._known[lane] = known
        return max(now_s - known.seen_s, state.told_at_s - known.stored_at_s)
