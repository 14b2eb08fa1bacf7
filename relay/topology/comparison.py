"""Compares a wanted configuration with an actual one, field by field."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from relay.contract import subjects

Config: TypeAlias = Mapping[str, Any]

_NS: Final = 1_000_000_000
_DURATIONS: Final = frozenset({"ack_wait", "duplicate_window", "inactive_threshold", "max_age"})
_UNITS: Final = (("d", 86_400 * _NS), ("h", 3_600 * _NS), ("m", 60 * _NS), ("s", _NS), ("ms", 1_000_000), ("ns", 1))


@dataclass(frozen=True, slots=True)
class Change:
    """One field that differs, with readable values: `ack_wait 5s -> 10s`."""

    field: str
    old: str
    new: str
    harm: str = ""
    """For an option that the relay does not set: why it is harmful."""
    vital: bool = True
    """Whether no worker can relay before it is made."""

    def __str__(self) -> str:
        return f"{self.field} {self.old} -> {self.new}" + (f" ({self.harm})" if self.harm else "")


def differences(wanted: Config, actual: Config) -> tuple[Change, ...]:
    """The fields of `wanted` that are different in `actual`.

    A field that the server leaves out counts as false, zero or empty. In metadata only the wanted keys are compared:
    the server adds its own, which begin with `_nats`.
    """
    return tuple(_changes(wanted, actual))


def merged(wanted: Config, actual: Config) -> dict[str, Any]:
    """`actual` with the fields of `wanted`. Both are sent, because an update resets each field that it leaves out."""
    config = {**actual, **wanted}
    if "metadata" in wanted:
        kept = {key: value for key, value in actual.get("metadata", {}).items() if not key.startswith("_nats")}
        config["metadata"] = {**kept, **wanted["metadata"]}
    return config


def _changes(wanted: Config, actual: Config) -> Iterator[Change]:
    for key, value in wanted.items():
        found = actual.get(key)
        if key == "metadata":
            yield from (
                Change(f"metadata {change.field}", change.old, change.new) for change in _changes(value, found or {})
            )
        elif found != value and not (found is None and not value):
            yield _lanes_changed(found, value) or Change(key, _text(key, found), _text(key, value))


def _lanes_changed(found: Any, value: Any) -> Change | None:
    if not isinstance(value, dict) or (new := subjects.lanes_of_transform(value)) is None:  # pyright: ignore[reportUnknownArgumentType]
        return None
    old = subjects.lanes_of_transform(found)
    return Change("lanes", "none" if old is None else str(old), str(new))


def _text(field: str, value: Any) -> str:
    if field in _DURATIONS and isinstance(value, int) and value > 0:
        unit, size = next((unit, size) for unit, size in _UNITS if value % size == 0)
        return f"{value // size}{unit}"
    if value is None:
        return "unset"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(str, value)) + "]"  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return str(value).lower() if isinstance(value, bool) else str(value)
