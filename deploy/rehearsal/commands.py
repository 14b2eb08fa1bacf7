"""Runs every command of the pages that begins with `nats`, as the user who is told to run it, on a real cluster.

Run it from the top of the repository as `make rehearse-commands`, with `nats` 0.5.0 or newer on PATH
(`go install github.com/nats-io/natscli/nats@v0.5.0`). It takes some two minutes, and ends with exit code 1 if a command
does something else than the page says. With `--show` it also prints what they print. A command of a page that is not in
COMMANDS is an error as well; the test suite checks that without `nats`.
"""

import asyncio
import contextlib
import os
import pty
import re
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

from rehearsed_site import ANYBODY, ROOT, Site, password, require, site

PAGES: Final = (ROOT / "README.md", ROOT / "subjects.md", *sorted((ROOT / "docs").glob("*.md")))
COMMAND: Final = re.compile(r"^\$ (nats .*)$|`(nats [a-z][^`]*)`", re.MULTILINE)
JOB: Final = "123e4567-e89b-42d3-a456-426614174000"
UNKNOWN_TO_FACILITATOR: Final = "9b2f8c1e-5d3a-4e7b-8f60-1c2d3e4f5a6b"
BAD: Final = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
REFUSED: Final = "ermissions"
"""What `nats` says about a missing permission, one way or another."""
WHERE_IS_THE_CURSOR: Final = b"\x1b[6n"
"""What prompts ask a terminal, and wait for the answer."""
WITHIN_S: Final = 60
LARGE_BYTES: Final = 400_000
LARGE_UPDATES: Final = 60
"""Together three times what nats-server sends of a backup before the first acknowledgement."""
PLACEHOLDERS: Final = {"<uuid>": JOB, "relay-lane-N": "relay-lane-1", " NAME": " node-2", "--seq N": "--seq 2"}


@dataclass(frozen=True, slots=True)
class How:
    """How a command is run, and what it must do.

    role: the user.
    says: what its output must contain.
    code: its exit code; None: any.
    more: options that answer what it would ask, or that end it.
    types: what somebody types; then it runs in a terminal.
    first: a command to run before.
    """

    role: str = "operator"
    says: str = ""
    code: int | None = 0
    more: str = ""
    types: str = ""
    first: str = ""


NAMED: Final = How(more="--help")
"""Commands that a page only names."""
SUB: Final = How(role="operator", says="Received on", more="--count 1")
VIEW: Final = How(role=ANYBODY, says="Subject: ", types="n\r")

