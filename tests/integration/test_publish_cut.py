"""A connection that is lost under a burst of publishes."""

from __future__ import annotations

import asyncio
import time
from urllib.parse import urlsplit
from uuid import uuid4

from tests.rig import Rig
from tests.toolbox import running
from warren.bus.connection import Connection, Message
from warren.bus.publisher import Publisher
from warren.bus.topology import Queue, Topology
from warren.testing.proxy import TcpProxy

FAR_BELOW_THE_TIMEOUT = 10.0  # seconds; publish_timeout is 30


async def test_a_burst_into_a_connection_that_is_gone_is_published_on_the_next(rig: Rig) -> None:
    address = urlsplit(rig.url)
    queue = Queue(f"{rig.settings.namespace}.burst", {"x-queue-type": "classic"})
    async with TcpProxy(address.hostname or "", address.port or 5672) as proxy:
        connection = Connection(rig.settings, proxy.url_for(rig.url), "burst")
        await connection.open()
        await connection.declare(Topology((), (queue,), ()))
        publisher = Publisher(connection)
        async with running(connection.supervise):
            proxy.cut()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            # The loop is busy while the reset arrives, so that the burst meets a dead socket.
            time.sleep(0.02)  # noqa: ASYNC251
            async with asyncio.timeout(FAR_BELOW_THE_TIMEOUT):
                await asyncio.gather(
                    *(publisher.publish(Message("", queue.name, b"{}", str(uuid4()))) for _ in range(300))
                )
            assert await connection.depth(queue.name) >= 300
            await connection.delete_queue(queue.name)
            await connection.close()
