"""`python -m bench`: see `python -m bench --help`."""

import argparse
import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from bench import machine, report
from bench.ending import end_in_order
from bench.harness import RATES, Latency, Plan, Saturation, measure
from bench.processes import BenchError
from bench.scale import Durability, Memory, Recovery, StartUp, measure_scale
from bench.scene import cluster, single_server
from bench.systems import FLEETS, FLOORS_AND_RELAY, PEERS, SYSTEMS
from relay.observability.logs import configure

_SECTIONS: Final = {
    Latency: "latency",
    Saturation: "saturation",
    StartUp: "start_up",
    Recovery: "recovery",
    Durability: "durability",
    Memory: "memory",
}
"""The key in the JSON under which each kind of result goes."""
_HELP: Final = """
latency: publish to Facilitator at fixed rates. saturation: a backlog worked off. scale: memory and latency by the
number of jobs, recovery, start-up, durability. all: latency and saturation.
render: nothing is measured; tables and charts are made from --json FILE.
"""


def main() -> None:
    options = _options()
    if options.what == "render":
        result = json.loads(options.json.read_text())
    else:
        configure("warning", "console")
        end_in_order()
        try:
            result = asyncio.run(_measure(options))
        except KeyboardInterrupt:
            sys.exit(f"interrupted{f'; what was measured before is in {options.json}' if options.json else ''}")
        except BenchError as error:
            sys.exit(str(error))
    _print(result)
    if options.charts:
        from bench.charts import draw  # noqa: PLC0415 - matplotlib is slow to import, and most runs draw nothing

        for path in draw(result, options.charts):
            print(path)


def _options() -> argparse.Namespace:
    parser = _parser()
    options = parser.parse_args()
    options.names = [name for name in options.systems.split(",") if name]
    if unknown := [name for name in options.names if name not in SYSTEMS]:
        parser.error(f"no such system: {', '.join(unknown)}; there are {', '.join(SYSTEMS)}")
    if options.what == "render" and options.json is None:
        parser.error("render needs --json, the file to read")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=_HELP)
    parser.add_argument("what", choices=("latency", "saturation", "all", "scale", "render"))
    parser.add_argument("--systems", default="", help=f"comma-separated, of {', '.join(SYSTEMS)}")
    parser.add_argument("--peers", action="store_true", help="the peers, too; without it the floors and the relay")
    parser.add_argument(
        "--fleet", action="store_true", help="relays with more lanes and workers, on a cluster of three servers"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rates", default=",".join(map(str, RATES)), help="updates a second (%(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="at each rate (%(default)s); longer for 1,000 updates"
    )
    parser.add_argument("--jobs", type=int, default=1000, help="that updates belong to (%(default)s)")
    parser.add_argument(
        "--backlog", type=float, default=1.0, help="multiplies backlogs, and the jobs of scale (%(default)s)"
    )
    parser.add_argument(
        "--stall", type=float, default=0.0, help="milliseconds for which all cores are taken away, 4 times a second"
    )
    parser.add_argument("--json", type=Path, help="where the results go, or come from")
    parser.add_argument("--charts", type=Path, help="the folder for charts")
    return parser


async def _measure(options: argparse.Namespace) -> dict[str, Any]:
    """All results. They are saved after each measurement, so that an interruption loses only the current one."""
    result: dict[str, Any] = {"machine": machine.describe(), "options": _plain(options)}
    plan = _plan(options)
    async for row in measure_scale(plan) if options.what == "scale" else measure(plan):
        result.setdefault(_SECTIONS[type(row)], []).append(asdict(row))
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n")
    return result


def _plan(options: argparse.Namespace) -> Plan:
    usual = FLEETS if options.fleet else FLOORS_AND_RELAY + (PEERS if options.peers else ())
    chosen = tuple(SYSTEMS[name] for name in options.names) or usual
    return Plan(
        chosen,
        latency=options.what != "saturation",
        saturation=options.what != "latency",
        rounds=options.rounds,
        jobs=options.jobs,
        rates=tuple(int(rate) for rate in options.rates.split(",")),
        seconds=options.seconds,
        backlog=options.backlog,
        stall_ms=options.stall,
        servers=cluster if options.fleet else single_server,
    )


def _plain(options: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(options).items() if not isinstance(value, Path)}


def _print(result: dict[str, Any]) -> None:
    print(machine.sentence(result["machine"]))
    print(f"medians of {result['options']['rounds']} rounds (least-most)")
    for name, table in report.TABLES.items():
        if result.get(name):
            print(f"\n{name.replace('_', '-')}\n{report.text(table(result[name]))}")


if __name__ == "__main__":
    main()
