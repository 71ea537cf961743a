"""Each role works with the permissions that docs/security.md gives it, and is refused everything else."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import aiormq
import pytest
from aiormq.abc import AbstractConnection
from aiormq.exceptions import ChannelAccessRefused
from structlog.testing import capture_logs

from tests.gateways import door, submit
from tests.rig import PATIENCE, Rig, eventually, publish
from tests.toolbox import PASSWORD, cli, cli_environment, logged, user
from warren import Warren
from warren.client.client import make_task
from warren_schemas import Event

GUIDE: Final = Path(__file__).parents[2] / "docs" / "security.md"
LINE: Final = re.compile(r"^\$ rabbitmqctl set_permissions (\w+) '(.*)' '(.*)' '(.*)'$", re.MULTILINE)
PERMISSIONS: Final = {role: tuple(patterns) for role, *patterns in LINE.findall(GUIDE.read_text())}


@asynccontextmanager
async def role_of(rig: Rig, role: str) -> AsyncIterator[str]:
    """The URL of a user that has the permissions of a role in the rig's namespace."""
    patterns = [pattern.replace("warren", rig.settings.namespace) for pattern in PERMISSIONS[role]]
    async with user(rig, *patterns) as url:
        yield url


class Site:
    """Agents that echo, that fail, and one that waits for its gate."""

    def __init__(self) -> None:
        self.app, self.gate = Warren(), asyncio.Event()
        self.started = list[Any]()

        @self.app.agent("echo")
        async def echo(payload: Any) -> Any:
            return payload

        @self.app.agent("fail", retries=0)
        async def fail(payload: Any) -> Any:
            raise ValueError(payload)

        @self.app.agent("gated", concurrency=1)
        async def gated(payload: Any) -> Any:
            self.started.append(payload)
            await self.gate.wait()
            return payload


async def is_refused(url: str, what: str, *names: str) -> None:
    """Assert that the broker refuses each of these: `what` is publish, read, configure or bind."""
    for name in names:
        connection = await aiormq.connect(url)
        try:
            with pytest.raises(ChannelAccessRefused):
                await _do(connection, what, name)
        finally:
            await connection.close()


async def _do(connection: AbstractConnection, what: str, name: str) -> None:
    channel = await connection.channel()
    match what:
        case "publish":
            await channel.basic_publish(b"{}", exchange=name, routing_key="health.worker.a.heartbeat")
        case "read":
            await channel.basic_get(name)
        case "configure":
            await channel.queue_declare(name, durable=True)
        case "delete":
            await channel.queue_delete(name)


def test_every_role_has_its_permissions_in_the_guide() -> None:
    assert set(PERMISSIONS) == {"producer", "listener", "worker", "gateway", "operator"}


async def test_a_producer_submits_and_gets_its_answer_and_no_more(rig: Rig) -> None:
    names, site = rig.names, Site()
    async with (
        rig.worker(site.app),
        role_of(rig, "producer") as url,
        rig.client(url=url) as client,
    ):
        assert await client.run("echo", 7, timeout=PATIENCE) == 7
        await is_refused(url, "read", names.dead, names.ageing, names.queue("echo"))
        await is_refused(url, "publish", names.events, names.control, names.dlx, "")
        await is_refused(url, "configure", names.queue("other"), names.dead)
        await is_refused(url, "delete", names.queue("echo"))


async def test_a_listener_hears_events_and_writes_nothing(rig: Rig) -> None:
    names, site = rig.names, Site()
    async with rig.worker(site.app), role_of(rig, "listener") as url, rig.client(url=url) as client:
        async with asyncio.timeout(PATIENCE):
            async for event in client.events("health.worker.#"):
                assert event.kind == "worker"
                break
        await is_refused(url, "publish", names.tasks, names.events, names.control, names.dlx, "")
        await is_refused(url, "read", names.dead, names.queue("echo"))
        await is_refused(url, "configure", names.queue("other"))


