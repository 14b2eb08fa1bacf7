"""Runs all checks of the doctor: concurrently where possible, and each with a time limit. None stops another."""

import asyncio
import itertools
from collections.abc import Coroutine
from typing import Any, Final

import nats.errors

from relay.contract.errors import NotProvisioned, RelayError
from relay.contract.settings import NatsSettings, Settings
from relay.contract.text import describe, redact_url
from relay.doctor.facilitator_checks import FACILITATOR, check_facilitator
from relay.doctor.findings import Finding, Level, fail, unchecked
from relay.doctor.nats_checks import (
    ACCOUNT,
    NATS,
    TOPOLOGY,
    check_account,
    check_server,
    check_topology,
    open_client,
    soften_server_failures,
)
from relay.doctor.permission_check import PERMISSIONS, check_permissions
from relay.doctor.state_checks import STATE_CHECKS, check_state
from relay.nats.connection import close
from relay.nats.frames import FrameClient
from relay.observability.logs import get_logger
from relay.overview.reader import SnapshotReader

_log = get_logger(__name__)

_ON_NATS: Final = (PERMISSIONS, TOPOLOGY, *STATE_CHECKS, ACCOUNT)
CHECKS: Final = (NATS, *_ON_NATS, FACILITATOR)
"""The checks that `run_checks` makes, in the order of its findings. A check may have several findings."""
_CLOSE_TIMEOUT_S: Final = 1.0
_STATE: Final = "state"


async def run_checks(
    settings: Settings, authentication: str | None, *, timeout_s: float = 4.0, connect_timeout_s: float = 3.0
) -> list[Finding]:
    """The findings of all CHECKS. Takes about 15 seconds at most. Cancelling is safe.

    Args:
        settings: what to check.
        authentication: the message that signs in at the Facilitator; None without a hotkey.
        timeout_s: the limit for each check of NATS; twice that for the Facilitator's, which has more round trips.
        connect_timeout_s: the limit for each connection to NATS.
    """
    on_nats, at_facilitator = await asyncio.gather(
        _check_nats(settings, timeout_s, connect_timeout_s),
        _isolated(FACILITATOR, check_facilitator(settings.facilitator, authentication), 2 * timeout_s),
    )
    return [*on_nats, *at_facilitator]


async def check_broker(
    client: FrameClient, settings: Settings, *, timeout_s: float = 4.0, connect_timeout_s: float = 3.0
) -> list[Finding]:
    """What a snapshot does not show of NATS: its servers, the topology, the account. Cancelling is safe."""
    found = await asyncio.gather(
        _check_servers(settings.nats, timeout_s, connect_timeout_s),
        _isolated(TOPOLOGY, check_topology(client, settings.delivery), timeout_s),
        _isolated(ACCOUNT, check_account(client, settings.delivery.replicas), timeout_s),
    )
    return [*itertools.chain(*found)]


async def _check_nats(settings: Settings, timeout_s: float, connect_timeout_s: float) -> list[Finding]:
    servers = await _check_servers(settings.nats, timeout_s, connect_timeout_s)
    if all(server.level is Level.FAIL for server in servers):
        return [*servers, *_all_unchecked("no NATS server is fit for it")]
    try:
        client = await open_client(settings.nats, connect_timeout_s)
    except RelayError as error:
        return [*servers, fail(NATS, str(error), "ask again"), *_all_unchecked("the connection for it failed")]
    try:
        return [*servers, *await _check_relay(client, settings, timeout_s)]
    finally:
        await close(client, _CLOSE_TIMEOUT_S)


def _all_unchecked(why: str) -> list[Finding]:
    return [unchecked(name, why) for name in _ON_NATS]


async def _check_servers(settings: NatsSettings, timeout_s: float, connect_timeout_s: float) -> list[Finding]:
    checks = (
        _isolated(NATS, check_server(settings, url, connect_timeout_s), timeout_s, f"{redact_url(url)}: ")
        for url in settings.servers
    )
    return soften_server_failures([*itertools.chain(*await asyncio.gather(*checks))])


async def _check_relay(client: FrameClient, settings: Settings, timeout_s: float) -> list[Finding]:
    reader = SnapshotReader(client)
    # Permissions are checked first and alone, because a refusal shows only as the connection's last error.
    permissions = await _isolated(PERMISSIONS, _check_permissions(client, reader), timeout_s)
    found = await asyncio.gather(
        _isolated(TOPOLOGY, check_topology(client, settings.delivery), timeout_s),
        _isolated(_STATE, _check_state(reader, settings), timeout_s),
        _isolated(ACCOUNT, check_account(client, settings.delivery.replicas), timeout_s),
    )
    return [*permissions, *itertools.chain(*found)]


async def _check_permissions(client: FrameClient, reader: SnapshotReader) -> Finding:
    finding = await check_permissions(client)
    await reader.check_permissions()
    return finding


async def _check_state(reader: SnapshotReader, settings: Settings) -> list[Finding]:
    try:
        return check_state(await reader.read(), settings.delivery.followed)
    except NotProvisioned as error:
        return [unchecked(name, "; ".join(error.differences)) for name in STATE_CHECKS]


async def _isolated(
    name: str, check: Coroutine[Any, Any, Finding | list[Finding]], timeout_s: float, of: str = ""
) -> list[Finding]:
    """The findings of one check. If the check fails, that is a finding, too, so that the other checks go on.

    `of` is what it looked at, for that finding.
    """
    try:
        async with asyncio.timeout(timeout_s):
            found = await check
    except TimeoutError:
        return _failed(name, f"{of}it took more than {timeout_s:g} s")
    except (RelayError, nats.errors.Error, OSError) as error:
        return _failed(name, of + describe(error))
    except Exception as error:  # noqa: BLE001 - it is reported with its type, and the other findings are kept
        _log.exception("a check of the doctor ended unexpectedly", check=name)
        return _failed(name, f"{of}the check broke: {type(error).__name__}, with its traceback on standard error")
    else:
        return found if isinstance(found, list) else [found]


def _failed(name: str, why: str) -> list[Finding]:
    findings = [fail(name, why, "check what it names; if there was no answer, check NATS and the permissions")]
    return findings + [unchecked(each, why) for each in STATE_CHECKS] if name == _STATE else findings
