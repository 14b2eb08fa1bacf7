"""How far a lane's consumer has got, as the server counts it."""

import datetime as dt
from dataclasses import dataclass

from relay.contract.errors import JetStreamError
from relay.contract.subjects import STATUS_STREAM, api_consumer_info, lane_consumer, lane_filter
from relay.nats.connection import Requester, api_request
from relay.nats.err_codes import CONSUMER_NOT_FOUND
from relay.nats.messages import find_message


@dataclass(frozen=True, slots=True)
class ConsumerState:
    """A lane's consumer at one moment."""

    lane: int
    waiting: int
    """Updates that are stored and not delivered yet."""
    delivered: int
    """Updates that are delivered and not settled yet."""
    deliveries: int
    """All deliveries since the consumer was made, redeliveries included."""
    ack_floor: int
    """The stream sequence up to which every update of the lane is settled."""
    taken_at_s: float
    """When the server answered, on its own clock: Unix time."""

    @property
    def unsettled(self) -> int:
        return self.waiting + self.delivered


async def find_consumer_state(client: Requester, lane: int, *, timeout_s: float) -> ConsumerState | None:
    """The state of a lane's consumer; None if there is no such consumer. Raises RelayError as `api_request` does."""
    try:
        info = await api_request(client, api_consumer_info(STATUS_STREAM, lane_consumer(lane)), timeout_s=timeout_s)
    except JetStreamError as error:
        if error.err_code == CONSUMER_NOT_FOUND:
            return None
        raise
    return ConsumerState(
        lane=lane,
        waiting=info["num_pending"],
        delivered=info["num_ack_pending"],
        deliveries=info["delivered"]["consumer_seq"],
        ack_floor=info["ack_floor"]["stream_seq"],
        taken_at_s=dt.datetime.fromisoformat(info["ts"]).timestamp(),
    )


async def oldest_unsettled_s(client: Requester, state: ConsumerState, *, timeout_s: float) -> float | None:
    """The age in seconds of the lane's oldest update that is not settled, on the server's clock; None if all are.

    The oldest is the first one above the ack floor. Raises RelayError as `find_message` does.
    """
    if not state.unsettled:
        return None
    request = {"seq": state.ack_floor + 1, "next_by_subj": lane_filter(state.lane)}
    oldest = await find_message(client, STATUS_STREAM, request, timeout_s=timeout_s)
    if oldest is None:  # it was settled and removed after the state was taken
        return None
    return max(0.0, state.taken_at_s - oldest.stored_at_s)
