"""The sample of inhibitions for Alertmanager, compared with the alerts."""

import re
from typing import Any

import pytest
import yaml
from pages import ROOT
from promql import labels_of, parse
from test_alerts import ALERTS

INHIBITIONS: list[dict[str, Any]] = yaml.safe_load((ROOT / "deploy/alertmanager/inhibit.yaml").read_text())[
    "inhibit_rules"
]
OUTAGES = {
    "RelayFacilitatorAway": {"RelayUpdatesOld", "RelayUpdatesStuck", "RelayBacklog", "RelayNotReady"},
    "RelayNatsAway": {"RelayFacilitatorAway", "RelayLaneUnowned", "RelayNotReady", "RelayUpdatesOld"},
    "RelayGone": {"RelayWorkerMissing"},
}
"""What fires during an outage beside the alert that names it."""


def alerts_of(matchers: list[str]) -> set[str]:
    """The alerts that a list with one matcher of `alertname` selects."""
    (matcher,) = matchers
    (names,) = re.fullmatch(r'alertname =~? "?([\w|]+)"?', matcher).groups()
    return set(names.split("|"))


def test_inhibitions_name_alerts_and_labels():
    """Each inhibition is of alerts that exist, which have the labels that must be equal; none leaves out the last
    warning before updates are removed, and only a critical alert leaves others out.
    """
    for rule in INHIBITIONS:
        (source,), targets = alerts_of(rule["source_matchers"]), alerts_of(rule["target_matchers"])
        assert set() == {source, *targets} - ALERTS.keys()
        for name in (source, *targets):
            assert set(rule.get("equal", ())) <= labels_of(parse(ALERTS[name]["expr"])), name
        assert source not in targets
        assert "RelayUpdatesExpiring" not in targets
        assert "critical" == ALERTS[source]["labels"]["severity"]


@pytest.mark.parametrize("outage", OUTAGES)
def test_an_outage_is_one_notification(outage):
    """Of the alerts that an outage raises, only the one that names it is sent."""
    firing = {outage, *OUTAGES[outage]}
    left_out = {
        target
        for rule in INHIBITIONS
        if alerts_of(rule["source_matchers"]) <= firing
        for target in alerts_of(rule["target_matchers"])
    }
    assert {outage} == firing - left_out
