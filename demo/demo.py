"""`make demo`: a thousand real tasks through everything that goes wrong, checked result by result.

Three worker processes that share a store analyse the source files of Python's standard library for five
users, with hundreds of agents. Some first attempts raise or hang, some agents fall ill, all connections of
the workers are cut once, one worker is frozen until the broker has given it up, and another one is killed.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

import structlog
from pydantic import SecretStr

from demo.agents import AGENT_TYPE, HANGING, RAISING, TIMEOUT
from demo.evidence import dead, letters_left, records_of, steps_of, two_outcomes
from demo.faults import TICK, Cast, Faults
from demo.journal import Journal, peak, run_twice, shared
from demo.report import Figures, Show
from demo.tasks import Tasks, unreadable, wrong
from demo.watch import Watch
from demo.workers import PREFETCH, Place, WorkerEnded, WorkerProcess, worker_processes
from warren.bus.connection import Connection
from warren.bus.hosts import Server
from warren.bus.topology import Names, exchanges, topology
from warren.client.client import Client
from warren.errors import BrokerError, ConfigurationError
from warren.settings import Settings
from warren.settings.addresses import amqp_address
from warren.store.database import Store
from warren.store.task_records import TaskRecord
from warren.support.loops import Loops
from warren.testing.proxy import TcpProxy

log = structlog.get_logger(__name__)

# Seconds between the AMQP heartbeats of each worker. The second is the one that is frozen: the broker gives
# it up when two to three of them are missing.
HEARTBEATS: Final = (30, 1, 30)
START_TIMEOUT: Final = 60.0  # seconds until all workers have to be heard of
GOODBYE_TIMEOUT: Final = 5.0  # seconds that the last events of a worker may take to arrive
PATIENCE: Final = 60.0  # seconds without any new result, after which what is missing is lost


@dataclass(frozen=True, slots=True)
class Scene:
    """The parts of a running demo."""

    settings: Settings
    url: str
    folder: Path
    store: Store
    tasks: Tasks
    watch: Watch
    show: Show
    faults: list[str] = field(default_factory=list)


def settings_for_demo(settings: Settings) -> Settings:
    """The same settings in a new namespace, so that no real queue is ever touched."""
    return settings.model_copy(update={"namespace": f"warren-demo-{uuid4().hex[:8]}"})


async def run(settings: Settings, url: str, count: int, show: Show) -> Figures:
    """Run the demo with so many tasks in the namespace of the settings, and leave nothing behind.

    Raises what `run_in` raises.
    """
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="warren-demo-"))
    keep = False
    try:
        figures = await run_in(folder, settings, url, count, show)
        keep = not figures.is_good
    finally:
        if keep:
            show.say(f"the journal, the store and the logs of the workers are in {folder}")
        else:
            await asyncio.to_thread(shutil.rmtree, folder)
    return figures


async def run_in(folder: Path, settings: Settings, url: str, count: int, show: Show) -> Figures:
    """The same with journal, store and logs in this folder, where they stay.

    Raises ConfigurationError for a broker that takes TLS only, WorkerEnded when a worker ends unasked.
    """
    if amqp_address(url).scheme == "amqps":
        raise ConfigurationError(
            "the demo cuts connections in a proxy, which TLS prevents: name an amqp:// URL"
        )
    # A store of its own as well: the demo must not run tasks that wait in a real store.
    store_url = store_in(folder)
    settings = settings.model_copy(update={"store_url": SecretStr(store_url)})
    async with Store(store_url) as store:
        scene = Scene(settings, url, folder, store, Tasks(count), Watch(), show)
        async with _namespace(settings, url, show):
            seconds = await _stage(scene)
            letters = await letters_left(settings, url)
        show.say("comparing each result with a serial computation and with what the store has")
        records = await records_of(store, scene.tasks.paths)
        return await asyncio.to_thread(_figures, scene, seconds, records, letters)


def store_in(folder: Path) -> str:
    """The address of the demo's store."""
    return f"sqlite:///{folder / 'store.db'}"


async def _stage(scene: Scene) -> float:
    """Start all workers, run the tasks, and stop all workers. Returns the seconds that the tasks took."""
    server = await _server(scene)
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(TcpProxy(server.ip, server.port)) for _ in HEARTBEATS]
        client = await stack.enter_async_context(Client(scene.url, settings=scene.settings))
        loops = await stack.enter_async_context(Loops())
        places = [
            Place(proxy.url_for(scene.url), seconds)
            for proxy, seconds in zip(proxies, HEARTBEATS, strict=True)
        ]
        workers = await stack.enter_async_context(worker_processes(places, scene.settings, scene.folder))
        loops.start("watch", scene.watch.follow(client.events()))
        await _all_heard(scene.watch, workers)
        scene.show.say(
            f"{len(workers)} workers with {PREFETCH} tasks at once each; of the first attempts {RAISING} % "
            f"raise and {HANGING} % hang until their timeout of {TIMEOUT:g} s"
        )
        cast = [Cast(worker, proxy) for worker, proxy in zip(workers, proxies, strict=True)]
        seconds = await _perform(scene, client, cast)
        await asyncio.gather(*(worker.stop() for worker in workers))
        await _last_words(scene.watch, workers[1:])
    return seconds


