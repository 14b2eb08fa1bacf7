"""Compares wanted and actual configurations: what provisioning would do, step by step, and what it refuses to do.

Configurations are JetStream's own JSON objects, as plain dicts. A wanted one holds only the fields that the relay
needs; an actual one holds everything that the server answered. Of the fields that are not wanted, those that an
operator may choose, such as `max_bytes`, are kept; fields.py says which of the others are harmful.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from relay.contract import subjects
from relay.topology.comparison import Change, Config, differences, merged
from relay.topology.copies import find_lost
from relay.topology.downgrade import find_downgrades
from relay.topology.fields import CONSUMER_FIELDS, STREAM_FIELDS, is_vital
from relay.topology.lane_growth import WAITS_KEY, is_growth, raised_again, raised_from
from relay.topology.options import Options, judge_options
from relay.topology.storage import find_overfull

LANE_CAPACITY: Final = 512
"""How many updates of a lane may be delivered and unacknowledged at a time: its consumer's `max_ack_pending`."""

_FIXED_STREAM_FIELDS: Final = ("storage", "retention")
_FIXED_CONSUMER_FIELDS: Final = ("filter_subject", "ack_policy", "replay_policy", "mem_storage")
# With any other policy a consumer skips updates that were stored before it was made.
_COMPLETE_DELIVERY: Final = frozenset({"all", "by_start_sequence"})


class Kind(StrEnum):
    STREAM = "stream"
    CONSUMER = "consumer"


class Verb(StrEnum):
    CREATED = "created"
    CHANGED = "changed"
    LEFT = "left"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Step:
    """What is done about one stream or consumer. `config` is sent to the server; it is empty if nothing is sent.

    `warnings` are options that provisioning leaves as they are, and what they mean.
    """

    verb: Verb
    kind: Kind
    name: str
    changes: tuple[Change, ...] = ()
    config: Config = field(default_factory=dict[str, Any])
    warnings: tuple[str, ...] = ()

    @property
    def is_needed(self) -> bool:
        """Whether no worker can relay before it is done.

        Harmful options, another value of a setting, and a consumer too many do not keep a worker from relaying.
        """
        return self.verb is Verb.CREATED or any(change.vital for change in self.changes)

    @property
    def line(self) -> str:
        """What provisioning did: `changed consumer relay-lane-0: ack_wait 5s -> 10s`."""
        return f"{self.verb} {self.kind} {self.name}{self._details}"

    @property
    def difference(self) -> str:
        """What a check found: `consumer relay-lane-0 differs: ack_wait 5s -> 10s`; empty if nothing."""
        found = {
            Verb.CREATED: " is missing",
            Verb.CHANGED: f" differs{self._details}",
            Verb.DELETED: " is one too many",
            Verb.LEFT: "",
        }[self.verb]
        return f"{self.kind} {self.name}{found}" if found else ""

    @property
    def _details(self) -> str:
        return ": " + ", ".join(map(str, self.changes)) if self.changes else ""


