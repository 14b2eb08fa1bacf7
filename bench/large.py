"""Large updates after an outage: a backlog is stored while the Facilitator is away, then it is back.

    python -m bench.large [--rows N,N,...] [--bytes-per-s N] [--away S] [--json FILE]

For each row of ROWS: how long the relay needs for all of them, and its resident memory, beside the time that the same
bytes take through the sink without the relay. The sink handles updates one after another at `--bytes-per-s`; with 0 it
is as fast as it can.
"""

import argparse
import asyncio
import json
import logging
import tempfile
import time
import urllib.request
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from bench import machine
from bench.ending import end_in_order
from bench.figures import quantiles
from bench.load import body, job_uuids, large_filler
from bench.nats_line import UpdateLine
from bench.processes import BenchError, Child, cpu_s, resident_mib
from bench.scene import START_S, Broker, Recorder, note, provision_for, relay_environment
from relay.contract.environment import load_settings
from relay.contract.subjects import STATUS_STREAM, api_consumer_info, lane_consumer
from relay.local.server import NatsServer
from relay.nats.connection import close, connect
from relay.nats.jetstream import api_request
from relay.observability.logs import configure


@dataclass(frozen=True, slots=True)
class Backlog:
    """How many updates wait, of how many bytes each, and the server's max_payload in MiB."""

    updates: int
    size_bytes: int
    max_payload_mib: int


