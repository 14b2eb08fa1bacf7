"""Describes the machine of a measurement: without it, figures mean little."""

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any, Final

import psutil

from relay.local.server import find_server

_PACKAGES: Final = (
    *("nats-py", "websockets", "uvloop", "msgspec", "picows"),
    *("faststream", "channels-redis", "celery", "taskiq", "taskiq-nats"),
)


def describe() -> dict[str, Any]:
    """The machine, its current load, the versions of the software measured, and the RELAY_ settings in force."""
    return {
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "nats_server": _version([find_server(), "--version"]),
        "packages": {name: version for name in _PACKAGES if (version := _installed(name))},
        "settings": {name: value for name, value in sorted(os.environ.items()) if _is_harmless(name)},
    }


def _is_harmless(name: str) -> bool:
    """Whether a variable is a setting of the relay that cannot hold a secret."""
    return name.startswith("RELAY_") and not re.search("PASSWORD|TOKEN|CREDS|URL|FILE", name)


def sentence(machine: dict[str, Any]) -> str:
    """The description in one line."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    load = ", ".join(f"{load:.1f}" for load in machine["load_average"])
    return (
        f"{machine['cores']} cores, {machine['cpu']}, {machine['memory_gib']} GiB, {machine['kernel']}, "
        f"Python {machine['python']}, nats-server {machine['nats_server']}, {packages}; "
        f"load average at the start: {load}"
    )


def _cpu_model() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(command: list[str]) -> str:
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
    return output.split()[-1].removeprefix("v")


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
