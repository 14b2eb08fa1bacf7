"""The Grafana dashboard, compared with the metrics that the relay exposes."""

import json
import re
from typing import Any

import pytest
from pages import ROOT
from promql import exposed, faults, labels_of, parse

DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/job-status-relay.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES: dict[str, dict[str, Any]] = {each["name"]: each for each in DASHBOARD["templating"]["list"]}

panels = pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])


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
    """An expression that cannot have the intended result is recognised."""
    assert fault in set(faults(expression))


@panels
def test_queries_ask_for_what_there_is(panel):
    """Each query of a panel is PromQL with metrics, labels and label values that the relay exposes."""
    assert panel["targets"]
    assert [] == [fault for target in panel["targets"] for fault in faults(target["expr"])]


@panels
def test_legends_have_their_labels(panel):
    """Each label in a legend is a label of the query's result."""
    for target in panel["targets"]:
        used = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert set() == used - labels_of(parse(target["expr"]))


def test_titles_and_ids_are_unique():
    """No two panels have the same id or the same title."""
    for key in ("id", "title"):
        values = [panel[key] for panel in DASHBOARD["panels"]]
        assert sorted(set(values)) == sorted(values)


def test_variables_are_used_and_made():
    """Every variable in a query belongs to the dashboard, and every variable of the dashboard is used."""
    used = set(
        re.findall(r"\$\{?([a-z]\w*)", json.dumps(DASHBOARD["panels"] + DASHBOARD["links"] + list(VARIABLES.values())))
    )
    assert VARIABLES.keys() == used


def test_variables_take_their_values_from_metrics():
    """Each variable has the values of a metric's label, except the data source and the address of the console."""
    for name, variable in VARIABLES.items():
        if name == "datasource":
            assert ("datasource", "prometheus") == (variable["type"], variable["query"])
            continue
        if name == "console":
            assert "textbox" == variable["type"]  # what people type there is the address of the console
            continue
        selector, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"]).groups()
        assert [] == faults(selector)
        assert label in exposed()[parse(selector).name].labels


def test_one_data_source():
    """Every panel, query and variable uses the Prometheus that is chosen on the dashboard."""
    asked = [panel["datasource"] for panel in PANELS]
    asked += [target["datasource"] for panel in PANELS for target in panel["targets"]]
    asked += [each["datasource"] for name, each in VARIABLES.items() if name not in {"datasource", "console"}]
    assert [] == [each for each in asked if each != {"type": "prometheus", "uid": "${datasource}"}]
