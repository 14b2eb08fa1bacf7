"""Streams, lane consumers and the lease bucket: what is wanted, what exists, and changing one into the other."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from relay.contract import subjects
from relay.contract.errors import JetStreamError, UnsafeChange, UnsuitableServer
from relay.contract.settings import DeliverySettings
from relay.contract.subjects import api_stream_names
from relay.core.floors import Floor
from relay.nats.err_codes import CONSUMER_OFFLINE, STREAM_NOT_FOUND
from relay.nats.frames import FrameClient
from relay.nats.jetstream import api_request, require_server
from relay.nats.messages import find_message
from relay.topology.comparison import Config
from relay.topology.consumer_state import lane_consumers
from relay.topology.drift import Drift, find_drift
from relay.topology.lane_change import intake_closed
from relay.topology.lane_growth import is_growth, lanes_before, noted, paused, resume_ready
from relay.topology.lease_ttl import lower_ttl
from relay.topology.plan import LANE_CAPACITY, Actual, Kind, Plan, Step, Verb, Wanted, make_plan
from relay.topology.storage import find_storage_refusals, max_bytes_of

T = TypeVar("T")

DEAD_LETTER_ROOM: Final = 16 * 1024
"""Bytes that a dead letter may need in addition to its update, for the relay's headers with the error's text."""

_RESUME_AGAIN_S: Final = 2.0
_TRIES: Final = 3
"""For consumers that nobody answers for; each takes 4 seconds."""
_NS: Final = 1_000_000_000
_MINUTE: Final = 60 * _NS
_HOUR: Final = 60 * _MINUTE
_DAY: Final = 24 * _HOUR


@dataclass(frozen=True, slots=True)
class Topology:
    """The settings of streams and consumers: counts, and durations in seconds."""

    lanes: int
    replicas: int
    ack_wait_s: float
    max_deliver: int
    lease_ttl_s: float
    storage_bytes: int | None = None
    """What all streams together may store, per copy; None: `max_bytes` of each stream is left as it is."""


def topology_of(settings: DeliverySettings) -> Topology:
    """The streams and consumers that these settings ask for."""
    return Topology(
        lanes=settings.lanes,
        replicas=settings.replicas,
        ack_wait_s=settings.ack_wait_s,
        max_deliver=settings.max_deliver,
        lease_ttl_s=settings.lease_ttl_s,
        storage_bytes=settings.storage_bytes,
    )


async def check(client: FrameClient, topology: Topology) -> Plan:
    """Compare the server with `topology` and change nothing. Cancelling is safe.

    Raises UnsuitableServer, JetStreamError and BrokerUnavailable, as `require_server` and `api_request` do.
    """
    await require_server(client)
    account = await api_request(client, subjects.api_account_info())
    wanted_now = wanted(topology, client.max_payload)
    plan = make_plan(wanted_now, await _read(client, wanted_now))
    refusals = find_storage_refusals(plan.steps, account, topology.replicas)
    return replace(plan, refusals=(*plan.refusals, *refusals))


async def look(client: FrameClient, topology: Topology) -> Drift:
    """As `check`, for a relay that runs: with few requests, and without what follows a setting."""
    wanted_now = wanted(topology, client.max_payload)
    streams = {name: info for name in wanted_now.streams if (info := await _stream_info(client, name)) is not None}
    consumers = await lane_consumers(client) if subjects.STATUS_STREAM in streams else {}
    ours = {name: info for name, info in consumers.items() if name in wanted_now.consumers}
    return find_drift(wanted_now, Actual(streams, ours, {}, {}))


async def provision(client: FrameClient, topology: Topology, *, downgrade: bool = False) -> Plan:
    """Change the server to match `topology`, verify the result, and return what was done.

    Safe to run at any time, repeatedly and by several processes at once. Raises UnsafeChange, and changes nothing, if a
    change would endanger updates, or, without `downgrade`, would leave fewer copies or shorter leases; UnsuitableServer
    if the server keeps a configuration other than the one sent; and as `check` does. After another error or a
    cancellation, some of the steps may be done: run it again.
    """
    plan = await _once_answered(lambda: check(client, topology))
    if refusals := (*plan.refusals, *(() if downgrade else plan.downgrades)):
        raise UnsafeChange(refusals)
    change = plan.lane_change
    grows = change is not None and is_growth(change.old, change.new)
    for step in _ordered(plan, consumers_first=grows):
        if plan.lane_change is not None and not grows and step.name == subjects.STATUS_STREAM:
            async with intake_closed(client, plan.lane_change):
                await _apply(client, step)
        else:
            await _apply(client, step)
    await _once_answered(lambda: resume_lanes(client))
    left_over = await _once_answered(lambda: check(client, topology))
    if not left_over.is_done:
        raise UnsuitableServer(
            f"nats-server accepted the configuration and keeps another one ({'; '.join(left_over.to_do)})",
            "look for limits in its configuration and for somebody else who changes these streams",
        )
    return plan


async def _once_answered(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask again if nobody answers for a consumer: a busy cluster may still elect the leaders of those just made."""
    tries = _TRIES
    while True:
        tries -= 1
        try:
            return await ask()
        except JetStreamError as error:
            if error.err_code != CONSUMER_OFFLINE or not tries:
                raise


