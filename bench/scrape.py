"""Measures what a scrape of /metrics every second costs the updates that are relayed meanwhile.

    python -m bench.scrape [--rounds 6] [--seconds 10] [--rate 1000] [--json FILE]

One relay, started once. Each round measures it once without a scrape and once with one, and the next round begins with
the other, so that what the machine does besides affects both alike. The figures are ratios of a round's two halves.
"""

import argparse
import asyncio
import contextlib
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

from bench.ending import end_in_order
from bench.figures import quantiles, spread
from bench.processes import BenchError, Child
from bench.scene import Recorder, Running, Scene, _free_port, note, scene
from bench.systems import RELAY
from relay.observability.logs import configure

AT: Final = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
SCRAPE_EVERY_S: Final = 1.0
WARM_UP_S: Final = 3.0
BEHIND_S: Final = 10.0
JOBS: Final = 1000


@contextlib.asynccontextmanager
async def scraped(port: int, took_ms: list[float]) -> AsyncIterator[None]:
    """Scrape every second, and append to `took_ms` how long each took."""
    scraping = asyncio.create_task(_scrape(port, took_ms))
    try:
        yield
    finally:
        scraping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await scraping


async def _scrape(port: int, took_ms: list[float]) -> None:
    while True:
        began_s = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\nhost: relay\r\n\r\n")
        answer = await reader.read()
        writer.close()
        if b"relay_updates_total" not in answer:
            raise BenchError(f"/metrics answered {answer[:100]!r}")
        took_ms.append(1e3 * (time.monotonic() - began_s))
        await asyncio.sleep(SCRAPE_EVERY_S)


async def half(place: Scene, running: Running, rate: float, seconds: float) -> dict[str, float]:
    """Quantiles of the milliseconds from when an update was due to its arrival."""
    published = await place.publish_at(rate, seconds)
    await running.recorder.wait(published.expected, BEHIND_S)
    pairs = await running.recorder.take()
    if len(pairs) < published.published:
        raise BenchError(f"{len(pairs)} of {published.published} updates arrived")
    return dict(zip(AT, quantiles(pairs.latencies_ms, list(AT.values())), strict=True))


async def measure(rounds: int, rate: float, seconds: float) -> dict[str, Any]:
    """The ratios of the figures with a scrape to those without, and the figures themselves."""
    halves: dict[bool, list[dict[str, float]]] = defaultdict(list)
    took_ms: list[float] = []
    port = _free_port()
    async with scene(RELAY, JOBS) as place:
        environment = place.environment | {"RELAY_HTTP_PORT": str(port)}
        async with Child(RELAY.name, RELAY.arguments, environment, place.folder) as child:
            child.ignore()
            running = Running(child, Recorder(place._sink, place.folder))  # noqa: SLF001 - as Scene.running does
            await half(place, running, rate, WARM_UP_S)
            for number in range(rounds):
                note(f"round {number + 1} of {rounds}")
                for scraping in (False, True) if number % 2 == 0 else (True, False):
                    watch: Callable[[], Any] = (lambda: scraped(port, took_ms)) if scraping else contextlib.nullcontext
                    async with watch():
                        halves[scraping].append(await half(place, running, rate, seconds))
    ratios = {
        name: [scraped[name] / plain[name] for plain, scraped in zip(halves[False], halves[True], strict=True)]
        for name in AT
    }
    return {
        "rate": rate,
        "seconds": seconds,
        "without": halves[False],
        "with": halves[True],
        "ratios": ratios,
        "scrape_ms": took_ms,
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--rounds", type=int, default=6)
    arguments.add_argument("--seconds", type=float, default=10)
    arguments.add_argument("--rate", type=float, default=1000)
    arguments.add_argument("--json", type=Path)
    options = arguments.parse_args()
    configure("warning", "console")
    end_in_order()
    result = asyncio.run(measure(options.rounds, options.rate, options.seconds))
    print(f"medians of {options.rounds} rounds (least to most), {options.rate:g} updates/s, a scrape every second")
    for name in AT:
        without, scraping, ratio = (
            spread(values)
            for values in (
                *([each[name] for each in result[which]] for which in ("without", "with")),
                result["ratios"][name],
            )
        )
        print(
            f"{name:6} {without.median:7.2f} ms without {scraping.median:7.2f} ms with"
            f"   ratio {ratio.median:.2f} ({ratio.least:.2f} to {ratio.most:.2f})"
        )
    took = spread(result["scrape_ms"])
    print(f"a scrape took {took.median:.1f} ms ({took.least:.1f} to {took.most:.1f}), {len(result['scrape_ms'])} times")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
