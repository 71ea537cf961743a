"""Connections that break in every way: in each byte of the handshake, in silence, by lost rights."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final
from urllib.parse import urlsplit

import pytest
from aiormq.exceptions import AMQPError
from structlog.testing import capture_logs

from tests.rig import Rig, eventually, publish, task_body
from tests.toolbox import declared, echo_app, logged, proxy_of, running, user
from warren import Client, Settings, Warren
from warren.bus import subscription as bus_subscription
from warren.bus import upkeep
from warren.bus.connection import Connection
from warren.bus.topology import Binding, Queue, Topology, exchanges
from warren.errors import BrokerUnavailable
from warren.worker.worker import Worker
from warren_schemas import Event

ALL: Final = ".*"
NOTHING: Final = "^$"
Serve = Callable[[asyncio.StreamWriter], None]


@asynccontextmanager
async def peer(serve: Serve) -> AsyncIterator[str]:
    """A server on 127.0.0.1 that serves each connection so and closes it, and its AMQP address."""

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serve(writer)
        with suppress(OSError):
            await reader.read()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    async with await asyncio.start_server(served, "127.0.0.1", 0) as server:
        yield f"amqp://guest:guest@127.0.0.1:{server.sockets[0].getsockname()[1]}/"


async def refused_by(serve: Serve) -> str:
    """What one attempt to connect raises."""
    async with peer(serve) as url:
        with pytest.raises(BrokerUnavailable) as raised:
            await Connection(Settings(connect_timeout=5), url, "test").open()
    return str(raised.value)


async def test_a_balancer_without_a_broker_is_a_broker_that_is_away() -> None:
    assert "is not reachable" in await refused_by(lambda writer: writer.close())


@pytest.mark.parametrize(
    "said",
    [
        b"\0",
        b"AMQP\0\0\x09\x01",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x01\0\0\0\0\0\x04\0\x0a\0\x0a\xce",  # a Connection.Start that ends before its fields
        b"\x01\0\0\0\0\0\x04\xff\xff\xff\xff\xce",  # a method that AMQP does not have
        b"\xff" * 64,
        bytes(4096),
    ],
)
async def test_bytes_that_no_broker_says_are_a_broker_that_is_away(said: bytes) -> None:
    def say(writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        writer.write_eof()

    assert "127.0.0.1" in await refused_by(say)


async def test_a_handshake_may_break_at_every_byte(rig: Rig) -> None:
    async with proxy_of(rig) as proxy:
        connection = Connection(rig.settings, proxy.url_for(rig.url), "test")
        for count in itertools.count():
            proxy.break_after(count)
            try:
                await connection.open()
            except BrokerUnavailable:
                continue
            break
        await connection.close()
    assert count > 500, "the broker's first frame alone is longer"


async def test_a_worker_outlives_a_balancer_that_lost_its_broker(rig: Rig) -> None:
    async with proxy_of(rig) as proxy, rig.worker(echo_app(), proxy.url_for(rig.url)) as worker:
        proxy.close_at_once()
        proxy.cut()
        await eventually(lambda: proxy.refused >= 6, "both connections try again and again")
        proxy.accept()
        await eventually(lambda: worker.lanes["echo"].consumer.is_consuming, "it consumes again")
        async with rig.client() as client:
            assert await client.run("echo", 7, timeout=20) == 7


async def test_a_silent_broker_is_given_up_after_twice_the_heartbeat(rig: Rig) -> None:
    async with proxy_of(rig) as proxy:
        settings = rig.with_settings(amqp_heartbeat=1, connect_timeout=1)
        connection = Connection(settings, proxy.url_for(rig.url), "silent")
        loop = asyncio.get_running_loop()
        with capture_logs() as logs:
            async with running(connection.supervise):
                await connection.ready()
                proxy.pause()
                since = loop.time()
                await eventually(lambda: logged(logs, "broker.lost"), "the loss is noticed")
                # aiormq by itself takes 6 s and more: the load of a machine does not make up for that.
                assert loop.time() - since < 6
                proxy.cut()
                proxy.resume()
                await connection.ready()
            await connection.close()


async def test_a_right_that_is_taken_away_is_an_outage(rig: Rig) -> None:
    async with user(rig, ALL, ALL, ALL) as url:
        name = str(urlsplit(url).username)

        async def permit(*rights: str) -> None:
            await asyncio.to_thread(rig.broker.ctl, "set_permissions", name, *rights)

        worker = Worker(echo_app(), rig.settings, url)
        with capture_logs() as logs:
            async with running(worker.run) as work, rig.client() as client:
                consumer = await eventually(lambda: "echo" in worker.lanes and worker.lanes["echo"].consumer)
                await eventually(lambda: consumer.is_consuming, "it consumes")
                await permit(ALL, ALL, NOTHING)
                # Its channel may not ask for the right again; a queue that is gone makes it open another one.
                async with rig.plain() as channel:
                    await channel.queue_delete(rig.names.queue("echo"))
                await eventually(lambda: "ACCESS_REFUSED" in str(logged(logs, "consumer.lost")), "it is told")
                await permit(ALL, ALL, ALL)
                await eventually(lambda: consumer.is_consuming, "it consumes again")
                assert await client.run("echo", 7, timeout=30) == 7
                worker.stop()
                await work


async def test_a_queue_that_vanishes_while_it_is_declared_is_declared_again(rig: Rig) -> None:
    async with rig.worker(echo_app()) as worker, rig.plain() as channel, rig.client() as client:
        names = [rig.names.queue("echo"), rig.names.dead, rig.names.ageing]
        for _ in range(40):  # some of them hit the moment between declaration and binding
            await asyncio.gather(*(channel.queue_delete(name) for name in names))
        await eventually(lambda: worker.lanes["echo"].consumer.is_consuming, "it consumes again")
        await declared(rig, echo_app())
        assert await client.run("echo", 7, timeout=30) == 7


@pytest.mark.parametrize("bare", [False, True], ids=["deleted", "made-again-without-bindings"])
async def test_deleted_exchanges_come_back_with_their_bindings(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, *, bare: bool
) -> None:
    monkeypatch.setattr(upkeep, "INTERVAL", 0.1)
    monkeypatch.setattr(bus_subscription, "REBIND", 0.1)
    app = Warren()

    @app.agent("fail", retries=0)
    async def fail(_payload: None) -> None:
        raise ValueError("no")

    heard = asyncio.Queue[Event]()
    async with rig.worker(app), rig.client() as client, running(lambda: keep_hearing(client, heard)):
        await heard.get()
        async with rig.plain() as channel:
            for exchange in exchanges(rig.names):
                await channel.exchange_delete(exchange.name)
                if bare:
                    await channel.exchange_declare(exchange.name, exchange_type=exchange.kind, durable=True)
        while not heard.empty():
            heard.get_nowait()
        await eventually(lambda: accepted(rig, rig.names.tasks, "fail", task_body("fail")), "tasks arrive")
        [letter] = await rig.dead()
        assert b"fail" in letter.body
        await heard.get()
        await eventually(lambda: accepted(rig, rig.names.control, "", {}), "control messages arrive")


async def test_an_exchange_that_vanishes_while_a_connection_opens_is_no_end(rig: Rig) -> None:
    tries = 0

    async def declare(connection: Connection) -> None:
        nonlocal tries
        tries += 1
        queue = Queue(f"{rig.names.control}.test{tries}", exclusive=True)
        there = rig.names.tasks if tries == 1 else "amq.direct"  # the first is not there (yet, or any more)
        await connection.declare(Topology((), (queue,), (Binding(there, queue.name, "x"),)))

    connection = Connection(rig.settings, rig.url, "test", declare)
    async with running(connection.supervise):
        await eventually(lambda: connection.is_open, "it connects again")
        assert tries == 2
    await connection.close()


async def accepted(rig: Rig, exchange: str, routing_key: str, body: object) -> bool:
    """Whether a queue takes a message that is published now."""
    async with rig.plain() as channel:
        try:
            await publish(channel, exchange, routing_key, body)
        except AMQPError:
            return False
    return True


async def keep_hearing(client: Client, heard: asyncio.Queue[Event]) -> None:
    async for event in client.events("health.worker.#"):
        heard.put_nowait(event)