async def resume_lanes(client: FrameClient) -> list[str]:
    """Resume new lanes that need not wait for old ones any more; returns for what the others wait.

    Safe to repeat. Raises as `api_request` does.
    """
    return await resume_ready(client, await lane_consumers(client))


async def resume_all_lanes(client: FrameClient, tell: Callable[[str], object]) -> None:
    """Resume new lanes until none waits any more. `tell` is called with what the others wait for, once.

    Cancelling is safe, and so is doing it again. Raises as `api_request` does.
    """
    told: list[str] = []
    while waiting := await resume_lanes(client):
        if waiting != told:
            tell("; ".join(waiting))
        told = waiting
        await asyncio.sleep(_RESUME_AGAIN_S)


def _ordered(plan: Plan, *, consumers_first: bool) -> list[Step]:
    """The steps as they are carried out. The consumers of lanes that must wait for others are made paused.

    `consumers_first`: make the new consumers before the rest, as the lanes are raised.
    """
    steps = [_waiting(step, plan) for step in plan.steps]
    return sorted(steps, key=lambda step: not _is_new_consumer(step)) if consumers_first else steps


def _waiting(step: Step, plan: Plan) -> Step:
    lane = subjects.lane_of_consumer(step.name)
    if _is_new_consumer(step) and lane is not None and (old := lanes_before(lane, plan.raised_from)) is not None:
        return replace(step, config=paused(step.config, lane, old))
    if plan.lane_change is not None and step.name == subjects.STATUS_STREAM:
        return replace(step, config=noted(step.config, plan.raised_from))
    return step


def _is_new_consumer(step: Step) -> bool:
    return step.kind is Kind.CONSUMER and step.verb is Verb.CREATED


def wanted(topology: Topology, max_payload: int) -> Wanted:
    """The configurations of `topology` on a server that accepts messages of up to `max_payload` bytes.

    Raises UnsuitableServer if that leaves no room for updates.
    """
    if max_payload <= 2 * DEAD_LETTER_ROOM:
        raise UnsuitableServer(
            f"nats-server has max_payload {max_payload}", f"the relay needs more than {2 * DEAD_LETTER_ROOM} bytes"
        )
    streams = (
        _status_stream(topology, max_payload),
        _dead_letter_stream(topology),
        _advisory_stream(topology),
        _request_stream(topology),
        _lease_stream(topology),
    )
    if (storage_bytes := topology.storage_bytes) is not None:
        for stream in streams:
            stream["max_bytes"] = max_bytes_of(storage_bytes)[stream["name"]]
    consumers = (_lane_consumer(topology, lane) for lane in range(topology.lanes))
    return Wanted(
        topology.lanes,
        {stream["name"]: stream for stream in streams},
        {consumer["name"]: consumer for consumer in consumers},
    )


def _kept_stream(name: str, captured: list[str], topology: Topology) -> dict[str, Any]:
    # With limits retention, acknowledged messages stay in the stream, for queries; only their age removes them. When
    # the disk is full, publishers get an error, and no older message is lost. Operators may add a limit in bytes.
    return {
        "name": name,
        "subjects": captured,
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "max_msgs": -1,
        "max_msgs_per_subject": -1,
        "max_msg_size": -1,
        "discard_new_per_subject": False,
        "no_ack": False,
        "num_replicas": topology.replicas,
        # A direct read may be answered by a replica that has not seen the last write.
        "allow_direct": False,
    }


def _status_stream(topology: Topology, max_payload: int) -> dict[str, Any]:
    return _kept_stream(subjects.STATUS_STREAM, [subjects.STATUS_SUBJECTS, subjects.CANARY_SUBJECT], topology) | {
        "subject_transform": subjects.lane_transform(topology.lanes),
        "max_age": 7 * _DAY,
        "duplicate_window": 2 * _MINUTE,
        # A dead letter is the update with more headers. If that would not fit, the producer must get the error now,
        # because later there is nobody to report it to.
        "max_msg_size": max_payload - DEAD_LETTER_ROOM,
    }


def _dead_letter_stream(topology: Topology) -> dict[str, Any]:
    return _kept_stream(subjects.DLQ_STREAM, [subjects.DLQ_SUBJECTS], topology) | {
        # Dead letters are kept until somebody handles them.
        "max_age": 0,
        # A relay that is killed between the PubAck and the `+TERM` writes the same dead letter again after its restart.
        "duplicate_window": _HOUR,
    }


def _advisory_stream(topology: Topology) -> dict[str, Any]:
    # Advisories are kept as long as their updates. If an operator sets a limit, the oldest are removed: the server
    # publishes advisories without waiting for a PubAck, so it would not notice that one is refused.
    return _kept_stream(subjects.ADVISORY_STREAM, [subjects.ADVISORY_SUBJECTS], topology) | {
        "discard": "old",
        "max_age": 7 * _DAY,
    }


