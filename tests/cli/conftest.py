"""What the tests of the commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_kit import make_command


@pytest.fixture
def relay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """`await relay("publish", "-", stdin=b"...", NATS_URL=...)`: runs a command in this process, see cli_kit.py."""
    return make_command(monkeypatch, tmp_path)