COMMANDS: Final[dict[str, How]] = {
    # Producers and askers.
    f'nats pub --jetstream job.status.{JOB} \'{{"uuid":"{JOB}","status":"accepted"}}\'': How("producer", "JOB_STATUS"),
    f"nats request job.query.{JOB} ''": How("producer", '"sequence"'),
    "nats request job.query.<uuid> ''": How("observer", '"sequence"'),
    "nats request job.query.00000000-0000-4000-8000-000000000009 ''": How("observer", "Nats-Service-Error-Code: 404"),
    "nats request job.history.<uuid> ''": How("runner", '"updates"'),
    "nats request job.history.<uuid> '{\"limit\": 10}'": How("operator", '"updates"'),
    f"nats request job.history.{UNKNOWN_TO_FACILITATOR} '{{\"limit\":1}}' --raw": How("observer", '"next":'),
    # Watching.
    "nats sub 'job.status.*'": SUB,
    "nats sub 'job.status.*' --count 1": How("observer", "Received on"),
    "nats sub job.status.<uuid>": SUB,
    "nats sub job.relayed.<uuid>": SUB,
    "nats sub 'job.relayed.*'": How("runner", "Received on", more="--count 1"),
    "nats sub 'job.relayed.*' --count 1": How("observer", "Received on"),
    "nats sub 'job.dlq.*'": How("observer", "Received on", more="--count 1"),
    "nats sub 'job.request.*'": SUB,
    "nats sub 'job.cheated.*'": SUB,
    "nats sub '$KV.RELAY_LEASES.>'": SUB,
    "nats request --replies 0 --timeout 1s relay.report ''": How("observer", '"worker"'),
    'nats request relay.lane.0 \'{"job": "<uuid>"}\'': How(says="Received with rtt"),
    "nats micro ls": How("observer", "job-status"),
    "nats micro info job-status": How("observer", "job.query.*"),
    "nats micro stats job-status": How("operator", "history"),
    # Streams, consumers and leases.
    "nats stream info JOB_STATUS": How("observer", "Messages"),
    "nats stream info JOB_DLQ": How("operator", "Messages"),
    "nats stream info JOB_ADVISORIES": How("observer", "Messages"),
    "nats stream info JOB_REQUESTS": How("observer", "Messages"),
    "nats consumer report JOB_STATUS": How("observer", "relay-lane-3"),
    "nats consumer info JOB_STATUS relay-lane-2": How("observer", "Acknowledgment Floor"),
    "nats consumer info JOB_STATUS relay-lane-N": How("operator", "Acknowledgment Floor"),
    "nats kv get RELAY_LEASES lane.2 --raw": How("operator", "-"),
    "nats kv ls RELAY_LEASES": How("operator", "lane.2"),
    "nats kv ls RELAY_LEASES --verbose": How("operator", "Revision"),
    "nats stream get JOB_STATUS 1": How("observer", "status"),
    "nats stream get JOB_STATUS --last-for 'job.status.*.<uuid>'": How("observer", JOB),
    "nats stream view JOB_STATUS": VIEW,
    "nats stream view JOB_STATUS --subject 'job.status.*.<uuid>'": VIEW,
    f"nats stream view JOB_STATUS --subject 'job.status.*.{UNKNOWN_TO_FACILITATOR}'": VIEW,
    "nats stream view JOB_DLQ": How("operator", "Relay-Reason", types="n\r"),
    "nats stream view JOB_ADVISORIES": How("operator", "Reached apparent end of data", types="n\r"),
    # What is refused to operators, or does damage.
    "nats consumer next JOB_STATUS relay-lane-2": How(says=REFUSED, code=None, more="--timeout 2s"),
    "nats kv put RELAY_LEASES lane.2 ...": How(says=REFUSED, code=None, more="--timeout 2s"),
    # Changes.
    "nats consumer add JOB_REQUESTS runner --pull --deliver new --ack explicit --wait 60s --defaults": How(
        says="runner"
    ),
    "nats consumer resume JOB_STATUS relay-lane-N": How(
        more="--force", first="nats consumer pause JOB_STATUS relay-lane-1 1h --force", says="resumed"
    ),
    "nats stream edit JOB_STATUS --max-bytes 15GB": How(more="--force", says="Maximum Bytes: 15 G"),
    "nats stream edit JOB_STATUS --max-age 14d": How(more="--force", says="Maximum Age: 14d"),
    "nats stream edit JOB_DLQ --max-msgs=-1": How(more="--force", says="Maximum Messages: unlimited"),
    "nats stream purge KV_RELAY_LEASES --subject '$KV.RELAY_LEASES.lane.0'": How(types="y\r", says="purge"),
    "nats backup stream JOB_STATUS backup/JOB_STATUS --no-progress": How(says="Received"),
    "nats stream purge JOB_STATUS --seq N": How(more="--force"),
    "nats stream purge JOB_STATUS": How(more="--force"),
    "nats stream rm JOB_STATUS": How(more="--force"),
    "nats backup restore stream backup/JOB_STATUS --no-progress": How(says="Restored stream"),
    "nats server cluster peer-remove NAME": How("admin", more="--force"),
    # Named only.
    **dict.fromkeys(
        (
            *("nats stream edit", "nats stream edit JOB_DLQ", "nats stream view", "nats stream get", "nats stream rmm"),
            *("nats stream rm", "nats stream purge", "nats stream backup", "nats stream restore"),
            *("nats backup restore", "nats backup account", "nats kv del", "nats consumer edit", "nats consumer add"),
            *("nats consumer resume", "nats consumer pause", "nats server cluster peer-remove"),
        ),
        NAMED,
    ),
}
"""Every command of the pages, in the order in which they are run."""


