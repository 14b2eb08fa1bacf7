"""Commands in Linux namespaces of their own: with another hosts file, as process 1, or after a suspension."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

_ROOT = () if os.geteuid() == 0 else ("--map-root-user",)
_MOUNT = 'mount --bind "$0" /etc/hosts && exec "$@"'


def with_hosts(file: Path, *command: str) -> tuple[str, ...]:
    """The command, with `file` as its /etc/hosts."""
    return ("unshare", *_ROOT, "--mount", "sh", "-c", _MOUNT, str(file), *command)


def as_process_1(*command: str) -> tuple[str, ...]:
    """The command, as process 1 of its own."""
    return ("unshare", *_ROOT, "--pid", "--fork", "--kill-child", "--mount-proc", *command)


def after_a_suspension(seconds: int, *command: str) -> tuple[str, ...]:
    """The command, as on a machine that was suspended for that long since its start."""
    return ("unshare", *_ROOT, "--time", "--boottime", str(seconds), "--fork", *command)


@contextlib.contextmanager
def black_hole(host: str, port: int) -> Iterator[None]:
    """An address where the kernel drops all packets: somebody listens there, and accepts nothing."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as full, socket.socket(family) as first, socket.socket(family) as second:
        full.bind((host, port))
        full.listen(0)
        for waiting in (first, second):
            waiting.settimeout(0)
            waiting.connect_ex((host, port))
        yield
