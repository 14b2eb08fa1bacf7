"""What an overlay of the manifests may add: each component does what its page says, and nothing else."""

import re
import subprocess
from typing import Any

import kubernetes_validate
from kustomized import containers, find
from manifests import RENDERED, ROOT, WITH_COMPONENTS, environment, name_of
from promql import parse, selectors
from test_alerts import RECORDS
from test_kubernetes_security import DNS, NATS, allowed

from relay.console.guard import ALIVE
from relay.contract.environment import load_settings
from relay.contract.settings import DeliverySettings

PRODUCTION = {name_of(document): document for document in RENDERED["production"]}


def added(component: str) -> dict[str, Any]:
    """The documents that a component adds."""
    documents = {name_of(document): document for document in WITH_COMPONENTS[f"production with {component}"]}
    assert PRODUCTION.keys() <= documents.keys()
    return {name: document for name, document in documents.items() if name not in PRODUCTION}


def changed(component: str) -> set[str]:
    """The documents that a component changes."""
    documents = {name_of(document): document for document in WITH_COMPONENTS[f"production with {component}"]}
    return {name for name, document in PRODUCTION.items() if documents[name] != document}


def test_tracing_reaches_the_collector():
    """Spans go to the collector that the settings name: the policy lets them out to its namespace and port."""
    documents = WITH_COMPONENTS["production with tracing"]
    more = allowed(documents, "job-status-relay", "egress") - allowed(
        RENDERED["production"], "job-status-relay", "egress"
    )
    variables = environment(documents, containers(find(documents, "Deployment", "job-status-relay"))[-1])
    endpoint = variables["OTEL_EXPORTER_OTLP_ENDPOINT"]
    (namespace, port) = re.fullmatch(r"http://[\w-]+\.([\w-]+):(\d+)", endpoint).groups()
    assert ("otel", {(namespace, "TCP", int(port))}) == (variables["RELAY_TRACING"], more)
    assert (set(), {"ConfigMap/relay-settings", "NetworkPolicy/job-status-relay"}) == (
        set(added("tracing")),
        changed("tracing"),
    )


def test_gitops_keeps_the_job():
    """The Job does not delete itself, and both tools replace it when it changes; else it is the same."""
    (job,) = [each for each in WITH_COMPONENTS["production with gitops"] if name_of(each) == "Job/relay-provision"]
    annotations = job["metadata"].pop("annotations")
    before = PRODUCTION["Job/relay-provision"]["spec"]
    assert job["spec"] == {key: value for key, value in before.items() if key != "ttlSecondsAfterFinished"}
    assert {
        "argocd.argoproj.io/hook": "Sync",
        "argocd.argoproj.io/hook-delete-policy": "BeforeHookCreation",
        "kustomize.toolkit.fluxcd.io/force": "Enabled",
    } == annotations
    job["metadata"]["annotations"] = annotations


def test_autoscalers_scale_by_what_waits():
    """Both autoscalers go from what production has to the number of lanes, by the same recorded metric; the Deployment
    has no number of its own any more, which each `apply` would set.
    """
    hpa = added("hpa")["HorizontalPodAutoscaler/job-status-relay"]["spec"]
    keda = added("keda")["ScaledObject/job-status-relay"]["spec"]
    (external,) = hpa["metrics"]
    (trigger,) = keda["triggers"]
    query = parse(trigger["metadata"]["query"])
    replicas = PRODUCTION["Deployment/job-status-relay"]["spec"]["replicas"]
    assert [(replicas, DeliverySettings().lanes)] * 2 == [
        (hpa["minReplicas"], hpa["maxReplicas"]),
        (keda["minReplicaCount"], keda["maxReplicaCount"]),
    ]
    assert query.name in RECORDS
    assert query.name == f"namespace:{external['external']['metric']['name']}:sum"
    assert (external["external"]["target"]["averageValue"], "false") == (
        trigger["metadata"]["threshold"],
        trigger["metadata"]["ignoreNullValues"],
    )
    assert hpa["behavior"] == keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    for name in ("hpa", "keda"):
        deployment = find(WITH_COMPONENTS[f"production with {name}"], "Deployment", "job-status-relay")
        assert "replicas" not in deployment["spec"]
        assert {"Deployment/job-status-relay"} == changed(name)


def test_the_scaledobject_becomes_a_valid_autoscaler():
    """Of the ScaledObject, only fields are used that KEDA knows, and its behavior fits Kubernetes' own schema."""
    keda = added("keda")["ScaledObject/job-status-relay"]["spec"]
    assert {
        *("scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval", "advanced", "triggers"),
    } == keda.keys()
    (trigger,) = keda["triggers"]
    assert ({"type", "metricType", "metadata"}, "AverageValue") == (trigger.keys(), trigger["metricType"])
    assert {str} == {type(value) for value in trigger["metadata"].values()}
    hpa = added("hpa")["HorizontalPodAutoscaler/job-status-relay"]
    made = hpa | {"spec": hpa["spec"] | keda["advanced"]["horizontalPodAutoscalerConfig"]}
    kubernetes_validate.validate(made, "1.34", strict=True)


def test_the_exporter_is_scraped():
    """The exporter asks the server in its own pod, and only Prometheus may ask the exporter."""
    documents = WITH_COMPONENTS["production with nats-exporter"]
    nats, exporter = containers(find(documents, "StatefulSet", "nats"))
    (monitor,) = {port["containerPort"] for port in nats["ports"] if port["name"] == "monitor"}
    (metrics,) = exporter["ports"]
    assert f"http://127.0.0.1:{monitor}" == exporter["args"][-1]
    assert f"-port={metrics['containerPort']}" in exporter["args"]
    (endpoint,) = added("nats-exporter")["PodMonitor/nats"]["spec"]["podMetricsEndpoints"]
    more = allowed(documents, "nats", "ingress") - allowed(RENDERED["production"], "nats", "ingress")
    assert (metrics["name"], {("monitoring", "TCP", metrics["name"])}) == (endpoint["port"], more)
    selected = selectors(parse("jetstream_server_total_message_bytes"))
    assert ["jetstream_server_total_message_bytes"] == [each.name for each in selected]


