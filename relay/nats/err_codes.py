"""The err_codes of JetStream that the relay knows, by names of its own. nats-server's errors.json lists them all."""

from typing import Final

NO_LEADER: Final = 10008
"""The cluster is electing a leader."""
CONSUMER_NOT_FOUND: Final = 10014
STORE_FULL: Final = frozenset({10023, 10047})
"""The server's whole store is full; which of them depends on its version."""
NO_MESSAGE: Final = 10037
"""No message fits a request for one."""
NO_JETSTREAM: Final = frozenset({10039, 10076})
"""Not enabled for the account; not enabled at all."""
NOT_DELETED: Final = frozenset({10043, 10057})
"""There is no such sequence to delete; which of the two depends on where in the stream it would be."""
TOO_LARGE: Final = 10054
"""A message above the stream's limit. The relay also uses it for one above the server's `max_payload`."""
STREAM_NOT_FOUND: Final = 10059
WRONG_LAST_MESSAGE_ID: Final = 10070
WRONG_LAST_SEQUENCE: Final = 10071
STREAM_FULL: Final = 10077
CONSUMER_EXISTS: Final = 10148
IN_PROCESS: Final = 10158
"""A cluster has not agreed yet on an earlier publish with the same `Nats-Msg-Id`."""
