"""Large updates after an outage: a backlog is stored while the Facilitator is away, then it is back.

    python -m bench.large [--rows N,N,...] [--bytes-per-s N] [--away S] [--json FILE]

For each row of ROWS: how long the relay needs for all of them, and its resident memory, beside the time that the same
bytes take through the sink without the relay. The sink handles updates one after another at `--bytes-per-s`; with 0 it
is as fast as it can.
"""

import argparse
import asyncio
import json
import tempfile
import time
import urllib.request
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from bench import machine
from bench.ending import end_in_order
from bench.load import body, job_uuids
from bench.nats_line import UpdateLine
from bench.processes import BenchError, Child, resident_mib
from bench.scene import START_S, Broker, note, provision_for, relay_environment
from relay.contract.subjects import STATUS_STREAM, api_consumer_info, lane_consumer
from relay.local.server import NatsServer
from relay.nats.connection import api_request, close, connect
from relay.contract.environment import load_settings
from relay.observability.logs import configure

ROWS: Final = (
    (2000, 100_000, 1),
    (1000, 900_000, 1),
    (2000, 900_000, 1),
    (500, 2_000_000, 8),
    (500, 5_000_000, 16),
)
"""How many updates, bytes of each, and the server's max_payload in MiB."""
JOBS: Final = 1000
WINDOW: Final = 32
PACE: Final = 50_000_000
LONGEST_S: Final = 240.0
_UNCONFIRMED_BYTES: Final = 16_000_000
_SAMPLE_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement. `in_vain`: deliveries beyond one for each update."""

    updates: int
    size_bytes: int
    max_payload_mib: int
    arrived: int
    seconds: float
    alone_s: float
    idle_mib: float
    peak_mib: float
    disconnects: int
    in_vain: int
    cpu_s: float = 0.0
    problem: str | None = None


def update_of(uuid: str, size_bytes: int) -> bytes:
    """An update of about that many bytes: lines of output, as executors send them."""
    small = body(uuid, time.monotonic_ns())
    line = b"2026-11-28 12:00:00 step 0123456789 loss 0.123456789 accuracy 0.987654321 of this batch\\n"
    filler = line * (max(0, size_bytes - len(small)) // len(line))
    return small.replace(b'"docker_process_stderr":"', b'"docker_process_stderr":"' + filler)


def publish(url: str, updates: int, size_bytes: int) -> None:
    uuids = job_uuids(JOBS)
    at_a_time = max(1, _UNCONFIRMED_BYTES // size_bytes)
    with closing(UpdateLine(url, confirmed=True)) as line:
        for number in range(updates):
            uuid = uuids[number % JOBS]
            line.publish([line.update(uuid, update_of(uuid, size_bytes))])
            while line.outstanding >= at_a_time:
                line.read(10)
        while line.outstanding:
            line.read(10)
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


async def alone_s(updates: int, size_bytes: int, bytes_per_s: int, folder: Path) -> float:
    """How long the same bytes take from a client that only sends."""
    async with Child("sink", ("-m", "bench.sink", "0", str(bytes_per_s)), {}, folder) as sink:
        url = (await sink.says(START_S))["url"]
        text = update_of(job_uuids(1)[0], size_bytes)
        began_s = time.monotonic()
        transport, client = await ws_connect(lambda: _Alone(text, updates), url)
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


async def measure(updates: int, size_bytes: int, max_payload_mib: int, options: argparse.Namespace) -> Row:
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as name:
        folder = Path(name)
        alone = await alone_s(updates, size_bytes, options.bytes_per_s, folder)
        extra = options.nats_config or ""
        async with NatsServer(max_payload=max_payload_mib << 20, extra_config=extra) as server:
            return await _outage(server, folder, updates, size_bytes, max_payload_mib, alone, options)


async def _outage(server: NatsServer, folder: Path, updates: int, size_bytes: int, max_payload_mib: int, alone: float, options: argparse.Namespace) -> Row:
    broker = Broker((server.url,), (server.pid,))
    async with Child("sink", ("-m", "bench.sink"), {}, folder) as sink:
        url = (await sink.says(START_S))["url"]
        environment = relay_environment(broker, url) | {"RELAY_LOG_LEVEL": "warning"}
        await provision_for(broker, url)
        async with Child("relay", ("-m", "relay", "serve"), environment, folder) as relay:
            relay.ignore()
            await asyncio.to_thread(publish, server.url, 200, 250)
            if (await sink.ask("wait 200 20", 30))["count"] < 200:
                raise BenchError("the relay did not start")
            idle = resident_mib(relay.pid)
            await sink.end()
            away_s = time.monotonic()
            await asyncio.to_thread(publish, server.url, updates, size_bytes)
            await asyncio.sleep(max(0.0, away_s + options.away - time.monotonic()))
            resident = Resident(relay.pid)
            port = url.rpartition(":")[2].partition("/")[0]
            async with Child("sink", ("-m", "bench.sink", port, str(options.bytes_per_s)), {}, folder) as back:
                await back.says(START_S)
                began_s = time.monotonic()
                from bench.processes import cpu_s
                cpu = cpu_s(relay.pid)
                arrived = (await back.ask(f"wait {updates} {options.longest}", options.longest + 10))["count"]
                took_s = time.monotonic() - began_s
                cpu = cpu_s(relay.pid) - cpu
                await asyncio.sleep(1.0)
            resident.stop()
            in_vain = await deliveries(server.url) - 200 - updates
            with urllib.request.urlopen(f"{server.monitor_url}/varz") as answer:
                disconnects = json.load(answer)["slow_consumers"]
            if options.show_log:
                print((folder / "relay.log").read_text()[-6000:])
            return Row(updates, size_bytes, max_payload_mib, arrived, took_s, alone, idle, resident.peak_mib, disconnects, in_vain, cpu, relay.end_note)


async def deliveries(url: str) -> int:
    """How many deliveries all lanes' consumers have made."""
    client = await connect(load_settings({"RELAY_NATS_URL": url}, None).nats, name="bench")
    try:
        infos = [await api_request(client, api_consumer_info(STATUS_STREAM, lane_consumer(lane))) for lane in range(4)]
        return sum(info["delivered"]["consumer_seq"] for info in infos)
    finally:
        await close(client)


async def main(options: argparse.Namespace) -> None:
    result: dict[str, Any] = {"machine": machine.describe(), "rows": []}
    for number in options.rows:
        updates, size_bytes, max_payload_mib = ROWS[number]
        updates = max(1, round(updates * options.share))
        note(f"{updates} updates of {size_bytes / 1e6:g} MB")
        row = await measure(updates, size_bytes, max_payload_mib, options)
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
    parser.add_argument("--show-log", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.rows = [int(number) for number in arguments.rows.split(",")]
    configure("warning", "console")
    end_in_order()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(arguments))
