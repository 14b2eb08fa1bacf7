"""Updates that were stored under no lane, because the stream had lost its transform, become dead letters."""

from typing import Any

import pytest
from polling import until
from relay_kit import Scene, counters, missing, new_job, said

from relay.contract.subjects import DLQ_STREAM, STATUS_STREAM, Reason, api_stream_info, api_stream_update
from relay.dead_letters.replay import Replayer
from relay.nats.jetstream import api_request
from relay.nats.messages import find_message
from relay.path.strays import Strays


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = Strays.__init__.__defaults__
    assert defaults == (5.0,)
    monkeypatch.setattr(Strays.__init__, "__defaults__", (0.1,))


async def edit(scene: Scene, stream: str, **fields: Any) -> None:
    config = (await api_request(scene.nc, api_stream_info(stream)))["config"]
    await api_request(scene.nc, api_stream_update(stream), config | fields)


async def lose_transform(scene: Scene) -> None:
    await edit(scene, STATUS_STREAM, subject_transform=None)


async def dead_letters(scene: Scene, count: int) -> list[tuple[int, str, str]]:
    """Source sequence, reason and job of each dead letter, as soon as there are `count`."""

    async def look() -> list[tuple[int, str, str]] | None:
        letters = await scene.dead_letters()
        found = [(letter.source_sequence, letter.reason, letter.job) for letter in letters]
        return found if len(found) >= count else None

    return await until(look)


async def test_lost_transform(nats_server, facilitator):
    """What was published without lanes becomes a dead letter, once; it can be replayed, and the rest is relayed."""
    async with Scene(nats_server, facilitator) as scene:
        job, other = new_job(1), new_job(0)
        await scene.publish(job, "received")
        async with scene.relay() as relay:
            await lose_transform(scene)
            strays = [await scene.publish(each, "accepted", dead_letter=Reason.NO_LANE) for each in (job, other, job)]
            expected = [(each.sequence, "no_lane", each.job) for each in strays]
            assert expected == await dead_letters(scene, 3)
            assert 3 == counters(relay)["relay_dead_letters no_lane"]
            await scene.provision()
            await scene.publish(job, "completed", {})
            assert [] == await scene.broken_promises()
        async with scene.relay():
            late = await scene.publish(other, "completed", {})
            await scene.settled(late)
            assert expected == await dead_letters(scene, 3)
            for letter in await scene.dead_letters():
                await Replayer(scene.nc).move(letter)
            await scene.dust_settled()
            assert {"received", "accepted", "completed"} == {row.status for row in facilitator.rows if row.uuid == job}
            assert None is await find_message(scene.nc, STATUS_STREAM, {"next_by_subj": "job.status.*", "seq": 1})
            assert [] == await scene.dead_letters()


async def test_dead_letters_that_cannot_be_written(nats_server, facilitator):
    """A stray whose dead letter is refused is kept, and named on /readyz until it is written."""
    async with Scene(nats_server, facilitator) as scene, scene.relay() as relay:
        await edit(scene, DLQ_STREAM, max_msgs=1)
        await lose_transform(scene)
        strays = [await scene.publish(new_job(), dead_letter=Reason.NO_LANE) for _ in range(2)]
        assert "maximum messages exceeded" in await missing(relay, "stored under no lane do not become dead letters")
        await edit(scene, DLQ_STREAM, max_msgs=-1)
        assert [each.sequence for each in strays] == [each[0] for each in await dead_letters(scene, 2)]
        await scene.provision()
        await said(relay, lambda told: not [each for each in told["missing"] if "dead letters" in each])
