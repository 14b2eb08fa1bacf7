"""What `relay demo` shows: a live table on a terminal, and the summary at the end."""

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import AsyncGenerator, Mapping
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from relay.contract.model import JobStatus
from relay.contract.subjects import DLQ_STREAM, STATUS_SUBJECTS
from relay.local.tally import Latency, Result, Tally

_REFRESH_S: Final = 0.2


@contextlib.asynccontextmanager
async def live(console: Console, tally: Tally) -> AsyncGenerator[None]:
    """Show `tally` as it changes, until the block ends. Shows nothing if `console` is not a terminal."""
    if console.quiet or not console.is_terminal:
        yield
        return
    with Live(_view(tally), console=console, auto_refresh=False, transient=True) as screen:
        refreshing = asyncio.create_task(_refresh(screen, tally))
        try:
            yield
        finally:
            refreshing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await refreshing


def _view(tally: Tally) -> Group:
    figures = Table.grid(padding=(0, 2))
    figures.add_row("published", str(tally.published))
    figures.add_row("relayed", str(tally.relayed))
    figures.add_row("in flight", str(tally.in_flight))
    figures.add_row("dead letters", _by_reason(tally.dead_letters))
    figures.add_row("publish to Facilitator", _latency(tally.latency()))
    return Group(jobs_by_status(tally), figures)


async def _refresh(screen: Live, tally: Tally) -> None:
    while True:
        screen.update(_view(tally), refresh=True)
        await asyncio.sleep(_REFRESH_S)


def jobs_by_status(tally: Tally) -> Table:
    """How many jobs the Facilitator shows in each status."""
    jobs = Table(title="Jobs, as the Facilitator shows them", title_justify="left", min_width=44)
    jobs.add_column("status")
    jobs.add_column("jobs", justify="right")
    for status in JobStatus:
        if count := tally.jobs_by_status[status]:
            jobs.add_row(status, str(count))
    return jobs


def summary(result: Result, repeated: int) -> Table:
    """The result in words, for people."""
    rows = Table.grid(padding=(0, 2))
    rows.add_row("published", f"{result.published} (repeats that JetStream left out: {repeated})")
    rows.add_row("acknowledged", str(result.acknowledged))
    rows.add_row("duplicates", f"{result.duplicates} (the Facilitator had them already)")
    rows.add_row("dead letters", _by_reason(result.dead_lettered))
    rows.add_row("reordered", str(result.reordered), style=None if result.reordered == 0 else "bold red")
    rows.add_row("lost", str(result.lost), style=None if result.lost == 0 else "bold red")
    if result.both:
        rows.add_row("stored, and a dead letter", str(result.both), style="bold red")
    rows.add_row("publish to Facilitator", _latency(result.latency_ms))
    rows.add_row("", "(the slowest waited for retries)")
    return rows


def directions(nats_url: str, http_port: int) -> str:
    """Commands to look around with while the demo's servers run."""
    relay = "relay" if shutil.which("relay") else f"{os.path.relpath(sys.executable)} -m relay"
    job = "00000000-0000-4000-8000-000000000001"
    return "\n".join(
        (
            f"  nats --server {nats_url} sub '{STATUS_SUBJECTS}'",
            f"  nats --server {nats_url} stream view {DLQ_STREAM}",
            f"  RELAY_NATS_URL={nats_url} {relay} top",
            f"  RELAY_NATS_URL={nats_url} {relay} publish {job} accepted",
            f"  echo '{{}}' | RELAY_NATS_URL={nats_url} {relay} publish --raw {job}",
            f"  curl http://127.0.0.1:{http_port}/metrics",
        )
    )


def _by_reason(counts: Mapping[str, int]) -> str:
    return "\n".join((str(sum(counts.values())), *(f"  {reason} {count}" for reason, count in sorted(counts.items()))))


def _latency(latency: Latency) -> str:
    if latency.p50 is None:
        return "-"
    return f"p50 {latency.p50:.2f} ms   p99 {latency.p99:.2f} ms   p99.9 {latency.p99_9:.2f} ms"
