"""A worker that ends in the middle of a request to the broker."""

from __future__ import annotations

import asyncio

from tests.rig import Rig

from warren.bus import Connection
from warren.loops import Loops


async def test_a_cancelled_request_leaves_the_connection_whole(rig: Rig) -> None:
    connection = Connection(rig.settings, rig.url, "test")
    await connection.open()
    async with Loops() as loops:
        loops.start("connection", connection.supervise())
        for turns in range(60):  # from before the request is sent until after its channel is closed
            asking = asyncio.create_task(connection.has_exchange("amq.direct"))
            for _ in range(turns):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait({asking}, timeout=5)
            assert asking.done(), f"cancelled after {turns} turns of the event loop, it hangs"
            assert connection.is_open
        assert await connection.has_exchange("amq.direct")
        await connection.close()
