"""A worker that ends in the middle of a request to the broker."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from tests.rig import PATIENCE, Rig

from warren.bus import Connection
from warren.errors import NotDeclared
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


async def test_the_error_of_a_request_that_was_cancelled_is_no_news(rig: Rig) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    connection = Connection(rig.settings, rig.url, "test")
    ended = asyncio.Event()

    async def ask_for_nothing(channel: Any) -> None:
        try:
            await channel.exchange_declare(f"{rig.settings.namespace}.nothing", passive=True)
        finally:
            ended.set()

    await connection.open()
    async with Loops() as loops:
        loops.start("connection", connection.supervise())
        with pytest.raises(NotDeclared):
            await connection.administer(ask_for_nothing)
        ended.clear()
        asking = asyncio.create_task(connection.administer(ask_for_nothing))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait({asking})
        await asyncio.wait_for(ended.wait(), PATIENCE)
        administrations = [task for task in asyncio.all_tasks() if task.get_name() == "administration"]
        await asyncio.gather(*administrations, return_exceptions=True)
        await connection.close()
    del administrations
    gc.collect()
    assert told == []