@dataclass(frozen=True, slots=True)
class LaneChange:
    """A change of the number of lanes, which needs more care than a change of fields.

    `last_sequence` is the sequence of the last update when the plan was made. Everything up to it must be settled. New
    consumers start after it, because older updates were relayed in their old lanes.
    """

    old: int
    new: int
    last_sequence: int

    def __str__(self) -> str:
        return f"lanes {self.old} -> {self.new}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps, in the order in which they are carried out. If there are refusals, no step is carried out."""

    steps: tuple[Step, ...]
    refusals: tuple[str, ...] = ()
    lane_change: LaneChange | None = None
    downgrades: tuple[str, ...] = ()
    """What the steps would make weaker than it is; see downgrade.py. They are carried out only if this is wanted."""
    lost_copies: tuple[str, ...] = ()
    """What fewer servers keep than it is configured to have, and what to do: nothing that provisioning can do."""
    raised_from: tuple[int, ...] = ()
    """The numbers of lanes before they were raised; see lane_growth.py."""

    @property
    def in_place(self) -> bool:
        """Whether everything is as wanted, without any warning."""
        return self.is_done and not self.warnings and not self.lost_copies

    @property
    def is_done(self) -> bool:
        """Whether provisioning has nothing to do."""
        return not self.refusals and all(step.verb is Verb.LEFT for step in self.steps)

    @property
    def suffices(self) -> bool:
        """Whether a worker can relay."""
        return not self.refusals and not any(step.is_needed for step in self.steps)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Options that provisioning leaves as they are, and what they mean."""
        return tuple(warning for step in self.steps for warning in step.warnings)

    @property
    def lines(self) -> tuple[str, ...]:
        """What provisioning did, one line per stream and consumer."""
        return tuple(step.line for step in self.steps)

    @property
    def differences(self) -> tuple[str, ...]:
        """What a check found, refusals and warnings included; empty if everything is in place."""
        return (*self.to_do, *self.warnings, *self.lost_copies)

    @property
    def to_do(self) -> tuple[str, ...]:
        """Refusals, and what provisioning would do."""
        return (*self.refusals, *(step.difference for step in self.steps if step.difference))


@dataclass(frozen=True, slots=True)
class Wanted:
    """The configurations to set up: streams by name, and the lane consumers of STATUS_STREAM by name."""

    lanes: int
    streams: Mapping[str, Config]
    consumers: Mapping[str, Config]


@dataclass(frozen=True, slots=True)
class Actual:
    """What the server has: its answers to INFO for those of the relay's streams and lane consumers that exist.

    `last_stored` is, by consumer, the sequence of the newest update that it is to deliver; 0 if there is none.
    `floors` are, by consumer that is missing, the sequences up to which its lane is known to be settled.
    `captured_by` lists, for each subject of a wanted stream, all streams that capture that subject or a part of it.
    """

    streams: Mapping[str, Config]
    consumers: Mapping[str, Config]
    last_stored: Mapping[str, int]
    captured_by: Mapping[str, Sequence[str]]
    floors: Mapping[str, int] = field(default_factory=dict[str, int])


def make_plan(wanted: Wanted, actual: Actual) -> Plan:
    """Compare, and decide what to do about each difference."""
    lane_change = _lane_change(wanted, actual)
    streams = [_stream_step(name, config, actual) for name, config in wanted.streams.items()]
    consumers = [_consumer_step(name, wanted, actual, lane_change) for name in wanted.consumers]
    surplus = [Step(Verb.DELETED, Kind.CONSUMER, name) for name in actual.consumers if name not in wanted.consumers]
    refusals = (*_stream_refusals(wanted, actual), *_consumer_refusals(wanted, actual), *_lane_refusals(wanted, actual))
    found = {name: info["config"] for name, info in actual.streams.items()}
    downgrades = (*find_downgrades(wanted.streams, found), *find_overfull(wanted.streams, actual.streams))
    lost = tuple(find_lost(actual.streams, actual.consumers))
    raised = _raised_from(actual, lane_change)
    return Plan((*streams, *consumers, *surplus), refusals, lane_change, downgrades, lost, raised)


def make_lasting_plan(wanted: Wanted, actual: Actual) -> Plan:
    """As `make_plan`, for a relay that runs: without changes of the lanes, and without what only provisioning needs."""
    streams = [_stream_step(name, config, actual) for name, config in wanted.streams.items()]
    consumers = [_consumer_step(name, wanted, actual, None) for name in wanted.consumers]
    return Plan((*streams, *consumers), (*_stream_refusals(wanted, actual), *_consumer_refusals(wanted, actual)))


def _stream_step(name: str, wanted: Config, actual: Actual) -> Step:
    if name not in actual.streams:
        return Step(Verb.CREATED, Kind.STREAM, name, config=wanted)
    found: Config = actual.streams[name]["config"]
    if name == subjects.STATUS_STREAM and "max_age" in wanted:
        wanted = {**wanted, "max_age": _longer_age(wanted["max_age"], found.get("max_age", 0))}
    return _compared(Kind.STREAM, name, wanted, found, _stream_options(name, wanted, found))


def _longer_age(wanted: int, found: int) -> int:
    """Keep a longer age: operators raise it in a long outage, and lowering it would remove updates not yet relayed."""
    return found if found == 0 or found > wanted else wanted  # 0: for ever


def _consumer_step(name: str, wanted: Wanted, actual: Actual, lane_change: LaneChange | None) -> Step:
    config = wanted.consumers[name]
    if name in actual.consumers:
        info = actual.consumers[name]
        return _compared(Kind.CONSUMER, name, config, info["config"], _consumer_options(name, wanted, info))
    start: Config = {"deliver_policy": "all"}
    changes: tuple[Change, ...] = ()
    if lane_change is None and (floor := actual.floors.get(name)):
        start = {"deliver_policy": "by_start_sequence", "opt_start_seq": floor + 1}
        changes = (Change("start", "1", f"{floor + 1}, after what is settled"),)
    if lane_change is not None:
        start = {"deliver_policy": "by_start_sequence", "opt_start_seq": lane_change.last_sequence + 1}
    return Step(Verb.CREATED, Kind.CONSUMER, name, changes, config={**config, **start})


def _compared(kind: Kind, name: str, wanted: Config, actual: Config, options: Options) -> Step:
    back: Config = dict.fromkeys(options.put_back)
    changes = differences({**wanted, **back}, actual)
    changes = tuple(_weighed(change, name, actual, options.put_back.get(change.field, "")) for change in changes)
    warnings = tuple(options.warnings)
    if not changes:
        return Step(Verb.LEFT, kind, name, warnings=warnings)
    kept = {key: value for key, value in actual.items() if key not in back}
    return Step(Verb.CHANGED, kind, name, changes, merged(wanted, kept), warnings)


def _weighed(change: Change, name: str, actual: Config, harm: str) -> Change:
    key = {"lanes": "subject_transform"}.get(change.field, change.field.partition(" ")[0])
    return replace(change, harm=harm, vital=not harm and is_vital(name, key, actual.get(key)))


def _stream_options(name: str, wanted: Config, found: Config) -> Options:
    make_anew = f"settle everything, delete the stream (`nats stream rm {name}`) and provision again"
    return judge_options(f"{Kind.STREAM} {name}", STREAM_FIELDS, wanted, found, make_anew)


def _consumer_options(name: str, wanted: Wanted, info: Config) -> Options:
    found: Config = info["config"]
    if found.get("num_replicas") == wanted.streams[subjects.STATUS_STREAM].get("num_replicas"):
        found = {**found, "num_replicas": 0}
    what = f"{Kind.CONSUMER} {name}"
    options = judge_options(what, CONSUMER_FIELDS, wanted.consumers[name], found, _consumer_remedy(name))
    if (waits_for := found.get("metadata", {}).get(WAITS_KEY)) is not None:
        lane = waits_for.partition(" ")[0]
        options.warnings.append(
            f"{what} waits until lane {lane} has settled what was stored before the lanes were raised: do not resume "
            "it; `relay provision` does that in time"
        )
    elif info.get("paused"):
        options.warnings.append(
            f"{what} is paused until {found.get('pause_until')}: nothing of its lane is relayed before; "
            f"`nats consumer resume {subjects.STATUS_STREAM} {name}` ends the pause"
        )
    return options


def _consumer_remedy(name: str) -> str:
    return f"settle its updates, delete it (`nats consumer rm {subjects.STATUS_STREAM} {name}`) and provision again"


def _lane_change(wanted: Wanted, actual: Actual) -> LaneChange | None:
    status = actual.streams.get(subjects.STATUS_STREAM)
    old = subjects.lanes_of_transform(status["config"].get("subject_transform")) if status else None
    if status is None or old is None or old == wanted.lanes:
        return None
    return LaneChange(old, wanted.lanes, status["state"]["last_seq"])


def _raised_from(actual: Actual, lane_change: LaneChange | None) -> tuple[int, ...]:
    config: Config = actual.streams.get(subjects.STATUS_STREAM, {}).get("config", {})
    if lane_change is None:
        return raised_from(config)
    grows = is_growth(lane_change.old, lane_change.new)
    return raised_again(config, actual.consumers.values(), lane_change.old) if grows else ()


def _stream_refusals(wanted: Wanted, actual: Actual) -> Iterator[str]:
    for name, config in wanted.streams.items():
        found: Config = actual.streams.get(name, {}).get("config", {})
        for change in differences({key: config[key] for key in _FIXED_STREAM_FIELDS}, found) if found else ():
            yield (
                f"stream {name} has {change.field} {change.old}, the relay needs {change.new}, and that cannot be "
                f"changed: empty and delete the stream (`nats stream rm {name}`) and provision again"
            )
        yield from _stream_options(name, config, found).refusals
        for subject in config["subjects"]:
            for other in actual.captured_by.get(subject, ()):
                if other != name:
                    yield f"stream {other} captures part of {subject}, which {name} needs: change its subjects"


def _consumer_refusals(wanted: Wanted, actual: Actual) -> Iterator[str]:
    for name, info in actual.consumers.items():
        found: Config = info["config"]
        remedy = _consumer_remedy(name)
        config = wanted.consumers.get(name, {})
        fixed = {key: config[key] for key in _FIXED_CONSUMER_FIELDS if key in config}
        for change in differences(fixed, found):
            yield (
                f"consumer {name} has {change.field} {change.old}, the relay needs {change.new}, "
                f"and that cannot be changed safely: {remedy}"
            )
        if config:
            yield from _consumer_options(name, wanted, info).refusals
        if found.get("deliver_policy") not in _COMPLETE_DELIVERY:
            yield f"consumer {name} has deliver_policy {found.get('deliver_policy')}, so it skips updates: {remedy}"
        if name not in wanted.consumers and (left := _unsettled(name, actual)):
            yield f"consumer {name} would be deleted, but {left} updates in its lane are not settled: relay them first"


def _lane_refusals(wanted: Wanted, actual: Actual) -> Iterator[str]:
    status = actual.streams.get(subjects.STATUS_STREAM)
    if status is None:
        return
    stored = status["state"]["messages"]
    transform = status["config"].get("subject_transform")
    old = subjects.lanes_of_transform(transform)
    if old is None and stored:
        yield from _lost_lanes_refusals(wanted, actual, stored, other=bool(transform))
    if old is None or old == wanted.lanes:
        return
    unsettled = {name: _unsettled(name, actual) for name in actual.consumers}
    change = f"lanes {old} -> {wanted.lanes}"
    if (total := sum(unsettled.values())) and not is_growth(old, wanted.lanes):
        lanes = ", ".join(f"{name}: {count}" for name, count in unsettled.items() if count)
        yield (
            f"{change} while {total} updates are not settled ({lanes}): a job's later updates would overtake them in "
            f"another lane; let `relay serve` finish with RELAY_LANES={old}, then provision again"
        )
    given_up = actual.streams.get(subjects.ADVISORY_STREAM, {"state": {"messages": 0}})["state"]["messages"]
    if given_up:
        yield (
            f"{change} while {subjects.ADVISORY_STREAM} tells of {given_up} updates that reached max_deliver: nobody "
            f"would dead-letter those of a lane that is gone; let `relay serve` do it with RELAY_LANES={old} first"
        )
    missing = [name for name in map(subjects.lane_consumer, range(old)) if name not in actual.consumers]
    if missing and stored:
        yield (
            f"{change} while {', '.join(missing)} is missing, so nobody knows what is settled in that lane: "
            f"run `relay provision` with RELAY_LANES={old} first"
        )


def _lost_lanes_refusals(wanted: Wanted, actual: Actual, stored: int, *, other: bool) -> Iterator[str]:
    """Of a stream without our transform. If it has none at all, it had as many lanes as its consumers say.

    It may have these back. What was published meanwhile becomes dead letters: see path/strays.py.
    """
    lanes = max((subjects.lane_of_consumer(name) or 0) + 1 for name in actual.consumers) if actual.consumers else 0
    if other or not lanes:
        yield (
            f"stream {subjects.STATUS_STREAM} holds {stored} updates that are filed under no lane, "
            "so they would never be relayed: relay or copy them elsewhere, delete the stream and provision again"
        )
    elif lanes != wanted.lanes:
        yield (
            f"stream {subjects.STATUS_STREAM} has lost its lanes, and by its consumers there were {lanes}: "
            f"run `relay provision` with RELAY_LANES={lanes} first"
        )


def _unsettled(name: str, actual: Actual) -> int:
    # The server updates `num_pending` some time after the PubAck, so it may still be 0.
    info = actual.consumers[name]
    undelivered = actual.last_stored[name] > info["delivered"]["stream_seq"]
    return max(info["num_pending"], int(undelivered)) + info["num_ack_pending"]
