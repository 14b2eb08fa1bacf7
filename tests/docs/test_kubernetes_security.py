"""What the pods of the Kubernetes manifests may do: as processes, with secrets, and in the network."""

import re
from typing import Any

from kustomized import Document, containers, find, pod
from manifests import environment, every, overlay, quantity, workloads

RESTRICTED_VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
"""The allowed volume types of the standard that could be needed here."""
ENFORCED = "pod-security.kubernetes.io/enforce"
RESOLVERS = ("kube-system k8s-app=kube-dns", "169.254.20.10/32")
DNS = {(resolver, protocol, 53) for resolver in RESOLVERS for protocol in ("UDP", "TCP")}
NATS = ("app.kubernetes.io/name=nats", "TCP", 4222)
INTERNET = {("0.0.0.0/0 but 5 private ranges", "TCP", 443), ("::/0 but 2 private ranges", "TCP", 443)}


def allowed(documents: list[Document], policy: str, direction: str) -> set[tuple[str, str, Any]]:
    """The peers that a policy allows in (`ingress`) or out (`egress`): peer, protocol and port."""
    spec = find(documents, "NetworkPolicy", policy)["spec"]
    return {
        (peer_name(peer), port["protocol"], port["port"])
        for rule in spec.get(direction, [])
        for peer in rule["to" if direction == "egress" else "from"]
        for port in rule["ports"]
    }


def peer_name(peer: Document) -> str:
    """A peer of a policy, by the values of its labels, or by its addresses."""
    if block := peer.get("ipBlock"):
        ranges = len(block.get("except", []))
        return block["cidr"] + (f" but {ranges} private ranges" if ranges else "")
    namespace = peer.get("namespaceSelector", {}).get("matchLabels", {}).values()
    labels = [f"{key}={value}" for key, value in peer.get("podSelector", {}).get("matchLabels", {}).items()]
    return " ".join([*namespace, *labels])


@every
def test_pods_are_restricted(documents):
    """Each pod obeys the Pod Security Standard `restricted`, which its namespace enforces."""
    assert "restricted" == find(documents, "Namespace", "job-status-relay")["metadata"]["labels"][ENFORCED]
    for workload in workloads(documents):
        spec = pod(workload)["spec"]
        assert {"hostNetwork", "hostPID", "hostIPC"} & spec.keys() == set()
        assert {key for volume in spec.get("volumes", []) for key in volume} - {"name"} <= RESTRICTED_VOLUMES
        context = spec["securityContext"]
        assert (True, {"type": "RuntimeDefault"}) == (context["runAsNonRoot"], context["seccompProfile"])
        assert context["runAsUser"] > 0
        assert {"sysctls", "seLinuxOptions", "appArmorProfile", "windowsOptions"} & context.keys() == set()
        for container in containers(workload):
            expected = {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
            }
            assert expected == container["securityContext"]
            assert [] == [port for port in container.get("ports", []) if "hostPort" in port]


@every
def test_pods_have_no_token(documents):
    """No pod gets a token for Kubernetes' API, or addresses of Services in its environment."""
    for workload in workloads(documents):
        spec = pod(workload)["spec"]
        assert (False, False) == (spec["automountServiceAccountToken"], spec["enableServiceLinks"])
    assert find(documents, "ServiceAccount", "job-status-relay")["automountServiceAccountToken"] is False


@every
def test_resources_are_bounded(documents):
    """Each container requests CPU and memory, and has a memory limit."""
    for workload in workloads(documents):
        for container in containers(workload):
            wanted = container["resources"]
            assert {"cpu", "memory"} == wanted["requests"].keys()
            assert quantity(wanted["requests"]["memory"]) <= quantity(wanted["limits"]["memory"])


@every
def test_secrets_only_by_reference(documents):
    """No document is a Secret; every password or key is a reference or the name of a file."""
    assert [] == [document for document in documents if document["kind"] == "Secret"]
    for workload in workloads(documents):
        for container in containers(workload):
            for name, value in environment(documents, container).items():
                if re.search(r"PASSWORD|TOKEN|SEED", name):
                    assert value.startswith("secret:"), name


@overlay
def test_who_may_talk_to_whom(documents):
    """The relay can only connect to NATS, DNS and the Facilitator, and only Prometheus can connect to it."""
    assert {NATS} | INTERNET | DNS == allowed(documents, "job-status-relay", "egress")
    assert {NATS} | DNS == allowed(documents, "relay-provision", "egress")
    assert {("app.kubernetes.io/name=nats", "TCP", 6222)} | DNS == allowed(documents, "nats", "egress")
    assert {("monitoring", "TCP", "http")} == allowed(documents, "job-status-relay", "ingress")
    assert set() == allowed(documents, "relay-provision", "ingress")
    assert {
        ("app.kubernetes.io/name=job-status-relay", "TCP", "client"),
        ("job-status-relay/nats-client=true", "TCP", "client"),
        ("app.kubernetes.io/name=nats", "TCP", "cluster"),
        ("monitoring", "TCP", "monitor"),
    } == allowed(documents, "nats", "ingress")
    for policy in ("job-status-relay", "relay-provision", "nats"):
        assert ["Ingress", "Egress"] == find(documents, "NetworkPolicy", policy)["spec"]["policyTypes"]
