"""Judging an overview: is every lane driven, does anything wait for long, is anything full. Without I/O."""

from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Final

from relay.contract.subjects import ADVISORY_STREAM, DLQ_STREAM, STATUS_STREAM
from relay.contract.text import format_counts, format_duration, format_size
from relay.doctor.findings import Finding, Verdict, fail, ok, unchecked, warn
from relay.overview.snapshot import LaneState, Overview, StreamState

OLD_S: Final = 60.0
TOO_OLD_S: Final = 600.0
NEARLY_FULL: Final = 0.8
FULL: Final = 0.95
CLOCK_S: Final = 1.0
PAGE: Final = "docs/debugging.md"
_BY_ITSELF: Final = "mend that; it goes on by itself then"
STATE_CHECKS: Final = (*("workers", "lanes", "backlog", "dead letters", "advisories", "storage", "copies", "clock"),)
"""The checks that `judge` makes, in its order."""


def judge(seen: Overview) -> list[Finding]:
    """The findings about the state of the relay, one at least for each of STATE_CHECKS."""
    return [
        *_workers(seen),
        *_lanes(seen),
        _backlog(seen),
        _dead_letters(seen),
        _advisories(seen),
        *_storage(seen.streams.values()),
        *_copies(seen.streams.values()),
        _clock(seen),
    ]


def _workers(seen: Overview) -> list[Finding]:
    if not seen.workers:
        return [
            fail(
                "workers",
                "no worker is alive: nothing is relayed, JetStream keeps what is published",
                "start `relay serve`; if it runs, its log and /readyz say what it waits for",
            )
        ]
    if not seen.asked:
        return [
            unchecked("workers", f"this NATS user may not ask the {len(seen.workers)} that are alive (relay.report)")
        ]
    findings = [
        fail("workers", f"{worker}: {'; '.join(report.missing)}", _BY_ITSELF)
        for worker, report in sorted(seen.reports.items())
        if report.missing
    ]
    if silent := sorted(seen.workers - seen.reports.keys()):
        remedy = "if it is not just starting or stopping, look at its log; a worker of an older version never answers"
        findings.append(warn("workers", f"no report from {', '.join(silent)}", remedy))
    versions = sorted({report.version for report in seen.reports.values()})
    count = len(seen.workers)
    return findings or [
        ok("workers", f"{count} alive, version {', '.join(versions)}, connected to the Facilitator, nothing is missing")
    ]


def _lanes(seen: Overview) -> list[Finding]:
    findings = [fail("lanes", f"lane {lane.lane}: {lane.trouble}", "run it") for lane in seen.lanes if lane.trouble]
    if free := [lane.lane for lane in seen.lanes if lane.owner is None]:
        findings.append(
            fail(
                "lanes",
                f"nobody drives {_numbered(free)}: updates wait there",
                "start `relay serve`; with workers alive, wait for RELAY_LEASE_TTL and look at their logs",
            )
        )
    if parting := [lane.lane for lane in seen.lanes if lane.owner and lane.owner not in seen.workers]:
        findings.append(
            warn(
                "lanes",
                f"the owner of {_numbered(parting)} is stopping, or dead",
                "ask again after RELAY_LEASE_TTL: somebody else should have taken over",
            )
        )
    for worker, report in sorted(seen.reports.items()):
        findings += [
            fail(
                "lanes",
                f"lane {lane.lane}, driven by {worker}: {lane.trouble}",
                "mend that; the lane goes on by itself",
            )
            for lane in report.lanes
            if lane.trouble
        ]
    return findings or [ok("lanes", f"{len(seen.lanes)} lanes, each driven: {_shares(seen.lanes)}")]


def _shares(lanes: Iterable[LaneState]) -> str:
    by_owner: dict[str, list[int]] = defaultdict(list)
    for lane in lanes:
        by_owner[str(lane.owner)].append(lane.lane)
    return "; ".join(f"{_numbered(numbers)} by {owner}" for owner, numbers in sorted(by_owner.items()))


def _numbered(lanes: list[int]) -> str:
    return f"{'lane' if len(lanes) == 1 else 'lanes'} {', '.join(map(str, lanes))}"