def commands_of_pages() -> set[str]:
    """The commands as they are written."""
    return {match[1] or match[2] for page in PAGES for match in COMMAND.finditer(page.read_text())}


async def run(site: Site, command: str, how: How, folder: Path) -> tuple[int, str]:
    """Run a command as a shell would; returns its exit code and what it printed."""
    if how.first:
        await run(site, how.first, How(), folder)
    for placeholder, value in PLACEHOLDERS.items():
        command = command.replace(placeholder, value)
    arguments = [*shlex.split(command)[1:], *shlex.split(how.more)]
    user = {"NATS_URL": ",".join(site.cluster.urls), "NATS_USER": how.role, "NATS_PASSWORD": password(how.role)}
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *("nats", *arguments),
        cwd=folder,
        env=os.environ | user | {"COLUMNS": "200"},
        stdin=theirs if how.types else asyncio.subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    typing = asyncio.create_task(_type(ours, how.types))
    try:
        async with asyncio.timeout(WITHIN_S):
            out, code = await asyncio.gather(asyncio.to_thread(_read, ours), process.wait())
    except TimeoutError:
        process.kill()
        return -1, f"it did not end within {WITHIN_S} s"
    finally:
        typing.cancel()
        os.close(ours)
    return code, out


async def _type(terminal: int, text: str) -> None:
    """Answer whatever is asked: a prompt forgets what was typed before it."""
    while text:
        await asyncio.sleep(1)
        os.write(terminal, text.encode())


def _read(terminal: int) -> str:
    chunks: list[bytes] = []
    with contextlib.suppress(OSError):  # so Linux reports the end of a terminal
        while chunk := os.read(terminal, 65536):
            chunks.append(chunk)
            os.write(terminal, chunk.count(WHERE_IS_THE_CURSOR) * b"\x1b[1;1R")
    return b"".join(chunks).decode(errors="replace").replace("\r\n", "\n")


async def happen(site: Site) -> None:
    """Until cancelled, let everything happen that commands watch for."""
    while True:
        await site.publish(JOB, "accepted")
        await site.publish(BAD, "finished")
        await site.facilitator.push_job_request(str(uuid4()))
        await site.facilitator.push_cheated(str(uuid4()))
        await asyncio.sleep(0.5)


async def fill(site: Site) -> None:
    """Store enough for a backup of realistic size."""
    for _ in range(LARGE_UPDATES):
        await site.publish(str(uuid4()), "accepted", os.urandom(LARGE_BYTES // 2).hex())


async def main() -> None:
    require("nats")
    if unknown := commands_of_pages() - COMMANDS.keys():
        sys.exit(f"nobody knows how to run these: {sorted(unknown)}")
    failed = 0
    async with site() as rehearsed, contextlib.AsyncExitStack() as started:
        folder = Path(started.enter_context(tempfile.TemporaryDirectory()))
        rehearsed.facilitator.unknown_jobs.add(UNKNOWN_TO_FACILITATOR)
        await rehearsed.start_relay(MAX_ATTEMPTS="1000")
        for status in ("received", "accepted"):
            await rehearsed.publish(UNKNOWN_TO_FACILITATOR, status)
        await fill(rehearsed)
        happening = asyncio.create_task(happen(rehearsed))
        started.callback(happening.cancel)
        for command, how in COMMANDS.items():
            code, out = await run(rehearsed, command, how, folder)
            right = how.says in out and (how.code is None or how.code == code)
            failed += not right
            if not right or how is not NAMED:
                print(f"{'as told' if right else 'OTHERWISE':9}  {how.role:9} {command[:100]}", flush=True)
            if "--show" in sys.argv and how is not NAMED:
                print(out)
            if not right:
                print(f"  exit code {code}, wanted {how.says!r} in:\n{out}")
    print(f"{len(COMMANDS)} commands, {failed} do something else")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    asyncio.run(main())