ROWS: Final = (
    Backlog(2000, 100_000, 1),
    Backlog(1000, 900_000, 1),
    Backlog(2000, 900_000, 1),
    Backlog(500, 2_000_000, 8),
    Backlog(500, 5_000_000, 16),
    Backlog(100, 16_700_000, 17),
)
JOBS: Final = 1000
WINDOW: Final = 32
PACE: Final = 50_000_000
LONGEST_S: Final = 240.0
_UNCONFIRMED_BYTES: Final = 16_000_000
_SAMPLE_S: Final = 0.1
_LAST_ACKS_S: Final = 1.0
_PATIENCE_S: Final = 10.0
_SMALL_BYTES: Final = 250
RATE: Final = 1000
_LARGE_EVERY: Final = 100
_LARGE_BYTES: Final = 3_000_000
_RECORDED_BYTES: Final = 10_000
_MIXED_TURNS: Final = 3
_MIXED_QUANTILES: Final = (0.5, 0.9, 0.99, 0.999)
WARM_UP: Final = 200


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement."""

    updates: int
    size_bytes: int
    max_payload_mib: int
    arrived: int
    reconnect_s: float
    """From when the Facilitator is back until the first update arrives."""
    seconds: float
    """From then until the last one arrives."""
    alone_s: float
    idle_mib: float
    peak_mib: float
    cpu_s: float
    disconnects: int
    """By the server, because the client was too slow."""
    in_vain: int
    """Deliveries beyond one for each update."""
    problem: str | None = None


def update_of(uuid: str, size_bytes: int) -> bytes:
    """An update of about that many bytes."""
    return body(uuid, time.monotonic_ns(), filler=large_filler(max(0, size_bytes - _SMALL_BYTES)))


def publish(url: str, backlog: Backlog) -> None:
    """Publish the updates, each confirmed. Raises BenchError if the server refuses one."""
    uuids = job_uuids(JOBS)
    at_a_time = max(1, _UNCONFIRMED_BYTES // backlog.size_bytes)
    with closing(UpdateLine(url, confirmed=True)) as line:
        for number in range(backlog.updates):
            uuid = uuids[number % JOBS]
            line.publish([line.update(uuid, update_of(uuid, backlog.size_bytes))])
            while line.outstanding >= at_a_time:
                line.read(_PATIENCE_S)
        while line.outstanding:
            line.read(_PATIENCE_S)
        if line.refused:
            raise BenchError(f"{line.refused} updates were refused by nats-server")


class _Alone(WSListener):
    """Sends the same frames with WINDOW of them unanswered."""

    def __init__(self, text: bytes, updates: int) -> None:
        self.done = asyncio.get_running_loop().create_future()
        self._text = text
        self._left = updates
        self._unanswered = 0

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._fill(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type is WSMsgType.TEXT:
            self._unanswered -= 1
            self._fill(transport)
            if not self._unanswered and not self.done.done():
                self.done.set_result(None)

    def _fill(self, transport: WSTransport) -> None:
        while self._left and self._unanswered < WINDOW:
            transport.send(WSMsgType.TEXT, self._text)
            self._left -= 1
            self._unanswered += 1


async def alone_s(backlog: Backlog, bytes_per_s: int, folder: Path) -> float:
    """How long the same bytes take from a client that only sends."""
    async with Child("sink", ("-m", "bench.sink", "0", str(bytes_per_s)), {}, folder) as sink:
        url = (await sink.says(START_S))["url"]
        text = update_of(job_uuids(1)[0], backlog.size_bytes)
        began_s = time.monotonic()
        client = _Alone(text, backlog.updates)
        transport, _ = await ws_connect(lambda: client, url)
        async with asyncio.timeout(LONGEST_S):
            await client.done
        took_s = time.monotonic() - began_s
        transport.disconnect()
        return took_s


class Resident:
    """Watches the resident memory of a process."""

    def __init__(self, pid: int) -> None:
        self.peak_mib = 0.0
        self._pid = pid
        self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            self.peak_mib = max(self.peak_mib, resident_mib(self._pid))
            await asyncio.sleep(_SAMPLE_S)

    def stop(self) -> None:
        self._task.cancel()


async def measure(backlog: Backlog, options: argparse.Namespace) -> Row:
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as name:
        alone = await alone_s(backlog, options.bytes_per_s, Path(name))
        extra = options.nats_config
        async with NatsServer(max_payload=backlog.max_payload_mib << 20, extra_config=extra) as server:
            return await _Outage(server, Path(name), backlog, options).measure(alone)


class _Outage:
    """The Facilitator goes away and comes back, on the same port."""

    def __init__(self, server: NatsServer, folder: Path, backlog: Backlog, options: argparse.Namespace) -> None:
        self._server = server
        self._folder = folder
        self._backlog = backlog
        self._options = options

    async def measure(self, alone: float) -> Row:
        broker = Broker((self._server.url,), (self._server.pid,))
        async with self._sink(0, 0) as sink:
            url = (await sink.says(START_S))["url"]
            await provision_for(broker, url)
            environment = relay_environment(broker, url) | {"RELAY_LOG_LEVEL": "warning"}
            async with Child("relay", ("-m", "relay", "serve"), environment, self._folder) as relay:
                relay.ignore()
                await asyncio.to_thread(publish, self._server.url, Backlog(WARM_UP, _SMALL_BYTES, 1))
                if (await sink.ask(f"wait {WARM_UP} {START_S}", START_S + 10))["count"] < WARM_UP:
                    raise BenchError("the relay did not relay the first updates")
                idle_mib = resident_mib(relay.pid)
                await sink.end()
                away_s = time.monotonic()
                await asyncio.to_thread(publish, self._server.url, self._backlog)
                await asyncio.sleep(max(0.0, away_s + self._options.away - time.monotonic()))
                return await self._come_back(urlsplit(url).port or 0, relay, alone, idle_mib)

    async def _come_back(self, port: int, relay: Child, alone: float, idle_mib: float) -> Row:
        updates, longest_s = self._backlog.updates, self._options.longest
        resident, used_s = Resident(relay.pid), cpu_s(relay.pid)
        async with self._sink(port, self._options.bytes_per_s) as sink:
            await sink.says(START_S)
            back_s = time.monotonic()
            await sink.ask(f"wait 1 {longest_s}", longest_s + 10)
            began_s = time.monotonic()
            arrived = (await sink.ask(f"wait {updates} {longest_s}", longest_s + 10))["count"]
            took_s = time.monotonic() - began_s
            used_s = cpu_s(relay.pid) - used_s
            await asyncio.sleep(_LAST_ACKS_S)
        resident.stop()
        if self._options.show_log:
            print((self._folder / "relay.log").read_text())
        return Row(
            *(updates, self._backlog.size_bytes, self._backlog.max_payload_mib, arrived),
            *(began_s - back_s, took_s, alone, idle_mib, resident.peak_mib, used_s),
            disconnects=await asyncio.to_thread(_disconnects, self._server),
            in_vain=await deliveries(self._server.url) - WARM_UP - updates,
            problem=relay.end_note,
        )

    def _sink(self, port: int, bytes_per_s: int) -> Child:
        return Child("sink", ("-m", "bench.sink", str(port), str(bytes_per_s)), {}, self._folder)


def _disconnects(server: NatsServer) -> int:
    with urllib.request.urlopen(f"{server.monitor_url}/varz") as answer:
        return json.load(answer)["slow_consumers"]


@dataclass(frozen=True, slots=True)
class Mixed:
    """Latency of small updates at RATE, without large ones among them and with: quantiles in milliseconds."""

    system: str
    """`relay`, or `floor`: a subscriber of the updates, which does nothing with them."""
    large_bytes: int
    large_every: int
    """One of so many is large; 0: none."""
    arrived: int
    quantiles_ms: dict[float, float]
    late_p99_ms: float
    """How late the publisher was."""


async def mixed(seconds: float) -> list[Mixed]:
    """One relay, with large updates among the small ones in every other turn; then the same with the floor."""
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as name:
        folder = Path(name)
        recorded = ("-m", "bench.sink", "0", "0", str(_RECORDED_BYTES))
        async with NatsServer(max_payload=8 << 20) as server, Child("sink", recorded, {}, folder) as sink:
            broker = Broker((server.url,), (server.pid,))
            url = (await sink.says(START_S))["url"]
            await provision_for(broker, url)
            async with Child("relay", ("-m", "relay", "serve"), relay_environment(broker, url), folder) as relay:
                relay.ignore()
                turns = await _Turns("relay", sink, server.url, folder).all(seconds)
            floor = ("-m", "bench.systems.floor_core", str(_RECORDED_BYTES))
            async with Child("floor", floor, {"BENCH_NATS_URL": server.url}, folder) as subscriber:
                await subscriber.says(START_S)
                return turns + await _Turns("floor", subscriber, server.url, folder).all(seconds)


@dataclass(frozen=True, slots=True)
class _Turns:
    """Publishes to a system; `taker` is the process where its small updates arrive."""

    system: str
    taker: Child
    server_url: str
    folder: Path

    async def all(self, seconds: float) -> list[Mixed]:
        await self._turn(1.0, 0)  # warms up, and is not counted
        return [await self._turn(seconds, every) for every in (0, _LARGE_EVERY) * _MIXED_TURNS]

    async def _turn(self, seconds: float, large_every: int) -> Mixed:
        arguments = ("-m", "bench.publisher", self.server_url, "--rate", str(RATE), "--seconds", str(seconds))
        large = ("--large-every", str(large_every), "--large-bytes", str(_LARGE_BYTES))
        recorder = Recorder(self.taker, self.folder)
        async with Child("publisher", arguments + large, {}, self.folder) as publisher:
            published = await publisher.says(seconds + START_S)
        small = published["published"] - (published["published"] // large_every if large_every else 0)
        await recorder.wait(small, START_S)
        pairs = await recorder.take()
        values = quantiles(pairs.latencies_ms, _MIXED_QUANTILES)
        shown = dict(zip(_MIXED_QUANTILES, values, strict=True))
        return Mixed(self.system, _LARGE_BYTES, large_every, len(pairs), shown, published["late_p99_ms"])


async def deliveries(url: str) -> int:
    """How many deliveries all lanes' consumers have made."""
    client = await connect(load_settings({"RELAY_NATS_URL": url}, None).nats, name="bench")
    try:
        infos = [await api_request(client, api_consumer_info(STATUS_STREAM, lane_consumer(lane))) for lane in range(4)]
        return sum(info["delivered"]["consumer_seq"] for info in infos)
    finally:
        await close(client)


