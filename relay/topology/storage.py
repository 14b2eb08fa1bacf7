"""How many bytes each stream may store, where an operator or the NATS account wants limits.

An account's limit counts what each stream reserves (its `max_bytes`, for each copy), so one number is split.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from relay.contract.subjects import ADVISORY_STREAM, DLQ_STREAM, LEASE_STREAM, REQUEST_STREAM, STATUS_STREAM
from relay.topology.comparison import Config

_SHARES: Final = {STATUS_STREAM: 50, DLQ_STREAM: 8, REQUEST_STREAM: 4, ADVISORY_STREAM: 1, LEASE_STREAM: 1}
"""In 64ths. Updates stay for 7 days, dead letters are few, and a lease or an advisory has some hundred bytes."""
_MIB: Final = 1 << 20


class _Step(Protocol):
    @property
    def config(self) -> Config: ...


def max_bytes_of(storage_bytes: int) -> dict[str, int]:
    """The limit of each stream, if all together may store this."""
    return {name: storage_bytes // sum(_SHARES.values()) * share for name, share in _SHARES.items()}


def find_storage_refusals(steps: Sequence[_Step], account: Mapping[str, Any], replicas: int) -> Iterator[str]:
    """Why the account lets no streams be made with the limits that they are to have, from its information."""
    limits = account.get("tiers", {}).get(f"R{replicas}", account).get("limits", {})
    made = [step.config for step in steps if step.config.get("storage") == "file"]
    if limits.get("max_bytes_required") and any(config.get("max_bytes", -1) <= 0 for config in made):
        yield (
            "the NATS account demands a limit in bytes of each stream (max_bytes_required): set RELAY_STORAGE_MB where "
            "`relay provision` runs, to what the account may store divided by RELAY_REPLICAS, or less"
        )
    largest, allowed = max((config.get("max_bytes", 0) for config in made), default=0), _largest_stream(limits)
    if allowed is not None and largest > allowed:
        most_mib = allowed * sum(_SHARES.values()) // _SHARES[STATUS_STREAM] // _MIB
        yield (
            f"the NATS account allows {allowed} bytes in a stream, and {STATUS_STREAM} is to have {largest}: "
            f"set RELAY_STORAGE_MB to at most {most_mib}"
        )


def _largest_stream(limits: Mapping[str, Any]) -> int | None:
    allowed = limits.get("storage_max_stream_bytes", -1)
    return allowed if allowed > 0 else None


def find_overfull(wanted: Mapping[str, Config], actual: Mapping[str, Config]) -> Iterator[str]:
    """The streams that hold more already than they would be allowed to."""
    for name, config in wanted.items():
        held, limit = actual.get(name, {}).get("state", {}).get("bytes", 0), config.get("max_bytes", -1)
        if 0 < limit < held:
            yield (
                f"RELAY_STORAGE_MB gives {name} {limit} bytes, and it holds {held}: publishers would get errors; raise "
                f"it, or, if that is wanted, run `relay provision --downgrade`"
            )
