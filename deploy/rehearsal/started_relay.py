"""A relay that a rehearsal started as a process of its own."""

import asyncio
import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LAST_LINES: Final = 20


@dataclass(frozen=True, slots=True)
class StartedRelay:
    """Its process, and the file with its log."""

    process: asyncio.subprocess.Process
    log: Path

    def require_running(self) -> None:
        """End the rehearsal, with the relay's last words, if it has ended by itself."""
        if self.process.returncode is not None:
            self.give_up(f"ended by itself with exit code {self.process.returncode}")

    def give_up(self, problem: str) -> None:
        """End the rehearsal because of a problem with this relay."""
        last_lines = "\n".join(self.log.read_text(errors="replace").splitlines()[-LAST_LINES:])
        sys.exit(f"{self.log.stem} (process {self.process.pid}) {problem}; its last lines:\n{last_lines}")

    async def stop(self) -> None:
        """Stop it as a supervisor does."""
        self.require_running()
        await self.end()

    async def end(self) -> None:
        """The same, whether it still runs or not."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        await self.process.wait()
