"""The Kubernetes manifests, compared with Kubernetes' schemas, the relay's settings, and each other."""

import re
import tomllib

import kubernetes_validate
import pytest
from kustomized import Document, containers, find, folders, kustomization, pod
from manifests import (
    COMPONENTS,
    DEPLOY,
    EVERY,
    OVERLAYS,
    RENDERED,
    ROOT,
    environment,
    every,
    mounted_files,
    name_of,
    nats_pods,
    overlay,
    quantity,
    relay_pods,
    secret_keys,
    workloads,
)

from relay.contract.environment import load_settings
from relay.contract.settings import DeliverySettings
from relay.service.intervals import DEFAULTS

PAGE = (ROOT / "docs" / "kubernetes.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
KUBERNETES = ("1.30", "1.34")
"""The oldest and the newest release with whose schemas the manifests are checked."""
OPERATOR_KINDS = {"PodMonitor", "PrometheusRule", "ScaledObject"}
"""Kinds of the Prometheus operator and of KEDA, whose schemas are not Kubernetes' own."""
IMAGES = {"nats:2.15.1-alpine", "nats-box:0.19.7", "prometheus-nats-exporter:0.17.3"}


def selects(selector: Document, labels: Document) -> bool:
    return selector.items() <= labels.items()


def block_of(user: str) -> str:
    """The part of users.conf about a user, up to the next one."""
    return (DEPLOY / "nats/users.conf").read_text().split(f"user: {user}\n")[1].split("user: ")[0]


# What the files are.


@pytest.mark.parametrize("version", KUBERNETES)
@every
def test_documents_fit_the_schemas(documents, version):
    """Each document fits Kubernetes' own schemas, in the strict form without unknown fields."""
    own = [document for document in documents if document["kind"] not in OPERATOR_KINDS]
    for document in own:
        kubernetes_validate.validate(document, version, strict=True)
    assert len(own) >= 14


def test_no_file_is_left_out():
    """Every file under deploy/kubernetes and deploy/nats is part of an overlay or of a component."""
    roots = [folder.resolve() for name in ("dev", "production") for folder in folders(OVERLAYS / name)]
    roots += COMPONENTS.values()
    used = {folder / "kustomization.yaml" for folder in roots}
    for folder in roots:
        wanted = kustomization(folder)
        used |= {(folder / entry).resolve() for entry in wanted.get("resources", []) if (folder / entry).is_file()}
        used |= {folder / patch["path"] for patch in wanted.get("patches", [])}
        used |= {folder / entry for each in wanted.get("configMapGenerator", []) for entry in each.get("files", [])}
    there = {path for name in ("kubernetes", "nats") for path in (DEPLOY / name).rglob("*") if path.is_file()}
    assert there == used


@every
def test_names_are_unique(documents):
    """No two documents of an overlay have the same kind and name, and all are in one namespace."""
    names = [name_of(document) for document in documents]
    namespaces = {document["metadata"].get("namespace") for document in documents if document["kind"] != "Namespace"}
    assert sorted(set(names)) == sorted(names)
    assert {"job-status-relay"} == namespaces


@every
def test_images_are_pinned(documents):
    """Every container has a fixed version of its image; the relay's is the version of this project."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = {each["image"].rsplit("/", 1)[-1] for document in documents for each in containers(document)}
    assert {f"job-status-relay:{version}", "nats:2.15.1-alpine"} <= images <= {f"job-status-relay:{version}"} | IMAGES


@overlay
def test_selectors_find_their_pods(documents):
    """Each Service, budget, policy and monitor selects the pods of exactly one workload, or of all intended ones."""
    labels = {name_of(each): pod(each)["metadata"]["labels"] for each in workloads(documents)}
    found = {}
    for document in documents:
        spec = document.get("spec", {})
        match document["kind"]:
            case "Service":
                selector = spec["selector"]
            case "PodDisruptionBudget" | "PodMonitor":
                selector = spec["selector"]["matchLabels"]
            case "NetworkPolicy":
                selector = spec["podSelector"]["matchLabels"]
            case _:
                continue
        found[name_of(document)] = [name for name, each in labels.items() if selects(selector, each)]
    relay, nats, job = ["Deployment/job-status-relay"], ["StatefulSet/nats"], ["Job/relay-provision"]
    assert {
        "Service/job-status-relay": relay,
        "Service/nats": nats,
        "Service/nats-headless": nats,
        "PodDisruptionBudget/job-status-relay": relay,
        "PodDisruptionBudget/nats": nats,
        "NetworkPolicy/job-status-relay": relay,
        "NetworkPolicy/relay-provision": job,
        "NetworkPolicy/nats": nats,
    } == {name: pods for name, pods in found.items() if not name.startswith("PodMonitor")}
    assert [relay] * ("PodMonitor/job-status-relay" in found) == [
        pods for name, pods in found.items() if name.startswith("PodMonitor")
    ]


# The relay.


@overlay
def test_settings_are_the_relays(documents, tmp_path):
    """Every RELAY_ variable of a container is a setting with an allowed value, and together they suffice."""
    (tmp_path / "ca.crt").touch()
    deployment, job = relay_pods(documents)
    for workload in (deployment, job):
        variables = environment(documents, containers(workload)[-1])
        if "RELAY_NATS_CA_FILE" in variables:  # the file must exist
            variables["RELAY_NATS_CA_FILE"] = str(tmp_path / "ca.crt")
        settings = load_settings(variables, None)
        if workload is deployment:
            settings.require_facilitator()
        assert variables["RELAY_NATS_PASSWORD"] == f"secret:nats-passwords:{settings.nats.user}"
        assert f'"{settings.nats.inbox_prefix}.>"' in block_of(settings.nats.user)
        assert settings.delivery.replicas <= nats_pods(documents)["spec"]["replicas"]


@overlay
def test_settings_name_files_that_are_mounted(documents):
    """Every file in a setting comes from a volume, and is one of the Secret's keys."""
    for workload in relay_pods(documents):
        variables = environment(documents, containers(workload)[-1])
        files = {value for name, value in variables.items() if name.endswith("_FILE")}
        assert files == mounted_files(workload)


@overlay
def test_probes_ask_what_the_relay_answers(documents):
    """Probes use the port in RELAY_HTTP_PORT: /livez for liveness, /readyz for readiness."""
    container = containers(find(documents, "Deployment", "job-status-relay"))[-1]
    variables = environment(documents, container)
    assert [{"name": "http", "containerPort": int(variables["RELAY_HTTP_PORT"])}] == container["ports"]
    assert variables["RELAY_HTTP_HOST"] == "0.0.0.0"
    asked = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert {
        "startup": {"path": "/livez", "port": "http"},
        "liveness": {"path": "/livez", "port": "http"},
        "readiness": {"path": "/readyz", "port": "http"},
    } == asked


@overlay
def test_a_relay_has_the_memory_that_the_page_wants(documents):
    """The memory limit is what docs/operations.md says for RELAY_MEMORY_MB and max_payload, and at most a quarter more;
    tests/service/test_memory_limit.py shows that it is enough.
    """
    container = containers(find(documents, "Deployment", "job-status-relay"))[-1]
    variables = environment(documents, container)
    memory_mb = int(variables.get("RELAY_MEMORY_MB", DeliverySettings().memory_mib))
    (beyond,) = re.findall(r"needs at most `RELAY_MEMORY_MB` \+ (\d+) MiB", OPERATIONS)
    needed = (memory_mb + int(beyond)) * 2**20
    assert needed <= quantity(container["resources"]["limits"]["memory"]) <= 1.25 * needed
    (max_payload,) = re.findall(r"^max_payload: (\d+)MB$", (DEPLOY / "nats/nats-server.conf").read_text(), re.MULTILINE)
    assert int(max_payload) <= 8, "the page counts on this"


@overlay
def test_there_is_time_to_drain(documents):
    """A pod has enough time to stop: for the drain, the last pushes, and a NATS that does not answer."""
    grace_s = pod(find(documents, "Deployment", "job-status-relay"))["spec"]["terminationGracePeriodSeconds"]
    assert grace_s >= DEFAULTS.drain_s + 5 + 3 * 5


@overlay
def test_one_relay_at_a_time_goes(documents):
    """An update of the Deployment starts a new relay before it stops an old one; at most one pod may be disrupted."""
    deployment = find(documents, "Deployment", "job-status-relay")
    budget = find(documents, "PodDisruptionBudget", "job-status-relay")["spec"]
    assert {"maxSurge": 1, "maxUnavailable": 0} == deployment["spec"]["strategy"]["rollingUpdate"]
    assert (1, "AlwaysAllow") == (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"])


def test_production_spreads_the_relays():
    """In production there are two relays, never on one node, and in different zones if possible."""
    spec = find(RENDERED["production"], "Deployment", "job-status-relay")["spec"]
    spread = {
        each["topologyKey"]: each["whenUnsatisfiable"] for each in spec["template"]["spec"]["topologySpreadConstraints"]
    }
    expected = {"kubernetes.io/hostname": "DoNotSchedule", "topology.kubernetes.io/zone": "ScheduleAnyway"}
    assert (2, expected) == (spec["replicas"], spread)


def test_dev_simulates_the_facilitator():
    """In dev one relay connects to the simulator in its pod, at the port where that listens, and needs no hotkey."""
    deployment = find(RENDERED["dev"], "Deployment", "job-status-relay")
    simulator, relay = containers(deployment)
    variables = environment(RENDERED["dev"], relay)
    assert ["python", "-m", "relay.local.facilitator", "--port", "9000"] == simulator["command"]
    assert ("ws://127.0.0.1:9000/ws/v0/", "none") == (
        variables["RELAY_FACILITATOR_URL"],
        variables["RELAY_FACILITATOR_AUTH"],
    )
    assert (1, "Always") == (deployment["spec"]["replicas"], simulator["restartPolicy"])
    assert "relay-hotkey" not in {name for name, _ in secret_keys(deployment)}


def test_provisioning_can_be_repeated():
    """The Job is retried while NATS starts, and is removed automatically, so that it can be applied again."""
    spec = find(RENDERED["production"], "Job", "relay-provision")["spec"]
    assert (True, True) == (spec["backoffLimit"] >= 6, spec["ttlSecondsAfterFinished"] > 0)
    assert ["provision"] == spec["template"]["spec"]["containers"][0]["args"]


# Monitoring.


def test_the_monitor_scrapes_the_relay():
    """The PodMonitor scrapes /metrics at the named port of the relay's pods, with the job name `job-status-relay`."""
    monitor = find(RENDERED["production"], "PodMonitor", "job-status-relay")["spec"]
    (endpoint,) = monitor["podMetricsEndpoints"]
    deployment = find(RENDERED["production"], "Deployment", "job-status-relay")
    assert ("/metrics", containers(deployment)[-1]["ports"][0]["name"]) == (endpoint["path"], endpoint["port"])
    assert "job-status-relay" == pod(deployment)["metadata"]["labels"][monitor["jobLabel"]]
    assert ({"jobLabel", "selector", "podMetricsEndpoints"}, {"port", "path", "interval"}) == (
        set(monitor),
        set(endpoint),
    )


def test_only_production_needs_the_prometheus_operator():
    """The dev overlay has only kinds that a plain cluster knows."""
    assert set() == OPERATOR_KINDS & {document["kind"] for document in RENDERED["dev"]}
    assert {"PodMonitor"} <= {document["kind"] for document in RENDERED["production"]}


# The page.


def test_the_page_makes_every_secret():
    """The commands of the page make exactly the Secrets and keys to which the manifests refer."""
    wanted = {found for documents in EVERY.values() for each in workloads(documents) for found in secret_keys(each)}
    made = set()
    for command in re.findall(r"^\$ (kubectl .*create secret (?:[^\\\n]|\\\n|\\)*)", PAGE, flags=re.MULTILINE):
        (name,) = re.findall(r"create secret generic (\S+)", command)
        made |= {(name, key) for key in re.findall(r"--from-(?:literal|file)=([\w.]+)=", command)}
    assert wanted == made


def test_the_page_names_what_is_there():
    """Every object that the page names exists."""
    objects = set(re.findall(r"\b((?:deployment|statefulset|job|configmap)/[\w-]+)", PAGE))
    assert objects
    assert set() == objects - {name_of(document).lower() for documents in EVERY.values() for document in documents}
