"""`job.integrity_error` is believed only if the update can have reached the Facilitator before."""

import asyncio

from dead_letter_kit import Dlq
from relay_kit import ACKED, TERMED, Scene, counters, new_job

from relay.contract.subjects import Reason
from relay.local.faults import INTEGRITY_ERRORS
from relay.path.earlier_updates import EarlierUpdates


async def test_nothing_is_lost_while_the_facilitator_stores_nothing(nats_server, facilitator, capsys):
    """While each answer is job.integrity_error and nothing is stored, updates are kept; afterwards all are stored."""
    async with Scene(nats_server, facilitator, MAX_ATTEMPTS="1000", LOG_LEVEL="warning") as scene, scene.relay() as it:
        before = await scene.publish_lives(2)
        assert [ACKED] * len(before) == await scene.settled(*before)
        with facilitator.integrity_errors() as fault:
            updates = await scene.publish_lives(8)
            await facilitator.wait_for(lambda _: fault.hits >= 50)
        assert [ACKED] * len(updates) == await scene.settled(*updates)
        assert await scene.broken_promises() == []
        counted = counters(it)
    assert (0, fault.hits) == (counted["relay_updates duplicate"], counted["relay_unexplained_duplicates"])
    told = [line for line in capsys.readouterr().out.splitlines() if "cannot have reached it before" in line]
    lanes = [line.partition("lane=")[2].split()[0] for line in told]
    assert sorted(set(lanes)) == sorted(lanes)
    assert lanes


async def test_it_ends_as_a_dead_letter_that_can_be_replayed(nats_server, facilitator):
    """After its attempts an update is a dead letter; replayed too early it is one again, and later it is stored."""
    job = new_job()
    async with Scene(nats_server, facilitator) as scene, scene.relay():
        dlq = Dlq(scene.nc)
        with facilitator.integrity_errors() as fault:
            # The second is no repeat of something that is stored: the first was not stored either.
            poor = [
                await scene.publish(job, "accepted", {"n": n}, dead_letter=Reason.UNEXPLAINED_DUPLICATE) for n in (1, 2)
            ]
            assert [TERMED] * 2 == await scene.settled(*poor)
            letters = await scene.dead_letters()
            assert ["3", "3"] == [letter.attempts for letter in letters]
            assert all("job.integrity_error at attempt 3, " in letter.error for letter in letters)
            await dlq.replay()
            await scene.dust_settled()
            assert fault.hits == 2 * 2 * 3
            assert [Reason.UNEXPLAINED_DUPLICATE] * 2 == [letter.reason for letter in await scene.dead_letters()]
        await dlq.replay()
        await scene.dust_settled()
        assert [{"n": 1}] == [row.metadata for row in facilitator.rows_of(job)]
        assert [] == await scene.dead_letters()


async def test_other_senders(nats_server, facilitator):
    """With RELAY_OTHER_SENDERS an update that only somebody else can have sent is a duplicate, at once."""
    async with Scene(nats_server, facilitator, OTHER_SENDERS="true") as scene, scene.relay() as relay:
        with facilitator.integrity_errors():
            update = await scene.publish(new_job())
            assert [ACKED] == await scene.settled(update)
        assert 1 == counters(relay)["relay_updates duplicate"]


async def test_a_repeat_of_what_another_worker_relayed(nats_server, facilitator):
    """A repeat is a duplicate also if the worker that relayed the first one has gone."""
    job = new_job()
    async with Scene(nats_server, facilitator, MAX_ATTEMPTS="1") as scene:
        async with scene.relay():
            assert [ACKED] == await scene.settled(await scene.publish(job))
        async with scene.relay() as relay:
            assert [ACKED] == await scene.settled(await scene.publish(job))
            assert 1 == counters(relay)["relay_updates duplicate"]


async def test_asking_the_stream_holds_up_nobody_else(nats_server, facilitator, monkeypatch):
    """While the stream does not answer, the update and its job wait; the lane's other jobs go on."""
    answer, real = asyncio.Event(), EarlierUpdates.hold_equal

    async def late(*args):
        await answer.wait()
        return await real(*args)

    monkeypatch.setattr(EarlierUpdates, "hold_equal", late)
    job, others = new_job(0), [new_job(0) for _ in range(8)]
    async with Scene(nats_server, facilitator) as scene, scene.relay():
        with facilitator.inject(INTEGRITY_ERRORS, uuid=job):
            held = await scene.publish_life(job)
            flowing = [update for other in others for update in await scene.publish_life(other)]
            assert [ACKED] * len(flowing) == await scene.settled(*flowing)
            assert [] == facilitator.rows_of(job)
        answer.set()
        assert [ACKED] * len(held) == await scene.settled(*held)
        assert await scene.broken_promises() == []
