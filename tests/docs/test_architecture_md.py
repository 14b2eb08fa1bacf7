"""docs/architecture.md and CONTRIBUTING.md, compared with the folders, the import contract and the code."""

import ast
import re
import tomllib

import pytest
from pages import ROOT, between, table_after

PAGES = {name: (ROOT / name).read_text() for name in ("docs/architecture.md", "CONTRIBUTING.md")}
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
FUNCTION = re.compile(r"`(relay/[\w/]+\.py)::([\w.]+)`")


def definitions(path: str) -> set[str]:
    """Every class, method, function and constant of a module, methods as `Class.method`."""
    found: set[str] = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{each.name}" for each in node.body if hasattr(each, "name")}
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def test_rooms():
    """The table has each folder of the relay once, on the floor that it has in the import contract."""
    (layers,) = [contract["layers"] for contract in CONTRACTS if contract["type"] == "layers"]
    floors = [sorted(name.strip().replace(".", "/") for name in layer.split("|")) for layer in layers[1:]]
    rows = table_after("| floor | room | holds |", between("rooms", PAGES["docs/architecture.md"]))
    shown: dict[int, list[str]] = {}
    for floor, room, _ in rows:
        shown.setdefault(int(floor), []).append(room.strip("`"))
    assert floors == [sorted(shown[floor]) for floor in sorted(shown, reverse=True)]
    assert {str(path.parent.relative_to(ROOT)) for path in ROOT.glob("relay/*/__init__.py")} == {
        row[1].strip("`") for row in rows
    }


@pytest.mark.parametrize("page", PAGES)
def test_functions(page):
    """Every function, class and constant that the page names (`file::name`) is in that file."""
    named = FUNCTION.findall(PAGES[page])
    assert [] == [f"{path}::{name}" for path, name in named if name not in definitions(path)]
