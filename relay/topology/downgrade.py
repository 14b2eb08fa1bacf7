"""Changes that make the streams weaker than they are: fewer copies, shorter leases.

They are right if somebody wants them, and dangerous if the setting is just missing where `relay provision` runs: then
three copies would become one, with no question. So they must be asked for.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias

from relay.contract.subjects import LEASE_STREAM

Configs: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Configurations of streams, by name."""

_NS: Final = 1_000_000_000


def find_downgrades(wanted: Configs, actual: Configs) -> Iterator[str]:
    """One text for each setting whose value would be lowered, with what to do."""
    leases = {name: config for name, config in wanted.items() if name == LEASE_STREAM}
    yield from _lowered("RELAY_REPLICAS", "num_replicas", wanted, actual)
    yield from _lowered("RELAY_LEASE_TTL", "max_age", leases, actual, _NS)


def _lowered(variable: str, field: str, wanted: Configs, actual: Configs, unit: int = 1) -> Iterator[str]:
    pairs = {
        name: (actual[name].get(field, 0), config[field])
        for name, config in wanted.items()
        if name in actual and field in config
    }
    lower = {name: pair for name, pair in pairs.items() if pair[0] > pair[1]}
    if lower:
        old, new = (f"{value / unit:g}" for value in max(lower.values()))
        yield (
            f"{variable} {old} -> {new} ({field} of {', '.join(lower)}): if {old} is right, set {variable}={old} where "
            f"this runs; if you want less, run `relay provision --downgrade`"
        )
