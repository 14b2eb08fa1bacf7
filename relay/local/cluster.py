"""A real cluster of three nats-servers on loopback, for tests and benchmarks that stop some of them."""

import asyncio
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, Self

import msgspec
from nats.aio.msg import Msg
from pydantic import SecretStr

from relay.contract.errors import LocalServerError, RelayError
from relay.contract.settings import NatsSettings
from relay.contract.subjects import api_consumer_info, api_consumer_stepdown, api_stream_info, api_stream_stepdown
from relay.local.server import NatsServer, reserve_port
from relay.nats.connection import close, connect
from relay.nats.frames import FrameClient
from relay.nats.jetstream import api_request
from relay.timing.waiting import set_within

NODES: Final = 3
ELECTION_TIMEOUT_S: Final = 25.0
"""How long to wait for a leader. A nats-server starts an election 4 to 9 s after it last heard from a leader, and has
to repeat it if another node started one at the same moment."""
_CURRENT_TIMEOUT_S: Final = 30.0
_ANSWER_TIMEOUT_S: Final = 0.5
_AGAIN_AFTER_S: Final = 0.1
ADMIN: Final = "admin"
"""User and password of the system account; everybody else needs none."""
_ACCOUNTS: Final = f"accounts: {{$SYS: {{users: [{{user: {ADMIN}, password: {ADMIN}}}]}}}}"
_HOST: Final = "127.0.0.1"
_ELECTIONS: Final = "$JS.EVENT.ADVISORY.*.LEADER_ELECTED.>"
_MONITOR_REQUEST: Final = b"GET /jsz?streams=1&consumers=1 HTTP/1.0\r\n\r\n"


