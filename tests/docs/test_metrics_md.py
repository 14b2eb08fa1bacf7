"""docs/metrics.md, compared with the relay's metrics."""

import re

import pytest
from pages import ROOT
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from promql import worker_metrics

from relay.contract.subjects import Reason
from relay.service.worker_probes import WorkerProbes

PAGE = (ROOT / "docs/metrics.md").read_text()
ROW = re.compile(r"^\| `(relay_\w+)` \| (\w+) \| (.*?) ?\| (.*) \|$", re.MULTILINE)


def families():
    """Every metric of a worker and of a parent, under the name that queries use."""
    text = worker_metrics().render().decode() + generate_latest(WorkerProbes(1)._registry).decode()
    return {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in text_string_to_metric_families(text)
        if family.name.startswith("relay_")
    }


def test_every_metric_once():
    """The tables have each metric once, with its type and its labels."""
    expected = {
        name: (family.type, {label for sample in family.samples for label in sample.labels} - {"le"})
        for name, family in families().items()
    }
    rows = ROW.findall(PAGE)
    assert expected == {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels, _ in rows}
    assert len(expected) == len(rows)


@pytest.mark.parametrize("name", sorted(families().keys() - {"relay_build_info"}))  # its values change
def test_values_are_explained(name):
    """Every value of a label that is neither a number nor a reason is explained with its metric."""
    (meaning,) = [meaning for row, _, _, meaning in ROW.findall(PAGE) if row == name]
    values = {value for sample in families()[name].samples for key, value in sample.labels.items() if key != "le"}
    assert [] == [
        value for value in values if f"`{value}`" not in meaning and not value.isdigit() and value not in list(Reason)
    ]