def _request_stream(topology: Topology) -> dict[str, Any]:
    return _kept_stream(subjects.REQUEST_STREAM, list(subjects.REQUEST_SUBJECTS), topology) | {
        "max_age": 7 * _DAY,
        # The Facilitator pushes a copy to each connection of the validator.
        "duplicate_window": 2 * _MINUTE,
    }


def _lease_stream(topology: Topology) -> dict[str, Any]:
    # The same stream that NATS clients create for a key-value bucket with history 1 and a time to live. It is in file
    # storage, so that entries and revisions survive a restart of the server.
    ttl = _nanoseconds(topology.lease_ttl_s)
    return _kept_stream(subjects.LEASE_STREAM, [subjects.LEASE_SUBJECTS], topology) | {
        "max_msgs_per_subject": 1,
        "max_age": ttl,
        "duplicate_window": min(ttl, 2 * _MINUTE),
        "allow_rollup_hdrs": True,
        "allow_msg_ttl": True,
        "deny_delete": True,
        "deny_purge": False,
    }


def _lane_consumer(topology: Topology, lane: int) -> dict[str, Any]:
    return {
        "name": subjects.lane_consumer(lane),
        "durable_name": subjects.lane_consumer(lane),
        "filter_subject": subjects.lane_filter(lane),
        "ack_policy": "explicit",
        "ack_wait": _nanoseconds(topology.ack_wait_s),
        "max_deliver": topology.max_deliver,
        "max_ack_pending": LANE_CAPACITY,
        "replay_policy": "instant",
        # With other values acknowledgements, the consumer itself, or the bodies of updates would be lost.
        "mem_storage": False,
        "inactive_threshold": 0,
        "headers_only": False,
        # A backoff would replace `ack_wait` and add to the delays of NAKs.
        "backoff": [],
        "metadata": {subjects.DLQ_METADATA_KEY: "job.dlq.<token>"},
    }


def _nanoseconds(seconds: float) -> int:
    return round(seconds * _NS)


async def _read(client: FrameClient, wanted_now: Wanted) -> Actual:
    streams = {name: info for name in wanted_now.streams if (info := await _stream_info(client, name)) is not None}
    captured_by = {
        subject: await _capturing(client, subject)
        for config in wanted_now.streams.values()
        for subject in config["subjects"]
    }
    consumers = await lane_consumers(client) if subjects.STATUS_STREAM in streams else {}
    last_stored = {name: await _last_sequence(client, info["config"]) for name, info in consumers.items()}
    missing = [name for name in wanted_now.consumers if name not in consumers]
    return Actual(streams, consumers, last_stored, captured_by, await _floors(client, streams, missing))


async def _floors(client: FrameClient, streams: Mapping[str, Config], missing: Sequence[str]) -> dict[str, int]:
    """How far the lanes of consumers that are missing are settled, as far as their owners have written it down."""
    if not {subjects.STATUS_STREAM, subjects.LEASE_STREAM} <= streams.keys():
        return {}
    status = streams[subjects.STATUS_STREAM]
    found: dict[str, int] = {}
    for name in missing:
        key = subjects.LEASE_SUBJECTS.removesuffix(">") + subjects.lane_key(subjects.lane_of_consumer(name) or 0)
        lease = await find_message(client, subjects.LEASE_STREAM, {"last_by_subj": key})
        floor = Floor.parse(lease.headers.get(subjects.FLOOR_HEADER)) if lease is not None else None
        if floor is not None and floor.is_of(status["created"], status["state"]["last_seq"]):
            found[name] = floor.sequence
    return found


async def _stream_info(client: FrameClient, name: str) -> dict[str, Any] | None:
    try:
        return await api_request(client, subjects.api_stream_info(name))
    except JetStreamError as error:
        if error.err_code == STREAM_NOT_FOUND:
            return None
        raise


async def _last_sequence(client: FrameClient, consumer: Config) -> int:
    if not consumer.get("filter_subject"):
        return 0
    last = await find_message(client, subjects.STATUS_STREAM, {"last_by_subj": consumer["filter_subject"]})
    return 0 if last is None else last.sequence


async def _capturing(client: FrameClient, subject: str) -> list[str]:
    answer = await api_request(client, api_stream_names(), {"subject": subject})
    return answer["streams"] or []


async def _apply(client: FrameClient, step: Step) -> None:
    match step.verb, step.kind:
        case Verb.LEFT, _:
            return
        case Verb.DELETED, _:
            await api_request(client, subjects.api_consumer_delete(subjects.STATUS_STREAM, step.name))
        case Verb.CREATED, Kind.STREAM:
            await api_request(client, subjects.api_stream_create(step.name), step.config)
        case Verb.CHANGED, Kind.STREAM:
            if step.name == subjects.LEASE_STREAM:
                await lower_ttl(client, step.config["max_age"])
            await api_request(client, subjects.api_stream_update(step.name), step.config)
        case _:
            # With an explicit action, a create cannot become an update of a consumer that somebody else has just made.
            action = "create" if step.verb is Verb.CREATED else "update"
            request = subjects.api_consumer_create(subjects.STATUS_STREAM, step.name, step.config["filter_subject"])
            body = {"stream_name": subjects.STATUS_STREAM, "config": dict(step.config), "action": action}
            await api_request(client, request, body)
