"""Lowering the time to live of leases while workers hold some."""

import asyncio
from collections.abc import Iterator
from typing import Final

from relay.contract.subjects import LEASE_STREAM, api_stream_info, api_stream_update
from relay.nats.jetstream import Requester, api_request

_NS_PER_S: Final = 1_000_000_000
_MARGIN_S: Final = 0.5


def steps_down(old_ns: int, new_ns: int) -> Iterator[tuple[int, float]]:
    """The times to live on the way from one to a lower one, and how many seconds to wait after each.

    Workers renew their leases, and read the time to live, every third of it. A worker that has not read the new one yet
    must not lose a lane, because it would believe that its lease is still good. So no step is larger than a third, and
    after each step every worker has time to read it, and to end the pause between two renewals that it has begun.
    """
    while new_ns < old_ns * 2 // 3:
        wait_s = old_ns / _NS_PER_S * 2 / 3 + _MARGIN_S
        old_ns = old_ns * 2 // 3
        yield old_ns, wait_s


async def lower_ttl(client: Requester, to_ns: int) -> None:
    """Go most of the way from the bucket's time to live to a lower one, if anybody holds a lease or is announced.

    Raises as `api_request` does. After a cancellation the time to live is somewhere between the two.
    """
    info = await api_request(client, api_stream_info(LEASE_STREAM))
    if not info["state"]["messages"]:
        return
    config = info["config"]
    for ttl_ns, wait_s in steps_down(config["max_age"], to_ns):
        window_ns = min(ttl_ns, config["duplicate_window"])
        update = config | {"max_age": ttl_ns, "duplicate_window": window_ns}
        await api_request(client, api_stream_update(LEASE_STREAM), update)
        await asyncio.sleep(wait_s)
