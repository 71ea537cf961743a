"""What the front door takes: `POST /api/v1/tasks` of a real `warren gateway`, against a bare route, same run.

    uv run python -m benchmarks.gateway                  (a broker is found or started, as by `warren up`)
    uv run python -m benchmarks.gateway --store-url postgresql://warren@127.0.0.1/postgres

Single tasks, and lists of 100, over keep-alive connections that each wait for an answer before they ask
again. The bare route is FastAPI on uvicorn as well: it parses the same body and answers 202. The gateway's
202 comes after its commit, and its relay publishes meanwhile, to a queue that nobody consumes.

Gateway, bare route and client are a process each. What the client took of a core, for the bare route and
for the gateway, stands in the last column: one that took all of it has measured itself. The store is SQLite
in a temporary file, and with `--store-url` also a database of our own on that PostgreSQL server, deleted at
the end. Each round has new processes and an empty store; rates are medians of the rounds, the ratio is the
median of the rounds' ratios, p50 and p99 are of all the gateway's answers. Exit status 1 when a ratio is
below its promise; an answer that is no 202 ends it with an error.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import socket
import statistics
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from uuid import uuid4

import structlog
import uvicorn
from fastapi import FastAPI, Request
from pydantic import SecretStr
from pydantic_core import from_json, to_json
from rich.console import Console
from rich.table import Table

from benchmarks.http_load import Answers, Load, ask
from benchmarks.store import database
from benchmarks.throughput import AGENT_TYPE, clean_up, prepare
from tests.gateways import started
from warren import Settings
from warren.store.database import Store
from warren.store.keys import Keys
from warren.support.local_broker import find as broker

PATH = "/api/v1/tasks"
LIST = 100  # tasks in a list
PROMISES = {1: 0.05, LIST: 0.01}  # by the tasks in a request
TASK = {"agent_type": AGENT_TYPE, "payload": {"url": "https://example.com/report.html", "language": "en"}}
PROCESSES = multiprocessing.get_context("spawn")  # a fork would inherit event loops

out = Console()


@dataclass(frozen=True)
class Plan:
    """What is measured: stores by name (SQLite has no server), loads by the tasks in a request."""

    settings: Settings
    stores: dict[str, str | None]
    loads: dict[int, Load]
    connections: int
    rounds: int


@dataclass
class Figures:
    """Those of all rounds: the bare route's and the gateway's."""

    bare: list[Answers] = field(default_factory=list)
    ours: list[Answers] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """How much of the bare route's rate the gateway has."""
        return statistics.median(b.rate / a.rate for a, b in zip(self.bare, self.ours, strict=True))


def serve_bare(told: Connection) -> None:
    """What runs in the bare route's process; tells its port."""
    app = FastAPI()

    @app.post(PATH, status_code=202)
    async def submit(request: Request) -> dict[str, int]:
        wanted = from_json(await request.body())
        return {"admitted": len(wanted) if isinstance(wanted, list) else 1}

    with socket.create_server(("127.0.0.1", 0)) as listening:
        told.send(listening.getsockname()[1])
        uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False)).run(sockets=[listening])


@contextmanager
def bare() -> Iterator[str]:
    """The address of the bare route."""
    here, there = PROCESSES.Pipe()
    process = PROCESSES.Process(target=serve_bare, args=(there,))
    process.start()
    try:
        if not here.poll(30):
            raise RuntimeError("the bare route does not start")
        yield f"http://127.0.0.1:{here.recv()}"
    finally:
        process.terminate()
        process.join()


@asynccontextmanager
async def front(settings: Settings, amqp_url: str, store_url: str) -> AsyncIterator[str]:
    """The address of a gateway that turns nobody away."""
    environment = {
        "WARREN_AMQP_URL": amqp_url,
        "WARREN_STORE_URL": store_url,
        "WARREN_NAMESPACE": settings.namespace,
        "WARREN_AGEING_STEP": str(settings.ageing_step),
        "WARREN_MAX_TASKS_PER_USER": str(settings.queue_capacity),
        "WARREN_OUTBOX_CAPACITY": str(settings.queue_capacity),
        "WARREN_GATEWAY_RATE": "1000000",
        "WARREN_GATEWAY_BURST": "1000000",
        "WARREN_LOG_LEVEL": "error",  # nobody reads its pipes
    }
    process, address = await started(**environment)
    try:
        yield address
    finally:
        process.terminate()
        await process.communicate()


