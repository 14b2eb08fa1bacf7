"""How many servers keep a stream or a consumer, from what JetStream's API answers about it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from relay.contract import subjects

REMEDY: Final = (
    "if a server was removed from the cluster (`peer-remove`), it is not let in again under its old name: start it "
    "with a new `server_name` and an empty store; otherwise look at the log of the server that is missing"
)


@dataclass(frozen=True, slots=True)
class Copies:
    """Of one stream or consumer."""

    kept: int | None
    """How many servers keep it, those that are behind included; None if the server is in no cluster."""
    behind: tuple[str, ...]
    """Those of them that are offline or not up to date."""


def copies_of(info: Mapping[str, Any]) -> Copies:
    """From what JetStream's API answers about a stream or a consumer."""
    cluster: dict[str, Any] = info.get("cluster") or {}
    followers: list[dict[str, Any]] = cluster.get("replicas") or []
    kept = len(followers) + bool(cluster.get("leader")) if cluster.get("name") else None
    return Copies(kept, tuple(each["name"] for each in followers if each.get("offline") or not each.get("current")))


def count_missing(streams: Mapping[str, Any], consumers: Mapping[str, Any]) -> int:
    """How many copies of streams and lane consumers are lost, or away or behind."""
    return sum(
        max(0, wanted - (copies.kept or wanted)) + len(copies.behind) for _, wanted, copies in _all(streams, consumers)
    )


def find_lost(streams: Mapping[str, Any], consumers: Mapping[str, Any]) -> Iterator[str]:
    """A text for each stream and lane consumer that fewer servers keep than it is configured to have."""
    for name, wanted, copies in _all(streams, consumers):
        if copies.kept is not None and copies.kept < wanted:
            yield f"{name} has {copies.kept} of its {wanted} copies: {REMEDY}"


def _all(streams: Mapping[str, Any], consumers: Mapping[str, Any]) -> Iterator[tuple[str, int, Copies]]:
    for name, info in streams.items():
        yield f"stream {name}", info["config"].get("num_replicas") or 1, copies_of(info)
    status = streams.get(subjects.STATUS_STREAM, {"config": {}})
    for name, info in consumers.items():
        wanted = info["config"].get("num_replicas") or status["config"].get("num_replicas") or 1
        yield f"consumer {name}", wanted, copies_of(info)
