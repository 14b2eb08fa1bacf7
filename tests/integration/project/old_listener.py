"""The old way: sends what comes over the channel layers of some jobs to the Facilitator, and ignores its answers.

    old_listener.py URL JOB...

It ends when each job has had its last status.
"""

import asyncio
import json
import os
import sys

import django
import websockets
from channels.layers import get_channel_layer

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")


async def listen(connection: websockets.ClientConnection, job: str) -> None:
    layer = get_channel_layer()
    while True:
        message = await layer.receive(f"job_status_updates__{job}")
        await connection.send(json.dumps(message["payload"]))
        if message["payload"]["status"] == "completed":
            return


async def main(url: str, jobs: list[str]) -> None:
    async with websockets.connect(url) as connection:
        await asyncio.gather(*(listen(connection, job) for job in jobs))


if __name__ == "__main__":
    django.setup()
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
