"""Which worker should drive which lane.

Every worker computes this for itself, from the same two facts: which workers are alive, and which worker drives which
lane. The same facts give the same answer, so no worker has to decide for the others.
"""

from collections.abc import Collection, Mapping


def share_out(lanes: int, workers: Collection[str], owners: Mapping[int, str]) -> dict[int, str]:
    """The worker that each lane, 0 to `lanes` - 1, should belong to; empty if there are no workers.

    `owners` says which worker drives a lane now; lanes of workers that are gone count as free. The numbers of lanes of
    any two workers differ by one at most, and a lane changes its owner only if that requires it.
    """
    if not workers:
        return {}
    driven: dict[str, list[int]] = {worker: [] for worker in sorted(workers)}
    for lane in range(lanes):
        if (owner := owners.get(lane)) in driven:
            driven[owner].append(lane)
    even, left_over = divmod(lanes, len(driven))
    # The lanes that are left over stay with the workers that drive the most now.
    richest = sorted(driven, key=lambda worker: (-len(driven[worker]), worker))
    quota = {worker: even + (place < left_over) for place, worker in enumerate(richest)}
    shares = {lane: worker for worker, has in driven.items() for lane in has[: quota[worker]]}
    free = [lane for lane in range(lanes) if lane not in shares]
    for worker, has in driven.items():
        for _ in range(len(has), quota[worker]):
            shares[free.pop(0)] = worker
    return shares
