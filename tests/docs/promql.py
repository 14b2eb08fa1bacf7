"""Checks PromQL against the relay's metrics: finds expressions that cannot have the intended result."""

import asyncio
import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import promql_parser as promql
from prometheus_client.parser import text_string_to_metric_families

from relay.observability.metrics import Metrics
from relay.service.worker_probes import WorkerProbes

TARGET_LABELS = {"instance", "job", "namespace", "pod"}
"""The labels that Prometheus adds to every series of a target in Kubernetes; elsewhere some are empty."""
OF_A_SERVER = dict.fromkeys(("server_id", "server_name", "cluster", "domain", "meta_leader"), frozenset[str]())
OTHERS = {
    "up": {},
    "kube_pod_status_phase": {"phase": {"Pending", "Running", "Succeeded", "Failed", "Unknown"}},
    "jetstream_server_total_message_bytes": OF_A_SERVER,
    "jetstream_server_max_storage": OF_A_SERVER,
    "namespace:relay_lag_to_scale_by:sum": {},
}
"""Gauges that the rules use and that others expose: Prometheus itself, kube-state-metrics, NATS' exporter, a rule that
records. Their labels, with the values if those are known.
"""
ON_COUNTERS = {"increase", "irate", "rate"}


@dataclass
class Series:
    """All series with one name: the type of their metric, and the values of each of their labels."""

    kind: str
    values: dict[str, set[str]] = field(default_factory=dict)

    @property
    def labels(self) -> set[str]:
        return self.values.keys() | TARGET_LABELS | {"worker"}


def worker_metrics() -> Metrics:
    """The metrics of a worker that knows all that can be known, so that each has its series."""
    metrics = Metrics(1)
    metrics.backlog(0, 0, 0)
    metrics.dead_letters_stored(0)
    metrics.state(ready=True, nats=True, facilitator=1, intake=True)
    metrics.copies(0)
    metrics.clock(0.0)
    return metrics


@cache
def exposed() -> dict[str, Series]:
    """The series in /metrics of a worker and of a parent, by name; and those of others."""
    parent = asyncio.run(WorkerProbes(2).exposition())
    found = {name: Series("gauge", {**values}) for name, values in OTHERS.items()}
    for family in text_string_to_metric_families((worker_metrics().render() + parent).decode()):
        for sample in family.samples:
            series = found.setdefault(sample.name, Series(family.type))
            for label, value in sample.labels.items():
                series.values.setdefault(label, set()).add(value)
    return found


def parse(expression: str) -> Any:
    """The tree of an expression, in which Grafana's intervals may be used as durations. Raises ValueError."""
    return promql.parse(re.sub(r"\$__(rate_interval|interval|range)\b", "5m", expression))


def walk(node: Any) -> list[Any]:
    """The node and all below it."""
    found: list[Any] = []
    promql.walk(node, found.append)
    return found


def selectors(node: Any) -> list[Any]:
    """The selectors of series below a node."""
    return [each for each in walk(node) if isinstance(each, promql.VectorSelector)]


def faults(expression: str) -> list[str]:
    """The faults of an expression, in words."""
    try:
        tree = parse(expression)
    except ValueError as error:
        return [str(error)]
    if unknown := {each.name for each in selectors(tree)} - exposed().keys():
        return [f"nobody exposes {name}" for name in sorted(unknown)]
    return [fault for node in walk(tree) for fault in _faults_of(node)]


def _faults_of(node: Any) -> list[str]:
    match node:
        case promql.VectorSelector():
            return _faults_of_matchers(node)
        case promql.AggregateExpr(modifier=modifier) if modifier is not None:
            return _without_labels(node, modifier.labels)
        case promql.BinaryExpr(modifier=modifier) if modifier is not None and modifier.matching is not None:
            return _without_labels(node, modifier.matching.labels)
        case promql.Call(func=function) if function.name in ON_COUNTERS:
            found = [each.name for each in selectors(node) if exposed()[each.name].kind not in {"counter", "histogram"}]
            return [f"{name} is no counter, as {function.name} wants one" for name in found]
        case promql.Call(func=function) if function.name == "histogram_quantile":
            return [] if "le" in labels_of(node.args[1]) else ["histogram_quantile without the label le"]
    return []


def _faults_of_matchers(selector: Any) -> list[str]:
    series = exposed()[selector.name]
    matchers = selector.matchers.matchers
    found = [f"{selector.name} has no label {each.name}" for each in matchers if each.name not in series.labels]
    return found + [
        f"{selector.name} never has {each.name} {each.value}"
        for each in matchers
        if each.op == promql.MatchOp.Equal and (known := series.values.get(each.name)) and each.value not in known
    ]


def _without_labels(node: Any, labels: list[str]) -> list[str]:
    return [
        f"{each.name} has no label {label}"
        for each in selectors(node)
        for label in labels
        if label not in exposed()[each.name].labels
    ]


def labels_of(node: Any) -> set[str]:
    """The labels that the result of an expression has."""
    found: set[str] = set()
    match node:
        case promql.AggregateExpr(modifier=modifier) if modifier is not None:
            found = set(modifier.labels)
        case promql.BinaryExpr():
            found = labels_of(node.lhs) | (labels_of(node.rhs) if str(node.op) == "or" else set())
        case promql.ParenExpr():
            found = labels_of(node.expr)
        case promql.VectorSelector():
            found = exposed()[node.name].labels
        case promql.MatrixSelector():
            found = exposed()[node.vector_selector.name].labels
        case promql.Call(func=function) if function.name not in {"absent", "vector"}:
            found = labels_of(node.args[-1])
    return found
