"""Whoever publishes installs the package into an environment with pins of their own, and gets little by it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
VALIDATOR: Final = ROOT / ".venv-integration" / "bin" / "python"
UV: Final = VALIDATOR.parent / "uv"
LOWEST: Final = ("pydantic==2.8.0", "msgspec==0.21.0", "nats-py==2.12.0")
OTHERS: Final = {
    "validators": (*(ROOT / "tests/integration/validator.txt").read_text().splitlines(),),
    "FastAPI 0.110": ("fastapi==0.110.0",),
    "FastAPI 0.119": ("fastapi==0.119.0",),
    "the lowest": LOWEST,
}
TEST_TOOLS: Final = (
    *("pytest>=8.4", "pytest-asyncio>=1.2", "pytest-timeout>=2.4", "pytest-xdist>=3.8", "hypothesis>=6.140"),
    *("gevent>=24.11", "opentelemetry-api", "opentelemetry-sdk"),
)
MOST_PACKAGES: Final = 12
MOST_BYTES: Final = 12_000_000


def environment(folder: Path, *packages: str) -> Path:
    """A virtual environment with these packages; returns its Python."""
    python = folder / "bin" / "python"
    run(UV, "venv", "--quiet", "--python", sys.executable, folder)
    run(UV, "pip", "install", "--quiet", "--python", python, *packages)
    return python


def run(*command: object, code: int = 0, **options: object) -> str:
    """Run a command, which must end with `code`; returns what it says."""
    done = subprocess.run(
        [*map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=500, **options
    )
    said = done.stdout + done.stderr
    assert code == done.returncode, said
    return said


@pytest.mark.timeout(500)
@pytest.mark.parametrize("pins", OTHERS.values(), ids=OTHERS)
def test_resolves(tmp_path: Path, pins: tuple[str, ...]):
    """The package can be installed together with these pins."""
    (tmp_path / "pins.txt").write_text("\n".join(pins))
    found = run(UV, "pip", "compile", "--quiet", "--no-annotate", "pyproject.toml", tmp_path / "pins.txt")
    assert {"msgspec", "nats-py", "pydantic"} <= {line.partition("==")[0] for line in found.splitlines()}


@pytest.mark.timeout(500)
def test_beside_a_validator():
    """In the environment of a validator both pip and uv add it, and replace nothing."""
    installed = run(UV, "pip", "freeze", "--python", VALIDATOR, "--exclude-editable")
    pip = (VALIDATOR, "-m", "pip", "--disable-pip-version-check")
    added = run(*pip, "install", "--dry-run", "--quiet", "--report", "-", ".")
    assert '"name": "job-status-relay"' in added
    assert 1 == added.count('"is_direct"')
    run(UV, "pip", "install", "--python", VALIDATOR, "--dry-run", ".")
    assert installed == run(UV, "pip", "freeze", "--python", VALIDATOR, "--exclude-editable")
    run(UV, "pip", "check", "--python", VALIDATOR)


@pytest.mark.timeout(500)
def test_small(tmp_path: Path):
    """An empty environment gets at most 12 packages and 12 MB; the command says in one line what to install."""
    environment(tmp_path, ".")
    site = next((tmp_path / "lib").glob("python*/site-packages"))
    size = sum(file.stat().st_size for file in site.rglob("*") if file.is_file() and file.suffix != ".pyc")
    assert len([*site.glob("*.dist-info")]) <= MOST_PACKAGES
    assert size <= MOST_BYTES
    said = run(tmp_path / "bin" / "relay", "serve", code=2)
    assert 1 == said.count("\n")
    assert "job-status-relay[server]" in said


@pytest.mark.timeout(600)
def test_lowest_versions(tmp_path: Path):
    """The tests of producer and client pass with the lowest versions of what they use."""
    python = environment(tmp_path, "--editable", ".[local]", *LOWEST, *TEST_TOOLS)
    tests = ("-q", "-n", "2", "-p", "no:cacheprovider", "tests/producer", "tests/client")
    assert " passed in " in run(python, "-m", "pytest", *tests, env={**os.environ, "PYTHONPATH": ""})
