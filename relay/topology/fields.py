"""Every field of the configuration of a stream or a lane consumer that nats-server returns: whose it is, and why.

A field of which provisioning wants a value in a stream or consumer is compared there. This table has the rest: what an
operator may choose, and what would break the promise. A field that is not in it was added by a newer nats-server.
docs/streams.md shows the table.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from relay.contract.subjects import ADVISORY_STREAM, DLQ_STREAM, LEASE_STREAM, STATUS_STREAM, STATUS_SUBJECTS


class Owner(StrEnum):
    OURS = "ours"
    """Provisioning sets it in every stream, or in every lane consumer."""
    YOURS = "yours"
    """An operator may choose it: it is kept."""
    HARMFUL = "harmful"
    """It breaks the promise, or a tool of the relay."""


class Remedy(StrEnum):
    """What provisioning does about a harmful value."""

    PUT_BACK = "put back"
    REFUSE = "refuse"
    """The server does not let it be undone, and updates are lost or not delivered: nothing is changed."""
    WARN = "warn"
    """The server does not let it be undone, and the rest works."""


def is_off(value: Any) -> bool:
    """Whether this is what nats-server returns for an option that is not used."""
    return not value or (isinstance(value, int | str) and value in {-1, "none", "default"})


@dataclass(frozen=True, slots=True)
class Field:
    """One field. Values that `is_harmless` accepts are not harmful, nor are those in other streams than `streams`."""

    owner: Owner
    why: str
    remedy: Remedy = Remedy.PUT_BACK
    streams: Collection[str] = ()
    """Where it is harmful; empty: everywhere."""
    is_harmless: Callable[[Any], bool] = is_off

    def harms(self, name: str, value: Any) -> bool:
        """Whether this value of the field is harmful in the stream or consumer of this name."""
        in_scope = not self.streams or name in self.streams
        return self.owner is Owner.HARMFUL and in_scope and not self.is_harmless(value)


def _ours(why: str) -> Field:
    return Field(Owner.OURS, why)


def _yours(why: str) -> Field:
    return Field(Owner.YOURS, why)


def _harmful(
    why: str,
    remedy: Remedy = Remedy.PUT_BACK,
    streams: Collection[str] = (),
    is_harmless: Callable[[Any], bool] = is_off,
) -> Field:
    return Field(Owner.HARMFUL, why, remedy, streams, is_harmless)


def _spares_the_relay(republish: Any) -> bool:
    """Whether a stream republishes to no subject that is the relay's."""
    if is_off(republish):
        return True
    first = str(republish["dest"]).partition(".")[0]
    return first not in {"job", "relay"} and not first.startswith(("$", "*", ">", "{"))


_DELETED_FROM: Final = frozenset({STATUS_STREAM, DLQ_STREAM, ADVISORY_STREAM})

STREAM_FIELDS: Final[Mapping[str, Field]] = {
    "name": _ours("the name is part of the contract"),
    "description": _yours("a text for people"),
    "subjects": _ours("another list would leave out what is published"),
    "retention": _ours("with another retention updates go away before they are delivered, or cannot be asked for"),
    "max_consumers": _yours("if it leaves no room for the lanes, provisioning fails with the server's error"),
    "max_msgs": _ours("a number would fill the stream with settled messages long before the disk is full"),
    "max_bytes": _yours("RELAY_STORAGE_MB, if it is set; at the limit publishers get an error, and nothing is removed"),
    "max_age": _ours("a shorter one removes what is not relayed yet; a longer one of the status stream is kept"),
    "max_msgs_per_subject": _ours("it would remove a job's older updates, relayed or not"),
    "max_msg_size": _ours("an update must fit into a dead letter, and a message of any other stream must fit"),
    "discard": _ours("when the stream is full, publishers must get an error, and nothing must be removed"),
    "discard_new_per_subject": _ours("it would refuse a job's later updates"),
    "storage": _ours("in memory everything is lost when the server restarts"),
    "num_replicas": _ours("RELAY_REPLICAS"),
    "no_ack": _ours("without a PubAck no publisher knows what is stored"),
    "duplicate_window": _yours("the advisory stream alone leaves it to the server: its messages have no id"),
    "placement": _yours("where the copies are"),
    "mirror": _harmful("the stream takes nothing from publishers, only from another stream", Remedy.REFUSE),
    "sources": _harmful("another stream's messages are taken for the relay's own"),
    "compression": _yours("smaller files for more processor time"),
    "first_seq": _yours("where the stream began to count"),
    "subject_transform": _harmful("messages would be stored under subjects where nobody looks for them"),
    "republish": _harmful(
        "the copies go to subjects of the relay, where they are taken for new messages", is_harmless=_spares_the_relay
    ),
    "allow_direct": _ours("a direct read may be answered by a copy that has not seen the last write"),
    "mirror_direct": _yours("it means something for a mirror only"),
    "sealed": _harmful("the stream takes and removes nothing any more", Remedy.REFUSE),
    "deny_delete": _harmful(
        "settled advisories, and what is replayed or purged, could not be removed", Remedy.WARN, _DELETED_FROM
    ),
    "deny_purge": _harmful("`relay dlq purge` could not remove all dead letters of a job", Remedy.WARN, {DLQ_STREAM}),
    "allow_rollup_hdrs": _harmful("a message with the header Nats-Rollup removes those before it, relayed or not"),
    "consumer_limits": _harmful("the server would put its limits into the lane consumers, or refuse to make them"),
    "allow_msg_ttl": _harmful(
        "a message with the header Nats-TTL is removed when its time is over, relayed or not", Remedy.WARN
    ),
    "subject_delete_marker_ttl": _harmful(
        "for each job or lane whose last message goes away, the server stores a marker in its place"
    ),
    "allow_msg_counter": _harmful("every message would have to be a counter", Remedy.REFUSE),
    "allow_atomic": _yours("publishers may store several messages together; the PubAck is for all of them"),
    "allow_batched": _yours("publishers may get one PubAck for several messages"),
    "allow_msg_schedules": _harmful(
        "a message with the header Nats-Schedule removes the job's updates before it, relayed or not", Remedy.REFUSE
    ),
    "persist_mode": _harmful("a PubAck is sent before the message is written, so a crash loses it", Remedy.REFUSE),
    "metadata": _yours("labels for people and tools"),
    "template_owner": _yours("a feature that servers have given up"),
}

CONSUMER_FIELDS: Final[Mapping[str, Field]] = {
    "name": _ours("the name tells the lane"),
    "durable_name": _ours("a consumer that is not durable goes away, and its lane begins anew"),
    "description": _yours("a text for people"),
    "deliver_policy": _yours("all, or by_start_sequence after a change of the lanes; others are refused: they skip"),
    "opt_start_seq": _yours("where a lane began after a change of the lanes"),
    "opt_start_time": _harmful("updates stored before this time are skipped", Remedy.REFUSE),
    "ack_policy": _ours("each update is acknowledged by itself"),
    "ack_wait": _ours("RELAY_ACK_WAIT"),
    "max_deliver": _ours("RELAY_MAX_DELIVER"),
    "backoff": _ours("it would replace ack_wait"),
    "filter_subject": _ours("one lane"),
    "filter_subjects": _harmful("the lane's consumer would deliver something else than its lane", Remedy.REFUSE),
    "replay_policy": _ours("in the original tempo an outage would never be caught up"),
    "rate_limit_bps": _harmful("it slows down, and is for push consumers", Remedy.REFUSE),
    "sample_freq": _yours("the server reports a share of the acknowledgements"),
    "max_waiting": _yours("how many requests may wait; a relay has a few at a time"),
    "max_ack_pending": _ours("how much a relay can hold"),
    "flow_control": _harmful("it is for push consumers", Remedy.REFUSE),
    "headers_only": _ours("updates would come without their bodies"),
    "max_batch": _yours("the relay asks for no more than that at a time"),
    "max_expires": _yours("the relay asks for no longer than that"),
    "max_bytes": _harmful("an update larger than that would never be delivered, and its lane would stand still"),
    "deliver_subject": _harmful("a push consumer cannot be pulled from", Remedy.REFUSE),
    "deliver_group": _harmful("it is for push consumers"),
    "idle_heartbeat": _harmful("it is for push consumers", Remedy.REFUSE),
    "inactive_threshold": _ours("the consumer would go away while no relay runs, and its lane would begin anew"),
    "num_replicas": _harmful("fewer copies than its stream: the lane stands still, or begins anew, if one is lost"),
    "mem_storage": _ours("acknowledgements would be lost when the server restarts"),
    "direct": _harmful("it is for the server's own consumers", Remedy.REFUSE),
    "sourcing": _harmful("it is for the server's own consumers", Remedy.REFUSE),
    "metadata": _ours("where its dead letters go; other keys are kept"),
    "pause_until": _yours("somebody has paused the lane; provisioning says until when, and lets it be"),
    "priority_groups": _harmful("the server refuses requests that name no group, and pinned clients break the order"),
    "priority_policy": _harmful("it belongs to priority_groups"),
    "priority_timeout": _harmful("it belongs to priority_groups"),
}

_FOLLOWING: Final = frozenset(
    {"num_replicas", "subject_transform", "max_msg_size", "ack_wait", "max_deliver", "max_bytes"}
)
_FOLLOWING_IN_LEASES: Final = frozenset({"max_age", "duplicate_window"})


_SETTINGS: Final = {"num_replicas": "RELAY_REPLICAS", "ack_wait": "RELAY_ACK_WAIT", "max_deliver": "RELAY_MAX_DELIVER"}


def setting_of(name: str, field: str) -> str | None:
    """The variable that a field follows, if a relay works with another value as well: it goes by what it finds."""
    if name == LEASE_STREAM and field == "max_age":
        return "RELAY_LEASE_TTL"
    return _SETTINGS.get(field)


def is_vital(name: str, field: str, found: Any) -> bool:
    """Whether no worker can keep the promise with this value of a field that is ours."""
    if name == STATUS_STREAM and field == "subjects":
        return STATUS_SUBJECTS not in (found or ())
    return field == "subject_transform" or not (follows_a_setting(name, field) or field == "metadata")


def follows_a_setting(name: str, field: str) -> bool:
    """Whether a wanted value follows a setting, or the server: while that is being changed it differs for a while."""
    return field in _FOLLOWING or (name == LEASE_STREAM and field in _FOLLOWING_IN_LEASES)
