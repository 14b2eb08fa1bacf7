"""NATS in the Kubernetes manifests, compared with its configuration files."""

import re

from kustomized import containers, find
from manifests import DEPLOY, GIB, RENDERED, TLS, environment, nats_pods, overlay, quantity, relay_pods, secret_keys


def seconds(setting: str) -> float:
    """A duration in nats-server.conf, in seconds."""
    (found,) = re.findall(rf'^{setting}: "(\d+)s"$', (DEPLOY / "nats/nats-server.conf").read_text(), flags=re.MULTILINE)
    return float(found)


@overlay
def test_nats_finds_its_configuration(documents):
    """Every file that nats-server.conf includes is beside it, and every variable is in the server's environment."""
    container = containers(nats_pods(documents))[0]
    files = find(documents, "ConfigMap", "nats-config")["data"]
    directives = "\n".join(re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE) for text in files.values())
    included = set(re.findall(r'include "([^"]+)"', directives))
    variables = set(re.findall(r"(?<![\"\w])\$([A-Z_0-9]+)", directives))
    assert set(files) == included | {"nats-server.conf"}
    assert variables - environment(documents, container).keys() == set()
    assert container["args"] == ["--config", "/etc/nats/nats-server.conf"]
    assert "/etc/nats" in {mount["mountPath"] for mount in container["volumeMounts"]}


@overlay
def test_nats_ports(documents):
    """The server listens on the ports of its Services, its probes and its policy."""
    container = containers(nats_pods(documents))[0]
    conf = (DEPLOY / "nats/nats-server.conf").read_text() + (DEPLOY / "nats/cluster.conf").read_text()
    listens = re.findall(r'^\s*(?:listen|http): "0\.0\.0\.0:(\d+)"$', conf, flags=re.MULTILINE)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {"client": 4222, "cluster": 6222, "monitor": 8222} == ports
    assert sorted(map(str, ports.values())) == sorted(listens)
    for service in ("nats", "nats-headless"):
        for port in find(documents, "Service", service)["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]


def test_nats_cluster_knows_its_servers():
    """In production each server has a route to each, with the names that the StatefulSet and its Service make."""
    stateful = nats_pods(RENDERED["production"])
    service = stateful["spec"]["serviceName"]
    variables = environment(RENDERED["production"], containers(stateful)[0])
    routes = [value for name, value in sorted(variables.items()) if name.startswith("NATS_ROUTE_")]
    hosts = [f"nats-{each}.{service}" for each in range(stateful["spec"]["replicas"])]
    assert [f"nats-route://cluster:$(NATS_CLUSTER_PASSWORD)@{host}:6222" for host in hosts] == routes
    settings = environment(RENDERED["production"], containers(relay_pods(RENDERED["production"])[0])[-1])
    assert [f"nats://{host}:4222" for host in hosts] == settings["RELAY_NATS_URL"].split(",")
    assert find(RENDERED["production"], "Service", service)["spec"]["clusterIP"] == "None"


def test_nats_survives_a_node():
    """In production servers share no node, at most one is disrupted at a time, and it hands over before it ends."""
    spec = nats_pods(RENDERED["production"])["spec"]
    (apart,) = spec["template"]["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    hook = spec["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert (3, "kubernetes.io/hostname") == (spec["replicas"], apart["topologyKey"])
    assert 1 == find(RENDERED["production"], "PodDisruptionBudget", "nats")["spec"]["maxUnavailable"]
    assert f'pid_file: "{hook[-1].removeprefix("ldm=")}"' in (DEPLOY / "nats/nats-server.conf").read_text()
    lame_duck_s = seconds("lame_duck_grace_period") + seconds("lame_duck_duration")
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] > lame_duck_s


@overlay
def test_nats_has_room(documents):
    """The volume is larger than JetStream's limit, and the memory limit is larger than Go's target."""
    stateful = nats_pods(documents)
    (claim,) = stateful["spec"]["volumeClaimTemplates"]
    container = containers(stateful)[0]
    variables = environment(documents, container)
    (stored,) = re.findall(r"max_file_store: (\d+)GB", (DEPLOY / "nats/nats-server.conf").read_text())
    assert int(stored) * GIB < quantity(claim["spec"]["resources"]["requests"]["storage"])
    assert quantity(variables["GOMEMLIMIT"]) < quantity(container["resources"]["limits"]["memory"])
    assert {"name": claim["metadata"]["name"], "mountPath": variables["NATS_STORE_DIR"]} in container["volumeMounts"]


def test_tls_reaches_everybody():
    """With TLS the server has certificate, key and authority, and the relay's pods have only the authority."""
    documents = RENDERED["production with TLS"]
    nats = containers(nats_pods(documents))[0]
    variables = {name: value for name, value in environment(documents, nats).items() if name.startswith("NATS_TLS_")}
    folder = "/run/secrets/nats-tls"
    assert {"tls.crt", "tls.key", "ca.crt"} == {value.removeprefix(f"{folder}/") for value in variables.values()}
    assert folder in {mount["mountPath"] for mount in nats["volumeMounts"]}
    assert find(documents, "ConfigMap", "nats-config")["data"]["tls.conf"] == (TLS / "tls.conf").read_text()
    for workload in relay_pods(documents):
        assert {("nats-tls", "ca.crt")} == {(name, key) for name, key in secret_keys(workload) if name == "nats-tls"}
