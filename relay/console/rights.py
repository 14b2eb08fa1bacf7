"""What the NATS user of the console may do, found out by asking the server."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import nats.errors

from relay.contract.errors import BrokerUnavailable, NotPermitted, Unanswered
from relay.contract.subjects import (
    DLQ_STREAM,
    DLQ_SUBJECTS,
    RECEIPT_SUBJECTS,
    STATUS_STREAM,
    STATUS_SUBJECTS,
    api_account_info,
    api_message_delete,
)
from relay.contract.text import describe
from relay.dead_letters.reasons import SUBJECTS_TO_COUNT
from relay.nats.frames import FrameClient
from relay.nats.jetstream import api_request, not_permitted
from relay.nats.permissions import UNPARSABLE, Permission, missing_permissions

_TIMEOUT_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class Rights:
    """What the NATS user may do; the server refuses all else."""

    act: bool = False
    """Replay and purge dead letters."""
    scan: bool = False
    """Make consumers on the dead letters, to read many of them quickly."""
    hear: frozenset[str] = frozenset()
    """The subjects that it may subscribe to."""


async def find_rights(client: FrameClient) -> Rights:
    """Ask. Nothing else may use the connection meanwhile, as for `missing_permissions`.

    Raises RelayError as `api_request` does, also if JetStream is away: then nobody knows.
    """
    heard = [Permission(subject, subscribe=True) for subject in (STATUS_SUBJECTS, DLQ_SUBJECTS, RECEIPT_SUBJECTS)]
    removals = [api_message_delete(DLQ_STREAM), api_message_delete(STATUS_STREAM)]
    try:
        missing = await missing_permissions(client, heard)
        return Rights(
            act=await _all_answered(client, removals),
            scan=not await missing_permissions(client, [Permission(each) for each in SUBJECTS_TO_COUNT])
            and await _all_answered(client, SUBJECTS_TO_COUNT[:1]),
            hear=frozenset(each.subject for each in heard if each not in missing),
        )
    except (nats.errors.Error, OSError) as error:
        kind = Unanswered if isinstance(error, TimeoutError) and client.is_connected else BrokerUnavailable
        raise kind([], describe(error)) from error


async def _all_answered(client: FrameClient, subjects: Sequence[str]) -> bool:
    """Whether the user may send these requests, and somebody answers: another account may keep them to itself."""
    if await missing_permissions(client, [Permission(subject) for subject in subjects]):
        return False
    for subject in subjects:
        try:
            await client.request(subject, UNPARSABLE, timeout=_TIMEOUT_S)
        except nats.errors.NoRespondersError:
            with contextlib.suppress(NotPermitted):
                await api_request(client, api_account_info(), timeout_s=_TIMEOUT_S)
            return False
        except TimeoutError as error:
            if (refusal := not_permitted(client, subject)) is not None:  # to hear answers
                raise NotPermitted([], refusal) from error
            raise Unanswered([], f"no answer to {subject} within {_TIMEOUT_S:g} s") from error
    return True
