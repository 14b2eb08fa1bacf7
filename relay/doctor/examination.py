"""Every check there is, each for itself, side by side and in bounded time."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

import nats.errors
from nats.aio.client import Client

from relay.contract.errors import NotProvisioned, RelayError
from relay.contract.settings import Settings
from relay.contract.text import describe
from relay.doctor.facilitator import FACILITATOR, check_facilitator
from relay.doctor.findings import Finding, Verdict, fail, unchecked
from relay.doctor.nats import (
    ACCOUNT,
    NATS,
    TOPOLOGY,
    check_account,
    check_server,
    check_topology,
    judge_servers,
    open_client,
)
from relay.doctor.permissions import PERMISSIONS, check_permissions
from relay.doctor.state import STATE_CHECKS, judge
from relay.nats.connection import close
from relay.observability.logs import get_logger
from relay.overview.observer import Observer

_log = get_logger(__name__)

_ON_NATS: Final = (PERMISSIONS, TOPOLOGY, *STATE_CHECKS, ACCOUNT)
CHECKS: Final = (NATS, *_ON_NATS, FACILITATOR)
"""What `examine` looks at, in its order; a check may have several findings."""
_CHECK_TIMEOUT_S: Final = 4.0
_CLOSE_TIMEOUT_S: Final = 1.0
_STATE: Final = "state"


async def examine(settings: Settings, authentication: str | None) -> list[Finding]:
    """All that can be found out from here, in the order of an update's way. Takes some 15 seconds at the worst.

    `authentication` is the message that signs in at the Facilitator, if there is a hotkey.
    """
    on_nats, at_facilitator = await asyncio.gather(
        _examine_nats(settings),
        _isolated(FACILITATOR, _one(check_facilitator(settings.facilitator, authentication)), 2 * _CHECK_TIMEOUT_S),
    )
    return [*on_nats, *at_facilitator]


async def _examine_nats(settings: Settings) -> list[Finding]:
    checks = (_isolated(NATS, _one(check_server(settings.nats, url)), _CHECK_TIMEOUT_S) for url in settings.nats.urls)
    servers = judge_servers([finding for findings in await asyncio.gather(*checks) for finding in findings])
    if all(server.verdict is Verdict.FAIL for server in servers):
        why = "no NATS server is fit for it"
        return [*servers, *(unchecked(name, why) for name in _ON_NATS)]
    try:
        client = await open_client(settings.nats)
    except RelayError as error:
        return [*servers, fail(NATS, str(error), "ask again")]
    try:
        return [*servers, *await _examine_with(client, settings)]
    finally:
        await close(client, _CLOSE_TIMEOUT_S)


async def _examine_with(client: Client, settings: Settings) -> list[Finding]:
    observer = Observer(client)
    # The permissions first and alone: what is refused shows as the connection's last error.
    permissions = await _isolated(PERMISSIONS, _permissions(client, observer), _CHECK_TIMEOUT_S)
    found = await asyncio.gather(
        _isolated(TOPOLOGY, _one(check_topology(client, settings.delivery)), _CHECK_TIMEOUT_S),
        _isolated(_STATE, _state(observer), _CHECK_TIMEOUT_S),
        _isolated(ACCOUNT, _one(check_account(client)), _CHECK_TIMEOUT_S),
    )
    return [*permissions, *(finding for findings in found for finding in findings)]


async def _permissions(client: Client, observer: Observer) -> list[Finding]:
    finding = await check_permissions(client)
    await observer.find_out()
    return [finding]


async def _state(observer: Observer) -> list[Finding]:
    try:
        return judge(await observer.look())
    except NotProvisioned as error:
        why = "; ".join(error.differences)
        return [unchecked(name, why) for name in STATE_CHECKS]


async def _one(check: Coroutine[Any, Any, Finding]) -> list[Finding]:
    return [await check]


async def _isolated(name: str, check: Coroutine[Any, Any, list[Finding]], timeout_s: float) -> list[Finding]:
    """The findings of a check, whatever happens to it: one that fails does not end the others."""
    try:
        async with asyncio.timeout(timeout_s):
            return await check
    except TimeoutError:
        return _failed(name, f"it took more than {timeout_s:g} s")
    except (RelayError, nats.errors.Error, OSError) as error:
        return _failed(name, describe(error))
    except Exception as error:  # noqa: BLE001 - told as what it is; the other checks are worth having
        _log.exception("a check of the doctor ended unexpectedly", check=name)
        return _failed(name, f"the check broke: {type(error).__name__}, with its traceback on standard error")


def _failed(name: str, why: str) -> list[Finding]:
    findings = [fail(name, why, "look after what it names; if there is no answer, after NATS and the permissions")]
    return findings + [unchecked(each, why) for each in STATE_CHECKS] if name == _STATE else findings
