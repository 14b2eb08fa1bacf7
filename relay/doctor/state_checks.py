"""The checks of a snapshot, without I/O: is every lane driven, how long do updates wait, is anything full?"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from relay.contract.report import ConnectionReport, LostOwner
from relay.contract.subjects import ADVISORY_STREAM, DLQ_STREAM, LEASE_BUCKET, LEASE_STREAM, STATUS_STREAM
from relay.contract.text import format_counts, format_duration, format_size, how_many
from relay.dead_letters.runbook import ADVICE
from relay.doctor.findings import Finding, fail, graded, ok, unchecked, warn
from relay.overview.reports import find_disagreements
from relay.overview.rows import OLD_S, TOO_OLD_S, UNANSWERED_S
from relay.overview.snapshot import LaneSnapshot, Snapshot, StreamSnapshot
from relay.topology.copies import REMEDY

NEARLY_FULL: Final = 0.8
FULL: Final = 0.95
CLOCK_S: Final = 1.0
LOST_FOR_S: Final = 3600.0
UNTRIED_S: Final = 60.0
"""Workers try after 20 seconds."""
PAGE: Final = "docs/debugging.md"
_CONSUMER_ANEW: Final = (
    "leave the relays running, and run `relay provision` now: it makes the consumer again where the lane was "
    "(docs/operations.md, A lane's consumer)"
)
_CARRY_NOTHING: Final = "fix that; until then lanes that this worker takes over stand still"
_UNKNOWN: Final[Mapping[str, float]] = {}
STATE_CHECKS: Final = (
    *("workers", "lanes", "intake", "backlog", "dead letters", "advisories", "storage", "copies", "clock"),
)
"""The checks that `check_state` makes, in the order of its findings."""


def check_state(snapshot: Snapshot, ours: Mapping[str, float] = _UNKNOWN) -> list[Finding]:
    """The findings about the state of the relay: at least one for each of STATE_CHECKS.

    `ours` are the settings here that those of the workers are compared with, by variable.
    """
    streams = snapshot.streams.values()
    return [
        *([*_worker_problems(snapshot), *_disagreements(snapshot, ours)] or [_workers_ok(snapshot)]),
        *(_lane_problems(snapshot) or [_lanes_ok(snapshot.lanes)]),
        _intake(snapshot),
        _backlog(snapshot),
        _dead_letters(snapshot),
        _advisories(snapshot),
        *(_storage_problems(streams) or [_storage_ok(streams)]),
        *(_copy_problems(streams) or [ok("copies", "each stream has its copies, all up to date")]),
        *_clocks(snapshot),
    ]


def _worker_problems(snapshot: Snapshot) -> list[Finding]:
    if not snapshot.workers and not snapshot.reports:
        found = "no worker is alive: nothing is relayed, JetStream keeps what is published"
        return [fail("workers", found, "start `relay serve`; if it runs, its log and /readyz say what it waits for")]
    if not snapshot.may_ask_workers:
        why = f"this NATS user may not ask the {len(snapshot.workers)} that are alive (relay.report)"
        return [unchecked("workers", why)]
    findings = [
        fail("workers", f"{worker}: {'; '.join(missing)}", "fix that; the worker then continues by itself")
        for worker, report in sorted(snapshot.reports.items())
        if (missing := [each for each in report.missing if each != report.intake])
    ]
    if not snapshot.workers:
        found = f"{len(snapshot.reports)} run, and none can announce itself in {LEASE_BUCKET}: nothing is relayed"
        remedy = "the other lines on workers, and those on intake, storage and account, say why nothing can be stored"
        findings.append(fail("workers", found, remedy))
    findings += [
        warn(
            "workers",
            f"{worker}: nats-server ended its connection among large messages, and ran on (times: "
            f"{report.slow_consumer}): probably more than max_pending waited for it",
            "look for 'Slow Consumer' in nats-server's log; raise max_pending, or see what is slow, worker or network",
        )
        for worker, report in sorted(snapshot.reports.items())
        if report.slow_consumer
    ]
    findings += [
        warn("workers", f"{worker}: {each}", "fix that; updates flow meanwhile")
        for worker, report in sorted(snapshot.reports.items())
        for each in report.warnings
    ]
    findings += [
        warn("workers", f"{worker}: its connection has no lanes, and could not carry any: {trouble}", _CARRY_NOTHING)
        for worker, report in sorted(snapshot.reports.items())
        for trouble in dict.fromkeys(connection.trouble for connection in report.connections)
        if trouble is not None and trouble not in report.missing
    ]
    findings += [
        _unanswered(worker, connection)
        for worker, report in sorted(snapshot.reports.items())
        for connection in report.connections
        if connection.waiting_s >= UNANSWERED_S
    ]
    findings += [
        _lost_owner(worker, lost)
        for worker, report in sorted(snapshot.reports.items())
        if (lost := report.lost_owner) is not None and lost.ago_s < LOST_FOR_S and lost.worker not in snapshot.reports
    ]
    return findings + [_silent(snapshot, worker) for worker in sorted(snapshot.workers - snapshot.reports.keys())]


def _silent(snapshot: Snapshot, worker: str) -> Finding:
    lanes = [lane.lane for lane in snapshot.lanes if lane.owner == worker]
    silent_s, ttl_s = snapshot.silent_s.get(worker, 0.0), snapshot.streams[LEASE_STREAM].max_age_s
    if not ttl_s:
        remedy = f"{LEASE_BUCKET} keeps entries for ever (max_age 0), so it may be gone, with lanes that nobody takes; "
        return warn("workers", f"no report from {worker}", remedy + "`relay provision` sets max_age again")
    if silent_s <= ttl_s / 2:  # it announces itself every third of that time
        remedy = "if it is not just starting or stopping, look at its log; a worker of an older version never answers"
        return warn("workers", f"no report from {worker}", remedy)
    found = f"no sign of life of {worker} for {format_duration(silent_s)}: it died, hangs, or is cut off from NATS"
    remedy = "look for its process (id in its name) and its last log lines"
    if not lanes:
        return warn("workers", found, remedy)
    remedy += f"; another worker, if there is one, takes its lanes {ttl_s:g} s (RELAY_LEASE_TTL) after that sign"
    return fail("workers", f"{found}; {_numbered(lanes)} stand still meanwhile", remedy)


def _disagreements(snapshot: Snapshot, ours: Mapping[str, float]) -> list[Finding]:
    remedy = "find out which is right; give it to the relays, to `relay provision` and to this, and restart the relays"
    return [warn("workers", found, remedy) for found in find_disagreements(ours, snapshot.reports.values())]


def _unanswered(worker: str, connection: ConnectionReport) -> Finding:
    waited = format_duration(connection.waiting_s)
    found = (
        f"{worker}: the Facilitator takes updates and does not answer: {connection.unanswered} wait, one for {waited}"
    )
    remedy = (
        "tell the people who run the Facilitator: its workers or its database hang; after "
        "RELAY_FACILITATOR_REPLY_TIMEOUT the relay connects again and sends them again, and nothing is lost"
    )
    return graded("workers", connection.waiting_s, (UNANSWERED_S, 3 * UNANSWERED_S), found, remedy)


def _lost_owner(worker: str, lost: LostOwner) -> Finding:
    found = (
        f"{lost.worker} is gone without having given up lane {lost.lane}, which {worker} took "
        f"{format_duration(lost.ago_s)} ago"
    )
    remedy = "it died, hangs, or is cut off from NATS: look for its process (id in its name) and its last log lines"
    return warn("workers", found, remedy)


def _workers_ok(snapshot: Snapshot) -> Finding:
    versions = ", ".join(sorted({report.version for report in snapshot.reports.values()}))
    found = f"{len(snapshot.workers)} alive, version {versions}, connected to the Facilitator, nothing is missing"
    return ok("workers", found)


def _lane_problems(snapshot: Snapshot) -> list[Finding]:
    findings = [
        fail("lanes", f"lane {lane.lane}: {lane.trouble}", _CONSUMER_ANEW) for lane in snapshot.lanes if lane.trouble
    ]
    if free := [lane.lane for lane in snapshot.lanes if lane.owner is None]:
        remedy = "start `relay serve`; if workers are alive, wait for RELAY_LEASE_TTL, then look at their logs"
        findings.append(fail("lanes", f"nobody drives {_numbered(free)}: updates wait there", remedy))
    if leaving := [lane.lane for lane in snapshot.lanes if lane.owner and lane.owner not in snapshot.workers]:
        remedy = "run this again after RELAY_LEASE_TTL: another worker should have taken over"
        findings.append(warn("lanes", f"the owner of {_numbered(leaving)} is stopping, or dead", remedy))
    return (
        findings
        + [
            fail(
                "lanes",
                f"lane {lane.lane}, driven by {worker}: {lane.trouble}",
                "fix that; the lane then continues by itself",
            )
            for worker, report in sorted(snapshot.reports.items())
            for lane in report.lanes
            if lane.trouble
        ]
        + _unexplained(snapshot)
    )


def _unexplained(snapshot: Snapshot) -> list[Finding]:
    return [
        fail(
            "lanes",
            f"lane {lane.lane}, driven by {worker}: the Facilitator says that it has"
            f" {how_many(lane.unexplained, 'update')} that cannot have reached it before (job.integrity_error);"
            " it probably stores nothing",
            "look for a migration, or a sequence that lies behind, in its database: docs/operations.md,"
            " RelayUnexplainedDuplicates; if somebody else sends the same jobs' updates, set RELAY_OTHER_SENDERS=true",
        )
        for worker, report in sorted(snapshot.reports.items())
        for lane in report.lanes
        if lane.unexplained
    ]


def _lanes_ok(lanes: Collection[LaneSnapshot]) -> Finding:
    by_owner: dict[str, list[int]] = defaultdict(list)
    for lane in lanes:
        by_owner[str(lane.owner)].append(lane.lane)
    shares = "; ".join(f"{_numbered(numbers)} by {owner}" for owner, numbers in sorted(by_owner.items()))
    return ok("lanes", f"{how_many(len(lanes), 'lane')}, each driven: {shares}")


def _numbered(lanes: list[int]) -> str:
    return f"{'lane' if len(lanes) == 1 else 'lanes'} {', '.join(map(str, lanes))}"


def _intake(snapshot: Snapshot) -> Finding:
    idle_s = snapshot.streams[STATUS_STREAM].idle_s
    troubles = sorted({report.intake for report in snapshot.reports.values() if report.intake is not None})
    if troubles:
        found, _, remedy = troubles[0].partition("; ")
        return fail("intake", found, remedy)
    if idle_s is None:
        why = f"the latest message of {STATUS_STREAM} has a time in the future: the clock of a nats-server was set back"
        return unchecked("intake", why)
    if idle_s > UNTRIED_S:
        why = (
            f"{STATUS_STREAM} has stored nothing for {format_duration(idle_s)}, and no worker has tried whether it can"
        )
        return unchecked("intake", why)
    return ok("intake", f"{STATUS_STREAM} stores what is published, the last time {format_duration(idle_s)} ago")


def _backlog(snapshot: Snapshot) -> Finding:
    waiting = [lane for lane in snapshot.lanes if lane.unsettled]
    unread = [lane.lane for lane in snapshot.lanes if lane.trouble]
    if unread and not waiting:
        return unchecked("backlog", f"{_numbered(unread)} cannot be read: see lanes")
    if not waiting:
        but = " or was given up: see advisories" if snapshot.advisories else ""
        return ok("backlog", f"every stored update is settled{but}")
    oldest = max(waiting, key=lambda lane: lane.oldest_s or 0.0)
    age_s = oldest.oldest_s or 0.0
    count = sum(lane.unsettled for lane in waiting)
    found = f"{count} not settled, the oldest for {format_duration(age_s)} (lane {oldest.lane})"
    if unread:
        found += f", without {_numbered(unread)}, which cannot be read"
    max_age_s = snapshot.streams[STATUS_STREAM].max_age_s
    if age_s >= TOO_OLD_S and max_age_s > 0:
        found += f"; JetStream removes it in {format_duration(max(0.0, max_age_s - age_s))}, relayed or not"
    full = [lane.lane for report in snapshot.reports.values() for lane in report.lanes if lane.full]
    if full:
        found += f"; the memory of {_numbered(sorted(full))} is full, so the rest waits in JetStream"
    remedy = f"the lines on workers, lanes and facilitator say what holds it up; else {PAGE}"
    if full:
        remedy += "; if it is none of these, the updates are large and the Facilitator slow, or raise RELAY_MEMORY_MB"
    return graded("backlog", age_s, (OLD_S, TOO_OLD_S), found, remedy)


def _dead_letters(snapshot: Snapshot) -> Finding:
    counts = snapshot.dead_letters
    if not counts.total:
        return ok("dead letters", f"none in {DLQ_STREAM}")
    newest = f"of the newest {counts.counted}: " if counts.counted < counts.total else ""
    reasons = Counter(counts.reasons)
    detail = f": {newest}{format_counts(reasons)}"
    if counts.uncounted:
        reasons = sum((Counter(report.dead_letters) for report in snapshot.reports.values()), Counter[str]())
        written = f"; the workers have written {format_counts(dict(reasons.most_common()))}" if reasons else ""
        detail = f" ({counts.uncounted}{written})"
    remedy = "`relay dlq list` and `relay dlq show SEQ` say more, docs/dead-letters.md what to do about each reason"
    for reason, _ in reasons.most_common(1):
        if advice := ADVICE.get(reason):
            remedy = f"{reason} means that {advice.meaning}: {advice.remedy}; {remedy}"
    return warn("dead letters", f"{counts.total} in {DLQ_STREAM}{detail}", remedy)


def _advisories(snapshot: Snapshot) -> Finding:
    if not snapshot.advisories:
        return ok("advisories", f"none in {ADVISORY_STREAM}")
    found = f"updates that reached RELAY_MAX_DELIVER and are not dead-lettered yet: {snapshot.advisories}"
    return warn(
        "advisories", found, "the owner of their lane dead-letters them within seconds; if they stay, its log says why"
    )


def _storage_problems(streams: Iterable[StreamSnapshot]) -> list[Finding]:
    shares = [
        (stream.name, unit, held, limit)
        for stream in streams
        for unit, held, limit in (
            ("messages", stream.messages, stream.max_messages),
            ("bytes", stream.bytes, stream.max_bytes),
        )
        if limit > 0 and held >= NEARLY_FULL * limit
    ]
    return [
        graded(
            "storage",
            held / limit,
            (NEARLY_FULL, FULL),
            f"{name} holds {held} of {limit} {unit} ({held / limit:.0%})",
            f"raise the limit (`nats stream edit {name}`), or make room",
        )
        for name, unit, held, limit in shares
    ]


def _storage_ok(streams: Iterable[StreamSnapshot]) -> Finding:
    held = ", ".join(f"{stream.name} {format_size(stream.bytes)}" for stream in streams if stream.messages)
    return ok("storage", f"no stream is near a limit of its own ({held or 'all are empty'})")


def _copy_problems(streams: Collection[StreamSnapshot]) -> list[Finding]:
    findings = [
        warn("copies", f"stream {stream.name}: {', '.join(stream.behind)} is away or behind", "check that server")
        for stream in streams
        if stream.behind
    ]
    findings += [
        warn("copies", f"stream {stream.name} has {stream.copies} of its {stream.replicas} copies", REMEDY)
        for stream in streams
        if stream.copies is not None and stream.copies < stream.replicas
    ]
    if single := [stream.name for stream in streams if stream.replicas == 1]:
        which = "each stream" if len(single) == len(streams) else ", ".join(single)
        found = f"one copy of {which}: with its server, or its power, the latest updates may be lost"
        remedy = "fine for a workshop; production wants three servers and RELAY_REPLICAS=3"
        findings.append(warn("copies", found, remedy))
    return findings


def _clocks(snapshot: Snapshot) -> list[Finding]:
    remedy = "synchronise the clock of its machine (NTP); nothing is lost or reordered by it, and ages are corrected"
    apart = {worker: report.server_ahead_s for worker, report in snapshot.reports.items()}
    return [
        _clock(snapshot),
        *(
            warn(
                "clock", f"{worker}: its clock is {format_duration(abs(ahead_s))} {_side(ahead_s)} that of NATS", remedy
            )
            for worker, ahead_s in sorted(apart.items())
            if abs(ahead_s) >= CLOCK_S
        ),
    ]


def _side(server_ahead_s: float) -> str:
    return "behind" if server_ahead_s > 0 else "ahead of"


def _clock(snapshot: Snapshot) -> Finding:
    off_s = abs(snapshot.server_ahead_s)
    if off_s - snapshot.clock_error_s < CLOCK_S:
        return ok("clock", f"within {max(off_s, snapshot.clock_error_s) * 1000:.0f} ms of that of NATS")
    where = _side(snapshot.server_ahead_s)
    found = f"this machine's clock is {format_duration(off_s)} {where} that of NATS: latencies and ages are wrong by it"
    remedy = "synchronise both (NTP); nothing is lost or reordered by it, because leases use monotonic clocks"
    return warn("clock", found, remedy)
