"""`warren demo`: a thousand real tasks through everything that goes wrong, checked result by result.

Two worker processes analyse the source files of Python's standard library. Some first attempts raise or
hang, all connections of the workers are cut once, and one worker is killed half-way.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from uuid import uuid4

import structlog

from warren.bus import Connection
from warren.client import Client
from warren.demo_agents import AGENT_TYPE, HANGING, RAISING, TIMEOUT
from warren.demo_journal import Journal, peak, run_twice
from warren.demo_report import Figures, Show
from warren.demo_tasks import Tasks, unreadable, wrong
from warren.demo_watch import Watch
from warren.demo_workers import PREFETCH, WorkerEnded, WorkerProcess, worker_processes
from warren.errors import BrokerError, ConfigurationError
from warren.loops import Loops
from warren.settings import Settings
from warren.testing import TcpProxy
from warren.topology import Names, exchanges, topology

log = structlog.get_logger(__name__)

WORKERS: Final = 2
CUT_AT, KILL_AT = 0.25, 0.5  # part of the tasks that have their result by then
TICK: Final = 0.1  # seconds between two looks at how far it is
START_TIMEOUT: Final = 60.0  # seconds until both workers have to be heard of
GOODBYE_TIMEOUT: Final = 5.0  # seconds that the last events of a worker may take to arrive
PATIENCE: Final = 60.0  # seconds without any new result, after which what is missing is lost
AMQP_PORT: Final = 5672


@dataclass(frozen=True, slots=True)
class Scene:
    """What takes part in the demo."""

    settings: Settings
    url: str
    folder: Path
    tasks: Tasks
    watch: Watch
    show: Show


def settings_for_demo(settings: Settings) -> Settings:
    """The same settings in a new namespace, so that no real queue is ever touched."""
    return settings.model_copy(update={"namespace": f"warren-demo-{uuid4().hex[:8]}"})


async def run(settings: Settings, url: str, count: int, show: Show) -> Figures:
    """Run the demo with so many tasks in the namespace of the settings, and leave nothing behind.

    Raises ConfigurationError for a broker that takes TLS only, WorkerEnded when a worker ends unasked.
    """
    if urlsplit(url).scheme == "amqps":
        raise ConfigurationError(
            "the demo cuts connections in a proxy, which TLS prevents: name an amqp:// URL"
        )
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="warren-demo-"))
    scene = Scene(settings, url, folder, Tasks(count), Watch(), show)
    keep = False
    try:
        async with _namespace(settings, url, show):
            seconds = await _stage(scene)
        show.say("comparing each result with a serial computation")
        figures = await asyncio.to_thread(_figures, scene, seconds)
        keep = not figures.is_good
    finally:
        if keep:
            show.say(f"the journal and the logs of the workers are in {folder}")
        else:
            await asyncio.to_thread(shutil.rmtree, folder)
    return figures


async def _stage(scene: Scene) -> float:
    """Bring everybody on, let the tasks run, and see everybody off. Returns the seconds of the tasks."""
    address = urlsplit(scene.url)
    async with (
        TcpProxy(address.hostname or "localhost", address.port or AMQP_PORT) as proxy,
        Client(scene.url, settings=scene.settings) as client,
        Loops() as loops,
        worker_processes(WORKERS, proxy.url_for(scene.url), scene.settings, scene.folder) as workers,
    ):
        loops.start("watch", scene.watch.follow(client.events()))
        await _all_heard(scene.watch, workers)
        scene.show.say(
            f"{WORKERS} workers with {PREFETCH} tasks at once each; of the first attempts {RAISING} % raise "
            f"and {HANGING} % hang until their timeout of {TIMEOUT:g} s"
        )
        seconds = await _perform(scene, client, workers, proxy)
        await asyncio.gather(*(worker.stop() for worker in workers))
        await _last_words(scene.watch, workers[1:])
    return seconds


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


async def _perform(scene: Scene, client: Client, workers: list[WorkerProcess], proxy: TcpProxy) -> float:
    """Run the tasks, and do to the workers what is planned on the way."""
    tasks, started = scene.tasks, time.monotonic()
    tasks.last_result = started
    plan: deque[tuple[float, Callable[[], None]]] = deque(
        [
            (CUT_AT, lambda: _cut(scene, proxy)),
            (KILL_AT, lambda: _kill(scene, workers[0])),
        ]
    )
    running = asyncio.create_task(tasks.run(client))
    try:
        while not running.done() and time.monotonic() - tasks.last_result < PATIENCE:
            await asyncio.wait([running], timeout=TICK)
            while plan and len(tasks.results) >= plan[0][0] * len(tasks.paths):
                plan.popleft()[1]()
            for worker in workers:
                worker.check()
            now_running = scene.watch.running(worker.pid for worker in workers if worker.is_running)
            scene.show.progress(len(tasks.results), now_running, scene.watch.retried)
        if running.done():
            running.result()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return tasks.last_result - started


def _cut(scene: Scene, proxy: TcpProxy) -> None:
    scene.show.say(f"{len(scene.tasks.results)} done: cut {proxy.cut()} connections of the workers")


def _kill(scene: Scene, worker: WorkerProcess) -> None:
    worker.kill()
    running = scene.watch.running([worker.pid])
    scene.show.say(f"{len(scene.tasks.results)} done: killed worker {worker.pid} with {running} tasks in it")


def _figures(scene: Scene, seconds: float) -> Figures:
    tasks, watch, attempts = scene.tasks, scene.watch, Journal(scene.folder).attempts()
    pids = {attempt.pid for attempt in attempts}
    return Figures(
        accepted=len(tasks.paths) - len(tasks.refused),
        refused=len(tasks.refused),
        succeeded=tasks.count("succeeded"),
        retried=watch.retried,
        redelivered=watch.total("redelivered"),
        adopted=watch.total("adopted"),
        run_twice=run_twice(attempts),
        dead=tasks.count("dead"),
        lost=len(tasks.lost),
        wrong=len(wrong(tasks.paths, tasks.results)),
        unreadable=unreadable(tasks.results),
        breaker_opened=watch.breaker_opened,
        peak=peak(attempts),
        peak_of_one=max((peak(one for one in attempts if one.pid == pid) for pid in pids), default=0),
        seconds=seconds,
    )


@asynccontextmanager
async def _namespace(settings: Settings, url: str, show: Show) -> AsyncIterator[None]:
    """At the end, whatever it is, delete every queue and exchange of the namespace."""
    try:
        yield
    finally:
        try:
            await _delete(settings, url)
        except BrokerError as error:
            show.say(f"queues and exchanges named {settings.namespace}.* may be left on the broker: {error}")


async def _delete(settings: Settings, url: str) -> None:
    connection = Connection(settings, url, "warren demo")
    await connection.open()
    try:
        for queue in topology([AGENT_TYPE], connection.profile, settings).queues:
            await connection.delete_queue(queue.name)
        for exchange in exchanges(Names(settings.namespace)):
            await connection.delete_exchange(exchange.name)
    finally:
        await connection.close()
