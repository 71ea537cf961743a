"""`compose.yaml` under load: scaling, restarts, new passwords and an upgrade lose nothing."""

from __future__ import annotations

import asyncio

import pytest

from tests.boxes.fleet import PATIENCE, Fleet, build, run
from tests.rig import eventually
from warren import Client, Settings
from warren.errors import AccessRefused


async def test_a_task_by_http_and_one_by_a_producer(fleet: Fleet) -> None:
    async with fleet.load() as load:
        await load.more(5)
    settings = Settings(store_url="none")
    url = f"amqp://producer:{fleet.passwords['PRODUCER']}@127.0.0.1:{fleet.ports['rabbitmq']}/"
    async with Client(url, settings=settings) as client:
        assert await client.run("slow", 1_000_000, timeout=PATIENCE) == 1_000_000
    status = await asyncio.to_thread(fleet.compose, "run", "--rm", "--no-TTY", "operator", "warren", "status")
    assert "2 workers" in status


async def test_workers_come_and_go(fleet: Fleet) -> None:
    async with fleet.load() as load:
        await load.more(10)
        before = fleet.hosts()
        await asyncio.to_thread(fleet.up, "--scale", "worker=3")
        await eventually(lambda: fleet.hosts() > before, "the third ends tasks too", PATIENCE)
        await fleet.healthy("worker")
        await load.more(30)
        await asyncio.to_thread(fleet.up, "--scale", "worker=1")
        await load.more(10)
    assert load.twice() == []
    await asyncio.to_thread(fleet.up)


@pytest.mark.parametrize("service", ["worker", "gateway", "prometheus", "rabbitmq", "postgres"])
async def test_each_service_is_started_again(fleet: Fleet, service: str) -> None:
    async with fleet.load() as load:
        await load.more(5)
        for container in fleet.containers(service):
            await asyncio.to_thread(run, "docker", "restart", "--time", "45", container)
            await fleet.healthy(service)
            await load.more(5)
    if service != "rabbitmq":  # after a broker's restart two workers may run one task
        assert load.twice() == []


async def test_an_upgrade_with_work_in_flight(fleet: Fleet) -> None:
    old = set(fleet.containers("worker"))
    async with fleet.load() as load:
        await load.more(5)
        await asyncio.to_thread(build, "second")
        await asyncio.to_thread(fleet.up)
        assert old.isdisjoint(fleet.containers("worker"))
        await load.more(20)
    assert load.twice() == []


async def test_a_new_password(fleet: Fleet) -> None:
    old = fleet.passwords["WORKER"]
    async with fleet.load() as load:
        await load.more(5)
        fleet.passwords["WORKER"] = "another-one"
        await asyncio.to_thread(fleet.up)
        await load.more(20)
    url = f"amqp://worker:{old}@127.0.0.1:{fleet.ports['rabbitmq']}/"
    with pytest.raises(AccessRefused, match="wrong password"):
        async with Client(url, settings=Settings(store_url="none")):
            pass
