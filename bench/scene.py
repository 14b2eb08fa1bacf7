"""What a system is measured with: fresh servers, the sink and the publisher, each its own process."""

import asyncio
import contextlib
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.figures import Pairs, read_pairs
from bench.processes import BenchError, Child
from bench.systems import System
from relay.contract.environment import load_settings
from relay.local.cluster import NatsCluster
from relay.local.server import NatsServer
from relay.nats.connection import close, connect
from relay.service.children import die_with_parent
from relay.topology.provision import provision, topology_of

START_S: Final = 30.0
_CONFIRMATIONS_S: Final = 120.0
_SLOWEST_FILL_PER_S: Final = 500
_REDIS_READY: Final = b"Ready to accept connections"
_HOST: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Broker:
    """The nats-servers of a scene."""

    urls: tuple[str, ...]
    pids: tuple[int, ...]
    replicas: int = 1


@dataclass(frozen=True, slots=True)
class Published:
    """What the publisher prints at its end; see `bench.publisher`."""

    published: int
    acked: int
    refused: int
    seconds: float
    late_p99_ms: float
    late_max_ms: float

    @property
    def expected(self) -> int:
        """How many updates should arrive."""
        return self.published - self.refused


class Recorder:
    """The process where updates arrive and are counted; see `bench.arrivals`."""

    def __init__(self, child: Child, folder: Path) -> None:
        self._child = child
        self._pairs = folder / "pairs"

    async def count(self) -> int:
        return (await self._child.ask("count"))["count"]

    async def wait(self, count: int, timeout_s: float) -> int:
        """Return how many have arrived, as soon as there are `count`, or after `timeout_s`."""
        return (await self._child.ask(f"wait {count} {timeout_s}", timeout_s + 10))["count"]

    async def take(self) -> Pairs:
        """The pairs of all updates that arrived since the last `take`."""
        await self._child.ask(f"take {self._pairs}")
        return await asyncio.to_thread(read_pairs, self._pairs)


@dataclass(frozen=True, slots=True)
class Running:
    """A system under test that takes updates; one that does not announce itself may still be starting."""

    child: Child
    recorder: Recorder


class Scene:
    """The surroundings of one system; made by `scene`.

    Args:
        system: what is measured.
        jobs: how many jobs the updates belong to.
        broker: the nats-servers; provisioned, unless the system's updates must not be stored.
        sink: the process in the role of the Facilitator.
    """

    def __init__(
        self, system: System, jobs: int, broker: Broker, sink: tuple[Child, str], redis: Broker | None
    ) -> None:
        self.broker = broker
        self.redis = redis
        self.system = system
        self.jobs = jobs
        self._sink, self._sink_url = sink
        self.folder = self._sink.folder

    @property
    def broker_pids(self) -> tuple[int, ...]:
        """The servers that updates pass through and that do work for the system."""
        return self.broker.pids + (self.redis.pids if self.redis else ())

    @property
    def environment(self) -> dict[str, str]:
        return relay_environment(self.broker, self._sink_url, self.system.settings) | {
            "BENCH_NATS_URL": ",".join(self.broker.urls),
            "BENCH_FACILITATOR_URL": self._sink_url,
            "BENCH_REDIS_URL": self.redis.urls[0] if self.redis else "",
            "BENCH_JOBS": str(self.jobs),
        }

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Running]:
        """The system under test, and the process that counts its updates."""
        async with Child(self.system.name, self.system.arguments, self.environment, self.folder) as child:
            if self.system.announces:
                await child.says(START_S)
            if self.system.forwards:
                child.ignore()
            yield Running(child, Recorder(self._sink if self.system.forwards else child, self.folder))

    async def publish(self, *how: str, timeout_s: float = 0.0) -> Published:
        """Run the publisher to its end; `timeout_s` is how long it publishes."""
        url = self.redis.urls[0] if self.system.transport == "channels" and self.redis else self.broker.urls[0]
        arguments = ("-m", "bench.publisher", url, "--transport", self.system.transport, "--jobs", str(self.jobs))
        async with Child("publisher", arguments + how, self.environment, self.folder) as publisher:
            return Published(**await publisher.says(timeout_s + _CONFIRMATIONS_S))

    async def publish_at(self, rate: float, seconds: float) -> Published:
        return await self.publish("--rate", str(rate), "--seconds", str(seconds), timeout_s=seconds)

    async def fill(self, updates: int) -> Published:
        """Publish as fast as the broker confirms."""
        return await self.publish("--fill", str(updates), timeout_s=updates / _SLOWEST_FILL_PER_S)


