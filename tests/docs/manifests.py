"""The rendered overlays, and how their documents refer to each other."""

import re
from pathlib import Path
from typing import Any

import pytest
from kustomized import PODS, Document, find, pod, render

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
OVERLAYS = DEPLOY / "kubernetes" / "overlays"
TLS = DEPLOY / "kubernetes" / "tls"
COMPONENTS = {
    name: DEPLOY / "kubernetes" / name
    for name in ("console", "gitops", "hpa", "keda", "nats-box", "nats-exporter", "tls", "tracing")
}
"""What an overlay may add."""
RENDERED = {
    "dev": render(OVERLAYS / "dev"),
    "production": render(OVERLAYS / "production"),
    "production with TLS": render(OVERLAYS / "production", TLS),
}
GIB = 2**30
WITH_COMPONENTS = {
    f"production with {name}": render(OVERLAYS / "production", folder)
    for name, folder in COMPONENTS.items()
    if name != "tls"
}
ALL = [folder for name, folder in COMPONENTS.items() if name != "keda"]  # one autoscaler
EVERY = RENDERED | {"production with all components": render(OVERLAYS / "production", *ALL)}

overlay = pytest.mark.parametrize("documents", RENDERED.values(), ids=RENDERED)
every = pytest.mark.parametrize("documents", EVERY.values(), ids=EVERY)


def name_of(document: Document) -> str:
    return f"{document['kind']}/{document['metadata']['name']}"


def workloads(documents: list[Document]) -> list[Document]:
    return [each for each in documents if each["kind"] in PODS]


def relay_pods(documents: list[Document]) -> list[Document]:
    """The Deployment and the Job, whose pods run the `relay` command."""
    return [find(documents, "Deployment", "job-status-relay"), find(documents, "Job", "relay-provision")]


def nats_pods(documents: list[Document]) -> Document:
    return find(documents, "StatefulSet", "nats")


def environment(documents: list[Document], container: Document) -> dict[str, str]:
    """A container's environment; a value from a Secret reads `secret:<name>:<key>`."""
    variables: dict[str, str] = {}
    for source in container.get("envFrom", []):
        variables |= find(documents, "ConfigMap", source["configMapRef"]["name"])["data"]
    for variable in container.get("env", []):
        source = variable.get("valueFrom", {})
        if (secret := source.get("secretKeyRef")) is not None:
            variables[variable["name"]] = f"secret:{secret['name']}:{secret['key']}"
        else:
            variables[variable["name"]] = variable.get("value", "")
    return variables


def mounted_files(workload: Document) -> set[str]:
    """Every file that a workload's first container gets from named items of its volumes."""
    spec = pod(workload)["spec"]
    volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
    return {
        f"{mount['mountPath']}/{item['path']}"
        for mount in spec["containers"][0].get("volumeMounts", [])
        for item in volumes.get(mount["name"], {}).get("secret", {}).get("items", [])
    }


def secret_keys(value: Any) -> set[tuple[str, str]]:
    """Every (Secret, key) to which `value` refers, except optional ones."""
    if isinstance(value, list):
        return {found for each in value for found in secret_keys(each)}
    if not isinstance(value, dict):
        return set()
    found = {found for each in value.values() for found in secret_keys(each)}
    if "secretKeyRef" in value and not value["secretKeyRef"].get("optional"):
        found.add((value["secretKeyRef"]["name"], value["secretKeyRef"]["key"]))
    if "secretName" in value and not value.get("optional"):
        keys = [item["key"] for item in value.get("items", [])] or ["tls.crt", "tls.key", "ca.crt"]
        found |= {(value["secretName"], key) for key in keys}
    return found


def quantity(text: str) -> float:
    """A Kubernetes quantity of bytes as a number."""
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)B?", text).groups()
    return int(number) * {"Mi": 2**20, "Gi": GIB}[unit]