def test_nats_box_may_reach_nats_only():
    """The shell and the backup are the operator, which no shell is until somebody scales it up."""
    documents = WITH_COMPONENTS["production with nats-box"]
    shell = added("nats-box")["Deployment/nats-box"]
    assert 0 == shell["spec"]["replicas"]
    assert {NATS} | DNS == allowed(documents, "nats-box", "egress")
    assert set() == allowed(documents, "nats-box", "ingress")
    for workload in (shell, added("nats-box")["CronJob/nats-backup"]):
        (container,) = containers(workload)
        variables = environment(documents, container)
        assert ("operator", "secret:nats-passwords:operator") == (variables["NATS_USER"], variables["NATS_PASSWORD"])


NATS_COMMAND = """#!/bin/sh
# stream backup NAME FOLDER: as `nats` does it, without a server
[ "$3" != "$FAILS" ] && mkdir -p "$4" && echo "$1 $2 $3" >> "$4/backup.json"
"""


def test_backups(tmp_path, monkeypatch):
    """JOB_STATUS is saved first; four backups are kept; one that failed half-way is none, and is removed later."""
    (container,) = containers(added("nats-box")["CronJob/nats-backup"])
    script = container["args"][0].replace("cd /backups", f"cd {tmp_path}/backups")
    assert f"cd {tmp_path}/backups" in script
    (tmp_path / "nats").write_text(NATS_COMMAND)
    (tmp_path / "nats").chmod(0o755)
    backups = tmp_path / "backups"
    backups.mkdir()
    for day in range(1, 6):
        (backups / f"2026-01-0{day}T031700Z").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def run(fails: str) -> int:
        monkeypatch.setenv("FAILS", fails)
        return subprocess.run([*container["command"], script], check=False).returncode

    assert run("JOB_DLQ") != 0
    there = sorted(path.name for path in backups.iterdir())
    assert (6, True) == (len(there), there[-1].endswith(".part"))
    assert {"JOB_STATUS"} == {path.name for path in (backups / there[-1]).iterdir()}
    assert 0 == run("")
    *old, made = sorted(path.name for path in backups.iterdir())
    assert [f"2026-01-0{day}T031700Z" for day in (3, 4, 5)] == old
    assert {"JOB_STATUS", "JOB_DLQ", "JOB_REQUESTS"} == {path.name for path in (backups / made).iterdir()}


def test_the_console_may_look_only():
    """The console is the observer, asks for a password, reaches NATS alone, and changes nothing that is there."""
    documents = WITH_COMPONENTS["production with console"]
    assert {"Deployment/relay-console", "Service/relay-console", "NetworkPolicy/relay-console"} == set(added("console"))
    assert set() == changed("console")
    assert {NATS} | DNS == allowed(documents, "relay-console", "egress")
    assert {("ingress", "TCP", "http")} == allowed(documents, "relay-console", "ingress")
    (container,) = containers(added("console")["Deployment/relay-console"])
    variables = environment(documents, container)
    assert ("observer", "secret:nats-passwords:observer") == (
        variables["RELAY_NATS_USER"],
        variables["RELAY_NATS_PASSWORD"],
    )
    given = {name: value for name, value in variables.items() if not name.endswith("_FILE")}
    settings = load_settings(given, None).require_guarded_console()
    assert str(settings.console.port) == str(container["ports"][0]["containerPort"])
    assert not settings.console.is_loopback


def test_the_console_is_reached():
    """One console, because its pages are in its memory; Service, policy and probes find what it serves."""
    made = added("console")
    spec, service = made["Deployment/relay-console"]["spec"], made["Service/relay-console"]["spec"]
    (container,) = containers(made["Deployment/relay-console"])
    assert (1, "Recreate", ["console"]) == (spec["replicas"], spec["strategy"]["type"], container["args"])
    labels = spec["template"]["metadata"]["labels"]
    policy = made["NetworkPolicy/relay-console"]["spec"]
    for selected in (spec["selector"]["matchLabels"], service["selector"], policy["podSelector"]["matchLabels"]):
        assert selected.items() <= labels.items()
    (port,), (served,) = service["ports"], container["ports"]
    assert served["name"] == port["targetPort"]
    for kind in ("startup", "liveness"):
        assert {"path": ALIVE, "port": served["name"]} == container[f"{kind}Probe"]["httpGet"]


def test_the_image_with_the_console():
    """The build argument that the component and the page name is the Containerfile's, and its lock has NiceGUI."""
    (said,) = re.findall(r"LOCK=(\S+\.lock)", (ROOT / "deploy/kubernetes/console/kustomization.yaml").read_text())
    assert f"--build-arg LOCK={said} " in (ROOT / "docs/kubernetes.md").read_text()
    assert "nicegui==" in (ROOT / said).read_text()


def test_the_image_with_tracing():
    """The build argument that the component names is the Containerfile's, and its lock has OpenTelemetry."""
    said = re.findall(r"LOCK=(\S+\.lock)", (ROOT / "deploy/kubernetes/tracing/kustomization.yaml").read_text())
    assert "opentelemetry-sdk==" in (ROOT / said[0]).read_text()
    assert "ARG LOCK=requirements.lock\n" in (ROOT / "Containerfile").read_text()