async def _server(scene: Scene) -> Server:
    """A server that takes connections: a proxy stands before one only."""
    connection = Connection(scene.settings, scene.url, "demo")
    await connection.open()
    assert connection.server is not None
    await connection.close()
    return connection.server


async def _all_heard(watch: Watch, workers: list[WorkerProcess]) -> None:
    """Wait until every worker is at work."""
    deadline = time.monotonic() + START_TIMEOUT
    for worker in workers:
        hearing = asyncio.create_task(watch.heard(worker.pid))
        try:
            while not hearing.done():
                await asyncio.wait([hearing], timeout=TICK)
                worker.check()
                if time.monotonic() > deadline:
                    raise WorkerEnded(f"worker {worker.pid} was not heard of within {START_TIMEOUT:g} s")
        finally:
            hearing.cancel()


async def _last_words(watch: Watch, workers: list[WorkerProcess]) -> None:
    """Wait for the final totals; if they do not come, those of the last heartbeats have to do."""
    try:
        async with asyncio.timeout(GOODBYE_TIMEOUT):
            await asyncio.gather(*(watch.stopped(worker.pid) for worker in workers))
    except TimeoutError:
        log.warning("demo.totals_missing", reason="a worker did not say goodbye in time")


async def _perform(scene: Scene, client: Client, cast: list[Cast]) -> float:
    """Run the tasks, and do to the workers what is planned on the way."""
    tasks, started = scene.tasks, time.monotonic()
    tasks.last_result = started
    running = asyncio.create_task(tasks.run(client))
    planned = Faults(tasks, scene.watch, scene.store, scene.show, cast)
    faults = asyncio.create_task(planned.run())
    try:
        while not running.done() and time.monotonic() - tasks.last_result < PATIENCE:
            await asyncio.wait([running], timeout=TICK)
            if faults.done():
                faults.result()
            _look(scene, cast)
        if running.done():
            running.result()
    finally:
        for task in (faults, running):
            task.cancel()
        await asyncio.gather(faults, running, return_exceptions=True)
        scene.faults.extend(planned.met)
    return tasks.last_result - started


def _look(scene: Scene, cast: list[Cast]) -> None:
    workers = [one.worker for one in cast]
    for worker in workers:
        worker.check()
    pids = [worker.pid for worker in workers if worker.is_running]
    scene.watch.count_agents(pids)
    now_running = scene.watch.running(pids)
    scene.show.progress(len(scene.tasks.results), now_running, scene.watch.retried)


def _figures(scene: Scene, seconds: float, records: dict[UUID, TaskRecord], letters: set[str]) -> Figures:
    tasks, watch, journal = scene.tasks, scene.watch, Journal(scene.folder)
    attempts, steps = journal.attempts(), steps_of(journal.step_notes(), records)
    pids = {attempt.pid for attempt in attempts}
    return Figures(
        accepted=len(tasks.paths) - len(tasks.refused),
        refused=len(tasks.refused),
        succeeded=tasks.count("succeeded"),
        retried=watch.retried,
        redelivered=watch.total("redelivered"),
        adopted=watch.total("adopted"),
        run_twice=run_twice(attempts),
        steps_run=steps.run,
        steps_kept=steps.kept,
        steps_remembered=steps.remembered,
        steps_by_retries=steps.by_retries,
        steps_broken=len(steps.broken),
        superseded=watch.total("superseded"),
        dead=len(dead(records, letters)),
        lost=len(tasks.lost),
        wrong=len(wrong(tasks.paths, tasks.results)),
        two_outcomes=len(two_outcomes(tasks.results, records, letters)),
        unreadable=unreadable(tasks.results),
        breaker_opened=watch.breaker_opened,
        agents=watch.most_agents,
        agents_created=watch.agents("started", "replaced"),
        agents_unhealthy=watch.agents("unhealthy"),
        agents_recovered=watch.agents("recovered"),
        agents_replaced=watch.agents("replaced"),
        agents_shared=shared(attempts),
        users=len({attempt.user_id for attempt in attempts}),
        peak=peak(attempts),
        peak_of_one=max((peak(one for one in attempts if one.pid == pid) for pid in pids), default=0),
        seconds=seconds,
        faults=tuple(scene.faults),
    )


@asynccontextmanager
async def _namespace(settings: Settings, url: str, show: Show) -> AsyncIterator[None]:
    """At the end, after success or failure, delete every queue and exchange of the namespace."""
    try:
        yield
    finally:
        try:
            await _delete(settings, url)
        except BrokerError as error:
            show.say(f"queues and exchanges named {settings.namespace}.* may be left on the broker: {error}")


async def _delete(settings: Settings, url: str) -> None:
    connection = Connection(settings, url, "demo")
    await connection.open()
    try:
        for queue in topology([AGENT_TYPE], connection.profile, settings).queues:
            await connection.delete_queue(queue.name)
        for exchange in exchanges(Names(settings.namespace)):
            await connection.delete_exchange(exchange.name)
    finally:
        await connection.close()