async def main(options: argparse.Namespace) -> None:
    result: dict[str, Any] = {"machine": machine.describe(), "rows": [], "mixed": []}
    if options.mixed:
        for turn in await mixed(options.mixed):
            print(json.dumps(asdict(turn)), flush=True)
            result["mixed"].append(asdict(turn))
    for number in options.rows:
        backlog = replace(ROWS[number], updates=max(1, round(ROWS[number].updates * options.share)))
        note(f"{backlog.updates} updates of {backlog.size_bytes / 1e6:g} MB")
        row = await measure(backlog, options)
        print(json.dumps(asdict(row)), flush=True)
        result["rows"].append(asdict(row))
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.large", description=__doc__)
    parser.add_argument("--rows", default="0,1,2,3,4")
    parser.add_argument("--bytes-per-s", type=int, default=PACE)
    parser.add_argument("--away", type=float, default=10.0)
    parser.add_argument("--longest", type=float, default=LONGEST_S)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--nats-config", default="")
    parser.add_argument("--mixed", type=float, default=0.0, help="seconds of mixed sizes")
    parser.add_argument("--show-log", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.rows = [int(number) for number in arguments.rows.split(",") if number]
    configure("warning", "console")
    logging.getLogger("picows").setLevel(logging.ERROR)
    end_in_order()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(arguments))
