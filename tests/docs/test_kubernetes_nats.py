"""NATS in the Kubernetes manifests, compared with its configuration files."""

import asyncio
import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

from authority import Authority
from kustomized import containers, find
from manifests import DEPLOY, GIB, RENDERED, TLS, environment, nats_pods, overlay, quantity, relay_pods, secret_keys

from relay.contract.errors import BrokerUnavailable
from relay.contract.settings import NatsSettings
from relay.local.server import NatsServer
from relay.nats.connection import close, connect


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
    nats, reload = containers(nats_pods(documents))
    assert nats["image"] == reload["image"]
    assert nats_pods(documents)["spec"]["template"]["spec"]["shareProcessNamespace"], "a signal to another container"
    variables = {name: value for name, value in environment(documents, nats).items() if name.startswith("NATS_TLS_")}
    folder = "/run/secrets/nats-tls"
    assert {"tls.crt", "tls.key", "ca.crt"} == {value.removeprefix(f"{folder}/") for value in variables.values()}
    assert folder in {mount["mountPath"] for mount in nats["volumeMounts"]}
    assert find(documents, "ConfigMap", "nats-config")["data"]["tls.conf"] == (TLS / "tls.conf").read_text()
    for workload in relay_pods(documents):
        assert {("nats-tls", "ca.crt")} == {(name, key) for name, key in secret_keys(workload) if name == "nats-tls"}


async def test_renewed_certificates_are_loaded(tmp_path: Path):
    """The second container has the running server load certificates when their files are renewed."""
    ca, cert, key = (tmp_path / name for name in ("ca.crt", "tls.crt", "tls.key"))
    pid = tmp_path / "nats.pid"

    def renew(name: str) -> Path:
        authority = Authority(tmp_path, name)
        ca.write_bytes(authority.ca.read_bytes())
        authority.issue(cert, key)
        return authority.ca

    (reload,) = containers(nats_pods(RENDERED["production with TLS"]))[1:]
    (script,) = reload["args"]
    for there, here in (("/run/secrets/nats-tls", tmp_path), ("/run/nats/nats.pid", pid), ("sleep 30", "sleep 0.2")):
        assert there in script
        script = script.replace(there, str(here))
    renew("old")
    tls = f'tls {{ca_file: "{ca}", cert_file: "{cert}", key_file: "{key}"}}'
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    async with NatsServer(extra_config=f'pid_file: "{pid}"\n{tls}') as server, asyncio.timeout(20):
        sidecar = await asyncio.create_subprocess_exec(*reload["command"], script, env=path, stdout=subprocess.PIPE)
        await sidecar.stdout.readline()  # it has seen the old files
        settings = NatsSettings(urls=(server.url,), ca_file=renew("new"))
        while True:
            with contextlib.suppress(BrokerUnavailable):  # until the new certificate is loaded
                await close(await connect(settings, name="test"))
                break
        sidecar.kill()
        await sidecar.communicate()
