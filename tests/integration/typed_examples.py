"""The Python of the pages passes pyright and mypy in their strict modes, beside the pins of a validator."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN, TOOLS = ROOT / ".venv" / "bin", ROOT / ".venv-integration" / "bin"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(Before:\n\n)?(?:<!-- example: (\w+) -->\n)?^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
IMPORTED = {"callback": "callbacks"}
"""Examples that others import, with the name of their module."""
LEFT_OUT = {"nats_py"}
"""It uses nats-py itself, which has types only in part."""


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> Path:
    """A folder with a module for each example; old code is left out."""
    folder = tmp_path_factory.mktemp("examples")
    for page in PAGES:
        found = [
            (name, text)
            for before, name, text in BLOCK.findall(page.read_text())
            if not before and name not in LEFT_OUT
        ]
        for number, (name, text) in enumerate(found):
            module = IMPORTED.get(name, f"{page.stem.lower().replace('-', '_')}_{number}_{name}".rstrip("_"))
            (folder / f"{module}.py").write_text(text)
    (folder / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict", "pythonVersion": "3.11"}')
    return folder


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "command",
    [
        (BIN / "pyright", "--pythonpath", TOOLS / "python", "--project", "."),
        (TOOLS / "mypy", "--strict", "--no-error-summary", "--cache-dir", ROOT / ".mypy_cache", "."),
    ],
    ids=["pyright", "mypy"],
)
def test_strict(examples: Path, command: tuple[object, ...]):
    """Nothing is found."""
    assert 12 < len([*examples.glob("*.py")])
    done = subprocess.run([*map(str, command)], cwd=examples, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr
