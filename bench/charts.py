"""PNG charts of a result. A system has the same colour in all of them; the colours suit colour-blind readers."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.figures import QUANTILES, Spread, spread
from bench.report import Row, figure
from bench.systems import SYSTEMS

# The palette of Okabe and Ito.
_COLOURS: Final = {
    "floor_core": "#999999",
    "floor_pull": "#000000",
    "floor_forward": "#666666",
    "relay": "#D55E00",
    "earlier_relay": "#882255",
    "faststream": "#0072B2",
    "listener": "#009E73",
    "listener_many": "#56B4E9",
    "celery": "#CC79A7",
    "taskiq": "#E69F00",
    "go_relay": "#F0E442",
}
_FLOOR_DASHES: Final = "--"
_TICKS: Final = (0.0, 0.5, 0.9, 0.99, 0.999)
_DPI: Final = 150
_WIDTH_IN: Final = 10.0

mpl.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})


def draw(result: dict[str, Any], folder: Path) -> list[Path]:
    """Draw the charts for which `result` has figures; returns the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Figure] = {}
    if latency := result.get("latency"):
        figures["latency"] = _latency(latency)
    if saturation := result.get("saturation"):
        figures["throughput"] = _bars(saturation, "per_s", "updates a second, when saturated", "{:,.0f}")
        figures["cpu"] = _bars(saturation, "cpu_us", "processor time for an update when saturated, µs", "{:,.0f}")
    if memory := [row for row in result.get("memory", ()) if row["updates"]]:
        figures["memory"] = _memory(memory)
    paths: list[Path] = []
    for name, drawn in figures.items():
        paths.append(folder / f"{name}.png")
        drawn.savefig(paths[-1], dpi=_DPI)
    return paths


def _latency(rows: Sequence[Row]) -> Figure:
    rates = sorted({row["rate"] for row in rows})
    drawn = Figure(figsize=(_WIDTH_IN, 5.2), layout="constrained")
    panels = drawn.subplots(1, len(rates), sharey=True, squeeze=False)[0]
    for panel, rate in zip(panels, rates, strict=True):
        for name in SYSTEMS:
            of_system = [row for row in rows if row["rate"] == rate and row["system"] == name and row["quantiles_ms"]]
            if of_system:
                _curve(panel, name, of_system)
        _name_the_failed(panel, [row for row in rows if row["rate"] == rate and row["problem"]])
        panel.set_title(f"{rate:,} updates/s")
        panel.set_xlabel("percentile")
        panel.set_xticks([_nines(q) for q in _TICKS], [f"{100 * q:g}" for q in _TICKS])
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("publish to Facilitator, ms")
    lines = {line.get_label(): line for panel in panels for line in panel.get_lines()}
    drawn.legend(lines.values(), [str(label) for label in lines], loc="outside lower center", ncols=2, frameon=False)
    return drawn


def _curve(panel: Axes, name: str, rows: Sequence[Row]) -> None:
    medians = [spread(values).median for values in zip(*(row["quantiles_ms"] for row in rows), strict=True)]
    # A higher quantile would need more updates than arrived.
    last = 1 - 1 / min(row["arrived"] for row in rows)
    shown = [(_nines(q), ms) for q, ms in zip(QUANTILES, medians, strict=True) if q <= last]
    panel.plot(
        *zip(*shown, strict=True),
        label=SYSTEMS[name].title,
        color=_COLOURS[name],
        linestyle=_FLOOR_DASHES if name.startswith("floor") else "-",
        linewidth=2.4 if name == "relay" else 1.6,
    )


def _name_the_failed(panel: Axes, failed: Sequence[Row]) -> None:
    """Name the systems that failed, because the curve of what did arrive looks as if the system had kept up."""
    titles = dict.fromkeys(SYSTEMS[row["system"]].title for row in failed)
    if titles:
        text = "\n".join(["fell behind or failed:", *titles])
        panel.text(0.5, -0.17, text, transform=panel.transAxes, ha="center", va="top", fontsize=7, color="#555555")


def _nines(q: float) -> float:
    """The position of a quantile on the axis: from 0.9 to 0.99 is as far as from 0.99 to 0.999."""
    return -math.log10(1 - q)


def _bars(rows: Sequence[Row], name: str, label: str, form: str) -> Figure:
    systems = [system for system in SYSTEMS if any(row["system"] == system for row in rows)]
    drawn = Figure(figsize=(_WIDTH_IN, 1.0 + 0.5 * len(systems)), layout="constrained")
    panel = drawn.subplots()
    for place, system in enumerate(systems):
        of_system = [row for row in rows if row["system"] == system]
        value = figure(of_system, name)
        if value is None:
            panel.text(0, place, f" {_shortened(of_system[0]['problem'])}", va="center", color="#555555")
        else:
            complete = not any(row["problem"] for row in of_system)
            _bar(panel, place, system, value, form if complete else f"{form} (not all arrived)")
    panel.set_yticks(range(len(systems)), [SYSTEMS[system].title for system in systems])
    panel.set_ylim(len(systems) - 0.5, -0.5)
    panel.set_xlabel(f"{label} (median; line: least to most)")
    panel.margins(x=0.12)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return drawn


def _bar(panel: Axes, place: int, system: str, value: Spread, form: str) -> None:
    panel.barh(place, value.median, height=0.6, color=_COLOURS[system])
    panel.plot([value.least, value.most], [place, place], color="#444444", linewidth=1.2)
    panel.annotate(
        form.format(value.median),
        (max(value.median, value.most), place),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
    )


def _shortened(problem: str | None) -> str:
    most = 70
    text = problem or "no figure"
    return text if len(text) <= most else f"{text[:most]}..."


def _memory(rows: Sequence[Row]) -> Figure:
    drawn = Figure(figsize=(_WIDTH_IN * 0.7, 4.2), layout="constrained")
    panel = drawn.subplots()
    counts = sorted({row["jobs"] for row in rows})
    for jobs, colour, marker in zip(counts, ("#0072B2", "#E69F00", "#D55E00"), ("o", "s", "^"), strict=False):
        of_jobs = [row for row in rows if row["jobs"] == jobs]
        resident = [spread(values).median for values in zip(*(row["resident_mib"] for row in of_jobs), strict=False)]
        relayed = of_jobs[0]["updates"][: len(resident)]
        panel.plot(relayed, resident, color=colour, marker=marker, markersize=4, label=f"{jobs:,} jobs")
    panel.set_xscale("log")
    panel.set_ylim(0, 1.15 * max(max(row["resident_mib"]) for row in rows))
    panel.set_xlabel("updates relayed")
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    panel.set_ylabel("resident memory of the relay, MiB")
    panel.legend(frameon=False)
    panel.grid(alpha=0.3)
    return drawn
