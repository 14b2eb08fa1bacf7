"""How far a lane's consumer is, as the server counts it. Cancelling these requests is safe."""

import datetime as dt
from collections.abc import Mapping
from typing import Any

from relay.contract.errors import JetStreamError
from relay.contract.subjects import STATUS_STREAM, api_consumer_info, lane_consumer, lane_filter
from relay.core.continuity import ConsumerState
from relay.nats.connection import Requester, api_request
from relay.nats.err_codes import CONSUMER_NOT_FOUND
from relay.nats.messages import find_message


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


async def oldest_unsettled_s(client: Requester, lane: int, state: ConsumerState, *, timeout_s: float) -> float | None:
    """The age in seconds of the lane's oldest update that is not settled, on the server's clock; None if all are.

    The oldest is the first one above the ack floor. Raises RelayError as `find_message` does.
    """
    if not state.unsettled:
        return None
    request = {"seq": state.ack_floor + 1, "next_by_subj": lane_filter(lane)}
    oldest = await find_message(client, STATUS_STREAM, request, timeout_s=timeout_s)
    if oldest is None:  # it was settled and removed after the state was taken
        return None
    return max(0.0, state.told_at_s - oldest.stored_at_s)
