"""A real Prometheus over the fleet: it scrapes, every alert fires, every panel of the dashboard has data."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from tests.boxes.fleet import PATIENCE, ROOT, Fleet, run
from tests.rig import eventually
from warren import Client, Settings
from warren.client.client import make_task

DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "warren.json"


@asynccontextmanager
async def stopped(fleet: Fleet, service: str) -> AsyncIterator[None]:
    """Without a service; it is back and healthy afterwards."""
    await asyncio.to_thread(fleet.compose, "stop", service)
    try:
        yield
    finally:
        await asyncio.to_thread(fleet.compose, "start", service)
        await fleet.healthy(service)


async def submit(fleet: Fleet, agent_type: str, count: int) -> None:
    async with fleet.api() as api:
        answer = await api.post("/tasks", json=[{"agent_type": agent_type, "payload": 0}] * count)
        assert answer.status_code == 202, answer.text


async def test_prometheus_has_its_key_and_its_rules(fleet: Fleet) -> None:
    await eventually(lambda: fleet.query('up{job="warren"} == 1'), "it scrapes", PATIENCE)
    await eventually(lambda: fleet.query('warren_workers{state="up"} >= 2'), "it sees the workers", PATIENCE)


async def test_tasks_that_die(fleet: Fleet) -> None:
    await submit(fleet, "deadly", 15)
    await fleet.fires("WarrenDeadLettersRising")


async def test_a_breaker_that_opens(fleet: Fleet) -> None:
    await submit(fleet, "ill", 10)
    await fleet.fires("WarrenBreakerOpen")


async def test_a_worker_that_is_killed(fleet: Fleet) -> None:
    await asyncio.to_thread(run, "docker", "kill", fleet.containers("worker")[0])
    await fleet.fires("WarrenWorkerLost")
    await asyncio.to_thread(fleet.up)


async def test_no_workers_and_a_queue_that_fills(fleet: Fleet) -> None:
    url = f"amqp://producer:{fleet.passwords['PRODUCER']}@127.0.0.1:{fleet.ports['rabbitmq']}/"
    async with stopped(fleet, "worker"), Client(url, settings=Settings(store_url="none")) as client:
        await client.submit_many(make_task("idle", 0) for _ in range(1700))
        for alert in ("WarrenNoWorkers", "WarrenNoConsumers", "WarrenQueueNearCapacity"):
            await fleet.fires(alert)
    for alert in ("WarrenNoWorkers", "WarrenNoConsumers", "WarrenQueueNearCapacity"):
        await fleet.is_over(alert)


async def test_no_broker(fleet: Fleet) -> None:
    async with stopped(fleet, "rabbitmq"):
        await submit(fleet, "idle", 1)
        for alert in ("WarrenBrokerDown", "WarrenRelayLag"):
            await fleet.fires(alert)
    for alert in ("WarrenBrokerDown", "WarrenRelayLag"):
        await fleet.is_over(alert)


async def test_no_store(fleet: Fleet) -> None:
    async with stopped(fleet, "postgres"):
        await fleet.fires("WarrenStoreDown")
    await fleet.is_over("WarrenStoreDown")


async def test_no_gateway(fleet: Fleet) -> None:
    async with stopped(fleet, "gateway"):
        await fleet.fires("WarrenGatewayDown")
    await fleet.is_over("WarrenGatewayDown")


def panels() -> list[tuple[str, str]]:
    return [
        (panel["title"], target["expr"])
        for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
        for target in panel.get("targets", ())
    ]


async def has_values(fleet: Fleet, expression: str) -> bool:
    """Whether there is at least one number: a quantile of nothing is none."""
    return any(series["value"][1] != "NaN" for series in await fleet.query(expression))


async def test_every_panel_of_the_dashboard_has_data(fleet: Fleet) -> None:
    async with fleet.api() as api, fleet.load() as load:
        assert (await api.post("/agents/idle/pause")).status_code == 200
        await load.more(20)
        for title, expression in panels():
            asked = expression.replace("$agent_type", ".*")
            await eventually(partial(has_values, fleet, asked), f"{title}: {expression}", 60)
        assert (await api.post("/agents/idle/resume")).status_code == 200
