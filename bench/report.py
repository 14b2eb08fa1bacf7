"""Summarises the rounds: medians with their spread, ratios to the floor of the same run, and tables of them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from bench.figures import QUANTILES, Spread, spread
from bench.systems import SYSTEMS

SHOWN: Final = (0.5, 0.9, 0.99, 0.999)
_FLOOR: Final = "floor_forward"
"""It has as many hops as a relay."""
_COARSE: Final = 100.0
"""Values above this are shown without decimals, which would mean nothing."""
_RATIO_OF: Final = (0.5, 0.99)

Row = dict[str, Any]
Table = list[list[str]]


def latency_table(rows: Sequence[Row]) -> Table:
    """A line for each rate and system. `rows`: harness.Latency of all rounds, as dictionaries."""
    head = [
        "rate/s",
        "system",
        *(f"{_name(q)} ms" for q in SHOWN),
        "p50, p99 ÷ forwarding floor",
        "publisher late, p99 ms",
        "",
    ]
    table = [head]
    for rate in _distinct(rows, "rate"):
        floor = [row for row in rows if row["rate"] == rate and row["system"] == _FLOOR]
        for system in _distinct(rows, "system"):
            of_system = [row for row in rows if row["rate"] == rate and row["system"] == system]
            figures = [_shown(quantile(of_system, q), 2) for q in SHOWN]
            ratios = [_ratio(quantile(of_system, q), quantile(floor, q)) for q in _RATIO_OF]
            late = _shown(figure(of_system, "late_p99_ms"), 2)
            table.append([f"{rate:,}", SYSTEMS[system].title, *figures, ", ".join(ratios), late, _problems(of_system)])
    return table


def saturation_table(rows: Sequence[Row]) -> Table:
    """A line for each system. `rows`: harness.Saturation of all rounds, as dictionaries."""
    head = ["system", "updates/s", "÷ forwarding floor", "CPU µs/update", "brokers' CPU µs/update", "resident MiB", ""]
    table = [head]
    floor = figure([row for row in rows if row["system"] == _FLOOR], "per_s")
    for system in _distinct(rows, "system"):
        of_system = [row for row in rows if row["system"] == system]
        per_s = figure(of_system, "per_s")
        costs = [_shown(figure(of_system, name), 1) for name in ("cpu_us", "broker_cpu_us", "resident_mib")]
        ratio = _ratio(per_s, floor)
        table.append([SYSTEMS[system].title, _shown(per_s, 0), ratio, *costs, _problems(of_system)])
    return table


def start_up_table(rows: Sequence[Row]) -> Table:
    """`rows`: scale.StartUp as dictionaries, of all rounds."""
    return [["from exec to the first update, s", ""], [_shown(figure(rows, "seconds"), 2), _problems(rows)]]


def recovery_table(rows: Sequence[Row]) -> Table:
    """`rows`: scale.Recovery as dictionaries, of all rounds."""
    table = [["backlog", "caught up after, s", ""]]
    for backlog in dict.fromkeys(row["backlog"] for row in rows):
        of_backlog = [row for row in rows if row["backlog"] == backlog]
        table.append([f"{backlog:,}", _shown(figure(of_backlog, "seconds"), 1), _problems(of_backlog)])
    return table


def durability_table(rows: Sequence[Row]) -> Table:
    """`rows`: scale.Durability as dictionaries, of all rounds."""
    table = [["stored on", "publishes/s", *(f"{_name(q)} ms" for q in SHOWN), ""]]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        of_variant = [row for row in rows if row["variant"] == variant]
        figures = [_shown(quantile(of_variant, q), 2) for q in SHOWN]
        table.append([variant, _shown(figure(of_variant, "publishes_per_s"), 0), *figures, _problems(of_variant)])
    return table


def memory_table(rows: Sequence[Row]) -> Table:
    """`rows`: scale.Memory as dictionaries, of all rounds."""
    table = [["jobs", "updates", "resident MiB at 5 %", "at the end", *(f"{_name(q)} ms" for q in SHOWN), ""]]
    for jobs in dict.fromkeys(row["jobs"] for row in rows):
        of_jobs = [row for row in rows if row["jobs"] == jobs]
        complete = [row for row in of_jobs if row["resident_mib"]]
        ends = [_over(complete, lambda row, at=at: row["resident_mib"][at]) for at in (0, -1)]
        updates = max((row["updates"][-1] for row in complete), default=0)
        figures = [_shown(quantile(of_jobs, q), 2) for q in SHOWN]
        table.append([f"{jobs:,}", f"{updates:,}", *(_shown(end, 1) for end in ends), *figures, _problems(of_jobs)])
    return table


TABLES: Final[dict[str, Callable[[Sequence[Row]], Table]]] = {
    "latency": latency_table,
    "saturation": saturation_table,
    "start_up": start_up_table,
    "recovery": recovery_table,
    "durability": durability_table,
    "memory": memory_table,
}
"""The tables of a result, by the name of its section."""


def quantile(rows: Iterable[Row], q: float) -> Spread | None:
    """In milliseconds, over rounds. In a round in which the system fell behind, only the updates that arrived count."""
    at = QUANTILES.index(q)
    return _over(rows, lambda row: row["quantiles_ms"][at] if row["quantiles_ms"] else None)


def figure(rows: Iterable[Row], name: str) -> Spread | None:
    """The figure over all rounds that have it."""
    return _over(rows, lambda row: row[name] or None)


def text(table: Table) -> str:
    """The table for a terminal: aligned columns, numbers to the right, notes below."""
    noted, notes = _footnoted(table)
    widths = [max(len(line[column]) for line in noted) for column in range(len(noted[0]))]
    lines = ["  ".join(_aligned(cell, width) for cell, width in zip(line, widths, strict=True)) for line in noted]
    return "\n".join([line.rstrip() for line in lines] + notes)


def markdown(table: Table) -> str:
    """The table for a page."""
    noted, notes = _footnoted(table)
    rule = ["---"] * len(noted[0])
    return "\n".join(["| " + " | ".join(line) + " |" for line in [noted[0], rule, *noted[1:]]] + ["", *notes]).rstrip()


def _footnoted(table: Table) -> tuple[Table, list[str]]:
    """The table with numbers in its last column, and the notes that they refer to."""
    numbers = {
        note: f"[{number}]" for number, note in enumerate(dict.fromkeys(line[-1] for line in table if line[-1]), 1)
    }
    noted = [[*line[:-1], numbers.get(line[-1], "")] for line in table]
    return noted, [f"{number} {note}" for note, number in numbers.items()]


def _over(rows: Iterable[Row], value_of: Callable[[Row], float | None]) -> Spread | None:
    values = [value for row in rows if (value := value_of(row)) is not None]
    return spread(values) if values else None


def _distinct(rows: Iterable[Row], name: str) -> list[Any]:
    return list(dict.fromkeys(row[name] for row in sorted(rows, key=_catalogue_order)))


def _catalogue_order(row: Row) -> tuple[int, float]:
    return list(SYSTEMS).index(row["system"]), row.get("rate", 0)


def _problems(rows: Sequence[Row]) -> str:
    problems = [row["problem"] for row in rows if row["problem"]]
    if not problems:
        return ""
    return f"{problems[0]} (this or the like in {len(problems)} of {len(rows)} rounds)"


def _shown(value: Spread | None, digits: int) -> str:
    if value is None:
        return "-"
    if value.least == value.most:
        return f"{value.median:,.{digits}f}"
    return f"{value.median:,.{digits}f} ({value.least:,.{digits}f}-{value.most:,.{digits}f})"


def _ratio(value: Spread | None, floor: Spread | None) -> str:
    if value is None or floor is None:
        return "-"
    ratio = value.median / floor.median
    return f"{ratio:,.0f}" if ratio >= _COARSE else f"{ratio:.2f}"


def _aligned(cell: str, width: int) -> str:
    return cell.rjust(width) if cell[:1].isdigit() or cell == "-" else cell.ljust(width)


def _name(q: float) -> str:
    return f"p{100 * q:g}"
