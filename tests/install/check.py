"""What `make check-install` does, with pip alone: whoever publishes installs the package beside pins of their own.

1. pip resolves the package together with each set of OTHERS; nothing is installed.
2. An empty environment gets the package: at most MOST_PACKAGES packages and MOST_BYTES more. There it can be imported,
   and the command says in one line what to install.
3. Another one gets LOWEST, and the tests of producer and client pass there.

Needs the package index that pip is configured for, and Python 3.11, for which the pins were made.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
OTHERS: Final[Mapping[str, tuple[str, ...]]] = {
    "validators": ("--requirement", "tests/integration/validator.txt", "bittensor==9.9.0", "bittensor-wallet==4.0.0"),
    "FastAPI 0.110": ("fastapi==0.110.0",),
    "FastAPI 0.119": ("fastapi==0.119.0",),
    "the lowest": ("pydantic==2.8.0", "msgspec==0.19.0", "nats-py==2.12.0"),
}
LOWEST: Final = OTHERS["the lowest"]
TEST_TOOLS: Final = (
    *("pytest>=8.4", "pytest-asyncio>=1.2", "pytest-timeout>=2.4", "pytest-xdist>=3.8", "hypothesis>=6.140"),
    *("gevent>=24.11", "opentelemetry-api", "opentelemetry-sdk"),
)
MOST_PACKAGES: Final = 12
MOST_BYTES: Final = 12_000_000
_IMPORT: Final = "import time; began = time.perf_counter(); import {}; print(time.perf_counter() - began)"
_ROUNDS: Final = 7


def pip(*arguments: str, python: Path | str = sys.executable) -> None:
    command = (
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--python",
        str(python),
        "install",
        "--quiet",
    )
    subprocess.run([*command, *arguments], check=True, cwd=ROOT)


def environment(folder: Path) -> Path:
    """An empty virtual environment; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder / "bin" / "python"


def packages_and_bytes(folder: Path) -> tuple[int, int]:
    site = next((folder / "lib").glob("python*/site-packages"))
    size = sum(file.stat().st_size for file in site.rglob("*") if file.is_file() and file.suffix != ".pyc")
    return len(list(site.glob("*.dist-info"))), size


def import_s(python: Path, module: str) -> float:
    """The best of some tries."""

    def once() -> float:
        return float(subprocess.run([python, "-c", _IMPORT.format(module)], check=True, capture_output=True).stdout)

    return min(once() for _ in range(_ROUNDS))


def check_small(folder: Path) -> None:
    python = environment(folder)
    pip(".", python=python)
    packages, size = packages_and_bytes(folder)
    print(f"installed: {packages} packages, {size / 1e6:.1f} MB")
    if packages > MOST_PACKAGES or size > MOST_BYTES:
        sys.exit(f"at most {MOST_PACKAGES} packages and {MOST_BYTES / 1e6:.0f} MB are wanted")
    times = {module: import_s(python, module) for module in ("nats", "relay.producer", "relay.client")}
    print("import:", ", ".join(f"{module} {seconds:.3f} s" for module, seconds in times.items()))
    command = subprocess.run([folder / "bin" / "relay", "serve"], capture_output=True, text=True, check=False)
    print(f"relay serve: {command.stderr.strip()}")
    if command.returncode != 2 or command.stderr.count("\n") != 1:
        sys.exit("the command must end with 2 and one line")


def check_lowest(folder: Path) -> None:
    python = environment(folder)
    pip("--editable", ".[local]", *LOWEST, *TEST_TOOLS, python=python)
    tests = ("-q", "-n", "2", "-p", "no:cacheprovider", "tests/producer", "tests/client")
    subprocess.run([python, "-m", "pytest", *tests], check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": ""})


def main() -> None:
    for name, pins in OTHERS.items():
        began_s = time.monotonic()
        pip("--dry-run", "--ignore-installed", ".", *pins)
        print(f"beside {name}: resolved in {time.monotonic() - began_s:.0f} s")
    with tempfile.TemporaryDirectory() as folder:
        check_small(Path(folder) / "small")
        check_lowest(Path(folder) / "lowest")


if __name__ == "__main__":
    main()