async def test_a_worker_runs_answers_buries_ages_and_hears_commands(rig: Rig, tmp_path: Path) -> None:
    names, site = rig.names, Site()
    store = f"sqlite:///{tmp_path / 'store.db'}"
    async with (
        role_of(rig, "worker") as url,
        rig.worker(site.app, url, ageing_step=1) as worker,
        rig.worker(site.app, url) as other,
        rig.client(store_url=store) as client,
        rig.plain() as channel,
    ):
        assert await client.run("echo", 7, timeout=PATIENCE) == 7
        await eventually(lambda: worker.peers == other.peers == 1, "they hear each other")
        await client.submit("fail", "on purpose")
        await eventually(lambda: rig.depth(names.dead), "a dead letter")
        for name in range(2):
            await client.submit("gated", name, priority="low")
        await eventually(lambda: len(site.started) == 2, "both workers are busy")
        body = make_task("gated", 3, priority="low").model_dump_json().encode()
        await publish(channel, names.tasks, "gated", body, priority=2, expiration="100")
        await eventually(lambda: worker.totals.promoted + other.totals.promoted, "one rises")
        await client.pause("echo")
        await eventually(lambda: "pause" in worker.lanes["echo"].holds, "it is paused")
        site.gate.set()
        await is_refused(url, "configure", "billing", f"{rig.settings.namespace}.replies.a")
        await is_refused(url, "read", f"{rig.settings.namespace}.replies.a", "billing")


async def test_the_health_check_of_a_worker_needs_no_more_rights_than_a_worker(rig: Rig) -> None:
    async with rig.worker(Site().app), role_of(rig, "worker") as url:
        code, out, _ = await cli("doctor", **{**cli_environment(rig), "WARREN_AMQP_URL": url})
        assert (code, "✗" in out) == (0, False), out


async def test_a_gateway_takes_tasks_relays_them_and_reads_dead_letters(rig: Rig, tmp_path: Path) -> None:
    names, site = rig.names, Site()
    shared = f"sqlite:///{tmp_path / 'store.db'}"
    async with (
        rig.worker(site.app) as worker,
        role_of(rig, "gateway") as url,
        door(shared, url, namespace=rig.settings.namespace) as gateway,
    ):
        await eventually(lambda: gateway.backend.broker_state == "up", "it reaches the broker")
        ada, boss = await gateway.caller("ada"), await gateway.caller("boss", "admin")
        await submit(ada, 7, agent_type="gated")
        await eventually(lambda: site.started == [7], "it is relayed and runs")
        task_id = await submit(ada, 8, agent_type="fail")

        async def is_read() -> bool:
            return task_id in (await boss.get("/api/v1/dead-letters")).text

        await eventually(is_read, "the desk has read the dead letter")
        await eventually(lambda: gateway.backend.heard.overview().counted == 1, "it hears the worker")
        queues = (await boss.get("/api/v1/agents/queue/status")).json()["agent_types"]
        assert queues["echo"]["depth"] == 0
        assert (await boss.post("/api/v1/agents/gated/pause")).status_code == 200
        await eventually(lambda: "pause" in worker.lanes["gated"].holds, "the worker is told")
        site.gate.set()
        await is_refused(url, "read", names.queue("echo"), names.ageing)
        await is_refused(url, "publish", names.events, names.dlx)
        await is_refused(url, "configure", names.dead, names.queue("other"))
        await is_refused(url, "delete", names.dead, names.queue("echo"))