async def keys_of(store_url: str, count: int) -> list[str]:
    """The secrets of so many users."""
    async with Store(store_url) as store:
        return [(await Keys(store).create(f"user-{n}", "tenant"))[1] for n in range(count)]


async def one_round(
    pool: ProcessPoolExecutor, plan: Plan, amqp_url: str, server_url: str | None
) -> list[tuple[Answers, Answers]]:
    """Of each load the answers of the bare route, and ours."""

    async def answers(address: str, load: Load) -> Answers:
        return await asyncio.get_running_loop().run_in_executor(pool, ask, address, keys, load)

    await prepare(plan.settings, amqp_url)
    async with database(server_url) as store_url:
        keys = await keys_of(store_url, plan.connections)
        async with front(plan.settings, amqp_url, store_url) as gateway:
            with bare() as route:
                return [
                    (await answers(route, load), await answers(gateway, load)) for load in plan.loads.values()
                ]


async def measure(plan: Plan, amqp_url: str) -> bool:
    """Print the table; True when the promises hold."""
    figures = {(name, size): Figures() for name in plan.stores for size in plan.loads}
    try:
        with ProcessPoolExecutor(1, mp_context=PROCESSES) as pool:
            for number in range(plan.rounds):
                for name, server_url in plan.stores.items():
                    found = await one_round(pool, plan, amqp_url, server_url)
                    for size, (raw, ours) in zip(plan.loads, found, strict=True):
                        figures[name, size].bare.append(raw)
                        figures[name, size].ours.append(ours)
                        what = f"round {number + 1}, {name}, {size} a request"
                        out.print(f"{what}: {raw.rate:.0f}/s, {ours.rate:.0f}/s", style="dim")
    finally:
        await clean_up(plan.settings, amqp_url)
    out.print(table_of(figures))
    return all(one.ratio >= PROMISES[size] for (_, size), one in figures.items())


def table_of(figures: dict[tuple[str, int], Figures]) -> Table:
    """What was measured."""
    headings = ("bare/s", "Warren/s", "ratio", "promise", "p50 ms", "p99 ms", "client")
    table = Table("store", "tasks", *headings, box=None)
    for (name, size), one in figures.items():
        quantiles = statistics.quantiles([t for answers in one.ours for t in answers.times], n=100)
        table.add_row(
            name,
            str(size),
            f"{statistics.median(answers.rate for answers in one.bare):.0f}",
            f"{statistics.median(answers.rate for answers in one.ours):.0f}",
            f"{one.ratio:.3f}",
            f"{PROMISES[size]:.2f}",
            f"{quantiles[49] * 1000:.1f}",
            f"{quantiles[98] * 1000:.1f}",
            f"{share(one.bare):.0%}, {share(one.ours):.0%}",
        )
    return table


def share(answers: list[Answers]) -> float:
    """How much of a core the client took."""
    return sum(one.cpu for one in answers) / sum(one.seconds for one in answers)


def load_of(size: int, requests: int, seconds: float) -> Load:
    """Requests of so many tasks each."""
    body = to_json(TASK if size == 1 else [TASK] * size)
    return Load(PATH, body, b"" if size == 1 else b'"admitted":%d' % size, requests, seconds)


def plan_of(arguments: argparse.Namespace) -> Plan:
    """What was asked for on the command line."""
    requests = {1: arguments.count, LIST: arguments.lists}
    stores = {"SQLite": None, "PostgreSQL": arguments.store_url}
    return Plan(
        settings=Settings(
            namespace=f"bench-{uuid4().hex[:8]}",
            queue_capacity=sum(size * (count + arguments.connections) for size, count in requests.items()),
            ageing_step=3600,
            store_url=SecretStr("none"),
        ),
        stores={name: url for name, url in stores.items() if name == "SQLite" or url},
        loads={size: load_of(size, count, arguments.seconds) for size, count in requests.items()},
        connections=arguments.connections,
        rounds=arguments.rounds,
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store-url", help="measure on this PostgreSQL server as well")
    parser.add_argument("--connections", type=int, default=16, help="each with a user of its own")
    parser.add_argument("--count", type=int, default=2000, help="requests of a single task, a round")
    parser.add_argument("--lists", type=int, default=100, help=f"requests of {LIST} tasks, a round")
    parser.add_argument("--seconds", type=float, default=20, help="for one of these, at most")
    parser.add_argument("--rounds", type=int, default=3)
    plan = plan_of(parser.parse_args())
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    found = broker.ensure(plan.settings, out.print)
    try:
        good = asyncio.run(measure(plan, found.url))
    finally:
        if found.started:
            broker.stop(plan.settings)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
