"""The checks of NATS: is each server reachable and suitable, and is everything that the relay needs provisioned?

Cancelling a check is safe.
"""

import asyncio
import math
from collections.abc import Mapping
from typing import Any, Final

from relay.contract.contradictions import ways_to_sign_in
from relay.contract.errors import BrokerUnavailable, ConfigurationError, UnsuitableServer
from relay.contract.settings import DeliverySettings, NatsSettings
from relay.contract.subjects import api_account_info
from relay.contract.text import format_size, redact_url
from relay.doctor.findings import Finding, Level, fail, graded, ok, warn
from relay.doctor.state_checks import FULL, NEARLY_FULL
from relay.nats.connection import close, connect
from relay.nats.frames import FrameClient
from relay.nats.jetstream import api_request, require_server
from relay.topology.provision import check, topology_of

NATS: Final = "nats"
TOPOLOGY: Final = "topology"
ACCOUNT: Final = "account"
_ANSWER_TIMEOUT_S: Final = 2.0
_CLOSE_TIMEOUT_S: Final = 1.0
_CLUSTER: Final = 3
"""A cluster has so many servers, or more."""
_NO_QUORUM: Final = (
    "bring one of them back with its disk; do not reduce RELAY_REPLICAS and do not start empty servers in their place "
    "(docs/operations.md, Two servers of three)"
)
_NO_ANSWER: Final = (
    "look at its log: it may be overloaded, without a leader, or its JetStream switched off; and check whether this "
    "user may use JetStream"
)
_OPEN_SERVER: Final = "check that it is the right server; configure its users (docs/security.md), or unset RELAY_NATS_*"


async def open_client(settings: NatsSettings, timeout_s: float) -> FrameClient:
    """A connection for the doctor.

    Raises BrokerUnavailable if there is none within `timeout_s`, and ConfigurationError as `connect` does.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await connect(settings, name="relay-doctor")
    except TimeoutError as error:
        servers = list(map(redact_url, settings.servers))
        raise BrokerUnavailable(servers, f"no connection within {timeout_s:g} s") from error


async def check_server(settings: NatsSettings, url: str, timeout_s: float) -> Finding:
    """One server of the list: does it accept the connection, is it new enough, does it run JetStream?"""
    where = redact_url(url)
    try:
        client = await open_client(settings.model_copy(update={"urls": (url,)}), timeout_s)
    except (BrokerUnavailable, ConfigurationError) as error:
        cause, remedy = (error.cause, error.remedy) if isinstance(error, BrokerUnavailable) else (str(error), "")
        return fail(NATS, f"{where}: {cause}", remedy or "check RELAY_NATS_URL, that server, and the NATS credentials")
    try:
        await require_server(client, timeout_s=_ANSWER_TIMEOUT_S)
    except UnsuitableServer as error:
        return fail(NATS, error.problem, error.remedy)
    except BrokerUnavailable as error:
        return fail(NATS, f"{where}: {error.cause}", _NO_ANSWER)
    else:
        server = client.connected_server_version
        version = f"{server.major}.{server.minor}.{server.patch}"
        found = f"{where}: nats-server {version}, JetStream, messages of up to {format_size(client.max_payload)}"
        if ways_to_sign_in(settings) and not client.asked_for_credentials:
            return warn(NATS, f"{found}; it lets everybody in, without the credentials that are set", _OPEN_SERVER)
        return ok(NATS, found)
    finally:
        await close(client, _CLOSE_TIMEOUT_S)


def soften_server_failures(findings: list[Finding]) -> list[Finding]:
    """The same findings about all servers, but if one server works, the failure of another is only a warning."""
    away = sum(finding.level is Level.FAIL for finding in findings)
    if len(findings) >= _CLUSTER and away > len(findings) // 2:
        found = f"{away} of {len(findings)} servers cannot be used: a cluster without a quorum stores nothing"
        return [*findings, fail(NATS, found, _NO_QUORUM)]
    if away == len(findings):
        return findings
    return [
        warn(NATS, finding.found, finding.remedy) if finding.level is Level.FAIL else finding for finding in findings
    ]


async def check_topology(client: FrameClient, settings: DeliverySettings) -> Finding:
    """Are streams and consumers as these settings ask? The same comparison as `relay provision --check`."""
    plan = await check(client, topology_of(settings))
    if plan.in_place:
        return ok(TOPOLOGY, "streams, consumers and the lease bucket are as these settings ask")
    found, remedy = "; ".join(plan.differences), "run `relay provision` with the settings of the relays"
    if (lanes := plan.lane_change) is not None:
        remedy = (
            f"if {lanes.old} lanes are right, start the relays and this with RELAY_LANES={lanes.old}; to have "
            f"{lanes.new}, see docs/operations.md, Changing the number of lanes"
        )
    if not plan.suffices:
        return fail(TOPOLOGY, found, remedy)
    if not plan.is_done:
        return warn(TOPOLOGY, found, f"{remedy}; until then relays go by what they find")
    return warn(
        TOPOLOGY,
        found,
        "docs/streams.md says what each option means, and docs/operations.md what to do about lost copies",
    )


async def check_account(client: FrameClient, replicas: int) -> Finding:
    """How much of the storage of the NATS account is used? `replicas`: of the streams; limits may depend on it."""
    return judge_account(await api_request(client, api_account_info()), replicas)


def judge_account(info: Mapping[str, Any], replicas: int) -> Finding:
    """The finding of `check_account` from what JetStream's API answers about the account.

    An account with tiers has limits for streams with so many copies (`R3`), each for one copy, and none besides. Those
    count in which something is stored; if there is none, that of `replicas`.
    """
    tiers: Mapping[str, Mapping[str, Any]] = info.get("tiers") or {}
    ours = f"R{replicas}"
    named = [name for name in tiers if tiers[name].get("storage")] or [ours]
    if tiers and named[0] not in tiers:
        found = f"it may store streams with {', '.join(sorted(tiers))}, and none with {ours}"
        return fail(ACCOUNT, found, f"raise the limits for {ours}, or choose another RELAY_REPLICAS")
    held = [_used_and_limit(tiers[name], int(name.removeprefix("R"))) for name in named] if tiers else []
    used, limit = max(held or [_used_and_limit(info, 1)], key=_share)
    if limit < 0:
        return ok(
            ACCOUNT, f"{format_size(used)} stored; it has no limit of its own, the server's shows in its configuration"
        )
    remedy = "when it is full, publishes are refused: raise the limit, or make room"
    if limit == 0:
        return fail(ACCOUNT, "it may store nothing in files (max_storage is 0)", "raise the limit")
    found = f"{format_size(used)} of {format_size(limit)} stored ({used / limit:.0%})"
    return graded(ACCOUNT, used / limit, (NEARLY_FULL, FULL), found, remedy)


def _used_and_limit(usage: Mapping[str, Any], copies: int) -> tuple[int, int]:
    """Bytes of all copies; a negative limit is none."""
    return usage.get("storage", 0), usage.get("limits", {}).get("max_storage", -1) * copies


def _share(used_and_limit: tuple[int, int]) -> float:
    used, limit = used_and_limit
    return used / limit if limit else math.inf
