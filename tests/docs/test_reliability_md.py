"""docs/reliability.md against the tests that it names."""

import ast
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs/reliability.md"
TEXT = DOCUMENT.read_text()
COLUMNS = ["what goes wrong", "what is promised", "test", "seen"]


def named_tests() -> list[tuple[str, str]]:
    """Each test that the page names: its file and its name, with its class if it has one."""
    return re.findall(r"`(tests/[\w/]+\.py)::([\w:]+)", TEXT)


def names_in(path: str) -> set[str]:
    """The tests of a file by name, those of a class with its name before theirs."""
    tree = ast.parse((ROOT / path).read_text())
    tests = {node.name for node in tree.body if _is_test(node)}
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return tests | {f"{each.name}::{node.name}" for each in classes for node in each.body if _is_test(node)}


def _is_test(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")


def tables() -> list[list[list[str]]]:
    """The tables of the page: rows of cells, the heading first."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", TEXT, flags=re.MULTILINE)
    return [
        [[cell.strip() for cell in line.strip("|").split(" | ")] for line in block.splitlines()] for block in blocks
    ]


def test_named_tests_exist():
    """Every test that the page names is in the file that it names."""
    assert [] == [f"{path}::{name}" for path, name in named_tests() if name not in names_in(path)]


@pytest.mark.parametrize("path", sorted({path for path, _ in named_tests() if path.startswith("tests/faults/")}))
def test_no_fault_is_left_out(path):
    """Of a file of fault tests that the page speaks of, it names every test."""
    assert set() == names_in(path) - {name for named, name in named_tests() if named == path}


@pytest.mark.parametrize("table", tables(), ids=lambda table: table[2][0])
def test_every_row_names_its_test(table):
    """Each fault has a promise and at least one test that proves it."""
    heading, _, *rows = table
    assert COLUMNS == heading
    assert [] == [row for row in rows if len(row) != len(COLUMNS) or not row[1] or "::test_" not in row[2]]


def test_planted_bugs():
    """The page says how many bugs are planted in the simulation, as many as there are."""
    bugs = (ROOT / "tests/faults/simulation/bugs.py").read_text()
    assert [str(len(re.findall(r"^@bug\(", bugs, flags=re.MULTILINE)))] == re.findall(r"(\d+) planted bugs", TEXT)


def test_links_lead_somewhere():
    """Every relative link of the page names a file of the repository."""
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", TEXT)
    missing = [target for target in targets if not urlsplit(target).scheme and not (DOCUMENT.parent / target).exists()]
    assert [] == missing
