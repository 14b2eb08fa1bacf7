"""The systems that the benchmarks compare.

Each is a process of its own, `python -m bench.systems.<module>` (the relay is just `python -m relay serve`), with
BENCH_NATS_URL, BENCH_FACILITATOR_URL, BENCH_REDIS_URL and BENCH_JOBS in its environment. It prints
`{"ready": true}` once it takes updates, and ends on SIGTERM.
"""

import importlib.util
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True)
class System:
    """One row of the tables.

    `backlog` is how many updates a measurement of throughput takes: enough for some seconds of work. `jobs` is for a
    system that cannot work with as many as the others. With `keeps_nothing` the backlog is published while it runs.
    `executables`, `modules` and `variables` (of the environment) must be there. `settings` are those of the relay.
    """

    name: str
    title: str
    arguments: tuple[str, ...]
    transport: str = "jetstream"
    forwards: bool = True
    announces: bool = True
    keeps_nothing: bool = False
    backlog: int = 20_000
    jobs: int | None = None
    executables: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def on_redis(self) -> bool:
        return "redis-server" in self.executables

    @property
    def missing(self) -> str | None:
        """What must be installed before this system can be measured; None if nothing is missing."""
        programs = [name for name in self.executables if shutil.which(name) is None]
        modules = [name for name in self.modules if importlib.util.find_spec(name) is None]
        lacking = [f"there is no {name} on PATH" for name in programs]
        lacking += [f"the package {name} is not installed" for name in modules]
        lacking += [f"{name} is not set" for name in self.variables if name not in os.environ]
        return "; ".join(lacking) or None


def _module(name: str) -> tuple[str, ...]:
    return ("-m", f"bench.systems.{name}")


_REDIS: Final = ("redis-server",)

FLOOR_CORE: Final = System(
    "floor_core",
    "core NATS subscriber",
    _module("floor_core"),
    transport="core",
    forwards=False,
    keeps_nothing=True,
    backlog=100_000,
)
FLOOR_PULL: Final = System(
    "floor_pull",
    "pull loop, nothing forwarded",
    _module("floor_pull"),
    forwards=False,
    backlog=200_000,
)
FLOOR_FORWARD: Final = System(
    "floor_forward",
    "forwarding floor: pull loop, each body forwarded as it is",
    _module("floor_forward"),
    backlog=150_000,
)
RELAY: Final = System("relay", "relay", ("-m", "relay", "serve"), announces=False, backlog=100_000)

EARLIER_RELAY: Final = System(
    "earlier_relay",
    "relay, an earlier state",
    _module("earlier_relay"),
    announces=False,
    backlog=100_000,
    variables=("BENCH_EARLIER_RELAY",),
)

FLOORS_AND_RELAY: Final = (FLOOR_CORE, FLOOR_PULL, FLOOR_FORWARD, RELAY)
PEERS: Final = (
    System(
        "go_relay",
        "relay in Go, of an afternoon",
        _module("go_relay"),
        backlog=100_000,
        executables=("go",),
    ),
    System(
        "faststream",
        "FastStream pull subscriber",
        _module("faststream_relay"),
        backlog=15_000,
        modules=("faststream",),
    ),
    System(
        "listener",
        "listener per job on channels-redis, 10 jobs",
        _module("listener"),
        transport="channels",
        keeps_nothing=True,
        jobs=10,
        executables=_REDIS,
        modules=("channels_redis",),
    ),
    System(
        "listener_many",
        "listener per job on channels-redis, 1,000 jobs",
        _module("listener"),
        transport="channels",
        keeps_nothing=True,
        jobs=1000,
        executables=_REDIS,
        modules=("channels_redis",),
    ),
    System(
        "celery",
        "listener handing over to Celery, 10 jobs",
        _module("celery_relay"),
        transport="channels",
        keeps_nothing=True,
        backlog=5_000,
        jobs=10,
        executables=_REDIS,
        modules=("channels_redis", "celery"),
    ),
    System(
        "taskiq",
        "taskiq-nats",
        _module("taskiq_relay"),
        transport="taskiq",
        backlog=10_000,
        modules=("taskiq_nats",),
    ),
)
FLEETS: Final = tuple(
    System(
        f"fleet_{lanes}_{workers}",
        f"{lanes} lanes, {workers} worker{'s' if workers > 1 else ''}",
        ("-m", "relay", "serve", "--workers", str(workers)),
        announces=False,
        backlog=60_000,
        settings={"RELAY_LANES": str(lanes)},
    )
    for lanes in (4, 64, 256)
    for workers in (1, 2, 4)
)
SYSTEMS: Final = {system.name: system for system in (*FLOORS_AND_RELAY, EARLIER_RELAY, *PEERS, *FLEETS)}
