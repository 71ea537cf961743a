"""How much Warren costs: its worker and its client against the bare AMQP library, same broker, same run.

    uv run python benchmarks/throughput.py            (a broker is found or started, as by `warren up`)

Consuming: no-op tasks through the whole worker, against an aiormq consumer that only acknowledges each; then
through the same worker with a store (SQLite in a temporary file), against itself without one.
Publishing: `Client.submit_many`, against pipelined confirmed publishes through aio-pika's exchange, with as
many in flight. Rounds alternate, so that what the machine does besides hits both; the figure is the median
of the rounds' ratios. Exit status 1 when a ratio is below its promise.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from tempfile import TemporaryDirectory
from uuid import uuid4

import aio_pika
import aiormq
import structlog
import uvloop
from aiormq.abc import DeliveredMessage
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from warren import Client, Settings, Warren
from warren.bus.connection import Connection
from warren.bus.messages import task_message
from warren.bus.topology import Names, topology
from warren.cli.runtime import spare_the_collector
from warren.client.client import IN_FLIGHT, make_task
from warren.support.local_broker import find as broker
from warren.worker.worker import Worker
from warren_schemas import Task

CONSUME_PROMISE = 0.6
PUBLISH_PROMISE = 0.8
STORE_PROMISE = 0.85
AGENT_TYPE = "noop"

out = Console()


def application(done: Callable[[], None]) -> Warren:
    """One agent that does nothing but count."""
    app = Warren()

    @app.agent(AGENT_TYPE)
    async def noop(_payload: int) -> None:
        done()

    return app


class Countdown:
    """Set after so many calls."""

    def __init__(self, count: int) -> None:
        self.left, self.zero = count, asyncio.Event()

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.zero.set()


async def prepare(settings: Settings, url: str) -> None:
    """Declare the queue and empty it."""
    connection = Connection(settings, url, "benchmark")
    await connection.open()
    await connection.declare(topology([AGENT_TYPE], connection.profile, settings))
    await connection.administer(
        lambda channel: channel.queue_purge(Names(settings.namespace).queue(AGENT_TYPE))
    )
    await connection.close()


async def timed(work: Awaitable[None]) -> float:
    """Seconds that it takes."""
    gc.collect()
    start = time.perf_counter()
    await work
    return time.perf_counter() - start


async def publish_warren(settings: Settings, url: str, tasks: list[Task]) -> float:
    """Seconds for `submit_many`."""
    async with Client(url, settings=settings) as client:

        async def submit() -> None:
            submissions = await client.submit_many(tasks)
            assert all(one.error is None for one in submissions)

        return await timed(submit())


async def publish_raw(settings: Settings, url: str, tasks: list[Task]) -> float:
    """Seconds for the same messages through aio-pika, with as many unconfirmed at once."""
    names = Names(settings.namespace)
    connection = await aio_pika.connect(url)
    channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
    exchange = await channel.get_exchange(names.tasks)
    pending: Iterator[Task] = iter(tasks)

    async def publish_on() -> None:
        for task in pending:
            message = task_message(task, names, settings)
            await exchange.publish(
                aio_pika.Message(
                    message.body,
                    message_id=message.message_id,
                    content_type=message.content_type,
                    delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                    priority=message.priority,
                ),
                routing_key=message.routing_key,
                mandatory=True,
            )

    async def publish() -> None:
        await asyncio.gather(*(publish_on() for _ in range(IN_FLIGHT)))

    try:
        return await timed(publish())
    finally:
        await connection.close()


async def consume_warren(settings: Settings, url: str, count: int) -> float:
    """Seconds from the first to the last task through a whole worker."""
    countdown = Countdown(count)
    first = [0.0]

    def done() -> None:
        first[0] = first[0] or time.perf_counter()
        countdown()

    worker = Worker(application(done), settings, url)
    running = asyncio.create_task(worker.run())
    await countdown.zero.wait()
    seconds = time.perf_counter() - first[0]
    worker.stop()
    await running
    return seconds


async def consume_raw(settings: Settings, url: str, count: int) -> float:
    """Seconds from the first to the last message, each acknowledged and nothing else."""
    countdown = Countdown(count)
    first = [0.0]
    connection = await aiormq.connect(url)
    channel = await connection.channel()

    async def acknowledge(message: DeliveredMessage) -> None:
        first[0] = first[0] or time.perf_counter()
        await message.channel.basic_ack(message.delivery_tag or 0, wait=False)
        countdown()

    await channel.basic_qos(prefetch_count=settings.prefetch)
    await channel.basic_consume(Names(settings.namespace).queue(AGENT_TYPE), acknowledge)
    await countdown.zero.wait()
    seconds = time.perf_counter() - first[0]
    await connection.close()
    return seconds


async def rounds(settings: Settings, url: str, count: int, times: int) -> tuple[list[float], ...]:
    """Rates in messages a second: publish raw, publish Warren, consume raw, consume Warren, with a store."""
    rates: tuple[list[float], ...] = ([], [], [], [], [])
    await prepare(settings, url)
    for number in range(times + 1):
        tasks = [make_task(AGENT_TYPE, index) for index in range(count)]
        seconds = [await publish_raw(settings, url, tasks)]
        consumed_raw = await consume_raw(settings, url, count)
        seconds += [await publish_warren(settings, url, tasks), consumed_raw]
        seconds += [await consume_warren(settings, url, count)]
        await publish_warren(settings, url, [make_task(AGENT_TYPE, index) for index in range(count)])
        with TemporaryDirectory() as folder:
            store = SecretStr(f"sqlite:///{folder}/store.db")
            remembering = settings.model_copy(update={"store_url": store})
            seconds += [await consume_warren(remembering, url, count)]
        if number == 0:
            continue  # the first round warms up
        for rate, spent in zip(rates, seconds, strict=True):
            rate.append(count / spent)
        out.print(f"round {number}: " + ", ".join(f"{rate[-1]:.0f}/s" for rate in rates), style="dim")
    return rates


async def clean_up(settings: Settings, url: str) -> None:
    """Delete what the benchmark declared."""
    names = Names(settings.namespace)
    connection = Connection(settings, url, "benchmark")
    await connection.open()
    for queue in (names.queue(AGENT_TYPE), names.dead, names.ageing):
        await connection.delete_queue(queue)
    for exchange in (names.tasks, names.dlx, names.events, names.control):
        await connection.delete_exchange(exchange)
    await connection.close()


async def measure(settings: Settings, url: str, count: int, times: int) -> bool:
    """Print the table; True when the promises hold."""
    try:
        publish_raw_s, publish_s, consume_raw_s, consume_s, stored_s = await rounds(
            settings, url, count, times
        )
    finally:
        await clean_up(settings, url)
    table = Table("", "against /s", "Warren /s", "ratio", "promise", box=None)
    good = True
    for name, raw, ours, promise in (
        ("consume", consume_raw_s, consume_s, CONSUME_PROMISE),
        ("publish", publish_raw_s, publish_s, PUBLISH_PROMISE),
        ("consume with a store, against without", consume_s, stored_s, STORE_PROMISE),
    ):
        ratio = statistics.median(mine / bare for mine, bare in zip(ours, raw, strict=True))
        good = good and ratio >= promise
        table.add_row(
            name,
            f"{statistics.median(raw):.0f}",
            f"{statistics.median(ours):.0f}",
            f"{ratio:.2f}",
            f"{promise:.2f}",
        )
    out.print(table)
    return good


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=5000, help="messages a round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    settings = Settings(
        namespace=f"bench-{uuid4().hex[:8]}",
        queue_capacity=arguments.count * 2,
        ageing_step=3600,
        store_url=SecretStr("none"),
    )
    spare_the_collector()  # as the process of a worker does
    found = broker.ensure(settings, out.print)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            good = runner.run(measure(settings, found.url, arguments.count, arguments.rounds))
    finally:
        if found.started:
            broker.stop(settings)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
