"""The result of `kubectl kustomize` for a folder, with the features that deploy/ uses; any other is an error.

Two things differ: a generated ConfigMap keeps its plain name (kustomize adds a hash of the content to it and to
the references to it), and the order of the documents.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]

FEATURES = {
    "apiVersion",
    "kind",
    "resources",
    "components",
    "configMapGenerator",
    "patches",
    "namespace",
    "images",
}
PODS = {"Deployment", "StatefulSet", "Job", "CronJob"}


def loaded(path: Path) -> list[Document]:
    """The documents of a file, read by the loader in C: every process of the suite reads them all."""
    return [*yaml.load_all(path.read_text(), yaml.CSafeLoader)]


def kustomization(folder: Path) -> Document:
    """The kustomization.yaml of a folder."""
    (found,) = loaded(folder / "kustomization.yaml")
    assert found.keys() - FEATURES == set(), f"{folder}: tests do not know what this does"
    return found


def folders(folder: Path) -> Iterator[Path]:
    """The folder and every folder that it includes."""
    yield folder
    wanted = kustomization(folder)
    for entry in wanted.get("resources", []) + wanted.get("components", []):
        if (folder / entry).is_dir():
            yield from folders((folder / entry).resolve())


def render(folder: Path, *components: Path) -> list[Document]:
    """The documents of a folder; with `components`, as if the folder included those as well."""
    return _build(folder, [], components)


def _build(folder: Path, documents: list[Document], components: tuple[Path, ...] = ()) -> list[Document]:
    wanted = kustomization(folder)
    for entry in wanted.get("resources", []):
        documents = documents + _resource(folder / entry)
    for component in [folder / entry for entry in wanted.get("components", [])] + list(components):
        assert kustomization(component)["kind"] == "Component"
        documents = _build(component, documents)
    for generator in wanted.get("configMapGenerator", []):
        documents = _generate(folder, generator, documents)
    for patch in wanted.get("patches", []):
        target = find(documents, patch["target"]["kind"], patch["target"]["name"])
        (operations,) = loaded(folder / patch["path"])
        for operation in operations:
            _apply(operation, target)
    for document in documents:
        if "namespace" in wanted and document["kind"] != "Namespace":
            document["metadata"]["namespace"] = wanted["namespace"]
        for container in containers(document):
            _name_image(container, wanted.get("images", []))
    return documents


def _resource(path: Path) -> list[Document]:
    if path.is_dir():
        return _build(path, [])
    return [_unshared(document) for document in loaded(path)]


def _unshared(value: Any) -> Any:
    """A copy without shared objects, which YAML's anchors make: so a patch changes only one place."""
    if isinstance(value, dict):
        return {key: _unshared(each) for key, each in value.items()}
    return [_unshared(each) for each in value] if isinstance(value, list) else value


def _generate(folder: Path, generator: Document, documents: list[Document]) -> list[Document]:
    data = {entry: (folder / entry).read_text() for entry in generator.get("files", [])}
    data |= dict(entry.split("=", 1) for entry in generator.get("literals", []))
    if generator.get("behavior") == "merge":
        find(documents, "ConfigMap", generator["name"])["data"].update(data)
        return documents
    assert generator.keys() <= {"name", "files", "literals"}
    made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generator["name"]}, "data": data}
    return [*documents, made]


def _apply(operation: Document, target: Document) -> None:
    """Apply one operation of JSON Patch (RFC 6902)."""
    *way, last = operation["path"].removeprefix("/").split("/")
    place: Any = target
    for step in way:
        place = place[int(step)] if isinstance(place, list) else place[step]
    key = int(last) if isinstance(place, list) and last != "-" else last
    match operation["op"]:
        case "test":
            assert place[key] == operation["value"], operation
        case "add" if key == "-":
            place.append(operation["value"])
        case "add":
            assert isinstance(place, dict), operation
            place[key] = operation["value"]
        case "remove":
            assert place.pop(key) is not None, operation
        case "replace":
            assert place[key] is not None, operation
            place[key] = operation["value"]
        case _:
            raise AssertionError(operation)


def _name_image(container: Document, images: list[Document]) -> None:
    name, _, _ = container["image"].partition(":")
    for image in images:
        if image["name"] == name:
            container["image"] = f"{image.get('newName', name)}:{image['newTag']}"


def find(documents: list[Document], kind: str, name: str) -> Document:
    """The one document with this kind and name."""
    (found,) = [each for each in documents if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def pod(document: Document) -> Document:
    """The pod template of a workload."""
    assert document["kind"] in PODS
    spec = document["spec"]["jobTemplate"]["spec"] if document["kind"] == "CronJob" else document["spec"]
    return spec["template"]


def containers(document: Document) -> list[Document]:
    """All containers of a workload, including init containers."""
    if document["kind"] not in PODS:
        return []
    spec = pod(document)["spec"]
    return spec.get("initContainers", []) + spec["containers"]
