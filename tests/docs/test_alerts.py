"""The alerts, compared with the relay's metrics, its runbook, and the limits of JetStream."""

import importlib.util
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import ROOT
from promql import faults, labels_of, parse

from relay.contract.settings import DeliverySettings
from relay.contract.subjects import STATUS_STREAM
from relay.topology.provision import topology_of, wanted

FILES = [ROOT / f"deploy/kubernetes/{folder}/prometheusrule.yaml" for folder in ("monitoring", "nats-exporter")]
DOCUMENTS: list[dict[str, Any]] = [yaml.safe_load(path.read_text()) for path in FILES]
GROUPS: list[dict[str, Any]] = [group for each in DOCUMENTS for group in each["spec"]["groups"]]
RULES: list[dict[str, Any]] = [rule for group in GROUPS for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDS = {rule["record"]: rule for rule in RULES if "record" in rule}
PAGE = ROOT / "docs/operations.md"
CASES: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "alert_cases.yaml").read_text())
FUNCTIONS = {"humanize", "humanizeDuration", "humanizePercentage", "printf", "with", "end"}
"""The functions of Prometheus' templates that the annotations use."""
DAY_NS = 86_400 * 10**9

alerts = pytest.mark.parametrize("alert", ALERTS)


def expanded(text: str) -> list[str]:
    """The contents of the braces in a template."""
    return re.findall(r"\{\{(.*?)\}\}", text)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_expressions_ask_for_what_there_is(rule):
    """Each rule is PromQL with metrics, labels and label values that the relay, or the other program, exposes."""
    assert [] == faults(rule["expr"])


@alerts
def test_annotations_have_their_values(alert):
    """A template names only labels that the alert has, and only functions that Prometheus knows."""
    texts = [text for each in ALERTS[alert]["annotations"].values() for text in expanded(each)]
    labels = {label for text in texts for label in re.findall(r"\$labels\.(\w+)", text)}
    words = {word for text in texts for word in re.findall(r"(?<![$.\w\"%])[a-z]\w*", text)}
    assert set() == labels - labels_of(parse(ALERTS[alert]["expr"]))
    assert set() == words - FUNCTIONS
    assert "{{" not in ALERTS[alert]["annotations"]["summary"]


def test_runbook():
    """Each alert links to its own section of the runbook, and there are no other sections."""
    assert [f"docs/operations.md#{alert.lower()}" for alert in ALERTS] == [
        rule["annotations"]["runbook_url"] for rule in ALERTS.values()
    ]
    runbook = PAGE.read_text().split("\n## Runbook\n")[1]
    assert list(ALERTS) == re.findall(r"^### (.+)$", runbook, flags=re.MULTILINE)


def test_there_is_time_left_before_updates_expire():
    """The alert about expiring updates fires while more than half of their time to live is left."""
    topology = wanted(topology_of(DeliverySettings()), 2**20)
    max_age_days = topology.streams[STATUS_STREAM]["max_age"] / DAY_NS
    rule = ALERTS["RelayUpdatesExpiring"]
    (after_days,) = map(int, re.findall(r"> (\d+) \* 86400$", rule["expr"]))
    assert after_days < max_age_days / 2
    assert f"After {max_age_days:.0f} days JetStream removes it" in rule["annotations"]["description"]


def test_plain_rules():
    """The page's commands that make plain rules, for a Prometheus without the operator, work."""
    lines = re.findall(r"^\$ (sed -n .+) > \w+.rules.yml$", PAGE.read_text(), flags=re.MULTILINE)
    for document, line in zip(DOCUMENTS, lines, strict=True):
        made = subprocess.run(["sh", "-c", line], cwd=ROOT, capture_output=True, check=True, text=True)
        assert {"groups": document["spec"]["groups"]} == yaml.safe_load(made.stdout)


def test_every_alert_has_its_cases():
    """For each alert, promtool has values that make it fire, and values that do not."""
    fires, silent = set(), set()
    for case in CASES["tests"]:
        for moment in case.get("alert_rule_test", []):
            (fires if moment.get("exp_alerts") else silent).add(moment["alertname"])
    assert (set(ALERTS), set(ALERTS)) == (fires, silent)


def test_every_alert_is_rehearsed():
    """The rehearsal makes each alert fire by its cause, or says what it would need; its limits are smaller."""
    spec = importlib.util.spec_from_file_location("rehearsal", ROOT / "deploy/rehearsal/alerts.py")
    rehearsal = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rehearsal)
    made = [alert for *_, alerts in rehearsal.REHEARSALS for alert in alerts]
    assert sorted(ALERTS) == sorted([*made, *rehearsal.NOT_HERE])
    rules = [rule for group in rehearsal.rehearsed(rehearsal.groups_of("relay")) for rule in group["rules"]]
    shorter = {rule["alert"]: rule for rule in rules if "alert" in rule}
    assert set() == {name for name, rule in shorter.items() if rule["for"] not in {"0s", "3s"}}
    assert set() == {name for name in rehearsal.SMALLER if shorter[name]["expr"] == ALERTS[name]["expr"]}
