"""The err_codes of JetStream that the relay handles. The names are ours; nats-server's errors.json lists all codes."""

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
WRONG_LAST_MESSAGE_ID: Final = 10070
WRONG_LAST_SEQUENCE: Final = 10071
STREAM_FULL: Final = 10077
CONSUMER_EXISTS: Final = 10148
IN_PROCESS: Final = 10158
"""The cluster has not yet decided about an earlier publish with the same `Nats-Msg-Id`."""
