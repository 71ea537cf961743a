"""A worker that ends in the middle of a request to the broker."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from aiormq.abc import AbstractChannel

from tests.rig import Rig
from warren.bus.connection import Connection
from warren.errors import NotDeclared
from warren.support.loops import Loops


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


@pytest.mark.parametrize("is_cancelled", [True, False])
async def test_a_request_that_fails_after_its_caller_has_gone_is_no_noise(
    rig: Rig, is_cancelled: bool
) -> None:
    told = list[dict[str, Any]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    connection = Connection(rig.settings, rig.url, "test")
    await connection.open()
    begun, goes_on, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def act(channel: AbstractChannel) -> None:
        begun.set()
        await goes_on.wait()
        try:
            await channel.queue_declare("not-there", passive=True)
        finally:
            ended.set()

    asking = asyncio.create_task(connection.administer(act))
    await begun.wait()
    if is_cancelled:
        asking.cancel()
        await asyncio.wait({asking})
    goes_on.set()
    await ended.wait()
    if not is_cancelled:
        with pytest.raises(NotDeclared):
            await asking
    others = {one for one in asyncio.all_tasks() if one.get_name() == "administration"}
    if others:
        await asyncio.wait(others)
    await connection.close()
    del asking, others
    gc.collect()
    assert told == []