async def test_an_operator_looks_cancels_and_sees_dead_letters(rig: Rig, tmp_path: Path) -> None:
    names, site = rig.names, Site()
    shared = f"sqlite:///{tmp_path / 'store.db'}"
    async with (
        rig.worker(site.app, store_url=shared, dead_letter_desk=False) as worker,
        rig.client() as client,
        role_of(rig, "operator") as url,
    ):
        there = cli_environment(rig, WARREN_STORE_URL=shared) | {"WARREN_AMQP_URL": url}
        code, shown, err = await cli("status", "--once", "--json", WARREN_HEARTBEAT_INTERVAL="0.5", **there)
        assert (code, worker.worker_id in shown) == (0, True), err
        buried = await client.submit("fail", "on purpose")
        await eventually(lambda: rig.depth(names.dead), "a dead letter")
        code, shown, err = await cli("dead", "list", "--json", **there)
        assert (code, str(buried.task_id) in shown) == (0, True), err
        code, shown, err = await cli("dead", "list", "--from-queue", "--json", **there)
        assert (code, str(buried.task_id) in shown) == (0, True), err
        running = await client.submit("gated", 1)
        await eventually(lambda: site.started, "it runs")
        code, _, err = await cli("cancel", str(running.task_id), **there)
        assert code == 0, err
        await eventually(lambda: worker.totals.cancelled == 1, "it is cancelled")
        for command in ("pause", "resume"):
            code, _, err = await cli(command, "echo", **there)
            assert code == 0, err
        await is_refused(url, "read", names.queue("echo"), names.ageing)
        await is_refused(url, "publish", names.events, names.dlx)
        await is_refused(url, "configure", names.dead, names.queue("other"))


async def test_a_gateway_that_comes_before_the_first_worker_waits_for_it(rig: Rig, tmp_path: Path) -> None:
    """It may not make the exchanges, and takes tasks in all the same."""
    site, shared = Site(), f"sqlite:///{tmp_path / 'store.db'}"
    async with (
        role_of(rig, "gateway") as url,
        door(shared, url, namespace=rig.settings.namespace) as gateway,
    ):
        caller = await gateway.caller("ada")
        with capture_logs() as logs:
            await eventually(lambda: logged(logs, "gateway.waits_for_worker"), "it waits")
        await submit(caller, 7, agent_type="gated")
        async with rig.worker(site.app):
            await eventually(lambda: site.started == [7], "the task is relayed and runs")
            await eventually(lambda: gateway.backend.heard.overview().counted == 1, "it hears the worker")
            site.gate.set()


async def test_topic_permissions_keep_heartbeats_for_workers(rig: Rig) -> None:
    """Who may publish events of tasks alone cannot publish a heartbeat, nor hide one under their key."""
    events, site = rig.names.events, Site()
    async with (
        rig.worker(site.app) as worker,
        rig.client() as client,
        user(rig, "^$", f"^{events}$", "^$") as url,
    ):
        name = url.split("//")[1].split(f":{PASSWORD}")[0]
        await asyncio.to_thread(rig.broker.ctl, "set_topic_permissions", name, events, r"^task\.", "^$")
        await is_refused(url, "publish", events)
        heard = [event async for event in _told(client, url, events, worker.worker_id)]
        assert [event.kind for event in heard] == ["task"]


async def _told(client: Any, url: str, events: str, worker_id: str) -> AsyncIterator[Event]:
    """What a client hears of a heartbeat that is published as an event of a task, and of such an event."""
    listening = client.events("task.#")
    first = asyncio.ensure_future(anext(listening))
    connection = await aiormq.connect(url)
    try:
        channel = await connection.channel()
        common = {"version": 1, "at": "2026-11-02T09:30:00Z", "worker_id": worker_id}
        forged = Event.model_validate(
            {**common, "event_id": uuid4(), "kind": "worker", "subject": worker_id, "state": "stopped"}
        )
        honest = Event.model_validate(
            {**common, "event_id": uuid4(), "kind": "task", "subject": "echo", "state": "progress"}
        )

        async def is_heard() -> bool:
            for event in (forged, honest):
                body = event.model_dump_json().encode()
                await channel.basic_publish(body, exchange=events, routing_key="task.echo.progress")
            return bool(first.done())

        await eventually(is_heard, "the client listens")
        yield first.result()
    finally:
        await connection.close()
        await listening.aclose()