@asynccontextmanager
async def scene(
    system: System, jobs: int, broker: AbstractAsyncContextManager[Broker] | None = None
) -> AsyncIterator[Scene]:
    """Start all that `system` needs around it, and stop it afterwards.

    `broker` is a fresh `single_server` if not given. Raises BenchError if a part cannot be started.
    """
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-bench-")))
        servers = await stack.enter_async_context(broker or single_server())
        redis = await stack.enter_async_context(redis_server(folder)) if system.on_redis else None
        sink = await stack.enter_async_context(Child("sink", ("-m", "bench.sink"), {}, folder))
        sink_url = (await sink.says(START_S))["url"]
        if system.transport != "core":  # else nothing may store what is published
            await provision_for(servers, sink_url, system.settings)
        yield Scene(system, system.jobs or jobs, servers, (sink, sink_url), redis)


@asynccontextmanager
async def single_server(sync_interval: str | None = None) -> AsyncIterator[Broker]:
    """A nats-server with file storage; `sync_interval` as in its configuration, such as `1s` or `always`."""
    with tempfile.TemporaryDirectory(prefix="relay-bench-nats-") as folder:
        config = Path(folder) / "nats-server.conf"
        sync = f", sync_interval: {sync_interval}" if sync_interval else ""
        config.write_text(f'jetstream: {{store_dir: "store"{sync}}}\n')
        async with NatsServer(config_file=config) as server:
            yield Broker((server.url,), (server.pid,))


@asynccontextmanager
async def cluster() -> AsyncIterator[Broker]:
    """Three nats-servers; each update is stored on all of them."""
    async with NatsCluster() as nodes:
        yield Broker(nodes.urls, tuple(node.pid for node in nodes.nodes), len(nodes.nodes))


@asynccontextmanager
async def redis_server(folder: Path) -> AsyncIterator[Broker]:
    """A redis-server that stores nothing on disk. Raises BenchError if it does not start."""
    binary = shutil.which("redis-server")
    if binary is None:
        raise BenchError("there is no redis-server on PATH")
    port = _free_port()
    process = await asyncio.create_subprocess_exec(
        binary,
        *("--bind", _HOST, "--port", str(port), "--save", "", "--appendonly", "no", "--dir", str(folder)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        preexec_fn=die_with_parent(),
    )
    try:
        await _until_redis_is_ready(process)
        yield Broker((f"redis://{_HOST}:{port}",), (process.pid,))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()  # it has nothing to save
        await process.wait()


async def _until_redis_is_ready(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_S):
            async for line in process.stdout:
                if _REDIS_READY in line:
                    return
    except TimeoutError:
        pass
    raise BenchError("redis-server did not come up")


async def provision_for(broker: Broker, sink_url: str, more: Mapping[str, str] | None = None) -> None:
    settings = load_settings(relay_environment(broker, sink_url, more), None)
    nc = await connect(settings.nats, name="bench")
    try:
        await provision(nc, topology_of(settings.delivery))
    finally:
        await close(nc)


def relay_environment(broker: Broker, sink_url: str, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The settings of a relay, and `more` of them."""
    return {
        "RELAY_NATS_URL": ",".join(broker.urls),
        "RELAY_FACILITATOR_URL": sink_url,
        "RELAY_FACILITATOR_AUTH": "none",
        "RELAY_HTTP_PORT": "0",
        "RELAY_REPLICAS": str(broker.replicas),
        "RELAY_LOG_LEVEL": "error",
        **(more or {}),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return probe.getsockname()[1]


def note(text: str) -> None:
    """Print progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
