import asyncio

from relay_kit import Scene, gauges, new_job

from relay.contract.subjects import DLQ_STREAM, Reason
from relay.nats.jetstream import api_request
from relay.path.dead_letter_count import DeadLetterCount


async def test_dead_letters_stay_until_they_are_removed(nats_server, facilitator):
    """A dead letter counts until somebody removes it; while NATS cannot be asked, nothing is said."""
    async with Scene(nats_server, facilitator) as scene, scene.relay() as relay:
        count = DeadLetterCount(scene.nc, relay.metrics)

        async def until_stored(letters: int | None) -> None:
            async with asyncio.timeout(10):
                while gauges(relay).get("relay_dead_letters_stored") != letters:
                    await count._look()

        await until_stored(0)
        await scene.settled(await scene.publish_body(new_job(0), b"{", dead_letter=Reason.INVALID_JSON))
        await until_stored(1)
        await api_request(scene.nc, f"$JS.API.STREAM.PURGE.{DLQ_STREAM}")
        await until_stored(0)
        await nats_server.kill()
        await until_stored(None)
