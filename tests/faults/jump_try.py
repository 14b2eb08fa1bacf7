"""By hand: the clock of the server jumps while pulls are under way, and a worker dies."""
import asyncio, pathlib, time
import pytest
import relay.local.server as server_module
from load_kit import steadily_published
from test_jetstream import scene_with, publish_bad_ones
from relay.local.faults import stall

OFFSET = pathlib.Path("/tmp/jump/offset")


async def set_clock(seconds):
    OFFSET.write_text(str(seconds))
    await asyncio.sleep(0.1)


@pytest.fixture(autouse=True)
def jumping(monkeypatch):
    OFFSET.write_text("0")
    monkeypatch.setattr(server_module, "find_server", lambda: "/tmp/jump/nats-server")
    yield
    OFFSET.write_text("0")


@pytest.mark.timeout(400)
@pytest.mark.parametrize("dies", [False, True])
@pytest.mark.parametrize("jump", [90, -90, 3600, -3600])
async def test_jump(jump, dies, capsys):
    async with scene_with(LEASE_TTL="2", ACK_WAIT="5", MAX_ATTEMPTS="100") as scene:
        async with scene.relay_process() as first:
            async with steadily_published(scene, backlog=100):
                await publish_bad_ones(scene)
                if dies:
                    with scene.facilitator.inject(stall()):
                        await asyncio.sleep(0.5)
                        began = time.monotonic()
                        first.kill()
                        await first.wait()
                    if jump > 0:
                        await set_clock(jump)
                    else:
                        await asyncio.sleep(2.5)  # the leases end
                        await set_clock(jump)
                    async with scene.relay():
                        await asyncio.sleep(20)
                        rows = len(scene.facilitator.rows)
                        print("ROWS", rows)
                        broken = None
                        await publish_bad_ones(scene)
                        await set_clock(jump)
                else:
                    began = time.monotonic()
                    await set_clock(jump)
                    await asyncio.sleep(5)
                    print("ROWS", len(scene.facilitator.rows))
                    await publish_bad_ones(scene)
            async with scene.relay() if dies else contextlib_null():
                broken = await scene.broken_promises(130)
            print("SETTLED after", time.monotonic() - began)
    out = capsys.readouterr().out
    pathlib.Path(f"/tmp/jump/out{jump}{dies}.log").write_text(out)
    assert [] == broken


class contextlib_null:
    async def __aenter__(self): pass
    async def __aexit__(self, *a): pass
