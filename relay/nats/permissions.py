"""Finding out which permissions a NATS user has, without changing anything.

The server checks permissions before it looks at the content. So the content is chosen to have no effect where the
subject is permitted: requests that cannot be parsed and have no reply subject, acknowledgements of a sequence that no
message has, publishes that expect a stream of another name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from relay.nats.frames import FrameClient

UNPARSABLE: Final = b"{"
"""The body of a request to JetStream's API that has no effect. (An empty body would be a valid pull.)"""
WRONG_STREAM: Final = {"Nats-Expected-Stream": "relay-doctor"}
"""The headers of a publish that the stream refuses, because its name is not the expected one."""


@dataclass(frozen=True, slots=True)
class Permission:
    """The permission to publish on a subject or to subscribe to it. To try a publish, `body` and `headers` are sent."""

    subject: str
    subscribe: bool = False
    body: bytes = UNPARSABLE
    headers: dict[str, str] | None = None

    def __str__(self) -> str:
        return f"{'subscribe to' if self.subscribe else 'publish on'} {self.subject}"


async def missing_permissions(client: FrameClient, permissions: Sequence[Permission]) -> list[Permission]:
    """The `permissions` that the server refuses. All are tried at once, and one by one if anything is refused.

    Nothing else may use the connection meanwhile, because a refusal shows only as the connection's last error. Raises
    nats.errors.Error if the connection is lost.
    """
    if not await _is_any_refused(client, permissions):
        return []
    return [permission for permission in permissions if await _is_any_refused(client, [permission])]


async def _is_any_refused(client: FrameClient, permissions: Sequence[Permission]) -> bool:
    before = client.last_error
    for permission in permissions:
        if permission.subscribe:
            subscription = await client.subscribe(permission.subject)
            await subscription.unsubscribe()
        else:
            await client.publish(permission.subject, permission.body, headers=permission.headers)
    await client.flush()  # the server sends its refusals before its PONG
    return client.last_error is not before
