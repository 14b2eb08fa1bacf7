"""The Grafana dashboard against the metrics that the relay really exposes."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from promql import exposed, faults, labels_of, parse

ROOT = Path(__file__).parents[2]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/job-status-relay.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ROWS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] == "row"]
VARIABLES: dict[str, dict[str, Any]] = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
TOPICS = ["The promise", "Flow", "Latency", "Facilitator", "Lanes", "Processes"]
COLUMNS = 24

panels = pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])


def area(panel: dict[str, Any]) -> tuple[range, range]:
    """The columns and lines that a panel covers."""
    place = panel["gridPos"]
    return range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])


def meet(one: range, other: range) -> bool:
    return max(one.start, other.start) < min(one.stop, other.stop)


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("rate(relay_updates_total[5m]", "unclosed left parenthesis"),
        ("rate(relay_updates_total)", "expected type matrix in call to function 'rate', got vector"),
        ("sum(relay_updates)", "nobody exposes relay_updates"),
        ('rate(relay_updates_total{reason="refused"}[5m])', "relay_updates_total has no label reason"),
        ('rate(relay_updates_total{outcome="lost"}[5m])', "relay_updates_total never has outcome lost"),
        ("sum by (lane) (relay_in_flight)", "relay_in_flight has no label lane"),
        ("relay_lag * on (reason) relay_lag", "relay_lag has no label reason"),
        ("rate(relay_lag[5m])", "relay_lag is no counter, as rate wants one"),
        (
            "histogram_quantile(0.5, sum(rate(relay_hot_path_seconds_bucket[5m])))",
            "histogram_quantile without the label le",
        ),
    ],
)
def test_faults_are_found(expression, fault):
    """An expression that could never give what is meant is recognised as such."""
    assert fault in set(faults(expression))


@panels
def test_queries_ask_for_what_there_is(panel):
    """Each query of a panel is PromQL about metrics, labels and label values that the relay exposes."""
    assert panel["targets"]
    assert [] == [fault for target in panel["targets"] for fault in faults(target["expr"])]


@panels
def test_legends_have_their_labels(panel):
    """Each label in a legend is one that the query's result has."""
    for target in panel["targets"]:
        used = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert set() == used - labels_of(parse(target["expr"]))


@panels
def test_panels_say_what_they_mean(panel):
    """Each panel has a unit, and one sentence about what it means and when to worry."""
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert re.fullmatch(r"[A-Z][^.]*(\.\d[^.]*)*\.", panel["description"])


def test_titles_and_ids_are_unique():
    """No two panels have the same id or the same title."""
    for key in ("id", "title"):
        values = [panel[key] for panel in DASHBOARD["panels"]]
        assert sorted(set(values)) == sorted(values)


def test_panels_have_room():
    """No panel covers a part of another, and none leaves the grid."""
    for panel in DASHBOARD["panels"]:
        across, _ = area(panel)
        assert 0 <= across.start < across.stop <= COLUMNS, panel["title"]
    overlaps = [
        (one["title"], other["title"])
        for one, other in combinations(DASHBOARD["panels"], 2)
        if all(map(meet, area(one), area(other)))
    ]
    assert [] == overlaps


def test_rows():
    """The rows are there, in this order, and each is open and has panels."""
    starts = [row["gridPos"]["y"] for row in ROWS]
    ends = [*starts[1:], max(area(panel)[1].stop for panel in PANELS)]
    assert TOPICS == [row["title"] for row in ROWS]
    assert {False} == {row["collapsed"] for row in ROWS}
    for start, end in zip(starts, ends, strict=True):
        assert [panel for panel in PANELS if start < panel["gridPos"]["y"] < end]


def test_variables_are_used_and_made():
    """Every variable that a query names is one of the dashboard, and every one of the dashboard is named somewhere."""
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(DASHBOARD["panels"] + list(VARIABLES.values()))))
    assert VARIABLES.keys() == used


def test_variables_take_their_values_from_metrics():
    """Each variable but the data source offers the values of a label, of a metric that the relay exposes."""
    for name, variable in VARIABLES.items():
        if name == "datasource":
            assert ("datasource", "prometheus") == (variable["type"], variable["query"])
            continue
        selector, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"]).groups()
        assert [] == faults(selector)
        assert label in exposed()[parse(selector).name].labels


def test_one_data_source():
    """Every panel, query and variable asks the Prometheus that is chosen on the dashboard."""
    asked = [panel["datasource"] for panel in PANELS]
    asked += [target["datasource"] for panel in PANELS for target in panel["targets"]]
    asked += [each["datasource"] for name, each in VARIABLES.items() if name != "datasource"]
    assert [] == [each for each in asked if each != {"type": "prometheus", "uid": "${datasource}"}]