class NatsCluster:
    """Three nodes, started and ended by `async with`; each can be killed and started again in between.

    The cluster is ready when the nodes have elected a leader for their metadata and the followers have caught up with
    it. A node that was killed keeps its ports and its store.

        async with NatsCluster() as cluster:
            leader = await cluster.leader_of_stream("JOB_STATUS")
            await cluster.kill(leader)

    Args:
        accounts: the accounts and users, in nats-server's own syntax. By default nobody needs credentials, and the user
            ADMIN has the system account.
        user, password: of this object's own connection, if the accounts ask for them.

    Methods that need a leader wait for its election; they raise LocalServerError if none is elected within
    ELECTION_TIMEOUT_S.
    """

    def __init__(self, accounts: str = _ACCOUNTS, user: str | None = None, password: str | None = None) -> None:
        self._routes = [reserve_port() for _ in range(NODES)]
        ports = [reserved.getsockname()[1] for reserved in self._routes]
        if sys.platform != "linux":
            self._release_routes()
        self._nodes = {_name(i): NatsServer(extra_config=_config(i, ports, accounts)) for i in range(NODES)}
        self._sign_in = NatsSettings(user=user, password=SecretStr(password) if password else None)
        self._running: set[str] = set()
        self._observer: FrameClient | None = None
        self._elected = asyncio.Event()

    @property
    def nodes(self) -> tuple[NatsServer, ...]:
        return tuple(self._nodes.values())

    @property
    def running(self) -> tuple[NatsServer, ...]:
        """The nodes that were not killed."""
        return tuple(node for name, node in self._nodes.items() if name in self._running)

    @property
    def urls(self) -> tuple[str, ...]:
        """Where clients connect: a URL for each node, whether it runs or not."""
        return tuple(node.url for node in self.nodes)

    async def kill(self, node: NatsServer) -> None:
        """End a node at once (SIGKILL), as a crash would."""
        self._running.discard(self._name_of(node))
        await node.kill()

    async def start(self, node: NatsServer) -> None:
        """Start a node that was killed. It still has to catch up after that: see `until_current`.

        Raises LocalServerError if it does not start.
        """
        await node.start()
        self._running.add(self._name_of(node))

    async def until_current(self) -> None:
        """Wait until all running nodes have caught up with the metadata, every stream and every consumer.

        Raises LocalServerError if that takes more than 30 s.
        """
        try:
            async with asyncio.timeout(_CURRENT_TIMEOUT_S):
                # A leader does not announce that a follower has caught up, so the only way to know is to ask again.
                while not await self._all_current():
                    await self._pause()
        except TimeoutError:
            problem = f"the nodes of the cluster have not caught up within {_CURRENT_TIMEOUT_S:g} s"
            raise LocalServerError(problem, self._log_tails) from None

    async def leader_of_stream(self, stream: str) -> NatsServer:
        """The node that leads a stream."""
        return await self._leader(api_stream_info(stream))

    async def leader_of_consumer(self, stream: str, consumer: str) -> NatsServer:
        """The node that leads a consumer."""
        return await self._leader(api_consumer_info(stream, consumer))

    async def move_stream(self, stream: str, to: NatsServer) -> None:
        """Make a node the leader of a stream: the present leader is told to hand over to it."""
        await self._move(api_stream_stepdown(stream), api_stream_info(stream), to)

    async def move_consumer(self, stream: str, consumer: str, to: NatsServer) -> None:
        """Make a node the leader of a consumer: the present leader is told to hand over to it."""
        await self._move(api_consumer_stepdown(stream, consumer), api_consumer_info(stream, consumer), to)

    async def __aenter__(self) -> Self:
        try:
            for node in self.nodes:
                await self.start(node)
            await self.until_current()
            self._observer = await connect(
                self._sign_in.model_copy(update={"urls": self.urls}), name="cluster-observer"
            )
            await self._observer.subscribe(_ELECTIONS, cb=self._on_election)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        try:
            if self._observer is not None:
                await close(self._observer)
        finally:
            await asyncio.gather(*(node.close() for node in self.nodes))
            self._release_routes()

    def _release_routes(self) -> None:
        for reserved in self._routes:
            reserved.close()

    async def _leader(self, info: str) -> NatsServer:
        try:
            async with asyncio.timeout(ELECTION_TIMEOUT_S):
                while (leader := await self._ask_for_leader(info)) is None:
                    await self._pause()
                return leader
        except TimeoutError:
            problem = f"{info} names no leader that runs within {ELECTION_TIMEOUT_S:g} s"
            raise LocalServerError(problem, self._log_tails) from None

    async def _ask_for_leader(self, info: str) -> NatsServer | None:
        """The leader, which answers this request itself; None as long as there is none."""
        assert self._observer is not None, "enter the cluster first"
        self._elected.clear()
        try:
            answer = await api_request(self._observer, info, timeout_s=_ANSWER_TIMEOUT_S)
        except RelayError:
            return None  # after no answer and after any error, the caller asks again until ELECTION_TIMEOUT_S is over
        leader: str | None = answer["cluster"].get("leader")
        return self._nodes[leader] if leader in self._running else None

    async def _pause(self) -> None:
        """Wait briefly for an election. Its advisory is lost if the observer's own node has just died."""
        await set_within(self._elected, _AGAIN_AFTER_S)

    async def _move(self, request: str, info: str, to: NatsServer) -> None:
        assert self._observer is not None, "enter the cluster first"
        while await self._leader(info) is not to:
            await api_request(self._observer, request, {"placement": {"preferred": self._name_of(to)}})

    async def _all_current(self) -> bool:
        self._elected.clear()
        running = sorted(self._running)
        try:
            views = await asyncio.gather(*(_monitor(self._nodes[name]) for name in running))
        except (OSError, EOFError):
            return False  # a node that has just started may not accept connections yet
        return all(
            _is_current(group, name, self._running)
            for name, view in zip(running, views, strict=True)
            for group in _groups(view)
        )

    async def _on_election(self, _advisory: Msg) -> None:
        self._elected.set()

    def _name_of(self, node: NatsServer) -> str:
        return next(name for name, each in self._nodes.items() if each is node)

    @property
    def _log_tails(self) -> str:
        return "\n".join(f"{name}:\n{node.log_tail}" for name, node in self._nodes.items())


def _name(number: int) -> str:
    return f"node-{number}"


def _config(number: int, ports: list[int], accounts: str) -> str:
    routes = ", ".join(f'"nats://{_HOST}:{port}"' for port in ports)
    cluster = f'{{name: local, listen: "{_HOST}:{ports[number]}", routes: [{routes}]}}'
    return f"server_name: {_name(number)}\ncluster: {cluster}\n{accounts}"


async def _monitor(node: NatsServer) -> dict[str, Any]:
    """What a node says about its Raft groups (`/jsz`)."""
    host, _, port = node.monitor_url.removeprefix("http://").partition(":")
    async with asyncio.timeout(_ANSWER_TIMEOUT_S):
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(_MONITOR_REQUEST)
            await reader.readuntil(b"\r\n\r\n")
            return msgspec.json.decode(await reader.read(), type=dict[str, Any])
        finally:
            writer.close()


def _groups(view: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What a node says about each Raft group that it is in: of the metadata, the streams and the consumers."""
    yield view.get("meta_cluster") or {}
    for account in view.get("account_details") or ():
        for stream in account.get("stream_detail") or ():
            yield stream.get("cluster") or {}  # a node that has just started may not know it yet
            for consumer in stream.get("consumer_detail") or ():
                yield consumer.get("cluster") or {}


def _is_current(group: dict[str, Any], node: str, running: set[str]) -> bool:
    """Whether `node` knows a running leader. If `node` is the leader: whether the running followers have caught up."""
    if group.get("leader") != node:
        return group.get("leader") in running
    current = {replica["name"] for replica in group.get("replicas") or () if replica["current"]}
    return running <= current | {node}