def _backlog(seen: Overview) -> Finding:
    waiting = [lane for lane in seen.lanes if lane.unsettled]
    if not waiting:
        but = " or was given up: see advisories" if seen.advisories else ""
        return ok("backlog", f"every stored update is settled{but}")
    oldest = max(waiting, key=lambda lane: lane.oldest_s or 0.0)
    age_s = oldest.oldest_s or 0.0
    count = sum(lane.unsettled for lane in waiting)
    found = f"{count} not settled, the oldest for {format_duration(age_s)} (lane {oldest.lane})"
    if age_s < OLD_S:
        return ok("backlog", found)
    left_s = seen.streams[STATUS_STREAM].max_age_s - age_s
    if age_s >= TOO_OLD_S and seen.streams[STATUS_STREAM].max_age_s > 0:
        found += f"; JetStream removes it in {format_duration(max(0.0, left_s))}, relayed or not"
    remedy = f"the lines on workers, lanes and facilitator say what holds it up; else {PAGE}"
    return Finding("backlog", Verdict.FAIL if age_s >= TOO_OLD_S else Verdict.WARN, found, remedy)


def _dead_letters(seen: Overview) -> Finding:
    letters = seen.letters
    if not letters.total:
        return ok("dead letters", f"none in {DLQ_STREAM}")
    reasons = format_counts(letters.reasons)
    newest = f"of the newest {letters.counted}: " if letters.counted < letters.total else ""
    told = f": {newest}{reasons}" if reasons else " (this NATS user may not count them by reason)"
    remedy = "`relay dlq list` and `relay dlq show SEQ` say why; docs/dead-letters.md says what to do about each reason"
    return warn("dead letters", f"{letters.total} in {DLQ_STREAM}{told}", remedy)


def _advisories(seen: Overview) -> Finding:
    if not seen.advisories:
        return ok("advisories", f"none in {ADVISORY_STREAM}")
    return warn(
        "advisories",
        f"updates that reached RELAY_MAX_DELIVER and are not dead-lettered yet: {seen.advisories}",
        "whoever drives their lane does it within seconds; if they stay, its log says why",
    )


def _storage(streams: Iterable[StreamState]) -> list[Finding]:
    findings: list[Finding] = []
    for stream in streams:
        limits = (("messages", stream.messages, stream.max_messages), ("bytes", stream.bytes, stream.max_bytes))
        for unit, held, limit in limits:
            share = held / limit if limit > 0 else 0.0
            if share >= NEARLY_FULL:
                verdict = Verdict.FAIL if share >= FULL else Verdict.WARN
                remedy = f"raise the limit (`nats stream edit {stream.name}`), or make room"
                findings.append(
                    Finding("storage", verdict, f"{stream.name} holds {held} of {limit} {unit} ({share:.0%})", remedy)
                )
    held = ", ".join(f"{stream.name} {format_size(stream.bytes)}" for stream in streams if stream.messages)
    return findings or [ok("storage", f"no stream is near a limit of its own ({held or 'all are empty'})")]


def _copies(streams: Collection[StreamState]) -> list[Finding]:
    findings = [
        warn("copies", f"stream {stream.name}: {', '.join(stream.behind)} is away or behind", "look after that server")
        for stream in streams
        if stream.behind
    ]
    if single := [stream.name for stream in streams if stream.copies == 1]:
        which = "each stream" if len(single) == len(streams) else ", ".join(single)
        found = f"one copy of {which}: with its server, or its power, the latest updates may be lost"
        remedy = "fine for a workshop; production wants three servers and RELAY_REPLICAS=3"
        findings.append(warn("copies", found, remedy))
    return findings or [ok("copies", "each stream has its copies, all up to date")]


def _clock(seen: Overview) -> Finding:
    off_s = abs(seen.server_ahead_s)
    where = "behind" if seen.server_ahead_s > 0 else "ahead of"
    if off_s - seen.clock_error_s < CLOCK_S:
        return ok("clock", f"within {max(off_s, seen.clock_error_s) * 1000:.0f} ms of that of NATS")
    return warn(
        "clock",
        f"this machine's is {format_duration(off_s)} {where} that of NATS: latencies and ages are wrong by so much",
        "synchronise both (NTP); nothing is lost or reordered by it, because leases go by monotonic clocks",
    )
