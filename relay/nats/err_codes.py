"""The err_codes of JetStream that the relay handles. The names are ours; nats-server's errors.json lists all codes."""

from collections.abc import Mapping
from typing import Final

NO_LEADER: Final = 10008
"""The cluster is electing a leader."""
CONSUMER_NOT_FOUND: Final = 10014
STORE_FULL: Final = frozenset({10023, 10047})
"""The server's whole store is full. Which of the two codes comes depends on the server's version."""
NO_MESSAGE: Final = 10037
"""No message matches the request."""
NO_JETSTREAM: Final = frozenset({10039, 10076})
"""JetStream is not enabled: for the account (10039), or on the server (10076)."""
NOT_DELETED: Final = frozenset({10043, 10057})
"""The sequence to delete does not exist. Which of the two codes comes depends on where in the stream it would be."""
TOO_LARGE: Final = 10054
"""The message is above the stream's limit. The relay uses it also for one above the server's `max_payload`."""
STREAM_NOT_FOUND: Final = 10059
WRONG_STREAM: Final = 10060
"""Another stream stores this subject than the publish expects."""
WRONG_LAST_SEQUENCE: Final = 10071
STREAM_FULL: Final = 10077
CONSUMER_OFFLINE: Final = 10119
"""All servers that keep a consumer are away. The relay uses it also for one whose leader does not answer."""
CONSUMER_EXISTS: Final = 10148
IN_PROCESS: Final = 10158
"""The cluster has not yet decided about an earlier publish with the same `Nats-Msg-Id`."""

_LIMITS: Final = "raise the limits of the NATS account and of the server (`nats account info`), or make room"
_OFFLINE: Final = (
    "its servers are away, or it was made by a newer nats-server: look at `nats stream report` and the servers' logs"
)
_PROVISION: Final = "run `relay provision`"
REMEDIES: Final[Mapping[int, str]] = {
    10002: _LIMITS,
    10005: (
        "too few servers of the cluster have JetStream, room, or the tags that are asked for: bring them back, or "
        "lower RELAY_REPLICAS"
    ),
    CONSUMER_NOT_FOUND: _PROVISION,
    10023: _LIMITS,
    10025: "this nats-server does not know what was asked for: upgrade it",
    10026: "allow more consumers (`max_consumers` of the NATS account and the stream), or delete some",
    10027: "allow more streams (`max_streams` of the NATS account; the relay needs five), or delete some",
    10028: _LIMITS,
    10047: _LIMITS,
    10053: _LIMITS,
    STREAM_NOT_FOUND: _PROVISION,
    10057: (
        "if the stream has `deny_delete`, that cannot be undone: back it up, delete it, and make it again with `relay "
        "provision`"
    ),
    10065: "another stream takes these subjects already: look for it with `nats stream subjects`, and change it",
    10074: "a single nats-server keeps one copy: set RELAY_REPLICAS=1, or run a cluster of three servers",
    STREAM_FULL: "raise the limit of the stream (`nats stream edit`), or make room",
    10109: (
        "the stream is sealed, which cannot be undone: back it up, delete it, and make it again with `relay provision`"
    ),
    10110: (
        "if the stream has `deny_purge`, that cannot be undone: back it up, delete it, and make it again with `relay "
        "provision`"
    ),
    10113: (
        "the NATS account demands a limit in bytes of each stream (max_bytes_required): run `relay provision` with "
        "RELAY_STORAGE_MB"
    ),
    10118: _OFFLINE,
    CONSUMER_OFFLINE: _OFFLINE,
    10120: "the NATS account has no limits for this number of copies: add them, or set RELAY_REPLICAS to one it has",
    10121: "raise `max_ack_pending` in the `limits` of nats-server's `jetstream` block",
    10122: "set RELAY_STORAGE_MB lower, or allow more bytes in a stream of the NATS account",
    10185: "this nats-server is too old for what was asked: upgrade it",
    10194: _OFFLINE,
    10195: _OFFLINE,
}
"""What an operator can do about errors whose text does not say it, by err_code."""
