"""The exposition against what workers really did, on a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.rig import Rig, eventually, publish, task_body
from warren import Context, Reject, Warren
from warren.bus.connection import Connection
from warren.client.client import make_task
from warren.fleet.metrics import Metrics
from warren.fleet.snapshot import look_around
from warren.store.database import Store
from warren.worker.worker import Worker
from warren_schemas import Event

COUNTED = {  # by a worker: the metric, and its labels beside the agent type
    "delivered": ("warren_task_deliveries_total", ""),
    "redelivered": ("warren_task_redeliveries_total", ""),
    "adopted": ("warren_task_adoptions_total", ""),
    "retried": ("warren_task_retries_total", ""),
    "promoted": ("warren_task_promotions_total", ""),
    **{
        outcome: ("warren_tasks_total", f",{outcome}")
        for outcome in ("succeeded", "dead", "cancelled", "released", "postponed", "superseded", "stale")
    },
}


def application() -> Warren:
    """Agents that succeed, need a second attempt, and refuse."""
    app = Warren()

    @app.agent("greet")
    async def greet(name: str) -> str:
        return name

    @app.agent("twice")
    async def twice(_payload: int, ctx: Context) -> int:
        if ctx.attempt == 1:
            raise ValueError("not yet")
        return ctx.attempt

    @app.agent("refuse")
    async def refuse(_payload: int) -> None:
        raise Reject("never")

    return app


class Observer:
    """What a gateway does for its metrics."""

    def __init__(self, rig: Rig, store: Store, connection: Connection, heard: list[Event]) -> None:
        self._rig, self._store, self._connection, self._heard = rig, store, connection, heard
        self.metrics = Metrics(rig.settings)

    async def samples(self) -> dict[tuple[str, str], float]:
        """Every sample by its name and its labels' values."""
        now = asyncio.get_running_loop().time()
        while self._heard:
            self.metrics.take(self._heard.pop(0), now)
        agent_types = self.metrics.agent_types
        sight = await look_around(self._connection, self._rig.names, agent_types, self._store)
        return {
            (sample.name, ",".join(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(self.metrics.exposition(sight, now).decode())
            for sample in family.samples
        }


@asynccontextmanager
async def observer(rig: Rig, url: str) -> AsyncIterator[Observer]:
    """Whoever listens from here on, with a store and a connection of their own."""
    connection = Connection(rig.settings, rig.url, "observer")
    async with rig.listening("health.worker.#") as heard, Store(url) as store:
        await connection.open()
        try:
            yield Observer(rig, store, connection, heard)
        finally:
            await connection.close()


def told(worker: Worker, agent_type: str) -> dict[tuple[str, str], float]:
    """What a worker has counted itself, as the samples that should say so."""
    counts = asdict(worker._tally.of(agent_type).totals)
    return {(metric, agent_type + labels): counts[name] for name, (metric, labels) in COUNTED.items()}


async def test_the_exposition_equals_what_the_workers_did(rig: Rig, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    async with observer(rig, url) as watching:
        async with (
            rig.worker(application(), store_url=url) as one,
            rig.worker(application(), store_url=url) as two,
            rig.client() as client,
        ):
            tasks = [
                *(make_task("greet", "x") for _ in range(30)),
                *(make_task("twice", 1) for _ in range(7)),
                *(make_task("refuse", 1) for _ in range(2)),
                make_task("greet", {"no": "string"}),
            ]
            assert all(submission.error is None for submission in await client.submit_many(tasks))
            async with rig.plain() as channel:  # a producer that does not say when
                await publish(channel, rig.names.tasks, "greet", task_body("greet", "y"))
            await eventually(
                lambda: sum(w.totals.succeeded + w.totals.dead for w in (one, two)) == len(tasks) + 1,
                "all have ended",
            )
            await eventually(lambda: _seen(watching, "warren_tasks_total", "greet,succeeded", 31), "a beat")
            found = await eventually(lambda: _seen(watching, "warren_dead_letters", "greet", 1), "the desk")
            assert found["warren_workers", "up"] == 2
            assert (found["warren_queue_messages", "greet"], found["warren_queue_consumers", "greet"]) == (
                0,
                2,
            )
            assert (found["warren_store_up", ""], found["warren_broker_up", ""]) == (1, 1)
            assert found["warren_agent_type_workers", "twice"] == 2
        found = await eventually(lambda: _seen(watching, "warren_workers", "up", 0), "their last words")
        for agent_type in ("greet", "twice", "refuse"):
            wanted = {key: value + told(two, agent_type)[key] for key, value in told(one, agent_type).items()}
            assert {key: found[key] for key in wanted} == wanted
        assert found["warren_tasks_total", "greet,succeeded"] == 31
        assert found["warren_tasks_total", "greet,dead"] == 1
        assert (
            found["warren_tasks_total", "twice,succeeded"] == found["warren_task_retries_total", "twice"] == 7
        )
        assert found["warren_tasks_total", "refuse,dead"] == 2
        runs = {name: found["warren_task_run_seconds_count", name] for name in ("greet", "twice", "refuse")}
        assert runs == {"greet": 31, "twice": 14, "refuse": 2}  # attempts; what is invalid has none
        assert found["warren_task_wait_seconds_count", "greet"] == 30
        assert found["warren_task_wait_seconds_count", "twice"] == 7  # first attempts
        assert found["warren_task_wait_seconds_sum", "greet"] > 0
        assert found["warren_store_commit_seconds_count", ""] > 0
        assert found["warren_workers_lost_total", ""] == 0


async def test_connections_that_were_opened_again_are_counted(rig: Rig, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    async with observer(rig, url) as watching, rig.worker(application(), store_url=url) as worker:
        await eventually(lambda: _seen(watching, "warren_reconnects_total", "consuming", 0), "a beat")
        link = worker._consuming._link
        assert link is not None
        await link.close()
        await eventually(lambda: _seen(watching, "warren_reconnects_total", "consuming", 1), "it is back")


async def _seen(
    watching: Observer, name: str, labels: str, value: float
) -> dict[tuple[str, str], float] | None:
    found = await watching.samples()
    return found if found.get((name, labels)) == value else None
