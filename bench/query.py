"""Measures queries for the status of jobs while updates are relayed, and the cost of receipts.

    python -m bench.query [--rounds 3] [--seconds 10] [--stored 10,1000000] [--json FILE]

Each round uses fresh servers. Every part is a process of its own: nats-server, the relay, the sink that takes its
updates, the publisher and the asker.

- Queries: a number of updates are stored, each of another job, and relayed. Then 500 questions a second about those
  jobs are asked while 1,000 updates a second of them are relayed. Both are timed from when they were due. Also
  measured, in turn: the floor, where nats-server itself is asked for the jobs' last updates, as the relay does for an
  answer; and updates without questions.
- Receipts: a backlog is relayed with RELAY_RECEIPTS off and on, in turn: updates a second, and the relay's processor
  time for each.
"""

import argparse
import asyncio
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from bench import machine
from bench.ending import end_in_order
from bench.figures import quantiles, spread
from bench.harness import Plan, Saturation, saturation
from bench.processes import BenchError, Child
from bench.scene import Scene, note, scene
from bench.systems import RELAY
from relay.observability.logs import configure

UPDATES_PER_S: Final = 1000
QUESTIONS_PER_S: Final = 500
NOBODY: Final = "nobody"
_ASKED: Final = ("relay", "server", NOBODY)
_QUANTILES: Final = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
_PATIENCE_S: Final = 600.0
_MARGIN_S: Final = 2.0
"""How long before the questions the updates begin, and how long after them they end."""

Figures = dict[str, dict[str, float]]
"""Measured values, by name and quantile."""


async def queries(stored: int, seconds: float, order: Sequence[str]) -> Figures:
    """Milliseconds for questions, and for the updates meanwhile, by who was asked; measured in the given order.

    Raises BenchError if a question or an update was refused.
    """
    found: Figures = {}
    async with scene(RELAY, stored) as place, place.running() as running:
        await place.fill(stored)
        if await running.recorder.wait(stored, _PATIENCE_S) < stored:
            raise BenchError(f"{stored:,} updates were not relayed within {_PATIENCE_S:g} s")
        for whom in order:
            await running.recorder.take()
            publishing = asyncio.create_task(place.publish_at(UPDATES_PER_S, seconds + 2 * _MARGIN_S))
            await asyncio.sleep(_MARGIN_S)
            if whom == NOBODY:
                await asyncio.sleep(seconds)
            else:
                found[f"ms, question to {whom}"] = _quantiles(await ask(place, whom, seconds))
            published = await publishing
            if published.refused:
                raise BenchError(f"{published.refused} updates were refused")
            found[f"ms, update with {whom} asked"] = _quantiles((await running.recorder.take()).latencies_ms)
    return found


def _quantiles(latencies_ms: Sequence[float]) -> dict[str, float]:
    return dict(zip(_QUANTILES, quantiles(latencies_ms, tuple(_QUANTILES.values())), strict=True))


async def ask(place: Scene, whom: str, seconds: float) -> list[float]:
    """Milliseconds from when each question was due to its answer; see `bench.asker`."""
    how = ("--jobs", str(place.jobs), "--rate", str(QUESTIONS_PER_S), "--seconds", str(seconds), "--to", whom)
    arguments = ("-m", "bench.asker", place.broker.urls[0], *how)
    async with Child("asker", arguments, place.environment, place.folder) as asker:
        answers = await asker.says(seconds + _PATIENCE_S)
    if answers["refused"]:
        raise BenchError(f"questions were refused: {answers['refused']}")
    return answers["latencies_ms"]


async def receipts_cost(number: int, backlog: float) -> dict[str, Saturation]:
    """Measure throughput without receipts and with them; each round begins with the other."""
    found: dict[str, Saturation] = {}
    for wanted in ("false", "true") if number % 2 == 0 else ("true", "false"):
        os.environ["RELAY_RECEIPTS"] = wanted
        result = await saturation(RELAY, number, Plan((RELAY,), backlog=backlog))
        if result.problem is not None:
            raise BenchError(result.problem)
        found["with" if wanted == "true" else "without"] = result
    del os.environ["RELAY_RECEIPTS"]
    return found


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, list[float]] = defaultdict(list)
    for number in range(options.rounds):
        for stored in options.stored:
            note(f"round {number + 1} of {options.rounds}: questions about {stored:,} jobs")
            for what, quantile, value in _with_ratios(await queries(stored, options.seconds, _turns(number))):
                figures[f"{stored:,} jobs, {what}, {quantile}"].append(value)
    for number in range(options.receipts):
        note(f"round {number + 1} of {options.receipts}: receipts")
        found = await receipts_cost(number, options.backlog)
        for name, result in found.items():
            figures[f"saturated {name} receipts, updates/s"].append(result.per_s)
            figures[f"relay {name} receipts, processor us/update"].append(result.cpu_us)
        figures["what receipts cost, % of updates/s"].append(100 * (1 - found["with"].per_s / found["without"].per_s))
    return {
        "machine": machine.describe(),
        "figures": {name: asdict(spread(values)) for name, values in figures.items()},
    }


def _turns(number: int) -> Sequence[str]:
    """The order in a round: each round begins with the next one."""
    first = number % len(_ASKED)
    return _ASKED[first:] + _ASKED[:first]


def _with_ratios(figures: Figures) -> Iterator[tuple[str, str, float]]:
    """Each figure with its quantile, and the ratio of the relay's figure to the floor."""
    for what, values in figures.items():
        yield from ((what, quantile, value) for quantile, value in values.items())
    for quantile in _QUANTILES:
        relay, floor = figures["ms, question to relay"][quantile], figures["ms, question to server"][quantile]
        yield "question to relay by question to server", quantile, relay / floor


def main() -> None:
    arguments = argparse.ArgumentParser(prog="python -m bench.query", description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--rounds", type=int, default=3, help="of queries (%(default)s)")
    arguments.add_argument("--receipts", type=int, default=5, help="rounds of receipts (%(default)s)")
    arguments.add_argument("--backlog", type=float, default=1.0, help="multiplies theirs (%(default)s)")
    arguments.add_argument("--seconds", type=float, default=10.0, help="of questions in a round (%(default)s)")
    arguments.add_argument("--stored", default="10,1000000", help="how many jobs (%(default)s)")
    arguments.add_argument("--json", type=Path)
    options = arguments.parse_args()
    options.stored = [int(count) for count in options.stored.split(",")]
    configure("warning", "console")
    end_in_order()
    result = asyncio.run(measure(options))
    print(machine.sentence(result["machine"]))
    for name, figure in result["figures"].items():
        print(f"{name:52} {figure['median']:10.2f}   ({figure['least']:.2f} to {figure['most']:.2f})")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
